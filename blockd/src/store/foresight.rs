//! Cuts that come at regular intervals are foreseen, and what they will have to sync is written before.
//!
//! ```text
//!   cut ────────────────── interval ──────────────────► cut expected
//!                                            │◄─ lead ─►│◄─ lead ─►│
//!                                            ▪  ▪  ▪  ▪ ▪  ▪  ▪  ▪   passes, until the cut comes
//! ```
//!
//! A snapshot is durable when it is answered, so it waits for a sync of all that clients have in the page cache: of one
//! that never flushes, all it wrote since the kernel last looked. And clients wait for that sync, or for the journal of
//! the file system, which does. A **pass** has the kernel begin to write a part of it. The first **sweep** over all of it
//! takes its time, the next one has what has become dirty meanwhile, and so on, each time less, as in pre-copy of memory.
//! A block that is written again and again goes to the disk with each sweep, and without this once: so there are none
//! until shortly before.
//!
//! Passes are advice to the kernel, and change nothing of what is durable when. Where nothing is dirty they cost next to
//! nothing; where a cut was the last of its kind, those of one expectation.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use nbd_server::connection::Nanos;
use nbd_server::disk::{DiskOp, DiskOpKind};
use nbd_server::export::Io;
use smallvec::SmallVec;

use super::Store;
use crate::units::VolumeId;

/// Tag of a pass's operations.
pub(super) const TAG_PASS: u64 = u64::MAX - 4;
/// Passes begin this part of the interval before the cut is expected.
const LEAD_PARTS: u32 = 4;
/// But no earlier: what is written then is written again the more often.
const LEAD_MAX: Duration = Duration::from_secs(1);
/// From one pass to the next. What becomes dirty meanwhile is what a cut has to sync.
const PASS_EVERY: Duration = Duration::from_millis(10);
/// Passes of the first sweeps; later ones have one. Half a second for the first: all at once it would be what it is to
/// prevent, only earlier.
const SWEEP_PASSES: [usize; 2] = [50, 10];
/// What was written is known in regions of this size: a pass of one has at most so much to write.
const REGION_BYTES: u64 = 4 << 20;
/// Regions of a pass, at most: each may be an operation.
const REGIONS_MAX: usize = 64;
/// Cuts that are further apart are no rhythm: they are not made to so small a part of it.
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// The last cut of a volume, and how long after the one before it came.
#[derive(Debug, Clone, Copy)]
struct Rhythm {
    last: Nanos,
    interval: Option<Duration>,
}

impl Rhythm {
    /// When there are passes for the next cut.
    fn window(&self) -> Option<(Nanos, Nanos)> {
        let interval = self.interval?;
        let lead = (interval / LEAD_PARTS).min(LEAD_MAX);
        Some((self.last.after(interval - lead), self.last.after(interval + lead)))
    }
}

/// A region of a file of the pool.
type Region = (usize, u64);

/// The regions that were written to: by file, a bit each.
#[derive(Default)]
struct Written {
    files: Vec<Vec<u64>>,
}

impl Written {
    fn add(&mut self, file: usize, range: &Range<u64>) {
        if self.files.len() <= file {
            self.files.resize(file + 1, Vec::new());
        }
        let words = &mut self.files[file];
        for region in range.start / REGION_BYTES..range.end.div_ceil(REGION_BYTES) {
            let word = usize::try_from(region / 64).expect("a file has few regions");
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (region % 64);
        }
    }

    /// All of them, in order; from now on there are none.
    fn take(&mut self) -> VecDeque<Region> {
        let mut regions = VecDeque::new();
        for (file, words) in self.files.iter_mut().enumerate() {
            for (index, word) in (0..).zip(words.iter_mut()) {
                let set = (0..64).filter(|bit| *word >> bit & 1 == 1);
                regions.extend(set.map(|bit| (file, index * 64 + bit)));
                *word = 0;
            }
        }
        regions
    }
}

/// One time over everything that was written.
#[derive(Default)]
struct Sweep {
    /// What is left of it.
    regions: VecDeque<Region>,
    /// Regions a pass.
    each: usize,
    /// So many came before, for the same cut.
    earlier: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Foresight {
    rhythms: BTreeMap<VolumeId, Rhythm>,
    /// When the next pass is due. Asked in every turn of the reactor.
    next: Option<Nanos>,
    written: Written,
    sweep: Sweep,
}

impl Foresight {
    /// A volume has been cut.
    pub(super) fn cut(&mut self, volume: VolumeId, now: Nanos) {
        self.rhythms.retain(|_, rhythm| rhythm.last.until(now) <= INTERVAL_MAX);
        let interval = self.rhythms.get(&volume).map(|rhythm| rhythm.last.until(now));
        self.rhythms.insert(volume, Rhythm { last: now, interval });
        self.written = Written::default();
        self.sweep = Sweep::default();
        self.plan(now);
    }

    /// A file of the pool is written to.
    pub(super) fn wrote(&mut self, file: usize, range: &Range<u64>) {
        if self.next.is_some() {
            self.written.add(file, range);
        }
    }

    fn is_due(&self, now: Nanos) -> bool {
        self.next.is_some_and(|next| next <= now)
    }

    /// The next pass is the first that is due at `from` or later.
    fn plan(&mut self, from: Nanos) {
        let windows = self.rhythms.values().filter_map(Rhythm::window);
        self.next = windows.filter(|(_, end)| from <= *end).map(|(begin, _)| begin.max(from)).min();
    }

    /// What a pass has written, by file.
    fn pass(&mut self) -> SmallVec<[(usize, Range<u64>); 4]> {
        let sweep = &mut self.sweep;
        if sweep.regions.is_empty() {
            let passes = SWEEP_PASSES.get(sweep.earlier).copied().unwrap_or(1);
            sweep.regions = self.written.take();
            sweep.each = sweep.regions.len().div_ceil(passes).min(REGIONS_MAX);
            sweep.earlier += usize::from(!sweep.regions.is_empty());
        }
        let mut ranges = SmallVec::new();
        let each = sweep.each.min(sweep.regions.len());
        for (file, region) in sweep.regions.drain(..each) {
            join(&mut ranges, file, region * REGION_BYTES..(region + 1) * REGION_BYTES);
        }
        ranges
    }
}

/// Adds a range, to the last one if it follows that.
fn join(ranges: &mut SmallVec<[(usize, Range<u64>); 4]>, file: usize, range: Range<u64>) {
    match ranges.last_mut() {
        Some((last, before)) if *last == file && before.end == range.start => before.end = range.end,
        _ => ranges.push((file, range)),
    }
}

impl Store {
    /// Has the kernel begin to write what an expected cut would have to sync. Returns when to be called again.
    pub(super) fn foresee_cuts(&mut self, io: &mut Io<'_>) -> Option<Nanos> {
        if self.foresight.is_due(self.now) {
            self.foresight.plan(self.now.after(PASS_EVERY));
            // Not more at once than the disk takes.
            if self.writes_soon == 0 {
                self.write_soon(io);
            }
        }
        self.foresight.next
    }

    fn write_soon(&mut self, io: &mut Io<'_>) {
        for (file, range) in self.foresight.pass() {
            let file = self.pool.files()[file].file;
            let kind = DiskOpKind::WriteSoon { offset: range.start, length: range.end - range.start };
            io.submit(DiskOp { tag: TAG_PASS, file, kind });
            self.writes_soon += 1;
        }
    }
}

#[cfg(test)]
mod tests;
