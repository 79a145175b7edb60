//! The agent's work for a move whose VM comes here: what `cutover::Destination` says.

use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::disk::Disk;
use super::hub::Inner;
use super::link::{Link, LinkEvent, Target};
use super::qemu::{Deed, Look, Order, of_destination, watch as watch_qemu};
use super::record::{Instant, MoveRecord, Phase};
use super::rounds::multifd_channels;
use super::source::EVENTS_MAX;
use crate::agent::VmHandle;
use crate::agent::events::now_ms;
use crate::cutover::destination::Destination;
use crate::cutover::event::{
    Answer, BlockdKind, DestinationAction, DestinationEntry, DestinationEvent, DestinationOutcome,
    DestinationQemu, DestinationQemuOp, Mark,
};
use crate::cutover::message::Message;
use crate::cutover::record::Setup;
use crate::error::Error;
use crate::qmp::types::MigrationParameters;
use crate::vm::command_line::Beginning;
use crate::vm::places::Places;

/// How often is asked again for what was not answered.
const POKE: Duration = Duration::from_millis(500);
/// How long an ended move goes on answering.
const LINGER: Duration = Duration::from_secs(15);
/// Between two cold starts.
const START_PAUSE: Duration = Duration::from_secs(1);
/// Announcements of the guest's addresses after it runs: how many, the first pause, what each adds, the longest.
const ANNOUNCE: (u32, u32, u32, u32) = (5, 50, 100, 550);

/// See the module.
pub(super) struct DestinationMove {
    pub(super) hub: Arc<Inner>,
    pub(super) record: MoveRecord,
    pub(super) shown: watch::Sender<MoveRecord>,
    pub(super) began: Clock,
}

struct Parts {
    disk: Disk,
    link: Link,
    answers: mpsc::Sender<(BlockdKind, Answer)>,
    looks: mpsc::Sender<Look>,
    orders: Option<mpsc::Sender<Order>>,
    /// When a QEMU was started last.
    started: Option<Clock>,
}

impl DestinationMove {
    fn holder(&self) -> String {
        format!("move {}", self.record.id)
    }

    fn save(&mut self) -> Result<(), Error> {
        self.hub.files.write(&self.record)?;
        self.shown.send_replace(self.record.clone());
        Ok(())
    }

    fn vm(&self) -> Result<VmHandle, Error> {
        self.hub.registry.vm(&self.record.vm)
    }

    /// A new move, with the stream that its `Prepare` came on and with what it plans, or one that is gone on with.
    pub(super) async fn run(
        mut self,
        new: Option<(Setup, UnixStream)>,
        links: watch::Sender<Option<mpsc::Sender<UnixStream>>>,
    ) {
        let (answers, mut answered) = mpsc::channel(EVENTS_MAX);
        let (looks, mut seeing) = mpsc::channel(EVENTS_MAX);
        let (linked, mut linking) = mpsc::channel(EVENTS_MAX);
        let target = Target {
            blockd: self.hub.host.blockd.socket().to_owned(),
            host: self.record.host.clone(),
            id: self.record.id,
            eager: false,
        };
        let link = Link::start(target, linked);
        links.send_replace(Some(link.accepted()));
        let volumes = self.record.definition.volumes().map(str::to_owned).collect();
        let disk = Disk::new(self.hub.host.blockd.clone(), self.record.id, &self.record.host, volumes);
        let mut parts = Parts { disk, link, answers, looks, orders: None, started: None };
        let (mut machine, actions) = match (new, self.record.setup.clone()) {
            (Some((setup, stream)), _) => {
                if let Err(error) = parts.link.accepted().send(stream).await {
                    tracing::debug!(%error, "the link is gone before it stood");
                }
                Destination::start(setup)
            }
            (None, Some(setup)) => Destination::recover(setup),
            (None, None) => return,
        };
        if self.perform(&mut parts, actions).await.is_err() {
            return;
        }
        let mut poke = interval(POKE);
        poke.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut linger: Option<Clock> = None;
        loop {
            let event = tokio::select! {
                Some(look) = seeing.recv() => match look {
                    Look::Said(said) => DestinationEvent::Qemu(of_destination(said)),
                    Look::Gone => DestinationEvent::Qemu(DestinationQemu::Gone),
                    Look::Mute => continue,
                },
                Some((kind, answer)) = answered.recv() => DestinationEvent::Blockd(kind, answer),
                Some(event) = linking.recv() => match event {
                    LinkEvent::Up => DestinationEvent::LinkUp,
                    LinkEvent::Down => DestinationEvent::LinkDown,
                    LinkEvent::Message(envelope) => DestinationEvent::Message(envelope.id, envelope.message),
                },
                () = linger_over(linger) => return,
                _ = poke.tick() => DestinationEvent::Poke,
            };
            let actions = machine.on(event);
            if self.perform(&mut parts, actions).await.is_err() {
                return;
            }
            if linger.is_none() && self.record.has_ended() {
                linger = Some(Clock::now() + LINGER);
                // Another move may have to watch this QEMU.
                parts.orders = None;
            }
        }
    }

    async fn perform(&mut self, parts: &mut Parts, actions: Vec<DestinationAction>) -> Result<(), Error> {
        for action in actions {
            match action {
                DestinationAction::Send(message) => parts.link.send(message),
                DestinationAction::Blockd(op) => {
                    let (disk, answers) = (parts.disk.clone(), parts.answers.clone());
                    tokio::spawn(async move {
                        let (kind, answer) = (op.kind(), disk.answer(op).await);
                        if answers.send((kind, answer)).await.is_err() {
                            tracing::debug!("an answer of blockd comes too late");
                        }
                    });
                }
                DestinationAction::Qemu(op) => self.tell_qemu(parts, op).await,
                DestinationAction::Journal(entry) => self.journal(entry)?,
                DestinationAction::Mark(mark) => self.mark(parts, mark),
                DestinationAction::Note(note) => {
                    tracing::warn!(id = %self.record.id, ?note, "a move");
                    self.record.note(format!("{note:?}"));
                }
                DestinationAction::Finished(outcome) => self.finished(outcome).await,
            }
        }
        Ok(())
    }

    fn journal(&mut self, entry: DestinationEntry) -> Result<(), Error> {
        match entry {
            DestinationEntry::Preparing(setup) => {
                self.record.setup = Some(setup);
                self.record.phase = Phase::Prepare;
            }
            DestinationEntry::Ended(outcome) => {
                self.record.destination_end = Some(outcome);
                self.record.ended_ms = Some(now_ms());
                self.record.phase = Phase::Cleanup;
                // Shown when the VM is let go of: whoever waits for the end may want it at once.
                return Ok(self.hub.files.write(&self.record)?);
            }
        }
        self.save()
    }

    fn mark(&mut self, parts: &Parts, mark: Mark) {
        let ms = self.began.elapsed().as_secs_f64() * 1e3;
        self.record.numbers.instants.push(Instant { mark, ms });
        self.record.phase = match mark {
            Mark::Loaded => Phase::Switch,
            Mark::Committed => Phase::Release,
            _ => self.record.phase,
        };
        if mark == Mark::Resumed {
            self.announce();
        }
        tracing::debug!(id = %self.record.id, ?mark, ms, linked = parts.orders.is_some(), "a move");
        self.shown.send_replace(self.record.clone());
    }

    /// Cables are plugged in, and switches learn where the guest is. It runs already: nobody waits for this.
    fn announce(&self) {
        let (vm, nics) = (self.vm(), self.record.definition.nics.len());
        tokio::spawn(async move {
            let told = async {
                let client = vm?.lend().await?.client;
                for index in 0..nics {
                    client.set_link(&crate::vm::nic_id(index), true).await?;
                }
                let (rounds, initial, step, max) = ANNOUNCE;
                Ok::<_, Error>(client.announce_self(rounds, initial, step, max).await?)
            };
            if let Err(error) = told.await {
                tracing::warn!(%error, "the guest's addresses are not announced");
            }
        });
    }

    async fn tell_qemu(&mut self, parts: &mut Parts, op: DestinationQemuOp) {
        match op {
            DestinationQemuOp::Start => self.start(parts, Beginning::Incoming).await,
            DestinationQemuOp::StartCold => self.start(parts, Beginning::Boot).await,
            DestinationQemuOp::Kill => {
                let stopped = match self.vm() {
                    Ok(vm) => vm.stop(Duration::ZERO, true, Some(self.holder())).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = stopped {
                    tracing::debug!(%error, "there is no QEMU to end");
                }
                self.look(parts).await;
            }
            DestinationQemuOp::Query => self.look(parts).await,
            DestinationQemuOp::Cont => self.order(parts, Order::Do(Deed::Cont)),
        }
    }

    async fn look(&mut self, parts: &mut Parts) {
        match self.vm() {
            Ok(vm) if vm.view().process.is_some() => self.order(parts, Order::Look),
            _ => {
                parts.orders = None;
                if parts.looks.try_send(Look::Gone).is_err() {
                    tracing::debug!("too much is seen at once");
                }
            }
        }
    }

    fn order(&self, parts: &mut Parts, order: Order) {
        let Ok(vm) = self.vm() else { return };
        let looks = parts.looks.clone();
        let orders = parts.orders.get_or_insert_with(|| watch_qemu(vm, looks));
        if let Err(error) = orders.try_send(order) {
            tracing::debug!(%error, "QEMU has too much to do");
        }
    }

    /// What is asked for again too soon is not done: the machine asks once more, and a QEMU that ends at once, or does not
    /// start, keeps nobody busy.
    async fn start(&mut self, parts: &mut Parts, beginning: Beginning) {
        if parts.started.is_some_and(|at| at.elapsed() < START_PAUSE) && beginning == Beginning::Boot {
            return;
        }
        let started = self.try_start(beginning).await;
        parts.started = Some(Clock::now());
        if let Err(error) = started {
            tracing::warn!(id = %self.record.id, %error, "QEMU does not start for a move");
            self.record.note(format!("QEMU does not start: {error}"));
            self.shown.send_replace(self.record.clone());
        }
        self.look(parts).await;
    }

    async fn try_start(&mut self, beginning: Beginning) -> Result<(), Error> {
        let vm = self.make_vm().await?;
        let run = beginning == Beginning::Boot;
        vm.start(beginning, run, Some(self.holder())).await?;
        if run {
            return Ok(());
        }
        let client = vm.lend().await?.client;
        for index in 0..self.record.definition.nics.len() {
            client.set_link(&crate::vm::nic_id(index), false).await?;
        }
        let multifd = self.record.options.multifd;
        let mut capabilities = vec![("events", true), ("return-path", true), ("multifd", multifd.is_some())];
        // Taking the disks on arrival would be too early; later versions never do.
        let known = client.query_migrate_capabilities().await?;
        capabilities.extend(
            known
                .iter()
                .any(|one| one.capability == "late-block-activate")
                .then_some(("late-block-activate", true)),
        );
        client.migrate_set_capabilities(&capabilities).await?;
        // The guest is announced once it runs, by us.
        let mut parameters = MigrationParameters::from([("announce-rounds".to_owned(), json!(0))]);
        parameters.extend(multifd.map(multifd_channels));
        client.migrate_set_parameters(parameters).await?;
        let config = &self.hub.host.config;
        let socket = Places::new(&config.run, &config.data, &self.record.vm).migration();
        client.migrate_incoming(&format!("unix:{}", socket.display())).await?;
        Ok(())
    }

    /// The VM, held by the move; made, if it was never here.
    async fn make_vm(&mut self) -> Result<VmHandle, Error> {
        if self.vm().is_err() {
            // First the ledger: what was made is known to whoever undoes it.
            self.record.made_vm = true;
            self.save()?;
        }
        if let Ok(vm) = self.vm()
            && vm.view().held_by == Some(self.holder())
        {
            // It was taken in for the QEMU that has ended meanwhile.
            return Ok(vm);
        }
        let vm = self.hub.registry.take_in(self.record.definition.clone()).await?;
        vm.hold(self.holder()).await?;
        Ok(vm)
    }

    async fn finished(&mut self, outcome: DestinationOutcome) {
        let vm = self.record.vm.clone();
        let released = match self.vm() {
            Ok(handle) => handle.release(self.holder()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            tracing::debug!(%error, %vm, "nothing of the VM is here");
        }
        let (kind, message) = match outcome {
            DestinationOutcome::Here { epoch, cold, .. } => {
                let how = if cold { ", from its disks: its memory was lost" } else { "" };
                ("vm_arrived", format!("from {}, epoch {}{how}", self.record.host, epoch.0))
            }
            DestinationOutcome::Discarded => {
                if self.record.made_vm
                    && let Err(error) = self.hub.registry.delete(&vm).await
                {
                    tracing::warn!(%error, %vm, "what an undone move has made is still there");
                }
                ("move_discarded", format!("from {}", self.record.host))
            }
        };
        self.hub.host.events.record(kind, vm.as_str(), message);
        self.record.numbers.total_ms = Some(self.began.elapsed().as_secs_f64() * 1e3);
        if let Err(error) = self.save() {
            tracing::error!(%error, "the end of a move cannot be written down");
        }
    }
}

async fn linger_over(until: Option<Clock>) {
    match until {
        Some(time) => sleep(time.saturating_duration_since(Clock::now())).await,
        None => std::future::pending().await,
    }
}

/// What is answered about a move that nobody works on any more.
pub(super) fn ended_answer(message: &Message, record: Option<&MoveRecord>) -> Option<Message> {
    let ended = record.and_then(|record| record.destination_end);
    crate::cutover::known::destination_answer(message, ended.as_ref())
}
