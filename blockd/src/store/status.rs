//! Block status: what is allocated, how deep it lies, and what has changed since a snapshot.
//!
//! ```text
//!  request ─► job ─► map there? ─► scans of closed layers, if any are needed ─► extents, out of map and scans ─► reply
//! ```
//!
//! **Changed since a snapshot** is every block that a layer above the common ancestor of both touched, on either side:
//! what [`crate::snapshot::diff()`] says. What the open layer touched is in the map, so that every write answered before
//! counts; what closed layers touched is read from their records, by the metadata thread, for a window of clusters at
//! once.
//!
//! **A scan stays right** as long as the snapshot exists and the layer on top is the same. Layers between them may be
//! merged meanwhile, into each other or into the open one: a record that leaves one is in the map, or in a record of the
//! other, before it is gone. Layers are read oldest first, so that one that moves is seen in one of its two places. A
//! cut puts another layer on top: then it is read again. A snapshot that is deleted ends all questions about it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use nbd_server::disk::ExportIndex;
use nbd_server::export::{Io, Payload};
use nbd_server::status::{Chosen, ContextKey, Contexts, MetaContext, StatusExtents};
use nbd_server::wire::{Errno, allocation};

use super::Store;
use super::served::{Served, Subject};
use super::transfer::Task;
use crate::catalog::meta::{MetaAnswer, MetaError, MetaOp};
use crate::map::{Entry, FlatMap};
use crate::units::{
    BLOCK_BYTES, CLUSTER_BLOCKS, CLUSTER_BYTES, ClusterIndex, LayerId, Mask, SnapshotId, VolumeId,
};

/// Added to a job's number: the tag of its scan.
pub(super) const TAG_STATUS: u64 = 1 << 63;
/// Questions that read records at once: the metadata thread has others to serve, too, and what was read is held until
/// the answer.
const READERS_MAX: u32 = 4;
/// Records that one scan reads at most, but for [`SCAN_CLUSTERS_MIN`] of very many layers.
const SCAN_RECORDS_MAX: usize = 65_536;
/// Clusters that one scan is about, at least.
const SCAN_CLUSTERS_MIN: usize = 64;
/// Scans that are kept for the next question, which begins where the last answer has ended.
const SCANS_KEPT: usize = 8;
/// Clusters of the map that one answer in one context looks at: the reactor does nothing else meanwhile.
const LOOKED_AT_MAX: usize = 8192;
/// What `x-blockd:changed:` and `qemu:dirty-bitmap:` say of a block that has changed.
const CHANGED: u32 = 1;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Context {
    Allocation,
    Depth,
    ChangedSince(SnapshotId),
}

const DEPTH_KEY: u64 = 1;
const CHANGED_KEYS: u64 = 1 << 32;

impl Context {
    fn key(self) -> ContextKey {
        match self {
            Self::Allocation => ContextKey::ALLOCATION,
            Self::Depth => ContextKey(DEPTH_KEY),
            Self::ChangedSince(id) => ContextKey(CHANGED_KEYS | u64::from(id.0)),
        }
    }

    fn of(key: ContextKey) -> Option<Self> {
        match key.0 {
            DEPTH_KEY => Some(Self::Depth),
            _ if key == ContextKey::ALLOCATION => Some(Self::Allocation),
            number => u32::try_from(number ^ CHANGED_KEYS).ok().map(|id| Self::ChangedSince(SnapshotId(id))),
        }
    }
}

/// What can be asked of an export of a volume with these snapshots, its own not among them.
pub fn contexts<'a>(snapshots: impl Iterator<Item = (&'a str, SnapshotId)>) -> Vec<MetaContext> {
    let context = |name: String, of: Context| MetaContext { name, key: of.key() };
    let changed = |(name, id): (&str, SnapshotId)| {
        ["x-blockd:changed:", "qemu:dirty-bitmap:"]
            .map(|kind| context(format!("{kind}{name}"), Context::ChangedSince(id)))
    };
    let depth = context("qemu:allocation-depth".to_owned(), Context::Depth);
    [MetaContext::allocation(), depth].into_iter().chain(snapshots.flat_map(changed)).collect()
}

/// What closed layers have touched of some clusters since a snapshot.
pub(super) struct Scan {
    export: ExportIndex,
    since: SnapshotId,
    /// The layer on top when it was made.
    top: LayerId,
    clusters: Range<u64>,
    touched: Vec<(ClusterIndex, Mask)>,
}

/// A question, until it is answered.
pub(super) struct Asking {
    contexts: Contexts,
    one: bool,
    scans: Vec<Rc<Scan>>,
    /// It is one of those that may read.
    reads: bool,
    /// What is being read: its records are still to come.
    reading: Option<Scan>,
}

impl Asking {
    pub(super) fn new(contexts: Contexts, one: bool) -> Self {
        Self { contexts, one, scans: Vec::new(), reads: false, reading: None }
    }
}

/// What all questions share.
#[derive(Default)]
pub(super) struct Asked {
    readers: u32,
    /// Jobs that wait for records to be durable, or for their turn to read; bounded by the connections' limits.
    waiting: VecDeque<usize>,
    kept: VecDeque<Rc<Scan>>,
}

/// The snapshots of a volume, with their names.
type Named = Arc<[(String, SnapshotId)]>;

impl Store {
    /// The snapshots that clients can be told of.
    pub fn snapshots_by_volume(&self) -> BTreeMap<VolumeId, Named> {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        let visible = self.exports().filter_map(|(_, served)| match served.subject() {
            Subject::Snapshot(id) => Some((id, self.catalog.snapshots.get(&id)?)),
            _ => None,
        });
        for (id, record) in visible {
            all.entry(record.volume).or_default().push((record.name.clone(), id));
        }
        all.into_iter().map(|(volume, named)| (volume, named.into())).collect()
    }

    /// Which volume an export shows, and which snapshot of it if it is one.
    pub fn shows(&self, export: ExportIndex) -> (Option<VolumeId>, Option<SnapshotId>) {
        match self.disk(export).subject {
            Subject::Volume(id) | Subject::Door(id, _) => (Some(id), None),
            Subject::Snapshot(id) => (self.catalog.snapshots.get(&id).map(|record| record.volume), Some(id)),
            Subject::OwnWork => (None, None),
        }
    }

    /// Answers a question, or has read what is missing for the answer.
    pub(super) fn begin_status(&mut self, key: usize, io: &mut Io<'_>) {
        // Nothing of the pool is read: what was freed need not wait for this.
        if let Some(era) = self.jobs[key].era.take() {
            self.pool.operation_ended(era);
        }
        match self.find_scans(key) {
            Err(error) => self.end_status(key, Err(error), io),
            Ok(None) => {
                let status = self.tell_status(key);
                self.end_status(key, Ok(Payload::Status(status)), io);
            }
            Ok(Some((scan, layers))) => self.start_scan(key, scan, layers, io),
        }
    }

    fn end_status(&mut self, key: usize, outcome: Result<Payload, Errno>, io: &mut Io<'_>) {
        self.asked.readers -= u32::from(self.asking(key).reads);
        self.end_job(key, outcome, io);
    }

    /// Questions that waited go on, if they can.
    pub(super) fn continue_status(&mut self, io: &mut Io<'_>) {
        for key in std::mem::take(&mut self.asked.waiting) {
            self.begin_status(key, io);
        }
    }

    fn asking(&mut self, key: usize) -> &mut Asking {
        match &mut self.jobs[key].task {
            Task::Status(asking) => asking,
            _ => unreachable!("a question"),
        }
    }

    /// Finds all scans that the answer needs. If one is missing: the scan to make, and the layers to read for it.
    fn find_scans(&mut self, key: usize) -> Result<Option<(Scan, Vec<LayerId>)>, Errno> {
        let (export, start) = (self.jobs[key].export, self.jobs[key].range.start / CLUSTER_BYTES);
        if start >= self.disk(export).map().clusters() {
            // Rolled back since the client was told of the size.
            return Err(Errno::Inval);
        }
        let contexts = Contexts::clone(&self.asking(key).contexts);
        for chosen in contexts.iter() {
            let Context::ChangedSince(since) = Context::of(chosen.key).ok_or(Errno::Inval)? else { continue };
            self.check_since(export, since)?;
            let top = self.disk(export).top;
            let fits = |scan: &&Rc<Scan>| {
                (scan.export, scan.since, scan.top) == (export, since, top) && scan.clusters.contains(&start)
            };
            if self.asking(key).scans.iter().any(|scan| fits(&scan)) {
                continue;
            }
            if let Some(kept) = self.asked.kept.iter().find(fits).cloned() {
                self.asking(key).scans.push(kept);
                continue;
            }
            let layers = self.closed_between(export, since);
            let scan = Scan {
                export,
                since,
                top,
                clusters: self.window(export, start, layers.len()),
                touched: Vec::new(),
            };
            if !layers.is_empty() {
                return Ok(Some((scan, layers)));
            }
            // All that has changed is in the map.
            self.keep_scan(key, scan);
        }
        Ok(None)
    }

    /// The snapshot is there, and one of the volume that the export shows.
    fn check_since(&self, export: ExportIndex, since: SnapshotId) -> Result<(), Errno> {
        let volume = match self.disk(export).subject {
            Subject::Volume(id) => Some(id).filter(|id| self.catalog.volume_exports.get(id) == Some(&export)),
            Subject::Snapshot(id) => self.catalog.snapshots.get(&id).map(|record| record.volume),
            Subject::Door(..) | Subject::OwnWork => None,
        };
        let volume = volume.ok_or(Errno::Shutdown)?;
        let found = self.catalog.snapshots.get(&since).filter(|record| record.volume == volume);
        found.map(drop).ok_or(Errno::Inval)
    }

    /// The closed layers that only one of the two has, each before those above it.
    fn closed_between(&self, export: ExportIndex, since: SnapshotId) -> Vec<LayerId> {
        let disk = self.disk(export);
        let to = self.catalog.chain(disk.top);
        let from = self.catalog.chain(self.catalog.snapshots[&since].layer);
        let shared = to.iter().rev().zip(from.iter().rev()).take_while(|(a, b)| a == b).count();
        // The open layer is nobody else's, and in the map.
        let open = usize::from(disk.is_volume());
        let own = to[open..to.len() - shared].iter().rev();
        own.chain(from[..from.len() - shared].iter().rev()).copied().collect()
    }

    fn window(&self, export: ExportIndex, start: u64, layers: usize) -> Range<u64> {
        let clusters = self.disk(export).map().clusters();
        let wanted = match layers {
            0 => clusters,
            layers => (SCAN_RECORDS_MAX / layers).max(SCAN_CLUSTERS_MIN) as u64,
        };
        start..clusters.min(start.saturating_add(wanted))
    }

    /// Records that are not durable yet are waited for.
    fn start_scan(&mut self, key: usize, scan: Scan, layers: Vec<LayerId>, io: &mut Io<'_>) {
        let unsettled = layers.iter().any(|layer| self.commits.is_unsettled(*layer));
        if unsettled && self.commits.meta_failed {
            return self.end_status(key, Err(Errno::Io), io);
        }
        if !self.asking(key).reads && self.asked.readers >= READERS_MAX {
            // It holds nothing while it waits.
            self.asking(key).scans.clear();
            return self.asked.waiting.push_back(key);
        }
        self.asked.readers += u32::from(!self.asking(key).reads);
        self.asking(key).reads = true;
        if unsettled {
            return self.asked.waiting.push_back(key);
        }
        let clusters = scan.clusters.clone();
        self.asking(key).reading = Some(scan);
        self.meta.submit(TAG_STATUS | key as u64, MetaOp::Touched { layers, clusters });
    }

    pub(super) fn status_scanned(
        &mut self,
        tag: u64,
        result: Result<MetaAnswer, MetaError>,
        io: &mut Io<'_>,
    ) {
        let key = usize::try_from(tag & !TAG_STATUS).expect("a job's number");
        let scan = self.asking(key).reading.take();
        match (result, scan) {
            (Ok(MetaAnswer::Touched(touched)), Some(scan)) => {
                self.keep_scan(key, Scan { touched, ..scan });
                self.begin_status(key, io);
            }
            (result, _) => {
                tracing::warn!(error = ?result.err(), "what has changed cannot be read");
                self.end_status(key, Err(Errno::Io), io);
            }
        }
    }

    fn keep_scan(&mut self, key: usize, scan: Scan) {
        let scan = Rc::new(scan);
        if self.asked.kept.len() == SCANS_KEPT {
            self.asked.kept.pop_front();
        }
        self.asked.kept.push_back(Rc::clone(&scan));
        self.asking(key).scans.push(scan);
    }

    /// Nobody asks about an export any more.
    pub(super) fn forget_scans(&mut self, export: ExportIndex) {
        self.asked.kept.retain(|scan| scan.export != export);
    }

    /// All scans are there: the answer, as things are now.
    fn tell_status(&mut self, key: usize) -> Vec<StatusExtents> {
        let (export, range) = (self.jobs[key].export, self.jobs[key].range.clone());
        let (contexts, one) = (Contexts::clone(&self.asking(key).contexts), self.asking(key).one);
        let scans = std::mem::take(&mut self.asking(key).scans);
        let disk = self.disk(export);
        let tell = |chosen: &Chosen| match Context::of(chosen.key).expect("looked at before") {
            Context::Allocation => tell_allocation(disk, &range, one),
            Context::Depth => tell_depth(disk, &range, one),
            Context::ChangedSince(since) => {
                let fits = |scan: &&Rc<Scan>| scan.since == since && scan.top == disk.top;
                let scan = scans.iter().find(fits).expect("looked for before");
                let zero_end = disk.size.min(self.catalog.snapshots[&since].size);
                tell_changed(disk, scan, zero_end, &range, one)
            }
        };
        contexts.iter().map(tell).collect()
    }
}

/// What is said of a range, from its start on.
struct Teller {
    extents: StatusExtents,
    at: u64,
    looked_at: usize,
}

impl Teller {
    fn new(range: &Range<u64>, one: bool) -> Self {
        let extents = StatusExtents::new(range.end - range.start, one);
        Self { extents, at: range.start, looked_at: 0 }
    }

    /// The same for everything before an offset. Returns whether more is wanted.
    fn up_to(&mut self, offset: u64, flags: u32) -> bool {
        let length = offset.saturating_sub(self.at);
        self.at += length;
        self.extents.push(length, flags)
    }

    /// The blocks of a cluster: the flags of the first set that one is in. Returns whether more is wanted.
    fn cluster(&mut self, cluster: ClusterIndex, sets: &[(Mask, u32)], otherwise: u32) -> bool {
        let end = |block: u32| cluster.start() + u64::from(block) * BLOCK_BYTES;
        if let Some((_, flags)) = sets.first().filter(|(mask, _)| *mask == Mask::ALL) {
            return self.up_to(end(CLUSTER_BLOCKS), *flags);
        }
        let of = |block: u32| sets.iter().find(|(mask, _)| mask.has(block)).map_or(otherwise, |set| set.1);
        (0..CLUSTER_BLOCKS).all(|block| self.up_to(end(block + 1), of(block)))
    }

    /// Another cluster is looked at, which begins there; all before it has these flags. Returns whether to go on.
    fn look_at(&mut self, cluster: ClusterIndex, before: u32) -> bool {
        self.looked_at += 1;
        self.up_to(cluster.start(), before) && self.looked_at <= LOOKED_AT_MAX
    }
}

fn clusters_of(range: &Range<u64>) -> Range<u64> {
    range.start / CLUSTER_BYTES..range.end.div_ceil(CLUSTER_BYTES)
}

/// Goes through the clusters of which there is anything; the rest has the flags `nothing`.
fn tell_mapped(
    map: &FlatMap,
    range: &Range<u64>,
    one: bool,
    nothing: u32,
    tell: impl Fn(&mut Teller, ClusterIndex, &Entry) -> bool,
) -> StatusExtents {
    let mut teller = Teller::new(range, one);
    for cluster in map.mapped_in(clusters_of(range)) {
        if !teller.look_at(cluster, nothing) || !tell(&mut teller, cluster, &map.get(cluster)) {
            return teller.extents;
        }
    }
    teller.up_to(range.end, nothing);
    teller.extents
}

/// A block that reads as zero is no hole where the open layer has a cluster for it: a write finds its place.
fn tell_allocation(disk: &Served, range: &Range<u64>, one: bool) -> StatusExtents {
    const NOTHING: u32 = allocation::HOLE | allocation::ZERO;
    let volume = disk.is_volume();
    tell_mapped(disk.map(), range, one, NOTHING, |teller, cluster, entry| {
        let reserved = volume && entry.head.is_some_and(|head| head.cluster.is_some());
        let otherwise = if reserved { allocation::ZERO } else { NOTHING };
        teller.cluster(cluster, &[(entry.visible(), 0)], otherwise)
    })
}

/// 1: the open layer says what is there; 2: an older one does, and it is data; 0: nothing was ever written, or none of it
/// is left. Of a snapshot: 1 where there are data.
fn tell_depth(disk: &Served, range: &Range<u64>, one: bool) -> StatusExtents {
    let volume = disk.is_volume();
    tell_mapped(disk.map(), range, one, 0, |teller, cluster, entry| {
        let own = entry.touched_by_head();
        let sets =
            if volume { [(own, 1), (entry.visible(), 2)] } else { [(entry.visible(), 1), (Mask::NONE, 0)] };
        teller.cluster(cluster, &sets, 0)
    })
}

/// Zeroes after the end of either are no change: a disk that has grown begins with them.
fn tell_changed(disk: &Served, scan: &Scan, zero_end: u64, range: &Range<u64>, one: bool) -> StatusExtents {
    let (map, volume) = (disk.map(), disk.is_volume());
    let end = range.end.min(scan.clusters.end * CLUSTER_BYTES);
    let clusters = clusters_of(&(range.start..end));
    let first = scan.touched.partition_point(|(at, _)| u64::from(at.0) < clusters.start);
    let mut scanned = scan.touched[first..].iter().copied().peekable();
    let in_map = if volume { clusters } else { 0..0 };
    let mut mapped = map.mapped_in(in_map).peekable();
    let mut teller = Teller::new(range, one);
    loop {
        let next = mapped.peek().copied().into_iter().chain(scanned.peek().map(|(at, _)| *at)).min();
        let Some(cluster) = next.filter(|cluster| cluster.start() < end) else { break };
        mapped.next_if_eq(&cluster);
        let closed = scanned.next_if(|(at, _)| *at == cluster).map_or(Mask::NONE, |(_, mask)| mask);
        let entry = map.get(cluster);
        let touched = if volume { closed.with(entry.touched_by_head()) } else { closed };
        let zero = touched.without(entry.visible()).and(blocks_before(cluster, zero_end));
        let changed = touched.and(entry.visible()).with(zero);
        if !teller.look_at(cluster, 0) || !teller.cluster(cluster, &[(changed, CHANGED)], 0) {
            return teller.extents;
        }
    }
    teller.up_to(end, 0);
    teller.extents
}

/// The blocks that begin before an offset.
fn blocks_before(cluster: ClusterIndex, end: u64) -> Mask {
    let blocks = end.saturating_sub(cluster.start()).div_ceil(BLOCK_BYTES).min(u64::from(CLUSTER_BLOCKS));
    Mask::of(0..u32::try_from(blocks).expect("at most a cluster's"))
}
