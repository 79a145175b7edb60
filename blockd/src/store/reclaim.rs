//! Layers that nobody names any more are merged into their only child, or dropped, in the background.
//!
//! ```text
//!  idle ─► scan 256 records ─► move each ─► commit ─► scan … ─► none left: the layer's own record ─► commit ─► idle
//! ```
//!
//! **Moving a record** of layer *k* into its child *c*, at one cluster:
//!
//! | the child has | what happens |
//! |---|---|
//! | nothing | the record changes hands; no data move |
//! | no cluster of its own, or every block decided | the record changes hands for what is still shown, or its cluster is freed |
//! | a cluster, and blocks of *k* shine through | those blocks are copied into the child's cluster, and *k*'s is freed |
//!
//! The records of *k* and *c* change in one batch, which comes after a sync of the copied blocks; so at every crash
//! point all volumes and snapshots read as before, and no cluster has two owners. Copies into a closed layer are
//! synced before any map shows them: if that sync fails, nobody has seen them, and the step is done again. Where the child is the open
//! layer of a volume in use, the move is a job like a client's, exclusive on its cluster. *k*'s cluster is used again
//! after the commit and after the reads that were under way, like any other.

use std::collections::{BTreeMap, BTreeSet};

use nbd_server::disk::{DiskOpKind, ExportIndex};
use nbd_server::export::{Io, Payload};
use nbd_server::reactor::buffer::Buf;
use nbd_server::wire::Errno;

use super::commit::{Bundle, Waiter};
use super::served::MapState;
use super::transfer::{Job, Task};
use super::{Store, TAG_RECLAIM};
use crate::catalog::format::{Change, LayerRecord, MapRecord};
use crate::catalog::meta::MetaOp;
use crate::map::{HeadPart, Source};
use crate::units::{BLOCK_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, VolumeId};

/// Records moved between two commits.
const STEP_RECORDS: usize = 256;
/// Records of the child looked at for them.
const CHILD_RECORDS: usize = 4096;

/// The export that the store's own work on closed layers runs under. No client ever sees it.
pub(super) const OWN_WORK: ExportIndex = ExportIndex(0);

/// Where the moving of one layer stands.
enum Stage {
    /// The next records of the layer are being read.
    Scanning,
    /// The child's records for these are being read.
    ScanningChild(Vec<(ClusterIndex, MapRecord)>),
    /// So many records are still being moved.
    Moving(usize),
    /// Blocks were copied into a closed layer: a commit makes them durable, then the records follow.
    Syncing,
    /// A commit makes the moves durable.
    Committing,
    /// A commit forgets the layer.
    Ending,
}

struct Active {
    layer: LayerId,
    child: Option<LayerId>,
    stage: Stage,
    /// Moves whose blocks were copied into a closed layer, and whose records wait for them to be durable.
    copied: Vec<usize>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Reclaim {
    active: Option<Active>,
    /// There may be something to do.
    wanted: bool,
    /// Layers whose data cannot be read: left as they are until the next start.
    unreadable: BTreeSet<LayerId>,
    commit_ended: bool,
    /// Records are being read, maybe those of a layer that was given up.
    scanning: bool,
    /// Moves that have not ended, also those of a layer that was given up.
    moves: usize,
}

impl Reclaim {
    /// Whether a layer of the chain is being moved.
    pub(super) fn touches(&self, chain: &[LayerId]) -> bool {
        self.active.as_ref().is_some_and(|active| chain.contains(&active.layer))
    }

    /// The commit that the next stage waits for has ended.
    pub(super) fn committed(&mut self) {
        self.commit_ended = true;
    }
}

/// The move of one record.
pub(super) struct MergeCopy {
    cluster: ClusterIndex,
    layer: LayerId,
    child: LayerId,
    record: MapRecord,
    /// The child's record, if the child is closed.
    child_record: Option<MapRecord>,
    /// What is copied, run by run, while it is.
    bufs: Vec<Option<Buf>>,
    writing: bool,
}

impl MergeCopy {
    pub(super) fn keep(&mut self, part: usize, buf: Buf) {
        self.bufs[part] = Some(buf);
    }
}

/// What becomes of two records of one cluster when the older layer is merged into the newer one.
#[derive(Debug, PartialEq, Eq)]
struct Merged {
    record: MapRecord,
    /// Blocks to be copied from the older record's cluster to the newer one's.
    copied: Mask,
    freed: Option<PoolCluster>,
}

fn merge(older: &MapRecord, newer: Option<&MapRecord>) -> Merged {
    let Some(newer) = newer else {
        return Merged { record: *older, copied: Mask::NONE, freed: None };
    };
    let decided = newer.data.with(newer.zero);
    let shown = older.data.without(decided);
    let zero = newer.zero.with(older.zero.without(decided));
    match (newer.cluster, older.cluster) {
        (None, Some(cluster)) if !shown.is_empty() => Merged {
            record: MapRecord { cluster: Some(cluster), data: shown, zero, packed: older.packed },
            copied: Mask::NONE,
            freed: None,
        },
        (own, freed) => Merged {
            record: MapRecord { cluster: own, data: newer.data.with(shown), zero, packed: newer.packed },
            copied: shown,
            freed,
        },
    }
}

impl Store {
    /// There may be layers to reclaim.
    pub(super) fn reclaim_later(&mut self) {
        self.reclaim.wanted = true;
    }

    /// Layers that can be merged or dropped, with the child they go into.
    pub(super) fn reclaimable(&self) -> Vec<(LayerId, Option<LayerId>)> {
        let heads = self.catalog.volumes.values().map(|volume| volume.head);
        let named = self.catalog.snapshots.values().map(|snapshot| snapshot.layer);
        let kept: BTreeSet<LayerId> = heads.chain(named).collect();
        let mut children = BTreeMap::<LayerId, (u32, LayerId)>::new();
        for (&layer, record) in &self.catalog.layers {
            if let Some(parent) = record.parent {
                let entry = children.entry(parent).or_insert((0, layer));
                entry.0 += 1;
            }
        }
        let candidates = self.catalog.layers.keys().filter(|layer| !kept.contains(layer));
        let only = |layer: &LayerId| match children.get(layer) {
            None => Some((*layer, None)),
            Some((1, child)) => Some((*layer, Some(*child))),
            Some(_) => None,
        };
        candidates.filter_map(only).collect()
    }

    /// Whether nothing forbids to move this layer now.
    fn is_movable(&self, layer: LayerId, child: Option<LayerId>) -> bool {
        let unsettled = |layer| self.commits.is_unsettled(layer);
        let loading = |disk: &super::Served| {
            matches!(disk.map, MapState::Loading) && self.catalog.chain(disk.top).contains(&layer)
        };
        !self.reclaim.unreadable.contains(&layer)
            && !unsettled(layer)
            && !child.is_some_and(unsettled)
            && !self.pins.iter().any(|(_, chain)| chain.contains(&layer))
            && !self.served.iter().flatten().any(loading)
            && !child.is_some_and(|child| self.shows_in_failed_volume(child))
    }

    /// Whether a volume that has failed shows a layer: what is known of it is ahead of its records then.
    fn shows_in_failed_volume(&self, layer: LayerId) -> bool {
        let volumes = self.catalog.volumes.iter();
        let mut failed = volumes.filter(|(volume, _)| self.volume_failed(**volume));
        failed.any(|(_, record)| self.catalog.chain(record.head).contains(&layer))
    }

    /// Begins or goes on with the background work, as far as it can.
    pub(super) fn continue_reclaim(&mut self, io: &mut Io<'_>) {
        if self.commits.meta_failed || (self.stopping && self.reclaim.active.is_none()) {
            return;
        }
        if self.reclaim.active.is_none() {
            self.begin_reclaim();
        }
        if std::mem::take(&mut self.reclaim.commit_ended) {
            self.step_committed(io);
        }
    }

    fn begin_reclaim(&mut self) {
        if !self.reclaim.wanted || self.reclaim.moves > 0 || self.reclaim.scanning {
            return;
        }
        // Whatever stands in the way of the others says so when it ends: this is not asked at every turn.
        self.reclaim.wanted = false;
        let found = self.reclaimable().into_iter().find(|&(layer, child)| self.is_movable(layer, child));
        let Some((layer, child)) = found else { return };
        self.reclaim.commit_ended = false;
        self.reclaim.active = Some(Active { layer, child, stage: Stage::Scanning, copied: Vec::new() });
        self.scan(layer, ClusterIndex(0), STEP_RECORDS);
    }

    fn scan(&mut self, layer: LayerId, from: ClusterIndex, limit: usize) {
        self.reclaim.scanning = true;
        self.meta.submit(TAG_RECLAIM, MetaOp::Scan { layer, from, limit });
    }

    fn step_committed(&mut self, io: &mut Io<'_>) {
        let Some(active) = &mut self.reclaim.active else { return };
        match active.stage {
            Stage::Committing => {
                active.stage = Stage::Scanning;
                let layer = active.layer;
                if !self.stopping && self.still_movable() {
                    self.scan(layer, ClusterIndex(0), STEP_RECORDS);
                } else {
                    self.pause_reclaim();
                }
            }
            Stage::Syncing => {
                for key in std::mem::take(&mut active.copied) {
                    self.apply_merge(key, io);
                }
                self.commit_step(Stage::Committing);
            }
            Stage::Ending => {
                self.reclaim.active = None;
                self.reclaim_later();
                self.load_wanted_maps();
                self.continue_reclaim(io);
            }
            Stage::Scanning | Stage::ScanningChild(_) | Stage::Moving(_) => {}
        }
    }

    /// A cut may have closed the child since: its records are not complete in the metadata store then.
    fn still_movable(&self) -> bool {
        self.reclaim.active.as_ref().is_some_and(|active| self.is_movable(active.layer, active.child))
    }

    /// The layer is left as it is, and found again later.
    fn pause_reclaim(&mut self) {
        self.reclaim.active = None;
        self.reclaim_later();
        self.load_wanted_maps();
    }

    /// The layer is left as it is; moves under way end without effect.
    pub(super) fn abandon_reclaim(&mut self, io: &mut Io<'_>) -> Option<LayerId> {
        let active = self.reclaim.active.take()?;
        self.reclaim_later();
        for key in active.copied {
            self.drop_merge(key, Ok(Payload::None), io);
        }
        Some(active.layer)
    }

    /// Records of the layer, or of its child, cannot be read.
    pub(super) fn reclaim_unread(&mut self, error: &str, io: &mut Io<'_>) {
        self.reclaim.scanning = false;
        self.reclaim_failed(error, io);
    }

    fn reclaim_failed(&mut self, error: &str, io: &mut Io<'_>) {
        let Some(layer) = self.abandon_reclaim(io) else { return };
        tracing::error!(layer = layer.0, error, "a layer cannot be reclaimed: its space stays in use");
        self.reclaim.unreadable.insert(layer);
        self.load_wanted_maps();
    }

    /// Records of the layer, or of its child, have been read.
    pub(super) fn reclaim_records(&mut self, records: Vec<(ClusterIndex, MapRecord)>, io: &mut Io<'_>) {
        self.reclaim.scanning = false;
        if !self.still_movable() {
            return self.pause_reclaim();
        }
        let Some(active) = &mut self.reclaim.active else { return };
        let child = active.child;
        match std::mem::replace(&mut active.stage, Stage::Scanning) {
            Stage::Scanning if records.is_empty() => self.forget_layer(),
            Stage::Scanning => match child {
                None => self.drop_records(&records),
                Some(child) if self.loaded_head(child).is_some() => self.move_records(records, &[], io),
                Some(child) => self.scan_child(child, records),
            },
            Stage::ScanningChild(mut moving) => {
                if records.len() == CHILD_RECORDS
                    && let Some(&(last, _)) = records.last()
                {
                    // What the child has beyond was not looked at.
                    moving.retain(|&(cluster, _)| cluster <= last);
                }
                self.move_records(moving, &records, io);
            }
            Stage::Moving(_) | Stage::Syncing | Stage::Committing | Stage::Ending => {
                unreachable!("no scan is under way")
            }
        }
    }

    fn scan_child(&mut self, child: LayerId, records: Vec<(ClusterIndex, MapRecord)>) {
        let from = records[0].0;
        if let Some(active) = &mut self.reclaim.active {
            active.stage = Stage::ScanningChild(records);
        }
        self.scan(child, from, CHILD_RECORDS);
    }

    /// The export of the volume whose open layer this is, if its map is here.
    fn loaded_head(&self, layer: LayerId) -> Option<(VolumeId, ExportIndex)> {
        let volume = self.catalog.is_head(layer)?;
        let export = self.catalog.volume_exports[&volume];
        self.disk(export).loaded().map(|_| (volume, export))
    }

    fn add_changes(&mut self, layer: LayerId, changes: Vec<Change>, volume: Option<VolumeId>) {
        // Not wanted by itself: it goes with the next commit, at the latest with the step's own.
        // Both layers' records are incomplete until then: neither is moved, or looked at to be moved into.
        let closed = |change: &Change| match change {
            Change::Map(layer, ..) => Some(*layer),
            _ => None,
        };
        let mut settles: Vec<LayerId> = changes.iter().filter_map(closed).collect();
        settles.extend([layer]);
        settles.sort_unstable();
        settles.dedup();
        self.commits.add_bundle(Bundle { settles, ..Bundle::new(changes, volume.into_iter().collect()) });
    }

    fn commit_step(&mut self, stage: Stage) {
        if let Some(active) = &mut self.reclaim.active {
            active.stage = stage;
            self.commits.add_waiter(Waiter::Reclaim);
        }
    }

    fn drop_records(&mut self, records: &[(ClusterIndex, MapRecord)]) {
        let layer = self.reclaim.active.as_ref().expect("its records came").layer;
        for cluster in records.iter().filter_map(|(_, record)| record.cluster) {
            self.pool.free_later(cluster);
        }
        let changes = records.iter().map(|&(cluster, _)| Change::Map(layer, cluster, None)).collect();
        self.add_changes(layer, changes, None);
        self.commit_step(Stage::Committing);
    }

    fn move_records(
        &mut self,
        moving: Vec<(ClusterIndex, MapRecord)>,
        child_records: &[(ClusterIndex, MapRecord)],
        io: &mut Io<'_>,
    ) {
        let Some(active) = &mut self.reclaim.active else { return };
        active.stage = Stage::Moving(moving.len());
        let (layer, child) = (active.layer, active.child.expect("records move into a child"));
        let export = self.loaded_head(child).map_or(OWN_WORK, |(_, export)| export);
        for (cluster, record) in moving {
            let found = child_records.binary_search_by_key(&cluster, |&(at, _)| at).ok();
            let child_record = found.map(|at| child_records[at].1);
            let copy =
                MergeCopy { cluster, layer, child, record, child_record, bufs: Vec::new(), writing: false };
            self.reclaim.moves += 1;
            self.add_job(Job::merge(export, cluster, copy), io);
        }
    }

    fn merge_task(&mut self, key: usize) -> &mut MergeCopy {
        match &mut self.jobs[key].task {
            Task::Merge(copy) => copy,
            _ => unreachable!("the move of a record"),
        }
    }

    /// What the records of a move become.
    fn merged(&mut self, key: usize) -> Merged {
        let export = self.jobs[key].export;
        let copy = self.merge_task(key);
        let (cluster, record, closed) = (copy.cluster, copy.record, copy.child_record);
        let child = if export == OWN_WORK { closed } else { self.disk(export).record(cluster) };
        merge(&record, child.as_ref())
    }

    /// The layer has been given up since: what the move would do nobody would record.
    fn is_given_up(&self) -> bool {
        self.reclaim.active.is_none()
    }

    /// A move comes to nothing: the records stay as they are.
    fn drop_merge(&mut self, key: usize, outcome: Result<Payload, Errno>, io: &mut Io<'_>) {
        self.reclaim.moves -= 1;
        self.end_job(key, outcome, io);
    }

    /// Nothing else changes the cluster now.
    pub(super) fn begin_merge(&mut self, key: usize, io: &mut Io<'_>) {
        if self.is_given_up() {
            return self.drop_merge(key, Ok(Payload::None), io);
        }
        let merged = self.merged(key);
        if merged.copied.is_empty() {
            self.apply_merge(key, io);
            return self.record_moved();
        }
        let from = self.merge_task(key).record.cluster.expect("data lie somewhere");
        let runs: Vec<_> = merged.copied.runs().collect();
        self.merge_task(key).bufs = runs.iter().map(|_| None).collect();
        for (part, run) in runs.into_iter().enumerate() {
            let place = self.pool.place(from, run.start);
            let buf = io.pool().take((run.end - run.start) as usize * BLOCK_BYTES as usize);
            let kind = DiskOpKind::Read { offset: place.offset, done: 0, buf };
            self.submit_part(key, part, place.file, kind, io);
        }
    }

    pub(super) fn merge_parts_ended(&mut self, key: usize, io: &mut Io<'_>) {
        if let Some(error) = self.jobs[key].error() {
            let text = format!("{error:?} while blocks were copied");
            self.reclaim_failed(&text, io);
            return self.drop_merge(key, Err(error), io);
        }
        if self.is_given_up() {
            return self.drop_merge(key, Ok(Payload::None), io);
        }
        if self.merge_task(key).writing {
            return self.merge_copied(key, io);
        }
        self.merge_task(key).writing = true;
        let merged = self.merged(key);
        let to = merged.record.cluster.expect("blocks are copied to a cluster");
        let bufs = std::mem::take(&mut self.merge_task(key).bufs);
        let export = self.jobs[key].export;
        self.disk_mut(export).unsynced = true;
        for (part, (run, buf)) in merged.copied.runs().zip(bufs).enumerate() {
            let place = self.pool.place(to, run.start);
            self.commits.wrote(place.file);
            let kind = DiskOpKind::Write { offset: place.offset, done: 0, buf: buf.expect("it was read") };
            self.submit_part(key, part, place.file, kind, io);
        }
    }

    /// A volume's open layer is in doubt with the volume if the next sync fails, and shows to nobody else. Blocks of
    /// closed layers show to many: nothing names the copies before they are durable.
    fn merge_copied(&mut self, key: usize, io: &mut Io<'_>) {
        if self.jobs[key].export != OWN_WORK {
            self.apply_merge(key, io);
            return self.record_moved();
        }
        if let Some(active) = &mut self.reclaim.active {
            active.copied.push(key);
        }
        self.record_moved();
    }

    /// The blocks are where they belong: maps and records follow, all in one event, so that they share a commit.
    fn apply_merge(&mut self, key: usize, io: &mut Io<'_>) {
        let merged = self.merged(key);
        let export = self.jobs[key].export;
        let copy = self.merge_task(key);
        let (cluster, layer, child, older) = (copy.cluster, copy.layer, copy.child, copy.record);
        self.retarget_maps(cluster, layer, child, &older, &merged);
        let mut changes = vec![Change::Map(layer, cluster, None)];
        let mut volume = None;
        if export == OWN_WORK {
            changes.push(Change::Map(child, cluster, Some(merged.record)));
        } else {
            // Its record is taken when the commit begins: it may have changed again by then.
            self.disk_mut(export).dirty.push(cluster);
            volume = self.catalog.is_head(child);
        }
        self.add_changes(layer, changes, volume);
        if let Some(freed) = merged.freed {
            self.pool.free_later(freed);
        }
        self.reclaim.moves -= 1;
        self.end_job(key, Ok(Payload::None), io);
    }

    /// Every map that shows the older layer's cluster shows the merged record's from now on.
    fn retarget_maps(
        &mut self,
        cluster: ClusterIndex,
        layer: LayerId,
        child: LayerId,
        older: &MapRecord,
        merged: &Merged,
    ) {
        let Some(from) = older.cluster else { return self.retarget_zeroes(cluster, child, merged) };
        for at in 0..self.served.len() {
            let Some(disk) = &self.served[at] else { continue };
            if disk.loaded().is_none() || u64::from(cluster.0) >= disk.map().clusters() {
                continue;
            }
            let top = disk.top;
            if top != child && !self.catalog.chain(top).contains(&layer) {
                continue;
            }
            let disk = self.served[at].as_mut().expect("looked at above");
            let mut entry = disk.map().get(cluster);
            let mut shown = Mask::NONE;
            for source in entry.older.iter().filter(|source| source.cluster == from) {
                shown = shown.with(source.shown);
            }
            entry.older.retain(|source| source.cluster != from);
            if top == child {
                entry.head = Some(head_of(&merged.record));
            } else if !shown.is_empty() {
                let to = merged.record.cluster.expect("shown data lie somewhere");
                match entry.older.iter_mut().find(|source| source.cluster == to) {
                    Some(source) => source.shown = source.shown.with(shown),
                    None => entry.older.push(Source { cluster: to, shown, packed: None }),
                }
            }
            disk.map_mut().set(cluster, entry);
        }
    }

    /// The older record had no data: only the child's own map has something to learn.
    fn retarget_zeroes(&mut self, cluster: ClusterIndex, child: LayerId, merged: &Merged) {
        for disk in
            self.served.iter_mut().flatten().filter(|disk| disk.top == child && disk.loaded().is_some())
        {
            let mut entry = disk.map().get(cluster);
            entry.head = Some(head_of(&merged.record));
            disk.map_mut().set(cluster, entry);
        }
    }

    fn record_moved(&mut self) {
        let Some(Active { stage: Stage::Moving(left), copied, .. }) = &mut self.reclaim.active else {
            return;
        };
        *left -= 1;
        if *left == 0 {
            let stage = if copied.is_empty() { Stage::Committing } else { Stage::Syncing };
            self.commit_step(stage);
        }
    }

    /// No record is left: the child takes the layer's place.
    fn forget_layer(&mut self) {
        let Some(&Active { layer, child, .. }) = self.reclaim.active.as_ref() else { return };
        let parent = self.catalog.layers.remove(&layer).and_then(|record| record.parent);
        let mut changes = vec![Change::DropHashes(layer), Change::Layer(layer, None)];
        if let Some(child) = child
            && let Some(record) = self.catalog.layers.get_mut(&child)
        {
            *record = LayerRecord { parent, ..*record };
            changes.push(Change::Layer(child, Some(*record)));
        }
        self.add_changes(layer, changes, None);
        self.commit_step(Stage::Ending);
    }
}

fn head_of(record: &MapRecord) -> HeadPart {
    HeadPart { cluster: record.cluster, data: record.data, zero: record.zero }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cluster: Option<u32>, data: u16, zero: u16) -> MapRecord {
        MapRecord { cluster: cluster.map(PoolCluster), data: Mask(data), zero: Mask(zero), packed: None }
    }

    #[test]
    fn a_record_without_counterpart_changes_hands() {
        let older = record(Some(7), 0b11, 0b100);
        assert_eq!(merge(&older, None), Merged { record: older, copied: Mask::NONE, freed: None });
    }

    #[test]
    fn covered_blocks_are_freed_and_others_are_copied() {
        let older = record(Some(7), 0b0111, 0b1000_0000);
        let all = merge(&older, Some(&record(Some(8), 0b0011, 0b0100)));
        assert_eq!(all.record, record(Some(8), 0b0011, 0b1000_0100));
        assert_eq!((all.copied, all.freed), (Mask::NONE, Some(PoolCluster(7))));
        let some = merge(&older, Some(&record(Some(8), 0b0001, 0b0010)));
        assert_eq!(some.record, record(Some(8), 0b0101, 0b1000_0010));
        assert_eq!((some.copied, some.freed), (Mask(0b0100), Some(PoolCluster(7))));
    }

    #[test]
    fn zeroes_over_data_leave_the_rest_where_it_lies() {
        let merged = merge(&record(Some(7), 0b0111, 0), Some(&record(None, 0, 0b0001)));
        assert_eq!(
            merged,
            Merged { record: record(Some(7), 0b0110, 0b0001), copied: Mask::NONE, freed: None }
        );
        let merged = merge(&record(Some(7), 0b0001, 0), Some(&record(None, 0, 0b0001)));
        assert_eq!(merged.record, record(None, 0, 0b0001));
        assert_eq!(merged.freed, Some(PoolCluster(7)));
    }
}
