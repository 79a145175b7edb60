//! The last act: a running guest goes to another host while it writes, and comes back.

use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::cutover::{Host, Parts, Programs, Rig, Story, VOLUME_BYTES, read_console};
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

/// One move, in numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moved {
    from: &'static str,
    to: &'static str,
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
    std::fs::create_dir_all(dir)?;
    let parts = Parts { programs: &Programs::in_dir(programs), kernel, accel, dir };
    let mut rig = Rig::start(&parts)?;
    rig.boot()?;
    progress.say("moving it from A to B while it writes");
    let there = migrate(&rig.a, &rig.b)?;
    let at = last(&rig.a);
    rig.b.wait_for_console(&format!("SEQ {}", at + NUMBERS), PATIENCE)?;
    progress.say(&format!("{there}; moving it back"));
    let back = migrate(&rig.b, &rig.a)?;
    let at = last(&rig.b);
    rig.a.wait_for_console(&format!("SEQ {}", at + 3), PATIENCE)?;
    progress.say(&format!("{back}; comparing its disk with what it was answered"));
    let (written, memory_good) = judge(&rig)?;
    rig.a.stop()?;
    rig.b.stop()?;
    Ok(Moves { there, back, written, memory_good })
}

fn last(host: &Host) -> u64 {
    read_console(&host.console()).last()
}

fn migrate(from: &Host, to: &Host) -> Result<Moved> {
    let began = Instant::now();
    from.vmctl(&["migrate", VM, "--to", to.name])?;
    let whole = began.elapsed();
    let report = from.report()?;
    let numbers = &report["numbers"];
    let ms = |value: &Value| value.as_f64().map(|ms| Duration::from_secs_f64(ms / 1e3));
    let rounds = numbers["rounds"].as_array().into_iter().flatten().chain([&numbers["last_round"]]);
    let commit = &report["source_end"]["moved"];
    let epoch = commit["epoch"].as_u64().context("a report without an epoch")?;
    let root = commit["snapshots"][0]["root"].as_str().context("a report without a root")?;
    Ok(Moved {
        from: from.name,
        to: to.name,
        silence: ms(&numbers["silence_ms"]).context("a report without a silence")?,
        forecast: ms(&numbers["forecast"]["silence_ms"]).context("a report without a forecast")?,
        whole,
        disk: rounds.map(|round| round["bytes_sent"].as_u64().unwrap_or_default()).sum(),
        memory: numbers["memory_bytes"].as_u64().unwrap_or_default(),
        epochs: (epoch, epoch + 1),
        root: root.to_owned(),
    })
}

/// Numbers that were written, and looks at the memory that found it whole.
fn judge(rig: &Rig) -> Result<(u64, u64)> {
    rig.a.vmctl(&["vm", "stop", VM, "--force", "--timeout", "0"])?;
    let told = [&rig.a, &rig.b].map(|host| read_console(&host.console()));
    let mut all: Vec<u64> = told.iter().flat_map(|story| story.written.clone()).collect();
    all.sort_unstable();
    let complaints = told.iter().flat_map(|story| story.complaints.clone()).collect();
    let memory_good = told.iter().map(|story| story.memory_good).sum();
    let story = Story { written: all, memory_good, complaints };
    story.check(2)?;
    story.check_disk(&rig.a.disk(VOLUME_BYTES)?, story.last())?;
    if story.memory_good == 0 {
        bail!("the guest has not looked at its memory");
    }
    Ok((story.last(), story.memory_good))
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (silence, forecast) = (millis(self.silence), millis(self.forecast));
        write!(f, "silent for {silence} (forecast {forecast}), {} in all", seconds(self.whole))
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
        let found = format!(
            "{} numbers written, none missing; memory whole {} times",
            self.written, self.memory_good
        );
        writeln!(f, "  {:<22}{found}", "the guest")
    }
}
