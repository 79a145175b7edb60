//! Writes that a client makes durable: what a FLUSH costs a volume, beside plain files.
//!
//! Twice for the volume: on a head that has everything, where a FLUSH has nothing but data to sync, and right after a
//! cut, each block written once, where there are new mappings to commit. A plain file has no such difference.

use super::daemon::Daemon;
use super::disks::{Disk, Volume};
use super::files::{By, PlainFile};
use super::record::{Key, Recorder};
use super::room::{Room, Served};
use super::targets::{Target, at_least};
use crate::fio::{Amount, Load};
use crate::results::ratio;
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "flushes";
/// The volume, everything written, by the best peer.
pub const WRITTEN_RATIO: &str = "volume / best peer";
/// The volume right after a cut by the best peer.
pub const NEW_RATIO: &str = "volume, new mappings / best peer";
const WRITTEN: &str = "volume";
const NEW: &str = "volume, new mappings";
const OURS: &str = "plain-file";
const PEERS: [By; 2] = [By::Nbdkit, By::QemuNbd];
const VOLUME: &str = "flushes";

/// A load, and how often it flushes.
#[derive(Debug, Clone, Copy)]
struct Flushing {
    name: &'static str,
    /// Connections.
    jobs: u32,
    /// Requests in flight on each.
    iodepth: u32,
    /// A flush after so many writes.
    every: u32,
}

/// Commit latency, and many who commit at once.
const LOADS: [Flushing; 2] = [
    Flushing { name: "randwrite-4k-qd1-fsync1", jobs: 1, iodepth: 1, every: 1 },
    Flushing { name: "randwrite-4k-qd8-jobs4-fsync32", jobs: 4, iodepth: 8, every: 32 },
];

/// What is wanted: at least what the best peer does, with and without new mappings.
pub(crate) fn targets() -> Vec<Target> {
    let of_load = |load: Flushing| [WRITTEN_RATIO, NEW_RATIO].map(|row| at_least(NAME, row, load.name, 1.0));
    LOADS.into_iter().flat_map(of_load).collect()
}

/// All take turns within a round.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(room: &Room<'_>, recorder: &mut Recorder, daemon: &Daemon) -> Result<(), Trouble> {
    let mut volume = Volume::new(daemon, VOLUME);
    let mut of_volume = volume.whole(room)?;
    let mut files: Vec<PlainFile> = [By::Ours].into_iter().chain(PEERS).map(PlainFile::new).collect();
    let mut served: Vec<(&'static str, Served)> = Vec::new();
    for file in &mut files {
        match file.whole(room) {
            Ok(ready) => served.push((file.name(), ready)),
            Err(trouble) => recorder.fail(NAME, file.name(), &trouble),
        }
        room.interrupt.check()?;
    }
    for load in LOADS {
        for round in 1..=room.plan.rounds {
            let mut rates = vec![(WRITTEN, measure(room, &of_volume, load)?)];
            for (name, file) in &served {
                rates.push((*name, measure(room, file, load)?));
            }
            of_volume = volume.cut(room, of_volume)?;
            rates.push((NEW, measure(room, &of_volume, load)?));
            put(recorder, load.name, round, &rates);
            // The head has everything again.
            daemon.delete_snapshots(room, VOLUME, "")?;
        }
    }
    drop(served);
    files.iter_mut().try_for_each(|file| file.discard(room))?;
    volume.discard(room)
}

fn measure(room: &Room<'_>, served: &Served, load: Flushing) -> Result<f64, Trouble> {
    room.flush(&served.uri)?;
    let part = room.plan.image_bytes / u64::from(load.jobs);
    // No block twice: after a cut each is the first to its place.
    let amount = Amount::Blocks { count: part / 4096, seconds_max: room.plan.runtime_s };
    let flushing = Load {
        jobs: load.jobs,
        range_bytes: Some(part),
        flush_every: Some(load.every),
        ..Load::random_4k("randwrite", load.iodepth, amount)
    };
    Ok(room.load(&flushing, &served.uri)?.iops)
}

fn put(recorder: &mut Recorder, job: &'static str, round: u32, rates: &[(&str, f64)]) {
    let key =
        |subject: &str, unit| Key { scenario: NAME, subject: subject.into(), measure: job.into(), unit };
    for (subject, rate) in rates {
        recorder.put(key(subject, "IOPS"), round, *rate);
    }
    for (row, of) in [(WRITTEN_RATIO, WRITTEN), (NEW_RATIO, NEW)] {
        if let Some(value) = to_best_peer(rates, of) {
            recorder.put(key(row, "x"), round, value);
        }
    }
}

fn to_best_peer(rates: &[(&str, f64)], of: &str) -> Option<f64> {
    let ours = [WRITTEN, NEW, OURS];
    let best = rates.iter().filter(|(name, _)| !ours.contains(name)).map(|(_, rate)| *rate).reduce(f64::max);
    let (_, value) = rates.iter().find(|(name, _)| *name == of)?;
    ratio(*value, best?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_peer_is_none_of_ours() {
        let rates =
            [(WRITTEN, 50.0), (OURS, 400.0), ("nbdkit-file", 80.0), ("qemu-nbd-raw", 100.0), (NEW, 25.0)];
        assert_eq!((to_best_peer(&rates, WRITTEN), to_best_peer(&rates, NEW)), (Some(0.5), Some(0.25)));
        assert_eq!(to_best_peer(&rates[..2], WRITTEN), None, "without peers there is no ratio");
        assert_eq!(PlainFile::new(By::Ours).name(), OURS);
    }
}
