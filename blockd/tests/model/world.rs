//! A store over a simulated disk and simulated metadata, from making it to crashing it.

use blockd::catalog::format::keys::map_range;
use blockd::catalog::format::{Change, FORMAT_VERSION, PoolFileRecord, StoreRecord};
use blockd::catalog::load::{Loaded, PoolUse, scan_pool_use};
use blockd::catalog::memory::{MemoryMeta, RawRecord, SimMetaPort, collect};
use blockd::catalog::meta::MetaStore;
use blockd::checkpoint::{Checkpoint, SavedMap, Unusable};
use blockd::control::{Answer, Control, ControlError};
use blockd::intents::Recovered;
use blockd::rebuild;
use blockd::store::pool::{Pool, PoolFile};
use blockd::store::{Store, Subject, Token};
use blockd::units::{CLUSTER_BYTES, ClusterIndex, LayerId, PoolCluster, SnapshotId, VolumeId};
use fastrand::Rng;
use fixtures::sim::{Fault, SimDisk};
use nbd_server::connection::Nanos;
use nbd_server::disk::{ExportIndex, FileId};
use nbd_server::export::{Command, Io, Reply, Request, RequestId};
use nbd_server::reactor::buffer;

use sim_hosts::killed::{SimRecent, begin, read_intents};

/// Clusters of the pool's two files.
pub(crate) const FILES: [u32; 2] = [40, 24];

pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) meta: SimMetaPort,
    pub(crate) store: Store,
    pub(crate) recent: SimRecent,
    pub(crate) buffers: buffer::Pool,
    pub(crate) rng: Rng,
    files: [u32; 2],
    replies: Vec<Reply>,
    now: Nanos,
    tokens: u64,
    /// Checkpoints of the store's past, newest last.
    checkpoints: Vec<Vec<u8>>,
    pub(crate) checkpoints_used: u64,
    pub(crate) checkpoints_refused: u64,
    /// Frames of the intent log that a start has taken over.
    pub(crate) frames_found: u64,
    /// Starts that have found the last one's data not all there.
    pub(crate) frames_unfinished: u64,
    /// Frames that were made durable, and writes that waited for one.
    pub(crate) frames: u64,
    pub(crate) held: u64,
}

/// Runs a call on the store that takes an `Io`; afterwards holds what holds between any two events.
macro_rules! with_io {
    ($world:expr, |$store:ident, $io:ident| $call:expr) => {{
        let World { disk, store: $store, buffers, replies, .. } = &mut *$world;
        let $io = &mut Io::new(disk, buffers, ExportIndex::NONE, replies);
        $call;
        assert!(!$store.has_forgotten_layer(), "nobody looks for a layer that can be reclaimed");
    }};
}

fn fresh_meta(files: [u32; 2]) -> MemoryMeta {
    let meta = MemoryMeta::new();
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: [7; 16],
        next_volume: VolumeId(1),
        next_layer: LayerId(1),
        next_snapshot: SnapshotId(1),
        created_ms: 0,
    };
    let mut batch = vec![Change::Store(store), Change::Commit(1)];
    let mut first = 0;
    for (index, clusters) in files.into_iter().enumerate() {
        let record = PoolFileRecord { first: PoolCluster(first), clusters, path: format!("pool-{index}") };
        batch.push(Change::PoolFile(index as u16, record));
        first += clusters;
    }
    meta.write(&batch).expect("memory");
    meta.set_mark(1);
    meta
}

/// What the records say, by the product's own checks: each cluster is named once, each layer exists, and so on.
pub(crate) fn load(meta: &MemoryMeta) -> (Loaded, PoolUse) {
    let loaded = blockd::catalog::load::load(meta, meta.mark()).expect("a sound catalog");
    let in_use = scan_pool_use(meta, &loaded, &mut |_, _, _| {}).expect("sound maps");
    (loaded, in_use)
}

/// What a start takes must be what the records say, read in order.
fn check_against_records(checkpoint: &Checkpoint, meta: &MemoryMeta, loaded: &Loaded) {
    let scanned = scan_pool_use(meta, loaded, &mut |_, _, _| {}).expect("sound maps");
    assert_eq!(checkpoint.in_use, scanned, "another allocator");
    for SavedMap { volume, head, map } in &checkpoint.maps {
        let parent = |layer: &LayerId| loaded.layers[layer].parent;
        let chain: Vec<LayerId> = std::iter::successors(Some(*head), parent).collect();
        let scanned = blockd::map::load(meta, &chain, map.clusters()).expect("sound maps");
        let (visible, owned) = (map.visible_blocks(), map.head_clusters());
        assert_eq!((visible, owned), (scanned.visible_blocks(), scanned.head_clusters()), "volume {volume}");
        assert_eq!(map.first_difference(&scanned), None, "another map of volume {volume}");
    }
}

/// The checkpoint, if it is of this state. Then it must say what the records say; damaged it must say nothing.
fn check_checkpoint(bytes: &[u8], meta: &MemoryMeta, rng: &mut Rng) -> Result<Checkpoint, Unusable> {
    let loaded = blockd::catalog::load::load(meta, meta.mark()).expect("a sound catalog");
    let checkpoint = Checkpoint::decode(bytes, &loaded)?;
    check_against_records(&checkpoint, meta, &loaded);
    let mut damaged = bytes.to_vec();
    if rng.bool() {
        damaged[rng.usize(..bytes.len())] ^= 1 << rng.u8(..8);
    } else {
        damaged.truncate(rng.usize(..bytes.len()));
    }
    Checkpoint::decode(&damaged, &loaded).expect_err("a damaged checkpoint was believed");
    Ok(checkpoint)
}

/// A packed record, and where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PackedRecord {
    pub(crate) layer: LayerId,
    pub(crate) at: ClusterIndex,
    pub(crate) place: (PoolCluster, u8),
}

/// The packed records, and the catalog with them.
pub(crate) fn packed_records(meta: &MemoryMeta) -> (Loaded, Vec<PackedRecord>) {
    let loaded = blockd::catalog::load::load(meta, meta.mark()).expect("a sound catalog");
    let mut found = Vec::new();
    scan_pool_use(meta, &loaded, &mut |layer, at, record| {
        if let (Some(cluster), Some(first)) = (record.cluster, record.packed) {
            found.push(PackedRecord { layer, at, place: (cluster, first) });
        }
    })
    .expect("sound maps");
    (loaded, found)
}

/// The map records of some layers, as they are stored.
pub(crate) fn records_of(meta: &MemoryMeta, layers: &[LayerId]) -> Vec<RawRecord> {
    let records = layers.iter().flat_map(|&layer| collect(meta, &map_range(layer)).expect("memory"));
    records.collect()
}

fn open(meta: &MemoryMeta, files: [u32; 2]) -> (Store, SimMetaPort, SimRecent) {
    let (loaded, in_use) = load(meta);
    let mut first = 0;
    let files = files.into_iter().enumerate().map(|(index, clusters)| {
        let file = FileId(index as u32);
        let record = PoolFile { file, first: PoolCluster(first), clusters, allocated: 1 };
        first += clusters;
        record
    });
    let pool = Pool::new(files.collect(), in_use);
    let port = SimMetaPort::new(meta.clone());
    let mut store = Store::new(loaded, pool, Box::new(port.clone()), 1_000);
    let recent = SimRecent::default();
    store.keep_recent(Box::new(recent.clone()));
    store.log_intents();
    (store, port, recent)
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with_files(seed, FILES)
    }

    /// With a pool of files of so many clusters.
    pub(crate) fn with_files(seed: u64, files: [u32; 2]) -> Self {
        let bytes = files.map(|clusters| clusters as usize * CLUSTER_BYTES as usize);
        let (store, meta, recent) = open(&fresh_meta(files), files);
        Self {
            disk: SimDisk::with_files(&bytes, 4096, seed),
            meta,
            store,
            recent,
            buffers: buffer::Pool::new(),
            rng: Rng::with_seed(seed),
            files,
            replies: Vec::new(),
            now: Nanos(0),
            tokens: 0,
            checkpoints: Vec::new(),
            checkpoints_used: 0,
            checkpoints_refused: 0,
            frames_found: 0,
            frames_unfinished: 0,
            frames: 0,
            held: 0,
        }
    }

    /// The power goes, and comes back.
    pub(crate) fn power_cut(&mut self) {
        self.keep_checkpoint();
        self.disk.power_cut();
        let meta = self.meta.power_cut(&mut self.rng);
        let Recovered { changes, frames, unfinished } = self.read_intents(&meta);
        // A stop leaves no frames, and a checkpoint that is to be found of use.
        if frames > 0 || unfinished {
            begin(&meta, changes);
        }
        self.open(&meta);
    }

    fn read_intents(&mut self, meta: &MemoryMeta) -> Recovered {
        let found = read_intents(&self.disk, meta);
        self.frames_found += u64::from(found.frames);
        self.frames_unfinished += u64::from(found.unfinished);
        found
    }

    /// The process is killed, and another is started. Whether it must know of everything that was answered.
    pub(crate) fn kill(&mut self) -> bool {
        self.keep_checkpoint();
        let kept = !self.recent.is_abandoned();
        self.disk.kill(!kept);
        let meta = self.meta.power_cut(&mut self.rng);
        let intents = self.read_intents(&meta);
        self.recent.replay(&meta, intents.changes);
        self.open(&meta);
        kept
    }

    /// Adds what the store has counted since it was opened.
    pub(crate) fn count_intents(&mut self) {
        let (frames, held) = self.store.intent_counts();
        self.frames += frames;
        self.held += held;
    }

    fn open(&mut self, meta: &MemoryMeta) {
        self.count_intents();
        (self.store, self.meta, self.recent) = open(meta, self.files);
        self.replies.clear();
        self.read_records(meta);
        self.use_checkpoint(meta);
    }

    /// What a start without a checkpoint takes from the records, with however many threads. Half of the starts have the
    /// maps from it, the others when they are asked for.
    fn read_records(&mut self, meta: &MemoryMeta) {
        let (loaded, _) = load(meta);
        let read = rebuild::checkpoint(meta, &loaded, self.rng.usize(1..4)).expect("sound maps");
        check_against_records(&read, meta, &loaded);
        if self.rng.bool() {
            self.store.adopt_maps(read.maps);
        }
    }

    /// As a stop would write it; only when the store is at rest does it give one.
    fn keep_checkpoint(&mut self) {
        let Some(saved) = self.store.checkpoint() else { return };
        let mut bytes = Vec::new();
        saved.write(&mut bytes).expect("memory");
        self.checkpoints.push(bytes);
    }

    /// What a start takes from a checkpoint, which may be an old one: a backup was put back, say.
    fn use_checkpoint(&mut self, meta: &MemoryMeta) {
        for bytes in self.checkpoints.iter().rev().take(4) {
            match check_checkpoint(bytes, meta, &mut self.rng) {
                Ok(checkpoint) => {
                    self.checkpoints_used += 1;
                    self.store.adopt_maps(checkpoint.maps);
                }
                Err(Unusable::OutOfDate { found, expected }) => {
                    assert!(found < expected, "a checkpoint is ahead of its store");
                    self.checkpoints_refused += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn command(&mut self, command: Control) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        with_io!(self, |store, io| store.command(token, command, io));
        token
    }

    pub(crate) fn take_answers(&mut self) -> Vec<(Token, Result<Answer, ControlError>)> {
        self.store.take_answers()
    }

    pub(crate) fn connect(&mut self, export: ExportIndex) {
        self.store.connected(export);
    }

    pub(crate) fn disconnect(&mut self, export: ExportIndex) {
        self.store.disconnected(export);
    }

    pub(crate) fn start(&mut self, export: ExportIndex, id: u32, offset: u64, length: u32, command: Command) {
        let request = Request { id: RequestId { connection: 0, index: id }, offset, length, command };
        with_io!(self, |store, io| store.start(export, request, io));
    }

    /// Sends the replies.
    pub(crate) fn take_replies(&mut self) -> Vec<Reply> {
        if !self.replies.is_empty() {
            self.store.before_replies();
        }
        std::mem::take(&mut self.replies)
    }

    pub(crate) fn find_export(&self, name: &str) -> Option<(ExportIndex, u64, Subject)> {
        let found = self.store.exports().find(|(_, served)| served.info().name == name);
        found.map(|(index, served)| (index, served.info().size, served.subject()))
    }

    /// The export of one epoch of a volume.
    pub(crate) fn find_door(&self, name: &str) -> Option<ExportIndex> {
        self.store.doors().find(|(_, info)| info.name == name).map(|(index, _)| index)
    }

    /// Completes one disk operation, if there is one.
    pub(crate) fn disk_step(&mut self) -> bool {
        let Some((_, done)) = self.disk.complete_one() else { return false };
        with_io!(self, |store, io| store.disk_done(done, io));
        true
    }

    /// Completes one metadata operation, if there is one.
    pub(crate) fn meta_step(&mut self) -> bool {
        let Some(done) = self.meta.complete_one(&mut self.rng) else { return false };
        with_io!(self, |store, io| store.meta_done(done, io));
        true
    }

    pub(crate) fn tick(&mut self, milliseconds: u64) {
        self.now = Nanos(self.now.0 + milliseconds * 1_000_000);
        let now = self.now;
        with_io!(self, |store, io| {
            store.tick(now, io);
        });
    }

    pub(crate) fn stop(&mut self) {
        with_io!(self, |store, io| store.begin_stop(io));
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        self.disk.inject(fault);
    }

    /// Everything that is under way ends.
    pub(crate) fn settle(&mut self) {
        for _ in 0..200_000 {
            let disk = self.disk_step();
            let meta = self.meta_step();
            if !disk && !meta {
                return;
            }
        }
        panic!("the store does not come to rest");
    }
}
