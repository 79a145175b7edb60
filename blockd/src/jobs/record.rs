//! What is on record of a job's target: the last verified point, errors since, counters; and how old the point is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::carrier::{FoundPoint, RunError, RunReport};
use super::clock::Now;

/// Shortest pause before a failed run is tried again, milliseconds.
const BACKOFF_MS_MIN: u64 = 1_000;
/// Longest pause before a failed run is tried again, milliseconds.
pub const BACKOFF_MS_MAX: u64 = 300_000;
/// Longest error message that is kept.
const MESSAGE_CHARS_MAX: usize = 500;

/// An instant as it is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Milliseconds since 1970, UTC.
    pub wall_ms: u64,
    /// Milliseconds since the host started; compared only within one start of the host.
    pub mono_ms: i64,
}

impl Stamp {
    /// After a start of the host only the system's clock can say how long ago it was.
    fn adopt(&mut self, now: Now) {
        let passed = now.wall_ms.saturating_sub(self.wall_ms);
        self.mono_ms = now.mono_ms.saturating_sub(i64::try_from(passed).unwrap_or(i64::MAX));
    }
}

impl From<Now> for Stamp {
    fn from(now: Now) -> Self {
        Self { wall_ms: now.wall_ms, mono_ms: now.mono_ms }
    }
}

impl From<Stamp> for Now {
    fn from(stamp: Stamp) -> Self {
        Self { wall_ms: stamp.wall_ms, mono_ms: stamp.mono_ms }
    }
}

/// A point that the target has verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// When it was cut: milliseconds since 1970, UTC.
    pub point_ms: u64,
    /// The snapshot's name.
    pub snapshot: String,
    /// Its root.
    pub root: Option<String>,
    /// It is known to have been at least so old …
    pub age_ms: u64,
    /// … at that time.
    pub at: Stamp,
}

impl Point {
    /// How old it is, never less than the truth: the system's clock may have been set back since, so what is known from
    /// the other clock counts as well.
    pub fn lag_ms(&self, now: Now) -> u64 {
        let by_wall = now.wall_ms.saturating_sub(self.point_ms);
        by_wall.max(self.age_ms.saturating_add(now.since(self.at.into())))
    }

    /// Writes down how old it is now.
    fn note_age(&mut self, now: Now) {
        (self.age_ms, self.at) = (self.lag_ms(now), now.into());
    }

    /// After a start of the host the numbers of the old monotonic clock mean nothing.
    fn adopt(&mut self, now: Now) {
        let asleep_ms = now.wall_ms.saturating_sub(self.at.wall_ms);
        (self.age_ms, self.at) = (self.age_ms.saturating_add(asleep_ms), now.into());
    }
}

/// What was done since the beginning, or since the record was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names say it; see RunReport")]
pub struct Totals {
    pub runs: u64,
    pub failed: u64,
    pub bytes_changed: u64,
    pub bytes_sent: u64,
    pub bytes_zero: u64,
    pub bytes_deduped: u64,
    pub bytes_compressed_saved: u64,
}

/// A target of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetRecord {
    /// The last point that it has.
    pub point: Option<Point>,
    /// When it was verified: milliseconds since 1970, UTC.
    pub success_ms: Option<u64>,
    /// Bytes that the last successful run has sent.
    pub shipped_bytes: Option<u64>,
    /// When the last run began.
    pub began: Option<Stamp>,
    /// A pause or a stop has ended the last run: it is still due.
    pub interrupted: bool,
    /// When the first run since the last success began.
    pub trying_since: Option<Stamp>,
    /// Why the last run failed; `None`: it did not.
    pub error: Option<RunError>,
    /// When the first of the failed runs since the last success ended: milliseconds since 1970, UTC.
    pub failing_since_ms: Option<u64>,
    /// Failed runs since the last success.
    pub failures: u32,
    /// See [`Totals`].
    pub totals: Totals,
}

/// What is written down of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobState {
    /// Which start of the host the monotonic times belong to.
    pub boot: String,
    /// The number of the next run.
    pub next_run: u64,
    /// A job of the configuration file that was paused by hand.
    pub paused: bool,
    /// When the job was made: its calendar counts from there until it has run.
    pub added: Option<Stamp>,
    /// Its volumes, for one that ran only once.
    pub volumes: Vec<String>,
    /// By the target's name.
    pub targets: BTreeMap<String, TargetRecord>,
}

impl TargetRecord {
    /// A run begins.
    pub fn begin(&mut self, now: Now) {
        self.began = Some(now.into());
        self.interrupted = false;
        self.trying_since.get_or_insert(now.into());
    }

    /// A run has succeeded. `cut`: when its snapshot was cut, if it cut one; otherwise the point may be as old as the
    /// first attempt since the last success.
    pub fn succeed(&mut self, report: &RunReport, cut: Option<Now>, now: Now) {
        let earliest = cut.or(self.trying_since.map(Into::into)).unwrap_or(now);
        let at = Stamp { wall_ms: now.wall_ms, mono_ms: earliest.mono_ms };
        let mut point = Point {
            point_ms: report.point_ms,
            snapshot: report.snapshot.clone(),
            root: report.root.clone(),
            age_ms: 0,
            at,
        };
        point.note_age(now);
        self.point = Some(point);
        self.success_ms = Some(now.wall_ms);
        self.shipped_bytes = Some(report.bytes_sent);
        (self.trying_since, self.error, self.failing_since_ms, self.failures) = (None, None, None, 0);
        self.totals.add(report);
    }

    /// A run has failed.
    pub fn fail(&mut self, mut error: RunError, now: Now) {
        if let Some((end, _)) = error.message.char_indices().nth(MESSAGE_CHARS_MAX) {
            error.message.truncate(end);
        }
        self.error = Some(error);
        self.failing_since_ms.get_or_insert(now.wall_ms);
        self.failures = self.failures.saturating_add(1);
        self.totals.runs += 1;
        self.totals.failed += 1;
    }

    /// The target knows of a point although nothing is on record here.
    pub fn find(&mut self, found: FoundPoint, now: Now) {
        if self.point.is_none() {
            let FoundPoint { point_ms, snapshot, root } = found;
            let age_ms = now.wall_ms.saturating_sub(point_ms);
            self.point = Some(Point { point_ms, snapshot, root, age_ms, at: now.into() });
        }
    }

    /// How long to wait before the next try; `None`: the last run was all right. `seed` spreads targets that became
    /// unreachable together.
    pub fn backoff_ms(&self, seed: u64) -> Option<u64> {
        let error = self.error.as_ref()?;
        let doublings = self.failures.saturating_sub(1).min(20);
        let pause = (BACKOFF_MS_MIN << doublings).min(BACKOFF_MS_MAX);
        // Where time does not heal, somebody may have: looking now and then is enough.
        let pause = if error.retry { pause } else { BACKOFF_MS_MAX };
        Some(pause - (seed ^ u64::from(self.failures)) % (pause / 5))
    }
}

impl Totals {
    fn add(&mut self, report: &RunReport) {
        self.runs += 1;
        self.bytes_changed += report.bytes_changed;
        self.bytes_sent += report.bytes_sent;
        self.bytes_zero += report.bytes_zero;
        self.bytes_deduped += report.bytes_deduped;
        self.bytes_compressed_saved += report.bytes_compressed_saved;
    }
}

impl JobState {
    /// Makes what was read fit for this run of the host.
    pub fn adopt(&mut self, now: Now, boot: &str) {
        if !boot.is_empty() && self.boot == boot {
            return;
        }
        boot.clone_into(&mut self.boot);
        for target in self.targets.values_mut() {
            if let Some(point) = &mut target.point {
                point.adopt(now);
            }
            [&mut target.began, &mut target.trying_since]
                .into_iter()
                .flatten()
                .for_each(|stamp| stamp.adopt(now));
        }
        self.added.iter_mut().for_each(|stamp| stamp.adopt(now));
    }

    /// To be called before it is written.
    pub fn note_ages(&mut self, now: Now) {
        for point in self.targets.values_mut().filter_map(|target| target.point.as_mut()) {
            point.note_age(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::carrier::RunErrorKind;
    use super::*;

    fn at(wall_ms: u64, mono_ms: i64) -> Now {
        Now { wall_ms, mono_ms }
    }

    fn report(point_ms: u64) -> RunReport {
        RunReport { point_ms, snapshot: "s".to_owned(), bytes_sent: 7, ..RunReport::default() }
    }

    #[test]
    fn back_off_doubles_up_to_five_minutes() {
        let mut record = TargetRecord::default();
        assert_eq!(record.backoff_ms(0), None);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            record.fail(RunError::new(RunErrorKind::Unreachable, "link down"), at(0, 0));
            pauses.push(record.backoff_ms(17).unwrap());
        }
        for (number, &pause) in pauses.iter().enumerate() {
            let full = (1000u64 << number).min(300_000);
            assert!(pause <= full && pause >= full / 5 * 4, "{number}: {pause}");
        }
        record.fail(RunError::new(RunErrorKind::Refused, "no"), at(0, 0));
        assert!(record.backoff_ms(17).unwrap() >= 240_000);
        record.succeed(&report(1), None, at(2, 2));
        assert_eq!((record.backoff_ms(17), record.failures, record.totals.failed), (None, 0, 13));
    }

    #[test]
    fn an_interrupted_transfer_is_as_old_as_its_first_attempt() {
        let mut record = TargetRecord::default();
        record.begin(at(1_000_000, 0));
        record.fail(RunError::new(RunErrorKind::Unreachable, "x".repeat(9999)), at(1_001_000, 1_000));
        // The clock was set back meanwhile: the point seems to be of the future.
        record.begin(at(500_000, 60_000));
        record.succeed(&report(1_000_100), None, at(510_000, 70_000));
        assert_eq!(record.point.as_ref().unwrap().lag_ms(at(510_000, 70_000)), 70_000);
    }

    #[test]
    fn another_start_of_the_host_is_no_reason_to_look_younger() {
        let mut record = TargetRecord::default();
        record.begin(at(1_000_000, 0));
        record.succeed(&report(1_000_000), Some(at(1_000_000, 0)), at(1_010_000, 10_000));
        let mut state = JobState { boot: "one".to_owned(), ..JobState::default() };
        state.targets.insert("B".to_owned(), record);
        state.note_ages(at(1_050_000, 50_000));
        let lag = |state: &JobState, now| state.targets["B"].point.as_ref().unwrap().lag_ms(now);
        let mut same = state.clone();
        same.adopt(at(900_000, 90_000), "one");
        assert_eq!(lag(&same, at(900_000, 90_000)), 90_000, "the clock that goes on knows");
        let mut other = state.clone();
        other.adopt(at(1_100_000, 5), "two");
        assert_eq!(lag(&other, at(1_100_000, 5)), 100_000);
        let mut back = state;
        back.adopt(at(1_000, 5), "two");
        assert_eq!(lag(&back, at(1_000, 5)), 50_000, "what was known before");
        assert_eq!(lag(&back, at(2_000, 1_005)), 51_000);
    }

    proptest! {
        /// Any history of runs and set clocks: the lag is at least the time since the cut.
        #[test]
        fn the_lag_is_never_less_than_the_truth(
            steps in proptest::collection::vec((0u8..6, 0u64..100_000, -200_000i64..200_000), 1..40)
        ) {
            let mut record = TargetRecord::default();
            let mut now = at(10_000_000, 0);
            // When the snapshot that is under way was cut, and the one that arrived last: the truth.
            let (mut open, mut arrived) = (None::<Now>, None::<Now>);
            for (step, passes, set) in steps {
                now.mono_ms += i64::try_from(passes).unwrap();
                now.wall_ms += passes;
                match step {
                    0 => now.wall_ms = now.wall_ms.saturating_add_signed(set),
                    1 | 2 => {
                        record.begin(now);
                        let fresh = open.is_none();
                        let cut = *open.get_or_insert(now);
                        if step == 1 {
                            record.fail(RunError::new(RunErrorKind::Unreachable, "down"), now);
                        } else {
                            record.succeed(&report(cut.wall_ms), fresh.then_some(cut), now);
                            arrived = open.take();
                        }
                    }
                    3 => {
                        let mut state = JobState { boot: "a".to_owned(), ..JobState::default() };
                        state.targets.insert("B".to_owned(), record);
                        state.note_ages(now);
                        let text = serde_json::to_string(&state).unwrap();
                        let mut state: JobState = serde_json::from_str(&text).unwrap();
                        state.adopt(now, "a");
                        record = state.targets.remove("B").unwrap();
                    }
                    _ => {}
                }
                if let (Some(point), Some(cut)) = (&record.point, arrived) {
                    prop_assert!(point.lag_ms(now) >= now.since(cut), "{point:?} at {now:?}, cut {cut:?}");
                }
            }
        }
    }
}
