//! Bytes to records. Takes any bytes: what does not decode is an error that names the key, never a panic and never
//! an allocation larger than the value.

use super::keys::{key_text, kind};
use super::{
    LayerRecord, LinkRecord, MapRecord, MoveRecord, NO_CLUSTER, OriginRecord, PoolFileRecord, RootRecord,
    SnapshotRecord, StoreRecord, VolumeRecord,
};
use crate::catalog::meta::MetaError;
use crate::units::{CLUSTER_BLOCKS, ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId};

/// Any record, with what its key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Key `00`.
    Store(StoreRecord),
    /// Key `01`.
    Commit(u64),
    /// Key `10`.
    Volume(VolumeId, VolumeRecord),
    /// Key `11`.
    Snapshot(SnapshotId, SnapshotRecord),
    /// Key `12`.
    Layer(LayerId, LayerRecord),
    /// Key `13`.
    PoolFile(u16, PoolFileRecord),
    /// Key `14`.
    Link(VolumeId, Box<LinkRecord>),
    /// Key `15`.
    Origin(SnapshotId, OriginRecord),
    /// Key `16`.
    Move(VolumeId, Box<MoveRecord>),
    /// Key `20`.
    Map(LayerId, ClusterIndex, MapRecord),
    /// Key `30`.
    Hash(LayerId, ClusterIndex, [u8; 32]),
    /// Key `31`.
    Root(LayerId, RootRecord),
    /// Key `40`.
    Journal(u64, Vec<(LayerId, ClusterIndex)>),
}

impl Record {
    /// The record that a key and its value are.
    ///
    /// # Errors
    /// `Damaged`, with the key and what is wrong.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, MetaError> {
        record(key, value).map_err(|fault| damaged(key, fault))
    }
}

/// A map record and whose it is; what [`Record::decode`] does with those, without its detours: there are millions.
///
/// # Errors
/// `Damaged`, with the key and what is wrong.
pub fn decode_map(key: &[u8], value: &[u8]) -> Result<(LayerId, ClusterIndex, MapRecord), MetaError> {
    if key.first() != Some(&kind::MAP) {
        return Err(damaged(key, "is no map record"));
    }
    map(&key[1..], value).map_err(|fault| damaged(key, fault))
}

/// The version that the store's record says it is of. Its place is the same in every version.
///
/// # Errors
/// `Damaged`: it is too short to have one.
pub fn decode_version(key: &[u8], value: &[u8]) -> Result<u32, MetaError> {
    Reader(value).u32().map_err(|fault| damaged(key, fault))
}

fn damaged(key: &[u8], fault: &str) -> MetaError {
    MetaError::Damaged(format!("record {} {fault}", key_text(key)))
}

/// What is wrong with a record.
pub(super) type Fault = &'static str;

fn record(key: &[u8], value: &[u8]) -> Result<Record, Fault> {
    let (kind, rest) = key.split_first().ok_or("has an empty key")?;
    let mut key = Reader(rest);
    Ok(match *kind {
        kind::STORE => Record::Store(key.end(Reader(value).store()?)?),
        kind::COMMIT => {
            let mut value = Reader(value);
            let commit = value.u64()?;
            Record::Commit(key.end(value.end(commit)?)?)
        }
        kind::VOLUME => Record::Volume(key.last(VolumeId)?, Reader(value).volume()?),
        kind::SNAPSHOT => Record::Snapshot(key.last(SnapshotId)?, Reader(value).snapshot()?),
        kind::LAYER => Record::Layer(key.last(LayerId)?, Reader(value).layer()?),
        kind::POOL_FILE => {
            let file = u16::from_be_bytes(key.take()?);
            Record::PoolFile(key.end(file)?, Reader(value).pool_file()?)
        }
        kind::LINK => Record::Link(key.last(VolumeId)?, Box::new(LinkRecord::decode(value)?)),
        kind::ORIGIN => Record::Origin(key.last(SnapshotId)?, OriginRecord::decode(value)?),
        kind::MOVE => Record::Move(key.last(VolumeId)?, Box::new(MoveRecord::decode(value)?)),
        kind::MAP => {
            let (layer, cluster, record) = map(rest, value)?;
            Record::Map(layer, cluster, record)
        }
        kind::HASH => {
            let (layer, cluster) = layer_and_cluster(rest)?;
            Record::Hash(layer, cluster, value.try_into().map_err(|_| WRONG_LENGTH)?)
        }
        kind::ROOT => Record::Root(key.last(LayerId)?, Reader(value).root()?),
        kind::JOURNAL => {
            let commit = key.u64()?;
            Record::Journal(key.end(commit)?, journal(value)?)
        }
        _ => return Err("is of an unknown kind"),
    })
}

const WRONG_LENGTH: Fault = "is shorter or longer than its kind";
const NUMBER_ZERO: Fault = "has the number 0";

fn layer_and_cluster(rest: &[u8]) -> Result<(LayerId, ClusterIndex), Fault> {
    let both: [u8; 8] = rest.try_into().map_err(|_| "has a key shorter or longer than its kind's")?;
    let both = u64::from_be_bytes(both);
    let layer = (both >> 32) as u32;
    if layer == 0 {
        return Err(NUMBER_ZERO);
    }
    Ok((LayerId(layer), ClusterIndex(both as u32)))
}

fn map(rest: &[u8], value: &[u8]) -> Result<(LayerId, ClusterIndex, MapRecord), Fault> {
    let (layer, cluster) = layer_and_cluster(rest)?;
    let &[a, b, c, d, data_high, data_low, zero_high, zero_low, packed] =
        <&[u8; 9]>::try_from(value).map_err(|_| WRONG_LENGTH)?;
    let pool = u32::from_be_bytes([a, b, c, d]);
    let record = MapRecord {
        cluster: (pool != NO_CLUSTER).then_some(PoolCluster(pool)),
        data: Mask(u16::from_be_bytes([data_high, data_low])),
        zero: Mask(u16::from_be_bytes([zero_high, zero_low])),
        packed: packed.checked_sub(1),
    };
    match map_fault(&record) {
        None => Ok((layer, cluster, record)),
        Some(fault) => Err(fault),
    }
}

/// What no map record may be, whatever else the store holds.
fn map_fault(record: &MapRecord) -> Option<Fault> {
    if !record.data.and(record.zero).is_empty() {
        return Some("has blocks that are both data and zero");
    }
    if record.cluster.is_none() && !record.data.is_empty() {
        return Some("has data blocks but no pool cluster");
    }
    let start = record.packed?;
    if record.cluster.is_none() || record.data.is_empty() {
        return Some("is packed but has no data");
    }
    if u32::from(start) + record.data.count() > CLUSTER_BLOCKS {
        return Some("is packed past the end of its pool cluster");
    }
    None
}

fn journal(value: &[u8]) -> Result<Vec<(LayerId, ClusterIndex)>, Fault> {
    if !value.len().is_multiple_of(8) {
        return Err(WRONG_LENGTH);
    }
    value.chunks_exact(8).map(layer_and_cluster).collect()
}

/// What is left to decode.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl Reader<'_> {
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(WRONG_LENGTH)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.take().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Fault> {
        self.take().map(u64::from_be_bytes)
    }

    pub(super) fn text(&mut self) -> Result<String, Fault> {
        let length = usize::from(u16::from_be_bytes(self.take()?));
        let (text, rest) = self.0.split_at_checked(length).ok_or(WRONG_LENGTH)?;
        self.0 = rest;
        Ok(str::from_utf8(text).map_err(|_| "has text that is not UTF-8")?.to_owned())
    }

    /// The value, if nothing follows.
    pub(super) fn end<T>(&self, value: T) -> Result<T, Fault> {
        if self.0.is_empty() { Ok(value) } else { Err(WRONG_LENGTH) }
    }

    /// A number that is all of the rest, and not 0.
    fn last<T>(&mut self, number: fn(u32) -> T) -> Result<T, Fault> {
        let value = self.u32()?;
        if value == 0 {
            return Err(NUMBER_ZERO);
        }
        self.end(number(value))
    }

    fn store(&mut self) -> Result<StoreRecord, Fault> {
        let record = StoreRecord {
            version: self.u32()?,
            identity: self.take()?,
            next_volume: VolumeId(self.u32()?),
            next_layer: LayerId(self.u32()?),
            next_snapshot: SnapshotId(self.u32()?),
            created_ms: self.u64()?,
        };
        self.end(record)
    }

    fn volume(&mut self) -> Result<VolumeRecord, Fault> {
        let (size, head, created_ms) = (self.u64()?, LayerId(self.u32()?), self.u64()?);
        let record = VolumeRecord { name: self.text()?, size, head, created_ms };
        self.end(record)
    }

    fn snapshot(&mut self) -> Result<SnapshotRecord, Fault> {
        let (volume, layer) = (VolumeId(self.u32()?), LayerId(self.u32()?));
        let (size, created_ms, name) = (self.u64()?, self.u64()?, self.text()?);
        let holds = u16::from_be_bytes(self.take()?);
        let holds = (0..holds).map(|_| self.text()).collect::<Result<_, _>>()?;
        self.end(SnapshotRecord { volume, name, layer, size, created_ms, holds })
    }

    fn layer(&mut self) -> Result<LayerRecord, Fault> {
        let (parent, volume) = (self.u32()?, VolumeId(self.u32()?));
        self.end(LayerRecord { parent: (parent != 0).then_some(LayerId(parent)), volume })
    }

    fn pool_file(&mut self) -> Result<PoolFileRecord, Fault> {
        let (first, clusters) = (PoolCluster(self.u32()?), self.u32()?);
        let record = PoolFileRecord { first, clusters, path: self.text()? };
        self.end(record)
    }

    fn root(&mut self) -> Result<RootRecord, Fault> {
        let record = RootRecord { size: self.u64()?, hash: self.take()? };
        self.end(record)
    }
}
