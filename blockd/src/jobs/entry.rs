//! One job at work: its definition, what is on record, and when each target is due. No I/O, time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::carrier::{RunError, RunWatch};
use super::clock::Now;
use super::job::{Job, TARGETS_MAX, snapshot_name};
use super::record::{JobState, TargetRecord};
use super::schedule::{Anchor, Next, Schedule, seed_of};
use super::view::{JobView, State, TargetView};

/// Intervals without a new point before a job without an objective counts as behind.
const INTERVALS_MAX: u64 = 3;

/// A job as the runner has it.
pub(super) struct Entry {
    pub(super) job: Job,
    /// Ran once, without a definition: it has no schedule, and its record protects the common base.
    pub(super) once: bool,
    pub(super) state: JobState,
    pub(super) plans: BTreeMap<String, Plan>,
    /// Another job of the same name is another one.
    pub(super) serial: u64,
    /// Spreads jobs; the same for all targets, which are to begin together.
    seed: u64,
    /// What the last snapshot is named after.
    stamp_ms: u64,
}

/// When a target is due, and what it is doing.
pub(super) struct Plan {
    anchor: Anchor,
    /// On the monotonic clock: when a failed run is tried again.
    retry_at_ms: Option<i64>,
    /// A run that waits for its turn, or is under way.
    pub(super) run: Option<Arc<RunWatch>>,
    seed: u64,
    /// What monitors were told last.
    pub(super) told: State,
}

fn later(now: Now, by_ms: u64) -> i64 {
    now.mono_ms.saturating_add(i64::try_from(by_ms).unwrap_or(i64::MAX))
}

impl Entry {
    pub(super) fn new(job: Job, once: bool, mut state: JobState, now: Now, serial: u64) -> Self {
        // What a target had that the job does not go to any more says nothing about the others.
        state.targets.retain(|to, _| job.to.contains(to));
        let seed = seed_of(&job.name);
        let mut entry = Self { job, once, state, plans: BTreeMap::new(), serial, seed, stamp_ms: 0 };
        for to in entry.job.to.clone() {
            let record = entry.state.targets.entry(to.clone()).or_default();
            let seed = seed_of(&format!("{} {to}", entry.job.name));
            // A run that had failed or was ended before a restart is tried again, whatever the calendar says.
            let retry = if record.interrupted { Some(0) } else { record.backoff_ms(seed) };
            let since = record.began.or(entry.state.added).map_or(now, Into::into);
            let anchor = Anchor { since, ran: record.began.is_some() };
            let retry_at_ms = retry.map(|pause| later(now, pause));
            entry.plans.insert(to, Plan { anchor, retry_at_ms, run: None, seed, told: State::Never });
        }
        for to in entry.job.to.clone() {
            let told = entry.judge(&to, now).0;
            entry.plan(&to).told = told;
        }
        entry
    }

    pub(super) fn plan(&mut self, to: &str) -> &mut Plan {
        self.plans.get_mut(to).expect("every target of the job has a plan")
    }

    pub(super) fn record(&mut self, to: &str) -> &mut TargetRecord {
        self.state.targets.entry(to.to_owned()).or_default()
    }

    /// Ran once and to no end: there is nothing to remember of it.
    pub(super) fn is_void(&self) -> bool {
        let nothing = self.state.targets.values().all(|record| record.point.is_none());
        self.once && nothing && self.plans.values().all(|plan| plan.run.is_none())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.job.paused || self.state.paused
    }

    /// When a target runs next by itself.
    pub(super) fn next(&mut self, to: &str, now: Now) -> Next {
        if self.is_paused() {
            return Next::Never;
        }
        let plan = self.plans.get_mut(to).expect("every target of the job has a plan");
        plan.anchor.follow(now);
        if plan.run.is_some() || self.job.schedule == Schedule::Manual {
            return Next::Never;
        }
        match plan.retry_at_ms {
            Some(at) if at <= now.mono_ms => Next::Due,
            Some(at) => Next::In(u64::try_from(at - now.mono_ms).unwrap_or(0)),
            None => self.job.schedule.next_after(plan.anchor, now, self.seed),
        }
    }

    /// The targets whose turn it is, which begin together, and how long until that of others is. Targets that have come
    /// out of step, by a failure or a slow link, are taken along: what is brought together is cut and read once.
    pub(super) fn due(&mut self, now: Now) -> (Vec<String>, Option<u64>) {
        let targets: Vec<(String, Next)> =
            self.job.to.clone().into_iter().map(|to| (to.clone(), self.next(&to, now))).collect();
        let in_step = |to: &str| self.plans.get(to).is_some_and(|plan| plan.retry_at_ms.is_none());
        // One that is only tried again is none to be followed.
        let leads = targets.iter().any(|(to, next)| *next == Next::Due && in_step(to));
        let interval = self.job.schedule.interval_ms(now.wall_ms).filter(|_| leads);
        let (mut due, mut wait) = (Vec::new(), None::<u64>);
        for (to, next) in &targets {
            match next {
                Next::Due => due.push(to.clone()),
                Next::In(ms) if in_step(to) && interval.is_some_and(|interval| *ms <= interval / 2) => {
                    due.push(to.clone());
                }
                Next::In(ms) => wait = Some(wait.map_or(*ms, |wait| wait.min(*ms))),
                Next::Never => {}
            }
        }
        (due, wait)
    }

    /// A run begins; its number.
    pub(super) fn begin(&mut self, to: &str, now: Now) -> u64 {
        self.record(to).begin(now);
        let plan = self.plan(to);
        plan.anchor = Anchor { since: now, ran: true };
        plan.retry_at_ms = None;
        self.state.next_run += 1;
        self.state.next_run
    }

    /// What a new snapshot is called: runs to several targets begin in one millisecond, and need names of their own.
    pub(super) fn snapshot(&mut self, now: Now) -> String {
        let is_taken =
            (self.stamp_ms.saturating_sub(TARGETS_MAX as u64)..=self.stamp_ms).contains(&now.wall_ms);
        self.stamp_ms = if is_taken { self.stamp_ms + 1 } else { now.wall_ms };
        snapshot_name(&self.job.name, self.stamp_ms)
    }

    /// A run was ended by a pause or a stop, not for a reason of its own: it is due afterwards, or after the next start.
    pub(super) fn interrupt(&mut self, to: &str, now: Now) {
        self.record(to).interrupted = true;
        self.plan(to).retry_at_ms = Some(now.mono_ms);
    }

    /// A run has failed.
    pub(super) fn fail(&mut self, to: &str, error: RunError, now: Now) {
        let seed = self.plan(to).seed;
        self.record(to).fail(error, now);
        let pause = self.record(to).backoff_ms(seed).unwrap_or(0);
        self.plan(to).retry_at_ms = Some(later(now, pause));
    }

    /// How old the last point may become before the job counts as behind.
    fn limit_ms(&self, to: &str) -> Option<u64> {
        if let Some(rpo) = self.job.rpo {
            return Some(rpo.as_millis());
        }
        match &self.job.schedule {
            Schedule::Manual => None,
            Schedule::Every(span) => Some(INTERVALS_MAX * span.as_millis()),
            Schedule::Calendar(calendar) => {
                // So many times of the calendar after the point: nights and weekends are no reason to worry.
                let point_ms = self.state.targets.get(to)?.point.as_ref()?.point_ms;
                let later = (0..INTERVALS_MAX).try_fold(point_ms, |ms, _| calendar.next_after(ms))?;
                Some(later - point_ms)
            }
        }
    }

    /// How a target is, and why.
    fn judge(&self, to: &str, now: Now) -> (State, Option<String>) {
        let Some(record) = self.state.targets.get(to) else { return (State::Never, None) };
        let error = record.error.as_ref();
        let reason = error.map(|error| error.message.clone());
        if self.is_paused() {
            return (State::Paused, reason);
        }
        if error.is_some_and(|error| !error.retry) {
            return (State::Failed, reason);
        }
        let Some(point) = &record.point else { return (State::Never, reason) };
        if error.is_some() {
            return (State::Behind, reason);
        }
        let lag_ms = point.lag_ms(now);
        match self.limit_ms(to) {
            Some(limit_ms) if lag_ms > limit_ms => {
                (State::Behind, Some(format!("no new point for {} s", lag_ms / 1000)))
            }
            _ => (State::Ok, None),
        }
    }

    /// A target's new state and its reason, if it is not the one that was told last.
    pub(super) fn news(&mut self, to: &str, now: Now) -> Option<(State, String)> {
        let (state, reason) = self.judge(to, now);
        let told = std::mem::replace(&mut self.plan(to).told, state);
        (told != state).then(|| (state, reason.unwrap_or_default()))
    }

    /// For people and scripts.
    pub(super) fn view(&mut self, now: Now) -> JobView {
        let mut job = self.job.clone();
        job.paused = self.is_paused();
        let targets = job.to.clone().iter().map(|to| self.view_target(to, now)).collect();
        JobView { job, once: self.once, targets }
    }

    fn view_target(&mut self, to: &str, now: Now) -> TargetView {
        let next_try_ms = match self.next(to, now) {
            Next::Never => None,
            Next::Due => Some(now.wall_ms),
            Next::In(wait_ms) => Some(now.wall_ms.saturating_add(wait_ms)),
        };
        let (state, reason) = self.judge(to, now);
        let limit_ms = self.limit_ms(to);
        let running = self.plans.get(to).and_then(|plan| plan.run.as_ref()).map(|watch| watch.progress());
        let record = self.state.targets.get(to).cloned().unwrap_or_default();
        let lag_ms = record.point.as_ref().map(|point| point.lag_ms(now));
        TargetView {
            to: to.to_owned(),
            state,
            reason,
            error_kind: record.error.as_ref().map(|error| error.kind),
            last_point_ms: record.point.as_ref().map(|point| point.point_ms),
            last_snapshot: record.point.as_ref().map(|point| point.snapshot.clone()),
            last_root: record.point.and_then(|point| point.root),
            lag_ms,
            limit_ms,
            last_success_ms: record.success_ms,
            shipped_bytes: record.shipped_bytes,
            failing_since_ms: record.failing_since_ms,
            failures: record.failures,
            next_try_ms,
            totals: record.totals,
            running,
        }
    }
}
