//! A plain file or block device as an export. A state machine: no I/O here.
//!
//! **Data flow.** A read or write whose range fits the medium's alignment is one disk operation on the
//! request's own buffer. The rest (only with direct I/O, or at the edges of a zeroed range on a block
//! device) goes through whole blocks: read them, change the bytes, write them back.
//!
//! **Order.** Requests may overlap and run in any order, as the protocol allows. Only a
//! read-modify-write needs more: while it is under way nothing else may change its blocks, or the old
//! bytes that it read would be written over somebody's answered write. Such jobs are *exclusive* on
//! their blocks; others wait in order of arrival.
//!
//! **What is durable when.** A write is answered when the medium took it; it is durable after the next
//! `Sync` that *starts* after that. FLUSH and FUA wait for such a `Sync`; at most one runs, and all that
//! ask meanwhile share the next (group commit). Since the file is one and the state is one, a FLUSH
//! covers the writes of all connections (CAN_MULTI_CONN).
//!
//! **A failed sync is final.** Linux may drop the dirty pages whose write-back failed, so a later
//! success proves nothing: from the first failure on every FLUSH and FUA is answered EIO until the
//! server is restarted. Reads and plain writes go on.

use std::collections::VecDeque;
use std::ops::Range;

use slab::Slab;

use crate::disk::{DiskDone, DiskOp, DiskOpKind, FileId, Progress, ZeroMode, transfer_progress};
use crate::export::{Command, Export, Io, Payload, Request, RequestId};
use crate::reactor::buffer::Buf;
use crate::status::StatusExtents;
use crate::wire::Errno;

/// Zeroes are written in pieces of this size where the medium cannot make them itself.
const ZERO_PIECE_BYTES: u64 = 256 << 10;
/// Tag of the one sync operation; jobs are tagged with their place in the table.
const SYNC_TAG: u64 = u64::MAX;

/// What the export must know of its file.
#[derive(Clone, Copy, Debug)]
pub struct FileGeometry {
    /// Bytes served.
    pub size: u64,
    /// Transfers must be multiples of this, bytes: 1 through the page cache, the medium's block with
    /// direct I/O. Divides `size`.
    pub transfer_align: u32,
    /// Ranges that the medium zeroes by itself must be multiples of this, bytes; a multiple of
    /// `transfer_align`.
    pub zero_align: u32,
}

enum Task {
    /// `data` is the user's buffer when the blocks around it are read elsewhere.
    Read,
    /// `data` is the payload until it was merged or handed to the disk.
    Write {
        fua: bool,
    },
    /// Zeroes `at..end`, piece by piece.
    Zero {
        fua: bool,
        mode: ZeroMode,
        fast: bool,
        at: u64,
        end: u64,
    },
    Cache,
    /// So many contexts, all of them the allocation, which is all that a file knows.
    Allocation {
        one: bool,
        contexts: usize,
    },
}

struct Job {
    id: RequestId,
    offset: u64,
    length: u32,
    task: Task,
    data: Option<Buf>,
    /// Reads its blocks, changes them and writes them back: alone on them.
    exclusive: bool,
    started: bool,
}

impl Job {
    fn changes(&self) -> bool {
        matches!(self.task, Task::Write { .. } | Task::Zero { .. })
    }

    fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }
}

/// Who waits for the medium to make things durable.
#[derive(Default)]
struct SyncGate {
    running: bool,
    /// Answered when the running sync ends.
    covered: Vec<RequestId>,
    /// Asked after it began: covered by the next one.
    next: Vec<RequestId>,
    failed: bool,
}

/// See the module.
pub struct FileExport {
    file: FileId,
    geometry: FileGeometry,
    jobs: Slab<Job>,
    waiting: VecDeque<usize>,
    exclusive_jobs: usize,
    sync: SyncGate,
    /// The medium has said that it cannot zero by itself: [punch, keep allocated].
    cannot_zero: [bool; 2],
}

impl FileExport {
    /// An export of `file`.
    ///
    /// # Panics
    /// When the geometry contradicts itself.
    pub fn new(file: FileId, geometry: FileGeometry) -> Self {
        assert!(geometry.transfer_align.is_power_of_two(), "{geometry:?}");
        assert!(geometry.zero_align.is_multiple_of(geometry.transfer_align), "{geometry:?}");
        assert!(geometry.size.is_multiple_of(u64::from(geometry.transfer_align)), "{geometry:?}");
        Self {
            file,
            geometry,
            jobs: Slab::new(),
            waiting: VecDeque::new(),
            exclusive_jobs: 0,
            sync: SyncGate::default(),
            cannot_zero: [false; 2],
        }
    }

    fn aligned(&self, range: &Range<u64>) -> bool {
        let align = u64::from(self.geometry.transfer_align);
        range.start.is_multiple_of(align) && range.end.is_multiple_of(align)
    }

    /// The blocks that a range touches.
    fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        let align = u64::from(self.geometry.transfer_align);
        range.start / align * align..range.end.next_multiple_of(align)
    }

    fn add(&mut self, request: &Request, task: Task, data: Option<Buf>, io: &mut Io<'_>) {
        let mut job = Job {
            id: request.id,
            offset: request.offset,
            length: request.length,
            task,
            data,
            exclusive: false,
            started: false,
        };
        job.exclusive = job.changes() && !self.aligned(&job.range());
        self.exclusive_jobs += usize::from(job.exclusive);
        let free = !job.changes() || (self.exclusive_jobs == 0 && self.waiting.is_empty());
        let key = self.jobs.insert(job);
        if free || !self.blocked(key, self.waiting.len()) {
            self.begin(key, io);
        } else {
            self.waiting.push_back(key);
        }
    }

    /// Does the job touch blocks that a running job, or one of the first `ahead` waiting ones, must have
    /// for itself (or that it must have for itself)?
    fn blocked(&self, key: usize, ahead: usize) -> bool {
        let job = &self.jobs[key];
        let mine = self.blocks(&job.range());
        let conflicts = |other: &Job| {
            let theirs = self.blocks(&other.range());
            (job.exclusive || other.exclusive) && mine.start < theirs.end && theirs.start < mine.end
        };
        let running = self.jobs.iter().any(|(_, other)| other.started && other.changes() && conflicts(other));
        running || self.waiting.iter().take(ahead).any(|&other| conflicts(&self.jobs[other]))
    }

    fn begin(&mut self, key: usize, io: &mut Io<'_>) {
        self.jobs[key].started = true;
        let job = &self.jobs[key];
        let range = job.range();
        match job.task {
            Task::Zero { .. } => self.next_zero(key, io),
            Task::Cache => {
                let kind = DiskOpKind::WillNeed { offset: range.start, length: range.end - range.start };
                self.submit(key, kind, io);
            }
            Task::Allocation { one, .. } => {
                let (offset, length) = (range.start, range.end - range.start);
                let extents = StatusExtents::new(length, one);
                self.submit(key, DiskOpKind::Allocation { offset, length, extents }, io);
            }
            Task::Read | Task::Write { .. } if !self.aligned(&range) => self.read_blocks(key, &range, io),
            Task::Read => {
                let kind = DiskOpKind::Read { offset: range.start, done: 0, buf: self.take_data(key) };
                self.submit(key, kind, io);
            }
            Task::Write { .. } => {
                let kind = DiskOpKind::Write { offset: range.start, done: 0, buf: self.take_data(key) };
                self.submit(key, kind, io);
            }
        }
    }

    fn take_data(&mut self, key: usize) -> Buf {
        self.jobs[key].data.take().expect("a transfer starts with its buffer")
    }

    fn submit(&mut self, key: usize, kind: DiskOpKind, io: &mut Io<'_>) {
        io.submit(DiskOp { tag: key as u64, file: self.file, kind });
    }

    /// Reads the blocks around an unaligned range, to answer from them or to change them.
    fn read_blocks(&mut self, key: usize, range: &Range<u64>, io: &mut Io<'_>) {
        let blocks = self.blocks(range);
        let bytes = usize::try_from(blocks.end - blocks.start).expect("a request's blocks fit memory");
        let kind = DiskOpKind::Read { offset: blocks.start, done: 0, buf: io.pool().take(bytes) };
        self.submit(key, kind, io);
    }

    /// Zeroes the next piece, or ends the job when there is none.
    fn next_zero(&mut self, key: usize, io: &mut Io<'_>) {
        let Task::Zero { mode, fast, at, end, .. } = self.jobs[key].task else { return };
        if at == end {
            return self.changed(key, io);
        }
        let align = u64::from(self.geometry.zero_align);
        let (first, last) = (at.next_multiple_of(align), end / align * align);
        if at != first || first >= last {
            return self.write_zeroes(key, at..end.min(at / align * align + align), io);
        }
        if !self.cannot_zero[mode as usize] {
            self.submit(key, DiskOpKind::Zero { offset: at, length: last - at, mode }, io);
        } else if fast {
            self.fail(key, Errno::NotSup, io);
        } else {
            self.write_zeroes(key, at..last.min(at + ZERO_PIECE_BYTES), io);
        }
    }

    fn write_zeroes(&mut self, key: usize, piece: Range<u64>, io: &mut Io<'_>) {
        if !self.aligned(&piece) {
            return self.read_blocks(key, &piece, io);
        }
        let bytes = usize::try_from(piece.end - piece.start).expect("a piece fits memory");
        let buf = io.pool().take_zeroed(bytes);
        self.submit(key, DiskOpKind::Write { offset: piece.start, done: 0, buf }, io);
    }

    fn read_done(&mut self, key: usize, offset: u64, mut buf: Buf, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        match (&job.task, job.data.take()) {
            (Task::Read, None) => self.answer(key, Ok(Payload::Data(buf)), io),
            (Task::Read, Some(mut user)) => {
                let from = usize::try_from(job.offset - offset).expect("inside one buffer");
                user.copy_from_slice(&buf[from..from + job.length as usize]);
                self.answer(key, Ok(Payload::Data(user)), io);
            }
            (Task::Zero { at, end, .. }, _) => {
                let last = offset + buf.len() as u64;
                let range = (at - offset) as usize..(end.min(&last) - offset) as usize;
                buf[range].fill(0);
                self.submit(key, DiskOpKind::Write { offset, done: 0, buf }, io);
            }
            (_, data) => {
                let from = usize::try_from(job.offset - offset).expect("inside one buffer");
                let data = data.expect("the payload waits for its blocks");
                buf[from..from + data.len()].copy_from_slice(&data);
                self.submit(key, DiskOpKind::Write { offset, done: 0, buf }, io);
            }
        }
    }

    fn write_done(&mut self, key: usize, offset: u64, bytes: usize, io: &mut Io<'_>) {
        if let Task::Zero { at, end, .. } = &mut self.jobs[key].task {
            *at = (offset + bytes as u64).min(*end);
            self.next_zero(key, io);
        } else {
            self.changed(key, io);
        }
    }

    fn zero_done(&mut self, key: usize, range: Range<u64>, result: Result<usize, Errno>, io: &mut Io<'_>) {
        let Task::Zero { mode, at, .. } = &mut self.jobs[key].task else { return };
        match result {
            Ok(_) => *at = range.end,
            Err(Errno::NotSup) => self.cannot_zero[*mode as usize] = true,
            Err(error) => return self.fail(key, error, io),
        }
        self.next_zero(key, io);
    }

    fn allocation_found(
        &mut self,
        key: usize,
        extents: StatusExtents,
        result: Result<usize, Errno>,
        io: &mut Io<'_>,
    ) {
        let Task::Allocation { contexts, .. } = self.jobs[key].task else { return };
        // A directory names the allocation once; whoever asks for it twice is told twice.
        let status = || vec![extents; contexts];
        self.answer(key, result.map(|_| Payload::Status(status())), io);
    }

    /// The medium has taken a change: answer, or make it durable first.
    fn changed(&mut self, key: usize, io: &mut Io<'_>) {
        let job = self.remove(key, io);
        match job.task {
            Task::Write { fua: true } | Task::Zero { fua: true, .. } => self.join_sync(job.id, io),
            _ => io.reply(job.id, Ok(Payload::None)),
        }
    }

    fn answer(&mut self, key: usize, outcome: Result<Payload, Errno>, io: &mut Io<'_>) {
        let job = self.remove(key, io);
        io.reply(job.id, outcome);
    }

    fn fail(&mut self, key: usize, error: Errno, io: &mut Io<'_>) {
        self.answer(key, Err(error), io);
    }

    /// Takes a job off the table and starts those that waited for its blocks.
    fn remove(&mut self, key: usize, io: &mut Io<'_>) -> Job {
        let job = self.jobs.remove(key);
        self.exclusive_jobs -= usize::from(job.exclusive);
        if !self.waiting.is_empty() && job.changes() {
            self.admit(io);
        }
        job
    }

    fn admit(&mut self, io: &mut Io<'_>) {
        let mut at = 0;
        while let Some(&key) = self.waiting.get(at) {
            if self.blocked(key, at) {
                at += 1;
            } else {
                self.waiting.remove(at);
                self.begin(key, io);
            }
        }
    }

    fn join_sync(&mut self, id: RequestId, io: &mut Io<'_>) {
        if self.sync.failed {
            return io.reply(id, Err(Errno::Io));
        }
        self.sync.next.push(id);
        self.start_sync(io);
    }

    fn start_sync(&mut self, io: &mut Io<'_>) {
        if self.sync.running || self.sync.next.is_empty() {
            return;
        }
        self.sync.running = true;
        // `covered` is empty here and keeps its memory: no allocation at steady state.
        std::mem::swap(&mut self.sync.covered, &mut self.sync.next);
        io.submit(DiskOp { tag: SYNC_TAG, file: self.file, kind: DiskOpKind::Sync });
    }

    fn sync_done(&mut self, result: Result<usize, Errno>, io: &mut Io<'_>) {
        self.sync.running = false;
        if result.is_err() {
            self.sync.failed = true;
            let next = std::mem::take(&mut self.sync.next);
            self.sync.covered.extend(next);
        }
        for id in self.sync.covered.drain(..) {
            io.reply(id, result.map(|_| Payload::None).map_err(|_| Errno::Io));
        }
        self.start_sync(io);
    }
}

impl Export for FileExport {
    fn start(&mut self, mut request: Request, io: &mut Io<'_>) {
        let command = std::mem::replace(&mut request.command, Command::Flush);
        let wants_durable = matches!(
            command,
            Command::Write { fua: true, .. }
                | Command::Trim { fua: true }
                | Command::WriteZeroes { fua: true, .. }
        );
        if wants_durable && self.sync.failed {
            return io.reply(request.id, Err(Errno::Io));
        }
        let (at, end) = (request.offset, request.offset + u64::from(request.length));
        match command {
            Command::Read { buf, .. } => self.add(&request, Task::Read, Some(buf), io),
            Command::Write { buf, fua } => self.add(&request, Task::Write { fua }, Some(buf), io),
            Command::Flush => self.join_sync(request.id, io),
            Command::Trim { fua } => {
                let task = Task::Zero { fua, mode: ZeroMode::Punch, fast: false, at, end };
                self.add(&request, task, None, io);
            }
            Command::WriteZeroes { fua, no_hole, fast } => {
                let mode = if no_hole { ZeroMode::KeepAllocated } else { ZeroMode::Punch };
                if fast && self.cannot_zero[mode as usize] {
                    // At once, before an edge is touched: that is what the flag is for.
                    return io.reply(request.id, Err(Errno::NotSup));
                }
                self.add(&request, Task::Zero { fua, mode, fast, at, end }, None, io);
            }
            Command::Cache => self.add(&request, Task::Cache, None, io),
            Command::BlockStatus { contexts, one } => {
                let task = Task::Allocation { one, contexts: contexts.len() };
                self.add(&request, task, None, io);
            }
        }
    }

    fn disk_done(&mut self, done: DiskDone, io: &mut Io<'_>) {
        if done.op.tag == SYNC_TAG {
            return self.sync_done(done.result, io);
        }
        let key = usize::try_from(done.op.tag).expect("a tag is a place in the table");
        match done.op.kind {
            DiskOpKind::Zero { offset, length, .. } => {
                self.zero_done(key, offset..offset + length, done.result, io);
            }
            // Advice that could not be followed is not an error of the client's request.
            DiskOpKind::WillNeed { .. } | DiskOpKind::WriteSoon { .. } | DiskOpKind::Sync => {
                self.answer(key, Ok(Payload::None), io);
            }
            DiskOpKind::Allocation { extents, .. } => self.allocation_found(key, extents, done.result, io),
            DiskOpKind::Read { offset, .. } => match transfer_progress(done) {
                Progress::Complete(buf) => self.read_done(key, offset, buf, io),
                Progress::Continue(op) => io.submit(op),
                Progress::Failed(error, _) => self.fail(key, error, io),
            },
            DiskOpKind::Write { offset, .. } => match transfer_progress(done) {
                Progress::Complete(buf) => self.write_done(key, offset, buf.len(), io),
                Progress::Continue(op) => io.submit(op),
                Progress::Failed(error, _) => self.fail(key, error, io),
            },
        }
    }
}
