//! A guest that stands still while its memory is sent: what vmctl does by itself where processors are translated (docs/migration.md,
//! "Without KVM"), and QEMU told to do the same.

use super::ours::{Ours, Setup};
use super::plain::{How, Peers};
use super::switch::{LOAD, TIME_MAX, move_peer, too_late};
use super::{Bench, TUNED};
use crate::sync::OURS;
use crate::sync::wire::Wire;
use crate::trouble::Trouble;
use fixtures::cutover::Between;
use fixtures::guest::Accel;

/// Name of the case.
pub const NAME: &str = "stop-first";
/// Bytes of the disk, at most: it is not what this is about.
const BYTES_MAX: u64 = 256 << 20;

/// Measures all rounds.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    if bench.accel == Accel::Kvm {
        bench.recorder.note(format!("{NAME} left out: with KVM no guest is stopped first"));
        return Ok(());
    }
    let wire = Wire::new(bench.room, bench.recorder)?;
    let (bytes, enter) = (bench.plan.bytes.min(BYTES_MAX), wire.inside(&[]));
    let setup = Setup { bytes, load: LOAD, between: Between::Nothing, enter: enter.clone(), seed: 1 };
    let mut ours = Ours::start(bench, &setup)?;
    ours.follow()?;
    let mut peers = Peers::start(bench, bytes, LOAD, enter)?;
    for round in 1..=bench.plan.rounds {
        ours.boot()?;
        bench.calm()?;
        ours.follow()?;
        bench.work()?;
        let before = wire.bytes()?;
        let moved = ours.migrate(bench, &[], TIME_MAX)?.ok_or_else(too_late)?;
        bench.put_move(NAME, OURS, round, &moved, Some(wire.bytes()? - before));
        ours.halt()?;
        let how = How { live: false, ..How::live(true) };
        move_peer(bench, &mut peers, &wire, (NAME, TUNED, round), &how)?;
    }
    bench.put_median_ratios(NAME);
    ours.end()
}
