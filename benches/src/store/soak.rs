//! The daemon's memory over a long time of reads, writes, snapshots and deletions.
//!
//! Every ten seconds a snapshot is taken and the oldest deleted, beside random reads and writes on a part of the
//! volume, so that there is always something to merge, to pack and to free. The first minute is not looked at: until then
//! the snapshots are as many as they will be, and caches come to their sizes. What grows without end shows from the first third of the samples to the last.

use std::time::{Duration, Instant};

use super::client::Client;
use super::daemon::Daemon;
use super::disks::{Disk, Volume};
use super::record::{Key, Recorder};
use super::room::Room;
use super::targets::{Target, at_most};
use crate::fio::{Amount, Load};
use crate::results::{Spread, ratio};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "soak";
/// The last third's median by the first's.
pub const GROWTH: &str = "resident, last third / first third";
const RESIDENT: &str = "resident, every 10 s";
const ANONYMOUS_GROWTH: &str = "anonymous, last third / first third";
/// How long a run is that tells of growth: in a short one caches still fill.
const FULL: &str = "60 minutes";
const VOLUME: &str = "soak";
/// What no growth means: samples differ by as much.
const NO_GROWTH: f64 = 1.02;
/// Requests in flight.
const DEPTH: u32 = 16;
/// Snapshots that there are at a time.
const SNAPSHOTS: u32 = 6;
/// Between two samples.
const EVERY: Duration = Duration::from_secs(10);
/// Samples that are not looked at.
const WARM_UP: u32 = SNAPSHOTS;
/// What is written anew between two snapshots must fit the pool as often as there are snapshots: one of so many parts of
/// the volume.
const RANGE_PART: u64 = 4;

/// What is wanted.
pub(crate) fn targets() -> Vec<Target> {
    vec![at_most(NAME, FULL, GROWTH, NO_GROWTH, "x")]
}

/// Watches one daemon for as long as was asked for.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(room: &Room<'_>, recorder: &mut Recorder, daemon: &Daemon) -> Result<(), Trouble> {
    let mut volume = Volume::new(daemon, VOLUME);
    let served = volume.whole(room)?;
    let samples = room.plan.soak_minutes * 60 / u32::try_from(EVERY.as_secs()).unwrap_or(u32::MAX);
    let seconds = (samples + WARM_UP) * 20 + 600;
    let load = Load {
        range_bytes: Some(room.plan.image_bytes / RANGE_PART),
        ..Load::random_4k("randrw", DEPTH, Amount::Seconds(seconds))
    };
    let client = Client::start(room, &load, &served.uri)?;
    let watched = watch(room, daemon, samples);
    client.stop()?;
    let key = |measure: &str, unit| {
        let (subject, measure) = (subject(room.plan.soak_minutes), measure.to_owned());
        Key { scenario: NAME, subject, measure, unit }
    };
    let (resident, anonymous): (Vec<f64>, Vec<f64>) = watched?.into_iter().unzip();
    recorder.put_all(key(RESIDENT, "MiB"), &resident);
    for (measure, series) in [(GROWTH, &resident), (ANONYMOUS_GROWTH, &anonymous)] {
        if let Some(growth) = growth(series) {
            recorder.put(key(measure, "x"), 1, growth);
        }
    }
    volume.discard(room)
}

/// Resident and anonymous memory, MiB, after each snapshot.
fn watch(room: &Room<'_>, daemon: &Daemon, samples: u32) -> Result<Vec<(f64, f64)>, Trouble> {
    let mut found = Vec::new();
    for number in 0..WARM_UP + samples {
        let begun = Instant::now();
        daemon.snapshot(VOLUME, &format!("n{number}"))?;
        if let Some(oldest) = number.checked_sub(SNAPSHOTS) {
            daemon.delete_snapshot(VOLUME, &format!("n{oldest}"))?;
        }
        room.pause(EVERY.saturating_sub(begun.elapsed()))?;
        if number >= WARM_UP {
            let memory = daemon.memory()?;
            found.push((memory.resident_mib, memory.anonymous_mib));
        }
    }
    Ok(found)
}

/// Another length has another name, and no target.
fn subject(minutes: u32) -> String {
    format!("{minutes} minutes")
}

/// The median of the last third by that of the first.
fn growth(samples: &[f64]) -> Option<f64> {
    let third = samples.len() / 3;
    let first = Spread::of(&samples[..third])?;
    let last = Spread::of(&samples[samples.len() - third..])?;
    ratio(last.median, first.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_is_of_an_hour() {
        assert_eq!(subject(60), FULL);
    }

    #[test]
    fn growth_is_from_the_first_third_to_the_last() {
        assert_eq!(growth(&[10.0, 10.0, 99.0, 99.0, 99.0, 15.0, 7.0]), Some(1.1));
        assert_eq!(growth(&[10.0, 20.0, 5.0]), Some(0.5));
        assert_eq!(growth(&[1.0, 2.0]), None, "two are no thirds");
    }
}
