//! Our contestant: two hosts with blockd and an agent each, and a guest that vmctl moves.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::cutover::{
    Between, Ear, Host, Parts, Programs, Rig, Script, Settings, VM, WORDS, Wanted, longest_pause, silence,
};
use fixtures::process::{ChildGuard, ProcessError, last_lines};
use serde_json::Value;

use super::{Bench, Moved, Told, failed};
use crate::sync::content::{Layout, Served};
use crate::trouble::Trouble;

/// How long a guest may take to boot, and to be heard of again.
const BOOT: Duration = Duration::from_secs(120);
/// Lines of a failed move that are shown.
const LINES: usize = 12;

/// What it is to be like.
pub(super) struct Setup<'a> {
    /// Size of the disk, all of it written.
    pub(super) bytes: u64,
    /// The guest's load, as its command line has it.
    pub(super) load: &'a str,
    /// What is between the hosts.
    pub(super) between: Between,
    /// How the command lines of both daemons begin.
    pub(super) enter: Vec<String>,
    /// What the disk holds.
    pub(super) seed: u64,
}

/// Two hosts, and where the guest is.
pub(super) struct Ours {
    rig: Rig,
    dir: PathBuf,
    is_at_a: bool,
    ear: Option<Ear>,
}

impl Ours {
    /// Two new hosts; the disk is written at the first.
    pub(super) fn start(bench: &Bench<'_>, setup: &Setup<'_>) -> Result<Self, Trouble> {
        let dir = bench.room.new_image("rig");
        let what = "start two hosts";
        let rig = make(bench, setup, &dir).map_err(|error| failed(what, &error))?;
        let mut disk = Served::connect(&rig.a.nbd_socket(), VM)?;
        Layout::contiguous(setup.bytes).fill(&mut disk, setup.seed, bench.room.interrupt)?;
        Ok(Self { rig, dir, is_at_a: true, ear: None })
    }

    fn hosts(&self) -> (&Host, &Host) {
        let Rig { a, b, .. } = &self.rig;
        if self.is_at_a { (a, b) } else { (b, a) }
    }

    /// Boots the guest where it is, and waits until it is at work.
    pub(super) fn boot(&mut self) -> Result<(), Trouble> {
        let booted = || {
            let (here, _) = self.hosts();
            here.vmctl(&["vm", "start", VM])?;
            let ear = Ear::listen(&here.serial_socket());
            ear.wait_words(WORDS, BOOT)?;
            Ok(ear)
        };
        self.ear = Some(booted().map_err(|error| failed("boot a guest", &error))?);
        Ok(())
    }

    /// Brings the other host's replica up to now.
    pub(super) fn follow(&self) -> Result<(), Trouble> {
        let (here, there) = self.hosts();
        let followed = here.blockctl(&["sync", VM, "--to", there.name]);
        followed.map(drop).map_err(|error| failed("bring a replica up to now", &error))
    }

    /// Whether this vmctl knows an option of `migrate`.
    pub(super) fn knows(&self, option: &str) -> Result<bool, Trouble> {
        let help = self.rig.a.vmctl(&["migrate", "--help"]).map_err(|error| failed("ask vmctl", &error))?;
        Ok(help.contains(option))
    }

    /// Moves the guest to the other host. `None`: it did not come to its end in time, and was given up.
    pub(super) fn migrate(
        &mut self,
        bench: &Bench<'_>,
        words: &[&str],
        time_max: Duration,
    ) -> Result<Option<Moved>, Trouble> {
        let log = bench.room.new_short("log");
        let moved = self.try_migrate(&log, words, time_max);
        let (here, there) = self.hosts();
        let context = || format!("{}{}", here.last_words(), there.last_words());
        let moved = moved.with_context(context).map_err(|error| failed("move a guest", &error))?;
        let Some((ear, moved)) = moved else { return Ok(None) };
        self.ear = Some(ear);
        self.is_at_a = !self.is_at_a;
        Ok(Some(moved))
    }

    fn try_migrate(&self, log: &Path, words: &[&str], time_max: Duration) -> Result<Option<(Ear, Moved)>> {
        let (here, there) = self.hosts();
        let ear = Ear::listen(&there.serial_socket());
        let output = File::create(log)?;
        let mut command = here.vmctl_command(&["migrate", VM, "--to", there.name]);
        command.args(words).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let began = Instant::now();
        let mut child = ChildGuard::spawn(&mut command)?;
        let status = match child.wait_for(time_max) {
            Err(ProcessError::TimedOut { .. }) => {
                here.vmctl(&["abort", VM])?;
                return Ok(None);
            }
            status => status?,
        };
        let wall = began.elapsed();
        if !status.success() {
            bail!("vmctl migrate: {status}\n{}", last_lines(&fs::read_to_string(log)?, LINES));
        }
        ear.wait(began, BOOT)?;
        let before = self.ear.as_ref().context("no guest was booted")?.heard();
        let silence = silence(&before, &ear.heard()).context("the guest was not heard")?;
        let (told, memory) = told(&here.report()?).context("vmctl's report is not as expected")?;
        let usual = longest_pause(&before, began);
        let [silence_ms, usual_ms] = [silence, usual].map(|time| time.as_secs_f64() * 1e3);
        let wall_s = wall.as_secs_f64();
        Ok(Some((ear, Moved { silence_ms, usual_ms, wall_s, memory, told: Some(told) })))
    }

    /// Ends the guest.
    pub(super) fn halt(&mut self) -> Result<(), Trouble> {
        self.ear = None;
        let ended = self.hosts().0.vmctl(&["vm", "stop", VM, "--force", "--timeout", "0"]);
        ended.map(drop).map_err(|error| failed("end a guest", &error))
    }

    /// Ends both hosts and removes their data.
    pub(super) fn end(self) -> Result<(), Trouble> {
        let Self { mut rig, dir, .. } = self;
        let ended = rig.a.stop().and_then(|()| rig.b.stop());
        drop(rig);
        ended.and_then(|()| Ok(fs::remove_dir_all(dir)?)).map_err(|error| failed("end two hosts", &error))
    }
}

fn make(bench: &Bench<'_>, setup: &Setup<'_>, dir: &Path) -> Result<Rig> {
    fs::create_dir(dir)?;
    let programs = Programs::in_dir(bench.room.plan.blockd.parent().context("a program in no directory")?);
    let parts = Parts { programs: &programs, kernel: bench.kernel, accel: bench.accel, dir };
    // Snapshots of the last difference and of the one before are there at the same time.
    let pool = (setup.bytes * 3).max(1 << 30).to_string();
    let settings = Settings { pool, enter: setup.enter.clone(), ..Settings::default() };
    let wanted = Wanted {
        a: settings.clone(),
        b: settings,
        script: Script::Load,
        append: setup.load.to_owned(),
        volume_bytes: setup.bytes,
        between: setup.between.clone(),
    };
    Rig::make(&parts, &wanted)
}

/// What a report says, and how many bytes of memory were sent.
fn told(report: &Value) -> Option<(Told, u64)> {
    let numbers = &report["numbers"];
    let rounds = numbers["rounds"].as_array()?;
    let all = || rounds.iter().chain([&numbers["last_round"]]);
    let sum = |key: &str| all().filter_map(|round| round[key].as_u64()).sum();
    let told = Told {
        silence_ms: numbers["silence_ms"].as_f64()?,
        forecast_ms: numbers["forecast"]["silence_ms"].as_f64()?,
        changed_first: rounds.first()?["bytes_changed"].as_u64()?,
        changed: sum("bytes_changed"),
        sent: sum("bytes_sent"),
    };
    Some((told, numbers["memory_bytes"].as_u64()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_is_summed_up_over_all_rounds() {
        let round = |bytes: u64| json!({ "bytes_changed": bytes, "bytes_sent": bytes + 1, "ms": 5.0 });
        let report = json!({ "numbers": {
            "rounds": [round(100), round(20)], "last_round": round(3), "silence_ms": 50.5,
            "forecast": { "silence_ms": 60.0 }, "memory_bytes": 7,
        } });
        let expected =
            Told { silence_ms: 50.5, forecast_ms: 60.0, changed_first: 100, changed: 123, sent: 126 };
        assert_eq!(told(&report), Some((expected, 7)));
        assert_eq!(told(&json!({})), None);
    }
}
