//! Where jobs are asked for: a handle to the runner, which owns them all.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::control::{ControlError, ErrorKind};

use super::carrier::RunWatch;
use super::files::JobFiles;
use super::job::Job;
use super::keep::Keep;
use super::prune::Guard;
use super::span::Span;
use super::view::{JobView, RunRecord};

/// Commands that wait for the runner; who has one more waits.
pub(super) const COMMANDS_MAX: usize = 64;

pub(super) type Reply<T> = oneshot::Sender<Result<T, ControlError>>;

/// What the runner is told.
pub(super) enum Command {
    List(Reply<Overview>),
    Show(String, Reply<JobView>),
    Add(Box<Job>, Reply<()>),
    Once(Box<Job>, Reply<Vec<Started>>),
    Run(String, Reply<Vec<Started>>),
    Cancel(String, Reply<()>),
    Pause(String, bool, Reply<()>),
    Change(String, Change, Reply<()>),
    Delete(String, Reply<()>),
    Guards(String, Reply<Protection>),
    Stop(oneshot::Sender<()>),
}

/// All jobs.
#[derive(Clone, Debug)]
pub struct Overview {
    /// By name.
    pub jobs: Vec<JobView>,
    /// What is wrong with the jobs' files, if anything is.
    pub problem: Option<String>,
}

/// A run that was asked for: it waits, or is under way.
#[derive(Clone)]
pub struct Started {
    /// The job's name.
    pub job: String,
    /// The target.
    pub to: String,
    /// Its watch.
    pub watch: Arc<RunWatch>,
}

/// What may change while a job is at work. `None` leaves it as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Bytes a second; `Some(None)`: as fast as it goes.
    pub rate: Option<Option<u64>>,
    /// The objective; `Some(None)`: none.
    pub rpo: Option<Option<Span>>,
}

/// What retention must know about a volume.
#[derive(Clone, Debug, Default)]
pub struct Protection {
    /// What must stay because of targets.
    pub guards: Vec<Guard>,
    /// The jobs that have snapshots of it, and their rules.
    pub policies: Vec<(String, Keep)>,
}

/// A handle to the runner; clones are handles to the same one.
#[derive(Clone)]
pub struct Jobs {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) files: JobFiles,
}

fn stopping<E>(_: E) -> ControlError {
    ControlError::new(ErrorKind::Stopping, "the daemon is stopping")
}

/// All of it: errors of each call are those of `ControlError`'s kinds, `Stopping` among them.
impl Jobs {
    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(stopping)?;
        answer.await.map_err(stopping)?
    }

    /// All jobs.
    ///
    /// # Errors
    /// `Stopping`.
    pub async fn list(&self) -> Result<Overview, ControlError> {
        self.ask(Command::List).await
    }

    /// One job.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn show(&self, name: &str) -> Result<JobView, ControlError> {
        self.ask(|reply| Command::Show(name.to_owned(), reply)).await
    }

    /// A job's last runs, oldest first.
    ///
    /// # Errors
    /// `Io`: the file cannot be read.
    pub async fn history(&self, name: &str, count: usize) -> Result<Vec<RunRecord>, ControlError> {
        let (files, name) = (self.files.clone(), name.to_owned());
        let read = tokio::task::spawn_blocking(move || files.read_runs(&name, count)).await;
        let failed = |error: &dyn std::fmt::Display| ControlError::new(ErrorKind::Io, error.to_string());
        read.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    /// A new job; durable when this answers.
    ///
    /// # Errors
    /// `BadValue`, `Exists`, `Refused` (too many), `Damaged` and `Io` (the jobs' file).
    pub async fn add(&self, job: Job) -> Result<(), ControlError> {
        self.ask(|reply| Command::Add(Box::new(job), reply)).await
    }

    /// Runs something once, without a definition. A job of that name with the same volumes and targets is run instead.
    ///
    /// # Errors
    /// As [`Jobs::add`] and [`Jobs::run`].
    pub async fn once(&self, job: Job) -> Result<Vec<Started>, ControlError> {
        self.ask(|reply| Command::Once(Box::new(job), reply)).await
    }

    /// Runs a job now, to all its targets. Runs that are under way are joined.
    ///
    /// # Errors
    /// `NotFound`, `Refused` (paused).
    pub async fn run(&self, name: &str) -> Result<Vec<Started>, ControlError> {
        self.ask(|reply| Command::Run(name.to_owned(), reply)).await
    }

    /// Ends a job's runs; what the targets have confirmed is not sent again.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn cancel(&self, name: &str) -> Result<(), ControlError> {
        self.ask(|reply| Command::Cancel(name.to_owned(), reply)).await
    }

    /// No runs any more, those under way are ended; or goes on.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Io`.
    pub async fn pause(&self, name: &str, paused: bool) -> Result<(), ControlError> {
        self.ask(|reply| Command::Pause(name.to_owned(), paused, reply)).await
    }

    /// Changes a job, also for the runs under way.
    ///
    /// # Errors
    /// `NotFound`, `BadValue`, `Damaged`, `Io`.
    pub async fn change(&self, name: &str, change: Change) -> Result<(), ControlError> {
        self.ask(|reply| Command::Change(name.to_owned(), change, reply)).await
    }

    /// Forgets a job; its runs are ended, its snapshots stay.
    ///
    /// # Errors
    /// `NotFound`, `Refused` (it stands in the configuration), `Damaged`, `Io`.
    pub async fn delete(&self, name: &str) -> Result<(), ControlError> {
        self.ask(|reply| Command::Delete(name.to_owned(), reply)).await
    }

    /// What retention must know about a volume.
    ///
    /// # Errors
    /// `Stopping`.
    pub async fn protection(&self, volume: &str) -> Result<Protection, ControlError> {
        self.ask(|reply| Command::Guards(volume.to_owned(), reply)).await
    }

    /// Ends all runs and the runner; afterwards every call is refused.
    pub async fn stop(&self) {
        let (done, stopped) = oneshot::channel();
        let told = self.commands.send(Command::Stop(done)).await.is_ok();
        if told && stopped.await.is_err() {
            tracing::error!("the jobs have not ended in order");
        }
    }
}
