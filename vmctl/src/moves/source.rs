//! The agent's work for a move whose VM goes from here.
//!
//! ```text
//!  check ─► prepare ─► bulk ─► cutover::Source: Prepare … Prepared ─► rounds ─► Begin ─► … ─► Ended ─► cleanup
//!  (nothing to undo: a failure ends it)         (its machine decides)
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::disk::Disk;
use super::experience::correction;
use super::former::former_until;
use super::hub::Inner;
use super::link::{Link, LinkEvent, Target};
use super::memory::Relay;
use super::qemu::{Deed, Look, Order, of_source, watch as watch_qemu};
use super::record::{Forecast, Instant, Mirrored, MoveRecord, Numbers, Phase, ROUNDS_MAX, Round};
use super::rounds::{Rounds, Told};
use crate::agent::VmHandle;
use crate::agent::events::now_ms;
use crate::cutover::event::{
    Answer, BlockdKind, Mark, SourceAction, SourceEntry, SourceEvent, SourceOutcome, SourceQemu, SourceQemuOp,
};
use crate::cutover::ids::Text;
use crate::cutover::source::Source;
use crate::error::{Error, Kind};
use crate::vm::accel::Accel;
use crate::vm::places::Places;

/// How often is asked again for what was not answered.
const POKE: Duration = Duration::from_millis(500);
/// How long a stopped guest may wait for the switch when no bound was given.
const SWITCH_TIME_MAX: Duration = Duration::from_secs(10);
/// Least time that a bound leaves a switch that has begun, before it is undone.
const SWITCH_TIME_MIN: Duration = Duration::from_millis(300);
/// How long an ended move goes on answering.
const LINGER: Duration = Duration::from_secs(15);
/// Things that wait to be taken notice of.
pub(super) const EVENTS_MAX: usize = 256;

/// What others tell a move.
#[derive(Debug)]
pub(super) enum Wish {
    /// Go back, if that is still possible.
    Abort(String),
}

/// See the module.
pub(super) struct SourceMove {
    pub(super) hub: Arc<Inner>,
    pub(super) record: MoveRecord,
    pub(super) vm: VmHandle,
    pub(super) wishes: mpsc::Receiver<Wish>,
    pub(super) shown: watch::Sender<MoveRecord>,
    pub(super) began: Clock,
}

/// The parts of a cutover that is under way.
struct Parts {
    machine: Source,
    disk: Disk,
    link: Link,
    /// To who watches QEMU; nobody does once it has ended: another move may have to.
    orders: Option<mpsc::Sender<Order>>,
    answers: mpsc::Sender<(BlockdKind, Answer)>,
    rounds: Option<AbortHandle>,
    told: mpsc::Sender<Told>,
    relay: Option<Relay>,
    /// When a guest that stands still has waited long enough.
    switch_until: Option<Clock>,
}

impl SourceMove {
    fn host(&self) -> String {
        self.record.host.clone()
    }

    pub(super) fn holder(&self) -> String {
        format!("move {}", self.record.id)
    }

    fn volumes(&self) -> Vec<String> {
        self.record.definition.volumes().map(str::to_owned).collect()
    }

    fn publish(&self) {
        self.shown.send_replace(self.record.clone());
    }

    /// On disk first, then for everybody to see.
    fn save(&mut self) -> Result<(), Error> {
        self.hub.files.write(&self.record)?;
        self.publish();
        Ok(())
    }

    /// Progress: what a crash would lose of it does not matter.
    pub(super) fn phase(&mut self, phase: Phase) {
        self.record.phase = phase;
        if let Err(error) = self.save() {
            tracing::warn!(%error, "how far a move is cannot be written down");
        }
    }

    /// A new move, or one that is gone on with.
    pub(super) async fn run(mut self, links: watch::Sender<Option<mpsc::Sender<tokio::net::UnixStream>>>) {
        if self.record.setup.is_none() {
            // Beside the work that borrows the rest.
            let mut wishes = std::mem::replace(&mut self.wishes, mpsc::channel(1).1);
            let begun = tokio::select! {
                begun = self.begin() => begun,
                Some(Wish::Abort(why)) = wishes.recv() => Err(Error::one_line(Kind::Stopping, why)),
            };
            self.wishes = wishes;
            if let Err(error) = begun {
                return self.fail(&error).await;
            }
        }
        self.cutover(&links).await;
        if let Err(error) = self.hub.files.tidy() {
            tracing::warn!(%error, "old moves are not forgotten");
        }
    }

    pub(super) fn disk(&self) -> Disk {
        Disk::new(self.hub.host.blockd.clone(), self.record.id, &self.record.host, self.volumes())
    }

    /// The end is written down, sooner or later: an end that is not would be gone through again.
    pub(super) fn write_end(&mut self) {
        if let Err(error) = self.save() {
            tracing::error!(%error, "the end of a move cannot be written down");
        }
    }

    pub(super) async fn let_go(&self) {
        if let Err(error) = self.vm.release(self.holder()).await {
            tracing::warn!(%error, vm = %self.record.vm, "a VM stays held");
        }
    }

    async fn cutover(&mut self, links: &watch::Sender<Option<mpsc::Sender<tokio::net::UnixStream>>>) {
        let Some(setup) = self.record.setup.clone() else { return };
        let is_new = self.record.phase <= Phase::Bulk && self.record.numbers.instants.is_empty();
        let (answers, mut answered) = mpsc::channel(EVENTS_MAX);
        let (told, mut telling) = mpsc::channel(EVENTS_MAX);
        let (seen, mut seeing) = mpsc::channel(EVENTS_MAX);
        let (linked, mut linking) = mpsc::channel(EVENTS_MAX);
        let blockd = self.hub.host.blockd.socket().to_owned();
        let target = Target { blockd, host: self.host(), id: self.record.id, eager: true };
        let link = Link::start(target, linked);
        links.send_replace(Some(link.accepted()));
        let (machine, actions) = if is_new { Source::start(setup) } else { Source::recover(setup) };
        let mut parts = Parts {
            machine,
            disk: self.disk(),
            link,
            orders: Some(watch_qemu(self.vm.clone(), seen)),
            answers,
            rounds: None,
            told,
            relay: None,
            switch_until: None,
        };
        if self.perform(&mut parts, actions).await.is_err() {
            return;
        }
        let mut poke = interval(POKE);
        poke.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut linger = None;
        loop {
            let event = tokio::select! {
                Some(look) = seeing.recv() => match look {
                    Look::Said(said) => SourceEvent::Qemu(of_source(said)),
                    Look::Gone => SourceEvent::Qemu(SourceQemu::Gone),
                    Look::Mute => continue,
                },
                Some((kind, answer)) = answered.recv() => SourceEvent::Blockd(kind, answer),
                Some(event) = linking.recv() => match event {
                    LinkEvent::Up => SourceEvent::LinkUp,
                    LinkEvent::Down => SourceEvent::LinkDown,
                    LinkEvent::Message(envelope) => SourceEvent::Message(envelope.id, envelope.message),
                },
                Some(told) = telling.recv() => match self.take_told(told, &mut parts) {
                    Some(event) => event,
                    None => continue,
                },
                Some(Wish::Abort(why)) = self.wishes.recv() => SourceEvent::Abort(Text::new(&why)),
                () = until(parts.switch_until) => {
                    parts.switch_until = None;
                    SourceEvent::Abort(Text::new("the guest has stood still for longer than it may"))
                }
                () = until(linger) => return,
                _ = poke.tick() => SourceEvent::Poke,
            };
            let actions = parts.machine.on(event);
            if self.perform(&mut parts, actions).await.is_err() {
                return;
            }
            if linger.is_none() && self.record.has_ended() {
                linger = Some(Clock::now() + LINGER);
                parts.orders = None;
            }
        }
    }

    /// What the rounds tell; an event for the machine, if it is one.
    fn take_told(&mut self, told: Told, parts: &mut Parts) -> Option<SourceEvent> {
        match told {
            Told::Phase(phase) => self.phase(phase),
            Told::Round(round) => self.add_round(round),
            Told::Mirrored(bytes_sent, took_ms) => {
                let in_sync_ms = self.began.elapsed().as_secs_f64() * 1e3;
                self.record.numbers.mirror = Some(Mirrored { in_sync_ms, took_ms, bytes_sent });
                self.publish();
            }
            Told::Note(text) => self.record.note(text),
            Told::Forecast(forecast) => self.foresee(forecast),
            Told::Memory(info) => {
                let numbers = &mut self.record.numbers;
                if let Some(ram) = info.ram {
                    numbers.memory_bytes = ram.transferred;
                    numbers.multifd_bytes = ram.multifd_bytes;
                    numbers.memory_total = ram.total;
                    numbers.memory_passes = ram.passes;
                }
                self.publish();
            }
            Told::Begin(heard) => {
                let actions = parts.machine.on(SourceEvent::Begin);
                debug_assert!(actions.is_empty(), "{actions:?}");
                if heard.send(()).is_err() {
                    tracing::debug!("the rounds are over");
                }
            }
            Told::Stopped => {
                let ms = self.began.elapsed().as_secs_f64() * 1e3;
                self.record.numbers.instants.push(Instant { mark: Mark::GuestStopped, ms });
                self.publish();
            }
            Told::Failed(error) => {
                self.record.notes.extend(error.next.iter().map(|next| format!("next: {next}")));
                return Some(SourceEvent::Abort(Text::new(&error.message)));
            }
        }
        None
    }

    fn add_round(&mut self, round: Round) {
        let rounds = &mut self.record.numbers.rounds;
        if rounds.len() == ROUNDS_MAX {
            rounds.remove(1);
        }
        rounds.push(round);
        self.publish();
    }

    fn foresee(&mut self, forecast: Forecast) {
        self.record.numbers.forecast = Some(forecast);
        self.publish();
    }

    /// Does what the machine says, in its order. An error: it must not go on; the next agent does.
    async fn perform(&mut self, parts: &mut Parts, actions: Vec<SourceAction>) -> Result<(), Error> {
        for action in actions {
            match action {
                SourceAction::Send(message) => parts.link.send(message),
                SourceAction::Blockd(op) => {
                    let (disk, answers) = (parts.disk.clone(), parts.answers.clone());
                    let hub = Arc::clone(&self.hub);
                    tokio::spawn(async move {
                        let kind = op.kind();
                        if kind == BlockdKind::Freeze {
                            hub.trial.hold(Phase::Switch).await;
                        }
                        let answer = disk.answer(op).await;
                        if (kind, &answer) == (BlockdKind::Release, &Answer::Done) {
                            hub.trial.hold(Phase::Release).await;
                        }
                        if answers.send((kind, answer)).await.is_err() {
                            tracing::debug!("an answer of blockd comes too late");
                        }
                    });
                }
                SourceAction::Qemu(op) => self.tell_qemu(parts, op).await,
                SourceAction::Journal(entry) => self.journal(entry)?,
                SourceAction::Ready => self.start_rounds(parts).await,
                SourceAction::Mark(mark) => self.mark(parts, mark),
                SourceAction::Note(note) => {
                    tracing::warn!(id = %self.record.id, ?note, "a move");
                    self.record.note(format!("{note:?}"));
                    self.publish();
                }
                SourceAction::Finished(outcome) => self.finished(parts, &outcome).await,
            }
        }
        Ok(())
    }

    async fn tell_qemu(&self, parts: &Parts, op: SourceQemuOp) {
        let order = match op {
            SourceQemuOp::Query => Order::Look,
            SourceQemuOp::Continue => Order::Do(Deed::Continue),
            SourceQemuOp::Cancel => Order::Do(Deed::Cancel),
            SourceQemuOp::Yank => Order::Do(Deed::Yank),
            SourceQemuOp::Resume => Order::Do(Deed::Cont),
            SourceQemuOp::Quit => {
                let (vm, holder) = (self.vm.clone(), self.holder());
                let hub = Arc::clone(&self.hub);
                drop(tokio::spawn(async move {
                    hub.trial.hold(Phase::Cleanup).await;
                    if let Err(error) = vm.stop(Duration::ZERO, true, Some(holder)).await {
                        tracing::warn!(%error, "the QEMU of a guest that has gone is not ended yet");
                    }
                }));
                Order::Look
            }
        };
        // One that does not answer holds up nobody: the machine asks again.
        if let Some(orders) = &parts.orders
            && let Err(error) = orders.try_send(order)
        {
            tracing::debug!(%error, "QEMU has too much to do");
        }
    }

    fn journal(&mut self, entry: SourceEntry) -> Result<(), Error> {
        match entry {
            SourceEntry::Started(setup) => {
                self.record.setup = Some(setup);
                self.record.phase = Phase::Rounds;
            }
            SourceEntry::Ended(outcome) => {
                self.record.source_end = Some(outcome);
                self.record.ended_ms = Some(now_ms());
                self.record.former_until_ms = former_until(&self.record);
                self.record.phase = Phase::Cleanup;
                // Shown when the VM is let go of: whoever waits for the end may want it at once.
                return Ok(self.hub.files.write(&self.record)?);
            }
        }
        self.save()
    }

    async fn start_rounds(&mut self, parts: &mut Parts) {
        match self.make_rounds(parts).await {
            Ok(rounds) => parts.rounds = Some(tokio::spawn(rounds.run()).abort_handle()),
            Err(error) => {
                let told = parts.told.clone();
                tokio::spawn(async move { told.send(Told::Failed(error)).await });
            }
        }
    }

    async fn make_rounds(&self, parts: &mut Parts) -> Result<Rounds, Error> {
        let config = &self.hub.host.config;
        let socket = Places::new(&config.run, &config.data, &self.record.vm).migration();
        let blockd = self.hub.host.blockd.socket();
        let relay = Relay::start(&socket, blockd, &self.record.host, self.record.id)
            .map_err(|error| Error::one_line(Kind::Io, format!("{}: {error}", socket.display())))?;
        parts.relay = Some(relay);
        let stops_first = self.is_translated() && !self.record.options.live;
        Ok(Rounds {
            disk: parts.disk.clone(),
            client: self.vm.lend().await?.client,
            options: self.record.options.clone(),
            uri: format!("unix:{}", socket.display()),
            told: parts.told.clone(),
            rounds: self.record.numbers.rounds.clone(),
            trial: self.hub.trial.clone(),
            stops_first,
            correction: correction(&self.hub.files.read_all()?, &self.record.host, stops_first),
            translated: self.is_translated(),
            memory_bytes: self.record.definition.memory.0,
            mirrored: false,
        })
    }

    fn mark(&mut self, parts: &mut Parts, mark: Mark) {
        let ms = self.began.elapsed().as_secs_f64() * 1e3;
        self.record.numbers.instants.push(Instant { mark, ms });
        match mark {
            Mark::GuestStopped => {
                // What is brought now is brought by the cutover.
                parts.rounds.take().iter().for_each(AbortHandle::abort);
                let bound = self.record.options.silence_ms.map(Duration::from_millis);
                let max = bound.map_or(SWITCH_TIME_MAX, |bound| bound.max(SWITCH_TIME_MIN));
                parts.switch_until = Some(Clock::now() + max);
                self.record.phase = Phase::Switch;
            }
            Mark::Released => {
                parts.switch_until = None;
                self.record.phase = Phase::Release;
            }
            Mark::PeerRunning => self.record.phase = Phase::Cleanup,
            Mark::Completed => self.count_memory(parts),
            Mark::Aborted => parts.switch_until = None,
            _ => {}
        }
        self.publish();
    }

    /// Where processors are translated memory cannot be sent safely while they run, unless somebody takes that upon himself.
    fn is_translated(&self) -> bool {
        self.vm.view().process.is_some_and(|process| process.accel == Accel::Tcg)
    }

    /// What QEMU has sent, while it is there to be asked; nobody waits for it.
    fn count_memory(&self, parts: &Parts) {
        let (vm, told) = (self.vm.clone(), parts.told.clone());
        tokio::spawn(async move {
            let Ok(lent) = vm.lend().await else { return };
            if let Ok(info) = lent.client.query_migrate().await
                && told.send(Told::Memory(Box::new(info))).await.is_err()
            {
                tracing::debug!("the move is over");
            }
        });
    }

    async fn finished(&mut self, parts: &mut Parts, outcome: &SourceOutcome) {
        parts.rounds.take().iter().for_each(AbortHandle::abort);
        parts.relay = None;
        let numbers = &mut self.record.numbers;
        numbers.last_round = parts.disk.last_round();
        numbers.total_ms = Some(self.began.elapsed().as_secs_f64() * 1e3);
        numbers.silence_ms = silence(numbers);
        let (kind, message) = match outcome {
            SourceOutcome::Moved(_) => ("vm_moved", format!("to {}", self.record.host)),
            SourceOutcome::Aborted { reason, .. } => {
                ("move_aborted", format!("to {}: {}", self.record.host, super::hub::reason_text(reason)))
            }
        };
        self.hub.host.events.record(kind, self.record.vm.as_str(), message);
        self.let_go().await;
        self.write_end();
        if self.record.former_until_ms.is_some() {
            self.hub.former.notify_one();
        }
    }
}

/// From the guest's stop until it ran again, wherever.
fn silence(numbers: &Numbers) -> Option<f64> {
    let at = |mark| numbers.instants.iter().find(|instant| instant.mark == mark).map(|instant| instant.ms);
    let stopped = at(Mark::GuestStopped)?;
    Some(at(Mark::PeerRunning).or_else(|| at(Mark::GuestBack))? - stopped)
}

/// At that time; never, without one.
async fn until(time: Option<Clock>) {
    match time {
        Some(time) => sleep(time.saturating_duration_since(Clock::now())).await,
        None => std::future::pending().await,
    }
}
