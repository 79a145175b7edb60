//! Records to bytes.

use super::keys::{self, KeyRange};
use super::{
    Change, LayerRecord, MapRecord, NO_CLUSTER, OriginRecord, PoolFileRecord, RootRecord, SnapshotRecord,
    StoreRecord, VolumeRecord,
};
use crate::units::{ClusterIndex, LayerId};

/// Takes what a [`Change`] does to the keys, in order.
pub trait RawSink {
    /// The record is that from now on.
    fn put(&mut self, key: &[u8], value: &[u8]);
    /// The record is gone. It need not have been there.
    fn delete(&mut self, key: &[u8]);
    /// All records of the range are gone.
    fn delete_range(&mut self, range: KeyRange);
}

impl Change {
    /// What the change does to the keys.
    ///
    /// # Panics
    /// When a name or path is longer than 65535 bytes, or a snapshot has as many holds: neither gets past the checks
    /// on what users ask for.
    pub fn encode(&self, sink: &mut dyn RawSink) {
        match self {
            Self::Store(record) => sink.put(&keys::STORE_KEY, &store(record)),
            Self::Commit(commit) => sink.put(&keys::COMMIT_KEY, &commit.to_be_bytes()),
            Self::Volume(id, record) => set(sink, &keys::volume_key(*id), record.as_ref().map(volume)),
            Self::Snapshot(id, record) => set(sink, &keys::snapshot_key(*id), record.as_ref().map(snapshot)),
            Self::Layer(id, record) => set(sink, &keys::layer_key(*id), record.as_ref().map(layer)),
            Self::PoolFile(file, record) => sink.put(&keys::pool_file_key(*file), &pool_file(record)),
            Self::Link(id, record) => set(sink, &keys::link_key(*id), record.as_ref().map(|r| r.encode())),
            Self::Origin(id, record) => {
                set(sink, &keys::origin_key(*id), record.as_ref().map(OriginRecord::encode));
            }
            Self::Move(id, record) => set(sink, &keys::move_key(*id), record.as_ref().map(|r| r.encode())),
            Self::Map(id, cluster, record) => {
                set(sink, &keys::map_key(*id, *cluster), record.as_ref().map(map));
            }
            Self::Hash(id, cluster, hash) => set(sink, &keys::hash_key(*id, *cluster), *hash),
            Self::Root(id, record) => set(sink, &keys::root_key(*id), record.as_ref().map(root)),
            Self::Journal(commit, changed) => sink.put(&keys::journal_key(*commit), &journal(changed)),
            Self::TrimJournal(commit) => sink.delete_range(keys::journal_range_through(*commit)),
            Self::DropHashes(id) => {
                sink.delete_range(keys::hash_range(*id));
                sink.delete(&keys::root_key(*id));
            }
        }
    }
}

fn set<V: AsRef<[u8]>>(sink: &mut dyn RawSink, key: &[u8], value: Option<V>) {
    match value {
        Some(value) => sink.put(key, value.as_ref()),
        None => sink.delete(key),
    }
}

/// Appends a length and the text.
pub(super) fn text(value: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).expect("names and paths are short");
    value.extend(length.to_be_bytes());
    value.extend(text.as_bytes());
}

fn store(record: &StoreRecord) -> Vec<u8> {
    let mut value = record.version.to_be_bytes().to_vec();
    value.extend(record.identity);
    for next in [record.next_volume.0, record.next_layer.0, record.next_snapshot.0] {
        value.extend(next.to_be_bytes());
    }
    value.extend(record.created_ms.to_be_bytes());
    value
}

fn volume(record: &VolumeRecord) -> Vec<u8> {
    let mut value = record.size.to_be_bytes().to_vec();
    value.extend(record.head.0.to_be_bytes());
    value.extend(record.created_ms.to_be_bytes());
    text(&mut value, &record.name);
    value
}

fn snapshot(record: &SnapshotRecord) -> Vec<u8> {
    let mut value = record.volume.0.to_be_bytes().to_vec();
    value.extend(record.layer.0.to_be_bytes());
    value.extend(record.size.to_be_bytes());
    value.extend(record.created_ms.to_be_bytes());
    text(&mut value, &record.name);
    let holds = u16::try_from(record.holds.len()).expect("few holds");
    value.extend(holds.to_be_bytes());
    for hold in &record.holds {
        text(&mut value, hold);
    }
    value
}

fn layer(record: &LayerRecord) -> [u8; 8] {
    let mut value = [0; 8];
    let parent = record.parent.map_or(0, |parent| parent.0);
    value[..4].copy_from_slice(&parent.to_be_bytes());
    value[4..].copy_from_slice(&record.volume.0.to_be_bytes());
    value
}

fn pool_file(record: &PoolFileRecord) -> Vec<u8> {
    let mut value = record.first.0.to_be_bytes().to_vec();
    value.extend(record.clusters.to_be_bytes());
    text(&mut value, &record.path);
    value
}

fn map(record: &MapRecord) -> [u8; 9] {
    let mut value = [0; 9];
    let cluster = record.cluster.map_or(NO_CLUSTER, |cluster| cluster.0);
    value[..4].copy_from_slice(&cluster.to_be_bytes());
    value[4..6].copy_from_slice(&record.data.0.to_be_bytes());
    value[6..8].copy_from_slice(&record.zero.0.to_be_bytes());
    value[8] = record.packed.map_or(0, |start| start + 1);
    value
}

fn root(record: &RootRecord) -> Vec<u8> {
    let mut value = record.size.to_be_bytes().to_vec();
    value.extend(record.hash);
    value
}

fn journal(changed: &[(LayerId, ClusterIndex)]) -> Vec<u8> {
    let mut value = Vec::with_capacity(changed.len() * 8);
    for (layer, cluster) in changed {
        value.extend(layer.0.to_be_bytes());
        value.extend(cluster.0.to_be_bytes());
    }
    value
}
