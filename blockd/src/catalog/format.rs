//! The records of the metadata store: structs and their bytes, as docs/on-disk-format.md draws them.
//!
//! No I/O. The engine, fsck and inspect all go through here, so there is one place that knows a byte's meaning.

use crate::units::{ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId};

pub mod content;
mod decode;
mod encode;
pub mod keys;
mod links;
mod moves;
mod replay;
#[cfg(test)]
mod tests;

pub use decode::{Record, decode_map, decode_version};
pub use encode::RawSink;
pub use links::{LinkRecord, OriginRecord, Point, ReceivingRecord, Role};
pub use moves::{Handover, MoveRecord, Stage};

/// Version of the store's files, and of its metadata as long as they hold nothing that came later.
pub const FORMAT_VERSION: u32 = 1;

/// Newest version of metadata that this program knows. A store gets a version with the first record that came with it, so
/// that a program that does not know such records refuses it.
pub const METADATA_VERSION: u32 = INTENTS_VERSION;
/// Came with keys `14` and `15`.
pub const LINKS_VERSION: u32 = 2;
/// Came with key `16`.
pub const MOVES_VERSION: u32 = 3;
/// Came with the intent log: who does not know it would serve what was made durable before.
pub const INTENTS_VERSION: u32 = 4;

/// "No cluster" in a map record.
pub const NO_CLUSTER: u32 = u32::MAX;

/// Key `00`: the store as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRecord {
    /// From [`FORMAT_VERSION`] to [`METADATA_VERSION`].
    pub version: u32,
    /// Random, made with the store; in every superblock and in the mark.
    pub identity: [u8; 16],
    /// Numbers that were never used begin here.
    pub next_volume: VolumeId,
    /// See `next_volume`.
    pub next_layer: LayerId,
    /// See `next_volume`.
    pub next_snapshot: SnapshotId,
    /// Milliseconds since 1970, UTC.
    pub created_ms: u64,
}

/// Key `10`: a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Unique among volumes.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// What clients write to.
    pub head: LayerId,
    /// Milliseconds since 1970, UTC.
    pub created_ms: u64,
}

/// Key `11`: a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Whose content it holds.
    pub volume: VolumeId,
    /// Unique among the volume's snapshots.
    pub name: String,
    /// The closed layer that it names.
    pub layer: LayerId,
    /// The volume's size at the cut, bytes.
    pub size: u64,
    /// Milliseconds since 1970, UTC. For people: order is by [`SnapshotId`].
    pub created_ms: u64,
    /// Reasons not to delete it, each set and released by name.
    pub holds: Vec<String>,
}

/// Key `12`: a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerRecord {
    /// What shows through where this layer says nothing.
    pub parent: Option<LayerId>,
    /// The volume that wrote it; for people and for fsck, it may be gone.
    pub volume: VolumeId,
}

/// Key `13`: a pool file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFileRecord {
    /// Number of the file's superblock cluster in the pool.
    pub first: PoolCluster,
    /// Clusters, the superblock's included.
    pub clusters: u32,
    /// Relative to the data directory, or absolute.
    pub path: String,
}

/// Key `20`: where one cluster's worth of a layer lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapRecord {
    /// The pool cluster; `None` if the layer holds nothing but zeroes here.
    pub cluster: Option<PoolCluster>,
    /// Blocks with data there.
    pub data: Mask,
    /// Blocks that are zero, whatever older layers hold.
    pub zero: Mask,
    /// The data blocks lie one after the other from this block of the pool cluster on; `None`: in place.
    pub packed: Option<u8>,
}

impl MapRecord {
    /// Its blocks of the pool cluster, if it is packed and need not have all of it.
    pub fn packed_blocks(&self) -> Option<Mask> {
        let start = u32::from(self.packed?);
        Some(Mask::of(start..start + self.data.count()))
    }

    /// Its pool cluster, if there is no more to it than blocks with data, each in its place.
    pub fn plain(&self) -> Option<PoolCluster> {
        self.cluster.filter(|_| self.packed.is_none() && self.zero.is_empty() && !self.data.is_empty())
    }
}

/// Key `31`: the hash of a closed layer's whole content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootRecord {
    /// Bytes hashed.
    pub size: u64,
    /// BLAKE3, what `b3sum` says of the raw image.
    pub hash: [u8; 32],
}

/// One change of a batch. `None` deletes the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Key `00`.
    Store(StoreRecord),
    /// Key `01`: the batch's own number. Every batch has exactly one.
    Commit(u64),
    /// Key `10`.
    Volume(VolumeId, Option<VolumeRecord>),
    /// Key `11`.
    Snapshot(SnapshotId, Option<SnapshotRecord>),
    /// Key `12`.
    Layer(LayerId, Option<LayerRecord>),
    /// Key `13`.
    PoolFile(u16, PoolFileRecord),
    /// Key `14`.
    Link(VolumeId, Option<Box<LinkRecord>>),
    /// Key `15`.
    Origin(SnapshotId, Option<OriginRecord>),
    /// Key `16`.
    Move(VolumeId, Option<Box<MoveRecord>>),
    /// Key `20`.
    Map(LayerId, ClusterIndex, Option<MapRecord>),
    /// Key `30`.
    Hash(LayerId, ClusterIndex, Option<[u8; 32]>),
    /// Key `31`.
    Root(LayerId, Option<RootRecord>),
    /// Key `40`: what this commit changed.
    Journal(u64, Vec<(LayerId, ClusterIndex)>),
    /// Forgets the journal up to and including that commit.
    TrimJournal(u64),
    /// Forgets all hashes of a layer (keys `30`), and its root.
    DropHashes(LayerId),
}
