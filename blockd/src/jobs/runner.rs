//! The one task that owns all jobs: looks who is due, starts runs, takes their ends, answers commands.
//!
//! ```text
//! Jobs (handles) ─ bounded queue ─► Runner ─► ready queue ─► at most RUNS_MAX runs ─► Carrier
//!                                     │  ▲                            │
//!                                   files └──────── how it ended ◄────┘ ─► pruning
//! ```

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{self, JoinSet};

use crate::control::{ControlError, ErrorKind};
use crate::service::Service;

use super::carrier::{Carrier, FoundPoint, Outcome, RunError, RunErrorKind, RunOrder, RunWatch};
use super::clock::{Clock, Now};
use super::desk::{COMMANDS_MAX, Command, Jobs};
use super::entry::Entry;
use super::files::{FileError, JobFiles};
use super::job::{JOBS_MAX, Job};
use super::record::JobState;
use super::schedule::RECHECK_MS;
use super::together::Together;

mod commands;
mod ends;

/// Runs at once, of all jobs: each reads the disk as fast as it may.
pub const RUNS_MAX: usize = 4;
/// Volumes being pruned at once; a job whose turn it is not prunes after its next run.
const PRUNES_MAX: usize = 8;
/// How long runs may take to end when the daemon stops.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// What the runner is made of.
pub struct Setup {
    /// Where the jobs' files are.
    pub files: JobFiles,
    /// Jobs of the configuration file.
    pub configured: Vec<Job>,
    /// For pruning, and to tell of events.
    pub service: Service,
    /// Who carries runs out.
    pub carrier: Arc<dyn Carrier>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// A run that waits for its turn.
struct Waiting {
    job: String,
    serial: u64,
    to: String,
    watch: Arc<RunWatch>,
    together: Arc<Together>,
}

/// A run under way.
struct Running {
    waiting: Waiting,
    run: u64,
    began: Now,
}

struct Runner {
    files: JobFiles,
    service: Service,
    carrier: Arc<dyn Carrier>,
    clock: Arc<dyn Clock>,
    commands: mpsc::Receiver<Command>,
    entries: BTreeMap<String, Entry>,
    serials: u64,
    /// Runs that began together, so far.
    groups: u64,
    /// In order of arrival; at most one for each job's target.
    ready: VecDeque<Waiting>,
    running: HashMap<task::Id, Running>,
    runs: JoinSet<Outcome>,
    prunes: JoinSet<()>,
    found: JoinSet<(String, String, Option<FoundPoint>)>,
    /// The jobs' file is damaged: it is not written.
    damaged: Option<String>,
    /// The last write of a state failed.
    unwritten: Option<String>,
    stopping: bool,
}

/// Reads the jobs' files and begins, in a tokio runtime.
pub fn start(setup: Setup) -> Jobs {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let jobs = Jobs { commands: sender, files: setup.files.clone() };
    let mut runner = Runner::new(setup, commands);
    tokio::spawn(async move {
        runner.ask_targets();
        runner.work().await;
    });
    jobs
}

impl Runner {
    fn new(setup: Setup, commands: mpsc::Receiver<Command>) -> Self {
        let Setup { files, configured, service, carrier, clock } = setup;
        let mut runner = Self {
            files,
            service,
            carrier,
            clock,
            commands,
            entries: BTreeMap::new(),
            serials: 0,
            groups: 0,
            ready: VecDeque::new(),
            running: HashMap::new(),
            runs: JoinSet::new(),
            prunes: JoinSet::new(),
            found: JoinSet::new(),
            damaged: None,
            unwritten: None,
            stopping: false,
        };
        runner.load(configured);
        runner
    }

    /// Those of the configuration, those on disk, those that only have a record.
    fn load(&mut self, configured: Vec<Job>) {
        let stored = self.files.read_jobs().unwrap_or_else(|error| {
            tracing::error!(%error, "the jobs' file cannot be used; its jobs do not run");
            self.service.events.record("jobs_damaged", "", error.to_string());
            self.damaged = Some(error.to_string());
            Vec::new()
        });
        for job in configured.into_iter().chain(stored) {
            if self.entries.contains_key(&job.name) {
                tracing::warn!(job = job.name, "is defined twice; the configuration file's counts");
            } else {
                let state = self.read_state(&job.name).unwrap_or_default();
                self.adopt(job, false, state);
            }
        }
        let recorded = self.files.states().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot look for what is on record of jobs");
            Vec::new()
        });
        for name in recorded {
            // With a damaged file a job that has only a record may be one of those that cannot be read.
            if self.entries.contains_key(&name) || self.entries.len() >= JOBS_MAX {
                continue;
            }
            let Some(state) = self.read_state(&name) else { continue };
            let job = Job::new(&name, state.volumes.clone(), state.targets.keys().cloned().collect());
            match job.check() {
                Ok(()) => self.adopt(job, true, state),
                Err(why) => tracing::warn!(name, why, "what is on record of a job cannot be used"),
            }
        }
    }

    fn read_state(&mut self, job: &str) -> Option<JobState> {
        self.files.read_state(job).unwrap_or_else(|error: FileError| {
            tracing::error!(%error, "what is on record of a job is lost: its lag is unknown until its next run");
            self.service.events.record("job_record_lost", job, error.to_string());
            None
        })
    }

    fn adopt(&mut self, job: Job, once: bool, mut state: JobState) {
        let now = self.clock.now();
        state.adopt(now, &self.clock.boot());
        self.serials += 1;
        self.entries.insert(job.name.clone(), Entry::new(job, once, state, now, self.serials));
    }

    /// Where nothing is on record, the target may know.
    fn ask_targets(&mut self) {
        for (name, entry) in &self.entries {
            for (to, record) in &entry.state.targets {
                if record.point.is_none() {
                    let asking = self.carrier.last_point(entry.job.volumes.clone(), to.clone());
                    let (name, to) = (name.clone(), to.clone());
                    self.found.spawn(async move { (name, to, asking.await) });
                }
            }
        }
    }

    async fn work(&mut self) {
        loop {
            let wait = self.start_due();
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return self.stop().await,
                    Some(Command::Stop(done)) => {
                        self.stop().await;
                        return tell(done, ());
                    }
                    Some(command) => self.command(command).await,
                },
                Some(ended) = self.runs.join_next_with_id(), if !self.runs.is_empty() => self.ended(ended).await,
                Some(pruned) = self.prunes.join_next(), if !self.prunes.is_empty() => {
                    if let Err(error) = pruned {
                        tracing::error!(%error, "pruning has panicked");
                    }
                }
                Some(found) = self.found.join_next(), if !self.found.is_empty() => self.point_found(found).await,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Starts what is due; how long until something is.
    fn start_due(&mut self) -> Duration {
        let now = self.clock.now();
        let (mut due, mut wait_ms) = (Vec::new(), RECHECK_MS);
        for (name, entry) in &mut self.entries {
            let (targets, wait) = entry.due(now);
            wait_ms = wait_ms.min(wait.unwrap_or(RECHECK_MS).max(1));
            if !targets.is_empty() {
                due.push((name.clone(), targets));
            }
        }
        for (name, targets) in due {
            self.enqueue(&name, &targets);
        }
        self.start_ready();
        self.tell_news();
        Duration::from_millis(wait_ms)
    }

    /// The targets' runs that wait or are under way, or new ones that wait; the new ones begin together.
    fn enqueue(&mut self, name: &str, targets: &[String]) -> Vec<Arc<RunWatch>> {
        let entry = self.entries.get_mut(name).expect("who is asked for exists");
        let (rate, serial) = (entry.job.rate, entry.serial);
        let new = targets.iter().filter(|to| entry.plan(to).run.is_none()).count();
        self.groups += 1;
        let together = Arc::new(Together::new(self.groups, new));
        let mut watches = Vec::new();
        for to in targets {
            if let Some(watch) = &entry.plan(to).run {
                watches.push(Arc::clone(watch));
                continue;
            }
            let watch = Arc::new(RunWatch::new(rate, Arc::clone(&self.clock)));
            entry.plan(to).run = Some(Arc::clone(&watch));
            watches.push(Arc::clone(&watch));
            let (job, to, together) = (name.to_owned(), to.clone(), Arc::clone(&together));
            self.ready.push_back(Waiting { job, serial, to, watch, together });
        }
        watches
    }

    fn start_ready(&mut self) {
        while self.runs.len() < RUNS_MAX {
            let running = &self.running;
            // A job that was deleted and made anew waits for the end of its predecessor's run.
            let is_free = |waiting: &Waiting| {
                let mut others = running.values().map(|running| &running.waiting);
                !others.any(|other| other.job == waiting.job && other.to == waiting.to)
            };
            let Some(index) = self.ready.iter().position(is_free) else { return };
            let waiting = self.ready.remove(index).expect("found");
            self.start(waiting);
        }
    }

    fn start(&mut self, waiting: Waiting) {
        let now = self.clock.now();
        let Some(entry) = self.entries.get_mut(&waiting.job).filter(|entry| entry.serial == waiting.serial)
        else {
            return waiting.watch.finish(Err(cancelled()));
        };
        let run = entry.begin(&waiting.to, now);
        let order = RunOrder {
            run_id: run,
            job: waiting.job.clone(),
            volumes: entry.job.volumes.clone(),
            to: waiting.to.clone(),
            snapshot: entry.snapshot(now),
            keep: entry.job.keep,
            keep_remote: entry.job.keep_there(),
            together: Arc::clone(&waiting.together),
        };
        let carrying = self.carrier.run(order, Arc::clone(&waiting.watch));
        let id = self.runs.spawn(carrying).id();
        self.running.insert(id, Running { waiting, run, began: now });
    }

    /// Ends all runs, those that do not end in time without asking them again.
    async fn stop(&mut self) {
        self.commands.close();
        self.stopping = true;
        self.running.values().for_each(|running| running.waiting.watch.cancel());
        for waiting in self.ready.drain(..) {
            waiting.watch.finish(Err(RunError::new(RunErrorKind::Stopping, "the daemon is stopping")));
        }
        let ending = async {
            while let Some(ended) = self.runs.join_next_with_id().await {
                self.ended(ended).await;
            }
        };
        if tokio::time::timeout(STOP_TIME_MAX, ending).await.is_err() {
            tracing::warn!(runs = self.runs.len(), "runs did not end in time and are cut off");
            self.runs.shutdown().await;
        }
        self.found.shutdown().await;
        self.prunes.shutdown().await;
    }
}

fn cancelled() -> RunError {
    RunError::new(RunErrorKind::Cancelled, "it was told to end")
}

fn not_found(name: &str) -> ControlError {
    ControlError::new(ErrorKind::NotFound, format!("there is no job {name}"))
}

/// Whoever asked may have gone: then nobody wants to know.
fn tell<T>(reply: tokio::sync::oneshot::Sender<T>, answer: T) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for the answer any more");
    }
}

/// Runs something that blocks off the runtime's thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, String> {
    let done = task::spawn_blocking(work).await.map_err(|error| error.to_string())?;
    done.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
