//! Reads of a disk with many snapshots, each with some random writes before it, and of one without.
//!
//! The twin without snapshots gets the same writes. Both are warm: read through once, and nothing dirty.

use super::disks::Disk;
use super::first_writes::CHURN_PART;
use super::record::{Key, Recorder};
use super::room::{Room, Served};
use crate::fio::{Amount, Load};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "deep-reads";
/// Snapshots of a volume and of the file systems.
pub const SNAPSHOTS: u32 = 32;
/// Overlays of a qcow2 chain.
pub const OVERLAYS: u32 = 10;

/// A disk, and its twin that is never cut.
pub struct Pair<'a> {
    /// With snapshots.
    pub deep: Box<dyn Disk + 'a>,
    /// Without.
    pub flat: Box<dyn Disk + 'a>,
    /// How many snapshots.
    pub cuts: u32,
}

/// Key of the ratio of such a pair.
pub fn ratio_name(cuts: u32) -> String {
    format!("{cuts} snapshots / none")
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
    let (deep, flat) = (prepare_deep(room, pair)?, prepare_flat(room, pair)?);
    let (with, without) = (format!("{} snapshots", pair.cuts), "no snapshots".to_owned());
    let subject = pair.deep.name();
    for round in 1..=room.plan.rounds {
        let turns = [(&without, &flat), (&with, &deep)];
        for (measure, served) in turns {
            let key = Key { scenario: NAME, subject: subject.into(), measure: measure.clone(), unit: "IOPS" };
            let amount = Amount::Seconds(room.plan.runtime_s);
            let read = room.load(&Load::random_4k("randread", 64, amount), &served.uri)?;
            recorder.put(key, round, read.iops);
        }
    }
    let key = Key { scenario: NAME, subject: subject.into(), measure: ratio_name(pair.cuts), unit: "x" };
    recorder.put_ratios(&key, (subject, &with), (subject, &without));
    Ok(())
}

fn prepare_deep(room: &Room<'_>, pair: &mut Pair<'_>) -> Result<Served, Trouble> {
    let mut served = pair.deep.whole(room)?;
    for _ in 0..pair.cuts {
        room.scatter(&served.uri, room.plan.image_blocks() / CHURN_PART)?;
        served = pair.deep.cut(room, served)?;
    }
    warm(room, served)
}

fn prepare_flat(room: &Room<'_>, pair: &mut Pair<'_>) -> Result<Served, Trouble> {
    let served = pair.flat.whole(room)?;
    for _ in 0..pair.cuts {
        room.scatter(&served.uri, room.plan.image_blocks() / CHURN_PART)?;
    }
    warm(room, served)
}

fn warm(room: &Room<'_>, served: Served) -> Result<Served, Trouble> {
    room.flush(&served.uri)?;
    let amount = Amount::Blocks { count: room.plan.image_bytes >> 20, seconds_max: 600 };
    let whole = Load { block_bytes: 1 << 20, ..Load::random_4k("read", 8, amount) };
    room.load(&whole, &served.uri)?;
    Ok(served)
}
