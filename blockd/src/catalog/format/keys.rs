//! Keys, and ranges of them. A key's first byte tells what the record is; numbers are big-endian, so that keys sort
//! as their numbers do.

use std::ops::Range;

use crate::units::{ClusterIndex, LayerId, SnapshotId, VolumeId};

/// First bytes of keys.
pub mod kind {
    /// The store as a whole.
    pub const STORE: u8 = 0x00;
    /// The number of the last batch.
    pub const COMMIT: u8 = 0x01;
    /// A volume.
    pub const VOLUME: u8 = 0x10;
    /// A snapshot.
    pub const SNAPSHOT: u8 = 0x11;
    /// A layer.
    pub const LAYER: u8 = 0x12;
    /// A pool file.
    pub const POOL_FILE: u8 = 0x13;
    /// What a volume is to other hosts.
    pub const LINK: u8 = 0x14;
    /// Where a snapshot came from.
    pub const ORIGIN: u8 = 0x15;
    /// The last move of a volume between hosts.
    pub const MOVE: u8 = 0x16;
    /// A map record.
    pub const MAP: u8 = 0x20;
    /// The hash of a cluster.
    pub const HASH: u8 = 0x30;
    /// The hash of a layer.
    pub const ROOT: u8 = 0x31;
    /// What a commit changed.
    pub const JOURNAL: u8 = 0x40;
}

/// Bytes of the longest key, and of every map and hash key.
pub const KEY_BYTES_MAX: usize = 9;

/// `start <= key < end`.
pub type KeyRange = Range<Vec<u8>>;

/// Of [`super::StoreRecord`].
pub const STORE_KEY: [u8; 1] = [kind::STORE];
/// Of [`super::Change::Commit`].
pub const COMMIT_KEY: [u8; 1] = [kind::COMMIT];

fn with_u32(kind: u8, number: u32) -> [u8; 5] {
    let [a, b, c, d] = number.to_be_bytes();
    [kind, a, b, c, d]
}

fn with_cluster(kind: u8, layer: LayerId, cluster: ClusterIndex) -> [u8; KEY_BYTES_MAX] {
    let mut key = [kind; KEY_BYTES_MAX];
    key[1..5].copy_from_slice(&layer.0.to_be_bytes());
    key[5..].copy_from_slice(&cluster.0.to_be_bytes());
    key
}

/// The key of a volume.
pub fn volume_key(volume: VolumeId) -> [u8; 5] {
    with_u32(kind::VOLUME, volume.0)
}

/// The key of a snapshot.
pub fn snapshot_key(snapshot: SnapshotId) -> [u8; 5] {
    with_u32(kind::SNAPSHOT, snapshot.0)
}

/// The key of a layer.
pub fn layer_key(layer: LayerId) -> [u8; 5] {
    with_u32(kind::LAYER, layer.0)
}

/// The key of a pool file.
pub fn pool_file_key(file: u16) -> [u8; 3] {
    let [high, low] = file.to_be_bytes();
    [kind::POOL_FILE, high, low]
}

/// The key of what a volume is to other hosts.
pub fn link_key(volume: VolumeId) -> [u8; 5] {
    with_u32(kind::LINK, volume.0)
}

/// The key of where a snapshot came from.
pub fn origin_key(snapshot: SnapshotId) -> [u8; 5] {
    with_u32(kind::ORIGIN, snapshot.0)
}

/// The key of a volume's last move.
pub fn move_key(volume: VolumeId) -> [u8; 5] {
    with_u32(kind::MOVE, volume.0)
}

/// The key of a map record.
pub fn map_key(layer: LayerId, cluster: ClusterIndex) -> [u8; KEY_BYTES_MAX] {
    with_cluster(kind::MAP, layer, cluster)
}

/// The key of a cluster's hash.
pub fn hash_key(layer: LayerId, cluster: ClusterIndex) -> [u8; KEY_BYTES_MAX] {
    with_cluster(kind::HASH, layer, cluster)
}

/// The key of a layer's hash.
pub fn root_key(layer: LayerId) -> [u8; 5] {
    with_u32(kind::ROOT, layer.0)
}

/// The key of a commit's journal.
pub fn journal_key(commit: u64) -> [u8; KEY_BYTES_MAX] {
    let mut key = [kind::JOURNAL; KEY_BYTES_MAX];
    key[1..].copy_from_slice(&commit.to_be_bytes());
    key
}

/// Every record there is, known or not: no key is as long as the end.
pub fn every_range() -> KeyRange {
    Vec::new()..vec![u8::MAX; KEY_BYTES_MAX + 1]
}

/// The catalog: everything that is neither of a cluster nor journal nor hash.
pub fn catalog_range() -> KeyRange {
    vec![kind::STORE]..vec![kind::MAP]
}

fn kind_range(kind: u8) -> KeyRange {
    vec![kind]..vec![kind + 1]
}

/// From a cluster of a layer to the layer's end, within one kind.
fn layer_range(kind: u8, layer: LayerId, from: ClusterIndex) -> KeyRange {
    let end = match layer.0.checked_add(1) {
        Some(next) => with_u32(kind, next).to_vec(),
        None => vec![kind + 1],
    };
    with_cluster(kind, layer, from).to_vec()..end
}

/// All map records.
pub fn maps_range() -> KeyRange {
    kind_range(kind::MAP)
}

/// The map records of a layer.
pub fn map_range(layer: LayerId) -> KeyRange {
    map_range_from(layer, ClusterIndex(0))
}

/// The map records of a layer from a cluster on.
pub fn map_range_from(layer: LayerId, cluster: ClusterIndex) -> KeyRange {
    layer_range(kind::MAP, layer, cluster)
}

/// The map records of some clusters of a layer; an end past all numbers is the layer's end.
///
/// # Panics
/// When the start has no 32 bits: no cluster is there.
pub fn map_range_within(layer: LayerId, clusters: &Range<u64>) -> KeyRange {
    let from = u32::try_from(clusters.start).expect("a cluster's number");
    let mut range = map_range_from(layer, ClusterIndex(from));
    if let Ok(end) = u32::try_from(clusters.end) {
        range.end = map_key(layer, ClusterIndex(end)).to_vec();
    }
    range
}

/// The hashes of a layer's clusters.
pub fn hash_range(layer: LayerId) -> KeyRange {
    hash_range_from(layer, ClusterIndex(0))
}

/// The hashes of a layer's clusters from one on.
pub fn hash_range_from(layer: LayerId, cluster: ClusterIndex) -> KeyRange {
    layer_range(kind::HASH, layer, cluster)
}

/// The hashes of all layers' clusters.
pub fn hashes_range() -> KeyRange {
    kind_range(kind::HASH)
}

/// The hashes of layers.
pub fn roots_range() -> KeyRange {
    kind_range(kind::ROOT)
}

/// The whole journal.
pub fn journal_range() -> KeyRange {
    kind_range(kind::JOURNAL)
}

/// The journal up to and including a commit.
pub fn journal_range_through(commit: u64) -> KeyRange {
    let end =
        commit.checked_add(1).map_or_else(|| vec![kind::JOURNAL + 1], |next| journal_key(next).to_vec());
    vec![kind::JOURNAL]..end
}

/// A key for people: the kind, then the numbers, in hexadecimal.
pub fn key_text(key: &[u8]) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (kind, rest) = key.split_at(key.len().min(1));
    let mut words = vec![hex(kind)];
    words.extend(rest.chunks(if kind == [kind::JOURNAL] { 8 } else { 4 }).map(hex));
    words.join(" ")
}
