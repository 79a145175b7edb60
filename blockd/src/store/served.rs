//! One disk that clients see: a volume, or a snapshot read-only.

use std::collections::{HashMap, VecDeque};

use nbd_server::connection::Nanos;
use nbd_server::disk::ExportIndex;
use nbd_server::export::{ExportInfo, Io};

use super::Store;
use super::mirror::Reflection;
use crate::catalog::format::{Change, MapRecord};
use crate::control::Health;
use crate::map::{Entry, FlatMap, HeadPart};
use crate::units::{BLOCK_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId};

/// Whose content an export shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A volume's.
    Volume(VolumeId),
    /// A snapshot's.
    Snapshot(SnapshotId),
    /// A volume's, in that epoch only.
    Door(VolumeId, u64),
    /// Nobody's: it exists for the store's own work and is never seen by a client.
    OwnWork,
}

/// Where the map is.
#[derive(Debug)]
pub(super) enum MapState {
    /// Nobody has asked for it.
    Absent,
    /// On its way; jobs wait.
    Loading,
    /// Here.
    Loaded(Box<FlatMap>),
    /// It cannot be read: every request fails.
    Damaged,
}

/// A cluster to which writes are under way whose blocks the map does not know yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Growing {
    pub(super) cluster: PoolCluster,
    /// Such writes.
    pub(super) writers: u32,
    /// The map names it.
    pub(super) installed: bool,
    /// A record may name it, in the map or durable.
    pub(super) named: bool,
}

/// See the module.
pub struct Served {
    pub(super) subject: Subject,
    pub(super) name: String,
    pub(super) size: u64,
    /// The volume's head layer, or the snapshot's.
    pub(super) top: LayerId,
    /// The top layer has a parent: zeroes must be recorded, for older data may lie below.
    pub(super) has_parent: bool,
    pub(super) map: MapState,
    /// The top layer that the map, while it is loading, is made for.
    pub(super) map_top: LayerId,
    /// It is durable that this exists: clients may see it, its records are complete.
    pub(super) published: bool,
    /// Clients never see it: a replica's head, or what was staged for one.
    pub(super) hidden: bool,
    /// What clients see of a replica instead.
    pub(super) shows: Option<SnapshotId>,
    /// Somebody waits for the map, which cannot be loaded yet.
    pub(super) map_wanted: bool,
    pub(super) clients: u32,
    /// Jobs that change something and have begun.
    pub(super) changing: u32,
    /// Jobs that nothing may overlap and that have begun.
    pub(super) exclusive: u32,
    /// Jobs that have not begun, in order of arrival.
    pub(super) waiting: VecDeque<usize>,
    /// Jobs that exist.
    pub(super) jobs: u32,
    /// Jobs among them that move a record into the open layer: it must not be closed before they have ended.
    pub(super) merges: u32,
    /// Cuts that wait for the changes under way to end.
    pub(super) holds: u32,
    /// It is being moved to another host: clients' changes wait until then, and are refused after.
    pub(super) frozen_until: Option<Nanos>,
    /// Another host has what clients are answered.
    pub(super) mirror: Option<Box<Reflection>>,
    /// Clusters whose record in the top layer differs from the committed one; with repetitions.
    pub(super) dirty: Vec<ClusterIndex>,
    /// So many of them, from the first on, are in the recent log as they are.
    told: usize,
    pub(super) growing: HashMap<ClusterIndex, Growing>,
    /// Something was written since the last sync began.
    pub(super) unsynced: bool,
    /// Something was written before the sync under way began.
    pub(super) syncing: bool,
    /// A sync of what was written has failed: final.
    pub(super) failed: bool,
}

impl Served {
    pub(super) fn new(subject: Subject, name: String, size: u64, top: LayerId, has_parent: bool) -> Self {
        Self {
            subject,
            name,
            size,
            top,
            has_parent,
            map: MapState::Absent,
            map_top: top,
            published: false,
            hidden: false,
            shows: None,
            map_wanted: false,
            clients: 0,
            changing: 0,
            exclusive: 0,
            waiting: VecDeque::new(),
            jobs: 0,
            merges: 0,
            holds: 0,
            frozen_until: None,
            mirror: None,
            dirty: Vec::new(),
            told: 0,
            growing: HashMap::new(),
            unsynced: false,
            syncing: false,
            failed: false,
        }
    }

    /// What clients are told.
    pub fn info(&self) -> ExportInfo {
        ExportInfo {
            read_only: matches!(self.subject, Subject::Snapshot(_)),
            fast_zero: true,
            ..ExportInfo::new(&self.name, self.size)
        }
    }

    /// Whose content it shows.
    pub fn subject(&self) -> Subject {
        self.subject
    }

    /// Whether something is under way that a cut must wait for.
    pub(super) fn is_changing(&self) -> bool {
        self.changing > 0 || self.merges > 0
    }

    pub(super) fn is_volume(&self) -> bool {
        matches!(self.subject, Subject::Volume(_))
    }

    /// What the store's own work on closed layers runs under: like an empty volume that nobody sees.
    pub(super) fn own_work() -> Self {
        let subject = Subject::OwnWork;
        let map = MapState::Loaded(Box::new(FlatMap::new(0)));
        Self { map, ..Self::new(subject, String::new(), 0, LayerId(0), false) }
    }

    pub(super) fn loaded(&self) -> Option<&FlatMap> {
        match &self.map {
            MapState::Loaded(map) => Some(map),
            _ => None,
        }
    }

    /// # Panics
    /// When the map is not there: jobs begin only when it is.
    pub(super) fn map(&self) -> &FlatMap {
        self.loaded().expect("jobs begin when the map is there")
    }

    /// # Panics
    /// See [`Self::map`].
    pub(super) fn map_mut(&mut self) -> &mut FlatMap {
        match &mut self.map {
            MapState::Loaded(map) => map,
            _ => panic!("jobs begin when the map is there"),
        }
    }

    pub(super) fn health(&self) -> Health {
        match self.map {
            MapState::Damaged => Health::Damaged,
            _ if self.failed => Health::SyncFailed,
            _ => Health::Ok,
        }
    }

    /// A snapshot that nobody looks at needs no map.
    pub(super) fn drop_idle_view(&mut self) {
        if matches!(self.subject, Subject::Snapshot(_))
            && self.clients == 0
            && self.jobs == 0
            && self.loaded().is_some()
        {
            self.map = MapState::Absent;
        }
    }

    /// Where blocks of a cluster may be written that the map does not know there yet.
    pub(super) fn own_place(&self, cluster: ClusterIndex) -> Option<PoolCluster> {
        let own = self.map().get(cluster).head.and_then(|head| head.cluster);
        own.or_else(|| self.growing.get(&cluster).map(|growing| growing.cluster))
    }

    /// A write begins that the map is to learn of.
    pub(super) fn begin_growing(&mut self, cluster: ClusterIndex, place: PoolCluster, taken: bool) {
        let new = Growing { cluster: place, writers: 0, installed: !taken, named: !taken };
        let growing = self.growing.entry(cluster).or_insert(new);
        debug_assert_eq!(growing.cluster, place, "a cluster grows in one place");
        growing.writers += 1;
    }

    /// One has ended. What is left over if none of them came to anything: the cluster, and whether it may be named.
    pub(super) fn end_growing(&mut self, cluster: ClusterIndex, ok: bool) -> Option<(PoolCluster, bool)> {
        let growing = self.growing.get_mut(&cluster).expect("it has begun");
        growing.writers -= 1;
        growing.installed |= ok;
        growing.named |= ok;
        let Growing { cluster: place, writers, installed, named } = *growing;
        if writers == 0 {
            self.growing.remove(&cluster);
        }
        (writers == 0 && !installed).then_some((place, named))
    }

    /// Blocks `written` of the cluster lie in the head's pool cluster now.
    pub(super) fn install(&mut self, cluster: ClusterIndex, place: PoolCluster, written: Mask) {
        let mut entry = self.map().get(cluster);
        let head = entry.head.get_or_insert_default();
        head.cluster = Some(place);
        head.data = head.data.with(written);
        head.zero = head.zero.without(written);
        entry.hide_older(written);
        self.change(cluster, entry);
    }

    /// Blocks of the cluster read as zero from now on. Returns the pool cluster that this leaves without use.
    /// `reserve` is a cluster to keep for them.
    pub(super) fn zero(
        &mut self,
        cluster: ClusterIndex,
        blocks: Mask,
        reserve: Option<PoolCluster>,
        keep: bool,
    ) -> Option<PoolCluster> {
        let mut entry = self.map().get(cluster);
        let blocks = blocks.and(entry.visible());
        if blocks.is_empty() && reserve.is_none() {
            return None;
        }
        let mut head = entry.head.unwrap_or_default();
        head.cluster = head.cluster.or(reserve);
        head.data = head.data.without(blocks);
        if self.has_parent {
            head.zero = head.zero.with(blocks);
        }
        entry.hide_older(blocks);
        let mut unused = if head.data.is_empty() && !keep { head.cluster.take() } else { None };
        if let Some(growing) = self.growing.get_mut(&cluster)
            && unused.is_some()
        {
            // Writes of other blocks are under way to it: they bring it back.
            growing.installed = false;
            unused = None;
        }
        entry.head = (head != HeadPart::default()).then_some(head);
        self.change(cluster, entry);
        unused
    }

    pub(super) fn change(&mut self, cluster: ClusterIndex, entry: Entry) {
        self.map_mut().set(cluster, entry);
        self.dirty.push(cluster);
    }

    /// The record of a cluster in the top layer, as it is now.
    pub(super) fn record(&self, cluster: ClusterIndex) -> Option<MapRecord> {
        self.map().get(cluster).head.and_then(HeadPart::record)
    }

    /// Adds the records that have changed since the last call, as they are now.
    pub(super) fn untold(&mut self, changes: &mut Vec<Change>) {
        let untold = &self.dirty[self.told..];
        changes.extend(untold.iter().map(|&at| Change::Map(self.top, at, self.record(at))));
        self.told = self.dirty.len();
    }

    /// Takes what differs from the committed records.
    pub(super) fn take_dirty(&mut self) -> Vec<Change> {
        self.told = 0;
        let mut dirty = std::mem::take(&mut self.dirty);
        dirty.sort_unstable();
        dirty.dedup();
        let top = self.top;
        dirty.into_iter().map(|cluster| Change::Map(top, cluster, self.record(cluster))).collect()
    }
}

/// Whether a range consists of whole blocks.
pub(super) fn is_aligned(offset: u64, length: u32) -> bool {
    offset.is_multiple_of(BLOCK_BYTES) && u64::from(length).is_multiple_of(BLOCK_BYTES)
}

impl Store {
    pub(super) fn serve(&mut self, served: Served) -> ExportIndex {
        let index = ExportIndex(u32::try_from(self.served.len()).expect("fewer exports than 2^32"));
        self.served.push(Some(served));
        index
    }

    /// It is durable that an export exists: from now on clients see it.
    pub(super) fn publish(&mut self, export: ExportIndex) {
        let Some(disk) = self.find_disk(export) else { return };
        disk.published = true;
        let subject = disk.subject;
        self.version += 1;
        if let Subject::Snapshot(id) = subject {
            self.show(id);
        }
    }

    /// It is durable that a snapshot exists: if it is a replica's newest, that is what is seen of the replica.
    fn show(&mut self, id: SnapshotId) {
        let Some(volume) = self.catalog.snapshots.get(&id).map(|record| record.volume) else { return };
        let newest = self.catalog.links.get(&volume).and_then(|link| link.published);
        if newest == Some(id) {
            let export = self.catalog.volume_exports[&volume];
            self.disk_mut(export).shows = newest;
        }
    }

    pub(super) fn serve_volume(&mut self, id: VolumeId) -> ExportIndex {
        let record = &self.catalog.volumes[&id];
        let has_parent = self.catalog.layers.get(&record.head).is_some_and(|layer| layer.parent.is_some());
        let mut served =
            Served::new(Subject::Volume(id), record.name.clone(), record.size, record.head, has_parent);
        served.hidden = self.catalog.is_replica(id);
        // Of a head that is replaced, what it showed goes on being seen.
        let before = self.catalog.volume_exports.get(&id).copied();
        served.shows = before.and_then(|export| self.find_disk(export)).and_then(|disk| disk.shows);
        let export = self.serve(served);
        self.catalog.volume_exports.insert(id, export);
        self.open_door(id);
        export
    }

    pub(super) fn serve_snapshot(&mut self, id: SnapshotId) -> ExportIndex {
        let record = &self.catalog.snapshots[&id];
        let name = self.catalog.snapshot_name(record).to_string();
        let mut served = Served::new(Subject::Snapshot(id), name, record.size, record.layer, true);
        served.hidden = self.catalog.staged_of(record.volume) == Some(id);
        let export = self.serve(served);
        self.catalog.snapshot_exports.insert(id, export);
        export
    }

    /// Nothing of it is under way any more.
    pub(super) fn unserve(&mut self, export: ExportIndex) {
        self.forget_mirror(export);
        self.served[export.0 as usize] = None;
        self.version += 1;
    }

    /// Starts waiting jobs that need not wait any longer, in order.
    pub(super) fn admit(&mut self, export: ExportIndex, io: &mut Io<'_>) {
        let mut at = 0;
        loop {
            let Some(disk) = self.find_disk(export) else { return };
            let Some(&key) = disk.waiting.get(at) else { return };
            if self.must_wait(key, at) {
                at += 1;
            } else {
                self.disk_mut(export).waiting.remove(at);
                self.begin_job(key, io);
            }
        }
    }
}
