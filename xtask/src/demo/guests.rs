//! The demo's guests: one that writes until it is told to stop, one that checks what it finds on a clone.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fixtures::guest::{
    Accel, GuestOutcome, GuestRun, GuestSpec, Kernel, READY, RunningGuest, nbd_drive_patient,
};
use fixtures::process;

use super::daemon::NBD_SOCKET;
use super::words::{self, Sums};

const WRITER: &str = include_str!("writer.sh");
const CHECKER: &str = include_str!("checker.sh");
/// What a guest writes in a round.
pub(super) const FILES: u32 = 4;
pub(super) const FILE_MIB: u32 = 4;
/// So many rounds fit on the disk; the guest is told to stop long before.
const ROUNDS_MAX: u32 = 50;
pub(super) const IMAGE_MIB: u64 = 1024;
/// Holds a round in memory besides the system.
const MEMORY_MIB: u32 = 256;

/// How long a guest waits for a daemon that has gone.
const PATIENCE: Duration = Duration::from_secs(20);
/// Generous, for translated guests on busy machines; a good run takes a tenth of them.
const BOOT_TIMEOUT: Duration = Duration::from_secs(90);
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);
const END_TIMEOUT: Duration = Duration::from_secs(240);

/// The drive by which the host tells the writer something; QEMU reads whole sectors.
const ORDERS: &str = "orders";
const ORDERS_BYTES: u64 = 4096;

/// What every guest is made of.
#[derive(Debug)]
pub(super) struct Machines {
    pub(super) kernel: Kernel,
    pub(super) accel: Accel,
    pub(super) dir: PathBuf,
}

/// The guest that writes.
#[derive(Debug)]
pub(super) struct Writer {
    guest: RunningGuest,
    orders: File,
}

/// The guest on the clone.
#[derive(Debug)]
pub(super) struct Checker {
    guest: RunningGuest,
}

/// What a guest had said when it was off.
#[derive(Debug)]
pub(super) struct Finished {
    /// Of the files that it wrote.
    pub(super) sums: Sums,
    /// Files whose checksums it compared itself.
    pub(super) verified: usize,
    /// Rounds that it wrote.
    pub(super) rounds: u32,
}

impl Machines {
    /// Starts the guest that writes on `volume`; returns it at its script, and the time to there.
    pub(super) fn start_writer(&self, volume: &str) -> Result<(Writer, Duration)> {
        let path = self.dir.join(ORDERS);
        let orders = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        orders.set_len(ORDERS_BYTES)?;
        let settings = format!("FILES={FILES}\nFILE_MIB={FILE_MIB}\nROUNDS_MAX={ROUNDS_MAX}\n");
        let run = self.machine(volume, format!("{settings}{WRITER}"))?;
        // Through the page cache, where our writes are seen at once.
        let drive = format!("file={ORDERS},format=raw,if=virtio,readonly=on,cache=writethrough");
        let mut writer = Writer { guest: run.drive(drive).start()?, orders };
        let boot = writer.guest.wait_ready(BOOT_TIMEOUT)?;
        Ok((writer, boot))
    }

    /// Starts the guest that looks on `volume` for `expected`, and for nothing of round `later`.
    pub(super) fn start_checker(
        &self,
        volume: &str,
        expected: &Sums,
        later: u32,
    ) -> Result<(Checker, Duration)> {
        let lines: String = expected.iter().map(|(path, md5)| format!("{md5}  {path}\n")).collect();
        let expected = format!("expected() {{\ncat <<'END'\n{lines}END\n}}\n");
        let settings = format!("FILES={FILES}\nFILE_MIB={FILE_MIB}\nLATER={later}\n{expected}");
        let mut guest = self.machine(volume, format!("{settings}{CHECKER}"))?.start()?;
        let boot = guest.wait_for(READY, BOOT_TIMEOUT)?;
        Ok((Checker { guest }, boot))
    }

    fn machine(&self, volume: &str, script: String) -> Result<GuestRun> {
        let initramfs = self.dir.join(format!("{volume}.initramfs"));
        GuestSpec { script, ..GuestSpec::default() }.build_initramfs(&self.kernel, &initramfs)?;
        let console = self.dir.join(format!("{volume}.console.log"));
        let run = GuestRun::new(&self.kernel, &initramfs, self.accel, &console);
        let drive = nbd_drive_patient(Path::new(NBD_SOCKET), volume, PATIENCE);
        Ok(run.memory_mib(MEMORY_MIB).current_dir(&self.dir).drive(drive))
    }
}

impl Writer {
    /// Waits until a round begins that has not begun yet; returns its number.
    pub(super) fn next_round(&mut self) -> Result<u32> {
        let round = self.begun()? + 1;
        self.guest.wait_for(&format!("DEMO-ROUND {round} begins"), ROUND_TIMEOUT)?;
        Ok(round)
    }

    /// Waits until a round has ended.
    pub(super) fn wait_round(&mut self, round: u32) -> Result<()> {
        self.guest.wait_for(&format!("DEMO-ROUND {round} ends"), ROUND_TIMEOUT).map(drop)
    }

    /// The round that began last.
    pub(super) fn begun(&self) -> Result<u32> {
        Ok(words::begun(&self.console()?))
    }

    /// Whether it is still writing that round's files.
    pub(super) fn is_writing(&self, round: u32) -> Result<bool> {
        Ok(words::ended(&self.console()?) < round)
    }

    /// What it has said so far.
    pub(super) fn console(&self) -> Result<String> {
        self.guest.console()
    }

    /// Lets it rest after each round from now on: a fast one would fill its disk while its replica is looked at.
    pub(super) fn slow_down(&self) -> Result<()> {
        Ok(self.orders.write_all_at(b"slow\n", 0)?)
    }

    /// Lets it end its round, compare everything once more, and power off.
    pub(super) fn finish(self) -> Result<Finished> {
        self.orders.write_all_at(b"stop\n", 0)?;
        finish(self.guest)
    }
}

impl Checker {
    /// Waits until it has checked, written and powered off.
    pub(super) fn finish(self) -> Result<Finished> {
        finish(self.guest)
    }
}

fn finish(guest: RunningGuest) -> Result<Finished> {
    let GuestOutcome { rc, console } = guest.wait_done(END_TIMEOUT)?;
    words::refuse_complaints(&console)?;
    if rc != 0 {
        bail!("the guest's script failed with {rc}:\n{}", process::last_lines(&console, 15));
    }
    let (sums, rounds) = (words::sums(&console), words::ended(&console));
    Ok(Finished { sums, verified: words::verified(&console)?, rounds })
}
