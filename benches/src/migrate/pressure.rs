//! A guest that writes 1.2 times what the link carries.
//!
//! The link is a relay with a pace, the same for all. A move is given up when it has taken as long as the disk takes over the link, many
//! times.

use std::sync::Arc;
use std::time::Duration;

use fixtures::cutover::{Between, CopyMode, Pace};

use super::ours::{Ours, Setup};
use super::plain::{How, Peers};
use super::{Bench, FINISHED, MIB, WROTE};
use crate::trouble::Trouble;

/// Name of the case.
pub const NAME: &str = "pressure";
/// Contestants.
pub const BACKGROUND: &str = "QEMU, background mirror";
/// See [`BACKGROUND`].
pub const BLOCKING: &str = "QEMU, write-blocking mirror";
/// See [`BACKGROUND`].
pub const ROUNDS: &str = "blockd, rounds";
/// See [`BACKGROUND`].
pub const MIRROR: &str = "blockd, mirror";

/// What the guest writes: 1 MiB, ten times a second; and memory hardly at all, so that the disk is what does not converge.
const LOAD: &str = "load.kib=1024 load.mem_kib=0 load.ms=100";
const WRITES: f64 = 10.0 * MIB;
/// How much more that is than the link carries.
const PRESSURE: f64 = 1.2;
/// A move is given up after so many times what the disk alone would take.
const TIMES_MAX: f64 = 6.0;
/// And what the memory and all else may take besides.
const BESIDES: Duration = Duration::from_secs(20);
/// The option of vmctl that mirrors writes.
const STRATEGY: &str = "--strategy";

/// Measures each contestant once.
pub(super) fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let rate = WRITES / PRESSURE;
    let ideal = Duration::from_secs_f64(bench.plan.slow_bytes as f64 / rate);
    let time_max = ideal.mul_f64(TIMES_MAX) + BESIDES;
    bench.recorder.note(format!(
        "{NAME}: a link of {:.2} MiB/s, over which the disk takes {:.1} s; given up after {:.0} s",
        rate / MIB,
        ideal.as_secs_f64(),
        time_max.as_secs_f64()
    ));
    for (subject, copy_mode) in [(BACKGROUND, CopyMode::Background), (BLOCKING, CopyMode::WriteBlocking)] {
        let moved = move_peer(bench, subject, copy_mode, Pace::new(rate as u64), time_max);
        bench.go_on(NAME, subject, moved)?;
    }
    for (subject, words) in [(ROUNDS, &["--live"][..]), (MIRROR, &["--live", STRATEGY, "mirror"])] {
        let moved = move_ours(bench, subject, words, Pace::new(rate as u64), time_max);
        bench.go_on(NAME, subject, moved)?;
    }
    Ok(())
}

fn move_peer(
    bench: &mut Bench<'_>,
    subject: &str,
    copy_mode: CopyMode,
    pace: Arc<Pace>,
    time_max: Duration,
) -> Result<(), Trouble> {
    let mut peers = Peers::start(bench, bench.plan.slow_bytes, LOAD, Vec::new())?;
    peers.boot()?;
    bench.calm()?;
    let before = peers.written()?;
    bench.work()?;
    let wrote = (peers.written()? - before) as f64 / super::WORK.as_secs_f64();
    bench.put(NAME, subject, WROTE, 1, wrote / MIB);
    // With its own limit of 300 ms: what is left of the memory never goes over this link in the 30 ms of the tuned one.
    let how = How { copy_mode, pace: Some(pace), time_max, ..How::live(false) };
    let moved = peers.migrate(&how)?;
    bench.put(NAME, subject, FINISHED, 1, f64::from(u8::from(moved.is_some())));
    if let Some(moved) = moved {
        bench.put_move(NAME, subject, 1, &moved, None);
    }
    peers.halt()
}

fn move_ours(
    bench: &mut Bench<'_>,
    subject: &str,
    words: &[&str],
    pace: Arc<Pace>,
    time_max: Duration,
) -> Result<(), Trouble> {
    let (bytes, enter) = (bench.plan.slow_bytes, Vec::new());
    let setup = Setup { bytes, load: LOAD, between: Between::Slow(pace), enter, seed: 1 };
    let mut ours = Ours::start(bench, &setup)?;
    if words.contains(&STRATEGY) && !ours.knows(STRATEGY)? {
        bench.recorder.note(format!("{NAME}: {subject} left out: vmctl migrate has no {STRATEGY} yet"));
        return ours.end();
    }
    ours.boot()?;
    bench.calm()?;
    let moved = ours.migrate(bench, words, time_max)?;
    bench.put(NAME, subject, FINISHED, 1, f64::from(u8::from(moved.is_some())));
    if let Some(moved) = moved {
        bench.put_move(NAME, subject, 1, &moved, None);
    }
    ours.halt()?;
    ours.end()
}
