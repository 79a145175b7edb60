//! What differs between two snapshots.
//!
//! ```text
//!    from:  f2 ─► f1 ─┐                 A block differs only if a layer above the common ancestor touched it,
//!                     ├─► c2 ─► c1      on either side. Where `to` comes straight after `from` there is no f:
//!      to:  t2 ─► t1 ─┘                 only its own layers are read.
//! ```
//!
//! Blocks that only the other side touched show in `to` what the common layers have: these are looked up.

use super::meta_error;
use super::reader::ClosedReader;
use super::records::{Cursor, Merge, Stack, touched};
use crate::catalog::format::MapRecord;
use crate::catalog::meta::MetaError;
use crate::control::{ControlError, Pinned};
use crate::service::{DiffExtent, ExtentKind};
use crate::units::{BLOCK_BYTES, ClusterIndex, LayerId, Mask};

/// Records of a common layer that are read at a time: they lie around a cluster that was asked for.
const LOOKUP_RECORDS: usize = if cfg!(test) { 2 } else { 64 };

/// Shows the extents in which two snapshots may differ, in order and exact to 4 KiB, until `visit` says `false`:
/// with the content of `to` in the extents of data, and zeroes in the others, `from` (zeroes after its end, or cut
/// to the end of `to`) becomes `to`. Without `from`, everything that shows data in `to`. Both are pinned.
///
/// The cost is that of the layers that only one of them has.
///
/// # Errors
/// `Io`, `Damaged`.
pub fn diff(
    reader: &ClosedReader,
    from: Option<&Pinned>,
    to: &Pinned,
    visit: &mut dyn FnMut(DiffExtent) -> bool,
) -> Result<(), ControlError> {
    Diff::new(reader, from, to).and_then(|diff| diff.run(visit)).map_err(meta_error)
}

struct Diff<'a> {
    merge: Merge<'a>,
    /// The first so many layers of the merge are those of `to`.
    to_layers: usize,
    common: Vec<Cursor<'a, MapRecord>>,
    /// Zeroes matter below.
    from_size: u64,
    to_size: u64,
}

impl<'a> Diff<'a> {
    fn new(reader: &'a ClosedReader, from: Option<&Pinned>, to: &Pinned) -> Result<Self, MetaError> {
        let meta = &*reader.meta;
        let from_chain: &[LayerId] = from.map_or(&[], |from| &from.chain);
        let same = |(a, b): &(&LayerId, &LayerId)| a == b;
        let shared = from_chain.iter().rev().zip(to.chain.iter().rev()).take_while(same).count();
        let (to_own, common) = to.chain.split_at(to.chain.len() - shared);
        let own = [to_own, &from_chain[..from_chain.len() - shared]].concat();
        Ok(Self {
            merge: Merge::new(meta, &own)?,
            to_layers: to_own.len(),
            common: common.iter().map(|&layer| Cursor::new(meta, layer, LOOKUP_RECORDS)).collect(),
            from_size: from.map_or(0, |from| from.size),
            to_size: to.size,
        })
    }

    fn run(mut self, visit: &mut dyn FnMut(DiffExtent) -> bool) -> Result<(), MetaError> {
        let mut runs = Runs { last: None, visit };
        while let Some((cluster, stack)) = self.merge.next()? {
            if cluster.start() >= self.to_size {
                break;
            }
            let (data, zero) = self.differing(cluster, &stack)?;
            if !self.add(cluster, data, zero, &mut runs) {
                return Ok(());
            }
        }
        runs.finish();
        Ok(())
    }

    /// The blocks that may differ and show data in `to`, and those that show zeroes.
    fn differing(&mut self, cluster: ClusterIndex, stack: &Stack) -> Result<(Mask, Mask), MetaError> {
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
        Ok((data, all.without(data)))
    }

    fn add(&self, cluster: ClusterIndex, data: Mask, zero: Mask, runs: &mut Runs<'_>) -> bool {
        let mut block = 0;
        while block < crate::units::CLUSTER_BLOCKS {
            let (mask, kind) =
                if data.has(block) { (data, ExtentKind::Data) } else { (zero, ExtentKind::Zero) };
            let (end, inside) = if mask.has(block) { mask.run(block) } else { data.with(zero).run(block) };
            if inside && !self.add_run(cluster, block..end, kind, runs) {
                return false;
            }
            block = end;
        }
        true
    }

    /// Cuts at the ends: there is nothing after that of `to`, and nothing but zeroes after that of `from`.
    fn add_run(
        &self,
        cluster: ClusterIndex,
        blocks: std::ops::Range<u32>,
        kind: ExtentKind,
        runs: &mut Runs<'_>,
    ) -> bool {
        let at = |block: u32| cluster.start() + u64::from(block) * BLOCK_BYTES;
        let end = match kind {
            ExtentKind::Data => self.to_size,
            ExtentKind::Zero => self.to_size.min(self.from_size),
        };
        let (start, end) = (at(blocks.start), at(blocks.end).min(end));
        start >= end || runs.push(DiffExtent { offset: start, length: end - start, kind })
    }
}

/// Joins extents that follow each other.
struct Runs<'a> {
    last: Option<DiffExtent>,
    visit: &'a mut dyn FnMut(DiffExtent) -> bool,
}

impl Runs<'_> {
    fn push(&mut self, next: DiffExtent) -> bool {
        match &mut self.last {
            Some(last) if last.kind == next.kind && last.offset + last.length == next.offset => {
                last.length += next.length;
                true
            }
            last => last.replace(next).is_none_or(|ended| (self.visit)(ended)),
        }
    }

    fn finish(self) {
        if let Some(last) = self.last {
            // Nothing follows: whether more is wanted does not matter.
            (self.visit)(last);
        }
    }
}
