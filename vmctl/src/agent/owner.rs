//! The task that owns one VM.
//!
//! ```text
//!            start                  cont                 SHUTDOWN (guest)
//! stopped ─────────► starting ─────────► running ──────────────────────► shutdown ─ quit ─► stopped
//!    ▲                                   ▲  │ BLOCK_IO_ERROR                 ▲
//!    │ start                             │  ▼                                │ system_powerdown (stop)
//! crashed ◄─ QEMU is gone, unasked    io-error ─ blockd takes writes again: cont
//! ```
//!
//! It chooses the next thing that happened (a request, an event of QEMU, the end of QEMU's process, a tick), applies it, and
//! shows the result. Nothing else touches the VM's QEMU and record. While a VM is *held* (a move has it), the owner follows
//! and shows, but does nothing by itself.

mod follow;
mod handle;
mod live;
mod recover;
mod start;
mod stop;

pub use handle::{Lent, News, Request, VmHandle};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::events::now_ms;
use super::registry::Host;
use super::view::{ProcessView, VmState, VmView};
use crate::error::{Error, Kind};
use crate::journal::{LastEnd, Record};
use crate::qmp::{Event, QmpError};
use crate::vm::places::{Places, bound_log};
use live::{Live, ended, next_event};
use stop::Stopping;

/// How often the owner looks at what no event tells.
const TICK: Duration = Duration::from_millis(500);
/// Longest log of a console, and of QEMU's complaints; as much again is kept of the time before.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// Ticks between two looks at the logs.
const LOG_TICKS: u64 = 20;

/// Owns one VM.
pub struct Owner {
    host: Arc<Host>,
    record: Record,
    places: Places,
    requests: mpsc::Receiver<Request>,
    view: watch::Sender<VmView>,
    live: Option<Live>,
    state: VmState,
    reason: Option<String>,
    stopping: Option<Stopping>,
    subscribers: Vec<mpsc::Sender<News>>,
    ticks: u64,
    /// When to try `cont` after an I/O error, and how long to wait after that.
    resume_at: Instant,
    resume_pause: Duration,
}

/// What happened.
enum Step {
    Request(Option<Request>),
    Event(Result<Event, QmpError>),
    Ended,
    Tick,
}

impl Owner {
    /// Starts the task for a record: a VM that runs is found again.
    pub fn spawn(host: Arc<Host>, record: Record) -> VmHandle {
        let (sender, requests) = mpsc::channel(handle::REQUESTS_MAX);
        let name = record.definition.name.clone();
        let places = Places::new(&host.config.run, &host.config.data, &name);
        let state = if record.run.is_some() { VmState::Unreachable } else { VmState::Stopped };
        let mut owner = Self {
            host,
            record,
            places,
            requests,
            view: watch::Sender::new(VmView {
                name: name.clone(),
                state,
                reason: None,
                definition: None,
                process: None,
                adopted: None,
                held_by: None,
                last_end: None,
            }),
            live: None,
            state,
            reason: None,
            stopping: None,
            subscribers: Vec::new(),
            ticks: 0,
            resume_at: Instant::now(),
            resume_pause: follow::RESUME_PAUSE_MIN,
        };
        owner.settle();
        owner.publish();
        let view = owner.view.subscribe();
        tokio::spawn(owner.run());
        VmHandle::new(name, sender, view)
    }

    /// The state of a VM without a QEMU.
    fn settle(&mut self) {
        if self.record.run.is_none() {
            let crashed = self.record.last_end.as_ref().is_some_and(|end| end.crashed);
            self.state = if crashed { VmState::Crashed } else { VmState::Stopped };
            self.reason = self.record.last_end.as_ref().map(|end| end.reason.clone());
        }
    }

    async fn run(mut self) {
        self.recover().await;
        self.publish();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let (process, link) = match &mut self.live {
                Some(live) => (Some(&live.process), live.link.as_mut()),
                None => (None, None),
            };
            let step = tokio::select! {
                // In this order: what QEMU said before its end is heard before the end is noticed.
                biased;
                event = next_event(link) => Step::Event(event),
                () = ended(process) => Step::Ended,
                request = self.requests.recv() => Step::Request(request),
                _ = tick.tick() => Step::Tick,
            };
            match step {
                Step::Event(event) => self.follow(event).await,
                Step::Ended => self.process_ended(),
                Step::Tick => self.tick().await,
                Step::Request(Some(request)) => {
                    if self.serve(request).await {
                        return;
                    }
                }
                Step::Request(None) => return,
            }
            self.publish();
        }
    }

    async fn tick(&mut self) {
        self.ticks += 1;
        self.push_stop().await;
        self.look_again().await;
        if self.ticks.is_multiple_of(LOG_TICKS) && self.live.is_some() {
            for log in [self.places.console_log(), self.places.qemu_log()] {
                if let Err(error) = bound_log(&log, LOG_BYTES_MAX) {
                    tracing::warn!(log = %log.display(), %error, "a log cannot be kept within its bound");
                }
            }
        }
    }

    /// Carries a request out; true: the VM is no more.
    async fn serve(&mut self, request: Request) -> bool {
        match request {
            Request::Start { beginning, run, by, reply } => {
                let result = self.start(beginning, run, by.as_deref()).await;
                answer(reply, result);
            }
            Request::Stop { timeout, force, by, reply } => {
                self.stop(timeout, force, by.as_deref(), reply).await;
            }
            Request::Define { definition, reply } => {
                let result = self.redefine(*definition);
                answer(reply, result);
            }
            Request::Delete { reply } => {
                let result = self.delete();
                let gone = result.is_ok();
                answer(reply, result);
                return gone;
            }
            Request::Lend { reply } => {
                let result = self.lend();
                answer(reply, result);
            }
            Request::Hold { by, reply } => {
                let result = self.hold(by);
                answer(reply, result);
            }
            Request::Release { by, reply } => {
                let result = self.release(&by);
                answer(reply, result);
            }
        }
        false
    }

    fn redefine(&mut self, definition: crate::vm::definition::Definition) -> Result<(), Error> {
        self.check_holder(None)?;
        if self.live.is_some() {
            let message = format!(
                "{} runs: its definition can be replaced when it is stopped",
                self.record.definition.name
            );
            return Err(Error::one_line(Kind::Busy, message));
        }
        let record = Record { definition, adopted: None, ..self.record.clone() };
        self.host.files.write(&record)?;
        self.record = record;
        Ok(())
    }

    fn delete(&mut self) -> Result<(), Error> {
        self.check_holder(None)?;
        let name = &self.record.definition.name;
        if self.live.is_some() {
            let next = format!("vmctl vm stop {name}");
            return Err(Error::one_line(Kind::Busy, format!("{name} runs")).with_next(next));
        }
        self.host.files.remove(name)?;
        if let Err(error) = self.places.remove() {
            tracing::warn!(%name, %error, "logs of a deleted VM are still there");
        }
        Ok(())
    }

    fn hold(&mut self, by: String) -> Result<(), Error> {
        self.check_holder(Some(&by))?;
        self.write(|record| record.held_by = Some(by))
    }

    fn release(&mut self, by: &str) -> Result<(), Error> {
        self.check_holder(Some(by))?;
        self.write(|record| record.held_by = None)
    }

    /// Refuses what only the holder may do.
    fn check_holder(&self, by: Option<&str>) -> Result<(), Error> {
        match (&self.record.held_by, by) {
            (None, _) => Ok(()),
            (Some(holder), Some(by)) if holder == by => Ok(()),
            (Some(holder), _) => {
                let message = format!("{} is held by {holder}", self.record.definition.name);
                Err(Error::one_line(Kind::Busy, message)
                    .with_next(format!("vmctl status {}", self.record.definition.name)))
            }
        }
    }

    /// A move may end the QEMU of a VM that it holds, and of no other: when what it asked for is done late, the move is over, and the guest
    /// may have come back.
    fn check_stopper(&self, by: Option<&str>) -> Result<(), Error> {
        let held_by = self.record.held_by.as_deref();
        if by.is_some() && by != held_by {
            let name = &self.record.definition.name;
            let now = held_by.map_or_else(|| "by nobody".to_owned(), |holder| format!("by {holder}"));
            return Err(Error::one_line(Kind::Busy, format!("{name} is held {now} now")));
        }
        self.check_holder(by)
    }

    /// Changes the record, on disk first.
    fn write(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        let mut record = self.record.clone();
        change(&mut record);
        self.host.files.write(&record)?;
        self.record = record;
        Ok(())
    }

    /// Changes the record because something has happened: in memory at any rate, for it has.
    fn note(&mut self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record);
        if let Err(error) = self.host.files.write(&self.record) {
            let name = self.record.definition.name.as_str();
            self.host.events.record("record_lost", name, format!("{error}"));
        }
    }

    /// Whether a move or somebody else has it.
    fn is_held(&self) -> bool {
        self.record.held_by.is_some()
    }

    fn event(&self, kind: &str, message: impl Into<String>) {
        self.host.events.record(kind, self.record.definition.name.as_str(), message);
    }

    fn set_state(&mut self, state: VmState, reason: Option<String>) {
        if self.state != state {
            let said = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            self.event("vm_state", format!("{} → {}{said}", self.state.name(), state.name()));
        }
        self.state = state;
        self.reason = reason;
    }

    fn publish(&self) {
        let process = self.live.as_ref().zip(self.record.run.as_ref()).map(|(live, run)| ProcessView {
            pid: live.process.id.pid,
            qemu: run.qemu,
            accel: run.accel,
            qmp: run.qmp.clone(),
            started_ms: run.started_ms,
        });
        let view = VmView {
            name: self.record.definition.name.clone(),
            state: self.state,
            reason: self.reason.clone(),
            definition: Some(self.record.definition.clone()),
            process,
            adopted: self.record.adopted.clone(),
            held_by: self.record.held_by.clone(),
            last_end: self.record.last_end.clone(),
        };
        self.view.send_if_modified(|shown| {
            let changed = *shown != view;
            *shown = view;
            changed
        });
    }

    fn last_end(crashed: bool, reason: impl Into<String>) -> LastEnd {
        LastEnd { crashed, reason: reason.into(), time_ms: now_ms() }
    }
}

/// Tells whoever asked; who has gone away meanwhile needs no answer.
fn answer<T>(reply: oneshot::Sender<Result<T, Error>>, result: Result<T, Error>) {
    if reply.send(result).is_err() {
        tracing::debug!("nobody waits for the answer any more");
    }
}
