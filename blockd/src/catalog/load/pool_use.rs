//! Which clusters of the pool are in use: those that a map record names. There is no other record of it.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use super::{LoadError, Loaded};
use crate::catalog::format::keys::maps_range;
use crate::catalog::format::{MapRecord, NO_CLUSTER, decode_map};
use crate::catalog::meta::MetaStore;
use crate::units::{ClusterIndex, LayerId, Mask, PoolCluster};

/// What is in use, for the allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Bit *n % 64* of word *n / 64*: cluster *n* is in use; superblocks are. Bits past the pool's end are 0.
    pub used: Vec<u64>,
    /// The blocks in use of clusters with packed records.
    pub packed: HashMap<PoolCluster, Mask>,
}

impl PoolUse {
    /// Whether a cluster is in use; one that the pool does not have is not.
    pub fn is_used(&self, cluster: PoolCluster) -> bool {
        let (word, bit) = place(cluster);
        self.used.get(word).is_some_and(|word| word & bit != 0)
    }

    /// Clusters in use, superblocks included.
    pub fn used_clusters(&self) -> u64 {
        self.used.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Adds what other records of the same pool use. Tells whether that can be: a cluster of both is packed in both,
    /// and no block of it is in both.
    #[must_use]
    pub(crate) fn absorb(&mut self, part: Self) -> bool {
        let mut shared = 0;
        for (word, other) in self.used.iter_mut().zip(&part.used) {
            shared += u64::from((*word & other).count_ones());
            *word |= other;
        }
        let mut sound = 0;
        for (cluster, blocks) in part.packed {
            let held = self.packed.entry(cluster).or_default();
            sound += u64::from(!held.is_empty() && held.and(blocks).is_empty());
            *held = held.with(blocks);
        }
        shared == sound
    }
}

fn place(cluster: PoolCluster) -> (usize, u64) {
    ((cluster.0 / 64) as usize, 1 << (cluster.0 % 64))
}

/// Why a map record cannot be: what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MapFault {
    /// Its layer does not exist.
    #[error("its layer does not exist")]
    UnknownLayer,
    /// The pool has no such cluster.
    #[error("pool cluster {0} does not exist")]
    OutsidePool(PoolCluster),
    /// Clients' data would overwrite a superblock.
    #[error("pool cluster {0} is a superblock")]
    Superblock(PoolCluster),
    /// Another record names the cluster, or the same blocks of it.
    #[error("pool cluster {0} belongs to another record")]
    DoublyOwned(PoolCluster),
    /// A write would take its other blocks for the open layer's own.
    #[error("it is packed, in the open layer of a volume")]
    PackedOpen,
}

/// Takes all map records, ordered by layer, and tells those that cannot be.
#[derive(Debug)]
pub struct PoolCheck<'a> {
    loaded: &'a Loaded,
    clusters: u64,
    found: PoolUse,
    /// The open layers of volumes.
    heads: BTreeSet<LayerId>,
    /// Of the last record: the next one's is mostly the same.
    layer: Option<KnownLayer>,
}

#[derive(Clone, Copy, Debug)]
struct KnownLayer {
    id: LayerId,
    exists: bool,
    is_head: bool,
}

impl<'a> PoolCheck<'a> {
    /// Begins with nothing but the superblocks in use. Files that make no pool, which fsck may have found, are taken
    /// as far as there are cluster numbers.
    ///
    /// # Panics
    /// Never: cluster numbers have 32 bits.
    pub fn new(loaded: &'a Loaded) -> Self {
        let clusters = loaded.pool_clusters().min(u64::from(NO_CLUSTER));
        let words = usize::try_from(clusters.div_ceil(64)).expect("a 32-bit number");
        let mut used = vec![0; words];
        for file in loaded.files.values() {
            let (word, bit) = place(file.first);
            if let Some(word) = used.get_mut(word) {
                *word |= bit;
            }
        }
        let found = PoolUse { used, packed: HashMap::new() };
        let heads = loaded.volumes.values().map(|volume| volume.head).collect();
        Self { loaded, clusters, found, heads, layer: None }
    }

    /// Takes the next record. What cannot be counts as in use all the same if the pool has it: nothing may be
    /// written over what two records name.
    ///
    /// # Errors
    /// Why it cannot be.
    pub fn take(&mut self, layer: LayerId, record: &MapRecord) -> Result<(), MapFault> {
        if let Some(cluster) = record.cluster {
            self.take_cluster(cluster, record)?;
        }
        let known = self.layer(layer);
        if !known.exists {
            return Err(MapFault::UnknownLayer);
        }
        if record.packed.is_some() && known.is_head {
            return Err(MapFault::PackedOpen);
        }
        Ok(())
    }

    fn layer(&mut self, id: LayerId) -> KnownLayer {
        if let Some(known) = self.layer.filter(|known| known.id == id) {
            return known;
        }
        let (exists, is_head) = (self.loaded.layers.contains_key(&id), self.heads.contains(&id));
        *self.layer.insert(KnownLayer { id, exists, is_head })
    }

    fn take_cluster(&mut self, cluster: PoolCluster, record: &MapRecord) -> Result<(), MapFault> {
        if u64::from(cluster.0) >= self.clusters {
            return Err(MapFault::OutsidePool(cluster));
        }
        let (word, bit) = place(cluster);
        let word = &mut self.found.used[word];
        let taken = *word & bit != 0;
        *word |= bit;
        let blocks = record.packed_blocks();
        if taken {
            return self.share(cluster, blocks);
        }
        if let Some(blocks) = blocks {
            self.found.packed.insert(cluster, blocks);
        }
        Ok(())
    }

    /// A cluster that is in use can only be one with packed records, in blocks that are free.
    fn share(&mut self, cluster: PoolCluster, blocks: Option<Mask>) -> Result<(), MapFault> {
        if let (Some(held), Some(blocks)) = (self.found.packed.get_mut(&cluster), blocks)
            && held.and(blocks).is_empty()
        {
            *held = held.with(blocks);
            return Ok(());
        }
        if self.loaded.files.values().any(|file| file.first == cluster) {
            return Err(MapFault::Superblock(cluster));
        }
        Err(MapFault::DoublyOwned(cluster))
    }

    /// What is in use.
    pub fn finish(self) -> PoolUse {
        self.found
    }

    /// What is in use but for the superblocks: what the records that it took name.
    pub(crate) fn finish_part(mut self) -> PoolUse {
        for file in self.loaded.files.values() {
            let (word, bit) = place(file.first);
            if let Some(word) = self.found.used.get_mut(word) {
                *word &= !bit;
            }
        }
        self.found
    }
}

/// Shows all map records once, and finds what they use of the pool.
///
/// # Errors
/// The first record that cannot be read, is damaged, or names what it cannot.
pub fn scan_pool_use(
    store: &dyn MetaStore,
    loaded: &Loaded,
    visit: &mut dyn FnMut(LayerId, ClusterIndex, MapRecord),
) -> Result<PoolUse, LoadError> {
    let mut check = PoolCheck::new(loaded);
    let mut fault = None;
    let range = maps_range();
    store.scan(&range.start, &range.end, &mut |key, value| {
        let (layer, cluster, record) = decode_map(key, value)?;
        if let Err(found) = check.take(layer, &record) {
            fault = Some((layer, cluster, found));
            return Ok(ControlFlow::Break(()));
        }
        visit(layer, cluster, record);
        Ok(ControlFlow::Continue(()))
    })?;
    match fault {
        None => Ok(check.finish()),
        Some((layer, cluster, fault)) => {
            Err(LoadError::Damaged(format!("map record of layer {layer}, cluster {cluster}: {fault}")))
        }
    }
}
