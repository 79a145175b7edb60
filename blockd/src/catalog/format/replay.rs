//! Changes from what they did to the keys: the inverse of [`Change::encode`].

use super::keys::{self, KeyRange, key_text, kind};
use super::{Change, Record};
use crate::catalog::meta::MetaError;
use crate::units::{ClusterIndex, LayerId, SnapshotId, VolumeId};

impl From<Record> for Change {
    fn from(record: Record) -> Self {
        match record {
            Record::Store(record) => Self::Store(record),
            Record::Commit(commit) => Self::Commit(commit),
            Record::Volume(id, record) => Self::Volume(id, Some(record)),
            Record::Snapshot(id, record) => Self::Snapshot(id, Some(record)),
            Record::Layer(id, record) => Self::Layer(id, Some(record)),
            Record::PoolFile(file, record) => Self::PoolFile(file, record),
            Record::Link(id, record) => Self::Link(id, Some(record)),
            Record::Origin(id, record) => Self::Origin(id, Some(record)),
            Record::Move(id, record) => Self::Move(id, Some(record)),
            Record::Map(id, cluster, record) => Self::Map(id, cluster, Some(record)),
            Record::Hash(id, cluster, hash) => Self::Hash(id, cluster, Some(hash)),
            Record::Root(id, record) => Self::Root(id, Some(record)),
            Record::Journal(commit, changed) => Self::Journal(commit, changed),
        }
    }
}

impl Change {
    /// The change that put a record.
    ///
    /// # Errors
    /// `Damaged`: no change puts that.
    pub fn put(key: &[u8], value: &[u8]) -> Result<Self, MetaError> {
        Record::decode(key, value).map(Self::from)
    }

    /// The change that deleted a record.
    ///
    /// # Errors
    /// `Damaged`: no change deletes that.
    pub fn delete(key: &[u8]) -> Result<Self, MetaError> {
        let number = |at: usize| {
            let bytes = key.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map(u32::from_be_bytes).ok_or_else(|| foreign(key))
        };
        let change = match key.first() {
            Some(&kind::VOLUME) => Self::Volume(VolumeId(number(1)?), None),
            Some(&kind::SNAPSHOT) => Self::Snapshot(SnapshotId(number(1)?), None),
            Some(&kind::LAYER) => Self::Layer(LayerId(number(1)?), None),
            Some(&kind::LINK) => Self::Link(VolumeId(number(1)?), None),
            Some(&kind::ORIGIN) => Self::Origin(SnapshotId(number(1)?), None),
            Some(&kind::MOVE) => Self::Move(VolumeId(number(1)?), None),
            Some(&kind::MAP) => Self::Map(LayerId(number(1)?), ClusterIndex(number(5)?), None),
            Some(&kind::HASH) => Self::Hash(LayerId(number(1)?), ClusterIndex(number(5)?), None),
            Some(&kind::ROOT) => Self::Root(LayerId(number(1)?), None),
            _ => return Err(foreign(key)),
        };
        Ok(change)
    }

    /// The change that deleted a range, or the part of a change that did.
    ///
    /// # Errors
    /// `Damaged`: no change deletes that.
    pub fn delete_range(range: &KeyRange) -> Result<Self, MetaError> {
        let (start, end) = (&range.start[..], &range.end[..]);
        if let [kind::HASH, a, b, c, d, ..] = *start {
            let layer = LayerId(u32::from_be_bytes([a, b, c, d]));
            if *range == keys::hash_range(layer) {
                return Ok(Self::DropHashes(layer));
            }
        }
        let next = end.get(1..).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes);
        let commit = next.wrapping_sub(1);
        if *range == keys::journal_range_through(commit) {
            return Ok(Self::TrimJournal(commit));
        }
        Err(foreign(start))
    }
}

fn foreign(key: &[u8]) -> MetaError {
    MetaError::Damaged(format!("{} is nothing that a change deletes", key_text(key)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::format::{LayerRecord, MapRecord, RawSink, RootRecord, SnapshotRecord, VolumeRecord};
    use crate::units::{Mask, PoolCluster};

    struct Back(Vec<Change>);

    impl RawSink for Back {
        fn put(&mut self, key: &[u8], value: &[u8]) {
            self.0.push(Change::put(key, value).unwrap());
        }

        fn delete(&mut self, key: &[u8]) {
            self.0.push(Change::delete(key).unwrap());
        }

        fn delete_range(&mut self, range: KeyRange) {
            self.0.push(Change::delete_range(&range).unwrap());
        }
    }

    fn back(change: &Change) -> Vec<Change> {
        let mut back = Back(Vec::new());
        change.encode(&mut back);
        back.0
    }

    #[test]
    fn what_was_done_to_the_keys_tells_the_change() {
        let (layer, volume, at) = (LayerId(7), VolumeId(3), ClusterIndex(u32::MAX));
        let map = MapRecord { cluster: Some(PoolCluster(9)), data: Mask(3), ..MapRecord::default() };
        let snapshot = SnapshotRecord {
            volume,
            name: "s".into(),
            layer,
            size: 4096,
            created_ms: 1,
            holds: vec!["x".into()],
        };
        let changes = [
            Change::Volume(
                volume,
                Some(VolumeRecord { name: "v".into(), size: 1, head: layer, created_ms: 2 }),
            ),
            Change::Volume(volume, None),
            Change::Snapshot(SnapshotId(5), Some(snapshot)),
            Change::Snapshot(SnapshotId(5), None),
            Change::Layer(layer, Some(LayerRecord { parent: None, volume })),
            Change::Layer(layer, None),
            Change::Map(layer, at, Some(map)),
            Change::Map(layer, at, None),
            Change::Hash(layer, at, Some([8; 32])),
            Change::Hash(layer, at, None),
            Change::Root(layer, Some(RootRecord { size: 1, hash: [9; 32] })),
            Change::Root(layer, None),
            Change::Journal(4, vec![(layer, at)]),
            Change::TrimJournal(4),
            Change::TrimJournal(u64::MAX),
            Change::Commit(6),
        ];
        for change in changes {
            assert_eq!(back(&change), [change]);
        }
        for layer in [layer, LayerId(u32::MAX)] {
            assert_eq!(
                back(&Change::DropHashes(layer)),
                [Change::DropHashes(layer), Change::Root(layer, None)]
            );
        }
    }

    #[test]
    fn what_no_change_does_is_refused() {
        assert!(Change::delete(&[kind::STORE]).is_err());
        assert!(Change::delete(&[kind::MAP, 0, 0]).is_err());
        assert!(Change::delete(&[]).is_err());
        assert!(Change::delete_range(&keys::maps_range()).is_err());
        assert!(Change::delete_range(&keys::hashes_range()).is_err());
    }
}
