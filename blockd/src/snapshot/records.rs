//! Records of layers, read in order and in batches: memory stays bounded whatever the layers hold.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use smallvec::SmallVec;

use crate::catalog::format::keys::{KeyRange, hash_range_from, key_text, map_range_from};
use crate::catalog::format::{MapRecord, Record, decode_map};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::hash::Value;
use crate::map::{Packed, Source};
use crate::units::{ClusterIndex, LayerId, Mask};

/// Records that all cursors of one scan hold, about.
const RECORDS_HELD: usize = 65_536;
/// Records that one cursor reads at a time, at least and at most. Small worlds must see several batches, too.
const BATCH_RECORDS: RangeInclusive<usize> = if cfg!(test) { 1..=3 } else { 16..=4096 };
/// Records of a cursor's first batch, and of one that is asked for clusters far from each other.
const FIRST_RECORDS: usize = 16;
const FEWEST_RECORDS: usize = 2;

/// How many records each of `cursors` cursors reads at a time, at most.
pub(super) fn batch_records(cursors: usize) -> usize {
    (RECORDS_HELD / cursors.max(1)).clamp(*BATCH_RECORDS.start(), *BATCH_RECORDS.end())
}

/// What a layer has one of for a cluster.
pub(super) trait LayerRecord: Sized {
    /// The keys of a layer's, from a cluster on.
    fn range_from(layer: LayerId, cluster: ClusterIndex) -> KeyRange;
    /// The cluster, and the record.
    fn decode(key: &[u8], value: &[u8]) -> Result<(ClusterIndex, Self), MetaError>;
}

impl LayerRecord for MapRecord {
    fn range_from(layer: LayerId, cluster: ClusterIndex) -> KeyRange {
        map_range_from(layer, cluster)
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<(ClusterIndex, Self), MetaError> {
        decode_map(key, value).map(|(_, cluster, record)| (cluster, record))
    }
}

impl LayerRecord for Value {
    fn range_from(layer: LayerId, cluster: ClusterIndex) -> KeyRange {
        hash_range_from(layer, cluster)
    }

    fn decode(key: &[u8], value: &[u8]) -> Result<(ClusterIndex, Self), MetaError> {
        match Record::decode(key, value)? {
            Record::Hash(_, cluster, hash) => Ok((cluster, hash)),
            _ => Err(MetaError::Damaged(format!("record {} is no hash", key_text(key)))),
        }
    }
}

/// A layer's records of one kind, in order. Asked for clusters in order, it knows those that it was not asked for
/// from the same batch: a layer with few records is read once. Batches grow while most of what is read answers
/// something, and shrink where clusters are asked for that have many others between them.
pub(super) struct Cursor<R> {
    meta: Arc<dyn MetaStore>,
    layer: LayerId,
    /// Of the next batch.
    limit: usize,
    limit_max: usize,
    batch: VecDeque<(ClusterIndex, R)>,
    /// What the last batch held, and how often it was asked.
    filled: usize,
    asked: usize,
    /// There may be records after the batch.
    more: bool,
}

impl<R: LayerRecord> Cursor<R> {
    /// Reads at most so many records at a time.
    pub(super) fn new(meta: &Arc<dyn MetaStore>, layer: LayerId, limit_max: usize) -> Self {
        let (meta, limit) = (Arc::clone(meta), FIRST_RECORDS.min(limit_max));
        Self { meta, layer, limit, limit_max, batch: VecDeque::new(), filled: 0, asked: 0, more: true }
    }

    /// The first cluster at or after `from` that has a record. What lies before is not seen again.
    fn seek(&mut self, from: ClusterIndex) -> Result<Option<ClusterIndex>, MetaError> {
        while self.batch.front().is_some_and(|&(at, _)| at < from) {
            self.batch.pop_front();
        }
        if self.batch.is_empty() && self.more {
            self.fill(from)?;
        }
        self.asked += 1;
        Ok(self.batch.front().map(|&(at, _)| at))
    }

    /// The cluster's record. Clusters are asked for in order.
    pub(super) fn take(&mut self, cluster: ClusterIndex) -> Result<Option<R>, MetaError> {
        let found = self.seek(cluster)? == Some(cluster);
        Ok(if found { self.batch.pop_front().map(|(_, record)| record) } else { None })
    }

    fn fill(&mut self, from: ClusterIndex) -> Result<(), MetaError> {
        if self.filled > 0 {
            let wanted = if 2 * self.asked >= self.filled { 2 * self.limit } else { self.limit / 2 };
            self.limit = wanted.max(FEWEST_RECORDS).min(self.limit_max);
        }
        let (range, limit, batch) = (R::range_from(self.layer, from), self.limit, &mut self.batch);
        self.meta.scan(&range.start, &range.end, &mut |key, value| {
            batch.push_back(R::decode(key, value)?);
            Ok(if batch.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        self.more = batch.len() == limit;
        (self.filled, self.asked) = (batch.len(), 0);
        Ok(())
    }
}

/// The records of one cluster, newest layer first: the layer's place in the chain, and its record.
pub(super) type Stack = SmallVec<[(usize, MapRecord); 2]>;

/// Several layers' map records, cluster by cluster.
pub(super) struct Merge {
    cursors: Vec<Cursor<MapRecord>>,
    /// The next cluster of each layer that has more, by its place in the chain.
    heads: BinaryHeap<Reverse<(ClusterIndex, usize)>>,
}

impl Merge {
    /// Of these layers, in this order, newest first, from a cluster on.
    pub(super) fn new(
        meta: &Arc<dyn MetaStore>,
        chain: &[LayerId],
        from: ClusterIndex,
    ) -> Result<Self, MetaError> {
        let limit = batch_records(chain.len());
        let cursors = chain.iter().map(|&layer| Cursor::new(meta, layer, limit)).collect();
        let mut merge = Self { cursors, heads: BinaryHeap::new() };
        for place in 0..merge.cursors.len() {
            merge.advance(place, from)?;
        }
        Ok(merge)
    }

    fn advance(&mut self, place: usize, from: ClusterIndex) -> Result<(), MetaError> {
        let next = self.cursors[place].seek(from)?;
        self.heads.extend(next.map(|cluster| Reverse((cluster, place))));
        Ok(())
    }

    /// The next cluster of which any layer has a record, and its records.
    pub(super) fn next(&mut self) -> Result<Option<(ClusterIndex, Stack)>, MetaError> {
        let Some(&Reverse((cluster, _))) = self.heads.peek() else { return Ok(None) };
        let mut stack = Stack::new();
        while let Some(&Reverse((at, place))) = self.heads.peek()
            && at == cluster
        {
            self.heads.pop();
            stack.extend(self.cursors[place].take(cluster)?.map(|record| (place, record)));
            if let Some(next) = cluster.0.checked_add(1) {
                self.advance(place, ClusterIndex(next))?;
            }
        }
        Ok(Some((cluster, stack)))
    }
}

/// Where a cluster's blocks are read from that show data; their masks are disjoint.
pub(super) type Sources = SmallVec<[Source; 2]>;

/// What shows of a cluster's records, newest first.
pub(super) fn sources<'a>(records: impl IntoIterator<Item = &'a MapRecord>) -> Sources {
    let (mut sources, mut decided) = (Sources::new(), Mask::NONE);
    for record in records {
        let shown = record.data.without(decided);
        if let Some(cluster) = record.cluster.filter(|_| !shown.is_empty()) {
            let packed = record.packed.map(|first| Packed { data: record.data, first });
            sources.push(Source { cluster, shown, packed });
        }
        decided = decided.with(touched(record));
    }
    sources
}

/// The blocks that a record decides.
pub(super) fn touched(record: &MapRecord) -> Mask {
    record.data.with(record.zero)
}
