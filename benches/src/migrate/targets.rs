//! What we want of moves, and whether a run shows that we reach it.

use super::{
    BY_STOCK, BY_TUNED, Case, FINISHED, SILENCE_X, WALL_X, WITHIN, from_nothing, pressure, stop_first, switch,
};
use crate::store::record::Row;
use crate::store::targets::{Target, at_least, at_most, outcome};
use crate::sync::{OURS, WIRE_X};
use crate::targets::Outcome;

/// The class of these targets.
const CLASS: &str = "migrate";

/// Holds the targets of the cases that were asked for against the rows.
pub fn evaluate(cases: &[Case], rows: &[Row]) -> Vec<Outcome> {
    let asked = |target: &Target| cases.iter().any(|case| case.name() == target.scenario);
    targets().iter().filter(|target| asked(target)).map(|target| outcome(CLASS, target, rows)).collect()
}

fn targets() -> Vec<Target> {
    vec![
        at_most(switch::NAME, BY_TUNED, SILENCE_X, 1.0, "x"),
        at_most(switch::NAME, BY_STOCK, SILENCE_X, 1.0, "x"),
        at_most(switch::NAME, BY_TUNED, WALL_X, 0.3, "x"),
        at_most(switch::NAME, OURS, WIRE_X, 1.05, "x"),
        at_least(switch::NAME, OURS, WITHIN, 0.9),
        at_most(from_nothing::NAME, BY_TUNED, WALL_X, 1.1, "x"),
        at_most(from_nothing::NAME, OURS, WIRE_X, 1.05, "x"),
        at_most(stop_first::NAME, BY_TUNED, SILENCE_X, 1.0, "x"),
        at_least(pressure::NAME, pressure::MIRROR, FINISHED, 1.0),
    ]
}
