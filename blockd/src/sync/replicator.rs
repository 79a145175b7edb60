//! Replication at work: what a daemon has for its sessions, as source and as target.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::mirroring::Seen;
use super::pace::Pace;
use super::session::{Link, Millis};
use super::together::SharedReads;
use super::wire::{Code, Refusal, VERSION};
use crate::control::replication::{Replication, VolumeIdentity};
use crate::control::{Answer, Control, ControlError, ErrorKind};
use crate::decompress::process::Workers;
use crate::events::Events;
use crate::jobs::keep::Keep;
use crate::peer::{LazyPeers, PeerError};
use crate::service::{Engine, Service};
use crate::snapshot::ClosedReader;
use crate::units::{HostId, Lineage};

/// Sessions in which a host has sent what no honest one sends, before it is left alone for a while.
const FAULTS_MAX: u32 = 3;
/// How long that is.
const QUARANTINE: Duration = Duration::from_secs(600);
/// How long a session's last frame may take to go out.
pub(super) const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// How often time passes for a session.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// What came of a snapshot is thrown away when nobody has gone on with it for so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// How often is looked for that.
const LOOK_PAUSE: Duration = Duration::from_secs(600);

/// See the module. One for each daemon.
pub struct Replicator {
    pub(super) service: Service,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) reader: ClosedReader,
    pub(super) peers: LazyPeers,
    pub(super) events: Events,
    /// What replicas keep.
    pub(super) keep: Keep,
    /// What decompresses for its sessions.
    pub(super) workers: Arc<Workers>,
    started: Instant,
    /// Volumes that a session is bringing.
    active: Mutex<HashSet<Lineage>>,
    /// When a session has last ended, by volume.
    touched: Mutex<HashMap<Lineage, Instant>>,
    faults: Mutex<HashMap<HostId, (u32, Instant)>>,
    /// What all links with a host share.
    paces: Mutex<HashMap<HostId, Arc<Pace>>>,
    /// What runs that began together share, as long as one of them is under way.
    together: Mutex<HashMap<u64, Weak<SharedReads>>>,
    /// By volume; those that have ended until they are begun again.
    mirrors: Mutex<BTreeMap<String, Seen>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Volumes of a session; others may bring them when it is dropped.
pub(super) struct Reserved {
    replicator: Arc<Replicator>,
    lineages: Vec<Lineage>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut active = lock(&self.replicator.active);
        let mut touched = lock(&self.replicator.touched);
        for lineage in &self.lineages {
            active.remove(lineage);
            touched.insert(*lineage, now);
        }
    }
}

impl Replicator {
    /// Of a store whose closed layers `reader` reads, among these hosts.
    pub fn new(
        service: Service,
        reader: ClosedReader,
        peers: LazyPeers,
        events: Events,
        keep: Keep,
        workers: Arc<Workers>,
    ) -> Arc<Self> {
        let engine = service.engine();
        Arc::new(Self {
            service,
            engine,
            reader,
            peers,
            events,
            keep,
            workers,
            started: Instant::now(),
            active: Mutex::default(),
            touched: Mutex::default(),
            faults: Mutex::default(),
            paces: Mutex::default(),
            together: Mutex::default(),
            mirrors: Mutex::default(),
        })
    }

    /// Milliseconds since the start: the sessions' clock.
    pub(super) fn now(&self) -> Millis {
        Millis::try_from(self.started.elapsed().as_millis()).unwrap_or(Millis::MAX)
    }

    /// What a session over a link is begun with.
    pub(super) async fn session_link(&self, peer: HostId, secret: [u8; 32]) -> Result<Link, PeerError> {
        let host = self.peers.get().await?.host_id();
        Ok(Link { host, peer, secret, nonce: fastrand_bytes(), version_min: VERSION })
    }

    /// What all that is sent to a host has to keep to, of whatever job.
    pub(super) async fn pace_of(&self, host: HostId) -> Result<Arc<Pace>, PeerError> {
        let peers = self.peers.get().await?.clone();
        let new = || Arc::new(Pace::new(Arc::new(move || peers.rate_of(host))));
        Ok(Arc::clone(lock(&self.paces).entry(host).or_insert_with(new)))
    }

    /// Mirrors, by volume.
    pub(super) fn mirrors(&self) -> MutexGuard<'_, BTreeMap<String, Seen>> {
        lock(&self.mirrors)
    }

    /// What runs that began together read.
    pub(super) fn shared_reads(&self, id: u64) -> Arc<SharedReads> {
        let mut together = lock(&self.together);
        together.retain(|_, reads| reads.strong_count() > 0);
        let found = together.get(&id).and_then(Weak::upgrade);
        let reads = found.unwrap_or_default();
        together.insert(id, Arc::downgrade(&reads));
        reads
    }

    pub(super) async fn identities(&self) -> Result<Vec<VolumeIdentity>, ControlError> {
        match self.service.call(Control::Replication(Replication::Identify { volume: None })).await? {
            Answer::Identities(all) => Ok(all),
            _ => Err(ControlError::new(ErrorKind::Io, "the store gave an answer of the wrong kind")),
        }
    }

    /// Only one session at a time brings a volume.
    pub(super) fn reserve(self: &Arc<Self>, lineages: Vec<Lineage>) -> Result<Reserved, Refusal> {
        let mut active = lock(&self.active);
        if let Some(taken) = lineages.iter().find(|lineage| active.contains(lineage)) {
            return Err(Refusal::new(Code::SessionExists, format!("another session brings {taken}")));
        }
        active.extend(lineages.iter().copied());
        drop(active);
        Ok(Reserved { replicator: Arc::clone(self), lineages })
    }

    /// Counts what no honest host sends.
    pub(super) fn count_fault(&self, host: HostId, name: &str, refusal: &Refusal) {
        let faulty = [Code::BadFrame, Code::BadManifest, Code::BadData, Code::BadId, Code::BadBinding];
        if !faulty.contains(&refusal.code) && refusal.code != Code::RootMismatch {
            return;
        }
        let mut faults = lock(&self.faults);
        let (count, at) = faults.entry(host).or_insert((0, Instant::now()));
        if at.elapsed() > QUARANTINE {
            *count = 0;
        }
        (*count, *at) = (*count + 1, Instant::now());
        if *count == FAULTS_MAX {
            self.events.record("host_quarantined", name.to_owned(), refusal.to_string());
        }
    }

    /// Whether a host has sent too much of that lately.
    pub(super) fn is_quarantined(&self, host: HostId) -> bool {
        let faults = lock(&self.faults);
        faults.get(&host).is_some_and(|(count, at)| *count >= FAULTS_MAX && at.elapsed() < QUARANTINE)
    }

    /// Throws away what nobody goes on with; runs until it is dropped.
    pub async fn tidy(self: Arc<Self>) {
        loop {
            tokio::time::sleep(LOOK_PAUSE).await;
            if let Err(error) = self.abandon_old(ABANDONED_AFTER).await {
                tracing::warn!(%error, "what was left of interrupted sessions is not tidied up");
            }
        }
    }

    async fn abandon_old(&self, after: Duration) -> Result<(), ControlError> {
        for volume in self.identities().await? {
            let Some(receiving) = volume.receiving else { continue };
            let since = lock(&self.touched).get(&volume.lineage).copied().unwrap_or(self.started);
            if since.elapsed() < after || lock(&self.active).contains(&volume.lineage) {
                continue;
            }
            let (lineage, token) = (volume.lineage, receiving.token);
            self.service.call(Control::Replication(Replication::Abandon { lineage, token })).await?;
            self.events.record("replica_abandoned", volume.name, format!("{} did not come", receiving.name));
        }
        Ok(())
    }
}

/// Random bytes: a session's nonce, an attempt's token. They name things and need not be secret: what is secret comes
/// from the link.
pub(super) fn fastrand_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fastrand::fill(&mut bytes);
    bytes
}
