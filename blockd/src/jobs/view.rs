//! Jobs as people and scripts see them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::carrier::{RunErrorKind, RunProgress};
use super::job::Job;
use super::record::Totals;

/// A monitor is warned when so much of an objective is used up, in percent.
const EARLY_PERCENT: u64 = 80;

/// How a target of a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// There is no verified point yet, or none that is known of.
    Never,
    /// The last run failed and is tried again, or the last point is too old.
    Behind,
    /// A person is needed.
    Failed,
    /// It was told to pause.
    Paused,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Never => "never",
            Self::Behind => "behind",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::Unknown => "unknown",
        })
    }
}

/// A job and its targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Its definition.
    pub job: Job,
    /// It has no definition: somebody ran it once.
    pub once: bool,
    /// In the order of the definition.
    pub targets: Vec<TargetView>,
}

/// A target of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetView {
    /// Its name.
    pub to: String,
    /// See [`State`].
    pub state: State,
    /// Why it is not `ok`.
    pub reason: Option<String>,
    /// What kind of error the last run ended with.
    pub error_kind: Option<RunErrorKind>,
    /// When the last verified point was cut: milliseconds since 1970, UTC.
    pub last_point_ms: Option<u64>,
    /// The name of its snapshot.
    pub last_snapshot: Option<String>,
    /// The root of its hashes.
    pub last_root: Option<String>,
    /// How old that point is; never less than the truth. `None`: unknown.
    pub lag_ms: Option<u64>,
    /// How old it may become: the objective, or three intervals.
    pub limit_ms: Option<u64>,
    /// When it was verified: milliseconds since 1970, UTC.
    pub last_success_ms: Option<u64>,
    /// Bytes that the last successful run has sent.
    pub shipped_bytes: Option<u64>,
    /// When the first failed run since then ended.
    pub failing_since_ms: Option<u64>,
    /// Failed runs since then.
    pub failures: u32,
    /// When it runs next by itself.
    pub next_try_ms: Option<u64>,
    /// Since the beginning.
    pub totals: Totals,
    /// How far the run is that waits or is under way.
    pub running: Option<RunProgress>,
}

/// How bad something is, for monitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing to do.
    Ok,
    /// Somebody should look.
    Warning,
    /// Somebody must.
    Critical,
}

impl JobView {
    /// How bad a target is: critical when a person is needed, a warning when its last point is too old, soon will be for
    /// a job with an objective, or is unknown after a failed run.
    pub fn severity(&self, target: &TargetView) -> Severity {
        let early_ms = self.job.rpo.map(|rpo| rpo.as_millis() / 100 * EARLY_PERCENT);
        let too_old =
            |limit_ms: Option<u64>| target.lag_ms.zip(limit_ms).is_some_and(|(lag, limit)| lag >= limit);
        match target.state {
            // Whoever ran it once was told.
            _ if self.once => Severity::Ok,
            State::Failed => Severity::Critical,
            State::Paused => Severity::Ok,
            State::Never if target.reason.is_some() => Severity::Warning,
            _ if too_old(early_ms) || too_old(target.limit_ms) => Severity::Warning,
            _ => Severity::Ok,
        }
    }
}

/// A run that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its number within the job.
    pub run: u64,
    /// The target.
    pub to: String,
    /// When it began: milliseconds since 1970, UTC.
    pub began_ms: u64,
    /// How long it took.
    pub duration_ms: u64,
    /// What it brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<super::carrier::RunReport>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<super::carrier::RunError>,
}
