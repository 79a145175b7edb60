//! Replication of blockd beside what people do without it: `compare --sync`.
//!
//! ```text
//! plan ─► steps ─► room, wire (a network of our own), content (the same bytes for all)
//!           ├─ first-copy   a whole volume over TLS, beside BLAKE3 and a raw write
//!           ├─ increment    1 % changed: blockd, rsync, whole copies over NBD, btrfs send
//!           ├─ any-size     as many changed blocks in a small volume and in large ones
//!           ├─ hashing      `snapshot hash` beside b3sum
//!           └─ schedule     eight jobs a second beside light writers: their lag
//!                └─► recorder ─► rows ─► tables, targets
//! ```
//!
//! One step after the other, each gives its space back: all of them at once would not fit small disks. Both ends are on
//! this machine and share its processors, ours as well as the peers'.

pub mod content;
pub mod host;
pub mod meter;
pub mod wire;

pub mod any_size;
pub mod btrfs;
pub mod files;
pub mod first_copy;
pub mod hashing;
pub mod increment;
pub mod schedule;

pub mod report;
pub mod targets;

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::plan::StorePlan;
use crate::store::record::{FailedScenario, Key, Recorder, Row};
use crate::store::room::Room;
use crate::trouble::Trouble;
use meter::Cost;

/// Our name in the rows.
pub const OURS: &str = "blockd";
/// Time by the clock.
pub const WALL: &str = "wall s";
/// What went over the wire.
pub const WIRE: &str = "MiB on the wire";
/// The same by what was changed.
pub const WIRE_X: &str = "wire / changed";
/// Processor time of both ends.
pub const CPU: &str = "CPU s";
/// Of that our source's.
pub const CPU_SOURCE: &str = "CPU s, source";
/// Of that our target's.
pub const CPU_TARGET: &str = "CPU s, target";
/// One block of so many is changed.
pub const PART: u64 = 100;
const MIB: f64 = (1 << 20) as f64;

/// What can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The first copy of a whole volume, over TLS.
    FirstCopy,
    /// What is sent when a little was changed, beside rsync, whole copies and btrfs.
    Increment,
    /// As many changes in a small volume and in large ones.
    AnySize,
    /// The hash of a new snapshot, beside b3sum.
    Hashing,
    /// Eight jobs, each every second.
    Schedule,
}

impl Step {
    /// The name of its rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstCopy => first_copy::NAME,
            Self::Increment => increment::NAME,
            Self::AnySize => any_size::NAME,
            Self::Hashing => hashing::NAME,
            Self::Schedule => schedule::NAME,
        }
    }

    fn run(self, bench: &mut Bench<'_>) -> Result<(), Trouble> {
        match self {
            Self::FirstCopy => first_copy::run(bench),
            Self::Increment => increment::run(bench),
            Self::AnySize => any_size::run(bench),
            Self::Hashing => hashing::run(bench),
            Self::Schedule => schedule::run(bench),
        }
    }
}

/// What will be run of replication.
#[derive(Debug, Clone)]
pub struct SyncPlan {
    /// Which.
    pub steps: Vec<Step>,
    /// Programs and directories.
    pub store: StorePlan,
    /// Size of the volume, all of it written.
    pub bytes: u64,
    /// Size of the large volumes, of which little is written.
    pub large_bytes: u64,
    /// Rounds.
    pub runs: u32,
    /// How long the schedule is watched.
    pub watch: Duration,
    /// Size of each volume of the schedule.
    pub scheduled_bytes: u64,
}

impl SyncPlan {
    /// How many blocks are changed in each round.
    pub fn changes(&self) -> u64 {
        self.bytes / content::BLOCK / PART
    }
}

/// Where a step works.
pub struct Bench<'a> {
    /// What was asked for.
    pub plan: &'a SyncPlan,
    /// Its directories; they go with the step.
    pub room: &'a Room<'a>,
    /// Takes what it finds.
    pub recorder: &'a mut Recorder,
}

impl Bench<'_> {
    /// Takes a value.
    pub fn put(&mut self, step: &'static str, subject: &str, measure: &str, round: u32, value: f64) {
        self.recorder.put(key(step, subject, measure), round, value);
    }

    /// Takes a cost; with what was changed, where that is compared.
    pub fn put_cost(
        &mut self,
        step: &'static str,
        subject: &str,
        round: u32,
        cost: &Cost,
        changed_bytes: Option<u64>,
    ) {
        self.put(step, subject, WALL, round, cost.wall.as_secs_f64());
        self.put(step, subject, WIRE, round, cost.wire_bytes as f64 / MIB);
        if let Some(changed) = changed_bytes {
            self.put(step, subject, WIRE_X, round, cost.wire_bytes as f64 / changed as f64);
        }
        self.put(step, subject, CPU, round, cost.cpu.as_secs_f64());
    }

    /// A ratio round by round.
    pub fn put_ratios(
        &mut self,
        step: &'static str,
        as_row: (&str, &str),
        value: (&str, &str),
        base: (&str, &str),
    ) {
        self.recorder.put_ratios(&key(step, as_row.0, as_row.1), value, base);
    }

    /// Sees to it that nothing is dirty in any page cache.
    ///
    /// # Errors
    /// Somebody asked to stop.
    pub fn settle(&self) -> Result<(), Trouble> {
        rustix::fs::sync();
        self.room.interrupt.check()
    }
}

/// The unit stands in the measure's name, or it is a ratio.
fn key(scenario: &'static str, subject: &str, measure: &str) -> Key {
    let units = [
        ("times", "x"),
        ("runs", "runs"),
        ("MiB/s", "MiB/s"),
        ("MiB", "MiB"),
        ("CPU", "s"),
        (" s", "s"),
        ("%", "%"),
    ];
    let unit = units.iter().find(|(part, _)| measure.contains(part)).map_or("x", |(_, unit)| unit);
    Key { scenario, subject: subject.to_owned(), measure: measure.to_owned(), unit }
}

/// Everything the steps found.
#[derive(Debug, Clone, Serialize)]
pub struct SyncResults {
    /// Which were run.
    pub steps: Vec<Step>,
    /// Size of the volume, MiB.
    pub size_mib: u64,
    /// Size of the large volumes, GiB.
    pub large_gib: u64,
    /// Rounds.
    pub runs: u32,
    /// Seconds the schedule was watched.
    pub watch_s: u64,
    /// All figures.
    pub rows: Vec<Row>,
    /// What could not be measured.
    pub failures: Vec<FailedScenario>,
    /// What a reader has to know.
    pub notices: Vec<String>,
}

/// Runs the steps. Failed ones are part of the results, as is an early stop.
///
/// # Errors
/// Nothing can be measured at all: there is no place for images.
pub fn run(plan: &SyncPlan, interrupt: &Interrupt) -> Result<SyncResults, Trouble> {
    let mut recorder = Recorder::default();
    for &step in &plan.steps {
        if interrupt.requested() {
            break;
        }
        let room = Room::new(&plan.store, interrupt)?;
        let outcome = step.run(&mut Bench { plan, room: &room, recorder: &mut recorder });
        if let Err(trouble) = outcome
            && !interrupt.requested()
        {
            recorder.fail(step.name(), OURS, &trouble);
        }
    }
    Ok(SyncResults {
        steps: plan.steps.clone(),
        size_mib: plan.bytes >> 20,
        large_gib: plan.large_bytes >> 30,
        runs: plan.runs,
        watch_s: plan.watch.as_secs(),
        rows: recorder.rows(),
        failures: recorder.failures,
        notices: recorder.notices,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_is_that_of_the_measure() {
        let unit = |measure| key("s", "o", measure).unit;
        assert_eq!([unit(WALL), unit(CPU), unit(CPU_SOURCE)], ["s"; 3]);
        assert_eq!([unit(WIRE), unit(first_copy::SPEED)], ["MiB", "MiB/s"]);
        assert_eq!([unit(WIRE_X), unit(increment::TIMES), unit(first_copy::RATIO)], ["x"; 3]);
        assert_eq!([unit(schedule::LONGEST), unit(schedule::RUNS)], ["s", "runs"]);
    }
}
