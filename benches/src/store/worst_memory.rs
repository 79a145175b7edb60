//! Memory of a large volume whose map is as dear as a write after a cut makes it: every cluster from two places.
//!
//! Below a snapshot all of it is mapped, and one block of each cluster was written since. The eight bytes of a cluster
//! in the map then only say where in a side table its places are. The same is there for as long as such a snapshot is,
//! whatever is written or taken later: more places of one cluster need more snapshots between sparse writes to it.

use super::daemon::{Daemon, Memory};
use super::full;
use super::made::{self, Lies, Made};
use super::record::{Key, Recorder};
use super::room::Room;
use super::targets::{Target, at_most};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "worst-memory";
/// Memory a TiB mapped, less that of an empty store's daemon, after a clean stop.
pub const RESIDENT: &str = "resident a TiB beyond an empty store, after a clean stop";
const RESIDENT_RECORDS: &str = "resident a TiB beyond an empty store, map read from the records";
const PEAK: &str = "at its peak, while starting";
const VOLUME: &str = "worst";

/// What is wanted of a TiB.
pub(crate) fn targets() -> Vec<Target> {
    vec![at_most(NAME, "1 TiB", RESIDENT, 500.0, "MiB")]
}

/// Makes the store and starts it again and again.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(room: &Room<'_>, recorder: &mut Recorder) -> Result<(), Trouble> {
    let data = room.new_image("worst");
    let volume = Made { name: VOLUME, bytes: room.plan.large_bytes, lies: Lies::InBoth };
    let subject = full::subject(volume.bytes);
    eprintln!("making a store of {subject}, each cluster in two places");
    made::make(&data, &[volume], 0, room.interrupt)?;
    let empty = full::empty_memory(room)?;
    let start = || -> Result<(Daemon, Memory), Trouble> {
        let daemon = Daemon::start(room, &data)?;
        room.read_block(&daemon.uri(VOLUME), volume.bytes / 2)?;
        let memory = daemon.memory()?;
        Ok((daemon, memory))
    };
    let beyond = |memory: Memory| {
        (memory.resident_mib - empty.resident_mib) / (volume.bytes as f64 / (1_u64 << 40) as f64)
    };
    let mut put = |measure: &str, round, value| {
        let (subject, measure) = (subject.clone(), measure.to_owned());
        recorder.put(Key { scenario: NAME, subject, measure, unit: "MiB" }, round, value);
    };
    let (mut daemon, mut memory) = start()?;
    put(RESIDENT_RECORDS, 1, beyond(memory));
    for round in 1..=room.plan.rounds {
        daemon.stop()?;
        (daemon, memory) = start()?;
        put(RESIDENT, round, beyond(memory));
        put(PEAK, round, memory.peak_mib);
    }
    daemon.stop()
}
