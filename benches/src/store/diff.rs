//! What `snapshot diff` costs, by what changed and by the volume's size.
//!
//! Two full volumes of different sizes; the same number of random 4 KiB blocks is written to both over NBD, 1 % of
//! the small one's. Their diffs take turns. Then 1 % of the large one is written, in blocks of 64 KiB.

use super::daemon::Daemon;
use super::made::BASE;
use super::record::{Key, Recorder};
use super::room::Room;
use crate::fio::{Amount, Load};
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "diff";
/// The small volume and its size.
pub const SMALL: (&str, u64) = ("small", 4 << 30);
/// The large volume and its size.
pub const LARGE: (&str, u64) = ("large", 64 << 30);
/// The diff with as many changes in both.
pub const SAME_CHANGES: &str = "diff, as many changes";
/// Key of their ratio.
pub const RATIO: &str = "64 GiB / 4 GiB";
/// One block of so many changes.
const PART: u64 = 100;
/// Diffs of each volume within a round.
const CALLS: u32 = 5;
const BLOCK: u64 = 4096;
const CLUSTER: u64 = 64 << 10;

/// Measures both volumes.
///
/// # Errors
/// Something failed, a diff is wrong, or somebody asked to stop.
pub fn run(room: &Room<'_>, recorder: &mut Recorder, daemon: &Daemon) -> Result<(), Trouble> {
    let changes = SMALL.1 / BLOCK / PART;
    for (volume, _) in [SMALL, LARGE] {
        change(room, daemon, volume, changes, "after")?;
    }
    for call in 1..=room.plan.rounds * CALLS {
        for (volume, subject) in [(SMALL.0, "4 GiB"), (LARGE.0, "64 GiB")] {
            let ms = diff_ms(daemon, volume, "after", changes)?;
            put(recorder, subject, SAME_CHANGES, "ms", call, ms);
        }
    }
    let key = Key { scenario: NAME, subject: RATIO.into(), measure: SAME_CHANGES.into(), unit: "x" };
    recorder.put_ratios(&key, ("64 GiB", SAME_CHANGES), ("4 GiB", SAME_CHANGES));
    one_percent_of_the_large(room, recorder, daemon)
}

fn one_percent_of_the_large(
    room: &Room<'_>,
    recorder: &mut Recorder,
    daemon: &Daemon,
) -> Result<(), Trouble> {
    let changes = LARGE.1 / CLUSTER / PART * (CLUSTER / BLOCK);
    let amount = Amount::Blocks { count: LARGE.1 / CLUSTER / PART, seconds_max: 600 };
    let clusters = Load { block_bytes: CLUSTER, ..Load::random_4k("randwrite", 16, amount) };
    room.load(&clusters, &daemon.uri(LARGE.0))?;
    daemon.snapshot(LARGE.0, "more")?;
    for call in 1..=room.plan.rounds {
        let (bytes, took) = daemon.diff(LARGE.0, "after", "more")?;
        check(bytes, changes)?;
        put(recorder, "64 GiB", "diff, 1 % changed", "ms", call, took.as_secs_f64() * 1e3);
        let per_block = took.as_secs_f64() * 1e6 / changes as f64;
        put(recorder, "64 GiB", "diff, 1 % changed, a block", "us", call, per_block);
    }
    Ok(())
}

fn put(recorder: &mut Recorder, subject: &str, measure: &str, unit: &'static str, round: u32, value: f64) {
    let (subject, measure) = (subject.to_owned(), measure.to_owned());
    recorder.put(Key { scenario: NAME, subject, measure, unit }, round, value);
}

fn change(room: &Room<'_>, daemon: &Daemon, volume: &str, count: u64, name: &str) -> Result<(), Trouble> {
    let uri = daemon.uri(volume);
    room.scatter(&uri, count)?;
    room.flush(&uri)?;
    daemon.snapshot(volume, name).map(drop)
}

fn diff_ms(daemon: &Daemon, volume: &str, to: &str, changes: u64) -> Result<f64, Trouble> {
    let (bytes, took) = daemon.diff(volume, BASE, to)?;
    check(bytes, changes)?;
    Ok(took.as_secs_f64() * 1e3)
}

/// A diff that is wrong has no speed.
fn check(bytes: u64, changes: u64) -> Result<(), Trouble> {
    if bytes == changes * BLOCK {
        return Ok(());
    }
    let why = format!("{bytes} bytes differ, {} were written", changes * BLOCK);
    Err(Trouble::new("compare two snapshots", why, "report it, with this text"))
}
