//! Random trees of layers with their images beside them, written the naive way.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use tempfile::TempDir;

use crate::catalog::format::{Change, LayerRecord, MapRecord, SnapshotRecord, VolumeRecord};
use crate::catalog::memory::MemoryMeta;
use crate::catalog::meta::MetaStore;
use crate::control::{Answer, Control, ControlError, ErrorKind, Pinned, SnapshotName};
use crate::snapshot::{ClosedReader, PoolHandle};
use crate::units::{
    BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId, cluster_count,
};

/// Where the second pool file begins.
const SECOND_FILE: u32 = 24;
const POOL_CLUSTERS: u32 = 4096;

pub(super) struct Layer {
    pub(super) parent: Option<u32>,
    pub(super) image: Vec<u8>,
    pub(super) records: BTreeMap<u32, MapRecord>,
}

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) meta: Arc<MemoryMeta>,
    pub(super) layers: BTreeMap<u32, Layer>,
    directory: TempDir,
    next_pool: u32,
    next_layer: u32,
    /// Pins given out and not given back.
    pins: Mutex<BTreeMap<u64, Vec<LayerId>>>,
}

impl World {
    /// `count` layers, some of which are siblings; sizes only grow.
    pub(super) fn new(seed: u64, count: u32) -> Self {
        let mut world = Self {
            rng: Rng::with_seed(seed),
            meta: Arc::new(MemoryMeta::new()),
            layers: BTreeMap::new(),
            directory: tempfile::tempdir().unwrap(),
            next_pool: 1,
            next_layer: 1,
            pins: Mutex::default(),
        };
        for name in ["0", "1"] {
            let file = File::create(world.directory.path().join(name)).unwrap();
            file.set_len(CLUSTER_BYTES * u64::from(POOL_CLUSTERS)).unwrap();
        }
        for _ in 0..count {
            world.add_layer();
        }
        world
    }

    /// A file of the pool, and where a pool cluster begins there.
    pub(super) fn file(&self, cluster: PoolCluster) -> (File, u64) {
        let (name, first) = if cluster.0 < SECOND_FILE { ("0", 0) } else { ("1", SECOND_FILE) };
        let file = File::options().read(true).write(true).open(self.directory.path().join(name)).unwrap();
        (file, u64::from(cluster.0 - first) * CLUSTER_BYTES)
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The files of the pool: path, first cluster, clusters.
    pub(super) fn pool_files(&self) -> [(PathBuf, PoolCluster, u32); 2] {
        let path = |name| self.directory.path().join(name);
        [(path("1"), PoolCluster(SECOND_FILE), POOL_CLUSTERS), (path("0"), PoolCluster(0), SECOND_FILE)]
    }

    pub(super) fn reader(&self) -> ClosedReader {
        let handles = self.pool_files().map(|(path, first, clusters)| {
            let file = Arc::new(File::options().read(true).write(true).open(path).unwrap());
            PoolHandle { file, first, clusters }
        });
        ClosedReader::new(Arc::clone(&self.meta) as Arc<dyn MetaStore>, handles.into())
    }

    fn take_cluster(&mut self) -> PoolCluster {
        let taken = self.next_pool;
        // Gaps, so that not everything can be read at once.
        self.next_pool += 1 + u32::from(self.rng.u8(..4) == 0);
        if (SECOND_FILE..=SECOND_FILE + 1).contains(&self.next_pool) {
            self.next_pool = SECOND_FILE + 1;
        }
        PoolCluster(taken)
    }

    pub(super) fn add_layer(&mut self) {
        let parent = self.rng.choice(self.layers.keys().copied().collect::<Vec<_>>());
        let parent = if self.rng.u8(..10) < 7 { self.layers.keys().last().copied() } else { parent };
        let mut size = parent.map_or(0, |parent| self.layers[&parent].image.len());
        if size == 0 || self.rng.u8(..3) == 0 {
            size += self.rng.usize(1..600) * 512;
        }
        self.add_child(parent, size);
    }

    /// A layer over another, of so many bytes, with changes in some clusters.
    pub(super) fn add_child(&mut self, parent: Option<u32>, size: usize) {
        let mut image = parent.map_or_else(Vec::new, |parent| self.layers[&parent].image.clone());
        image.resize(size, 0);
        let id = self.next_layer;
        self.next_layer += 1;
        let clusters = u32::try_from(cluster_count(image.len() as u64)).unwrap();
        self.layers.insert(id, Layer { parent, image, records: BTreeMap::new() });
        let changed = self.rng.u32(..10);
        for _ in 0..changed {
            let cluster = self.rng.u32(..clusters);
            if !self.layers[&id].records.contains_key(&cluster) {
                self.write_cluster(id, cluster);
            }
        }
        let parent = parent.map(LayerId);
        let record = LayerRecord { parent, volume: VolumeId(1) };
        self.meta.write(&[Change::Layer(LayerId(id), Some(record))]).unwrap();
    }

    fn write_cluster(&mut self, id: u32, cluster: u32) {
        let size = self.layers[&id].image.len() as u64;
        let start = ClusterIndex(cluster).start();
        let blocks = u32::try_from((size - start).div_ceil(BLOCK_BYTES).min(16)).unwrap();
        let mask = |rng: &mut Rng| match rng.u8(..4) {
            0 => Mask::NONE,
            1 => Mask::of(0..blocks),
            _ => Mask(rng.u16(..)).and(Mask::of(0..blocks)),
        };
        let data = mask(&mut self.rng);
        let zero = mask(&mut self.rng).without(data);
        let packed = (!data.is_empty() && self.rng.u8(..4) == 0)
            .then(|| self.rng.u8(..=u8::try_from(16 - data.count()).unwrap()));
        let reserved = !data.is_empty() || self.rng.bool();
        let pool = reserved.then(|| self.take_cluster());
        let record = MapRecord { cluster: pool, data, zero, packed };
        for block in 0..blocks {
            if data.has(block) {
                let mut bytes = vec![0; BLOCK_BYTES as usize];
                let inside = (size - start - u64::from(block) * BLOCK_BYTES).min(BLOCK_BYTES) as usize;
                self.rng.fill(&mut bytes[..inside]);
                self.write_block(&record, block, &bytes);
                self.set_image(id, cluster, block, &bytes);
            } else if zero.has(block) {
                self.set_image(id, cluster, block, &[0; BLOCK_BYTES as usize]);
            }
        }
        self.set_record(id, cluster, Some(record));
    }

    fn set_record(&mut self, id: u32, cluster: u32, record: Option<MapRecord>) {
        let records = &mut self.layers.get_mut(&id).unwrap().records;
        match record {
            Some(record) => records.insert(cluster, record),
            None => records.remove(&cluster),
        };
        self.meta.write(&[Change::Map(LayerId(id), ClusterIndex(cluster), record)]).unwrap();
    }

    fn set_image(&mut self, id: u32, cluster: u32, block: u32, bytes: &[u8]) {
        let at = (ClusterIndex(cluster).start() + u64::from(block) * BLOCK_BYTES) as usize;
        let image = &mut self.layers.get_mut(&id).unwrap().image;
        let end = image.len().min(at + bytes.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
    }

    /// Where a record's block lies.
    pub(super) fn place(&self, record: &MapRecord, block: u32) -> (File, u64) {
        let inside = match record.packed {
            None => block,
            Some(first) => u32::from(first) + record.data.and(Mask::of(0..block)).count(),
        };
        let (file, start) = self.file(record.cluster.unwrap());
        (file, start + u64::from(inside) * BLOCK_BYTES)
    }

    fn write_block(&self, record: &MapRecord, block: u32, bytes: &[u8]) {
        let (file, offset) = self.place(record, block);
        file.write_all_at(bytes, offset).unwrap();
    }

    pub(super) fn chain(&self, id: u32) -> Vec<u32> {
        std::iter::successors(Some(id), |id| self.layers[id].parent).collect()
    }

    pub(super) fn pinned(&self, id: u32) -> Pinned {
        let chain = self.chain(id).into_iter().map(LayerId).collect();
        Pinned { pin: 7, chain, size: self.layers[&id].image.len() as u64 }
    }

    /// The record that decides a block, of the chain.
    pub(super) fn deciding(&self, chain: &[u32], cluster: u32, block: u32) -> Option<(u32, MapRecord)> {
        let record = |&id: &u32| self.layers[&id].records.get(&cluster).map(|record| (id, *record));
        chain.iter().filter_map(record).find(|(_, record)| record.data.with(record.zero).has(block))
    }

    pub(super) fn shows_data(&self, chain: &[u32], cluster: u32, block: u32) -> bool {
        self.deciding(chain, cluster, block).is_some_and(|(_, record)| record.data.has(block))
    }

    /// Merges some layer that has one child into it, as the store does. Whether there was one.
    pub(super) fn merge_one(&mut self) -> bool {
        let children = |id: u32| self.layers.iter().filter(move |(_, layer)| layer.parent == Some(id));
        let mergeable: Vec<_> = self.layers.keys().copied().filter(|&id| children(id).count() == 1).collect();
        let Some(older) = self.rng.choice(mergeable) else { return false };
        let child = *children(older).next().unwrap().0;
        for cluster in self.layers[&older].records.keys().copied().collect::<Vec<_>>() {
            self.merge_record(older, child, cluster);
        }
        let parent = self.layers.remove(&older).unwrap().parent;
        self.layers.get_mut(&child).unwrap().parent = parent;
        let record = LayerRecord { parent: parent.map(LayerId), volume: VolumeId(1) };
        let (older, child) = (LayerId(older), LayerId(child));
        let layers = [Change::Layer(older, None), Change::Layer(child, Some(record))];
        self.meta.write(&[vec![Change::DropHashes(older)], layers.to_vec()].concat()).unwrap();
        true
    }

    fn merge_record(&mut self, older: u32, child: u32, cluster: u32) {
        let from = self.layers[&older].records[&cluster];
        let merged = match self.layers[&child].records.get(&cluster).copied() {
            None => from,
            Some(to) => {
                let decided = to.data.with(to.zero);
                let (shown, zero) = (from.data.without(decided), to.zero.with(from.zero.without(decided)));
                match to.cluster {
                    // A packed record's places follow from its mask: with fewer blocks they would be others.
                    None if !shown.is_empty() && from.packed.is_some() => {
                        let cluster = Some(self.take_cluster());
                        let merged = MapRecord { cluster, data: shown, zero, packed: None };
                        self.copy_blocks(&from, &merged, shown);
                        merged
                    }
                    None if !shown.is_empty() => MapRecord { data: shown, zero, ..from },
                    // The store does not merge into packed records so far: a whole copy in place stands for it.
                    _ if to.packed.is_some() && !shown.is_empty() => {
                        let cluster = Some(self.take_cluster());
                        let merged = MapRecord { cluster, data: to.data.with(shown), zero, packed: None };
                        self.copy_blocks(&to, &merged, to.data);
                        self.copy_blocks(&from, &merged, shown);
                        merged
                    }
                    _ => {
                        let merged = MapRecord { data: to.data.with(shown), zero, ..to };
                        self.copy_blocks(&from, &merged, shown);
                        merged
                    }
                }
            }
        };
        self.set_record(older, cluster, None);
        self.set_record(child, cluster, Some(merged));
    }

    fn copy_blocks(&self, from: &MapRecord, to: &MapRecord, blocks: Mask) {
        for block in (0..16).filter(|&block| blocks.has(block)) {
            let mut bytes = vec![0; BLOCK_BYTES as usize];
            let (file, offset) = self.place(from, block);
            file.read_exact_at(&mut bytes, offset).unwrap();
            self.write_block(to, block, &bytes);
        }
    }

    /// Every layer becomes a snapshot of volume `v`, named by its number.
    pub(super) fn name_all(&self) {
        let volume = VolumeRecord { name: "v".into(), size: 1 << 40, head: LayerId(9999), created_ms: 0 };
        let mut batch = vec![Change::Volume(VolumeId(1), Some(volume))];
        for (&id, layer) in &self.layers {
            let record = SnapshotRecord {
                volume: VolumeId(1),
                name: id.to_string(),
                layer: LayerId(id),
                size: layer.image.len() as u64,
                created_ms: 0,
                holds: Vec::new(),
            };
            batch.push(Change::Snapshot(SnapshotId(id), Some(record)));
        }
        self.meta.write(&batch).unwrap();
    }

    /// What the reactor does with the commands that we give.
    pub(super) fn submit(&self, command: Control) -> Result<Answer, ControlError> {
        let mut pins = self.pins.lock().unwrap();
        match command {
            Control::Pin { name: SnapshotName { snapshot, .. } } => {
                let pinned = self.pinned(snapshot.parse().unwrap());
                assert!(pins.insert(pinned.pin, pinned.chain.clone()).is_none());
                Ok(Answer::Pinned(pinned))
            }
            Control::Unpin { pin } => {
                pins.remove(&pin).unwrap();
                Ok(Answer::Done)
            }
            Control::KeepHashes { pin, hashes, roots } => {
                if let Some(chain) = pins.get(&pin) {
                    assert!(hashes.iter().all(|(layer, ..)| chain.contains(layer)));
                }
                let hashes = hashes.into_iter().map(|(layer, at, hash)| Change::Hash(layer, at, Some(hash)));
                let roots = roots.into_iter().map(|(layer, root)| Change::Root(layer, Some(root)));
                self.meta.write(&hashes.chain(roots).collect::<Vec<_>>()).unwrap();
                Ok(Answer::Done)
            }
            other => Err(ControlError::new(ErrorKind::Refused, format!("{other:?}"))),
        }
    }

    pub(super) fn is_pinned(&self) -> bool {
        !self.pins.lock().unwrap().is_empty()
    }
}
