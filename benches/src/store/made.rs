//! Stores whose metadata are made directly: volumes completely mapped, without a byte of data written.
//!
//! Each volume has its clusters mapped in order, in its head, or in one closed layer under a snapshot with an empty head
//! above, or in both: then each cluster shows one block of the head's and the rest of the closed layer. Such a layer has hashes recorded, which are none of its data: nobody has to hash it in the background, as is
//! so some time after a snapshot. The mapped part of the pool's file is sparse and reads as zeroes. The rest, where new data will go, is written: a pool in use
//! recycles clusters and does not make its file grow. (Holes of 4 KiB between written blocks also leave hundreds of
//! thousands of extents, and removing such a file takes minutes on a file system that discards at once.)

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use blockd::catalog::format::{Change, LayerRecord, MapRecord, RootRecord, SnapshotRecord, VolumeRecord};
use blockd::catalog::meta::MetaStore;
use blockd::config::{self, Settings};
use blockd::open::{OpenStore, open};
use blockd::size::Size;
use blockd::units::{
    CLUSTER_BLOCKS, CLUSTER_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId,
};

use rustix::fs::{Advice, fadvise};

use crate::interrupt::Interrupt;
use crate::trouble::{OrTrouble, Trouble};

/// The snapshot under every made volume.
pub const BASE: &str = "base";
/// Stands for a hash that nobody verifies.
const NO_HASH: [u8; 32] = [0x5a; 32];
/// Records a batch.
const BATCH_RECORDS: usize = 16_384;
/// Bytes written at a time.
const CHUNK: u64 = 1 << 20;
/// Room in the pool beside what is mapped, for the changes that a scenario makes to large volumes.
pub const SPARE_BYTES: u64 = 10 << 30;
const NEXT: &str = "choose another place with --dir, or a smaller --large-size";

/// A volume to make.
#[derive(Debug, Clone, Copy)]
pub struct Made {
    /// Its name.
    pub name: &'static str,
    /// Its size.
    pub bytes: u64,
    /// Where its data lie.
    pub lies: Lies,
}

/// In which layers a volume's clusters are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lies {
    /// There is the head alone.
    InHead,
    /// Everything is under the snapshot [`BASE`].
    UnderBase,
    /// The same, and one block of each cluster was written since.
    InBoth,
}

impl Made {
    /// What it takes of the pool.
    fn pool_bytes(&self) -> u64 {
        if self.lies == Lies::InBoth { 2 * self.bytes } else { self.bytes }
    }
}

/// Makes a store with these volumes in `data`, and with so much of its pool written and free.
///
/// # Errors
/// The store cannot be made, or somebody asked to stop.
pub fn make(data: &Path, volumes: &[Made], spare_bytes: u64, interrupt: &Interrupt) -> Result<(), Trouble> {
    let mapped_bytes = volumes.iter().map(Made::pool_bytes).sum::<u64>();
    let pool_size = Some(Size(mapped_bytes + spare_bytes + CLUSTER_BYTES));
    let settings = Settings { data: Some(data.to_owned()), pool_size, ..Settings::default() };
    let config = config::load(settings, None).or_trouble(what, NEXT)?;
    let store = open(&config).or_trouble(what, NEXT)?;
    let mut writer = Writer { store: &store, commit: store.loaded.commit, batch: Vec::new(), pool: 1 };
    writer.numbers(volumes.len())?;
    for (index, volume) in (0..).zip(volumes) {
        writer.volume(index, volume, interrupt)?;
    }
    writer.write()?;
    drop(store);
    write_spare(&data.join("pool-0"), mapped_bytes + CLUSTER_BYTES, spare_bytes, interrupt)
}

fn what() -> String {
    "make a store".to_owned()
}

/// Writes the part of the pool that nobody maps.
fn write_spare(pool: &Path, begin: u64, bytes: u64, interrupt: &Interrupt) -> Result<(), Trouble> {
    let mut file = File::options().write(true).open(pool).or_trouble(what, NEXT)?;
    file.seek(SeekFrom::Start(begin)).or_trouble(what, NEXT)?;
    let chunk = vec![0; CHUNK as usize];
    for _ in 0..bytes / CHUNK {
        interrupt.check()?;
        file.write_all(&chunk).or_trouble(what, NEXT)?;
    }
    file.sync_all().or_trouble(what, NEXT)?;
    // The server's own writes are to decide in which pieces the page cache holds the pool.
    fadvise(&file, 0, None, Advice::DontNeed).or_trouble(what, NEXT)
}

/// Writes changes in batches, as a daemon would.
struct Writer<'a> {
    store: &'a OpenStore,
    commit: u64,
    batch: Vec<Change>,
    /// The next free cluster of the pool; the first holds the superblock.
    pool: u32,
}

impl Writer<'_> {
    /// Sees to it that the daemon gives no number twice.
    fn numbers(&mut self, volumes: usize) -> Result<(), Trouble> {
        let count = u32::try_from(volumes).or_trouble(what, NEXT)?;
        let mut record = self.store.loaded.store.clone();
        record.next_volume = VolumeId(count + 1);
        record.next_layer = LayerId(2 * count + 1);
        record.next_snapshot = SnapshotId(count + 1);
        self.push(Change::Store(record))
    }

    fn volume(&mut self, index: u32, made: &Made, interrupt: &Interrupt) -> Result<(), Trouble> {
        let (volume, closed, head) = (VolumeId(index + 1), LayerId(2 * index + 1), LayerId(2 * index + 2));
        let (name, size) = (made.name.to_owned(), made.bytes);
        self.push(Change::Volume(volume, Some(VolumeRecord { name, size, head, created_ms: 0 })))?;
        let parent = (made.lies != Lies::InHead).then_some(closed);
        self.push(Change::Layer(head, Some(LayerRecord { parent, volume })))?;
        if parent.is_some() {
            self.base(SnapshotId(index + 1), volume, closed, size)?;
        }
        let clusters = u32::try_from(size / CLUSTER_BYTES).or_trouble(what, NEXT)?;
        for cluster in (0..clusters).map(ClusterIndex) {
            interrupt.check()?;
            self.map(parent.unwrap_or(head), cluster, Mask::ALL)?;
            if parent.is_some() {
                self.push(Change::Hash(closed, cluster, Some(NO_HASH)))?;
            }
            if made.lies == Lies::InBoth {
                let block = cluster.0 % CLUSTER_BLOCKS;
                self.map(head, cluster, Mask::of(block..block + 1))?;
            }
        }
        Ok(())
    }

    fn base(&mut self, id: SnapshotId, volume: VolumeId, layer: LayerId, size: u64) -> Result<(), Trouble> {
        let (name, holds) = (BASE.to_owned(), Vec::new());
        let snapshot = SnapshotRecord { volume, name, layer, size, created_ms: 0, holds };
        self.push(Change::Layer(layer, Some(LayerRecord { parent: None, volume })))?;
        self.push(Change::Snapshot(id, Some(snapshot)))?;
        self.push(Change::Root(layer, Some(RootRecord { size, hash: NO_HASH })))
    }

    fn map(&mut self, layer: LayerId, cluster: ClusterIndex, data: Mask) -> Result<(), Trouble> {
        let place = Some(PoolCluster(self.pool));
        let record = MapRecord { cluster: place, data, ..MapRecord::default() };
        self.pool += 1;
        self.push(Change::Map(layer, cluster, Some(record)))
    }

    fn push(&mut self, change: Change) -> Result<(), Trouble> {
        self.batch.push(change);
        if self.batch.len() < BATCH_RECORDS { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), Trouble> {
        self.commit += 1;
        self.batch.push(Change::Commit(self.commit));
        let written = self.store.meta.write(&self.batch);
        self.batch.clear();
        written.or_trouble(what, NEXT).map(drop)
    }
}
