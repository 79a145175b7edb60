//! Sparse records of closed layers are packed in the background.
//!
//! A write of 4 KiB after a cut takes a whole cluster. While its layer is open that cluster may yet fill; once it is
//! closed it never will, and it costs up to sixteen times its data for as long as the layer lives. So the blocks of
//! records with few of them are copied side by side into shared clusters, and the records say *packed*.
//!
//! ```text
//!  idle ─► scan for 256 sparse records ─► copy ─► commit: the copies are durable ─► records and maps ─► commit ─► idle
//!    ▲                                     │ no clusters to spare, read error, failed sync, pinned, map being loaded
//!    └─────────── pause ◄──────────────────┴──── the clusters taken are given back: nothing has named them
//! ```
//!
//! A layer is packed when a snapshot names it or several layers lie upon it; others are about to be merged away.
//! Merging goes first: one of the two is active at a time. What was packed is remembered until the daemon ends; a
//! layer changes by merges into it only, and is looked at again then.
//!
//! Maps and records change in one event, after a sync of the copies. So a failed sync leaves nothing in doubt, at every
//! crash point all reads are as before, and the old clusters are used again after the batch that drops their last
//! record and after the reads that were under way, like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nbd_server::connection::Nanos;
use nbd_server::export::{Io, Payload};

use super::commit::{Bundle, Waiter};
use super::copy::Copying;
use super::pool::Part;
use super::reclaim::SPARE_CLUSTERS;
use super::served::MapState;
use super::transfer::Job;
use super::{Store, TAG_PACK};
use crate::catalog::format::{Change, MapRecord};
use crate::catalog::meta::MetaOp;
use crate::units::{CLUSTER_BLOCKS, ClusterIndex, LayerId, PoolCluster};

/// A record with so many data blocks at most is sparse; so is a packed cluster with so many in use.
const SPARSE_BLOCKS: u32 = 4;
/// Records packed in one step, about: 4 MiB of data at most.
const STEP_RECORDS: usize = 256;
/// Records read at a time.
const SCAN_RECORDS: usize = 256;
/// Packing must leave one cluster in so many, or it is not worth the copying.
const WORTH_PARTS: usize = 2;
/// Between two steps, whether clients are there or not ([`super::throttle`]): what nobody waits for need not keep disk and
/// processor busy.
const STEP_PAUSE: Duration = Duration::from_millis(100);
/// Between two looks for a layer to pack, when there was none.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// A record and what it becomes.
#[derive(Debug, PartialEq, Eq)]
struct Packing {
    cluster: ClusterIndex,
    from: MapRecord,
    to: MapRecord,
}

/// Where a step stands.
enum Stage {
    /// Sparse records are being looked for; these were found.
    Scanning(Vec<(ClusterIndex, MapRecord)>),
    /// So many clusters are still being written.
    Copying(usize),
    /// A commit makes the copies durable.
    Syncing,
    /// A commit makes the records durable.
    Committing,
}

struct Active {
    layer: LayerId,
    stage: Stage,
    /// Where the next scan begins; `None`: the layer has no more records.
    from: Option<ClusterIndex>,
    packing: Vec<Packing>,
    /// Clusters that nothing names yet.
    taken: Vec<PoolCluster>,
    /// The copies are of no use.
    void: bool,
}

impl Active {
    fn progress(&self) -> Progress {
        self.from.map_or(Progress::Done, Progress::UpTo)
    }
}

/// How far a layer was packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Progress {
    /// Not at all.
    #[default]
    New,
    /// The records before this one were.
    UpTo(ClusterIndex),
    /// All of it, or it cannot be read.
    Done,
}

/// See the module.
#[derive(Default)]
pub(super) struct Pack {
    active: Option<Active>,
    progress: BTreeMap<LayerId, Progress>,
    commit_ended: bool,
    /// When a step may begin.
    next_at: Nanos,
}

impl Pack {
    pub(super) fn is_busy(&self) -> bool {
        self.active.is_some()
    }

    /// Whether clusters are taken that will be given back, or others freed for them.
    pub(super) fn has_taken(&self) -> bool {
        self.active.as_ref().is_some_and(|active| !active.taken.is_empty())
    }

    /// Records were merged into a layer.
    pub(super) fn layer_changed(&mut self, layer: LayerId) {
        self.progress.remove(&layer);
    }

    /// The commit that the next stage waits for has ended.
    pub(super) fn committed(&mut self) {
        self.commit_ended = true;
    }

    /// When there will be something to do, unless something else happens before.
    pub(super) fn next_at(&self) -> Option<Nanos> {
        self.active.is_none().then_some(self.next_at)
    }

    fn active_mut(&mut self) -> &mut Active {
        self.active.as_mut().expect("a step is under way")
    }
}

/// Places records' blocks side by side in clusters 0, 1, …: for each record its cluster, and its first block there.
fn places(records: &[(ClusterIndex, MapRecord)]) -> Vec<(usize, u32)> {
    let (mut cluster, mut next) = (0, 0);
    let place = |(_, record): &(ClusterIndex, MapRecord)| {
        let blocks = record.data.count();
        if next + blocks > CLUSTER_BLOCKS {
            (cluster, next) = (cluster + 1, 0);
        }
        next += blocks;
        (cluster, next - blocks)
    };
    records.iter().map(place).collect()
}

impl Store {
    /// Begins or goes on with packing, as far as it can.
    pub(super) fn continue_pack(&mut self, io: &mut Io<'_>) {
        if std::mem::take(&mut self.pack.commit_ended) {
            match self.pack.active.as_ref().map(|active| &active.stage) {
                Some(Stage::Syncing) => self.apply_packing(),
                Some(Stage::Committing) => self.end_step(STEP_PAUSE, io),
                Some(Stage::Scanning(_) | Stage::Copying(_)) | None => {}
            }
        }
        if self.pack.active.is_none() && self.now >= self.pack.next_at && !self.must_rest() {
            self.begin_pack();
        }
    }

    fn begin_pack(&mut self) {
        self.pack.next_at = self.now.after(LOOK_INTERVAL);
        let busy = self.stopping || self.commits.meta_failed || !self.starved.is_empty();
        if busy || self.reclaim.is_busy() {
            return;
        }
        let Some((layer, from)) = self.sparse_candidate() else { return };
        let stage = Stage::Scanning(Vec::new());
        let (packing, taken) = (Vec::new(), Vec::new());
        self.pack.active = Some(Active { layer, stage, from: Some(from), packing, taken, void: false });
        self.scan_sparse(layer, from);
    }

    /// A layer that was not packed to its end, and where to go on.
    fn sparse_candidate(&self) -> Option<(LayerId, ClusterIndex)> {
        let named: BTreeSet<LayerId> = self.catalog.snapshots.values().map(|record| record.layer).collect();
        let mut children = BTreeMap::<LayerId, u32>::new();
        for parent in self.catalog.layers.values().filter_map(|record| record.parent) {
            *children.entry(parent).or_default() += 1;
        }
        let stays = |layer: &LayerId| named.contains(layer) || children.get(layer).is_some_and(|&n| n >= 2);
        self.catalog.layers.keys().filter(|layer| stays(layer)).find_map(|&layer| {
            let from = match self.pack.progress.get(&layer).copied().unwrap_or_default() {
                Progress::New => ClusterIndex(0),
                Progress::UpTo(from) => from,
                Progress::Done => return None,
            };
            self.is_packable(layer).then_some((layer, from))
        })
    }

    /// Whether nothing forbids to replace records of a layer now. What a failed volume has closed may be its open
    /// layer still when the store is opened again.
    fn is_packable(&self, layer: LayerId) -> bool {
        let loading = |disk: &super::Served| {
            matches!(disk.map, MapState::Loading) && self.catalog.chain(disk.top).contains(&layer)
        };
        let Some(record) = self.catalog.layers.get(&layer) else { return false };
        !self.commits.is_unsettled(layer)
            && !self.volume_failed(record.volume)
            && self.catalog.is_head(layer).is_none()
            && !self.pins.iter().any(|(_, chain)| chain.contains(&layer))
            && !self.served.iter().flatten().any(loading)
    }

    fn scan_sparse(&mut self, layer: LayerId, from: ClusterIndex) {
        self.meta.submit(TAG_PACK, MetaOp::Scan { layer, from, limit: SCAN_RECORDS });
    }

    /// Whether a record, or the packed cluster that it shares, wastes most of its space.
    fn is_sparse(&self, record: &MapRecord) -> bool {
        let Some(cluster) = record.cluster.filter(|_| !record.data.is_empty()) else { return false };
        let used = if record.packed.is_some() { self.pool.packed_blocks(cluster) } else { record.data };
        used.count() <= SPARSE_BLOCKS
    }

    /// Records of the layer have been read.
    pub(super) fn pack_records(&mut self, records: &[(ClusterIndex, MapRecord)], io: &mut Io<'_>) {
        let sparse: Vec<_> = records.iter().filter(|(_, record)| self.is_sparse(record)).copied().collect();
        let active = self.pack.active_mut();
        let layer = active.layer;
        let last = records.last().filter(|_| records.len() == SCAN_RECORDS);
        active.from = last.and_then(|(cluster, _)| cluster.0.checked_add(1)).map(ClusterIndex);
        let Stage::Scanning(found) = &mut active.stage else { unreachable!("no scan is under way") };
        found.extend(sparse);
        match active.from {
            Some(from) if found.len() < STEP_RECORDS => self.scan_sparse(layer, from),
            _ => {
                let found = std::mem::take(found);
                self.place_sparse(&found, io);
            }
        }
    }

    /// Records of the layer cannot be read.
    pub(super) fn pack_unread(&mut self, error: &str, io: &mut Io<'_>) {
        let layer = self.pack.active_mut().layer;
        tracing::error!(layer = layer.0, error, "a layer cannot be packed");
        self.give_up_step(Progress::Done, io);
    }

    /// Clusters are taken for the records that were found, if that is worth it and they can be spared.
    fn place_sparse(&mut self, found: &[(ClusterIndex, MapRecord)], io: &mut Io<'_>) {
        let places = places(found);
        let needed = places.last().map_or(0, |&(cluster, _)| cluster + 1);
        let before: BTreeSet<_> = found.iter().filter_map(|(_, record)| record.cluster).collect();
        if needed == 0 || needed * WORTH_PARTS > before.len() {
            let progress = self.pack.active_mut().progress();
            return self.give_up_step(progress, io);
        }
        let layer = self.pack.active_mut().layer;
        let room = self.pool.free_now() >= needed as u64 + SPARE_CLUSTERS;
        if !room || self.stopping || !self.is_packable(layer) {
            self.extend_pool(io);
            return self.end_step(LOOK_INTERVAL, io);
        }
        let taken = (0..needed).map(|_| self.pool.take().expect("counted before")).collect::<Vec<_>>();
        let packed = |(&(cluster, from), (at, first)): (&(ClusterIndex, MapRecord), (usize, u32))| {
            let first = u8::try_from(first).expect("a block of a cluster");
            Packing { cluster, from, to: MapRecord { cluster: Some(taken[at]), packed: Some(first), ..from } }
        };
        let packing = found.iter().zip(places).map(packed).collect();
        self.copy_sparse(packing, taken, io);
    }

    fn copy_sparse(&mut self, packing: Vec<Packing>, taken: Vec<PoolCluster>, io: &mut Io<'_>) {
        let mut jobs: Vec<Copying> = taken.iter().map(|&cluster| Copying::new(cluster)).collect();
        for Packing { from, to, .. } in &packing {
            let at = taken.iter().position(|&cluster| Some(cluster) == to.cluster).expect("one of them");
            jobs[at].add_packed(from, u32::from(to.packed.expect("it is packed")));
        }
        let active = self.pack.active_mut();
        (active.packing, active.taken, active.stage) = (packing, taken, Stage::Copying(jobs.len()));
        for job in jobs {
            self.add_job(Job::pack(job), io);
        }
    }

    /// The blocks for one cluster have been read, or written.
    pub(super) fn pack_parts_ended(&mut self, key: usize, io: &mut Io<'_>) {
        let error = self.jobs[key].error();
        if error.is_none() && !self.is_writing(key) {
            return self.write_copied(key, io);
        }
        self.end_job(key, error.map_or(Ok(Payload::None), Err), io);
        let active = self.pack.active_mut();
        if let Some(error) = error {
            tracing::error!(layer = active.layer.0, ?error, "a layer cannot be packed");
            active.void = true;
            let layer = active.layer;
            self.pack.progress.insert(layer, Progress::Done);
        }
        let active = self.pack.active_mut();
        let Stage::Copying(left) = &mut active.stage else { unreachable!("its blocks are being copied") };
        *left -= 1;
        if *left > 0 {
            return;
        }
        if active.void {
            self.end_step(STEP_PAUSE, io);
        } else {
            self.commit_stage(Stage::Syncing);
        }
    }

    fn commit_stage(&mut self, stage: Stage) {
        self.pack.active_mut().stage = stage;
        self.commits.add_waiter(Waiter::Pack);
    }

    /// The copies are durable: records and maps name them from now on.
    fn apply_packing(&mut self) {
        let layer = self.pack.active_mut().layer;
        if self.stopping || !self.is_packable(layer) {
            return self.give_back_taken();
        }
        let active = self.pack.active_mut();
        active.taken.clear();
        let (packing, progress) = (std::mem::take(&mut active.packing), active.progress());
        self.retarget_packed(layer, &packing);
        for Packing { from, to, .. } in &packing {
            if let Some(Part { cluster, blocks: Some(blocks) }) = Part::of(to) {
                self.pool.use_blocks(cluster, blocks);
            }
            self.pool.free_part_later(Part::of(from).expect("sparse records have blocks"));
        }
        let changes = packing.iter().map(|p| Change::Map(layer, p.cluster, Some(p.to))).collect();
        self.commits.add_bundle(Bundle { settles: vec![layer], ..Bundle::new(changes, Vec::new()) });
        self.pack.progress.insert(layer, progress);
        tracing::debug!(layer = layer.0, records = packing.len(), "sparse records were packed");
        self.commit_stage(Stage::Committing);
    }

    /// Every map that shows the old places shows the new ones from now on.
    fn retarget_packed(&mut self, layer: LayerId, packing: &[Packing]) {
        for disk in self.served.iter_mut().flatten() {
            if disk.loaded().is_none() || !self.catalog.chain(disk.top).contains(&layer) {
                continue;
            }
            let clusters = disk.map().clusters();
            for &Packing { cluster, from, to } in packing.iter().filter(|p| u64::from(p.cluster.0) < clusters)
            {
                let mut entry = disk.map().get(cluster);
                let shown = entry.take_older(&from);
                if disk.top == layer {
                    entry.show_top(&to);
                } else {
                    entry.show_older(&to, shown);
                }
                disk.map_mut().set(cluster, entry);
            }
        }
    }

    /// A sync, or a batch, has failed.
    pub(super) fn abandon_pack(&mut self) {
        let meta_failed = self.commits.meta_failed;
        let Some(active) = &mut self.pack.active else { return };
        match active.stage {
            Stage::Scanning(_) => {}
            // Some of what was written may be lost.
            Stage::Copying(_) => active.void = true,
            Stage::Syncing => self.give_back_taken(),
            Stage::Committing if meta_failed => self.pack.active = None,
            // Its copies are durable: the records are taken up again by the next commit.
            Stage::Committing => self.commits.add_waiter(Waiter::Pack),
        }
    }

    /// Nothing has named the clusters, and nothing is under way to them.
    fn give_back_taken(&mut self) {
        let Some(active) = self.pack.active.take() else { return };
        for cluster in active.taken {
            self.pool.give_back(cluster);
        }
    }

    fn give_up_step(&mut self, progress: Progress, io: &mut Io<'_>) {
        let layer = self.pack.active_mut().layer;
        self.pack.progress.insert(layer, progress);
        self.end_step(STEP_PAUSE, io);
    }

    fn end_step(&mut self, pause: Duration, io: &mut Io<'_>) {
        self.give_back_taken();
        self.pack.next_at = self.now.after(pause);
        self.throttle.step_ended();
        self.continue_reclaim(io);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Mask;

    #[test]
    fn blocks_are_placed_side_by_side_and_no_record_is_split() {
        let record =
            |blocks| (ClusterIndex(0), MapRecord { data: Mask::of(0..blocks), ..MapRecord::default() });
        let records = [4, 4, 4, 3, 2, 1, 4].map(record);
        assert_eq!(places(&records), [(0, 0), (0, 4), (0, 8), (0, 12), (1, 0), (1, 2), (1, 3)]);
        assert!(places(&[]).is_empty());
    }
}
