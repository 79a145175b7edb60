//! The last act: a running guest goes to another host while it writes, and comes back; then plain QEMU moves it once.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::cutover::{
    CopyMode, Ear, GuestFiles, Host, Parts, Plain, PlainMove, PlainMoved, PlainParts, Programs, Rig, Story,
    VOLUME_BYTES, Wanted, read_console, silence,
};
use fixtures::guest::{Accel, Kernel};
use serde_json::Value;

use super::report::{bytes, millis, seconds};
use crate::progress::Progress;

/// The guest of the rig.
const VM: &str = "web1";
/// How long the guest may take to be heard of again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Numbers that the guest writes at the other host before it goes back.
const NUMBERS: u64 = 20;
/// Makes the guest talk all the time, so that its silence can be heard.
const TICKS: &str = "story.ticks";

/// One move, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moved {
    from: &'static str,
    to: &'static str,
    /// As it was heard: from the guest's last word here to its first there.
    heard: Duration,
    /// As the agents have it.
    silence: Duration,
    forecast: Duration,
    whole: Duration,
    disk: u64,
    memory: u64,
    epochs: (u64, u64),
    root: String,
}

/// There and back.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moves {
    there: Moved,
    back: Moved,
    written: u64,
    memory_good: u64,
    plain: Plainly,
}

/// The same job without any of ours.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plainly {
    moved: PlainMoved,
    live: bool,
}

/// Moves a guest there and back, and looks whether anything that it was answered is missing.
pub(super) fn act(
    programs: &Path,
    (kernel, accel): (&Kernel, Accel),
    dir: &Path,
    progress: &Progress,
) -> Result<Moves> {
    progress
        .say("two hosts with blockd and vmctl agent; a guest that writes numbers and looks after its memory");
    fs::create_dir_all(dir)?;
    let parts = Parts { programs: &Programs::in_dir(programs), kernel, accel, dir };
    let mut rig = Rig::make(&parts, &Wanted { append: TICKS.to_owned(), ..Wanted::default() })?;
    rig.boot()?;
    let ear = Ear::listen(&rig.a.serial_socket());
    progress.say("moving it from A to B while it writes");
    let (there, ear) = migrate(&rig.a, &rig.b, &ear)?;
    let at = last(&rig.a);
    rig.b.wait_for_console(&format!("SEQ {}", at + NUMBERS), PATIENCE)?;
    progress.say(&format!("{there}; moving it back"));
    let (back, _) = migrate(&rig.b, &rig.a, &ear)?;
    let at = last(&rig.b);
    rig.a.wait_for_console(&format!("SEQ {}", at + 3), PATIENCE)?;
    progress.say(&format!("{back}; comparing its disk with what it was answered"));
    let (written, memory_good, disk) = judge(&rig)?;
    rig.a.stop()?;
    rig.b.stop()?;
    progress.say("the same guest and disk, moved by plain QEMU: blockdev-mirror, then migrate");
    let plain = plainly(&rig.files, accel, &disk, dir)?;
    Ok(Moves { there, back, written, memory_good, plain })
}

/// Boots the guest from a file with that content and moves it with QEMU alone, in the same manner: where its processor is
/// translated, vmctl stops it before its memory is sent, and so is done here.
fn plainly(files: &GuestFiles, accel: Accel, disk: &[u8], dir: &Path) -> Result<Plainly> {
    let images = ["plain-a.raw", "plain-b.raw"].map(|name| dir.join(name));
    fs::write(&images[0], disk)?;
    fs::File::create(&images[1])?.set_len(VOLUME_BYTES)?;
    let run = tempfile::Builder::new().prefix("demo").tempdir()?;
    let (files, append, enter) = (files.clone(), TICKS.to_owned(), Vec::new());
    let parts = PlainParts { files, accel, append, run: run.path().to_owned(), enter };
    let mut guest = Plain::boot(parts, &images[0])?;
    let live = accel == Accel::Kvm;
    let (copy_mode, time_max) = (CopyMode::WriteBlocking, PATIENCE);
    let how = PlainMove { tuned: true, live, copy_mode, pace: None, time_max };
    let moved = guest.migrate(&images[1], &how)?.context("plain QEMU does not come to its end")?;
    guest.stop()?;
    Ok(Plainly { moved, live })
}

fn last(host: &Host) -> u64 {
    read_console(&host.console()).last()
}

/// Also who listens to the guest there.
fn migrate(from: &Host, to: &Host, before: &Ear) -> Result<(Moved, Ear)> {
    let (began, ear) = (Instant::now(), Ear::listen(&to.serial_socket()));
    from.vmctl(&["migrate", VM, "--to", to.name])?;
    let whole = began.elapsed();
    ear.wait(began, PATIENCE)?;
    let heard = silence(&before.heard(), &ear.heard()).context("the guest was not heard")?;
    let report = from.report()?;
    let numbers = &report["numbers"];
    let ms = |value: &Value| value.as_f64().map(|ms| Duration::from_secs_f64(ms / 1e3));
    let rounds = numbers["rounds"].as_array().into_iter().flatten().chain([&numbers["last_round"]]);
    let commit = &report["source_end"]["moved"];
    let epoch = commit["epoch"].as_u64().context("a report without an epoch")?;
    let root = commit["snapshots"][0]["root"].as_str().context("a report without a root")?;
    let moved = Moved {
        from: from.name,
        to: to.name,
        heard,
        silence: ms(&numbers["silence_ms"]).context("a report without a silence")?,
        forecast: ms(&numbers["forecast"]["silence_ms"]).context("a report without a forecast")?,
        whole,
        disk: rounds.map(|round| round["bytes_sent"].as_u64().unwrap_or_default()).sum(),
        memory: numbers["memory_bytes"].as_u64().unwrap_or_default(),
        epochs: (epoch, epoch + 1),
        root: root.to_owned(),
    };
    Ok((moved, ear))
}

/// Numbers that were written, looks at the memory that found it whole, and what the disk holds.
fn judge(rig: &Rig) -> Result<(u64, u64, Vec<u8>)> {
    rig.a.vmctl(&["vm", "stop", VM, "--force", "--timeout", "0"])?;
    let told = [&rig.a, &rig.b].map(|host| read_console(&host.console()));
    let mut all: Vec<u64> = told.iter().flat_map(|story| story.written.clone()).collect();
    all.sort_unstable();
    let complaints = told.iter().flat_map(|story| story.complaints.clone()).collect();
    let memory_good = told.iter().map(|story| story.memory_good).sum();
    let story = Story { written: all, memory_good, complaints };
    story.check(2)?;
    let disk = rig.a.disk(VOLUME_BYTES)?;
    story.check_disk(&disk, story.last())?;
    if story.memory_good == 0 {
        bail!("the guest has not looked at its memory");
    }
    Ok((story.last(), story.memory_good, disk))
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [heard, silence, forecast] = [self.heard, self.silence, self.forecast].map(millis);
        let whole = seconds(self.whole);
        write!(f, "silent for {heard} ({silence} by the agents' clock, forecast {forecast}), {whole} in all")
    }
}

impl fmt::Display for Plainly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (silence, whole) = (millis(self.moved.silence), seconds(self.moved.whole));
        let how = if self.live { "" } else { ", stopped before its memory was sent, too" };
        write!(f, "silent for {silence}{how}; {whole} in all")
    }
}

impl Plainly {
    fn copied(&self) -> String {
        format!("{} of disk, {} of memory", bytes(self.moved.disk_bytes), bytes(self.moved.memory_bytes))
    }
}

impl Moved {
    fn certificate(&self) -> String {
        let root = self.root.get(..12).unwrap_or(&self.root);
        format!("epoch {} → {}, root {root}… equal on both", self.epochs.0, self.epochs.1)
    }

    fn sent(&self) -> String {
        format!("{} of disk, {} of memory", bytes(self.disk), bytes(self.memory))
    }
}

impl fmt::Display for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for moved in [&self.there, &self.back] {
            let name = format!("{} to {}", moved.from, moved.to);
            writeln!(f, "  {name:<22}{moved}")?;
            writeln!(f, "  {:<22}{}", "sent", moved.sent())?;
            writeln!(f, "  {:<22}{}", "certificate", moved.certificate())?;
        }
        writeln!(f, "  {:<22}{}", "by plain QEMU", self.plain)?;
        writeln!(f, "  {:<22}{}", "copied", self.plain.copied())?;
        let found = format!(
            "{} numbers written, none missing; memory whole {} times",
            self.written, self.memory_good
        );
        writeln!(f, "  {:<22}{found}", "the guest")
    }
}
