//! The target's side of a session, over a link: frames in, operations on threads that may block, frames out.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{interval, timeout};

use super::link::{FrameReader, LinkError, write_frames};
use super::reader_thread::ask;
use super::replicator::{GOODBYE_MAX, Replicator, Reserved, TICK, fastrand_bytes};
use super::target::{Did, Do, Target};
use super::wire::{Code, Frame, KeepWish, Message, OfferedVolume, Refusal};
use super::writing::{Place, refusal};
use crate::control::replication::{ReceiveToken, Replication};
use crate::control::{Control, ErrorKind};
use crate::decompress::Decompress;
use crate::jobs::keep::{KEEP_COUNT_MAX, Keep};
use crate::jobs::prune::{Policy, prune};
use crate::jobs::span::Span;
use crate::peer::{PeerError, PeerHandler, PeerLink};
use crate::units::{HostId, SnapshotUid};

/// A snapshot whose layers are being merged is asked for again after so long, for so many times.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
const BUSY_TRIES: u64 = 1200;
/// While more than this waits to be sent, no frame is taken: who asks and does not listen fills no memory here.
const UNSENT_BYTES_MAX: u64 = 64 << 10;

impl PeerHandler for Replicator {
    fn serve(self: Arc<Self>, link: PeerLink) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let (host, name) = (link.host, link.name.clone());
            if let Err(refusal) = Arc::clone(&self).take_session(link).await {
                self.count_fault(host, &name, &refusal);
                tracing::info!(host = name, %refusal, "a session has ended");
            }
        })
    }
}

/// What a session has in hand.
struct Hand {
    replicator: Arc<Replicator>,
    peer: HostId,
    volumes: Arc<[OfferedVolume]>,
    attempts: BTreeMap<usize, ReceiveToken>,
    /// The volume that is being prepared or received.
    current: usize,
    base: Option<SnapshotUid>,
    reserved: Option<Reserved>,
    /// What the source would like to be kept.
    wish: KeepWish,
    done: mpsc::UnboundedSender<Did>,
    over: Arc<AtomicBool>,
    /// What decompresses its batches.
    decompress: Arc<dyn Decompress>,
    /// What the peer is called here.
    peer_name: String,
    /// Bytes of all frames that were to be sent.
    said_bytes: u64,
}

/// Work of a session that is over need not go on.
impl Drop for Hand {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Replicator {
    /// Takes what another host brings, until it goes.
    async fn take_session(self: Arc<Self>, link: PeerLink) -> Result<(), Refusal> {
        let failed = |error: PeerError| Refusal::new(Code::Failed, error.to_string());
        let session = self.session_link(link.host, link.exporter).await.map_err(failed)?;
        let (peer, peer_name, mut closed) = (link.host, link.name, link.closed);
        let (read, write) = tokio::io::split(link.stream);
        let (out, queue) = mpsc::unbounded_channel();
        let (counter, mut sent) = watch::channel(0);
        // Clusters that the peer asks for are as many bytes as those that it is sent.
        let pace = self.pace_of(peer).await.map_err(failed)?;
        let mut writing = tokio::spawn(write_frames(write, queue, vec![pace], counter));
        let (done, mut results) = mpsc::unbounded_channel();
        let mut hand = Hand::new(&self, peer, peer_name, done);
        let mut target = Target::start(session, self.now());
        if self.is_quarantined(peer) {
            target.refuse(Refusal::new(Code::Quarantined, "this host has sent what no honest one sends"));
        }
        let (mut frames, mut ticks) = (FrameReader::new(read), interval(TICK));
        let result = loop {
            if let Some(over) = hand.carry_out(target.take(), &out) {
                break Err(over);
            }
            let unsent = hand.said_bytes.saturating_sub(*sent.borrow_and_update());
            let is_heard = unsent <= UNSENT_BYTES_MAX;
            tokio::select! {
                frame = frames.next(), if target.wants_frames() && is_heard => match frame {
                    Ok(Some(frame)) => target.received(frame, self.now()),
                    // Between two offers, or without a word: it has said all that it had to say.
                    Ok(None) if target.is_idle() || hand.volumes.is_empty() => break Ok(()),
                    Ok(None) => break Err(Refusal::new(Code::Stalled, "the link ended")),
                    Err(LinkError::Wire(error)) => target.unreadable(error.to_string()),
                    Err(LinkError::Io(error)) => break Err(Refusal::new(Code::Stalled, error.to_string())),
                },
                Some(did) = results.recv() => {
                    hand.note(&did);
                    target.did(did, self.now());
                }
                // With the writer gone, the link is broken: that is told below.
                Ok(()) = sent.changed(), if !is_heard => {}
                _ = ticks.tick() => target.tick(self.now()),
                () = closed.wait() => break Err(Refusal::new(Code::NotAllowed, "the host is not trusted any more")),
                _ = &mut writing => break Err(Refusal::new(Code::Stalled, "the link broke")),
            }
        };
        drop(out);
        if !writing.is_finished() && timeout(GOODBYE_MAX, &mut writing).await.is_err() {
            writing.abort();
        }
        hand.end().await;
        result
    }

    /// What is kept of a replica that has got a snapshot more.
    async fn prune_replica(self: Arc<Self>, volume: String, keep: Keep) {
        let policy = Policy::Made(keep);
        if let Err(error) = prune(&self.service, &volume, &policy, &[], true).await {
            tracing::warn!(volume, %error, "old snapshots of a replica are not pruned");
        }
    }
}

impl Hand {
    fn new(
        replicator: &Arc<Replicator>,
        peer: HostId,
        peer_name: String,
        done: mpsc::UnboundedSender<Did>,
    ) -> Self {
        Self {
            replicator: Arc::clone(replicator),
            peer,
            volumes: Arc::from([]),
            attempts: BTreeMap::new(),
            current: 0,
            base: None,
            reserved: None,
            wish: KeepWish::default(),
            done,
            over: Arc::default(),
            decompress: Arc::new(replicator.workers.session()),
            peer_name,
            said_bytes: 0,
        }
    }

    /// Its process may have to be waited for: not on the thread of all sessions.
    async fn end(self) {
        if let Err(error) = tokio::task::spawn_blocking(move || drop(self)).await {
            tracing::warn!(%error, "a session is not tidied up");
        }
    }

    /// Begins what the session wants done. `Some`: it is over.
    fn carry_out(&mut self, actions: Vec<Do>, out: &mpsc::UnboundedSender<Frame>) -> Option<Refusal> {
        for action in actions {
            match action {
                Do::Send(frame) => {
                    if frame.message == Message::Published {
                        self.prune();
                    }
                    self.said_bytes += frame.bytes();
                    // If nobody takes it any more, the link is broken: that is heard of soon.
                    drop(out.send(frame));
                }
                Do::Over(refusal) => return Some(refusal),
                action => self.begin(action),
            }
        }
        None
    }

    /// What the results say that later operations need.
    fn note(&mut self, did: &Did) {
        if let Did::Ready(ready) = did {
            self.attempts.insert(self.current, ready.token);
        }
    }

    fn begin(&mut self, action: Do) {
        match action {
            Do::Look(volumes) => self.look(volumes),
            Do::Prepare { volume, begin } => {
                (self.current, self.base) = (volume, begin.base.map(|(uid, _)| uid));
                let token = fastrand_bytes();
                self.blocking(volume, move |place, offered| {
                    place.prepare(offered, &begin, token).map(Did::Ready)
                });
            }
            Do::Apply { volume, bounds, cursor, batch } => {
                let token = self.token(volume);
                self.blocking(volume, move |place, offered| {
                    let patches = place.patches(offered, &bounds, &batch)?;
                    let lineage = offered.lineage;
                    let apply = Replication::Apply { lineage, token, patches };
                    let applied = (place.submit)(Control::Replication(apply));
                    applied.map(|_| Did::Applied(cursor)).map_err(|error| refusal(&error))
                });
            }
            Do::Confirm { volume, cursor } => {
                let token = self.token(volume);
                self.blocking(volume, move |place, offered| {
                    let lineage = offered.lineage;
                    let confirm = Replication::Confirm { lineage, token, cursor };
                    let confirmed = (place.submit)(Control::Replication(confirm));
                    confirmed.map(|_| Did::Confirmed(cursor)).map_err(|error| refusal(&error))
                });
            }
            Do::Compare { volume, values } => {
                let base = self.base.unwrap_or(SnapshotUid([0; 16]));
                self.blocking(volume, move |place, _| place.compare(base, &values).map(Did::Compared));
            }
            Do::Verify { volume, root } => {
                let (token, over) = (self.token(volume), Arc::clone(&self.over));
                self.blocking(volume, move |place, offered| {
                    let mut go_on = |_, _| !over.load(Ordering::Relaxed);
                    place.verify(offered, token, root, &mut go_on).map(|()| Did::Verified)
                });
            }
            Do::Mark { volume, snapshot } => {
                let token = self.token(volume);
                self.blocking(volume, move |place, _| place.mark(snapshot, token).map(|()| Did::Marked));
            }
            Do::Keep(wish) => self.wish = wish,
            Do::Fetch(fetch) => {
                let name = self.peer_name.clone();
                self.on_thread(move |place| place.answer(&fetch, &name).map(Did::Fetched));
            }
            Do::Publish => {
                let staged = self.attempts.iter().map(|(at, token)| (self.volumes[*at].lineage, *token));
                let staged = staged.collect();
                self.blocking(0, move |place, _| place.publish(staged).map(|()| Did::Published));
            }
            Do::Send(_) | Do::Over(_) => unreachable!("done at once"),
        }
    }

    fn token(&self, volume: usize) -> ReceiveToken {
        // A volume that was never ready has no attempt, and no attempt has this token.
        self.attempts.get(&volume).copied().unwrap_or_default()
    }

    fn look(&mut self, volumes: Vec<OfferedVolume>) {
        self.volumes = volumes.into();
        self.attempts.clear();
        (self.reserved, self.wish) = (None, KeepWish::default());
        let lineages = self.volumes.iter().map(|volume| volume.lineage).collect();
        match self.replicator.reserve(lineages) {
            Ok(reserved) => self.reserved = Some(reserved),
            Err(refusal) => return self.tell(Did::Failed(refusal)),
        }
        let volumes = Arc::clone(&self.volumes);
        self.blocking(0, move |place, _| {
            volumes.iter().map(|volume| place.look(volume)).collect::<Result<_, _>>().map(Did::Looked)
        });
    }

    fn tell(&self, did: Did) {
        if self.done.send(did).is_err() {
            tracing::debug!("the session is over");
        }
    }

    /// Does something with a volume of the offer on a thread that may block.
    fn blocking(
        &self,
        volume: usize,
        work: impl FnOnce(&Place<'_>, &OfferedVolume) -> Result<Did, Refusal> + Send + 'static,
    ) {
        let volumes = Arc::clone(&self.volumes);
        self.on_thread(move |place| work(place, &volumes[volume]));
    }

    fn on_thread(&self, work: impl FnOnce(&Place<'_>) -> Result<Did, Refusal> + Send + 'static) {
        let replicator = Arc::clone(&self.replicator);
        let (peer, done, over) = (self.peer, self.done.clone(), Arc::clone(&self.over));
        let decompress = Arc::clone(&self.decompress);
        tokio::task::spawn_blocking(move || {
            let submit = |command| ask(&*replicator.engine, command);
            let tries = AtomicU64::new(0);
            let pause = || {
                std::thread::sleep(BUSY_PAUSE);
                tries.fetch_add(1, Ordering::Relaxed) < BUSY_TRIES && !over.load(Ordering::Relaxed)
            };
            let place = Place {
                reader: &replicator.reader,
                submit: &submit,
                pause: &pause,
                peer,
                decompress: &*decompress,
            };
            let did = work(&place).unwrap_or_else(Did::Failed);
            if done.send(did).is_err() {
                tracing::debug!("the session is over");
            }
        });
    }

    fn prune(&self) {
        let lineages: Vec<_> = self.volumes.iter().map(|volume| volume.lineage).collect();
        let replicator = Arc::clone(&self.replicator);
        let keep = at_least(replicator.keep, self.wish);
        tokio::spawn(async move {
            let all = match replicator.identities().await {
                Ok(all) => all,
                Err(error) if error.kind == ErrorKind::Stopping => return,
                Err(error) => return tracing::warn!(%error, "replicas are not pruned"),
            };
            for volume in all.into_iter().filter(|volume| lineages.contains(&volume.lineage)) {
                Arc::clone(&replicator).prune_replica(volume.name, keep).await;
            }
        });
    }
}

/// What this host keeps, and what the source wishes: no wish can have less kept.
fn at_least(own: Keep, wish: KeepWish) -> Keep {
    let [last, minutely, hourly, daily, weekly, monthly, yearly] =
        wish.counts.map(|count| count.min(KEEP_COUNT_MAX));
    let within = (wish.within_s > 0).then(|| Span::from_secs(wish.within_s));
    Keep {
        last: own.last.max(last),
        minutely: own.minutely.max(minutely),
        hourly: own.hourly.max(hourly),
        daily: own.daily.max(daily),
        weekly: own.weekly.max(weekly),
        monthly: own.monthly.max(monthly),
        yearly: own.yearly.max(yearly),
        within: own.within.max(within),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D5, P10: a source cannot thin out its replica's history.
    #[test]
    fn a_wish_can_only_add() {
        let own = Keep { hourly: 24, within: Some(Span::from_secs(60)), ..Keep::DEFAULT };
        assert_eq!(at_least(own, KeepWish::default()), own);
        let wish = KeepWish { counts: [1, 0, 1, 30, 0, 0, u32::MAX], within_s: 3600 };
        let kept = at_least(own, wish);
        assert_eq!((kept.last, kept.hourly, kept.daily, kept.yearly), (3, 24, 30, KEEP_COUNT_MAX));
        assert_eq!(kept.within, Some(Span::from_secs(3600)));
    }
}
