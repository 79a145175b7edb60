//! A guest with a large disk of which the destination has nothing yet.
//!
//! Both hosts are new in each round; so is the peer's image. Ours, tuned, stock, ours, …

use super::ours::{Ours, Setup};
use super::plain::{How, Peers};
use super::switch::{LOAD, TIME_MAX, move_peer, too_late};
use super::{Bench, STOCK, TUNED};
use crate::sync::OURS;
use crate::sync::wire::Wire;
use crate::trouble::Trouble;
use fixtures::cutover::Between;

/// Name of the case.
pub const NAME: &str = "from-nothing";

/// Measures all rounds.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let wire = Wire::new(bench.room, bench.recorder)?;
    let mut peers = Peers::start(bench, bench.plan.bytes, LOAD, wire.inside(&[]))?;
    for round in 1..=bench.plan.rounds {
        move_ours(bench, &wire, round)?;
        for (subject, tuned) in [(TUNED, true), (STOCK, false)] {
            move_peer(bench, &mut peers, &wire, (NAME, subject, round), &How::live(tuned))?;
        }
    }
    bench.put_median_ratios(NAME);
    Ok(())
}

fn move_ours(bench: &mut Bench<'_>, wire: &Wire, round: u32) -> Result<(), Trouble> {
    let (bytes, between, enter) = (bench.plan.bytes, Between::Nothing, wire.inside(&[]));
    let setup = Setup { bytes, load: LOAD, between, enter, seed: u64::from(round) + 1 };
    let mut ours = Ours::start(bench, &setup)?;
    ours.boot()?;
    bench.calm()?;
    bench.work()?;
    let before = wire.bytes()?;
    let moved = ours.migrate(bench, &["--live"], TIME_MAX)?.ok_or_else(too_late)?;
    let sent = wire.bytes()? - before;
    if let Some(told) = moved.told.filter(|told| told.changed_first != bytes) {
        let why = format!("{bytes} bytes were written, the first difference had {}", told.changed_first);
        return Err(Trouble::new("bring a disk", why, "report it, with the logs"));
    }
    bench.put_move(NAME, OURS, round, &moved, Some(sent));
    ours.halt()?;
    ours.end()
}
