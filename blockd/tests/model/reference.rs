//! What a volume or snapshot may read as: by 512-byte cell, every value that was written, and when.
//!
//! Time is a counter of events. A write is a candidate from when it was issued. It is certainly overwritten when
//! another write was issued after its answer and is itself answered. Whatever is not certainly overwritten may be
//! read.

use std::collections::BTreeMap;

/// Bytes of a cell.
pub(crate) const CELL_BYTES: u64 = 512;
/// "Not yet", and "never".
pub(crate) const NEVER: u64 = u64::MAX;

/// A value that a cell may have: of one write, or of the beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// 0: zeroes.
    pub(crate) stamp: u64,
    pub(crate) issued: u64,
    /// When its success was answered.
    pub(crate) answered: u64,
    /// When it had ended, in whatever way: it changes nothing afterwards.
    pub(crate) ended: u64,
    /// When a FLUSH or FUA that covers it was answered.
    pub(crate) durable: u64,
}

impl Candidate {
    fn settled(stamp: u64, now: u64) -> Self {
        Self { stamp, issued: now, answered: now, ended: now, durable: now }
    }
}

/// The candidates of one cell, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Cell(pub Vec<Candidate>);

impl Cell {
    /// Whether `old` is certainly overwritten by something that counts.
    fn is_dead(&self, old: &Candidate, counts: impl Fn(&Candidate) -> bool) -> bool {
        self.0.iter().any(|new| counts(new) && old.ended < new.issued)
    }

    /// What a read may return that began at `from` and ended at `to`.
    pub(crate) fn readable(&self, from: u64, to: u64) -> Vec<u64> {
        self.living(to, |new| new.answered < from)
    }

    /// What may be found after a crash.
    pub(crate) fn survivors(&self) -> Vec<u64> {
        self.living(NEVER, |new| new.durable != NEVER)
    }

    /// What may be found after the process was killed, and has left behind what it had answered.
    pub(crate) fn left_behind(&self) -> Vec<u64> {
        self.living(NEVER, |new| new.answered != NEVER)
    }

    fn living(&self, to: u64, counts: impl Fn(&Candidate) -> bool + Copy) -> Vec<u64> {
        let alive = self.0.iter().filter(|c| c.issued < to && !self.is_dead(c, counts));
        alive.map(|candidate| candidate.stamp).collect()
    }

    /// Forgets what nothing can show any more: overwritten durably.
    fn prune(&mut self, horizon: u64) {
        if self.0.len() > 4 {
            let keep: Vec<bool> =
                self.0.iter().map(|c| !self.is_dead(c, |new| new.durable < horizon)).collect();
            let mut keep = keep.into_iter();
            self.0.retain(|_| keep.next().expect("one each"));
        }
    }
}

/// A volume's cells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) cells: Vec<Cell>,
}

impl Disk {
    pub(crate) fn zeroes(size: u64, now: u64) -> Self {
        Self::known(vec![0; cells(size)], now)
    }

    pub(crate) fn known(stamps: Vec<u64>, now: u64) -> Self {
        Self { cells: stamps.into_iter().map(|stamp| Cell(vec![Candidate::settled(stamp, now)])).collect() }
    }

    /// The zeroes at the end were always there: nobody could see them.
    pub(crate) fn grow(&mut self, size: u64) {
        self.cells.resize(cells(size), Cell(vec![Candidate::settled(0, 0)]));
    }

    pub(crate) fn issue(&mut self, range: std::ops::Range<usize>, stamp: u64, now: u64) {
        for cell in &mut self.cells[range] {
            cell.0.push(Candidate { stamp, issued: now, answered: NEVER, ended: NEVER, durable: NEVER });
        }
    }

    pub(crate) fn end(
        &mut self,
        range: std::ops::Range<usize>,
        issued: u64,
        now: u64,
        ok: bool,
        durable: bool,
    ) {
        for cell in &mut self.cells[range] {
            let Some(candidate) = cell.0.iter_mut().find(|c| c.issued == issued) else { continue };
            candidate.ended = now;
            candidate.answered = if ok { now } else { NEVER };
            candidate.durable = if ok && durable { now } else { NEVER };
        }
    }

    /// A FLUSH that was issued at `issued` was answered.
    pub(crate) fn flushed(&mut self, issued: u64, now: u64, horizon: u64) {
        for cell in &mut self.cells {
            for candidate in &mut cell.0 {
                if candidate.answered < issued && candidate.durable == NEVER {
                    candidate.durable = now;
                }
            }
            cell.prune(horizon);
        }
    }
}

/// What a snapshot may show.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The volume's cells when the cut ended (or when the power went, if nobody was told).
    pub(crate) disk: Disk,
    pub(crate) requested: u64,
    pub(crate) answered: u64,
    /// What it showed when it was first read: what it must show for ever.
    pub(crate) content: Option<Vec<u64>>,
    /// Which cut it belongs to.
    pub(crate) cut: u64,
}

impl Snapshot {
    /// Checks what was read, and remembers it. Returns the latest write that is seen in it.
    pub(crate) fn check(&mut self, name: &str, found: &[u64]) -> u64 {
        if let Some(content) = &self.content {
            assert_eq!(content, found, "snapshot {name} has changed");
        }
        let mut latest = 0;
        for (at, (cell, &stamp)) in self.disk.cells.iter().zip(found).enumerate() {
            let allowed = cell.readable(self.requested, self.answered);
            assert!(allowed.contains(&stamp), "snapshot {name}, cell {at}: {stamp}, not one of {allowed:?}");
            let seen = cell.0.iter().filter(|candidate| candidate.stamp == stamp).map(|c| c.issued);
            latest = latest.max(seen.min().unwrap_or(0));
        }
        assert_eq!(found.len(), self.disk.cells.len(), "snapshot {name}: size");
        self.content = Some(found.to_vec());
        latest
    }

    /// Something that was issued at `latest` is in the cut: so is everything that was answered before.
    pub(crate) fn check_causality(&self, name: &str, latest: u64) {
        let Some(content) = &self.content else { return };
        for (at, (cell, &stamp)) in self.disk.cells.iter().zip(content).enumerate() {
            let allowed = cell.readable(latest.max(self.requested), NEVER);
            assert!(
                allowed.contains(&stamp),
                "cut of {name}, cell {at}: {stamp} is older than what it goes with"
            );
        }
    }
}

/// Everything that exists, by name.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) volumes: BTreeMap<String, Disk>,
    pub(crate) snapshots: BTreeMap<(String, String), Snapshot>,
}

pub(crate) fn cells(size: u64) -> usize {
    usize::try_from(size / CELL_BYTES).expect("a small volume")
}
