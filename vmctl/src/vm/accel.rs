//! What runs a guest's processors: KVM where that really works, else translation.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::error::{Error, Kind};

/// Where KVM is.
const KVM_DEVICE: &str = "/dev/kvm";
/// Where it works the probe takes a twentieth of a second; where it does not, it takes all of this.
const PROBE_TIME_MAX: Duration = Duration::from_secs(3);
/// What the probe's QEMU ends with: the byte of the probe, 0x2a, twice and one more.
const PROBE_EXIT_CODE: i32 = 0x2a * 2 + 1;
/// Where firmware ends, and a processor begins: 16 bytes before.
const FIRMWARE_BYTES: usize = 64 << 10;

/// What runs the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The host's processor.
    Kvm,
    /// QEMU's translation: everywhere, and several times slower.
    Tcg,
}

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AccelChoice {
    /// KVM if a probe guest gets through it, else translation.
    #[default]
    Auto,
    /// KVM; a VM that it does not run does not start.
    Kvm,
    /// Translation.
    Tcg,
}

impl Accel {
    /// For `-accel`.
    pub fn argument(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg,thread=multi",
        }
    }

    /// The processor's model, unless the definition names one.
    pub fn cpu_default(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }

    /// As people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// Finds out once what runs guests here.
#[derive(Debug)]
pub struct AccelProbe {
    choice: AccelChoice,
    /// The lock also keeps two starts from probing side by side.
    answer: Mutex<Option<Accel>>,
}

impl AccelProbe {
    /// Nothing is probed yet.
    pub fn new(choice: AccelChoice) -> Self {
        Self { choice, answer: Mutex::new(None) }
    }

    /// What runs guests. `/dev/kvm` alone proves nothing: nested or replaced ones exist that open, run real-mode code,
    /// and never get a processor into its 64-bit mode. So a probe of our own has to come through.
    ///
    /// # Errors
    /// KVM is asked for and is not there, or QEMU cannot be run.
    pub async fn accel(&self, qemu: &Path) -> Result<Accel, Error> {
        let mut answer = self.answer.lock().await;
        if let Some(accel) = *answer {
            return Ok(accel);
        }
        let there = File::options().read(true).write(true).open(KVM_DEVICE);
        let accel = match (self.choice, there) {
            (AccelChoice::Tcg, _) | (AccelChoice::Auto, Err(_)) => Accel::Tcg,
            (AccelChoice::Kvm, Ok(_)) => Accel::Kvm,
            (AccelChoice::Kvm, Err(error)) => {
                let message = format!("accel = \"kvm\", and {KVM_DEVICE}: {error}");
                return Err(Error::one_line(Kind::Refused, message)
                    .with_next("ls -l /dev/kvm    (or accel = \"auto\")"));
            }
            (AccelChoice::Auto, Ok(_)) => probe(qemu).await?,
        };
        tracing::info!(accel = accel.name(), "processors of guests");
        *answer = Some(accel);
        Ok(accel)
    }
}

async fn probe(qemu: &Path) -> Result<Accel, Error> {
    let failed = |error: std::io::Error| Error::one_line(Kind::Io, format!("cannot probe KVM: {error}"));
    let dir = tempfile::tempdir().map_err(failed)?;
    let firmware = dir.path().join("probe");
    std::fs::write(&firmware, firmware_image()).map_err(failed)?;
    let mut command = Command::new(qemu);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "kvm"])
        .args(["-cpu", "host", "-m", "16", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
        .arg(&firmware)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    match tokio::time::timeout(PROBE_TIME_MAX, child.wait()).await {
        Ok(status) if status.as_ref().is_ok_and(|status| status.code() == Some(PROBE_EXIT_CODE)) => {
            Ok(Accel::Kvm)
        }
        Ok(status) => {
            tracing::warn!(?status, "KVM is there and runs no guest: processors are translated");
            Ok(Accel::Tcg)
        }
        Err(_) => {
            child.kill().await.map_err(failed)?;
            tracing::warn!("KVM is there and its guest got stuck: processors are translated");
            Ok(Accel::Tcg)
        }
    }
}

/// The firmware that the probe is: the code below at its beginning, a jump to it where processors begin.
fn firmware_image() -> Vec<u8> {
    let mut image = PROBE.to_vec();
    image.resize(FIRMWARE_BYTES, 0);
    // jmp 0: relative to the next instruction, around the end of the segment.
    image[FIRMWARE_BYTES - 16..FIRMWARE_BYTES - 13].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    image
}

/// Real mode → 64-bit mode with paging → a million stack operations → cpuid → byte 0x2a to the port that ends QEMU.
#[rustfmt::skip]
const PROBE: [u8; 174] = [
    0xfa,                                           // cli
    0xea, 0x06, 0x00, 0x00, 0xf0,                   // jmp f000:0006: below 1 MiB, where it stays mapped
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0,             // ds = es = 0
    0x66, 0xbf, 0x00, 0x10, 0x00, 0x00,             // edi = 0x1000: page tables
    0x0f, 0x22, 0xdf,                               // cr3 = edi
    0x66, 0x31, 0xc0,                               // eax = 0
    0x66, 0xb9, 0x00, 0x0c, 0x00, 0x00,             // ecx = 0xc00
    0x67, 0x66, 0xf3, 0xab,                         // clear three pages
    0xc7, 0x06, 0x00, 0x10, 0x03, 0x20,             // [0x1000] = 0x2000, present, writable
    0xc7, 0x06, 0x00, 0x20, 0x03, 0x30,             // [0x2000] = 0x3000, present, writable
    0xc7, 0x06, 0x00, 0x30, 0x83, 0x00,             // [0x3000] = the first 2 MiB
    0x66, 0xb8, 0x20, 0x00, 0x00, 0x00,             // eax = PAE
    0x0f, 0x22, 0xe0,                               // cr4 = eax
    0x66, 0xb9, 0x80, 0x00, 0x00, 0xc0,             // ecx = EFER
    0x0f, 0x32,                                     // rdmsr
    0x66, 0x0d, 0x00, 0x01, 0x00, 0x00,             // eax |= long mode
    0x0f, 0x30,                                     // wrmsr
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0xa0, 0x00,       // lgdt cs:[0xa0]
    0x66, 0xb8, 0x01, 0x00, 0x00, 0x80,             // eax = paging, protection
    0x0f, 0x22, 0xc0,                               // cr0 = eax
    0x66, 0xea, 0x65, 0x00, 0x0f, 0x00, 0x08, 0x00, // jmp 8:f0065
    0xb8, 0x10, 0x00, 0x00, 0x00,                   // 64-bit from here: eax = 16
    0x8e, 0xd8, 0x8e, 0xd0,                         // ds = ss = ax
    0xbc, 0x00, 0x80, 0x00, 0x00,                   // esp = 0x8000
    0xb9, 0x00, 0x00, 0x10, 0x00,                   // ecx = 0x100000
    0x51, 0x5a, 0xe2, 0xfc,                         // push rcx; pop rdx; loop
    0x31, 0xc0, 0x0f, 0xa2,                         // cpuid of leaf 0
    0xb0, 0x2a, 0xe6, 0xf4,                         // out 0xf4, 0x2a
    0xf4, 0xeb, 0xfd,                               // hlt, for ever
    0x90,
    0, 0, 0, 0, 0, 0, 0, 0,                         // 0x88: segments: none,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9a, 0xaf, 0x00, // 64-bit code,
    0xff, 0xff, 0x00, 0x00, 0x00, 0x92, 0xcf, 0x00, // data
    0x17, 0x00, 0x88, 0x00, 0x0f, 0x00,             // 0xa0: where they are: 24 bytes at 0xf0088
    0, 0, 0, 0, 0, 0, 0, 0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_probe_points_at_is_there() {
        assert_eq!(PROBE[0x65..0x6a], [0xb8, 0x10, 0, 0, 0]);
        assert_eq!(PROBE[0x88..0x90], [0; 8]);
        assert_eq!(PROBE[0xa0..0xa6], [0x17, 0, 0x88, 0, 0x0f, 0]);
        assert_eq!(firmware_image().len(), FIRMWARE_BYTES);
    }

    /// The probe itself works: a processor that is translated gets through it.
    #[tokio::test]
    async fn the_probe_gets_through_translation() {
        let Some(qemu) = fixtures::process::find_program("qemu-system-x86_64") else { return };
        let dir = tempfile::tempdir().unwrap();
        let firmware = dir.path().join("probe");
        std::fs::write(&firmware, firmware_image()).unwrap();
        let mut command = Command::new(qemu);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-machine",
            "q35,accel=tcg",
            "-m",
            "16",
        ]);
        command
            .args(["-cpu", "max", "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-bios"])
            .arg(&firmware);
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let status = tokio::time::timeout(Duration::from_secs(20), child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(PROBE_EXIT_CODE));
    }

    #[tokio::test]
    async fn translation_needs_no_probe() {
        let probe = AccelProbe::new(AccelChoice::Tcg);
        assert_eq!(probe.accel(Path::new("/nonexistent")).await.unwrap(), Accel::Tcg);
    }
}
