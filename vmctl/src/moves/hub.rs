//! All moves of a host: those under way, those that are known, and who wants what of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;

use super::destination::DestinationMove;
use super::files::MoveFiles;
use super::judge::{Check, Judgement, Offer, Question};
use super::memory::deliver;
use super::offers::Offers;
use super::record::{MoveRecord, Options, Side};
use super::source::{SourceMove, Wish};
use super::stream;
use super::trial::Trial;
use crate::agent::events::now_ms;
use crate::agent::registry::{Host, Registry};
use crate::agent::view::{MovePlan, VmState};
use crate::cutover::event::{DestinationOutcome, Reason};
use crate::cutover::ids::MoveId;
use crate::cutover::record::{Setup, Stage};
use crate::error::{Error, Kind};
use crate::vm::name::VmName;
use crate::vm::places::Places;

/// How long a VM may take to be let go of when the agent starts.
const LET_GO_TIME_MAX: Duration = Duration::from_secs(5);
/// How long another host's agent may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);
type Accepted = Option<mpsc::Sender<UnixStream>>;

struct Active {
    side: Side,
    vm: VmName,
    wishes: mpsc::Sender<Wish>,
    shown: watch::Receiver<MoveRecord>,
    links: watch::Receiver<Accepted>,
}

/// What all moves share.
pub(super) struct Inner {
    pub(super) registry: Registry,
    pub(super) host: Arc<Host>,
    pub(super) files: MoveFiles,
    pub(super) trial: Trial,
    active: Mutex<BTreeMap<MoveId, Active>>,
    pub(super) offers: Offers,
    /// A move has left volumes here that are to be deleted at some time.
    pub(super) former: Notify,
}

/// See the module; clones are handles to the same.
#[derive(Clone)]
pub struct Moves(pub(super) Arc<Inner>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves what is behind our locks whole: every change is one insert or remove.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Moves {
    /// Reads what there is, and goes on with what has not ended.
    ///
    /// # Errors
    /// The directory cannot be used.
    pub async fn open(registry: Registry) -> Result<Self, Error> {
        let host = Arc::clone(registry.host());
        let files = MoveFiles::open(&host.config.data)?;
        let mut records = files.read_all()?;
        records
            .iter_mut()
            .filter(|record| !record.has_begun())
            .for_each(|record| end_unbegun(&files, record));
        let trial = Trial::from_environment()?;
        let (active, offers) = (Mutex::default(), Offers::default());
        let moves =
            Self(Arc::new(Inner { registry, host, files, trial, active, offers, former: Notify::new() }));
        moves.let_go_of_ended(&records).await;
        for record in records.into_iter().filter(|record| !record.has_ended()) {
            moves.go_on(record);
        }
        let former = moves.clone();
        tokio::spawn(async move { former.sweep_former().await });
        let orphans = moves.clone();
        tokio::spawn(async move {
            match orphans.give_up_orphans().await {
                Ok(given_up) if given_up.is_empty() => {}
                Ok(given_up) => tracing::warn!(?given_up, "moves that nobody knows of were given up"),
                Err(error) => tracing::warn!(%error, "blockd's moves cannot be looked at: vmctl recover"),
            }
        });
        Ok(moves)
    }

    fn go_on(&self, record: MoveRecord) {
        let (vm, id) = (record.vm.clone(), record.id);
        tracing::info!(%id, %vm, phase = record.phase.name(), "a move is gone on with");
        match record.side {
            Side::Source => match self.0.registry.vm(&vm) {
                Ok(handle) => self.run_source(record, handle),
                Err(error) => tracing::error!(%error, %id, "a move of a VM that is not here"),
            },
            Side::Destination => self.run_destination(record, None),
        }
    }

    /// An agent that was killed between the end of a move and what follows from it leaves the VM held, or there, where the move
    /// was undone that has made it.
    async fn let_go_of_ended(&self, records: &[MoveRecord]) {
        for view in self.0.registry.list() {
            let Some(holder) = view.held_by else { continue };
            let Some(id) = holder.strip_prefix("move ").and_then(|id| id.parse::<MoveId>().ok()) else {
                continue;
            };
            let record = records.iter().find(|record| record.id == id);
            if record.is_some_and(|record| !record.has_ended()) {
                continue;
            }
            tracing::warn!(vm = %view.name, holder, "a VM was held by a move that is over");
            let freed = timeout(LET_GO_TIME_MAX, self.let_go(&view.name, holder, record)).await;
            if let Ok(Err(error)) = freed.map_err(|_| tracing::warn!(vm = %view.name, "it does not answer")) {
                tracing::warn!(%error, vm = %view.name, "a VM stays held");
            }
        }
    }

    async fn let_go(&self, vm: &VmName, holder: String, record: Option<&MoveRecord>) -> Result<(), Error> {
        self.0.registry.vm(vm)?.release(holder).await?;
        let undone = |record: &MoveRecord| record.destination_end == Some(DestinationOutcome::Discarded);
        if record.is_some_and(|record| record.made_vm && undone(record)) {
            self.0.registry.delete(vm).await?;
        }
        Ok(())
    }

    /// Begins to move a VM to another host; it is told by [`Self::watch`] how far it is.
    ///
    /// # Errors
    /// There is no such VM, or it is being moved.
    pub async fn migrate(&self, vm: &VmName, to: &str, options: Options) -> Result<MoveId, Error> {
        options.check()?;
        let handle = self.0.registry.vm(vm)?;
        let view = handle.view();
        let definition =
            view.definition.ok_or_else(|| Error::one_line(Kind::Damaged, format!("{vm} is damaged")))?;
        let id = MoveId(random()?);
        let record = MoveRecord::new(id, Side::Source, to, definition, options, now_ms());
        if let Some(other) = self.active_of(vm) {
            return Err(Error::one_line(Kind::Busy, format!("{vm} is being moved already ({other})"))
                .with_next(format!("vmctl status {vm} --watch")));
        }
        self.0.files.write(&record)?;
        self.run_source(record, handle);
        Ok(id)
    }

    fn run_source(&self, record: MoveRecord, vm: crate::agent::VmHandle) {
        let (wishes, wished) = mpsc::channel(4);
        let (links, linked) = watch::channel(None);
        let (shown, showing) = watch::channel(record.clone());
        let active =
            Active { side: Side::Source, vm: record.vm.clone(), wishes, shown: showing, links: linked };
        let id = record.id;
        lock(&self.0.active).insert(id, active);
        let hub = Arc::clone(&self.0);
        let work = SourceMove { hub, record, vm, wishes: wished, shown, began: Instant::now() };
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            work.run(links).await;
            lock(&inner.active).remove(&id);
        });
    }

    pub(super) fn run_destination(&self, record: MoveRecord, new: Option<(Setup, UnixStream)>) {
        let (wishes, _) = mpsc::channel(1);
        let (links, linked) = watch::channel(None);
        let (shown, showing) = watch::channel(record.clone());
        let active =
            Active { side: Side::Destination, vm: record.vm.clone(), wishes, shown: showing, links: linked };
        let id = record.id;
        lock(&self.0.active).insert(id, active);
        let work = DestinationMove { hub: Arc::clone(&self.0), record, shown, began: Instant::now() };
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move {
            work.run(new, links).await;
            lock(&inner.active).remove(&id);
        });
    }

    /// The move of a VM that is under way and has not ended.
    pub(super) fn active_of(&self, vm: &VmName) -> Option<MoveId> {
        let active = lock(&self.0.active);
        active.iter().find(|(_, one)| one.vm == *vm && !one.shown.borrow().has_ended()).map(|(id, _)| *id)
    }

    /// A move, as it is now.
    ///
    /// # Errors
    /// There is none.
    pub fn show(&self, id: MoveId) -> Result<MoveRecord, Error> {
        if let Some(active) = lock(&self.0.active).get(&id) {
            return Ok(active.shown.borrow().clone());
        }
        let missing = || Error::one_line(Kind::NotFound, format!("there is no move {id}"));
        self.0.files.read(id)?.ok_or_else(missing)
    }

    /// To wait for a change of one that is under way.
    pub fn watch(&self, id: MoveId) -> Option<watch::Receiver<MoveRecord>> {
        lock(&self.0.active).get(&id).map(|active| active.shown.clone())
    }

    /// All that are known, oldest first; of one VM or of all.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn list(&self, vm: Option<&VmName>) -> Result<Vec<MoveRecord>, Error> {
        let mut all = self.0.files.read_all()?;
        for record in &mut all {
            if let Some(active) = lock(&self.0.active).get(&record.id) {
                *record = active.shown.borrow().clone();
            }
        }
        all.retain(|record| vm.is_none_or(|vm| record.vm == *vm));
        Ok(all)
    }

    /// Asks for the end of a move of a VM, here where it comes from.
    ///
    /// # Errors
    /// There is none under way, or this host is not its source.
    pub async fn abort(&self, vm: &VmName) -> Result<MoveId, Error> {
        let none = || Error::one_line(Kind::NotFound, format!("{vm} is not being moved"));
        let id = self.active_of(vm).ok_or_else(none)?;
        let (side, wishes) = match lock(&self.0.active).get(&id) {
            Some(active) => (active.side, active.wishes.clone()),
            None => return Err(none()),
        };
        if side == Side::Destination {
            let message = format!("{vm} comes here: only the host that it comes from can give the move up");
            return Err(
                Error::one_line(Kind::Refused, message).with_next(format!("vmctl abort {vm}    (there)"))
            );
        }
        let wish = Wish::Abort("somebody asked for it".to_owned());
        wishes.send(wish).await.map_err(|_| none())?;
        Ok(id)
    }

    /// Brings a VM back to this host, to which it has come or from which it has gone.
    ///
    /// # Errors
    /// There was no move, or the other host does not want.
    pub async fn rollback(&self, vm: &VmName, options: Options) -> Result<(String, MoveId), Error> {
        let moved = self.list(Some(vm))?.into_iter().rev().find(MoveRecord::has_moved);
        let none =
            || Error::one_line(Kind::NotFound, format!("{vm} has not been moved")).with_next("vmctl vm list");
        let record = moved.ok_or_else(none)?;
        match record.side {
            Side::Destination => Ok((record.host.clone(), self.migrate(vm, &record.host, options).await?)),
            Side::Source => {
                let question = Question::Return { vm: vm.clone(), options };
                let blockd = self.0.host.blockd.socket();
                let id = stream::ask(blockd, &record.host, question, ANSWER_TIME_MAX).await?;
                Ok((record.host, id))
            }
        }
    }

    /// Whether and how a move could be done; nothing is changed.
    ///
    /// # Errors
    /// The other host cannot be asked, or there is no such VM.
    pub async fn checks(&self, vm: &VmName, to: &str, options: Options) -> Result<Vec<Check>, Error> {
        options.check()?;
        let view = self.0.registry.view(vm)?;
        let definition = view
            .definition
            .clone()
            .ok_or_else(|| Error::one_line(Kind::Damaged, format!("{vm} is damaged")))?;
        let mut checks = vec![match view.state {
            VmState::Running => Check::good("state", "it runs"),
            other => Check::bad("state", other.name(), format!("vmctl vm start {vm}")),
        }];
        if let Some(unfit) = view.adopted.as_ref().and_then(|adopted| adopted.unfit.first()) {
            checks.push(Check::bad("adopted", unfit.clone(), "vmctl vm define FILE --replace"));
        }
        let Some(process) = view.process else { return Ok(checks) };
        let (_, volumes) = super::disk::plan_of(&self.0.host.blockd, &definition).await?;
        for volume in volumes.iter().filter(|volume| volume.role != "primary") {
            let fix = format!("blockctl replica show {}", volume.name);
            checks.push(Check::bad("volume", format!("{} is a {}", volume.name, volume.role), fix));
        }
        let offer =
            Offer { id: None, definition, volumes, qemu: process.qemu, accel: process.accel, options };
        let question = Question::Judge(Box::new(offer));
        let blockd = self.0.host.blockd.socket();
        let judged: Judgement = stream::ask(blockd, to, question, ANSWER_TIME_MAX).await?;
        checks.extend(judged.checks);
        Ok(checks)
    }

    /// The checks, and what is to be sent; nothing is changed.
    ///
    /// # Errors
    /// As [`Self::checks`].
    pub async fn plan(&self, vm: &VmName, to: &str, options: Options) -> Result<MovePlan, Error> {
        let checks = self.checks(vm, to, options).await?;
        let view = self.0.registry.view(vm)?;
        let definition =
            view.definition.ok_or_else(|| Error::one_line(Kind::Damaged, format!("{vm} is damaged")))?;
        let (_, volumes) = super::disk::plan_of(&self.0.host.blockd, &definition).await?;
        let all = self.list(Some(vm))?;
        let last = all.into_iter().rev().find(|record| record.host == to && record.has_moved());
        let there = checks
            .iter()
            .filter(|check| check.what == "volume" && check.found.ends_with("a replica is there"));
        Ok(MovePlan {
            last: last.map(|record| record.numbers),
            disk_bytes: volumes.iter().map(|volume| volume.size).sum(),
            memory_bytes: definition.memory.0,
            replicas: there.count() == volumes.len(),
            checks,
        })
    }

    /// Moves that blockd has begun and whose agent knows nothing of them (its journal was lost) are given up, so that they
    /// do not stand in the way for ever. Not those that are under way.
    ///
    /// # Errors
    /// blockd does not answer.
    pub async fn give_up_orphans(&self) -> Result<Vec<MoveId>, Error> {
        let mut given_up = Vec::new();
        for moved in self.0.host.blockd.moves().await? {
            let open = matches!(moved.stage, Stage::Frozen | Stage::Expected);
            let known = lock(&self.0.active).contains_key(&moved.id)
                || self.0.files.read(moved.id)?.is_some_and(|record| !record.has_ended());
            if open && !known {
                self.0.host.blockd.abort_unknown(moved.id).await?;
                given_up.push(moved.id);
            }
        }
        Ok(given_up)
    }

    /// Another host's question.
    pub(super) async fn answer(
        &self,
        from: &str,
        question: Question,
        stream: &mut UnixStream,
    ) -> Result<(), Error> {
        match question {
            Question::Judge(offer) => {
                let judged = self.judge(from, *offer).await;
                stream::reply(stream, judged).await
            }
            Question::Return { vm, options } => {
                let moved = self.migrate(&vm, from, options).await;
                stream::reply(stream, moved).await
            }
        }
    }

    /// Somebody opens the link of a move.
    pub(super) async fn control(&self, from: &str, id: MoveId, mut stream: UnixStream) {
        let links = lock(&self.0.active)
            .get(&id)
            .map(|active| (active.links.clone(), active.shown.borrow().host.clone()));
        if let Some((mut links, host)) = links {
            if host != from {
                return tracing::warn!(%id, from, "another host than the move's wants its link");
            }
            // It is about to be there.
            let link = links.wait_for(Option::is_some).await.ok().and_then(|link| link.clone());
            if let Some(link) = link
                && link.send(stream).await.is_err()
            {
                tracing::debug!(%id, "a move that is over is asked for");
            }
            return;
        }
        let record = match self.0.files.read(id) {
            Ok(record) => record,
            Err(error) => return tracing::error!(%error, "a move cannot be answered about"),
        };
        if record.as_ref().is_some_and(|record| record.host != from) {
            return tracing::warn!(%id, from, "another host than the move's asks about it");
        }
        if let Some(plan) = super::reception::answer_ended(self, from, id, record, &mut stream).await {
            self.begin_destination(from, id, plan, stream).await;
        }
    }

    /// Memory of a guest that comes.
    pub(super) async fn memory(&self, from: &str, id: MoveId, stream: UnixStream) {
        let vm = {
            let active = lock(&self.0.active);
            let of_here = active.get(&id).filter(|active| active.side == Side::Destination);
            of_here.filter(|active| active.shown.borrow().host == from).map(|active| active.vm.clone())
        };
        let Some(vm) = vm else {
            return tracing::warn!(%id, from, "memory of a move that is not known here");
        };
        let config = &self.0.host.config;
        deliver(stream, &Places::new(&config.run, &config.data, &vm).migration()).await;
    }
}

fn random() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match got {
        Ok(16) => Ok(bytes),
        Ok(_) => Err(Error::one_line(Kind::Io, "the kernel has too little randomness")),
        Err(error) => Err(Error::one_line(Kind::Io, format!("the kernel has no randomness: {error}"))),
    }
}

/// The agent was started anew: whoever asked for it is gone, and nothing is to be undone.
fn end_unbegun(files: &MoveFiles, record: &mut MoveRecord) {
    let why = "the agent was restarted before the move had begun";
    record.failure = Some(Error::one_line(Kind::Stopping, why));
    record.ended_ms = Some(now_ms());
    if let Err(error) = files.write(record) {
        tracing::error!(%error, "the end of a move cannot be written down");
    }
}

/// Why a source went back, for people.
pub fn reason_text(reason: &Reason) -> String {
    match reason {
        Reason::Asked(text) | Reason::Refused(text) | Reason::Failed(text) | Reason::Blockd(text) => {
            text.to_string()
        }
        Reason::Link => "the link to the other host broke while the guest was stopped".to_owned(),
        Reason::Qemu(said) => format!("QEMU here was {said:?} in the middle of it"),
        Reason::Elsewhere => "somebody else has given it up".to_owned(),
        Reason::Restarted => "the agent was restarted".to_owned(),
    }
}
