//! A snapshot in the middle is deleted while a client reads and writes: what the client loses, and when the space is back.
//!
//! ```text
//!  whole ─► eight times: writes, cut ─► whole again (the head has a cluster of its own everywhere) ─► packed
//!  client:  ═══╪═ before ═╪═ control: nothing is deleted ═╪═ during ════════════╪═ after ═╪═══
//!                                                         └ delete …  space back ┘
//! ```
//!
//! Each round deletes another one. Requests are counted by the daemon itself. A merge that takes less than a second is
//! held against the whole of that second.

use std::thread;
use std::time::{Duration, Instant};

use super::client::Client;
use super::daemon::{Daemon, has_settled};
use super::disks::{Disk, Volume};
use super::record::{Key, Recorder};
use super::room::{Room, Served};
use super::targets::{Target, at_least, at_most};
use crate::fio::{Amount, Load};
use crate::results::ratio;
use crate::trouble::Trouble;

/// Name of the scenario.
pub const NAME: &str = "delete-middle";
/// What is left of the rate while a layer is merged.
pub const DURING_RATIO: &str = "during / before";
/// The same with nothing deleted: the noise.
pub const CONTROL_RATIO: &str = "control / before";
const AFTER_RATIO: &str = "after / before";
/// From the call until all is given back.
pub const SPACE_BACK: &str = "until the space is back";
const SUBJECT: &str = "volume";
const VOLUME: &str = "middle";
/// Percent of the blocks that are written before each cut.
const CHANGED_PERCENT: [u64; 8] = [1, 10, 2, 8, 4, 6, 3, 5];
/// Where they lie: one of so many parts of the disk, so that snapshots have other versions of the same blocks and there
/// is something to give back.
const HOT_PART: u64 = 8;
/// Which snapshots are deleted, in this order; the first and the last never are.
const MIDDLE: [u32; 6] = [4, 6, 2, 5, 3, 7];
/// Requests in flight.
const DEPTH: u32 = 16;
/// fio connects, and the page cache comes to an even state.
const WARM_UP: Duration = Duration::from_secs(3);
/// Of the two windows without a deletion.
const WINDOW: Duration = Duration::from_secs(6);
/// What the client loses is counted over so long at least.
const SHORTEST: Duration = Duration::from_secs(1);
/// A merge that takes longer has failed.
const MERGE_WITHIN: Duration = Duration::from_secs(120);
/// The daemon has no event for the end of a merge: it is asked. Not often, for answering takes from what is measured, and only
/// while it is deleted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is wanted.
pub(crate) fn targets() -> Vec<Target> {
    vec![at_least(NAME, SUBJECT, DURING_RATIO, 0.85), at_most(NAME, SUBJECT, SPACE_BACK, 60.0, "s")]
}

/// Makes the volume and deletes a snapshot a round.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(room: &Room<'_>, recorder: &mut Recorder, daemon: &Daemon) -> Result<(), Trouble> {
    let mut volume = Volume::new(daemon, VOLUME);
    let mut served = volume.whole(room)?;
    for percent in CHANGED_PERCENT {
        change(room, &served, percent)?;
        served = volume.cut(room, served)?;
    }
    volume.rest(room)?;
    room.fio().fill(&served.uri)?;
    for (round, number) in (1..=room.plan.rounds).zip(MIDDLE) {
        room.flush(&served.uri)?;
        volume.rest(room)?;
        delete_one(room, recorder, daemon, &served, (round, number))?;
    }
    volume.discard(room)
}

/// Writes so much of the disk's blocks, at random within its hot part.
fn change(room: &Room<'_>, served: &Served, percent: u64) -> Result<(), Trouble> {
    let amount = Amount::Blocks { count: room.plan.image_blocks() * percent / 100, seconds_max: 600 };
    let hot = Some(room.plan.image_bytes / HOT_PART);
    let load = Load { range_bytes: hot, ..Load::random_4k("randwrite", 64, amount) };
    room.load(&load, &served.uri).map(drop)
}

fn delete_one(
    room: &Room<'_>,
    recorder: &mut Recorder,
    daemon: &Daemon,
    served: &Served,
    (round, number): (u32, u32),
) -> Result<(), Trouble> {
    let whole = WARM_UP + WINDOW * 3 + MERGE_WITHIN * 2;
    let seconds = u32::try_from(whole.as_secs()).unwrap_or(u32::MAX);
    let load = Load::random_4k("randrw", DEPTH, Amount::Seconds(seconds));
    let client = Client::start(room, &load, &served.uri)?;
    let story = watch(room, daemon, number);
    client.stop()?;
    story?.put(recorder, round);
    Ok(())
}

/// Requests that the daemon has answered, by when.
#[derive(Debug, Clone, Copy)]
struct Count {
    at: Instant,
    requests: u64,
    used_bytes: u64,
}

impl Count {
    fn now(daemon: &Daemon) -> Result<(Self, bool), Trouble> {
        let store = daemon.store_status()?;
        let requests = store.counters.reads + store.counters.writes;
        let count = Self { at: Instant::now(), requests, used_bytes: store.used_bytes };
        Ok((count, has_settled(&store)))
    }

    /// Requests a second since then.
    fn rate_since(&self, begin: &Self) -> f64 {
        (self.requests - begin.requests) as f64 / (self.at - begin.at).as_secs_f64()
    }
}

/// The counts at the ends of the windows, in the order of time.
#[derive(Debug)]
struct Story {
    begin: Count,
    control: Count,
    delete: Count,
    /// All is given back.
    back: Count,
    /// The same, or a second after the deletion.
    merged: Count,
    end: Count,
}

fn watch(room: &Room<'_>, daemon: &Daemon, number: u32) -> Result<Story, Trouble> {
    let after = |time| room.pause(time).and_then(|()| Count::now(daemon)).map(|(count, _)| count);
    let (begin, control, delete) = (after(WARM_UP)?, after(WINDOW)?, after(WINDOW)?);
    daemon.delete_snapshot(VOLUME, &format!("s{number}"))?;
    let back = wait_until_back(room, daemon, delete.at)?;
    let merged = if back.at - delete.at < SHORTEST {
        after((delete.at + SHORTEST).saturating_duration_since(Instant::now()))?
    } else {
        back
    };
    Ok(Story { begin, control, delete, back, merged, end: after(WINDOW)? })
}

fn wait_until_back(room: &Room<'_>, daemon: &Daemon, since: Instant) -> Result<Count, Trouble> {
    loop {
        room.interrupt.check()?;
        let (count, is_back) = Count::now(daemon)?;
        if is_back {
            return Ok(count);
        }
        if since.elapsed() > MERGE_WITHIN {
            let why = format!("its space is not back within {MERGE_WITHIN:?}");
            return Err(Trouble::new("delete a snapshot beside a client", why, "look at blockd's log"));
        }
        thread::sleep(LOOK_EVERY);
    }
}

impl Story {
    fn put(&self, recorder: &mut Recorder, round: u32) {
        let before = self.control.rate_since(&self.begin);
        let control = self.delete.rate_since(&self.control);
        let during = self.merged.rate_since(&self.delete);
        let after = self.end.rate_since(&self.merged);
        let back = self.back.at - self.delete.at;
        let freed = self.delete.used_bytes.saturating_sub(self.back.used_bytes);
        let rows = [
            ("before", before, "IOPS"),
            ("control", control, "IOPS"),
            ("during", during, "IOPS"),
            ("after", after, "IOPS"),
            (SPACE_BACK, back.as_secs_f64(), "s"),
            ("given back", freed as f64 / f64::from(1 << 20), "MiB"),
        ];
        let key = |measure: &str, unit| {
            let (subject, measure) = (SUBJECT.to_owned(), measure.to_owned());
            Key { scenario: NAME, subject, measure, unit }
        };
        for (measure, value, unit) in rows {
            recorder.put(key(measure, unit), round, value);
        }
        for (measure, rate) in [(CONTROL_RATIO, control), (DURING_RATIO, during), (AFTER_RATIO, after)] {
            if let Some(value) = ratio(rate, before) {
                recorder.put(key(measure, "x"), round, value);
            }
        }
    }
}
