//! The source's side: runs of jobs. A snapshot is cut, or one that was interrupted is gone on with; it is brought to
//! the target; what both sides have then is held until the next one is there.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};

use super::link::{FrameReader, LinkError, write_frames};
use super::mirroring::{MirrorStage, Seen};
use super::offer::{Offer, offer};
use super::pace::Pace;
use super::reader_thread::{ReaderThread, Told};
use super::reading::ReadStats;
use super::replicator::{GOODBYE_MAX, Replicator, TICK};
use super::source::{Do, Flow, Source};
use super::wire::{Code, Frame, KeepWish, Message, Refusal};
use crate::control::mirror::Mirror;
use crate::control::replication::VolumeIdentity;
use crate::control::{Control, ControlError, ErrorKind, SnapshotName};
use crate::jobs::carrier::{
    Carrier, Carrying, Outcome, Phase, RunError, RunErrorKind, RunOrder, RunReport, RunWatch,
};
use crate::jobs::job::job_of;
use crate::jobs::keep::Keep;
use crate::peer::{PeerError, PeerErrorKind, PeerLink};

/// The carrier of runs over links with other hosts.
pub struct LinkCarrier(pub Arc<Replicator>);

impl Carrier for LinkCarrier {
    fn run(&self, order: RunOrder, watch: Arc<RunWatch>) -> Carrying<Outcome> {
        let replicator = Arc::clone(&self.0);
        Box::pin(async move { replicator.run(&order, &watch).await })
    }
}

fn sending(to: &str) -> String {
    format!("sending-{to}")
}

/// The hold of the newest snapshot that a host has confirmed.
pub(super) fn base(to: &str) -> String {
    format!("base-{to}")
}

/// A snapshot of that name, in each of the run's volumes.
fn names(order: &RunOrder, snapshot: &str) -> Vec<SnapshotName> {
    let name = |volume: &String| SnapshotName { volume: volume.clone(), snapshot: snapshot.to_owned() };
    order.volumes.iter().map(name).collect()
}

/// As it travels.
fn wish(keep: &Keep) -> KeepWish {
    let Keep { last, minutely, hourly, daily, weekly, monthly, yearly, within } = *keep;
    let within_s = within.map_or(0, crate::jobs::span::Span::as_secs);
    KeepWish { counts: [last, minutely, hourly, daily, weekly, monthly, yearly], within_s }
}

/// Of a run that has brought two snapshots: the point of the later one, the bytes of both.
fn both(first: &RunReport, second: RunReport) -> RunReport {
    RunReport {
        bytes_changed: first.bytes_changed + second.bytes_changed,
        bytes_sent: first.bytes_sent + second.bytes_sent,
        bytes_zero: first.bytes_zero + second.bytes_zero,
        bytes_deduped: first.bytes_deduped + second.bytes_deduped,
        bytes_compressed_saved: first.bytes_compressed_saved + second.bytes_compressed_saved,
        bytes_shared: first.bytes_shared + second.bytes_shared,
        ..second
    }
}

fn run_error(error: &ControlError) -> RunError {
    let kind = match error.kind {
        ErrorKind::NotFound => RunErrorKind::NotFound,
        ErrorKind::Busy => RunErrorKind::Busy,
        ErrorKind::NoSpace => RunErrorKind::NoSpace,
        ErrorKind::Io => RunErrorKind::Io,
        ErrorKind::Damaged => RunErrorKind::Damaged,
        ErrorKind::Stopping => RunErrorKind::Stopping,
        ErrorKind::BadName
        | ErrorKind::BadValue
        | ErrorKind::Exists
        | ErrorKind::Refused
        | ErrorKind::Stale => RunErrorKind::Refused,
    };
    RunError::new(kind, error.message.clone())
}

fn link_error(error: &PeerError) -> RunError {
    let kind = match error.kind {
        PeerErrorKind::NotFound => RunErrorKind::NotFound,
        PeerErrorKind::Unreachable => RunErrorKind::Unreachable,
        PeerErrorKind::Busy => RunErrorKind::Busy,
        PeerErrorKind::Damaged => RunErrorKind::Damaged,
        PeerErrorKind::Io => RunErrorKind::Io,
        PeerErrorKind::BadName | PeerErrorKind::BadValue | PeerErrorKind::Exists | PeerErrorKind::Refused => {
            RunErrorKind::Refused
        }
    };
    RunError::new(kind, error.message.clone())
}

fn refused(refusal: &Refusal) -> RunError {
    let kind = match refusal.code {
        Code::Stalled => RunErrorKind::Unreachable,
        // The next session sees what has changed.
        Code::Busy | Code::SessionExists | Code::BadResume | Code::BaseMismatch => RunErrorKind::Busy,
        Code::Stopping => RunErrorKind::Stopping,
        Code::NoSpace => RunErrorKind::NoSpace,
        Code::Failed => RunErrorKind::Io,
        Code::BadFrame
        | Code::BadManifest
        | Code::BadData
        | Code::BadId
        | Code::BadBinding
        | Code::RootMismatch => RunErrorKind::Verification,
        Code::VersionMismatch
        | Code::StaleEpoch
        | Code::StaleSnapshot
        | Code::NotAReplica
        | Code::NameTaken
        | Code::NotAllowed
        | Code::Quarantined => RunErrorKind::Refused,
    };
    RunError::new(kind, refusal.to_string())
}

impl Replicator {
    async fn run(self: Arc<Self>, order: &RunOrder, watch: &Arc<RunWatch>) -> Outcome {
        if let Some(mirrors) = self.mirrors_of(order)? {
            return self.bring_mirrored(mirrors, order, watch).await;
        }
        let link = self.connect(&order.to, watch).await?;
        let Some(unfinished) = self.unfinished(order).await? else {
            let snapshot = self.cut(order, watch).await?;
            return self.bring(link, &snapshot, order, watch).await;
        };
        let first = self.bring(link, &unfinished, order, watch).await?;
        if watch.is_cancelled() {
            return Ok(first);
        }
        // What was interrupted is old by now.
        let link = self.connect(&order.to, watch).await?;
        let snapshot = self.cut(order, watch).await?;
        let second = self.bring(link, &snapshot, order, watch).await?;
        Ok(both(&first, second))
    }

    /// The mirrors of the run's volumes to its target, if they are mirrored there.
    fn mirrors_of(&self, order: &RunOrder) -> Result<Option<Vec<Seen>>, RunError> {
        let all = self.mirrors();
        let to_there = |volume: &String| all.get(volume).filter(|seen| seen.info().to == order.to).cloned();
        let mirrors: Vec<Seen> = order.volumes.iter().filter_map(to_there).collect();
        let stages: Vec<MirrorStage> = mirrors.iter().map(|seen| seen.info().stage).collect();
        if stages.iter().all(|stage| *stage == MirrorStage::Ended) {
            return Ok(None);
        }
        if mirrors.len() == order.volumes.len() && stages.iter().all(|stage| *stage == MirrorStage::InSync) {
            return Ok(Some(mirrors));
        }
        // Another session would take the replica's head from it.
        Err(RunError::new(RunErrorKind::Busy, "a mirror to that host is not in sync"))
    }

    /// The target has what the snapshot holds: it is told that it is one, and compares the root.
    async fn bring_mirrored(&self, mirrors: Vec<Seen>, order: &RunOrder, watch: &Arc<RunWatch>) -> Outcome {
        let before: u64 = mirrors.iter().map(|seen| seen.info().sent_bytes).sum();
        watch.about_to_cut();
        let point_ms = crate::events::now_ms();
        let names = names(order, &order.snapshot);
        self.call(Control::Mirror(Mirror::Cut { names })).await?;
        self.hold(order, &order.snapshot).await?;
        watch.phase(Phase::Verifying);
        let (mut roots, mut sent) = (Vec::new(), 0);
        for mut seen in mirrors {
            let brought = tokio::select! {
                brought = seen.brought(&order.snapshot) => brought,
                () = watch.cancelled() => return Err(RunError::new(RunErrorKind::Cancelled, "it was told to end")),
            };
            let info = brought.map_err(|reason| RunError::new(RunErrorKind::Unreachable, reason))?;
            roots.extend(info.root);
            sent += info.sent_bytes;
        }
        self.acknowledge(&order.snapshot, order).await?;
        Ok(RunReport {
            point_ms,
            snapshot: order.snapshot.clone(),
            root: Some(roots.join(" ")).filter(|roots| !roots.is_empty()),
            bytes_sent: sent.saturating_sub(before),
            ..RunReport::default()
        })
    }

    async fn connect(&self, to: &str, watch: &RunWatch) -> Result<PeerLink, RunError> {
        watch.phase(Phase::Connecting);
        let peers = self.peers.get().await.map_err(|error| link_error(&error))?;
        tokio::select! {
            link = peers.connect(to) => link.map_err(|error| link_error(&error)),
            () = watch.cancelled() => Err(RunError::new(RunErrorKind::Cancelled, "it was told to end")),
        }
    }

    async fn call(&self, command: Control) -> Result<(), RunError> {
        self.service.call(command).await.map(drop).map_err(|error| run_error(&error))
    }

    async fn volumes(&self, order: &RunOrder) -> Result<Vec<VolumeIdentity>, RunError> {
        let all = self.identities().await.map_err(|error| run_error(&error))?;
        let find = |name: &String| {
            let missing = || RunError::new(RunErrorKind::NotFound, format!("there is no volume {name:?}"));
            all.iter().find(|volume| volume.name == *name).cloned().ok_or_else(missing)
        };
        order.volumes.iter().map(find).collect()
    }

    /// The snapshot of this job, in all its volumes, that was being sent there when that was interrupted.
    async fn unfinished(&self, order: &RunOrder) -> Result<Option<String>, RunError> {
        let mut common: Option<Vec<String>> = None;
        for volume in self.volumes(order).await? {
            let held = self.held(&volume.name, &sending(&order.to)).await?;
            let mut own: Vec<String> =
                held.into_iter().filter(|name| job_of(name) == Some(order.job.as_str())).collect();
            if let Some(others) = &common {
                own.retain(|name| others.contains(name));
            }
            common = Some(own);
        }
        Ok(common.and_then(|names| names.last().cloned()))
    }

    /// Snapshots of a volume that are held for a reason, oldest first.
    async fn held(&self, volume: &str, reason: &str) -> Result<Vec<String>, RunError> {
        let list = Control::ListSnapshots { volume: Some(volume.to_owned()) };
        let answer = self.service.call(list).await.map_err(|error| run_error(&error))?;
        let crate::control::Answer::Snapshots(all) = answer else {
            return Err(RunError::new(RunErrorKind::Io, "the store gave an answer of the wrong kind"));
        };
        let held = all.into_iter().filter(|snapshot| snapshot.holds.iter().any(|hold| hold == reason));
        Ok(held.map(|snapshot| snapshot.name).collect())
    }

    /// One instant of all volumes; held until the target has it. Runs that begin together bring the same.
    async fn cut(&self, order: &RunOrder, watch: &RunWatch) -> Result<String, RunError> {
        self.volumes(order).await?;
        let mut shared = order.together.cut().await;
        if let Some(cut) = &*shared
            && watch.joins(cut)
            && self.hold(order, &cut.snapshot).await.is_ok()
        {
            return Ok(cut.snapshot.clone());
        }
        watch.about_to_cut();
        self.call(Control::CreateSnapshots { names: names(order, &order.snapshot) }).await?;
        self.hold(order, &order.snapshot).await?;
        *shared = watch.cut(order.snapshot.clone());
        Ok(order.snapshot.clone())
    }

    async fn hold(&self, order: &RunOrder, snapshot: &str) -> Result<(), RunError> {
        for name in names(order, snapshot) {
            self.call(Control::Hold { name, reason: sending(&order.to) }).await?;
        }
        Ok(())
    }

    async fn bring(
        self: &Arc<Self>,
        link: PeerLink,
        snapshot: &str,
        order: &RunOrder,
        watch: &Arc<RunWatch>,
    ) -> Outcome {
        let all = self.identities().await.map_err(|error| run_error(&error))?;
        let offers = names(order, snapshot).into_iter().map(|name| offer(&all, &name, None));
        let offers: Vec<Offer> = offers.collect::<Result<_, _>>().map_err(|error| run_error(&error))?;
        let point_ms = offers.iter().map(|offer| offer.brought.offer.created_ms).min().unwrap_or_default();
        let session = Bringing::start(self, link, offers, order, watch).await?;
        let (roots, stats, sent) = session.run().await?;
        self.acknowledge(snapshot, order).await?;
        Ok(RunReport {
            point_ms,
            snapshot: snapshot.to_owned(),
            root: Some(roots.join(" ")).filter(|roots| !roots.is_empty()),
            bytes_changed: stats.looked_at,
            bytes_sent: sent,
            bytes_zero: stats.zero,
            bytes_deduped: stats.copied + stats.unchanged,
            bytes_compressed_saved: stats.compressed,
            bytes_shared: stats.shared,
        })
    }

    /// The target has it: that is what the next differences are against.
    async fn acknowledge(&self, snapshot: &str, order: &RunOrder) -> Result<(), RunError> {
        let (sending, base) = (sending(&order.to), base(&order.to));
        for volume in &order.volumes {
            let name =
                |snapshot: &str| SnapshotName { volume: volume.clone(), snapshot: snapshot.to_owned() };
            // The new one first: at no time is there none.
            self.call(Control::Hold { name: name(snapshot), reason: base.clone() }).await?;
            for old in self.held(volume, &base).await?.into_iter().filter(|old| old != snapshot) {
                self.call(Control::Release { name: name(&old), reason: base.clone() }).await?;
            }
            // Those that were given up, too.
            for old in self.held(volume, &sending).await? {
                self.call(Control::Release { name: name(&old), reason: sending.clone() }).await?;
            }
        }
        Ok(())
    }
}

/// A session under way.
struct Bringing<'a> {
    replicator: &'a Replicator,
    watch: &'a Arc<RunWatch>,
    source: Source,
    thread: ReaderThread,
    told: mpsc::UnboundedReceiver<Told>,
    out: mpsc::UnboundedSender<Frame>,
    writing: tokio::task::JoinHandle<std::io::Result<()>>,
    frames: FrameReader<Box<dyn crate::peer::LinkIo>>,
    closed: crate::peer::Closed,
    sent: watch::Receiver<u64>,
    roots: Vec<String>,
    /// Of volumes that are done, and of the one under way.
    stats: (ReadStats, ReadStats),
    total: u64,
}

impl<'a> Bringing<'a> {
    async fn start(
        replicator: &'a Arc<Replicator>,
        link: PeerLink,
        offers: Vec<Offer>,
        order: &RunOrder,
        watch: &'a Arc<RunWatch>,
    ) -> Result<Self, RunError> {
        let session = replicator.session_link(link.host, link.exporter).await;
        let session = session.map_err(|error| link_error(&error))?;
        let link_pace = replicator.pace_of(link.host).await.map_err(|error| link_error(&error))?;
        let (flow, closed) = (Flow::default(), link.closed);
        let brought = offers.iter().map(|offer| offer.brought.clone()).collect();
        let source =
            Source::start(session, brought, flow, replicator.now()).with_keep(wish(&order.keep_remote));
        let (teller, told) = mpsc::unbounded_channel();
        let (engine, reader) = (Arc::clone(&replicator.engine), replicator.reader.clone());
        let shared = order.together.id().map(|id| replicator.shared_reads(id));
        let thread = ReaderThread::start(engine, reader, offers, flow.batch_bytes, shared, teller)
            .map_err(|error| RunError::new(RunErrorKind::Io, format!("no thread to read: {error}")))?;
        let (read, write) = tokio::io::split(link.stream);
        let (out, queue) = mpsc::unbounded_channel();
        let (counter, sent) = watch::channel(0);
        let asked = Arc::clone(watch);
        let own = Arc::new(Pace::new(Arc::new(move || asked.rate().unwrap_or(0))));
        let writing = tokio::spawn(write_frames(write, queue, vec![own, link_pace], counter));
        let (frames, stats) = (FrameReader::new(read), Default::default());
        let roots = Vec::new();
        let total = 0;
        Ok(Self {
            replicator,
            watch,
            source,
            thread,
            told,
            out,
            writing,
            frames,
            closed,
            sent,
            roots,
            stats,
            total,
        })
    }

    /// Until it is over: roots, what was read, bytes on the wire.
    async fn run(mut self) -> Result<(Vec<String>, ReadStats, u64), RunError> {
        let result = self.exchange().await;
        let Self { out, mut writing, sent, roots, stats, .. } = self;
        drop(out);
        if !writing.is_finished() && timeout(GOODBYE_MAX, &mut writing).await.is_err() {
            writing.abort();
        }
        result.map(|()| (roots, stats.0.and(stats.1), *sent.borrow()))
    }

    async fn exchange(&mut self) -> Result<(), RunError> {
        let mut ticks = interval(TICK);
        loop {
            if let Some(over) = self.carry_out() {
                return over.map_err(|refusal| refused(&refusal));
            }
            let now = self.replicator.now();
            tokio::select! {
                frame = self.frames.next() => match frame {
                    Ok(Some(frame)) => self.source.received(frame, now),
                    Ok(None) => return Err(RunError::new(RunErrorKind::Unreachable, "the link ended")),
                    Err(LinkError::Wire(error)) => self.source.unreadable(error.to_string()),
                    Err(LinkError::Io(error)) => {
                        return Err(RunError::new(RunErrorKind::Unreachable, format!("the link broke: {error}")));
                    }
                },
                Some(told) = self.told.recv() => self.take_told(told, now),
                _ = ticks.tick() => {
                    self.source.tick(now);
                    self.report();
                }
                () = self.watch.cancelled() => {
                    return Err(RunError::new(RunErrorKind::Cancelled, "it was told to end"));
                }
                () = self.closed.wait() => {
                    return Err(RunError::new(RunErrorKind::Refused, "the host is not trusted any more"));
                }
                _ = &mut self.writing => {
                    return Err(RunError::new(RunErrorKind::Unreachable, "the link broke"));
                }
            }
        }
    }

    /// Begins what the session wants done. `Some`: it is over.
    fn carry_out(&mut self) -> Option<Result<(), Refusal>> {
        for action in self.source.take() {
            match action {
                Do::Send(frame) => {
                    self.note_phase(&frame.message);
                    // If nobody takes it any more, the link is broken: that is heard of soon.
                    drop(self.out.send(frame));
                }
                Do::Over(result) => return Some(result),
                action => self.thread.ask(action),
            }
        }
        None
    }

    fn note_phase(&mut self, message: &Message) {
        match message {
            Message::Offer(_) | Message::Values(_) => self.watch.phase(Phase::Comparing),
            Message::Data { .. } => self.watch.phase(Phase::Sending),
            Message::End { root, .. } => {
                self.roots.push(crate::api::types::hex(root));
                self.watch.phase(Phase::Verifying);
                self.stats = (self.stats.0.and(self.stats.1), ReadStats::default());
                self.report();
            }
            Message::Publish => self.watch.phase(Phase::Publishing),
            _ => {}
        }
    }

    fn take_told(&mut self, told: Told, now: u64) {
        match told {
            Told::Did(did) => self.source.did(did, now),
            Told::Stats(stats) => self.stats.1 = stats,
            Told::Total(bytes) => self.total += bytes,
        }
    }

    fn report(&self) {
        let (stats, sent) = (self.stats.0.and(self.stats.1), *self.sent.borrow());
        let total = self.total;
        self.watch.update(|progress| {
            progress.bytes_total = total.max(stats.looked_at);
            progress.bytes_done = stats.looked_at;
            progress.bytes_sent = sent;
            progress.bytes_zero = stats.zero;
            progress.bytes_deduped = stats.copied + stats.unchanged;
            progress.bytes_compressed_saved = stats.compressed;
        });
    }
}
