//! What a VM is: written by people in TOML, checked once, and then always complete.
//!
//! A definition that was [resolved](Definition::resolve) names everything on which two hosts could differ: the versioned
//! machine type and the addresses of network cards. Only such a one is stored and started.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::machine::{self, MachineType};
use super::name::VmName;
use crate::error::{Error, Kind};
use crate::size::Size;

mod check;

/// Disks of one VM, at most: each has an address of its own on the machine's bus.
pub const DISKS_MAX: usize = 12;
/// Network cards of one VM, at most.
pub const NICS_MAX: usize = 8;
/// Longest definition file.
pub const FILE_BYTES_MAX: u64 = 64 << 10;

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Its name on this host and, when it is moved, on others.
    pub name: VmName,
    /// Its memory: a multiple of 1 MiB.
    pub memory: Size,
    /// Its processors.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// The machine type. Resolved: versioned, as in `pc-q35-7.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// The processor's model, in QEMU's words. Missing: `host` with KVM, `max` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// A kernel that is booted instead of what the disks have. Missing: the firmware looks at the disks, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<Boot>,
    /// Its serial console.
    #[serde(default)]
    pub serial: Serial,
    /// Its disks, in order.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// Its network cards, in order.
    #[serde(default, rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
}

fn one() -> u32 {
    1
}

/// A kernel, handed to the guest by QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boot {
    /// The image; absolute.
    pub kernel: PathBuf,
    /// Its first file system; absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Its command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
}

/// The serial console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// Whether there is one.
    #[serde(default = "yes")]
    pub enabled: bool,
}

fn yes() -> bool {
    true
}

impl Default for Serial {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// A disk: a volume of blockd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The volume's name.
    pub volume: String,
    /// What it is plugged into.
    #[serde(default)]
    pub bus: Bus,
    /// The serial number that the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
}

/// What a disk is plugged into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio-blk: `/dev/vda` …
    #[default]
    Virtio,
    /// virtio-scsi: `/dev/sda` …
    Scsi,
}

/// A network card (virtio).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its address, as in `52:54:00:12:34:56`. Resolved: always there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// What it is connected with.
    #[serde(default)]
    pub backend: Backend,
}

/// What a network card is connected with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Backend {
    /// QEMU's own small network: the guest gets out, nobody gets in.
    #[default]
    User,
    /// A tap device that is there already.
    Tap {
        /// Its name.
        ifname: String,
    },
    /// Frames through a Unix socket on which somebody listens.
    Stream {
        /// The socket; absolute.
        path: PathBuf,
    },
    /// Nothing: the cable is out.
    None,
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct DefinitionError {
    /// `FILE:LINE: key`, or the key.
    pub place: String,
    /// Why.
    pub reason: String,
}

impl DefinitionError {
    pub(super) fn new(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { place: place.into(), reason: reason.into() }
    }
}

impl From<DefinitionError> for Error {
    fn from(error: DefinitionError) -> Self {
        Self::one_line(Kind::BadValue, error)
    }
}

impl Definition {
    /// Reads and checks a definition; `file` is its name, for errors. The machine type may still be an alias.
    ///
    /// # Errors
    /// It is no TOML, has keys that we do not know, or values that cannot be.
    pub fn parse(text: &str, file: &Path) -> Result<Self, DefinitionError> {
        let definition: Self = toml::from_str(text).map_err(|error| locate(text, file, &error))?;
        definition.check().map_err(|error| {
            DefinitionError::new(format!("{}: {}", file.display(), error.place), error.reason)
        })?;
        Ok(definition)
    }

    /// Refuses what cannot be, whoever wrote it.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), DefinitionError> {
        check::check(self)
    }

    /// Makes it complete: the machine type versioned, by what this host's QEMU has, and an address for each card.
    ///
    /// # Errors
    /// This QEMU has no such machine type, or has it in no versioned form.
    pub fn resolve(mut self, machines: &[MachineType]) -> Result<Self, DefinitionError> {
        let found = machine::resolve(self.machine.as_deref(), machines);
        self.machine = Some(found.map_err(|reason| DefinitionError::new("machine", reason))?);
        let mut taken: BTreeSet<String> = self.nics.iter().filter_map(|nic| nic.mac.clone()).collect();
        for nic in &mut self.nics {
            let mac = match nic.mac.take() {
                Some(mac) => mac.to_ascii_lowercase(),
                None => new_mac(&taken),
            };
            taken.insert(mac.clone());
            nic.mac = Some(mac);
        }
        Ok(self)
    }

    /// Whether it is complete, as [`resolve`](Self::resolve) leaves it.
    pub fn is_resolved(&self) -> bool {
        self.machine.as_deref().is_some_and(machine::is_versioned)
            && self.nics.iter().all(|nic| nic.mac.is_some())
    }

    /// The volumes behind its disks.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().map(|disk| disk.volume.as_str())
    }
}

/// An address in QEMU's range that is not taken in this VM. 24 random bits: two VMs of one network that share one are
/// unlikely, not impossible; whoever wants to be sure writes it down.
fn new_mac(taken: &BTreeSet<String>) -> String {
    loop {
        let [a, b, c] = [fastrand::u8(..), fastrand::u8(..), fastrand::u8(..)];
        let mac = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
        if !taken.contains(&mac) {
            return mac;
        }
    }
}

/// `FILE:LINE: key`, from where the parser stumbled.
fn locate(text: &str, file: &Path, error: &toml::de::Error) -> DefinitionError {
    let at = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.get(..at).unwrap_or_default();
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let key = line.split(['=', '#']).next().unwrap_or_default().trim();
    let place = if key.is_empty() { String::new() } else { format!(": {key}") };
    let reason = error.message().lines().collect::<Vec<_>>().join(", ");
    DefinitionError::new(format!("{}:{number}{place}", file.display()), reason)
}

#[cfg(test)]
mod tests;
