//! A snapshot every five seconds beside a writer of 4 KiB at random, on a part of the volume, for a minute.
//!
//! ```text
//!  writer ═══════════════════════════════════════════════════════════════════════════════════════════
//!           ├ control ┤ ········ ├ control ┤ ········ ┤call├ effects ┤ ····· ┤call├ effects ┤ ·····
//!           └──────── a minute without ──────────────┘└──── a minute with snapshots ─────────────────┘
//! ```
//!
//! What a call has to answer for is every write that met it or the second after it. Writes are slow now and then
//! without any snapshot, too: the control are windows as long and as many in a minute of the same writer without one.
//! A longest write is put down to the calls as a whole, and not only with what it has beyond the control's, unless a
//! write without a call took as long. What comes later, first writes and packing among it, is in the minutes' own.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::calls::{NAME, Span, ms, now, prepare_range, read_log};
use super::daemon::Daemon;
use super::record::{Key, Recorder};
use super::room::{NEXT_DIR, Room};
use super::targets::{Target, at_most};
use crate::fio::{Amount, Load};
use crate::trouble::{OrTrouble, Trouble};

/// A writer: requests in flight, and what is added to the names of what was measured beside it.
pub type Writer = (u32, &'static str);
/// Beside whom a small volume is measured.
pub const WRITERS: [Writer; 2] = [DEEP, (1, ", depth 1")];
/// Beside whom a large one is.
pub const DEEP: Writer = (32, ", depth 32");
/// How long a call took, in the middle.
pub const CALL: &str = "call every 5 s";
/// How long the longest took.
pub const LONGEST_CALL: &str = "longest call every 5 s";
/// The longest write that is put down to a call; zero if one without took as long.
pub const BECAUSE: &str = "longest write because of a call";
const LONGEST_BESIDE: &str = "longest write beside a call";
const LONGEST_CONTROL: &str = "longest write, control";
const LONGEST_WITH: &str = "longest write of a minute with calls every 5 s";
const LONGEST_WITHOUT: &str = "longest write of a minute without";
const USUAL_BESIDE: &str = "longest write beside each call, median";
const USUAL_CONTROL: &str = "longest write of each control, median";
/// The longest that a call may take.
const CALL_MS: f64 = 5.0;
/// The longest that a write may take because of one.
const WRITE_MS: f64 = 10.0;
/// What the writer writes to: so much, and no more, is taken anew after each snapshot.
const RANGE_BYTES: u64 = 256 << 20;
/// From one call to the next.
const EVERY: Duration = Duration::from_secs(5);
/// What comes so soon after a call may come of it.
const EFFECTS: Duration = Duration::from_secs(1);
/// fio needs that long until it writes.
const WRITER_STARTS: Duration = Duration::from_secs(1);

/// What is wanted of a volume of that name beside these writers.
pub(crate) fn targets(subject: &'static str, writers: &[Writer]) -> Vec<Target> {
    let most = |measure: &str, bound| at_most(NAME, subject, measure, bound, "ms");
    let of_writer = |(_, suffix): &Writer| {
        let calls = [CALL, LONGEST_CALL].map(|measure| most(&format!("{measure}{suffix}"), CALL_MS));
        calls.into_iter().chain([most(&format!("{BECAUSE}{suffix}"), WRITE_MS)]).collect::<Vec<_>>()
    };
    writers.iter().flat_map(of_writer).collect()
}

/// Measures one volume, and deletes the snapshots.
///
/// # Errors
/// A call or the writer failed, or somebody asked to stop.
pub fn run(
    room: &Room<'_>,
    recorder: &mut Recorder,
    daemon: &Daemon,
    (volume, subject): (&str, &str),
    writers: &[Writer],
) -> Result<(), Trouble> {
    for round in 1..=room.plan.rounds {
        for &(depth, suffix) in writers {
            for (measure, value) in beside(room, daemon, volume, depth)?.findings() {
                let (subject, measure) = (subject.to_owned(), format!("{measure}{suffix}"));
                recorder.put(Key { scenario: NAME, subject, measure, unit: "ms" }, round, ms(value));
            }
            daemon.delete_snapshots(room, volume, "paced-")?;
        }
    }
    Ok(())
}

/// Lets the writer write and takes the snapshots beside it.
fn beside(room: &Room<'_>, daemon: &Daemon, volume: &str, depth: u32) -> Result<Story, Trouble> {
    let (uri, log) = (daemon.uri(volume), room.new_short("writes"));
    prepare_range(room, &uri, RANGE_BYTES)?;
    let load = Load {
        range_bytes: Some(RANGE_BYTES),
        latency_log: Some(&log),
        ..Load::random_4k("randwrite", depth, Amount::Seconds(2 * room.plan.paced_s + 2))
    };
    // The writer gets what it needs, and not the room: that may not cross threads.
    let fio = room.fio();
    let calls = thread::scope(|scope| {
        let running = scope.spawn(|| fio.load(&load, &uri));
        let calls = take_snapshots(room, daemon, volume);
        let panicked = |_| Trouble::new("run the writer", "its thread panicked", "report it");
        running.join().map_err(panicked)??;
        calls
    })?;
    let half = Duration::from_secs(room.plan.paced_s.into());
    let story = Story::new(calls, half, &read_log(&log)?);
    forget(&log)?;
    Ok(story)
}

fn take_snapshots(room: &Room<'_>, daemon: &Daemon, volume: &str) -> Result<Vec<Span>, Trouble> {
    let half = Duration::from_secs(room.plan.paced_s.into());
    room.pause(WRITER_STARTS + half)?;
    let (mut calls, begin) = (Vec::new(), now());
    for number in 0.. {
        if now() + EVERY > begin + half + EFFECTS {
            break;
        }
        let call = Span::of(|| daemon.snapshot(volume, &format!("paced-{number}")))?;
        room.pause((call.begin + EVERY).saturating_sub(now()))?;
        calls.push(call);
    }
    Ok(calls)
}

/// A log of a minute has a hundred megabytes.
fn forget(prefix: &Path) -> Result<(), Trouble> {
    let log = format!("{}_lat.1.log", prefix.display());
    fs::remove_file(log).or_trouble(|| "remove fio's log".into(), NEXT_DIR)
}

/// Calls, and the longest writes of their windows, of the controls, and of the whole times.
#[derive(Debug)]
struct Story {
    calls: Vec<Span>,
    beside: Vec<Duration>,
    control: Vec<Duration>,
    with: Option<Duration>,
    without: Option<Duration>,
}

impl Story {
    /// `half`: how long there were calls, and before that none.
    fn new(calls: Vec<Span>, half: Duration, writes: &[Span]) -> Self {
        let longest =
            |window: Span| writes.iter().filter(|write| write.meets(&window)).map(Span::length).max();
        let window = |call: &Span| Span { begin: call.begin, end: call.end + EFFECTS };
        let beside = calls.iter().map(window).filter_map(longest).collect();
        let control = calls.iter().map(|call| before(window(call), half)).filter_map(longest).collect();
        let whole = calls.first().map(|call| Span { begin: call.begin, end: call.begin + half });
        let (with, without) =
            (whole.and_then(longest), whole.map(|span| before(span, half)).and_then(longest));
        Self { calls, beside, control, with, without }
    }

    fn findings(&self) -> Vec<(&'static str, Duration)> {
        let calls: Vec<Duration> = self.calls.iter().map(Span::length).collect();
        let (beside, control) = (self.beside.iter().max(), self.control.iter().max());
        let because = beside.zip(control).map(|(with, without)| put_down_to_calls(*with, *without));
        let all = [
            (CALL, middle(&calls)),
            (LONGEST_CALL, calls.iter().max().copied()),
            (USUAL_BESIDE, middle(&self.beside)),
            (USUAL_CONTROL, middle(&self.control)),
            (LONGEST_BESIDE, beside.copied()),
            (LONGEST_CONTROL, control.copied()),
            (BECAUSE, because),
            (LONGEST_WITH, self.with),
            (LONGEST_WITHOUT, self.without),
        ];
        all.into_iter().filter_map(|(measure, time)| Some((measure, time?))).collect()
    }
}

/// The same so much earlier.
fn before(span: Span, time: Duration) -> Span {
    Span { begin: span.begin.saturating_sub(time), end: span.end.saturating_sub(time) }
}

fn put_down_to_calls(with: Duration, without: Duration) -> Duration {
    if with > without { with } else { Duration::ZERO }
}

fn middle(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(begin_ms: u64, end_ms: u64) -> Span {
        Span { begin: Duration::from_millis(begin_ms), end: Duration::from_millis(end_ms) }
    }

    /// Calls in the eleventh second and in the sixteenth; ten seconds with them, ten before without.
    fn found(writes: &[Span]) -> impl Fn(&str) -> Option<u128> + use<> {
        let calls = vec![span(11_000, 11_004), span(16_000, 16_010)];
        let findings = Story::new(calls, Duration::from_secs(10), writes).findings();
        move |name| findings.iter().find(|(measure, _)| *measure == name).map(|(_, time)| time.as_millis())
    }

    #[test]
    fn a_write_counts_in_the_window_that_it_meets() {
        let (early, met, effect) = (span(10_500, 10_900), span(10_990, 11_002), span(12_000, 12_007));
        let (later, control, quiet) = (span(14_000, 14_099), span(6_500, 6_508), span(3_000, 3_050));
        let of = found(&[early, met, effect, later, control, quiet]);
        assert_eq!((of(LONGEST_BESIDE), of(LONGEST_CONTROL)), (Some(12), Some(8)));
        assert_eq!((of(LONGEST_WITH), of(LONGEST_WITHOUT)), (Some(99), Some(400)));
        assert_eq!((of(CALL), of(LONGEST_CALL)), (Some(10), Some(10)));
    }

    #[test]
    fn a_write_is_put_down_to_a_call_unless_one_without_took_as_long() {
        let both = |beside: u64, control: u64| [span(11_001, 11_001 + beside), span(1_500, 1_500 + control)];
        assert_eq!(found(&both(15, 14))(BECAUSE), Some(15));
        assert_eq!(found(&both(15, 15))(BECAUSE), Some(0));
        assert_eq!(found(&[span(11_001, 11_020)])(BECAUSE), None, "without a control nobody knows");
    }
}
