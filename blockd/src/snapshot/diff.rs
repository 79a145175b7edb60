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
use super::sides::Sides;
use crate::catalog::meta::MetaError;
use crate::control::{ControlError, Pinned};
use crate::service::{DiffExtent, ExtentKind};
use crate::units::{BLOCK_BYTES, CLUSTER_BLOCKS, ClusterIndex, Mask};

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
    run(reader, from, to, visit).map_err(meta_error)
}

fn run(
    reader: &ClosedReader,
    from: Option<&Pinned>,
    to: &Pinned,
    visit: &mut dyn FnMut(DiffExtent) -> bool,
) -> Result<(), MetaError> {
    let mut sides = Sides::new(&reader.meta, from, to, ClusterIndex(0))?;
    let zero_end = to.size.min(from.map_or(0, |from| from.size));
    let mut runs = Runs { last: None, visit, data_end: to.size, zero_end };
    while let Some((cluster, stack)) = sides.next()? {
        let (data, zero) = sides.differing(cluster, &stack)?;
        if !runs.add(cluster, data, zero) {
            return Ok(());
        }
    }
    runs.finish();
    Ok(())
}

/// Joins extents that follow each other.
struct Runs<'a> {
    last: Option<DiffExtent>,
    visit: &'a mut dyn FnMut(DiffExtent) -> bool,
    /// There is nothing after the end of `to`, and nothing but zeroes after that of `from`.
    data_end: u64,
    zero_end: u64,
}

impl Runs<'_> {
    fn add(&mut self, cluster: ClusterIndex, data: Mask, zero: Mask) -> bool {
        let mut block = 0;
        while block < CLUSTER_BLOCKS {
            let (mask, kind) =
                if data.has(block) { (data, ExtentKind::Data) } else { (zero, ExtentKind::Zero) };
            let (end, inside) = if mask.has(block) { mask.run(block) } else { data.with(zero).run(block) };
            if inside && !self.add_run(cluster, block..end, kind) {
                return false;
            }
            block = end;
        }
        true
    }

    /// Cuts at the ends, which need not be those of blocks.
    fn add_run(&mut self, cluster: ClusterIndex, blocks: std::ops::Range<u32>, kind: ExtentKind) -> bool {
        let at = |block: u32| cluster.start() + u64::from(block) * BLOCK_BYTES;
        let end = match kind {
            ExtentKind::Data => self.data_end,
            ExtentKind::Zero => self.zero_end,
        };
        let (offset, end) = (at(blocks.start), at(blocks.end).min(end));
        self.push(DiffExtent { offset, length: end - offset, kind })
    }

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
