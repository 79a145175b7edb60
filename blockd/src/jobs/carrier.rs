//! Who carries a run out: the transfer itself is behind this trait.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::clock::{Clock, Now};
use super::keep::Keep;
use super::together::{Cut, Together};

/// A future that a trait object gives.
pub type Carrying<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Carries runs out, several at once, one at a time for a job and target.
pub trait Carrier: Send + Sync {
    /// Brings the volumes to the target: cuts a snapshot, or goes on with one that was interrupted, ships it, has it
    /// verified. Looks at the watch's rate and ends soon when it is cancelled; what the target has confirmed by then is
    /// not sent again by the next run. Dropped, it stops at once.
    ///
    /// A retry must not leave one more snapshot each time: an unfinished one is taken up, or removed.
    fn run(&self, order: RunOrder, watch: Arc<RunWatch>) -> Carrying<Result<RunReport, RunError>>;

    /// The newest point that the target has verified, as the target itself says; asked when nothing is on record here.
    /// `None`: it has none, or cannot be asked.
    fn last_point(&self, volumes: Vec<String>, to: String) -> Carrying<Option<FoundPoint>> {
        drop((volumes, to));
        Box::pin(std::future::ready(None))
    }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct RunOrder {
    /// Counts up within a job.
    pub run_id: u64,
    /// The job's name.
    pub job: String,
    /// The volumes: one cut.
    pub volumes: Vec<String>,
    /// The target's name.
    pub to: String,
    /// What a new snapshot is to be called, in each volume.
    pub snapshot: String,
    /// What is kept here; the runner sees to it.
    pub keep: Keep,
    /// What the target is to keep; the carrier tells it.
    pub keep_remote: Keep,
    /// The runs to the job's other targets that begin at the same time.
    pub together: Arc<Together>,
}

/// A run that succeeded: the target has this point, verified and durable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunReport {
    /// When the snapshot was cut: milliseconds since 1970, UTC.
    pub point_ms: u64,
    /// The snapshot's name, the same in each volume.
    pub snapshot: String,
    /// The root of its hashes, for one volume; the volumes' roots with spaces between for several.
    pub root: Option<String>,
    /// Bytes that differ from the last common snapshot.
    pub bytes_changed: u64,
    /// Bytes that went over the wire.
    pub bytes_sent: u64,
    /// Bytes of zeroes that were told, not sent.
    pub bytes_zero: u64,
    /// Bytes that the target had already.
    pub bytes_deduped: u64,
    /// Bytes that compression has saved.
    pub bytes_compressed_saved: u64,
    /// Of the bytes that differ, those that a run to another target has read for this one, too.
    pub bytes_shared: u64,
}

/// A point that a target has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundPoint {
    /// When it was cut: milliseconds since 1970, UTC.
    pub point_ms: u64,
    /// The snapshot's name.
    pub snapshot: String,
    /// Its root.
    pub root: Option<String>,
}

/// A run that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RunError {
    /// What kind, for programs.
    pub kind: RunErrorKind,
    /// Why, one line.
    pub message: String,
    /// Time alone may heal it; otherwise a person is needed.
    pub retry: bool,
}

/// Kinds of failed runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunErrorKind {
    /// The target does not answer, or the link broke.
    Unreachable,
    /// One side may not or will not.
    Refused,
    /// A volume or a host that the job names does not exist.
    NotFound,
    /// One side is full.
    NoSpace,
    /// What arrived is not what was sent, or what is there is not what should be.
    Verification,
    /// Something is in use for now.
    Busy,
    /// One side is stopping.
    Stopping,
    /// It was told to end.
    Cancelled,
    /// A medium failed.
    Io,
    /// What is stored is damaged.
    Damaged,
    /// A kind of a later version.
    #[serde(other)]
    Unknown,
}

impl RunError {
    /// An error of that kind; whether time heals it follows from the kind.
    pub fn new(kind: RunErrorKind, message: impl Into<String>) -> Self {
        use RunErrorKind as Kind;
        let retry = matches!(kind, Kind::Unreachable | Kind::Busy | Kind::Stopping | Kind::Cancelled);
        Self { kind, message: message.into(), retry }
    }
}

impl fmt::Display for RunErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::NotFound => "not found",
            Self::NoSpace => "no space",
            Self::Verification => "verification failed",
            Self::Busy => "busy",
            Self::Stopping => "stopping",
            Self::Cancelled => "cancelled",
            Self::Io => "i/o error",
            Self::Damaged => "damaged",
            Self::Unknown => "unknown",
        })
    }
}

/// What a run is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// For its turn.
    #[default]
    Waiting,
    /// To the target.
    Connecting,
    /// The snapshot.
    Cutting,
    /// What differs.
    Comparing,
    /// The data.
    Sending,
    /// The target compares.
    Verifying,
    /// The target makes it visible.
    Publishing,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::Cutting => "cutting",
            Self::Comparing => "comparing",
            Self::Sending => "sending",
            Self::Verifying => "verifying",
            Self::Publishing => "publishing",
        })
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names say it; see RunReport")]
pub struct RunProgress {
    pub phase: Phase,
    /// Bytes to be dealt with, once that is known.
    pub bytes_total: u64,
    /// Bytes dealt with, in whatever way.
    pub bytes_done: u64,
    pub bytes_sent: u64,
    pub bytes_zero: u64,
    pub bytes_deduped: u64,
    pub bytes_compressed_saved: u64,
}

/// How a run ended.
pub type Outcome = Result<RunReport, RunError>;

/// What carrier, runner and onlookers of one run share.
pub struct RunWatch {
    progress: watch::Sender<RunProgress>,
    outcome: watch::Sender<Option<Outcome>>,
    cancelled: watch::Sender<bool>,
    /// Bytes a second; 0: as fast as it goes.
    rate: AtomicU64,
    clock: Arc<dyn Clock>,
    cut: Mutex<Option<Now>>,
}

impl RunWatch {
    /// For a run that has not begun.
    pub fn new(rate: Option<u64>, clock: Arc<dyn Clock>) -> Self {
        Self {
            progress: watch::Sender::new(RunProgress::default()),
            outcome: watch::Sender::new(None),
            cancelled: watch::Sender::new(false),
            rate: AtomicU64::new(rate.unwrap_or(0)),
            clock,
            cut: Mutex::new(None),
        }
    }

    /// How fast it may send, bytes a second; may change at any time.
    pub fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|&rate| rate > 0)
    }

    /// Changes that, at once.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.rate.store(rate.unwrap_or(0), Ordering::Relaxed);
    }

    /// Another phase begins.
    pub fn phase(&self, phase: Phase) {
        self.update(|progress| progress.phase = phase);
    }

    /// Tells how far it is.
    pub fn update(&self, change: impl FnOnce(&mut RunProgress)) {
        self.progress.send_modify(change);
    }

    /// To be called just before a snapshot is cut: from then on the point grows old. A run that goes on with an earlier
    /// snapshot does not call it.
    pub fn about_to_cut(&self) {
        // A panic elsewhere leaves it whole: it is set in one step.
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.clock.now());
        self.phase(Phase::Cutting);
    }

    /// A cut of the snapshot that this run is about to bring, for the runs to other targets.
    pub fn cut(&self, snapshot: String) -> Option<Cut> {
        self.cut_at().map(|at| Cut { snapshot, at })
    }

    /// Brings what another run has cut, unless that is too long ago.
    pub fn joins(&self, cut: &Cut) -> bool {
        if !cut.is_fresh(self.clock.now()) {
            return false;
        }
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(cut.at);
        true
    }

    /// When that was.
    pub(super) fn cut_at(&self) -> Option<Now> {
        *self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    pub fn progress(&self) -> RunProgress {
        *self.progress.borrow()
    }

    /// Asks the run to end.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Whether it was asked to.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Ends when the run is asked to.
    pub async fn cancelled(&self) {
        let mut cancelled = self.cancelled.subscribe();
        // The sender lives as long as we do: this cannot fail.
        if cancelled.wait_for(|&cancelled| cancelled).await.is_err() {
            tracing::debug!("a run's watch went away");
        }
    }

    /// Tells how it ended.
    pub(super) fn finish(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }

    /// How it ended, when it has.
    pub async fn ended(&self) -> Outcome {
        let mut outcome = self.outcome.subscribe();
        let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone());
        ended.unwrap_or_else(|| Err(RunError::new(RunErrorKind::Stopping, "the daemon is stopping")))
    }
}

/// The carrier of a build that has no peers yet: every run is refused, truthfully.
pub struct NoPeers;

impl Carrier for NoPeers {
    fn run(&self, _order: RunOrder, _watch: Arc<RunWatch>) -> Carrying<Outcome> {
        Box::pin(std::future::ready(Err(RunError::new(RunErrorKind::Refused, "this build has no peers"))))
    }
}
