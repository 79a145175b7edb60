//! A disk that does what a fuzzer says, and remembers everything.
//!
//! Operations complete in any order, move less than they were asked to, and fail; a failed write may have changed the beginning
//! of its range. There is no power cut here: what is durable when is the model test's.

use std::ops::Range;

use fixtures::nbd::codec::errno;
use nbd_server::disk::{Disk, DiskDone, DiskOp, DiskOpKind, ExportIndex};
use nbd_server::status::StatusExtents;
use nbd_server::wire::{Errno, allocation};

use crate::zeroes::{Zeroes, are_zeroes};

/// What is told to be allocated or not, as a whole.
const BLOCK_BYTES: usize = 4096;

/// How an operation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// All of it is done.
    Well,
    /// At most so many bytes are moved, perhaps none.
    Short(usize),
    /// The medium fails; a write has changed at most so many bytes.
    Broken(usize),
    /// There is no room, or no such operation.
    Refused,
}

/// A range of a file that has got another content.
#[derive(Debug)]
pub struct Change {
    /// When.
    pub time: u64,
    /// Which file.
    pub file: usize,
    /// Where.
    pub start: usize,
    /// What was there before.
    pub old: Vec<u8>,
}

struct Sync {
    file: usize,
    begun: u64,
    ended: u64,
    well: bool,
}

struct Failure {
    time: u64,
    file: usize,
    error: u32,
}

struct Pending {
    export: ExportIndex,
    op: DiskOp,
    begun: u64,
}

/// See the module. Times are those of [`FuzzDisk::at`].
pub struct FuzzDisk {
    files: Vec<Zeroes>,
    /// Transfers are multiples of this, bytes.
    align: usize,
    time: u64,
    pending: Vec<Pending>,
    changes: Vec<Change>,
    syncs: Vec<Sync>,
    failures: Vec<Failure>,
}

impl FuzzDisk {
    /// Files of zeroes.
    pub fn new(bytes: &[u64], align: u32) -> Self {
        Self {
            files: bytes.iter().map(|&bytes| Zeroes::new(bytes as usize)).collect(),
            align: align as usize,
            time: 0,
            pending: Vec::new(),
            changes: Vec::new(),
            syncs: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// What happens from now on happens then.
    pub fn at(&mut self, time: u64) {
        self.time = time;
    }

    /// Operations that have not ended.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Bytes of buffers that they hold, in blocks of powers of two.
    pub fn buffers(&self) -> usize {
        let bytes = |pending: &Pending| match &pending.op.kind {
            DiskOpKind::Read { buf, .. } | DiskOpKind::Write { buf, .. } => {
                buf.len().next_power_of_two().max(4096)
            }
            _ => 0,
        };
        self.pending.iter().map(bytes).sum()
    }

    /// Ends one of them; tells whether it has changed anything.
    pub fn complete(&mut self, which: usize, how: How) -> Option<(ExportIndex, DiskDone, bool)> {
        if self.pending.is_empty() {
            return None;
        }
        let Pending { export, mut op, begun } = self.pending.swap_remove(which % self.pending.len());
        let (file, changes) = (op.file.0 as usize, self.changes.len());
        let result = self.carry_out(file, &mut op.kind, begun, how);
        if let Err(error) = result {
            self.fail(file, error);
        }
        Some((export, DiskDone { op, result }, self.changes.len() > changes))
    }

    fn fail(&mut self, file: usize, error: Errno) {
        self.failures.push(Failure { time: self.time, file, error: error.to_wire() });
    }

    fn carry_out(
        &mut self,
        file: usize,
        kind: &mut DiskOpKind,
        begun: u64,
        how: How,
    ) -> Result<usize, Errno> {
        match kind {
            DiskOpKind::Read { offset, done, buf } => {
                let (bytes, error) = self.share(file, how, buf.len() - *done);
                let from = *offset as usize + *done;
                let range = self.check(file, from..from + bytes);
                buf[*done..*done + bytes].copy_from_slice(&self.files[file][range]);
                error.map_or(Ok(bytes), |_| Err(Errno::Io))
            }
            DiskOpKind::Write { offset, done, buf } => {
                let (bytes, error) = self.share(file, how, buf.len() - *done);
                self.change(file, *offset as usize + *done, &buf[*done..*done + bytes]);
                error.map_or(Ok(bytes), Err)
            }
            DiskOpKind::Zero { offset, length, .. } => {
                let error =
                    if how == How::Refused { Some(Errno::NotSup) } else { self.share(file, how, 0).1 };
                if let Some(error) = error {
                    return Err(error);
                }
                self.change(file, *offset as usize, &vec![0; *length as usize]);
                Ok(0)
            }
            DiskOpKind::Sync => {
                let well = matches!(how, How::Well | How::Short(_));
                self.syncs.push(Sync { file, begun, ended: self.time, well });
                if well { Ok(0) } else { Err(Errno::Io) }
            }
            DiskOpKind::Allocation { offset, length, extents } => {
                // Questions need not be aligned.
                let range = *offset as usize..(*offset + *length) as usize;
                tell(range.start, &self.files[file][range], extents);
                if matches!(how, How::Broken(_)) { Err(Errno::Io) } else { Ok(0) }
            }
            DiskOpKind::WillNeed { .. } | DiskOpKind::WriteSoon { .. } => Ok(0),
        }
    }

    /// How much of a transfer is done, and what is said of it.
    fn share(&mut self, file: usize, how: How, bytes: usize) -> (usize, Option<Errno>) {
        let part = |most: usize| most.min(bytes) / self.align * self.align;
        match how {
            How::Well => (bytes, None),
            How::Short(most) if part(most) == 0 && bytes > 0 => {
                // Nothing moved: that is the medium's failure, too.
                self.fail(file, Errno::Io);
                (0, None)
            }
            How::Short(most) => (part(most), None),
            How::Broken(most) => (part(most), Some(Errno::Io)),
            How::Refused => (0, Some(Errno::NoSpace)),
        }
    }

    fn change(&mut self, file: usize, start: usize, new: &[u8]) {
        let range = self.check(file, start..start + new.len());
        let place = &mut self.files[file][range];
        if place != new {
            let old = place.to_vec();
            place.copy_from_slice(new);
            self.changes.push(Change { time: self.time, file, start, old });
        }
    }

    fn check(&self, file: usize, range: Range<usize>) -> Range<usize> {
        let aligned = range.start.is_multiple_of(self.align) && range.end.is_multiple_of(self.align);
        assert!(aligned && range.end <= self.files[file].len(), "{range:x?} of file {file}");
        range
    }

    /// The last change.
    pub fn last_change(&self) -> Option<&Change> {
        self.changes.last()
    }

    /// What is there now.
    pub fn content(&self, file: usize, range: Range<usize>) -> &[u8] {
        &self.files[file][range]
    }

    /// Changes that have touched a range since a time.
    fn touching(&self, file: usize, range: Range<usize>, since: u64) -> impl Iterator<Item = &Change> {
        let touches = move |change: &&Change| {
            change.file == file && change.start < range.end && range.start < change.start + change.old.len()
        };
        self.changes.iter().rev().take_while(move |change| change.time >= since).filter(touches)
    }

    /// Each of these bytes has been in its place since that time, if perhaps never all at once.
    pub fn held(&self, file: usize, start: usize, bytes: &[u8], since: u64) -> bool {
        self.files[file][start..start + bytes.len()] == *bytes
            || self.time_held(file, start, bytes, since).is_some()
    }

    /// When the last of these bytes has first been in its place since that time, if all of them have; perhaps never all at once.
    pub fn time_held(&self, file: usize, start: usize, bytes: &[u8], since: u64) -> Option<u64> {
        let end = start + bytes.len();
        let now = &self.files[file][start..end];
        let mut touching = self.touching(file, start..end, since);
        let (Some(change), None) = (touching.next(), touching.next()) else {
            return self.slowly_held(file, start, bytes, since);
        };
        // The usual case: nobody else has touched it.
        let (from, to) = (change.start.max(start), (change.start + change.old.len()).min(end));
        let was = change.old[from - change.start..to - change.start] == bytes[from - start..to - start];
        if now == bytes {
            return Some(if was { since } else { change.time });
        }
        self.slowly_held(file, start, bytes, since)
    }

    fn slowly_held(&self, file: usize, start: usize, bytes: &[u8], since: u64) -> Option<u64> {
        let end = start + bytes.len();
        let now = &self.files[file][start..end];
        if self.touching(file, start..end, since).next().is_none() {
            return (now == bytes).then_some(since);
        }
        // Going back from now: what was there, and the earliest time that it was right.
        let (mut there, mut first) = (now.to_vec(), vec![u64::MAX; bytes.len()]);
        for change in self.touching(file, start..end, since) {
            let (from, to) = (change.start.max(start), (change.start + change.old.len()).min(end));
            let inside = from - start..to - start;
            note(&there[inside.clone()], &bytes[inside.clone()], &mut first[inside.clone()], change.time);
            there[inside].copy_from_slice(&change.old[from - change.start..to - change.start]);
        }
        note(&there, bytes, &mut first, since);
        first.into_iter().max().filter(|&time| time != u64::MAX)
    }

    /// A sync that began at that time or later has ended well; and none had failed before the request came.
    pub fn was_synced(&self, file: usize, begun: u64, came: u64) -> bool {
        let mut own = self.syncs.iter().filter(|sync| sync.file == file);
        !own.clone().any(|sync| !sync.well && sync.ended < came)
            && own.any(|sync| sync.well && sync.begun >= begun)
    }

    /// A sync has failed, at any time.
    pub fn sync_has_failed(&self, file: usize) -> bool {
        self.syncs.iter().any(|sync| sync.file == file && !sync.well)
    }

    /// An operation has ended with that error since.
    pub fn failed_since(&self, file: usize, error: u32, since: u64) -> bool {
        let of_all =
            |failure: &Failure| failure.file == file && failure.error == error && failure.time >= since;
        debug_assert!(matches!(error, errno::EIO | errno::ENOSPC | errno::ENOTSUP));
        self.failures.iter().any(of_all)
    }
}

impl Disk for FuzzDisk {
    fn submit(&mut self, export: ExportIndex, op: DiskOp) {
        self.pending.push(Pending { export, op, begun: self.time });
    }
}

/// Notes the time where what was there was right.
fn note(there: &[u8], right: &[u8], first: &mut [u64], time: u64) {
    if there == right {
        return first.fill(time);
    }
    for (first, _) in
        first.iter_mut().zip(there.iter().zip(right)).filter(|(_, (there, right))| there == right)
    {
        *first = time;
    }
}

/// Says of each block whether it is zero, as far as it is in the range, which begins at `start`.
fn tell(start: usize, mut bytes: &[u8], extents: &mut StatusExtents) {
    let mut at = start;
    while !bytes.is_empty() {
        let (block, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - at % BLOCK_BYTES));
        let zero = are_zeroes(block);
        extents.push(block.len() as u64, if zero { allocation::HOLE | allocation::ZERO } else { 0 });
        (at, bytes) = (at + block.len(), rest);
    }
}
