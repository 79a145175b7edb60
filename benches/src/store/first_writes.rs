//! The first 4 KiB writes after a snapshot, and the same writes before it.
//!
//! Both phases draw as many blocks of the same disk at random, each at most once, at depth 64, and begin alike:
//! flushed, nothing dirty in any page cache, one second of reads to warm up the connection.

use std::time::Duration;

use super::disks::Disk;
use super::record::{Key, Recorder};
use super::room::{Room, Served};
use crate::fio::{Amount, Load};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "first-writes";
/// Rate before the snapshot.
pub const BEFORE: &str = "before";
/// Rate after it.
pub const AFTER: &str = "after";
/// Both with the FLUSH that follows.
pub const WITH_FLUSH: &str = ", with its flush";
/// Key of their ratio.
pub const RATIO: &str = "after / before";
/// The part of a disk's blocks that a phase writes: one of so many. As many as there are clusters of 64 KiB: most
/// writes are the first to theirs, as they are on a disk that is much larger than what is written to it at once.
const PART: u64 = 16;
/// A phase of a slow disk ends there.
const PHASE_SECONDS_MAX: u32 = 10;
/// Overlays of the chain that already lie there when the measured one is added.
const CHAIN_BEFORE: u32 = 9;
/// The part of a disk's blocks that is written between two cuts of a chain: one of so many.
const CHURN_PART: u64 = 400;
/// The disk that is a chain.
pub const CHAIN: &str = "qcow2-chain-of-10";

/// One disk after the other within a round.
///
/// # Errors
/// Somebody asked to stop. What fails otherwise is recorded.
pub fn run(
    room: &Room<'_>,
    recorder: &mut Recorder,
    disks: &mut [Box<dyn Disk + '_>],
) -> Result<(), Trouble> {
    for round in 1..=room.plan.rounds {
        for disk in disks.iter_mut() {
            if let Err(trouble) = round_of(room, recorder, disk.as_mut(), round) {
                room.interrupt.check()?;
                recorder.fail(NAME, disk.name(), &trouble);
            }
            disk.discard(room)?;
        }
    }
    put_ratios(recorder, disks);
    Ok(())
}

fn put_ratios(recorder: &mut Recorder, disks: &[Box<dyn Disk + '_>]) {
    let key = |subject: &str, measure: &str| {
        let (subject, measure) = (subject.to_owned(), measure.to_owned());
        Key { scenario: NAME, subject, measure, unit: "x" }
    };
    let flushed = |measure: &str| format!("{measure}{WITH_FLUSH}");
    for name in disks.iter().map(|disk| disk.name()) {
        recorder.put_ratios(&key(name, RATIO), (name, AFTER), (name, BEFORE));
        let (after, before) = (flushed(AFTER), flushed(BEFORE));
        recorder.put_ratios(&key(name, &flushed(RATIO)), (name, &after), (name, &before));
        if !name.starts_with("volume") {
            let pair = key(&format!("volume / {name}"), AFTER);
            recorder.put_ratios(&pair, ("volume", AFTER), (name, AFTER));
        }
    }
}

fn round_of(
    room: &Room<'_>,
    recorder: &mut Recorder,
    disk: &mut dyn Disk,
    round: u32,
) -> Result<(), Trouble> {
    let mut served = disk.whole(room)?;
    let before = measure(room, &served)?;
    if disk.name() == CHAIN {
        served = deepen(room, disk, served, CHAIN_BEFORE)?;
    }
    served = disk.cut(room, served)?;
    let after = measure(room, &served)?;
    let subject = disk.name();
    for (measure, (alone, with_flush)) in [(BEFORE, before), (AFTER, after)] {
        let flushed = format!("{measure}{WITH_FLUSH}");
        for (measure, value) in [(measure.to_owned(), alone), (flushed, with_flush)] {
            let key = Key { scenario: NAME, subject: subject.into(), measure, unit: "IOPS" };
            recorder.put(key, round, value);
        }
    }
    Ok(())
}

/// Cuts that often, with some random writes after each cut.
///
/// # Errors
/// The disk fails, or somebody asked to stop.
pub fn deepen(room: &Room<'_>, disk: &mut dyn Disk, served: Served, cuts: u32) -> Result<Served, Trouble> {
    (0..cuts).try_fold(served, |served, _| {
        let served = disk.cut(room, served)?;
        room.scatter(&served.uri, room.plan.image_blocks() / CHURN_PART)?;
        Ok(served)
    })
}

/// Writes a second, alone and with the flush that follows.
fn measure(room: &Room<'_>, served: &Served) -> Result<(f64, f64), Trouble> {
    room.flush(&served.uri)?;
    room.load(&Load::random_4k("randread", 64, Amount::Seconds(1)), &served.uri)?;
    let count = room.plan.image_blocks() / PART;
    let amount = Amount::Blocks { count, seconds_max: PHASE_SECONDS_MAX };
    let written = room.load(&Load::random_4k("randwrite", 64, amount), &served.uri)?;
    let flushed: Duration = room.flush(&served.uri)?;
    let seconds = written.ios as f64 / written.iops + flushed.as_secs_f64();
    Ok((written.iops, written.ios as f64 / seconds))
}
