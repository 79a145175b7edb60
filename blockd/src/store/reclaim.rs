//! Layers that nobody names any more are merged into their only child, or dropped, in the background.
//!
//! ```text
//!  idle ─► scan 256 records ─► move each ─► commit ─► rest ─► scan … ─► none left: the layer's own record ─► commit ─► idle
//! ```
//!
//! **A rest** leaves clients their speed (`throttle`). All that was moved is durable then: the layer may be read and pinned,
//! and is left for that.
//!
//! **Moving a record** of layer *k* into its child *c*, at one cluster:
//!
//! | the child has | what happens |
//! |---|---|
//! | nothing | the record changes hands; no data move |
//! | no cluster of its own, or every block decided | the record changes hands for what is still shown, or its cluster is freed |
//! | a cluster, and blocks of *k* shine through | those blocks are copied into the child's cluster, and *k*'s is freed |
//! | packed blocks, and *k*'s blocks lie in place | the child's blocks are copied into *k*'s cluster, which changes hands |
//!
//! **Packed records** change hands as they are where the blocks still shown lie side by side; in all other cases
//! their blocks are copied into a cluster where they lie in place, and released. An open layer never has packed
//! records. Where that cluster must be taken first and the pool has none to spare, the record is left behind, and with
//! it its layer for a while.
//!
//! The records of *k* and *c* change in one batch, which comes after a sync of the copied blocks; so at every crash
//! point all volumes and snapshots read as before, and no cluster has two owners. Copies into a closed layer are
//! synced before any map shows them: if that sync fails, nobody has seen them, and the step is done again. Where the child is the open
//! layer of a volume in use, the move is a job like a client's, exclusive on its cluster. *k*'s cluster is used again
//! after the commit and after the reads that were under way, like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nbd_server::connection::Nanos;
use nbd_server::disk::ExportIndex;
use nbd_server::export::{Io, Payload};
use nbd_server::wire::Errno;
use smallvec::{SmallVec, smallvec};

use super::commit::{Bundle, Waiter};
use super::copy::Copying;
use super::pool::Part;
use super::served::MapState;
use super::transfer::{Job, NOWHERE, Task};
use super::{Store, TAG_RECLAIM};
use crate::catalog::format::{Change, LayerRecord, MapRecord};
use crate::catalog::meta::MetaOp;
use crate::map::Source;
use crate::units::{ClusterIndex, LayerId, Mask, PoolCluster, VolumeId};

/// Records moved between two commits.
const STEP_RECORDS: usize = 256;
/// Records of the child looked at for them.
const CHILD_RECORDS: usize = 4096;

/// How long nothing is merged after somebody was refused a pin because of it: he tries again within that time. A large layer takes
/// minutes, and whoever wants a root of it may have stopped a guest.
const YIELD: Duration = Duration::from_millis(500);

/// Free clusters that background work leaves to clients.
pub(super) const SPARE_CLUSTERS: u64 = 8;
/// One in so many of the pool's clusters is left free when packed records are unfolded into an open layer: that takes
/// more than it gives back. Once the layer is closed, they need no unfolding.
const UNFOLD_SPARE_PARTS: u64 = 8;

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
    /// They are: the next step is to begin, when clients have had their time.
    Resting,
    /// A commit forgets the layer.
    Ending,
}

struct Active {
    layer: LayerId,
    child: Option<LayerId>,
    stage: Stage,
    /// Where the next scan begins.
    from: ClusterIndex,
    /// Records before that could not be moved: there was no cluster for their blocks.
    left_behind: bool,
    /// Moves whose blocks were copied into a closed layer, and whose records wait for them to be durable.
    copied: Vec<usize>,
}

impl Active {
    fn rests(&self) -> bool {
        matches!(self.stage, Stage::Resting)
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Reclaim {
    active: Option<Active>,
    /// There may be something to do.
    wanted: bool,
    /// Layers whose data cannot be read: left as they are until the next start.
    unreadable: BTreeSet<LayerId>,
    /// Layers with records that wait for free clusters.
    blocked: BTreeSet<LayerId>,
    /// A pin stands in the way of some layer, when that was last looked at.
    pinned: bool,
    commit_ended: bool,
    /// Somebody was refused a pin: nothing is merged until then.
    yields_until: Option<Nanos>,
    /// Records are being read, maybe those of a layer that was given up.
    scanning: bool,
    /// Moves that have not ended, also those of a layer that was given up.
    moves: usize,
}

impl Reclaim {
    /// Whether a layer of the chain is being moved.
    pub(super) fn touches(&self, chain: &[LayerId]) -> bool {
        let moved = |active: &Active| !active.rests() && chain.contains(&active.layer);
        self.active.as_ref().is_some_and(moved)
    }

    /// Whether something is under way, of a layer that was given up even.
    pub(super) fn is_busy(&self) -> bool {
        self.active.is_some() || self.moves > 0 || self.scanning
    }

    /// Whether a step is under way.
    pub(super) fn is_working(&self) -> bool {
        self.is_busy() && !self.active.as_ref().is_some_and(Active::rests)
    }

    /// Somebody wants a layer that is being moved: it is left at the end of the step, for a while.
    pub(super) fn yield_at(&mut self, now: Nanos) {
        self.yields_until = Some(now.after(YIELD));
    }

    /// When to go on with what was left for somebody else.
    pub(super) fn next_at(&self, now: Nanos) -> Option<Nanos> {
        self.yields_until.filter(|until| self.wanted && *until > now)
    }

    fn yields(&mut self, now: Nanos) -> bool {
        self.yields_until = self.yields_until.filter(|until| now < *until);
        self.yields_until.is_some()
    }

    /// There may be clusters now for what had none: it is looked for again.
    pub(super) fn unblock(&mut self) {
        self.wanted |= !self.blocked.is_empty();
        self.blocked.clear();
    }

    /// The commit that the next stage waits for has ended.
    pub(super) fn committed(&mut self) {
        self.commit_ended = true;
    }
}

/// The move of one record.
pub(super) struct Merge {
    cluster: ClusterIndex,
    layer: LayerId,
    child: LayerId,
    record: MapRecord,
    /// The child's record: if the child is open, since the move has begun.
    child_record: Option<MapRecord>,
    /// What comes of it, since it has begun.
    merged: Merged,
    /// A cluster that was taken for it and that nothing names yet.
    taken: Option<PoolCluster>,
    pub(super) copying: Copying,
}

/// What becomes of two records of one cluster when the older layer is merged into the newer one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Merged {
    record: MapRecord,
    /// Blocks of the older record that are copied to the merged one's cluster, each to its place.
    copied: Mask,
    /// The same of the newer record.
    moved: Mask,
    /// The merged record needs a cluster that is in no use.
    fresh: bool,
    /// What the merged record has not.
    freed: SmallVec<[Part; 2]>,
}

impl Merged {
    fn freeing(record: MapRecord, freed: &MapRecord) -> Self {
        Self { record, freed: Part::of(freed).into_iter().collect(), ..Self::default() }
    }
}

/// The record, of the newer layer, when an older one is merged into it; `open` if clients write to the newer layer.
fn merge(older: &MapRecord, newer: Option<&MapRecord>, open: bool) -> Merged {
    let Some(newer) = newer else { return hand_over(older, older.data, older.zero, open) };
    let decided = newer.data.with(newer.zero);
    let shown = older.data.without(decided);
    let zero = newer.zero.with(older.zero.without(decided));
    let in_place = |cluster| MapRecord { cluster, data: newer.data.with(shown), zero, packed: None };
    if shown.is_empty() {
        Merged::freeing(MapRecord { zero, ..*newer }, older)
    } else if newer.cluster.is_none() {
        hand_over(older, shown, zero, open)
    } else if newer.packed.is_none() {
        Merged { copied: shown, ..Merged::freeing(in_place(newer.cluster), older) }
    } else if older.packed.is_none() {
        // Its other blocks in there are shown by nothing.
        Merged { moved: newer.data, ..Merged::freeing(in_place(older.cluster), newer) }
    } else {
        let freed = Part::of(older).into_iter().chain(Part::of(newer)).collect();
        Merged { record: in_place(None), copied: shown, moved: newer.data, fresh: true, freed }
    }
}

/// A record changes hands, for what is still shown of it.
fn hand_over(older: &MapRecord, shown: Mask, zero: Mask, open: bool) -> Merged {
    let record = MapRecord { data: shown, zero, ..*older };
    let Some(all) = older.packed_blocks() else { return Merged { record, ..Merged::default() } };
    if !open && let Some(record) = trimmed(older, record) {
        let rest = all.without(record.packed_blocks().unwrap_or_default());
        let freed = Part { cluster: record.cluster.expect("it is packed"), blocks: Some(rest) };
        let freed = if rest.is_empty() { SmallVec::new() } else { smallvec![freed] };
        return Merged { record, freed, ..Merged::default() };
    }
    let record = MapRecord { cluster: None, packed: None, ..record };
    Merged { copied: shown, fresh: true, ..Merged::freeing(record, older) }
}

/// A packed record with some of its blocks, if they lie side by side.
fn trimmed(whole: &MapRecord, part: MapRecord) -> Option<MapRecord> {
    let source = Source::of(whole)?;
    let (low, high) = (part.data.0.trailing_zeros(), 15 - part.data.0.leading_zeros());
    let (first, last) = (source.place(low), source.place(high));
    let side_by_side = last + 1 - first == part.data.count();
    side_by_side.then(|| MapRecord { packed: u8::try_from(first).ok(), ..part })
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

    /// Whether nothing forbids to move this layer now. What a failed volume has closed may be its open layer still
    /// when the store is opened again.
    fn is_movable(&self, layer: LayerId, child: Option<LayerId>) -> bool {
        let unsettled = |layer| self.commits.is_unsettled(layer);
        let writer = |layer| self.catalog.layers.get(&layer).map(|record| record.volume);
        let failed = |layer| writer(layer).is_some_and(|volume| self.volume_failed(volume));
        let loading = |disk: &super::Served| {
            matches!(disk.map, MapState::Loading) && self.catalog.chain(disk.top).contains(&layer)
        };
        !self.reclaim.unreadable.contains(&layer)
            && !self.reclaim.blocked.contains(&layer)
            && !unsettled(layer)
            && !child.is_some_and(unsettled)
            && !self.is_pinned(layer)
            && !self.served.iter().flatten().any(loading)
            && !failed(layer)
            && !child.is_some_and(failed)
    }

    fn is_pinned(&self, layer: LayerId) -> bool {
        self.pins.iter().any(|(_, chain)| chain.contains(&layer))
    }

    /// Space waits to be given back until a pin is released: who holds one without being waited for should do so.
    pub fn waits_for_pins(&self) -> bool {
        self.reclaim.pinned
    }

    /// Whether a layer could be reclaimed and nobody is going to look for it. Never true between two events: whatever
    /// stands in the way of a layer says so when it ends.
    pub fn has_forgotten_layer(&self) -> bool {
        let looked_for = self.reclaim.wanted || self.reclaim.active.is_some();
        !looked_for && self.reclaimable().into_iter().any(|(layer, child)| self.is_movable(layer, child))
    }

    /// Begins or goes on with the background work, as far as it can.
    pub(super) fn continue_reclaim(&mut self, io: &mut Io<'_>) {
        if self.commits.meta_failed || (self.stopping && self.reclaim.active.is_none()) {
            return;
        }
        if self.reclaim.active.is_none() {
            self.begin_reclaim();
        }
        self.end_rest();
        if std::mem::take(&mut self.reclaim.commit_ended) {
            self.step_committed(io);
        }
    }

    fn begin_reclaim(&mut self) {
        if !self.reclaim.wanted
            || self.reclaim.is_busy()
            || self.pack.is_busy()
            || self.must_rest()
            || self.reclaim.yields(self.now)
        {
            return;
        }
        // Whatever stands in the way of the others says so when it ends: this is not asked at every turn.
        self.reclaim.wanted = false;
        let layers = self.reclaimable();
        self.reclaim.pinned = layers.iter().any(|&(layer, _)| self.is_pinned(layer));
        let found = layers.into_iter().find(|&(layer, child)| self.is_movable(layer, child));
        let Some((layer, child)) = found else { return };
        self.reclaim.commit_ended = false;
        let (stage, from) = (Stage::Scanning, ClusterIndex(0));
        let active = Active { layer, child, stage, from, left_behind: false, copied: Vec::new() };
        self.reclaim.active = Some(active);
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
                active.stage = Stage::Resting;
                self.throttle.step_ended();
                self.load_wanted_maps();
                self.end_rest();
            }
            Stage::Syncing => {
                for key in std::mem::take(&mut active.copied) {
                    self.apply_merge(key, io);
                }
                self.commit_step(Stage::Committing);
            }
            Stage::Ending => {
                self.throttle.step_ended();
                self.pause_reclaim();
                self.continue_reclaim(io);
            }
            Stage::Scanning | Stage::ScanningChild(_) | Stage::Moving(_) | Stage::Resting => {}
        }
    }

    /// Begins the next step of a layer, unless it still rests.
    fn end_rest(&mut self) {
        if self.must_rest() || !self.reclaim.active.as_ref().is_some_and(Active::rests) {
            return;
        }
        if self.stopping || !self.may_go_on() {
            return self.pause_reclaim();
        }
        let Some(active) = &mut self.reclaim.active else { return };
        active.stage = Stage::Scanning;
        let (layer, from) = (active.layer, active.from);
        self.scan(layer, from, STEP_RECORDS);
    }

    /// A cut may have closed the child since: its records are not complete in the metadata store then.
    fn still_movable(&self) -> bool {
        self.reclaim.active.as_ref().is_some_and(|active| self.is_movable(active.layer, active.child))
    }

    /// Whether the next step may begin.
    fn may_go_on(&mut self) -> bool {
        !self.reclaim.yields(self.now) && self.still_movable()
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
        if !self.may_go_on() {
            return self.pause_reclaim();
        }
        let Some(active) = &mut self.reclaim.active else { return };
        let (layer, child, left_behind) = (active.layer, active.child, active.left_behind);
        match std::mem::replace(&mut active.stage, Stage::Scanning) {
            Stage::Scanning if records.is_empty() && left_behind => {
                tracing::debug!(layer = layer.0, "a layer waits for free clusters to be merged");
                self.reclaim.blocked.insert(layer);
                self.pause_reclaim();
            }
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
            Stage::Moving(_) | Stage::Syncing | Stage::Committing | Stage::Resting | Stage::Ending => {
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
        for part in records.iter().filter_map(|(_, record)| Part::of(record)) {
            self.pool.free_part_later(part);
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
        if let Some((last, _)) = moving.last() {
            active.from = ClusterIndex(last.0.saturating_add(1));
        }
        let (layer, child) = (active.layer, active.child.expect("records move into a child"));
        let export = self.loaded_head(child).map_or(OWN_WORK, |(_, export)| export);
        for (cluster, record) in moving {
            let found = child_records.binary_search_by_key(&cluster, |&(at, _)| at).ok();
            let child_record = found.map(|at| child_records[at].1);
            let (merged, taken, copying) = (Merged::default(), None, Copying::new(NOWHERE));
            let merge = Merge { cluster, layer, child, record, child_record, merged, taken, copying };
            self.reclaim.moves += 1;
            self.add_job(Job::merge(export, cluster, merge), io);
        }
    }

    fn merge_task(&mut self, key: usize) -> &mut Merge {
        match &mut self.jobs[key].task {
            Task::Merge(merge) => merge,
            _ => unreachable!("the move of a record"),
        }
    }

    /// Works out what comes of a move; false if there is no cluster for it.
    fn plan_merge(&mut self, key: usize, io: &mut Io<'_>) -> bool {
        let (export, child) = (self.jobs[key].export, self.merge_task(key).child);
        let cluster = self.merge_task(key).cluster;
        if export != OWN_WORK {
            self.merge_task(key).child_record = self.disk(export).record(cluster);
        }
        let open = self.catalog.is_head(child).is_some();
        let plan = self.merge_task(key);
        let (older, newer) = (plan.record, plan.child_record);
        let mut merged = merge(&older, newer.as_ref(), open);
        if merged.fresh {
            let Some(taken) = self.take_spare(open, io) else { return false };
            self.merge_task(key).taken = Some(taken);
            merged.record.cluster = Some(taken);
        }
        let plan = self.merge_task(key);
        plan.copying = Copying::new(merged.record.cluster.unwrap_or(NOWHERE));
        plan.copying.add_in_place(&older, merged.copied);
        plan.copying.add_in_place(&newer.unwrap_or_default(), merged.moved);
        plan.merged = merged;
        true
    }

    /// A cluster for blocks that cannot stay packed, if there are some to spare.
    fn take_spare(&mut self, open: bool, io: &mut Io<'_>) -> Option<PoolCluster> {
        let capacity = self.pool.capacity();
        let spare = if open { capacity / UNFOLD_SPARE_PARTS } else { SPARE_CLUSTERS };
        let taken = if capacity - self.pool.used() > spare { self.pool.take() } else { None };
        self.extend_pool(io);
        taken
    }

    /// The layer has been given up since: what the move would do nobody would record.
    fn is_given_up(&self) -> bool {
        self.reclaim.active.is_none()
    }

    /// A move comes to nothing: the records stay as they are.
    fn drop_merge(&mut self, key: usize, outcome: Result<Payload, Errno>, io: &mut Io<'_>) {
        self.reclaim.moves -= 1;
        if let Some(taken) = self.merge_task(key).taken {
            self.pool.give_back(taken);
        }
        self.end_job(key, outcome, io);
    }

    /// Nothing else changes the cluster now.
    pub(super) fn begin_merge(&mut self, key: usize, io: &mut Io<'_>) {
        if self.is_given_up() {
            return self.drop_merge(key, Ok(Payload::None), io);
        }
        if !self.plan_merge(key, io) {
            if let Some(active) = &mut self.reclaim.active {
                active.left_behind = true;
            }
            self.drop_merge(key, Ok(Payload::None), io);
            return self.record_moved();
        }
        if self.merge_task(key).copying.is_empty() {
            self.apply_merge(key, io);
            return self.record_moved();
        }
        self.read_copied(key, io);
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
        if self.is_writing(key) {
            return self.merge_copied(key, io);
        }
        self.write_copied(key, io);
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
        let export = self.jobs[key].export;
        let plan = self.merge_task(key);
        plan.taken = None;
        let (cluster, layer, child, merged) = (plan.cluster, plan.layer, plan.child, plan.merged.clone());
        let records = (plan.record, plan.child_record.unwrap_or_default());
        self.retarget_maps(cluster, layer, child, &records, &merged.record);
        let mut changes = vec![Change::Map(layer, cluster, None)];
        let mut volume = None;
        if export == OWN_WORK {
            changes.push(Change::Map(child, cluster, Some(merged.record)));
        } else {
            // Its record is taken when the commit begins: it may have changed again by then.
            self.disk_mut(export).dirty.push(cluster);
            self.intents.moved();
            self.recent.touch(export);
            volume = self.catalog.is_head(child);
        }
        self.add_changes(layer, changes, volume);
        for part in merged.freed {
            self.pool.free_part_later(part);
        }
        self.pack.layer_changed(child);
        self.reclaim.moves -= 1;
        self.end_job(key, Ok(Payload::None), io);
    }

    /// Every map that shows one of the records, older and newer, shows the merged one from now on.
    fn retarget_maps(
        &mut self,
        cluster: ClusterIndex,
        layer: LayerId,
        child: LayerId,
        (older, newer): &(MapRecord, MapRecord),
        merged: &MapRecord,
    ) {
        for disk in self.served.iter_mut().flatten() {
            if disk.loaded().is_none() || u64::from(cluster.0) >= disk.map().clusters() {
                continue;
            }
            let is_top = disk.top == child;
            // Where the older record had no data, only the child's own map has something to learn.
            if !is_top && (older.cluster.is_none() || !self.catalog.chain(disk.top).contains(&layer)) {
                continue;
            }
            let mut entry = disk.map().get(cluster);
            let shown = entry.take_older(older).with(entry.take_older(newer));
            if is_top {
                entry.show_top(merged);
            } else {
                entry.show_older(merged, shown);
            }
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
        self.pack.layer_changed(layer);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn record(cluster: Option<u32>, data: u16, zero: u16) -> MapRecord {
        MapRecord { cluster: cluster.map(PoolCluster), data: Mask(data), zero: Mask(zero), packed: None }
    }

    fn packed(cluster: u32, data: u16, first: u8) -> MapRecord {
        MapRecord { packed: Some(first), ..record(Some(cluster), data, 0) }
    }

    fn part(cluster: u32, blocks: u16) -> Part {
        Part { cluster: PoolCluster(cluster), blocks: Some(Mask(blocks)) }
    }

    fn whole(cluster: u32) -> Part {
        Part { cluster: PoolCluster(cluster), blocks: None }
    }

    /// What comes of a record over another one in a closed layer: the record, copied, moved, whether it needs a cluster.
    fn outcome(merged: &Merged) -> (MapRecord, u16, u16, bool) {
        (merged.record, merged.copied.0, merged.moved.0, merged.fresh)
    }

    #[test]
    fn a_record_without_counterpart_changes_hands() {
        let older = record(Some(7), 0b11, 0b100);
        for open in [false, true] {
            assert_eq!(merge(&older, None, open), Merged { record: older, ..Merged::default() });
        }
    }

    #[test]
    fn covered_blocks_are_freed_and_others_are_copied() {
        let older = record(Some(7), 0b0111, 0b1000_0000);
        let all = merge(&older, Some(&record(Some(8), 0b0011, 0b0100)), false);
        assert_eq!(outcome(&all), (record(Some(8), 0b0011, 0b1000_0100), 0, 0, false));
        assert_eq!(all.freed[..], [whole(7)]);
        let some = merge(&older, Some(&record(Some(8), 0b0001, 0b0010)), true);
        assert_eq!(outcome(&some), (record(Some(8), 0b0101, 0b1000_0010), 0b0100, 0, false));
        assert_eq!(some.freed[..], [whole(7)]);
    }

    #[test]
    fn zeroes_over_data_leave_the_rest_where_it_lies() {
        let merged = merge(&record(Some(7), 0b0111, 0), Some(&record(None, 0, 0b0001)), true);
        assert_eq!(merged, Merged { record: record(Some(7), 0b0110, 0b0001), ..Merged::default() });
        let merged = merge(&record(Some(7), 0b0001, 0), Some(&record(None, 0, 0b0001)), true);
        assert_eq!((merged.record, &merged.freed[..]), (record(None, 0, 0b0001), &[whole(7)][..]));
    }

    #[test]
    fn a_packed_record_changes_hands_but_not_into_an_open_layer() {
        let older = packed(7, 0b1001, 3);
        assert_eq!(merge(&older, None, false), Merged { record: older, ..Merged::default() });
        let open = merge(&older, None, true);
        assert_eq!(outcome(&open), (record(None, 0b1001, 0), 0b1001, 0, true));
        assert_eq!(open.freed[..], [part(7, 0b1_1000)]);
    }

    #[test]
    fn what_is_left_of_a_packed_record_stays_if_it_lies_side_by_side() {
        let older = packed(7, 0b1110_0001, 2);
        let ends = merge(&older, Some(&record(None, 0, 0b1000_0001)), false);
        assert_eq!(ends.record, MapRecord { zero: Mask(0b1000_0001), ..packed(7, 0b0110_0000, 3) });
        assert_eq!((ends.fresh, &ends.freed[..]), (false, &[part(7, 0b10_0100)][..]));
        let middle = merge(&older, Some(&record(None, 0, 0b0010_0000)), false);
        assert_eq!(outcome(&middle), (record(None, 0b1100_0001, 0b0010_0000), 0b1100_0001, 0, true));
        assert_eq!(middle.freed[..], [part(7, 0b11_1100)]);
    }

    #[test]
    fn packed_blocks_are_copied_to_a_cluster_in_place() {
        let into = merge(&packed(7, 0b0110, 0), Some(&record(Some(8), 0b0010, 0)), true);
        assert_eq!(outcome(&into), (record(Some(8), 0b0110, 0), 0b0100, 0, false));
        assert_eq!(into.freed[..], [part(7, 0b11)]);
        let under = merge(&record(Some(7), 0b0110, 0), Some(&packed(8, 0b0011, 4)), false);
        assert_eq!(outcome(&under), (record(Some(7), 0b0111, 0), 0, 0b0011, false));
        assert_eq!(under.freed[..], [part(8, 0b11_0000)]);
        let both = merge(&packed(7, 0b0110, 0), Some(&packed(8, 0b0011, 4)), false);
        assert_eq!(outcome(&both), (record(None, 0b0111, 0), 0b0100, 0b0011, true));
        assert_eq!(both.freed[..], [part(7, 0b11), part(8, 0b11_0000)]);
        let covered = merge(&packed(7, 0b0010, 0), Some(&packed(8, 0b0011, 4)), false);
        assert_eq!((covered.record, &covered.freed[..]), (packed(8, 0b0011, 4), &[part(7, 1)][..]));
    }
}
