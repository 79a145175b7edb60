//! What twenty snapshots take of the pool, each with a hundredth of the blocks rewritten at random before it.
//!
//! A block written after a cut takes a cluster, sixteen times itself, until its layer is closed and was packed. The
//! changed bytes are those that were written: every snapshot has its own version of them, so that this is what the
//! snapshots have to keep. The metadata are not in it: they are not in the pool.

use std::time::Instant;

use super::daemon::Daemon;
use super::disks::{Disk, Volume};
use super::record::{Key, Recorder};
use super::room::Room;
use super::targets::{Target, at_most};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "space";
/// What the snapshots use by what was changed, once nothing is left to pack.
pub const PACKED: &str = "used / changed, packed";
const AT_ONCE: &str = "used / changed, after the last snapshot";
const TOOK: &str = "until packed, after the last snapshot";
const SUBJECT: &str = "20 snapshots, 1 % rewritten before each";
const VOLUME: &str = "space";
/// Snapshots above the first one, which has the whole disk.
const SNAPSHOTS: u32 = 20;
/// The part of the blocks that is written before each: one of so many.
const CHANGED_PART: u64 = 100;
const BLOCK: u64 = 4096;

/// What is wanted.
pub(crate) fn targets() -> Vec<Target> {
    vec![at_most(NAME, SUBJECT, PACKED, 1.5, "x")]
}

/// A new volume a round.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(room: &Room<'_>, recorder: &mut Recorder, daemon: &Daemon) -> Result<(), Trouble> {
    for round in 1..=room.plan.rounds {
        let mut volume = Volume::new(daemon, VOLUME);
        let mut served = volume.whole(room)?;
        room.flush(&served.uri)?;
        daemon.settle(room)?;
        let before = daemon.store_status()?.used_bytes;
        served = volume.cut(room, served)?;
        let mut changed = 0;
        for _ in 0..SNAPSHOTS {
            changed += room.scatter(&served.uri, room.plan.image_blocks() / CHANGED_PART)?.ios * BLOCK;
            served = volume.cut(room, served)?;
        }
        let last = Instant::now();
        let share = |used: u64| used.saturating_sub(before) as f64 / changed as f64;
        put(recorder, round, AT_ONCE, share(daemon.store_status()?.used_bytes), "x");
        let waiting = last.elapsed();
        let took = waiting + daemon.wait_until_packed(room)?;
        put(recorder, round, PACKED, share(daemon.store_status()?.used_bytes), "x");
        put(recorder, round, TOOK, took.as_secs_f64(), "s");
        volume.discard(room)?;
    }
    Ok(())
}

fn put(recorder: &mut Recorder, round: u32, measure: &str, value: f64, unit: &'static str) {
    let (subject, measure) = (SUBJECT.to_owned(), measure.to_owned());
    recorder.put(Key { scenario: NAME, subject, measure, unit }, round, value);
}
