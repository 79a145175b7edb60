//! Two snapshots side by side: the layers that only one of them has, cluster by cluster, and those below.

use std::sync::Arc;

use super::records::{Cursor, Merge, Stack, batch_records, touched};
use crate::catalog::format::MapRecord;
use crate::catalog::meta::{MetaError, MetaStore};
use crate::control::Pinned;
use crate::units::{BLOCK_BYTES, ClusterIndex, LayerId, Mask};

/// See the module. Places of layers are those of the chain of `to`; then those that only `from` has.
pub(super) struct Sides {
    merge: Merge,
    /// The layers of `to`, newest first.
    chain: Vec<LayerId>,
    /// Layers that only `to` has: the first so many of the merge.
    to_layers: usize,
    common: Vec<Cursor<MapRecord>>,
    /// There is nothing after the end of `to`, and nothing but zeroes after that of `from`.
    data_end: u64,
    zero_end: u64,
}

impl Sides {
    pub(super) fn new(
        meta: &Arc<dyn MetaStore>,
        from: Option<&Pinned>,
        to: &Pinned,
        starting_at: ClusterIndex,
    ) -> Result<Self, MetaError> {
        let from_chain: &[LayerId] = from.map_or(&[], |from| &from.chain);
        let same = |(a, b): &(&LayerId, &LayerId)| a == b;
        let shared = from_chain.iter().rev().zip(to.chain.iter().rev()).take_while(same).count();
        let (to_own, common) = to.chain.split_at(to.chain.len() - shared);
        let own = [to_own, &from_chain[..from_chain.len() - shared]].concat();
        let limit = batch_records(common.len());
        Ok(Self {
            merge: Merge::new(meta, &own, starting_at)?,
            chain: to.chain.clone(),
            to_layers: to_own.len(),
            common: common.iter().map(|&layer| Cursor::new(meta, layer, limit)).collect(),
            data_end: to.size,
            zero_end: to.size.min(from.map_or(0, |from| from.size)),
        })
    }

    /// The next cluster of `to` that a layer of one side has a record of, and these records.
    pub(super) fn next(&mut self) -> Result<Option<(ClusterIndex, Stack)>, MetaError> {
        let Some((cluster, stack)) = self.merge.next()? else { return Ok(None) };
        if cluster.start() < self.data_end {
            return Ok(Some((cluster, stack)));
        }
        if let Some((place, _)) = stack.iter().find(|(place, _)| *place < self.to_layers) {
            let (layer, end) = (self.chain[*place], self.data_end);
            let text = format!("layer {layer} maps cluster {cluster} of a snapshot of {end} bytes");
            return Err(MetaError::Damaged(text));
        }
        Ok(None)
    }

    /// The blocks that may differ and show data in `to`, and those that show zeroes. Common layers are asked for blocks
    /// that only the other side touched.
    pub(super) fn differing(
        &mut self,
        cluster: ClusterIndex,
        stack: &Stack,
    ) -> Result<(Mask, Mask), MetaError> {
        let (mut data, mut decided, mut other) = (Mask::NONE, Mask::NONE, Mask::NONE);
        for (place, record) in stack {
            if *place < self.to_layers {
                data = data.with(record.data.without(decided));
                decided = decided.with(touched(record));
            } else {
                other = other.with(touched(record));
            }
        }
        let all = decided.with(other);
        for common in &mut self.common {
            if decided.contains(other) {
                break;
            }
            if let Some(record) = common.take(cluster)? {
                data = data.with(record.data.without(decided).and(other));
                decided = decided.with(touched(&record));
            }
        }
        Ok(self.cut(cluster, data, all.without(data)))
    }

    /// The records that make the cluster's content in `to`, and in `from` if that is `wanted`: those of the stack, and
    /// of common layers as far down as anything of them shows.
    pub(super) fn split(
        &mut self,
        cluster: ClusterIndex,
        stack: Stack,
        from_wanted: bool,
    ) -> Result<(Stack, Stack), MetaError> {
        let decided = |stack: &Stack| stack.iter().fold(Mask::NONE, |mask, (_, one)| mask.with(touched(one)));
        let (mut to, mut from): (Stack, Stack) =
            stack.into_iter().partition(|(place, _)| *place < self.to_layers);
        let (mut to_decided, mut from_decided) = (decided(&to), decided(&from));
        for (place, common) in (self.to_layers..).zip(&mut self.common) {
            if to_decided == Mask::ALL && (!from_wanted || from_decided == Mask::ALL) {
                break;
            }
            if let Some(record) = common.take(cluster)? {
                to.push((place, record));
                from.push((place, record));
                to_decided = to_decided.with(touched(&record));
                from_decided = from_decided.with(touched(&record));
            }
        }
        Ok((to, from))
    }

    /// The newest layer that only `to` has, of those with a record.
    pub(super) fn newest(&self, stack: &Stack) -> Option<usize> {
        stack.first().map(|(place, _)| *place).filter(|&place| place < self.to_layers)
    }

    /// The layer of `to` at a place.
    pub(super) fn layer(&self, place: usize) -> LayerId {
        self.chain[place]
    }

    /// Without the blocks that begin after the ends.
    pub(super) fn cut(&self, cluster: ClusterIndex, data: Mask, zero: Mask) -> (Mask, Mask) {
        let before = |end: u64| {
            let blocks = end.saturating_sub(cluster.start()).div_ceil(BLOCK_BYTES).min(16);
            Mask::of(0..u32::try_from(blocks).expect("at most a cluster's"))
        };
        (data.and(before(self.data_end)), zero.and(before(self.zero_end)))
    }
}
