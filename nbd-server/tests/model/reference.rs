//! What a disk may hold, by the protocol's rules alone.
//!
//! The unit is a *cell* of 128 bytes; every write fills its cells with a stamp of its own, zeroing with
//! 0. For each cell the reference keeps the set of stamps that a read may see now (a register that
//! overlapping operations have left undecided holds several) and the set that may be there after a power
//! cut. Invariants checked, by their names in the list of invariants:
//!
//! - D1: a read sees a value that the cell may have had between its issue and its reply; what is said to be zero is one
//!   that a read might have found so.
//! - D2, D3: after a FLUSH or FUA was answered, a cut may only bring back what that covered, or newer.
//! - D4: after a cut each cell holds a value of its set, and no 4 KiB block that was only ever written whole
//!   is torn.
//! - D5: what was never written, trimmed or zeroed reads as zero.
//! - D6: after a FLUSH or FUA failed with a failed sync, none succeeds any more.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use fixtures::sim::BLOCK_BYTES;

/// Bytes of a cell.
pub(crate) const CELL_BYTES: usize = 128;
/// Cells of a 4 KiB block.
pub(crate) const BLOCK_CELLS: usize = BLOCK_BYTES / CELL_BYTES;

/// The flag of `base:allocation` for what reads as zero.
const ZERO: u64 = 2;

pub(crate) type Stamp = u64;
type Stamps = BTreeSet<Stamp>;

struct Cell {
    now: Stamps,
    after_cut: Stamps,
}

/// A change that was issued and not answered.
struct Change {
    cells: Range<usize>,
    stamp: Stamp,
    /// For each cell, stamps of changes that were in flight at the same time.
    overlapped: Vec<Stamps>,
}

/// A read that was issued and not answered: what each cell may show.
struct Read {
    cells: Range<usize>,
    allowed: Vec<Stamps>,
}

/// A flush that was issued and not answered: what a cut may bring back once it is.
struct Flush {
    allowed: Vec<Stamps>,
}

/// See the module.
pub(crate) struct Reference {
    cells: Vec<Cell>,
    changes: BTreeMap<u64, Change>,
    reads: BTreeMap<u64, Read>,
    flushes: BTreeMap<u64, Flush>,
    /// Blocks that were written in part since the last cut: they may be torn.
    parted: Vec<bool>,
}

/// The bytes of a cell with a stamp.
pub(crate) fn fill(stamp: Stamp) -> [u8; CELL_BYTES] {
    let mut bytes = [0; CELL_BYTES];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&stamp.to_le_bytes());
    }
    bytes
}

/// The stamp of a cell's bytes, if they are all of one.
fn stamp(bytes: &[u8]) -> Result<Stamp, String> {
    let first = Stamp::from_le_bytes(bytes[..8].try_into().map_err(|_| "short cell")?);
    if bytes == fill(first) { Ok(first) } else { Err(format!("a cell is torn: {bytes:02x?}")) }
}

impl Reference {
    /// All cells zero and durable.
    pub(crate) fn new(cells: usize) -> Self {
        let cell = || Cell { now: [0].into(), after_cut: [0].into() };
        Self {
            cells: (0..cells).map(|_| cell()).collect(),
            changes: BTreeMap::new(),
            reads: BTreeMap::new(),
            flushes: BTreeMap::new(),
            parted: vec![false; cells / BLOCK_CELLS],
        }
    }

    fn in_flight(&self, cell: usize) -> impl Iterator<Item = Stamp> + '_ {
        self.changes.values().filter(move |c| c.cells.contains(&cell)).map(|c| c.stamp)
    }

    fn possible_now(&self, cell: usize) -> Stamps {
        self.cells[cell].now.iter().copied().chain(self.in_flight(cell)).collect()
    }

    pub(crate) fn issue_change(&mut self, cookie: u64, cells: Range<usize>, stamp: Stamp) {
        let overlapped = cells.clone().map(|cell| self.in_flight(cell).collect()).collect();
        for other in self.changes.values_mut() {
            for cell in overlap(&other.cells, &cells) {
                other.overlapped[cell - other.cells.start].insert(stamp);
            }
        }
        for read in self.reads.values_mut() {
            for cell in overlap(&read.cells, &cells) {
                read.allowed[cell - read.cells.start].insert(stamp);
            }
        }
        for cell in cells.clone() {
            self.cells[cell].after_cut.insert(stamp);
            for flush in self.flushes.values_mut() {
                flush.allowed[cell].insert(stamp);
            }
            let block = cell / BLOCK_CELLS * BLOCK_CELLS;
            let whole = cells.start <= block && cells.end >= block + BLOCK_CELLS;
            self.parted[cell / BLOCK_CELLS] |= !whole;
        }
        self.changes.insert(cookie, Change { cells, stamp, overlapped });
    }

    pub(crate) fn issue_read(&mut self, cookie: u64, cells: Range<usize>) {
        let allowed = cells.clone().map(|cell| self.possible_now(cell)).collect();
        self.reads.insert(cookie, Read { cells, allowed });
    }

    pub(crate) fn issue_flush(&mut self, cookie: u64) {
        let allowed = (0..self.cells.len()).map(|cell| self.possible_now(cell)).collect();
        self.flushes.insert(cookie, Flush { allowed });
    }

    /// A change was answered. `durable`: with FUA.
    pub(crate) fn change_done(&mut self, cookie: u64, ok: bool, durable: bool) {
        let Some(change) = self.changes.remove(&cookie) else { return };
        for (cell, overlapped) in change.cells.clone().zip(&change.overlapped) {
            let after: Stamps = overlapped.iter().copied().chain([change.stamp]).collect();
            let state = &mut self.cells[cell];
            if !ok {
                // A failed change may have changed any part of what it was to change.
                state.now.extend(after);
                continue;
            }
            if durable {
                state.after_cut.retain(|stamp| after.contains(stamp));
            }
            state.now = after;
        }
    }

    pub(crate) fn read_done(&mut self, cookie: u64, result: Option<&[u8]>) -> Result<(), String> {
        let Some(read) = self.reads.remove(&cookie) else { return Ok(()) };
        let Some(bytes) = result else { return Ok(()) };
        for ((cell, allowed), bytes) in read.cells.clone().zip(&read.allowed).zip(bytes.chunks(CELL_BYTES)) {
            let seen = stamp(bytes)?;
            if !allowed.contains(&seen) {
                return Err(format!("D1: read {cookie} saw {seen} in cell {cell}, allowed {allowed:?}"));
            }
        }
        Ok(())
    }

    /// What was told of a range, length and flags of each extent: where it is said to be zero, a read that was
    /// issued and answered with the question may have seen zeroes. To say less is always right.
    pub(crate) fn status_done(&mut self, cookie: u64, extents: &[(u64, u64)]) -> Result<(), String> {
        let Some(read) = self.reads.remove(&cookie) else { return Ok(()) };
        let mut start = read.cells.start * CELL_BYTES;
        for &(length, flags) in extents {
            let end = start + usize::try_from(length).map_err(|error| error.to_string())?;
            let told =
                (start / CELL_BYTES).max(read.cells.start)..end.div_ceil(CELL_BYTES).min(read.cells.end);
            for cell in told.filter(|_| flags & ZERO != 0) {
                let allowed = &read.allowed[cell - read.cells.start];
                if !allowed.contains(&0) {
                    return Err(format!(
                        "status {cookie}: cell {cell} is said to be zero, may be {allowed:?}"
                    ));
                }
            }
            start = end;
        }
        Ok(())
    }

    pub(crate) fn flush_done(&mut self, cookie: u64, ok: bool) {
        let Some(flush) = self.flushes.remove(&cookie) else { return };
        if ok {
            for (cell, allowed) in self.cells.iter_mut().zip(flush.allowed) {
                cell.after_cut.retain(|stamp| allowed.contains(stamp));
            }
        }
    }

    /// The power went: everything in flight is over, and the disk holds `contents`.
    pub(crate) fn power_cut(&mut self, contents: &[u8]) -> Result<(), String> {
        self.changes.clear();
        self.reads.clear();
        self.flushes.clear();
        for (at, (cell, bytes)) in self.cells.iter_mut().zip(contents.chunks(CELL_BYTES)).enumerate() {
            let seen = stamp(bytes)?;
            if !cell.after_cut.contains(&seen) {
                return Err(format!("D4: after a cut cell {at} holds {seen}, allowed {:?}", cell.after_cut));
            }
            cell.now = [seen].into();
            cell.after_cut = [seen].into();
        }
        self.check_torn(contents)
    }

    fn check_torn(&mut self, contents: &[u8]) -> Result<(), String> {
        for (block, bytes) in contents.chunks(BLOCK_BYTES).enumerate() {
            let uniform = bytes.chunks(CELL_BYTES).all(|cell| cell == &bytes[..CELL_BYTES]);
            if !self.parted[block] && !uniform {
                return Err(format!("D4: block {block} was only written whole and is torn"));
            }
            self.parted[block] = !uniform;
        }
        Ok(())
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
