//! Reads of a disk with more and more snapshots, each with some random writes before it, and of one without.
//!
//! ```text
//!  both: whole ─► read through ─► measured ─► writes, cut, writes, cut, … ─► at rest ─► read through ─► measured ─► …
//!                                             (the twin: writes, writes, …)
//! ```
//!
//! The twin without snapshots gets as many writes. At no depth both are the same: what their ratio is off by is the noise.

use super::disks::Disk;
use super::record::{Key, Recorder};
use super::room::{Room, Served};
use super::targets::{Target, at_least};
use crate::fio::{Amount, Load};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "deep-reads";
/// The most snapshots of a volume.
pub const SNAPSHOTS: u32 = 128;
/// All that it is measured with.
pub const DEPTHS: [u32; 5] = [0, 1, 8, 32, SNAPSHOTS];
/// The same of the file systems: their snapshots of a disk in small pieces take long.
pub const FILE_DEPTHS: [u32; 2] = [0, 32];
/// The same of a qcow2 chain: each overlay takes some memory of its server, and all are asked.
pub const CHAIN_DEPTHS: [u32; 2] = [0, 10];
/// Reads with a snapshot are as fast as without, but for so much.
const FLAT: f64 = 0.95;
/// Turns of both within a round: a few percent are less than one turn differs from the next.
const TURNS: u32 = 3;
/// The part of a disk's blocks that is written before each cut: one of so many.
const CHANGED_PART: u64 = 100;

/// A disk, and its twin that is never cut.
pub struct Pair<'a> {
    /// With snapshots.
    pub deep: Box<dyn Disk + 'a>,
    /// Without.
    pub flat: Box<dyn Disk + 'a>,
    /// With how many snapshots it is measured, in the order of growth.
    pub depths: &'static [u32],
}

/// Key of the ratio of such a pair.
pub fn ratio_name(cuts: u32) -> String {
    format!("{cuts} snapshots / none")
}

/// What is wanted at each depth but the deepest, which has its own among the store's.
pub(crate) fn targets() -> Vec<Target> {
    let depths = DEPTHS.into_iter().filter(|depth| (1..SNAPSHOTS).contains(depth));
    depths.map(|depth| at_least(NAME, "volume", &ratio_name(depth), FLAT)).collect()
}

/// One pair after the other; within it flat and deep take turns.
///
/// # Errors
/// Somebody asked to stop. What fails otherwise is recorded.
pub fn run(room: &Room<'_>, recorder: &mut Recorder, pairs: &mut [Pair<'_>]) -> Result<(), Trouble> {
    for pair in pairs {
        if let Err(trouble) = measure_pair(room, recorder, pair) {
            room.interrupt.check()?;
            recorder.fail(NAME, pair.deep.name(), &trouble);
        }
        pair.deep.discard(room)?;
        pair.flat.discard(room)?;
    }
    Ok(())
}

fn measure_pair(room: &Room<'_>, recorder: &mut Recorder, pair: &mut Pair<'_>) -> Result<(), Trouble> {
    let (mut deep, flat) = (pair.deep.whole(room)?, pair.flat.whole(room)?);
    let mut cuts = 0;
    for &depth in pair.depths {
        while cuts < depth {
            cuts += 1;
            change(room, &deep)?;
            change(room, &flat)?;
            deep = pair.deep.cut(room, deep)?;
        }
        for served in [&deep, &flat] {
            room.flush(&served.uri)?;
        }
        pair.deep.rest(room)?;
        for served in [&deep, &flat] {
            read_through(room, served)?;
        }
        measure(room, recorder, pair.deep.name(), depth, (&deep, &flat))?;
    }
    Ok(())
}

fn measure(
    room: &Room<'_>,
    recorder: &mut Recorder,
    subject: &'static str,
    depth: u32,
    (deep, flat): (&Served, &Served),
) -> Result<(), Trouble> {
    let (with, without) = (format!("{depth} snapshots"), format!("no snapshots, twin of {depth}"));
    let key =
        |measure: &str, unit| Key { scenario: NAME, subject: subject.into(), measure: measure.into(), unit };
    for round in 1..=room.plan.rounds * TURNS {
        let mut turns = [(&without, flat), (&with, deep)];
        // Neither is always the first.
        turns.rotate_left((round % 2) as usize);
        for (measure, served) in turns {
            let amount = Amount::Seconds(room.plan.runtime_s);
            let read = room.load(&Load::random_4k("randread", 64, amount), &served.uri)?;
            recorder.put(key(measure, "IOPS"), round, read.iops);
        }
    }
    recorder.put_ratios(&key(&ratio_name(depth), "x"), (subject, &with), (subject, &without));
    Ok(())
}

fn change(room: &Room<'_>, served: &Served) -> Result<(), Trouble> {
    room.scatter(&served.uri, room.plan.image_blocks() / CHANGED_PART).map(drop)
}

/// Everything is in the page cache afterwards.
fn read_through(room: &Room<'_>, served: &Served) -> Result<(), Trouble> {
    let amount = Amount::Blocks { count: room.plan.image_bytes >> 20, seconds_max: 600 };
    let whole = Load { block_bytes: 1 << 20, ..Load::random_4k("read", 8, amount) };
    room.load(&whole, &served.uri).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_begin_with_none_and_grow() {
        for depths in [DEPTHS.as_slice(), &FILE_DEPTHS, &CHAIN_DEPTHS] {
            assert_eq!(depths.first(), Some(&0));
            assert!(depths.is_sorted());
        }
        assert_eq!(DEPTHS.last(), Some(&SNAPSHOTS));
        assert_eq!(targets().len() + 2, DEPTHS.len());
    }
}
