//! Repairs damaged clusters of a snapshot: asks hosts that have it for their content, and writes what is right.
//!
//! ```text
//!  damaged extents ─► recorded values ─► host ─► host … ─► judged (sync::fetch) ─► judged again, written (snapshot::mend)
//! ```
//!
//! Runs on a thread that may block. Nothing is pinned while others are asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{interval, timeout};

use super::carry::base;
use super::fetch::{Do, Fetcher};
use super::link::{FrameReader, LinkError, write_frames};
use super::reader_thread::{Pin, ask};
use super::replicator::{GOODBYE_MAX, Replicator, TICK};
use super::wire::{Code, FETCH_CLUSTERS_MAX, Fetch, Found, Frame, Refusal};
use crate::control::replication::{Replication, VolumeIdentity};
use crate::control::{Answer, Control, ControlError, ErrorKind, SnapshotName};
use crate::hash::Value;
use crate::peer::{Closed, LinkIo};
use crate::service::{DamagedExtent, RepairReport, Repairer, Unrepaired};
use crate::snapshot::{mend, recorded_values};
use crate::units::{CLUSTER_BYTES, ClusterIndex, HostId, Lineage, SnapshotUid};

/// Clusters that are repaired in one go: 4 GiB. Who has more damage scrubs again, or looks for another disk.
pub const REPAIR_CLUSTERS_MAX: usize = 65_536;
/// Hosts that are asked.
const HOSTS_MAX: usize = 8;

/// The snapshot whose clusters are to be repaired.
struct Patient {
    name: SnapshotName,
    lineage: Lineage,
    uid: SnapshotUid,
}

/// Clusters that are not repaired yet, what they must be, and why nobody could help so far.
type Left = BTreeMap<u32, (Value, Vec<String>)>;

impl Repairer for Arc<Replicator> {
    fn repair(
        &self,
        name: &SnapshotName,
        damaged: &[DamagedExtent],
        from: Option<&str>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<RepairReport, ControlError> {
        let volume = self.patient_volume(name)?;
        let snapshot = volume.snapshots.iter().find(|snapshot| snapshot.name == name.snapshot);
        let snapshot = snapshot.ok_or_else(|| missing(name))?;
        let size = snapshot.size;
        let patient = Patient { name: name.clone(), lineage: volume.lineage, uid: snapshot.uid };
        let hosts = match from {
            Some(host) => vec![host.to_owned()],
            None => self.hosts_with(&volume)?,
        };
        let mut outcome = Outcome { size, report: RepairReport::default() };
        let mut left = self.judgeable(&patient, damaged, &mut outcome)?;
        for host in hosts {
            if left.is_empty() || !go_on(outcome.report.repaired_bytes) {
                break;
            }
            self.ask_host(&patient, &host, &mut left, &mut outcome, go_on)?;
        }
        for (cluster, (_, reasons)) in left {
            let nobody = || "no paired host is known to have it; --repair=HOST names one".to_owned();
            let reason = if reasons.is_empty() { nobody() } else { reasons.join("; ") };
            outcome.fail(cluster, reason);
        }
        Ok(outcome.finish())
    }
}

fn missing(name: &SnapshotName) -> ControlError {
    ControlError::new(ErrorKind::NotFound, format!("there is no snapshot {name}"))
}

fn wrong_answer() -> ControlError {
    ControlError::new(ErrorKind::Io, "the store gave an answer of the wrong kind")
}

/// What was done so far.
struct Outcome {
    size: u64,
    report: RepairReport,
}

impl Outcome {
    fn extent(&self, cluster: u32) -> DamagedExtent {
        let offset = ClusterIndex(cluster).start();
        DamagedExtent { offset, length: CLUSTER_BYTES.min(self.size - offset) }
    }

    fn repaired(&mut self, cluster: u32, host: &str) {
        self.report.repaired_bytes += self.extent(cluster).length;
        if !self.report.from.iter().any(|other| other == host) {
            self.report.from.push(host.to_owned());
        }
    }

    fn fail(&mut self, cluster: u32, reason: String) {
        let DamagedExtent { offset, length } = self.extent(cluster);
        self.report.failed.push(Unrepaired { offset, length, reason });
    }

    /// Extents in order; those that follow each other are one, if the reason is the same.
    fn finish(mut self) -> RepairReport {
        self.report.failed.sort_by_key(|failed| failed.offset);
        self.report.failed.dedup_by(|next, last| {
            let joined = last.offset + last.length == next.offset && last.reason == next.reason;
            last.length += if joined { next.length } else { 0 };
            joined
        });
        self.report
    }
}

impl Replicator {
    fn patient_volume(&self, name: &SnapshotName) -> Result<VolumeIdentity, ControlError> {
        let command = Replication::Identify { volume: Some(name.volume.clone()) };
        match ask(&*self.engine, Control::Replication(command))? {
            Answer::Identities(mut found) => found.pop().ok_or_else(|| missing(name)),
            _ => Err(wrong_answer()),
        }
    }

    /// Paired hosts that have the volume: the one that it follows, or those that have confirmed a snapshot of it.
    fn hosts_with(&self, volume: &VolumeIdentity) -> Result<Vec<String>, ControlError> {
        let list = Control::ListSnapshots { volume: Some(volume.name.clone()) };
        let Answer::Snapshots(snapshots) = ask(&*self.engine, list)? else { return Err(wrong_answer()) };
        // A host that knows no others gets no identity by being scrubbed.
        let is_base = |hold: &String| hold.starts_with(&base(""));
        if volume.peer.is_none() && !snapshots.iter().any(|snapshot| snapshot.holds.iter().any(is_base)) {
            return Ok(Vec::new());
        }
        let peers = Handle::current().block_on(self.peers.get());
        let peers = peers.map_err(|error| ControlError::new(ErrorKind::Io, error.message))?;
        let has_it = |id: HostId, name: &str| {
            let base = base(name);
            volume.peer == Some(id) || snapshots.iter().any(|snapshot| snapshot.holds.contains(&base))
        };
        let paired = peers.list().into_iter().map(|(host, _)| host);
        let with = paired.filter(|host| host.trusted && has_it(host.id, &host.name));
        Ok(with.map(|host| host.name).take(HOSTS_MAX).collect())
    }

    /// The damaged clusters of which is known what they must be.
    fn judgeable(
        &self,
        patient: &Patient,
        damaged: &[DamagedExtent],
        outcome: &mut Outcome,
    ) -> Result<Left, ControlError> {
        let pin = Pin::take(&self.engine, &patient.name)?;
        let found = recorded_values(&self.reader, &pin.pinned, damaged, REPAIR_CLUSTERS_MAX)?;
        if found.len() == REPAIR_CLUSTERS_MAX {
            let most = found.last().map_or(0, |(index, _)| index.start() + CLUSTER_BYTES);
            let later = |extent: &&DamagedExtent| extent.offset + extent.length > most;
            outcome.report.failed.extend(damaged.iter().filter(later).map(|extent| {
                let offset = extent.offset.max(most);
                let length = extent.offset + extent.length - offset;
                let reason = "more damage than is repaired in one go: scrub again".to_owned();
                Unrepaired { offset, length, reason }
            }));
        }
        let mut left = Left::new();
        for (ClusterIndex(cluster), value) in found {
            match value {
                Some(value) => drop(left.insert(cluster, (value, Vec::new()))),
                None => outcome.fail(cluster, "no hash is recorded: what is right is not known".to_owned()),
            }
        }
        Ok(left)
    }

    /// Asks one host for what is left, and writes what is right.
    fn ask_host(
        &self,
        patient: &Patient,
        host: &str,
        left: &mut Left,
        outcome: &mut Outcome,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(), ControlError> {
        let runtime = Handle::current();
        let wanted: Vec<(u32, Value)> = left.iter().map(|(cluster, (value, _))| (*cluster, *value)).collect();
        let mut session = match runtime.block_on(Session::open(self, host)) {
            Ok(session) => session,
            Err(why) => {
                blame(left, &clusters(&wanted), host, &why);
                return Ok(());
            }
        };
        for (number, asked) in wanted.chunks(FETCH_CLUSTERS_MAX).enumerate() {
            if !go_on(outcome.report.repaired_bytes) {
                break;
            }
            let fetch = Fetch { lineage: patient.lineage, uid: patient.uid, clusters: asked.to_vec() };
            let (found, ended) = runtime.block_on(session.fetch(self, fetch));
            let answered = found.len();
            self.mend_all(patient, host, found, left, outcome)?;
            if let Err(refusal) = ended {
                let rest = &wanted[number * FETCH_CLUSTERS_MAX + answered..];
                blame(left, &clusters(rest), host, &refusal.to_string());
                return Ok(());
            }
        }
        runtime.block_on(session.close());
        Ok(())
    }

    /// Writes what has come, and notes what has not.
    fn mend_all(
        &self,
        patient: &Patient,
        host: &str,
        found: Vec<(u32, Found)>,
        left: &mut Left,
        outcome: &mut Outcome,
    ) -> Result<(), ControlError> {
        let mut pin = None;
        for (cluster, found) in found {
            let why = match found {
                Found::Here(right) => {
                    if pin.is_none() {
                        pin = Some(Pin::take(&self.engine, &patient.name)?);
                    }
                    let pinned = &pin.as_ref().expect("taken").pinned;
                    match mend(&self.reader, pinned, ClusterIndex(cluster), &right) {
                        Ok(()) => {
                            left.remove(&cluster);
                            outcome.repaired(cluster, host);
                            continue;
                        }
                        Err(error) => error.message,
                    }
                }
                Found::Missing => "it is not there".to_owned(),
                Found::Damaged => "it is damaged there, too".to_owned(),
                Found::Differs => "something else is there, which is sound".to_owned(),
            };
            blame(left, &[cluster], host, &why);
        }
        Ok(())
    }
}

fn clusters(wanted: &[(u32, Value)]) -> Vec<u32> {
    wanted.iter().map(|(cluster, _)| *cluster).collect()
}

/// Notes why a host could not help with these.
fn blame(left: &mut Left, clusters: &[u32], host: &str, why: &str) {
    for cluster in clusters {
        if let Some((_, reasons)) = left.get_mut(cluster) {
            reasons.push(format!("{host}: {why}"));
        }
    }
}

/// A session that asks, under way.
struct Session {
    host: HostId,
    name: String,
    fetcher: Fetcher,
    frames: FrameReader<Box<dyn LinkIo>>,
    out: mpsc::UnboundedSender<Frame>,
    writing: JoinHandle<std::io::Result<()>>,
    closed: Closed,
    /// Answers that have come to the last question.
    taken: Vec<(u32, Found)>,
}

impl Session {
    async fn open(replicator: &Replicator, host: &str) -> Result<Self, String> {
        let peers = replicator.peers.get().await.map_err(|error| error.message)?;
        let link = peers.connect(host).await.map_err(|error| error.message)?;
        let pace = replicator.pace_of(link.host).await.map_err(|error| error.message)?;
        let with = replicator.session_link(link.host, link.exporter).await.map_err(|error| error.message)?;
        let (read, write) = tokio::io::split(link.stream);
        let (out, queue) = mpsc::unbounded_channel();
        let writing = tokio::spawn(write_frames(write, queue, vec![pace], watch::Sender::new(0)));
        let mut session = Self {
            host: link.host,
            name: link.name,
            fetcher: Fetcher::start(with, replicator.now()),
            frames: FrameReader::new(read),
            out,
            writing,
            closed: link.closed,
            taken: Vec::new(),
        };
        match session.run(replicator).await {
            Ok(()) => Ok(session),
            Err(refusal) => Err(refusal.to_string()),
        }
    }

    /// What has come of the answers, and whether the session goes on.
    async fn fetch(
        &mut self,
        replicator: &Replicator,
        fetch: Fetch,
    ) -> (Vec<(u32, Found)>, Result<(), Refusal>) {
        self.fetcher.ask(fetch, replicator.now());
        let ended = self.run(replicator).await;
        (std::mem::take(&mut self.taken), ended)
    }

    /// Until it is ready for a question.
    async fn run(&mut self, replicator: &Replicator) -> Result<(), Refusal> {
        let result = self.exchange(replicator).await;
        if let Err(refusal) = &result {
            replicator.count_fault(self.host, &self.name, refusal);
        }
        result
    }

    async fn exchange(&mut self, replicator: &Replicator) -> Result<(), Refusal> {
        let mut ticks = interval(TICK);
        loop {
            for action in self.fetcher.take() {
                match action {
                    // If nobody takes it any more, the link is broken: that is heard of soon.
                    Do::Send(frame) => drop(self.out.send(frame)),
                    Do::Take { cluster, found } => self.taken.push((cluster, found)),
                    Do::Over(refusal) => return Err(refusal),
                }
            }
            if self.fetcher.is_ready() {
                return Ok(());
            }
            tokio::select! {
                frame = self.frames.next() => match frame {
                    Ok(Some(frame)) => self.fetcher.received(frame, replicator.now()),
                    Ok(None) => return Err(Refusal::new(Code::Stalled, "the link ended")),
                    Err(LinkError::Wire(error)) => self.fetcher.unreadable(error.to_string()),
                    Err(LinkError::Io(error)) => return Err(Refusal::new(Code::Stalled, error.to_string())),
                },
                _ = ticks.tick() => self.fetcher.tick(replicator.now()),
                () = self.closed.wait() => {
                    return Err(Refusal::new(Code::NotAllowed, "the host is not trusted any more"));
                }
                _ = &mut self.writing => return Err(Refusal::new(Code::Stalled, "the link broke")),
            }
        }
    }

    /// What was said goes out.
    async fn close(self) {
        let Self { out, mut writing, .. } = self;
        drop(out);
        if timeout(GOODBYE_MAX, &mut writing).await.is_err() {
            writing.abort();
        }
    }
}
