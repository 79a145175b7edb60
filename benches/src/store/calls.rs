//! What a snapshot costs while a client writes: how long the call takes, and the longest write meanwhile.
//!
//! One writer, 4 KiB at random on a part of the volume, one request at a time, for the whole of it: one that flushes
//! now and then, and one that never does, so that each call has to sync all that it wrote. Windows without
//! snapshots and windows with one every quarter of a second take turns. fio logs the latency of every write with
//! the time of day at its end, so that a slow write can be told to have overlapped a call.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::daemon::Daemon;
use super::record::{Key, Recorder};
use super::room::Room;
use crate::fio::{Amount, Load};
use crate::trouble::{OrTrouble, Trouble};

/// Name of the scenario.
pub const NAME: &str = "snapshot-calls";
/// How long a call took with nobody writing.
pub const IDLE_CALL: &str = "call, no client";
/// How long a call took beside the writer.
pub const CALL: &str = "call, beside a writer";
/// The longest of them.
pub const LONGEST_CALL: &str = "longest call, beside a writer";
/// The longest write of all windows without snapshots.
pub const LONGEST_WITHOUT: &str = "longest write, no snapshots";
/// The longest write of all windows with snapshots.
pub const LONGEST_WITH: &str = "longest write, with snapshots";
/// The longest write that overlapped a call.
pub const LONGEST_OVERLAPPING: &str = "longest write that met a call";
/// Added to these for the writer that never flushes.
pub const NO_FLUSH: &str = ", no flushes";
const MEDIAN_WITHOUT: &str = "median write, no snapshots";
const MEDIAN_WITH: &str = "median write, with snapshots";
/// What the writer writes to.
const RANGE_BYTES: u64 = 64 << 20;
/// Length of a window.
const WINDOW: Duration = Duration::from_secs(3);
/// From one call to the next.
const CALL_EVERY: Duration = Duration::from_millis(250);
/// Calls with nobody writing.
const IDLE_CALLS: u32 = 20;
/// fio needs that long until it writes.
const WRITER_STARTS: Duration = Duration::from_secs(1);
/// fio's number for writes; flushes have another.
const WRITE: &str = "1";
/// Calls run on into the next window for as long as their effects may last.
const BETWEEN: Duration = Duration::from_millis(500);

/// How often the writer flushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Never: a call has to sync all that it wrote since the last one.
    NoFlush,
    /// As a guest with a journal does, more or less: after so many writes.
    FlushEvery(u32),
}

/// The two that are measured.
const WRITERS: [Writer; 2] = [Writer::FlushEvery(32), Writer::NoFlush];

impl Writer {
    fn flush_every(self) -> Option<u32> {
        match self {
            Self::NoFlush => None,
            Self::FlushEvery(writes) => Some(writes),
        }
    }

    /// Beginning of the names of snapshots taken beside it.
    fn name(self) -> &'static str {
        match self {
            Self::NoFlush => "no-flush",
            Self::FlushEvery(_) => "flush",
        }
    }

    /// Key of what was measured beside this writer.
    fn key(self, measure: &str) -> String {
        match self {
            Self::NoFlush => format!("{measure}{NO_FLUSH}"),
            Self::FlushEvery(_) => measure.to_owned(),
        }
    }
}

/// Measures one volume. The snapshots stay: what deleting them costs is not asked here.
///
/// # Errors
/// A call or the writer failed, or somebody asked to stop.
pub fn run(
    room: &Room<'_>,
    recorder: &mut Recorder,
    daemon: &Daemon,
    volume: &str,
    subject: &str,
) -> Result<(), Trouble> {
    let uri = daemon.uri(volume);
    let mut idle = Vec::new();
    prepare_range(room, &uri, RANGE_BYTES)?;
    for number in 0..IDLE_CALLS {
        idle.push(ms(daemon.snapshot(volume, &format!("idle-{number}"))?));
    }
    recorder.put_all(key(subject, IDLE_CALL.to_owned()), &idle);
    for writer in WRITERS {
        prepare_range(room, &uri, RANGE_BYTES)?;
        beside(room, recorder, daemon, (volume, subject), writer)?;
    }
    Ok(())
}

fn beside(
    room: &Room<'_>,
    recorder: &mut Recorder,
    daemon: &Daemon,
    (volume, subject): (&str, &str),
    writer: Writer,
) -> Result<(), Trouble> {
    let log = room.new_short("writes");
    let story = tell(room, daemon, volume, writer, &log)?;
    let calls: Vec<f64> = story.calls.iter().map(|call| ms(call.length())).collect();
    recorder.put_all(key(subject, writer.key(CALL)), &calls);
    let longest = calls.iter().copied().fold(0.0, f64::max);
    recorder.put(key(subject, writer.key(LONGEST_CALL)), 1, longest);
    for (measure, time) in story.findings(&read_log(&log)?) {
        recorder.put(key(subject, writer.key(measure)), 1, ms(time));
    }
    Ok(())
}

fn key(subject: &str, measure: String) -> Key {
    Key { scenario: NAME, subject: subject.to_owned(), measure, unit: "ms" }
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Writes the writer's range once, so that the first window differs in nothing from the others.
pub(super) fn prepare_range(room: &Room<'_>, uri: &str, bytes: u64) -> Result<(), Trouble> {
    let amount = Amount::Blocks { count: bytes >> 20, seconds_max: 600 };
    let range = Load { block_bytes: 1 << 20, ..Load::random_4k("write", 8, amount) };
    room.load(&Load { range_bytes: Some(bytes), ..range }, uri)?;
    room.flush(uri).map(drop)
}

/// An interval of the day's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) begin: Duration,
    pub(super) end: Duration,
}

impl Span {
    pub(super) fn of<T>(work: impl FnOnce() -> Result<T, Trouble>) -> Result<Self, Trouble> {
        let begin = now();
        work()?;
        Ok(Self { begin, end: now() })
    }

    pub(super) fn length(&self) -> Duration {
        self.end.saturating_sub(self.begin)
    }

    pub(super) fn meets(&self, other: &Self) -> bool {
        self.begin <= other.end && other.begin <= self.end
    }
}

/// Time since 1970; fio's log has the same.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What happened when.
#[derive(Debug, Default)]
struct Story {
    calls: Vec<Span>,
    quiet: Vec<Span>,
    busy: Vec<Span>,
}

impl Story {
    /// The figures of a log of writes.
    fn findings(&self, writes: &[Span]) -> Vec<(&'static str, Duration)> {
        let met = |spans: &[Span]| {
            let met = writes.iter().filter(|write| spans.iter().any(|span| span.meets(write)));
            let mut lengths: Vec<Duration> = met.map(Span::length).collect();
            lengths.sort_unstable();
            lengths
        };
        let (quiet, busy, calls) = (met(&self.quiet), met(&self.busy), met(&self.calls));
        let middle = |lengths: &[Duration]| lengths.get(lengths.len() / 2).copied();
        let all = [
            (MEDIAN_WITHOUT, middle(&quiet)),
            (MEDIAN_WITH, middle(&busy)),
            (LONGEST_WITHOUT, quiet.last().copied()),
            (LONGEST_WITH, busy.last().copied()),
            (LONGEST_OVERLAPPING, calls.last().copied()),
        ];
        all.into_iter().filter_map(|(measure, time)| Some((measure, time?))).collect()
    }
}

/// Lets the writer write and takes the snapshots beside it.
fn tell(
    room: &Room<'_>,
    daemon: &Daemon,
    volume: &str,
    writer: Writer,
    log: &Path,
) -> Result<Story, Trouble> {
    let uri = daemon.uri(volume);
    let windows = WRITER_STARTS + (WINDOW + BETWEEN) * 2 * room.plan.rounds;
    let seconds = u32::try_from(windows.as_secs()).unwrap_or(u32::MAX) + 1;
    let load = Load {
        range_bytes: Some(RANGE_BYTES),
        latency_log: Some(log),
        flush_every: writer.flush_every(),
        ..Load::random_4k("randwrite", 1, Amount::Seconds(seconds))
    };
    // The writer gets what it needs, and not the room: that may not cross threads.
    let fio = room.fio();
    thread::scope(|scope| {
        let running = scope.spawn(|| fio.load(&load, &uri));
        let story = take_turns(room, daemon, volume, writer);
        let written = running.join();
        let panicked = |_| Trouble::new("run the writer", "its thread panicked", "report it");
        written.map_err(panicked)??;
        story
    })
}

fn take_turns(room: &Room<'_>, daemon: &Daemon, volume: &str, writer: Writer) -> Result<Story, Trouble> {
    let mut story = Story::default();
    room.pause(WRITER_STARTS)?;
    for _ in 0..room.plan.rounds {
        story.quiet.push(Span::of(|| room.pause(WINDOW))?);
        let begin = now();
        while now() < begin + WINDOW {
            let name = format!("{}-{}", writer.name(), story.calls.len());
            story.calls.push(Span::of(|| daemon.snapshot(volume, &name))?);
            room.pause(CALL_EVERY)?;
        }
        story.busy.push(Span { begin, end: now() });
        room.pause(BETWEEN)?;
    }
    Ok(story)
}

/// All writes of a log.
pub(super) fn read_log(prefix: &Path) -> Result<Vec<Span>, Trouble> {
    let path = format!("{}_lat.1.log", prefix.display());
    let what = || "read fio's log of latencies".to_owned();
    let text = fs::read_to_string(path).or_trouble(what, "use fio 3.33 or later (fio --version)")?;
    Ok(text.lines().filter_map(parse_line).collect())
}

/// A line of a write, `end in ms, latency in ns, direction, …`.
fn parse_line(line: &str) -> Option<Span> {
    let mut fields = line.split(',').map(str::trim);
    let end = Duration::from_millis(fields.next()?.parse().ok()?);
    let length = Duration::from_nanos(fields.next()?.parse().ok()?);
    fields.next().filter(|direction| *direction == WRITE)?;
    Some(Span { begin: end.saturating_sub(length), end })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(begin_ms: u64, end_ms: u64) -> Span {
        Span { begin: Duration::from_millis(begin_ms), end: Duration::from_millis(end_ms) }
    }

    #[test]
    fn a_line_of_fio_is_read() {
        assert_eq!(parse_line("1000, 4000000, 1, 4096, 0, 0"), Some(span(996, 1000)));
        assert_eq!(parse_line("1000, 4000000, 3, 4096, 0, 0"), None, "a flush");
        assert_eq!(parse_line("fio"), None);
    }

    #[test]
    fn writes_belong_to_the_window_they_fall_in() {
        let story =
            Story { calls: vec![span(250, 255)], quiet: vec![span(0, 100)], busy: vec![span(200, 300)] };
        let found = story.findings(&[span(10, 11), span(90, 99), span(210, 240), span(251, 260)]);
        let of = |name| found.iter().find(|(measure, _)| *measure == name).map(|(_, time)| time.as_millis());
        assert_eq!(of(LONGEST_WITHOUT), Some(9));
        assert_eq!(of(LONGEST_WITH), Some(30));
        assert_eq!(of(LONGEST_OVERLAPPING), Some(9));
    }
}
