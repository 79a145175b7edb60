//! The server's ring: sockets and disk files.
//!
//! That the kernel only touches memory which is still there is argued in [`super::in_flight`]. The functions of
//! this type are safe to call in any order with any arguments. Files are registered, so a closed descriptor
//! cannot be confused with a new one.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use io_uring::types::{Fd, Fixed, FsyncFlags};
use io_uring::{opcode, squeue};
use rustix::fs::{SeekFrom, seek};

use super::buffer::{Buf, Pool, SLAB_BYTES};
use super::in_flight::{InFlight, Lent};
use super::message::{Message, iovec};
use crate::connection::{ReceiveOp, SendBatch};
use crate::disk::{Disk, DiskDone, DiskOp, DiskOpKind, ExportIndex, ZeroMode};
use crate::status::StatusExtents;
use crate::wire::{Errno, allocation};

/// Submission entries: as many operations as one turn of the loop can add without an extra system call.
const SUBMISSION_ENTRIES: u32 = 1024;
/// Completion entries; more completions than this wait in the kernel, none is lost (NODROP).
const COMPLETION_ENTRIES: u32 = 8192;
/// Slabs that are registered for direct I/O, at most: 64 MiB pinned.
const REGISTERED_SLABS_MAX: u32 = 32;
/// Direct transfers that one file's medium is given at once; more wait here and follow as others end. Were
/// a client's whole queue handed over, a medium that completes in bursts would stand idle while the replies
/// travel and the next requests come back: at depth 64 that cost a third of the rate.
const DIRECT_DEPTH: usize = 48;
/// Transfers beyond this are not done inline even if the page cache could: they would hold up the loop.
const INLINE_BYTES_MAX: usize = 1 << 20;
/// Holes that one question about a file's allocation finds; a client asks on where the answer ends.
const HOLES_MAX: usize = 32;
/// An inline write that took longer than this was held up by write-back or the journal. Well above a
/// scheduler's time slice: merely having lost the processor is no reason to change the way.
const INLINE_STALL: Duration = Duration::from_millis(20);
/// For that long after a stall, writes go to the ring's workers and the loop stays responsive.
const INLINE_PAUSE: Duration = Duration::from_millis(500);

/// A file of an export or a backend, as the reactor drives it.
#[derive(Debug)]
pub struct OpenFile {
    /// The file, open for what the export needs.
    pub file: File,
    /// Opened with O_DIRECT.
    pub direct: bool,
}

/// How large the ring's tables are.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Sockets that may be open at once.
    pub sockets_max: u32,
}

enum Op {
    Receive { place: usize, op: ReceiveOp, message: Option<Box<Message>> },
    Send { place: usize, batch: SendBatch, message: Box<Message> },
    Disk { export: ExportIndex, op: DiskOp },
    Wake,
}

impl Lent for Op {
    fn lends_memory(&self) -> bool {
        // A poll for mail owns no memory; it is there whenever the loop runs.
        !matches!(self, Self::Wake)
    }
}

/// An operation that has ended, with everything that was lent to it.
pub(super) enum Completed {
    Received { place: usize, op: ReceiveOp, result: Result<usize, Errno> },
    Sent { place: usize, batch: SendBatch, result: Result<usize, Errno> },
    Disk { export: ExportIndex, done: DiskDone },
    Woken,
}

struct RegisteredFile {
    file: OpenFile,
    /// Inline writes are off until then, because one was held up.
    paused_until: Option<Instant>,
    /// Direct transfers in flight, and those that wait for one of them to end. Bounded by the connections'
    /// limits: each belongs to a request, or to what a backend does by itself, which is for it to bound.
    transfers: usize,
    backlog: VecDeque<(ExportIndex, DiskOp)>,
}

impl RegisteredFile {
    fn new(file: OpenFile) -> Self {
        Self { file, paused_until: None, transfers: 0, backlog: VecDeque::new() }
    }

    /// Writes to the page cache; `None` while that may hold up the loop for long.
    fn try_write(&mut self, offset: u64, buf: &[u8]) -> Option<io::Result<usize>> {
        let started = clock();
        if buf.len() > INLINE_BYTES_MAX || self.paused_until.is_some_and(|until| started < until) {
            return None;
        }
        let result = self.file.file.write_at(buf, offset);
        self.paused_until = (clock() - started > INLINE_STALL).then(|| clock() + INLINE_PAUSE);
        match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
            other => Some(other),
        }
    }
}

/// See the module.
pub(super) struct Ring {
    flying: InFlight<Op>,
    /// Completions of operations that were done inline.
    inline: VecDeque<Completed>,
    #[expect(clippy::vec_box, reason = "the boxes themselves are reused: their addresses go to the kernel")]
    messages: Vec<Box<Message>>,
    files: Vec<RegisteredFile>,
    first_socket: u32,
    pool: Pool,
    registered_slabs: u32,
    registering: bool,
    /// Operations on the backlogs of all files.
    backlogged: usize,
}

impl Ring {
    /// A ring that drives `files` and up to `options.sockets_max` sockets, with buffers from `pool`.
    ///
    /// # Errors
    /// The kernel refuses the ring (too old, disabled, or out of memory) or the tables.
    pub(super) fn new(files: Vec<OpenFile>, pool: Pool, options: RingOptions) -> io::Result<Self> {
        let flying = InFlight::new(SUBMISSION_ENTRIES, COMPLETION_ENTRIES)?;
        let first_socket = u32::try_from(files.len()).map_err(io::Error::other)?;
        flying.submitter().register_files_sparse(first_socket + options.sockets_max)?;
        for (slot, file) in (0..).zip(&files) {
            flying.submitter().register_files_update(slot, &[file.file.as_raw_fd()])?;
        }
        let direct = files.iter().any(|file| file.direct);
        let registering = direct && flying.submitter().register_buffers_sparse(REGISTERED_SLABS_MAX).is_ok();
        let files = files.into_iter().map(RegisteredFile::new).collect();
        Ok(Self {
            flying,
            inline: VecDeque::new(),
            messages: Vec::new(),
            files,
            first_socket,
            pool,
            registered_slabs: 0,
            registering,
            backlogged: 0,
        })
    }

    /// Makes a socket known under `place`.
    ///
    /// # Errors
    /// The kernel refuses the descriptor.
    pub(super) fn add_socket(&mut self, place: usize, socket: BorrowedFd<'_>) -> io::Result<()> {
        let slot = self.socket_slot(place);
        self.flying.submitter().register_files_update(slot, &[socket.as_raw_fd()]).map(drop)
    }

    /// Forgets a socket.
    ///
    /// # Errors
    /// The kernel refuses, which it has no reason to.
    pub(super) fn remove_socket(&mut self, place: usize) -> io::Result<()> {
        let slot = self.socket_slot(place);
        self.flying.submitter().register_files_update(slot, &[-1]).map(drop)
    }

    fn socket_slot(&self, place: usize) -> u32 {
        // Places are bounded by the server's connection limit.
        self.first_socket + u32::try_from(place).expect("a small table")
    }

    /// Waits for a readable event descriptor, once.
    pub(super) fn wake_on(&mut self, event: BorrowedFd<'_>) {
        let entry = opcode::PollAdd::new(Fd(event.as_raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: no address is in the entry; the event belongs to the mailbox, which the ring's reactor holds.
        unsafe { self.flying.push(Op::Wake, |_| entry) };
    }

    /// Receives into the operation's memory.
    pub(super) fn receive(&mut self, place: usize, op: ReceiveOp) {
        let socket = Fixed(self.socket_slot(place));
        let message = op.payload.is_some().then(|| self.messages.pop().unwrap_or_else(Message::new));
        let prepare = |op: &mut Op| match op {
            Op::Receive { op, message: None, .. } => {
                let (_, chunk) = op.targets();
                opcode::Recv::new(socket, chunk.as_mut_ptr(), chunk.len() as u32).build()
            }
            Op::Receive { op, message: Some(message), .. } => {
                let (payload, chunk) = op.targets();
                opcode::RecvMsg::new(socket, message.receiving([payload.unwrap_or_default(), chunk])).build()
            }
            _ => unreachable!("the operation pushed is the one prepared"),
        };
        // SAFETY: the addresses are those of the operation's buffers, which do not move with it, and of its boxed
        // message.
        unsafe { self.flying.push(Op::Receive { place, op, message }, prepare) };
    }

    /// Sends what is left of the batch.
    pub(super) fn send(&mut self, place: usize, batch: SendBatch) {
        let socket = Fixed(self.socket_slot(place));
        let message = self.messages.pop().unwrap_or_else(Message::new);
        let prepare = |op: &mut Op| {
            let Op::Send { batch, message, .. } = op else { unreachable!("as pushed") };
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            opcode::SendMsg::new(socket, message.sending(batch.slices())).flags(flags).build()
        };
        // SAFETY: the addresses are those of the batch's buffers, which do not move with it, and of its boxed message.
        unsafe { self.flying.push(Op::Send { place, batch, message }, prepare) };
    }

    /// Hands queued operations to the kernel without waiting. What the page cache can serve completes here.
    ///
    /// # Errors
    /// The kernel refuses to be entered.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.flying.submit()
    }

    /// Submits and waits for a completion, or until `timeout`.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if !self.inline.is_empty() {
            return self.submit();
        }
        self.flying.wait(timeout)
    }

    /// Moves everything that has ended to `out`.
    pub(super) fn take_completed(&mut self, out: &mut Vec<Completed>) {
        out.extend(self.inline.drain(..));
        let (files, messages) = (&mut self.files, &mut self.messages);
        self.flying.take_ended(|op, result| {
            if let Op::Disk { op, .. } = &op
                && is_transfer(&op.kind)
            {
                files[op.file.0 as usize].transfers -= 1;
            }
            out.push(complete(op, result, messages));
        });
        if self.backlogged > 0 {
            self.start_backlog();
        }
    }

    /// Starts what waited for others to end, before the replies of those are even made.
    fn start_backlog(&mut self) {
        for file in 0..self.files.len() {
            while self.files[file].transfers < DIRECT_DEPTH
                && let Some((export, op)) = self.files[file].backlog.pop_front()
            {
                self.backlogged -= 1;
                self.start(export, op);
            }
        }
    }

    fn start(&mut self, export: ExportIndex, mut op: DiskOp) {
        self.register_slabs();
        let transfer = match &op.kind {
            DiskOpKind::Read { buf, done, .. } | DiskOpKind::Write { buf, done, .. } => buf.len() - done,
            _ => 0,
        };
        if is_transfer(&op.kind) {
            self.files[op.file.0 as usize].transfers += 1;
        }
        // Addresses of a `Buf` do not change when it is moved, so the entry may be made before the table
        // takes the operation.
        let mut entry = self.transfer_entry(Fixed(op.file.0), &mut op.kind);
        if transfer > INLINE_BYTES_MAX {
            entry = entry.flags(squeue::Flags::ASYNC);
        }
        // SAFETY: the address is that of the operation's buffer, or there is none. The file is registered.
        unsafe { self.flying.push(Op::Disk { export, op }, |_| entry) };
    }

    /// Lets go of all files and sockets now. The kernel takes a ring down some milliseconds after its
    /// process has gone; whoever stops a server and unmounts its file system would find it busy.
    ///
    /// # Errors
    /// The kernel refuses, which it has no reason to.
    pub(super) fn release_files(&mut self) -> io::Result<()> {
        self.flying.submitter().unregister_files()
    }

    /// Something has ended, or the kernel has work for us that will end something. No system call.
    pub(super) fn has_work(&mut self) -> bool {
        !self.inline.is_empty() || self.flying.has_work()
    }

    /// Operations that the kernel has not given back.
    pub(super) fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Registers slabs that were made since the last call, as far as the limits go.
    fn register_slabs(&mut self) {
        while self.registering && self.registered_slabs < REGISTERED_SLABS_MAX {
            let Some(slab) = self.pool.slab(self.registered_slabs as usize) else { return };
            let memory = [iovec(slab.as_ptr(), SLAB_BYTES)];
            let submitter = self.flying.submitter();
            // SAFETY: the slab is SLAB_BYTES long and lives as long as the pool, of which this ring holds a handle;
            // the pages are pinned by the kernel, and used only through operations that own a `Buf` in them.
            let updated = unsafe { submitter.register_buffers_update(self.registered_slabs, &memory, None) };
            if let Err(error) = updated {
                // Usually RLIMIT_MEMLOCK: go on with unregistered buffers.
                tracing::debug!(%error, "buffers not registered");
                self.registering = false;
                return;
            }
            self.registered_slabs += 1;
        }
    }

    fn registered(&self, buf: &Buf) -> Option<u16> {
        let slab = buf.slab().filter(|&slab| slab < self.registered_slabs)?;
        u16::try_from(slab).ok()
    }

    /// Writes through the page cache are done at once, without the ring, which would give them to a worker
    /// thread on most file systems. Gives the operation back if the ring must do it.
    fn try_inline(&mut self, export: ExportIndex, mut op: DiskOp) -> Option<DiskOp> {
        if let DiskOpKind::Allocation { offset, length, extents } = &mut op.kind {
            find_holes(&self.files[op.file.0 as usize].file.file, *offset, *length, extents);
            self.inline.push_back(Completed::Disk { export, done: DiskDone { op, result: Ok(0) } });
            return None;
        }
        let DiskOpKind::Write { offset, done, ref buf } = op.kind else { return Some(op) };
        let entry = &mut self.files[op.file.0 as usize];
        if entry.file.direct {
            return Some(op);
        }
        let Some(result) = entry.try_write(offset + done as u64, &buf[done..]) else { return Some(op) };
        let result = result.map_err(|error| logged(&error, &op));
        self.inline.push_back(Completed::Disk { export, done: DiskDone { op, result } });
        None
    }

    fn transfer_entry(&self, file: Fixed, kind: &mut DiskOpKind) -> squeue::Entry {
        match kind {
            DiskOpKind::Read { offset, done, buf } => {
                let (at, registered) = (*offset + *done as u64, self.registered(buf));
                let rest = &mut buf[*done..];
                let (address, bytes) = (rest.as_mut_ptr(), rest.len() as u32);
                match registered {
                    Some(slab) => opcode::ReadFixed::new(file, address, bytes, slab).offset(at).build(),
                    None => opcode::Read::new(file, address, bytes).offset(at).build(),
                }
            }
            DiskOpKind::Write { offset, done, buf } => {
                let (at, registered) = (*offset + *done as u64, self.registered(buf));
                let rest = &buf[*done..];
                let (address, bytes) = (rest.as_ptr(), rest.len() as u32);
                match registered {
                    Some(slab) => opcode::WriteFixed::new(file, address, bytes, slab).offset(at).build(),
                    None => opcode::Write::new(file, address, bytes).offset(at).build(),
                }
            }
            _ => other_entry(file, kind),
        }
    }
}

fn other_entry(file: Fixed, kind: &DiskOpKind) -> squeue::Entry {
    match *kind {
        DiskOpKind::Zero { offset, length, mode } => {
            let mode = match mode {
                ZeroMode::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                ZeroMode::KeepAllocated => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            };
            opcode::Fallocate::new(file, length).offset(offset).mode(mode).build()
        }
        DiskOpKind::WillNeed { offset, length } => {
            let length = libc::off_t::try_from(length).unwrap_or(libc::off_t::MAX);
            opcode::Fadvise::new(file, length, libc::POSIX_FADV_WILLNEED).offset(offset).build()
        }
        DiskOpKind::WriteSoon { offset, length } => {
            let length = u32::try_from(length).unwrap_or(u32::MAX);
            opcode::SyncFileRange::new(file, length).offset(offset).flags(libc::SYNC_FILE_RANGE_WRITE).build()
        }
        _ => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
    }
}

impl Disk for Ring {
    fn submit(&mut self, export: ExportIndex, op: DiskOp) {
        let Some(op) = self.try_inline(export, op) else { return };
        let entry = &mut self.files[op.file.0 as usize];
        if entry.file.direct && is_transfer(&op.kind) && entry.transfers >= DIRECT_DEPTH {
            entry.backlog.push_back((export, op));
            self.backlogged += 1;
        } else {
            self.start(export, op);
        }
    }
}

/// Asks the file system where a range has holes, with so few questions that the loop is not held up: each is
/// answered from the file's map in memory, in microseconds. Where that must be read first, it costs what the first
/// read of such a place costs; the ring has no operation for it.
///
/// To say that there are data is always right, so what cannot be found out is told as that.
fn find_holes(file: &File, offset: u64, length: u64, extents: &mut StatusExtents) {
    let (mut at, end) = (offset, offset.saturating_add(length));
    for _ in 0..HOLES_MAX {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.clamp(at, end),
            // No data up to the end of the file.
            Err(rustix::io::Errno::NXIO) => end,
            Err(_) => break,
        };
        extents.push(data - at, allocation::HOLE | allocation::ZERO);
        if data == end || !extents.wants_more() {
            return;
        }
        let Ok(hole) = seek(file, SeekFrom::Hole(data)) else { break };
        at = hole.clamp(data, end);
        if !extents.push(at - data, 0) || at == data {
            break;
        }
    }
    if extents.as_slice().is_empty() {
        extents.push(length, 0);
    }
}

fn is_transfer(kind: &DiskOpKind) -> bool {
    matches!(kind, DiskOpKind::Read { .. } | DiskOpKind::Write { .. })
}

#[expect(clippy::disallowed_methods, reason = "measures the kernel, decides nothing that is simulated")]
fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::vec_box, reason = "see `Ring::messages`")]
fn complete(op: Op, result: i32, messages: &mut Vec<Box<Message>>) -> Completed {
    let result = usize::try_from(result).map_err(|_| -result);
    match op {
        Op::Wake => Completed::Woken,
        Op::Receive { place, op, message } => {
            messages.extend(message);
            Completed::Received { place, op, result: result.map_err(Errno::from_os) }
        }
        Op::Send { place, batch, message } => {
            messages.push(message);
            Completed::Sent { place, batch, result: result.map_err(Errno::from_os) }
        }
        Op::Disk { export, op } => {
            let result = result.map_err(|raw| logged(&io::Error::from_raw_os_error(raw), &op));
            Completed::Disk { export, done: DiskDone { op, result } }
        }
    }
}

/// The protocol's error for a system's one, after its cause was logged. What was asked of the file is
/// worth more in the log than what the client will be told.
fn logged(error: &io::Error, op: &DiskOp) -> Errno {
    let errno = Errno::from(error);
    if errno != Errno::NotSup {
        tracing::warn!(%error, file = op.file.0, operation = %describe(&op.kind), "disk operation failed");
    }
    errno
}

fn describe(kind: &DiskOpKind) -> String {
    match kind {
        DiskOpKind::Read { offset, buf, .. } => format!("read {}+{}", offset, buf.len()),
        DiskOpKind::Write { offset, buf, .. } => format!("write {}+{}", offset, buf.len()),
        DiskOpKind::Sync => "sync".to_owned(),
        DiskOpKind::Zero { offset, length, mode } => format!("zero {offset}+{length} {mode:?}"),
        DiskOpKind::WillNeed { offset, length } => format!("prefetch {offset}+{length}"),
        DiskOpKind::WriteSoon { offset, length } => format!("early write of {offset}+{length}"),
        DiskOpKind::Allocation { offset, length, .. } => format!("holes of {offset}+{length}"),
    }
}
