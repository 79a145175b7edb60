//! What we want of replication, and whether a run shows that we reach it.

use super::{OURS, Step, WIRE_X, any_size, files, first_copy, hashing, increment, schedule};
use crate::store::record::Row;
use crate::store::targets::{Target, at_least, at_most, outcome};
use crate::targets::Outcome;

/// The class of these targets.
const CLASS: &str = "sync";
/// Ratios of the sizes that are asked for; others do not count.
pub const SPREAD: &str = "64 GiB, spread / 4 GiB";
/// See [`SPREAD`].
pub const ONE_PIECE: &str = "64 GiB, one piece / 4 GiB";

/// Holds the targets of the steps that were asked for against the rows.
pub fn evaluate(steps: &[Step], rows: &[Row]) -> Vec<Outcome> {
    let asked = |target: &Target| steps.iter().any(|step| step.name() == target.scenario);
    targets().iter().filter(|target| asked(target)).map(|target| outcome(CLASS, target, rows)).collect()
}

fn targets() -> Vec<Target> {
    vec![
        at_least(first_copy::NAME, OURS, first_copy::RATIO, 0.8),
        at_most(increment::NAME, OURS, WIRE_X, 1.03, "x"),
        at_least(increment::NAME, files::RSYNC, increment::TIMES, 20.0),
        at_most(any_size::NAME, SPREAD, any_size::WALL_TIMES, 1.1, "x"),
        at_most(any_size::NAME, ONE_PIECE, any_size::WALL_TIMES, 1.1, "x"),
        at_least(hashing::NAME, hashing::SUBJECT, hashing::RATIO, 0.85),
        at_most(schedule::NAME, schedule::SUBJECT, schedule::LONGEST, 3.0, "s"),
    ]
}
