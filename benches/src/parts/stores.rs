//! The store below the protocol: reads and writes of a volume, with metadata in memory.

use blockd::catalog::format::{
    Change, FORMAT_VERSION, LayerRecord, MapRecord, PoolFileRecord, RootRecord, SnapshotRecord, StoreRecord,
    VolumeRecord,
};
use blockd::catalog::load::{load, scan_pool_use};
use blockd::catalog::memory::{MemoryMeta, SimMetaPort};
use blockd::catalog::meta::MetaStore;
use blockd::config::{self, Settings};
use blockd::map::{self, FlatMap};
use blockd::open::{OpenStore, open};
use blockd::size::Size;
use blockd::store::Store;
use blockd::store::pool::{Pool, PoolFile};
use blockd::units::{
    BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId,
};
use fastrand::Rng;
use nbd_server::connection::Nanos;
use nbd_server::disk::{ExportIndex, FileId};
use nbd_server::export::{Command, Io, Reply, Request, RequestId};
use nbd_server::reactor::buffer;
use tempfile::TempDir;

use super::BATCH;
use super::disk::MemoryDisk;

/// Clusters of a volume: 8 GiB.
const CLUSTERS: u32 = 1 << 17;
/// Clusters of the pool, so that all of the volume can be written anew.
const POOL_CLUSTERS: u32 = 3 << 17;
const VOLUME: VolumeId = VolumeId(1);
const CLOSED: LayerId = LayerId(1);
const HEAD: LayerId = LayerId(2);

/// What is done to the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    FirstWrite,
}

/// A volume, completely mapped.
pub struct Stored {
    kind: Kind,
    store: Store,
    export: ExportIndex,
    meta: SimMetaPort,
    disk: MemoryDisk,
    buffers: buffer::Pool,
    replies: Vec<Reply>,
    rng: Rng,
    /// The next cluster of first writes.
    next: u32,
    turns: u64,
}

impl Stored {
    pub(super) fn new(kind: Kind) -> Self {
        let layer = if kind == Kind::FirstWrite { CLOSED } else { HEAD };
        let meta = whole_volume(layer, CLUSTERS);
        let loaded = load(&meta, meta.mark()).expect("a sound catalog");
        let in_use = scan_pool_use(&meta, &loaded, &mut |_, _, _| {}).expect("sound maps");
        let file = PoolFile {
            file: FileId(0),
            first: PoolCluster(0),
            clusters: POOL_CLUSTERS,
            allocated: POOL_CLUSTERS,
        };
        let port = SimMetaPort::new(meta);
        let mut store = Store::new(loaded, Pool::new(vec![file], in_use), Box::new(port.clone()), 1);
        store.log_intents();
        let export = store.exports().find(|(_, served)| served.info().name == "part").expect("the volume").0;
        let mut stored = Self {
            kind,
            store,
            export,
            meta: port,
            disk: MemoryDisk::default(),
            buffers: buffer::Pool::new(),
            replies: Vec::new(),
            rng: Rng::with_seed(1),
            next: 0,
            turns: 0,
        };
        stored.store.connected(export);
        // The first use loads the map, which is not what is looked at.
        stored.read(0);
        stored
    }

    pub(super) fn run(&mut self, units: usize) {
        match self.kind {
            Kind::Read => (0..units).for_each(|_| {
                let offset = self.any_offset();
                self.read(offset);
            }),
            Kind::Write => (0..units).for_each(|_| {
                let offset = self.any_offset();
                self.write(offset);
                self.settle(1);
            }),
            Kind::FirstWrite => (0..units / BATCH).for_each(|_| self.first_writes()),
        }
    }

    fn any_offset(&mut self) -> u64 {
        self.rng.u64(..u64::from(CLUSTERS) * 16) * BLOCK_BYTES
    }

    fn read(&mut self, offset: u64) {
        let buf = self.buffers.take(BLOCK_BYTES as usize);
        self.start(offset, BLOCK_BYTES as u32, Command::Read { buf, holes: false });
        self.settle(1);
    }

    fn write(&mut self, offset: u64) {
        let buf = self.buffers.take(BLOCK_BYTES as usize);
        self.start(offset, BLOCK_BYTES as u32, Command::Write { buf, fua: false });
    }

    fn first_writes(&mut self) {
        for _ in 0..BATCH {
            assert!(self.next < CLUSTERS, "all of the volume was written");
            self.write(u64::from(self.next) * CLUSTER_BYTES);
            self.next += 1;
        }
        self.settle(BATCH);
        self.start(0, 0, Command::Flush);
        self.settle(1);
    }

    fn start(&mut self, offset: u64, length: u32, command: Command) {
        let request = Request { id: RequestId { connection: 0, index: 0 }, offset, length, command };
        let Self { store, disk, buffers, replies, export, .. } = self;
        store.start(*export, request, &mut Io::new(disk, buffers, *export, replies));
    }

    /// Lets everything end, as the reactor would; so many requests are answered.
    fn settle(&mut self, answers: usize) {
        loop {
            let Self { store, disk, buffers, replies, meta, rng, .. } = self;
            if let Some((owner, done)) = disk.take_ended() {
                store.disk_done(done, &mut Io::new(disk, buffers, owner, replies));
            } else if let Some(done) = meta.complete_one(rng) {
                store.meta_done(done, &mut Io::new(disk, buffers, ExportIndex::NONE, replies));
            } else {
                break;
            }
        }
        let Self { store, disk, buffers, replies, turns, .. } = self;
        *turns += 1;
        store.tick(Nanos(*turns), &mut Io::new(disk, buffers, ExportIndex::NONE, replies));
        assert_eq!(replies.len(), answers, "not everything was answered");
        assert!(replies.drain(..).all(|reply| reply.outcome.is_ok()), "a request failed");
    }
}

/// A map whose clusters all belong to the head.
pub(super) fn whole_map(clusters: u32) -> FlatMap {
    map::load(&whole_volume(HEAD, clusters), &[HEAD, CLOSED], u64::from(clusters)).expect("sound maps")
}

/// Records of a volume with a snapshot, all of it mapped in one layer.
fn whole_volume(layer: LayerId, clusters: u32) -> MemoryMeta {
    let meta = MemoryMeta::new();
    let mut batch = catalog(u64::from(clusters) * CLUSTER_BYTES);
    batch.extend((0..clusters).map(|at| {
        let cluster = Some(PoolCluster(at + 1));
        let record = MapRecord { cluster, data: Mask::ALL, ..MapRecord::default() };
        Change::Map(layer, ClusterIndex(at), Some(record))
    }));
    meta.write(&batch).expect("memory");
    meta.set_mark(1);
    meta
}

fn catalog(size: u64) -> Vec<Change> {
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: [7; 16],
        next_volume: VolumeId(2),
        next_layer: LayerId(3),
        next_snapshot: SnapshotId(2),
        created_ms: 0,
    };
    let file = PoolFileRecord { first: PoolCluster(0), clusters: POOL_CLUSTERS, path: "pool-0".to_owned() };
    let volume = VolumeRecord { name: "part".to_owned(), size, head: HEAD, created_ms: 0 };
    let name = "base".to_owned();
    let snapshot =
        SnapshotRecord { volume: VOLUME, name, layer: CLOSED, size, created_ms: 0, holds: Vec::new() };
    vec![
        Change::Store(store),
        Change::Commit(1),
        Change::PoolFile(0, file),
        Change::Volume(VOLUME, Some(volume)),
        Change::Layer(CLOSED, Some(LayerRecord { parent: None, volume: VOLUME })),
        Change::Layer(HEAD, Some(LayerRecord { parent: Some(CLOSED), volume: VOLUME })),
        Change::Snapshot(SnapshotId(1), Some(snapshot)),
        Change::Root(CLOSED, Some(RootRecord { size, hash: [0x5a; 32] })),
    ]
}

/// A real store, whose metadata take records of writes.
pub struct Commits {
    store: OpenStore,
    commit: u64,
    next: u32,
    /// Removed last.
    _dir: TempDir,
}

impl Commits {
    /// Records of one commit.
    pub const RECORDS: usize = 1000;

    /// A store of its own in a temporary directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self, anyhow::Error> {
        let dir = TempDir::new()?;
        let pool_size = Some(Size(64 << 20));
        let settings = Settings { data: Some(dir.path().join("data")), pool_size, ..Settings::default() };
        let store = open(&config::load(settings, None)?)?;
        Ok(Self { commit: store.loaded.commit, store, next: 0, _dir: dir })
    }

    /// Writes records of so many clusters, and waits until they are durable.
    ///
    /// # Panics
    /// When the store refuses them.
    pub fn commit(&mut self) {
        self.commit += 1;
        let first = self.next;
        self.next += Self::RECORDS as u32;
        let record =
            |at| MapRecord { cluster: Some(PoolCluster(at)), data: Mask::ALL, ..MapRecord::default() };
        let maps = (first..self.next).map(|at| Change::Map(HEAD, ClusterIndex(at), Some(record(at))));
        let batch: Vec<Change> = maps.chain([Change::Commit(self.commit)]).collect();
        self.store.meta.write(&batch).expect("a commit");
    }
}
