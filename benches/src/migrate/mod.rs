//! A running guest moves to another host, by vmctl and by QEMU alone: `compare --migrate`.
//!
//! ```text
//! plan ─► cases ─► wire (a network of our own), the same kernel, memory, disk and load for all
//!           ├─ switch        one disk, again and again: vmctl with a replica, QEMU's mirror and migration
//!           ├─ from-nothing  the same, where the destination has nothing yet
//!           ├─ stop-first    memory is sent while the guest stands still
//!           └─ pressure      the guest writes faster than the link carries
//!                └─► recorder ─► rows ─► tables, targets
//! ```
//!
//! Only one guest runs at a time: one is booted for each move and ended after it. Both hosts are on this machine and share its
//! processors, as both of QEMU's ends do. What a guest says on its serial port is stamped here as it arrives, by the same listener for
//! all: from its last word at the source to its first at the destination it was silent.

mod ours;
mod plain;

pub mod from_nothing;
pub mod pressure;
pub mod stop_first;
pub mod switch;

pub mod report;
pub mod targets;

use std::time::Duration;

use clap::ValueEnum;
use fixtures::guest::{Accel, Kernel, default_cache, probe_accel};
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::plan::StorePlan;
use crate::store::record::{FailedScenario, Key, Recorder, Row};
use crate::store::room::Room;
use crate::sync::{OURS, WALL, WIRE, WIRE_X};
use crate::targets::Outcome;
use crate::trouble::{OrTrouble, Trouble};

/// The guest's silence.
pub const SILENCE: &str = "silence ms";
/// The longest pause between two of its words before it moved.
pub const USUAL: &str = "longest pause before, ms";
/// Medians of two contestants.
pub const SILENCE_X: &str = "silence, medians";
/// The same of the whole time.
pub const WALL_X: &str = "wall, medians";
/// What blockd has sent of the disk, by what it says had changed.
pub const DISK_X: &str = "disk sent / changed";
/// What was foreseen when the guest was stopped.
pub const FORECAST: &str = "forecast ms";
/// How far that was from what the guest has shown.
pub const OFF: &str = "forecast off by ms";
/// Share of the moves in which it was near enough.
pub const WITHIN: &str = "forecasts near enough";
/// The silence as the agent has it.
pub const TOLD: &str = "silence, says vmctl, ms";
/// Share of the moves that came to their end.
pub const FINISHED: &str = "finished";
/// What the guest wrote meanwhile.
pub const WROTE: &str = "guest wrote, MiB/s";

/// QEMU with the bandwidth and the limit that vmctl sets.
pub const TUNED: &str = "QEMU, tuned";
/// QEMU as it comes.
pub const STOCK: &str = "QEMU, stock";
/// Rows of ratios.
pub const BY_TUNED: &str = "blockd / QEMU, tuned";
/// See [`BY_TUNED`].
pub const BY_STOCK: &str = "blockd / QEMU, stock";

/// A forecast is near enough if it is off by no more than this part of the silence, or by so many milliseconds.
const NEAR_PART: f64 = 0.25;
const NEAR_MS: f64 = 30.0;
/// A guest that has just booted is left alone for so long, and then works for so long before it moves.
const CALM: Duration = Duration::from_secs(2);
const WORK: Duration = Duration::from_secs(3);
const MIB: f64 = (1 << 20) as f64;

/// What can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// A guest whose replica is seconds old.
    Switch,
    /// A guest of which the destination has nothing yet.
    FromNothing,
    /// A guest that stands still while its memory is sent.
    StopFirst,
    /// A guest that writes faster than the link carries.
    Pressure,
}

impl Case {
    /// The name of its rows.
    pub fn name(self) -> &'static str {
        match self {
            Self::Switch => switch::NAME,
            Self::FromNothing => from_nothing::NAME,
            Self::StopFirst => stop_first::NAME,
            Self::Pressure => pressure::NAME,
        }
    }

    fn run(self, bench: &mut Bench<'_>) -> Result<(), Trouble> {
        match self {
            Self::Switch => switch::run(bench),
            Self::FromNothing => from_nothing::run(bench),
            Self::StopFirst => stop_first::run(bench),
            Self::Pressure => pressure::run(bench),
        }
    }
}

/// What will be run of moves.
#[derive(Debug, Clone)]
pub struct MigratePlan {
    /// Which.
    pub cases: Vec<Case>,
    /// Programs and directories.
    pub store: StorePlan,
    /// Size of the guest's disk, all of it written.
    pub bytes: u64,
    /// Moves of each contestant in `switch`.
    pub moves: u32,
    /// The same in the others.
    pub rounds: u32,
    /// Size of the disk on a slow link.
    pub slow_bytes: u64,
}

/// Where a case works.
struct Bench<'a> {
    plan: &'a MigratePlan,
    /// Its directories; they go with the case.
    room: &'a Room<'a>,
    kernel: &'a Kernel,
    accel: Accel,
    recorder: &'a mut Recorder,
}

/// One move, as it was seen from outside and as vmctl tells of it.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moved {
    silence_ms: f64,
    /// The guest's longest pause before.
    usual_ms: f64,
    wall_s: f64,
    /// Bytes of memory that were sent.
    memory: u64,
    /// What vmctl says; nobody else does.
    told: Option<Told>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Told {
    silence_ms: f64,
    forecast_ms: f64,
    /// Bytes of the disk that had changed at the first difference, and at all of them.
    changed_first: u64,
    changed: u64,
    sent: u64,
}

impl Told {
    fn forecast_is_near(&self, silence_ms: f64) -> bool {
        (self.forecast_ms - silence_ms).abs() <= NEAR_MS.max(NEAR_PART * silence_ms)
    }
}

impl Bench<'_> {
    fn put(&mut self, case: &'static str, subject: &str, measure: &str, round: u32, value: f64) {
        self.recorder.put(key(case, subject, measure), round, value);
    }

    /// Takes a move; `wire`: bytes, where they were counted.
    fn put_move(&mut self, case: &'static str, subject: &str, round: u32, moved: &Moved, wire: Option<u64>) {
        self.put(case, subject, SILENCE, round, moved.silence_ms);
        self.put(case, subject, USUAL, round, moved.usual_ms);
        self.put(case, subject, WALL, round, moved.wall_s);
        if let Some(wire) = wire {
            self.put(case, subject, WIRE, round, wire as f64 / MIB);
        }
        let Some(told) = &moved.told else { return };
        if let Some(wire) = wire {
            let needed = told.changed + moved.memory;
            self.put(case, subject, WIRE_X, round, wire as f64 / needed as f64);
        }
        self.put(case, subject, DISK_X, round, told.sent as f64 / told.changed as f64);
        self.put(case, subject, FORECAST, round, told.forecast_ms);
        self.put(case, subject, OFF, round, (told.forecast_ms - moved.silence_ms).abs());
        self.put(case, subject, TOLD, round, told.silence_ms);
    }

    /// Notes a failure, so that the others are measured all the same; only an early stop ends the case.
    fn go_on(&mut self, case: &'static str, subject: &str, done: Result<(), Trouble>) -> Result<(), Trouble> {
        self.room.interrupt.check()?;
        if let Err(trouble) = done {
            self.recorder.fail(case, subject, &trouble);
        }
        Ok(())
    }

    /// How our median stands to each peer's.
    fn put_median_ratios(&mut self, case: &'static str) {
        let rows = self.recorder.rows();
        for (row, peer) in [(BY_TUNED, TUNED), (BY_STOCK, STOCK)] {
            for (name, measure) in [(SILENCE_X, SILENCE), (WALL_X, WALL)] {
                if let Some(ratio) = median_ratio(&rows, case, measure, peer) {
                    self.put(case, row, name, 1, ratio);
                }
            }
        }
    }

    /// Sees to it that nothing is dirty in any page cache.
    fn settle(&self) -> Result<(), Trouble> {
        rustix::fs::sync();
        self.room.interrupt.check()
    }

    /// Lets a guest that has just booted come to rest.
    fn calm(&self) -> Result<(), Trouble> {
        self.settle()?;
        self.room.pause(CALM)
    }

    /// Lets a guest work for a while.
    fn work(&self) -> Result<(), Trouble> {
        self.room.pause(WORK)
    }
}

fn median_ratio(rows: &[Row], case: &str, measure: &str, peer: &str) -> Option<f64> {
    let median = |subject: &str| {
        let is_it = |row: &&Row| row.scenario == case && row.subject == subject && row.measure == measure;
        rows.iter().find(is_it).map(|row| row.spread.median)
    };
    crate::results::ratio(median(OURS)?, median(peer)?)
}

/// The unit stands in the measure's name, or it is a ratio.
fn key(scenario: &'static str, subject: &str, measure: &str) -> Key {
    let units = [("MiB/s", "MiB/s"), ("MiB", "MiB"), ("ms", "ms"), (" s", "s")];
    let unit = units.iter().find(|(part, _)| measure.ends_with(part) || measure.starts_with(part));
    let unit = unit.map_or("x", |(_, unit)| unit);
    Key { scenario, subject: subject.to_owned(), measure: measure.to_owned(), unit }
}

/// Turns an error of the fixtures into ours.
fn failed(what: impl Into<String>, error: &anyhow::Error) -> Trouble {
    Trouble::new(what, format!("{error:#}"), "look at the logs of agent and blockd, or at QEMU's")
}

/// Everything the cases found.
#[derive(Debug, Clone, Serialize)]
pub struct MigrateResults {
    /// Which were run.
    pub cases: Vec<Case>,
    /// Size of the guest's disk, MiB.
    pub disk_mib: u64,
    /// Size of the disk on a slow link, MiB.
    pub slow_mib: u64,
    /// Moves of each contestant in `switch`.
    pub moves: u32,
    /// The same in the others.
    pub rounds: u32,
    /// What ran the guests' processors.
    pub accel: &'static str,
    /// All figures.
    pub rows: Vec<Row>,
    /// What could not be measured.
    pub failures: Vec<FailedScenario>,
    /// What a reader has to know.
    pub notices: Vec<String>,
}

impl MigrateResults {
    /// What we want, and whether it was reached.
    pub fn targets(&self) -> Vec<Outcome> {
        targets::evaluate(&self.cases, &self.rows)
    }
}

/// Runs the cases. Failed ones are part of the results, as is an early stop.
///
/// # Errors
/// Nothing can be measured at all: there is no kernel for guests, or no place for images.
pub fn run(plan: &MigratePlan, interrupt: &Interrupt) -> Result<MigrateResults, Trouble> {
    let (mut recorder, cache) = (Recorder::default(), default_cache());
    let next = "cargo xtask setup --for demo";
    let kernel = Kernel::fetch(&cache).or_trouble(|| "find a kernel for guests".into(), next)?;
    let accel = probe_accel(&kernel, &cache).or_trouble(|| "find out what runs guests".into(), next)?;
    for &case in &plan.cases {
        if interrupt.requested() {
            break;
        }
        let room = Room::new(&plan.store, interrupt)?;
        let bench = &mut Bench { plan, room: &room, kernel: &kernel, accel, recorder: &mut recorder };
        if let Err(trouble) = case.run(bench)
            && !interrupt.requested()
        {
            recorder.fail(case.name(), OURS, &trouble);
        }
    }
    Ok(MigrateResults {
        cases: plan.cases.clone(),
        disk_mib: plan.bytes >> 20,
        slow_mib: plan.slow_bytes >> 20,
        moves: plan.moves,
        rounds: plan.rounds,
        accel: accel.name(),
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
        assert_eq!([unit(SILENCE), unit(FORECAST), unit(OFF), unit(TOLD)], ["ms"; 4]);
        assert_eq!([unit(WALL), unit(WIRE), unit(WROTE)], ["s", "MiB", "MiB/s"]);
        assert_eq!([unit(SILENCE_X), unit(WALL_X), unit(WIRE_X), unit(DISK_X), unit(WITHIN)], ["x"; 5]);
    }

    #[test]
    fn a_forecast_may_be_off_by_a_quarter_or_by_thirty_milliseconds() {
        let told = |forecast_ms| Told { silence_ms: 0.0, forecast_ms, changed_first: 0, changed: 0, sent: 0 };
        assert!(told(60.0).forecast_is_near(90.0) && told(150.0).forecast_is_near(200.0));
        assert!(!told(59.0).forecast_is_near(90.0) && !told(149.0).forecast_is_near(200.0));
    }

    #[test]
    fn ratios_are_of_medians() {
        let mut recorder = Recorder::default();
        for (round, ours, peer) in [(1, 10.0, 100.0), (2, 20.0, 40.0), (3, 90.0, 30.0)] {
            recorder.put(key("switch", OURS, SILENCE), round, ours);
            recorder.put(key("switch", TUNED, SILENCE), round, peer);
        }
        let rows = recorder.rows();
        assert_eq!(median_ratio(&rows, "switch", SILENCE, TUNED), Some(0.5));
        assert_eq!(median_ratio(&rows, "switch", SILENCE, STOCK), None);
    }
}
