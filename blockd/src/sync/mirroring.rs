//! Mirrors at work: what changes of a volume is carried to the other host as it changes (docs/replication.md, "Mirroring").

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};

use super::batch::{Packer, run_hash};
use super::link::{FrameReader, LinkError, write_frames};
use super::mirror::{Do, MirrorSource};
use super::offer::offer;
use super::reader_thread::ask;
use super::replicator::{GOODBYE_MAX, Replicator, TICK, fastrand_bytes};
use super::wire::{Code, Frame, OfferedVolume, Refusal};
use crate::catalog::format::Point;
use crate::control::mirror::{Mirror, MirrorContent, MirrorId, MirrorRun, Mirrored};
use crate::control::{Answer, Control, ControlError, ErrorKind, SnapshotName};
use crate::events::now_ms;
use crate::peer::PeerLink;
use crate::snapshot::{hash, with_pin};
use crate::store::MIRROR_BATCHES_MAX;
use crate::units::{CLUSTER_BYTES, SnapshotUid};

/// A map that is being loaded, or layers that are being merged, are waited for so often, for so long each time.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How far a mirror is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorStage {
    /// The other host is being asked.
    Connecting,
    /// Clients' changes are mirrored; what had changed before is on its way.
    CatchingUp,
    /// The other host has all that was answered.
    InSync,
    /// It is over: clients are answered without it.
    Ended,
}

/// What a mirror is and has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorInfo {
    /// The volume's name.
    pub volume: String,
    /// The other host's name.
    pub to: String,
    /// How far it is.
    pub stage: MirrorStage,
    /// Bytes that had changed before and are still to be sent, in whole clusters.
    pub backlog_bytes: u64,
    /// Bytes on the wire.
    pub sent_bytes: u64,
    /// The last snapshot that it has brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<String>,
    /// BLAKE3 of that snapshot's content: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Why it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Has volumes mirrored.
pub trait Mirrors: Send + Sync {
    /// Begins. Is done when it was begun; how far it comes is told by [`Self::list`]. Again for the same host: nothing
    /// changes.
    ///
    /// # Errors
    /// `Busy`: it is mirrored to another host.
    fn begin(&self, volume: &str, to: &str) -> Result<(), ControlError>;

    /// Ends it; is done when clients are answered without it.
    fn end(&self, volume: &str) -> Pin<Box<dyn Future<Output = Result<(), ControlError>> + Send>>;

    /// All of this daemon, by volume; those that have ended until they are begun again.
    fn list(&self) -> Vec<MirrorInfo>;
}

/// A mirror as others see it.
#[derive(Clone)]
pub(super) struct Seen {
    info: watch::Receiver<MirrorInfo>,
    stop: Arc<watch::Sender<bool>>,
}

impl Seen {
    pub(super) fn info(&self) -> MirrorInfo {
        self.info.borrow().clone()
    }

    /// Until it has brought a snapshot.
    ///
    /// # Errors
    /// Why it has ended before.
    pub(super) async fn brought(&mut self, snapshot: &str) -> Result<MirrorInfo, String> {
        let is_done = |info: &MirrorInfo| {
            info.stage == MirrorStage::Ended || info.published.as_deref() == Some(snapshot)
        };
        let info = self.info.wait_for(is_done).await.map(|info| info.clone());
        let info = info.map_err(|_| "the daemon is stopping".to_owned())?;
        if info.published.as_deref() == Some(snapshot) {
            return Ok(info);
        }
        Err(info.reason.unwrap_or_default())
    }

    async fn ended(&mut self) {
        // Without a sender there is no mirror either.
        drop(self.info.wait_for(|info| info.stage == MirrorStage::Ended).await);
    }
}

/// The door to them, in the daemon.
pub struct Mirroring(pub Arc<Replicator>);

impl Mirrors for Mirroring {
    fn begin(&self, volume: &str, to: &str) -> Result<(), ControlError> {
        let mut all = self.0.mirrors();
        if let Some(info) = all.get(volume).map(Seen::info).filter(|info| info.stage != MirrorStage::Ended) {
            if info.to == to {
                return Ok(());
            }
            let text = format!("{volume:?} is mirrored to {}", info.to);
            return Err(ControlError::new(ErrorKind::Busy, text));
        }
        let info = MirrorInfo {
            volume: volume.to_owned(),
            to: to.to_owned(),
            stage: MirrorStage::Connecting,
            backlog_bytes: 0,
            sent_bytes: 0,
            published: None,
            root: None,
            reason: None,
        };
        let (teller, told) = watch::channel(info);
        let (stop, stopped) = watch::channel(false);
        all.insert(volume.to_owned(), Seen { info: told, stop: Arc::new(stop) });
        tokio::spawn(mirror(Arc::clone(&self.0), teller, stopped));
        Ok(())
    }

    fn end(&self, volume: &str) -> Pin<Box<dyn Future<Output = Result<(), ControlError>> + Send>> {
        let seen = self.0.mirrors().get(volume).cloned();
        let missing = format!("{volume:?} is not mirrored");
        Box::pin(async move {
            let mut seen = seen.ok_or_else(|| ControlError::new(ErrorKind::NotFound, missing))?;
            seen.stop.send_replace(true);
            seen.ended().await;
            Ok(())
        })
    }

    fn list(&self) -> Vec<MirrorInfo> {
        self.0.mirrors().values().map(Seen::info).collect()
    }
}

/// A mirror's life.
async fn mirror(
    replicator: Arc<Replicator>,
    teller: watch::Sender<MirrorInfo>,
    mut stopped: watch::Receiver<bool>,
) {
    let (volume, to) = (teller.borrow().volume.clone(), teller.borrow().to.clone());
    let mut id = None;
    let reason = tokio::select! {
        Err(refusal) = carry(&replicator, &teller, &mut id) => refusal.to_string(),
        // Without whoever could tell it to end, it ends.
        _ = stopped.wait_for(|stop| *stop) => "it was told to end".to_owned(),
    };
    if let Some(id) = id {
        // If the store has ended it before, that is what is wanted.
        drop(replicator.service.call(Control::Mirror(Mirror::End { id })).await);
    }
    tracing::info!(volume, to, reason, "no mirror any more");
    replicator.events.record("mirror_ended", volume, format!("to {to}: {reason}"));
    teller.send_modify(|info| (info.stage, info.reason) = (MirrorStage::Ended, Some(reason)));
}

async fn carry(
    replicator: &Arc<Replicator>,
    teller: &watch::Sender<MirrorInfo>,
    id: &mut Option<MirrorId>,
) -> Result<std::convert::Infallible, Refusal> {
    let to = teller.borrow().to.clone();
    let peers = replicator.peers.get().await.map_err(failed)?;
    let link = peers.connect(&to).await.map_err(failed)?;
    Carrying::start(replicator, teller, id, link).await?.run().await
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(Code::Failed, error.to_string())
}

/// What a mirror's next step is about.
enum Took {
    /// Sent as it is.
    Batch { number: u64, bytes: Vec<u8>, backlog: u64 },
    /// What was sent is that snapshot; it may be the last one.
    Cut(SnapshotName, bool),
}

/// A session under way.
struct Carrying<'a> {
    replicator: &'a Arc<Replicator>,
    teller: &'a watch::Sender<MirrorInfo>,
    id: &'a mut Option<MirrorId>,
    source: MirrorSource,
    frames: FrameReader<Box<dyn crate::peer::LinkIo>>,
    out: mpsc::UnboundedSender<Frame>,
    writing: JoinHandle<std::io::Result<()>>,
    closed: crate::peer::Closed,
    sent: watch::Receiver<u64>,
    /// The snapshot that it is over, or that was marked.
    base: Option<(SnapshotName, SnapshotUid)>,
    take: Option<JoinHandle<Result<Took, ControlError>>>,
    root: Option<JoinHandle<Result<[u8; 32], ControlError>>>,
    found_root: Option<[u8; 32]>,
    /// Batches that were taken and are not written there.
    on_way: usize,
    backlog: u64,
    /// The snapshot that was marked is the last one.
    last: bool,
}

impl Drop for Carrying<'_> {
    fn drop(&mut self) {
        self.writing.abort();
    }
}

impl<'a> Carrying<'a> {
    async fn start(
        replicator: &'a Arc<Replicator>,
        teller: &'a watch::Sender<MirrorInfo>,
        id: &'a mut Option<MirrorId>,
        link: PeerLink,
    ) -> Result<Self, Refusal> {
        let session = replicator.session_link(link.host, link.exporter).await.map_err(failed)?;
        let pace = replicator.pace_of(link.host).await.map_err(failed)?;
        let (read, write) = tokio::io::split(link.stream);
        let (out, queue) = mpsc::unbounded_channel();
        let (counter, sent) = watch::channel(0);
        let writing = tokio::spawn(write_frames(write, queue, vec![pace], counter));
        Ok(Self {
            replicator,
            teller,
            id,
            source: MirrorSource::start(session, replicator.now()),
            frames: FrameReader::new(read),
            out,
            writing,
            closed: link.closed,
            sent,
            base: None,
            take: None,
            root: None,
            found_root: None,
            on_way: 0,
            backlog: 0,
            last: false,
        })
    }

    async fn run(mut self) -> Result<std::convert::Infallible, Refusal> {
        let result = self.exchange().await;
        // What it has said last may be why.
        let (out, _) = mpsc::unbounded_channel();
        drop(std::mem::replace(&mut self.out, out));
        // It is aborted if it does not end.
        drop(timeout(GOODBYE_MAX, &mut self.writing).await);
        result
    }

    async fn exchange(&mut self) -> Result<std::convert::Infallible, Refusal> {
        let mut ticks = interval(TICK);
        loop {
            for action in self.source.take() {
                self.carry_out(action).await?;
            }
            self.take_next();
            let now = self.replicator.now();
            tokio::select! {
                frame = self.frames.next() => match frame {
                    Ok(Some(frame)) => self.source.received(frame, now),
                    Ok(None) => return Err(Refusal::new(Code::Stalled, "the link ended")),
                    Err(LinkError::Wire(error)) => {
                        self.source.refuse(Refusal::new(Code::BadFrame, error.to_string()), now);
                    }
                    Err(LinkError::Io(error)) => return Err(Refusal::new(Code::Stalled, error.to_string())),
                },
                took = finished(&mut self.take) => {
                    let took = took.map_err(failed)?.map_err(failed)?;
                    self.took(took).await?;
                }
                root = finished(&mut self.root) => {
                    let root = root.map_err(failed)?.map_err(failed)?;
                    self.found_root = Some(root);
                    self.source.root(root, now);
                }
                _ = ticks.tick() => {
                    self.source.tick(now);
                    self.tell();
                }
                () = self.closed.wait() => {
                    return Err(Refusal::new(Code::NotAllowed, "the host is not trusted any more"));
                }
                _ = &mut self.writing => return Err(Refusal::new(Code::Stalled, "the link broke")),
            }
        }
    }

    async fn carry_out(&mut self, action: Do) -> Result<(), Refusal> {
        match action {
            // If nobody takes it any more, the link is broken: that is heard of soon.
            Do::Send(frame) => drop(self.out.send(frame)),
            Do::Offer => self.offer().await?,
            Do::GoOn => self.go_on().await?,
            Do::Written(batch) => {
                let Some(id) = *self.id else { return Ok(()) };
                call(self.replicator, Mirror::Written { id, batch }).await?;
                self.on_way -= 1;
                self.tell();
            }
            Do::Published => {
                if self.last {
                    self.tell_brought();
                    return Err(Refusal::new(
                        Code::Stopping,
                        "the volume has been frozen, and all of it was brought",
                    ));
                }
                let root = self.found_root;
                self.offer_over(root).await?;
            }
            Do::Over(refusal) => return Err(refusal),
        }
        Ok(())
    }

    /// Over the newest snapshot.
    async fn offer(&mut self) -> Result<(), Refusal> {
        let volume = self.teller.borrow().volume.clone();
        let all = self.replicator.identities().await.map_err(failed)?;
        let own = all.iter().find(|other| other.name == volume);
        let newest = own.and_then(|own| own.snapshots.iter().max_by_key(|snapshot| snapshot.point));
        let missing =
            || Refusal::new(Code::BaseMismatch, format!("{volume:?} has no snapshot to begin with"));
        let newest = newest.ok_or_else(missing)?;
        let name = SnapshotName { volume: volume.clone(), snapshot: newest.name.clone() };
        self.base = Some((name, newest.uid));
        self.offer_over(None).await
    }

    /// What is to come is called something of its own until it is a snapshot.
    async fn offer_over(&mut self, root: Option<[u8; 32]>) -> Result<(), Refusal> {
        let Some((name, uid)) = self.base.clone() else { return Ok(()) };
        let base = offered(self.replicator, &name).await?;
        let point = Point { sequence: base.point.sequence.saturating_add(1), ..base.point };
        let offer = OfferedVolume {
            uid: SnapshotUid(fastrand_bytes()),
            point,
            name: "mirror".to_owned(),
            created_ms: now_ms(),
            candidates: vec![uid],
            ..base
        };
        self.source.offer(offer, root, self.replicator.now());
        Ok(())
    }

    /// The other side takes batches: clients wait for it from now on.
    async fn go_on(&mut self) -> Result<(), Refusal> {
        if let Some(id) = *self.id {
            call(self.replicator, Mirror::GoOn { id }).await?;
            // Not before: whoever waits for it may have the next snapshot cut at once.
            self.tell_brought();
            return Ok(());
        }
        let Some((name, base)) = self.base.clone() else { return Ok(()) };
        let begin = || Mirror::Begin { volume: name.volume.clone(), base };
        let begin = || self.replicator.service.call(Control::Mirror(begin()));
        let mut tries = BUSY_TRIES;
        let answer = loop {
            match begin().await {
                Err(error) if error.kind == ErrorKind::Busy && tries > 0 => tries -= 1,
                other => break other.map_err(failed)?,
            }
            sleep(BUSY_PAUSE).await;
        };
        let Answer::Mirroring(mirroring) = answer else { return Err(wrong()) };
        (*self.id, self.backlog) = (Some(mirroring.id), mirroring.backlog);
        self.teller.send_modify(|info| info.stage = MirrorStage::CatchingUp);
        self.tell();
        Ok(())
    }

    /// Asks for more, if more may be sent.
    fn take_next(&mut self) {
        let Some(id) = *self.id else { return };
        if !self.source.is_mirroring() || self.take.is_some() || self.on_way >= MIRROR_BATCHES_MAX {
            return;
        }
        let (service, zstd) = (self.replicator.service.clone(), self.source.zstd());
        self.take = Some(tokio::spawn(async move {
            match service.call(Control::Mirror(Mirror::Take { id })).await? {
                Answer::Mirrored(Mirrored::Cut { name, last }) => Ok(Took::Cut(name, last)),
                Answer::Mirrored(Mirrored::Batch { batch, runs, backlog }) => {
                    let packed = tokio::task::spawn_blocking(move || pack(&runs, zstd)).await;
                    let bytes =
                        packed.map_err(|error| ControlError::new(ErrorKind::Io, error.to_string()))?;
                    Ok(Took::Batch { number: batch, bytes, backlog })
                }
                _ => Err(ControlError::new(ErrorKind::Io, "the store gave an answer of the wrong kind")),
            }
        }));
    }

    async fn took(&mut self, took: Took) -> Result<(), Refusal> {
        match took {
            Took::Batch { number, bytes, backlog } => {
                (self.on_way, self.backlog) = (self.on_way + 1, backlog);
                self.source.batch(number, bytes, self.replicator.now());
            }
            Took::Cut(name, last) => {
                self.last = last;
                let snapshot = offered(self.replicator, &name).await?;
                self.base = Some((name.clone(), snapshot.uid));
                self.source.mark(snapshot, self.replicator.now());
                let replicator = Arc::clone(self.replicator);
                self.root = Some(tokio::task::spawn_blocking(move || root(&replicator, &name)));
            }
        }
        Ok(())
    }

    /// The other host shows the snapshot.
    fn tell_brought(&mut self) {
        self.tell();
        let (base, root) = (self.base.as_ref(), self.found_root.take());
        self.teller.send_modify(|info| {
            info.published = base.map(|(name, _)| name.snapshot.clone());
            info.root = root.map(|root| crate::api::types::hex(&root));
        });
    }

    fn tell(&mut self) {
        let sent = *self.sent.borrow();
        let backlog = self.backlog * CLUSTER_BYTES;
        let in_sync = self.id.is_some() && backlog == 0 && self.on_way == 0;
        self.teller.send_if_modified(|info| {
            let before = (info.backlog_bytes, info.sent_bytes, info.stage);
            (info.backlog_bytes, info.sent_bytes) = (backlog, sent);
            if info.stage == MirrorStage::CatchingUp && in_sync {
                info.stage = MirrorStage::InSync;
            }
            before != (info.backlog_bytes, info.sent_bytes, info.stage)
        });
    }
}

async fn call(replicator: &Replicator, command: Mirror) -> Result<Answer, Refusal> {
    replicator.service.call(Control::Mirror(command)).await.map_err(failed)
}

/// A snapshot as it is offered; without candidates.
async fn offered(replicator: &Replicator, name: &SnapshotName) -> Result<OfferedVolume, Refusal> {
    let all = replicator.identities().await.map_err(failed)?;
    let offer = offer(&all, name, None).map_err(failed)?.brought.offer;
    Ok(OfferedVolume { candidates: Vec::new(), ..offer })
}

fn wrong() -> Refusal {
    Refusal::new(Code::Failed, "the store gave an answer of the wrong kind")
}

/// What a task has made, when it has; never, without one.
async fn finished<T>(task: &mut Option<JoinHandle<T>>) -> Result<T, tokio::task::JoinError> {
    let Some(handle) = task else { return std::future::pending().await };
    let made = handle.await;
    *task = None;
    made
}

/// Blocking: the batch of what was read.
fn pack(runs: &[MirrorRun], zstd: bool) -> Vec<u8> {
    let mut packer = Packer::new(zstd);
    for run in runs {
        match &run.content {
            MirrorContent::Data(bytes) => {
                let hash = run_hash(run.cluster, u32::from(run.first), bytes);
                packer.data(run.cluster, run.first, bytes, hash);
            }
            MirrorContent::Zero(blocks) => packer.zero(run.cluster, run.first, u64::from(*blocks)),
        }
    }
    packer.finish()
}

/// Blocking: the root of a snapshot that was just cut.
fn root(replicator: &Replicator, name: &SnapshotName) -> Result<[u8; 32], ControlError> {
    let submit = |command| ask(&*replicator.engine, command);
    let mut tries = BUSY_TRIES;
    loop {
        let found =
            with_pin(&submit, name, |pinned| hash(&replicator.reader, pinned, &submit, &mut |_, _| true));
        match found {
            Err(error) if error.kind == ErrorKind::Busy && tries > 0 => tries -= 1,
            other => return other,
        }
        std::thread::sleep(BUSY_PAUSE);
    }
}
