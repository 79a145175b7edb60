//! A guest with a large disk, whose replica at the destination is seconds old; beside QEMU, which copies the disk each time.
//!
//! Rounds: ours, tuned, stock, ours, … each with a guest that was just booted. Our guest goes there in one round and back in the next.

use super::ours::{Ours, Setup};
use super::plain::{How, Peers};
use super::{Bench, STOCK, TUNED, WITHIN};
use crate::sync::OURS;
use crate::sync::wire::Wire;
use crate::trouble::Trouble;
use fixtures::cutover::Between;
use std::time::Duration;

/// Name of the case.
pub const NAME: &str = "switch";
/// What the guest does: 64 KiB of disk and 1 MiB of memory, twenty times a second.
pub(super) const LOAD: &str = "load.kib=64 load.mem_kib=1024 load.ms=50";
/// How long a move may take.
pub(super) const TIME_MAX: Duration = Duration::from_secs(600);

/// Measures all rounds.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let wire = Wire::new(bench.room, bench.recorder)?;
    let (bytes, enter) = (bench.plan.bytes, wire.inside(&[]));
    let setup = Setup { bytes, load: LOAD, between: Between::Nothing, enter: enter.clone(), seed: 1 };
    let mut ours = Ours::start(bench, &setup)?;
    // The first copy is not what is measured here.
    ours.follow()?;
    let mut peers = Peers::start(bench, bytes, LOAD, enter)?;
    let mut near = 0;
    for round in 1..=bench.plan.moves {
        near += u32::from(move_ours(bench, &mut ours, &wire, round)?);
        for (subject, tuned) in [(TUNED, true), (STOCK, false)] {
            move_peer(bench, &mut peers, &wire, (NAME, subject, round), &How::live(tuned))?;
        }
    }
    // Moves of ours that failed have ended the case.
    bench.put(NAME, OURS, WITHIN, 1, f64::from(near) / f64::from(bench.plan.moves));
    bench.put_median_ratios(NAME);
    ours.end()
}

/// Whether the forecast was near enough.
fn move_ours(bench: &mut Bench<'_>, ours: &mut Ours, wire: &Wire, round: u32) -> Result<bool, Trouble> {
    ours.boot()?;
    bench.calm()?;
    ours.follow()?;
    bench.work()?;
    let before = wire.bytes()?;
    let moved = ours.migrate(bench, &["--live"], TIME_MAX)?.ok_or_else(too_late)?;
    bench.put_move(NAME, OURS, round, &moved, Some(wire.bytes()? - before));
    ours.halt()?;
    Ok(moved.told.is_some_and(|told| told.forecast_is_near(moved.silence_ms)))
}

/// One move of a peer: a guest that was just booted, and is ended afterwards. That it fails is noted, and no end.
pub(super) fn move_peer(
    bench: &mut Bench<'_>,
    peers: &mut Peers,
    wire: &Wire,
    (case, subject, round): (&'static str, &str, u32),
    how: &How,
) -> Result<(), Trouble> {
    let mut moved = || {
        peers.boot()?;
        bench.calm()?;
        bench.work()?;
        let before = wire.bytes()?;
        let moved = peers.migrate(how)?.ok_or_else(too_late)?;
        bench.put_move(case, subject, round, &moved, Some(wire.bytes()? - before));
        Ok(())
    };
    let moved = moved();
    let halted = peers.halt();
    bench.go_on(case, subject, moved.and(halted))
}

/// A move that nothing holds back, and that does not end.
pub(super) fn too_late() -> Trouble {
    Trouble::new("move a guest", format!("it takes more than {TIME_MAX:?}"), "choose a smaller --disk")
}
