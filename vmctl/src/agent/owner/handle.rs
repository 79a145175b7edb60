//! What others can ask of an owner.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::super::view::VmView;
use crate::error::{Error, Kind};
use crate::qmp::{Client, Event, Greeting};
use crate::vm::command_line::Beginning;
use crate::vm::definition::Definition;
use crate::vm::name::VmName;

/// Requests that wait for one owner.
pub(super) const REQUESTS_MAX: usize = 32;
/// News that wait for one subscriber; who is slower finds its channel closed.
pub(super) const NEWS_MAX: usize = 1024;
/// Subscribers of one VM.
pub(super) const SUBSCRIBERS_MAX: usize = 8;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What an owner is asked. `by` is the holder's name, where one holds the VM.
#[derive(Debug)]
pub enum Request {
    /// Start its QEMU.
    Start {
        /// From where.
        beginning: Beginning,
        /// Whether the processors are to run at once; not for a destination.
        run: bool,
        /// Who asks.
        by: Option<String>,
        /// When QEMU is there.
        reply: Reply<()>,
    },
    /// End its QEMU.
    Stop {
        /// How long the guest has to power off.
        timeout: Duration,
        /// Whether QEMU is ended then.
        force: bool,
        /// Who asks.
        by: Option<String>,
        /// When QEMU is gone.
        reply: Reply<()>,
    },
    /// Replace its definition; resolved.
    Define {
        /// The new one.
        definition: Box<Definition>,
        /// When it is durable.
        reply: Reply<()>,
    },
    /// Forget it.
    Delete {
        /// When it is durable.
        reply: Reply<()>,
    },
    /// Give its monitor, and news of it from now on.
    Lend {
        /// At once.
        reply: Reply<Lent>,
    },
    /// Do nothing by itself any more, and refuse others.
    Hold {
        /// Who holds it; kept over restarts.
        by: String,
        /// When it is durable.
        reply: Reply<()>,
    },
    /// The end of it.
    Release {
        /// Who held it.
        by: String,
        /// When it is durable.
        reply: Reply<()>,
    },
}

/// A monitor that somebody else may use besides the owner.
#[derive(Debug)]
pub struct Lent {
    /// For commands.
    pub client: Client,
    /// What QEMU is.
    pub greeting: Greeting,
    /// All events from now on, in order, until the end. Its closing without [`News::Ended`] or [`News::Lost`] before means
    /// that the receiver was too slow.
    pub news: mpsc::Receiver<News>,
}

/// What happened to a QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// It tells something.
    Event(Event),
    /// The connection to its monitor is gone, and why; the process may live.
    Lost(String),
    /// Its process has ended, and why as far as is known.
    Ended(String),
}

/// One VM, for everybody but its owner; clones are handles to the same.
#[derive(Clone, Debug)]
pub struct VmHandle {
    name: VmName,
    requests: mpsc::Sender<Request>,
    view: watch::Receiver<VmView>,
}

impl VmHandle {
    pub(super) fn new(name: VmName, requests: mpsc::Sender<Request>, view: watch::Receiver<VmView>) -> Self {
        Self { name, requests, view }
    }

    /// What it does now; never waits for it.
    pub fn view(&self) -> VmView {
        self.view.borrow().clone()
    }

    /// To wait for a change.
    pub fn watch(&self) -> watch::Receiver<VmView> {
        self.view.clone()
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let gone = || Error::one_line(Kind::NotFound, format!("there is no VM {} any more", self.name));
        let (reply, answer) = oneshot::channel();
        // Not waited for: who asks for more than an owner can do is told so.
        self.requests.try_send(request(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                Error::one_line(Kind::Overloaded, format!("too many requests wait for {}", self.name))
            }
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        answer.await.map_err(|_| gone())?
    }

    /// Starts its QEMU.
    ///
    /// # Errors
    /// It runs, is held, its volumes cannot be used, or QEMU says no.
    pub async fn start(&self, beginning: Beginning, run: bool, by: Option<String>) -> Result<(), Error> {
        self.ask(|reply| Request::Start { beginning, run, by, reply }).await
    }

    /// Ends its QEMU; answered when it is gone. That there is none is no error.
    ///
    /// # Errors
    /// It is held, or the guest did not power off in time and `force` is not set.
    pub async fn stop(&self, timeout: Duration, force: bool, by: Option<String>) -> Result<(), Error> {
        self.ask(|reply| Request::Stop { timeout, force, by, reply }).await
    }

    /// Replaces its definition by another resolved one.
    ///
    /// # Errors
    /// It runs, or is held.
    pub async fn define(&self, definition: Definition) -> Result<(), Error> {
        self.ask(|reply| Request::Define { definition: Box::new(definition), reply }).await
    }

    /// Forgets it; its volumes stay.
    ///
    /// # Errors
    /// It runs, or is held.
    pub async fn delete(&self) -> Result<(), Error> {
        self.ask(|reply| Request::Delete { reply }).await
    }

    /// Its monitor, and news of it.
    ///
    /// # Errors
    /// There is no QEMU, or it does not answer.
    pub async fn lend(&self) -> Result<Lent, Error> {
        self.ask(|reply| Request::Lend { reply }).await
    }

    /// Keeps the owner and others from doing anything to it, durably; again by the same holder changes nothing.
    ///
    /// # Errors
    /// Somebody else holds it.
    pub async fn hold(&self, by: impl Into<String>) -> Result<(), Error> {
        self.ask(|reply| Request::Hold { by: by.into(), reply }).await
    }

    /// Ends that; again changes nothing.
    ///
    /// # Errors
    /// Somebody else holds it.
    pub async fn release(&self, by: impl Into<String>) -> Result<(), Error> {
        self.ask(|reply| Request::Release { by: by.into(), reply }).await
    }
}
