//! What a disk is served through: questions about it, then requests to it.
//!
//! An export is a state machine without I/O. It is told of requests and of completed disk operations,
//! and answers with disk operations and replies; it owns its state alone, on one thread. Requests of
//! one export may come from many connections and overlap in any way.
//!
//! A reactor serves one [`Backend`]: everything behind its clients. Exports that know nothing of each other
//! become one through [`Separate`]; those that share state (an allocator, a group commit) are a backend of
//! their own, which may add and remove exports while it runs.

use crate::connection::Nanos;
use crate::disk::{Disk, DiskDone, DiskOp, ExportIndex};
use crate::reactor::buffer::{Buf, Pool};
use crate::status::{Contexts, StatusExtents};
use crate::wire::{Errno, transmission_flag as flag};

/// What clients are told about an export. Fixed while it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// The canonical name; a key, never a path.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// Writes are refused with `EPERM`.
    pub read_only: bool,
    /// The medium spins.
    pub rotational: bool,
    /// Zeroing can be asked to fail rather than be slow.
    pub fast_zero: bool,
    /// The backend tells what is allocated ([`crate::status::BASE_ALLOCATION`]).
    pub tells_allocation: bool,
    /// Several connections may share it: what one has flushed, or been answered, holds for all.
    pub multi_conn: bool,
    /// Smallest and granularity of requests, bytes: a power of two up to 64 KiB.
    pub block_minimum: u32,
    /// What clients should use, bytes: a power of two of at least 512.
    pub block_preferred: u32,
}

impl ExportInfo {
    /// An export of `size` bytes that takes requests of any size and alignment.
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size,
            read_only: false,
            rotational: false,
            fast_zero: false,
            tells_allocation: false,
            multi_conn: true,
            block_minimum: 1,
            block_preferred: 4096,
        }
    }

    /// The flags told to a client. DF may only be offered together with structured replies.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let always = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
        let writes = flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
        let mut flags = always;
        flags |= if self.read_only { flag::READ_ONLY } else { writes };
        for (on, bit) in [
            (self.multi_conn, flag::CAN_MULTI_CONN),
            (self.rotational, flag::ROTATIONAL),
            (structured, flag::SEND_DF),
            (self.fast_zero && !self.read_only, flag::SEND_FAST_ZERO),
        ] {
            if on {
                flags |= bit;
            }
        }
        flags
    }
}

/// Names a request from its header to its only reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId {
    /// The connection's place in the engine. It is not given to another one while a request is in flight.
    pub connection: u32,
    /// The request's place in the connection's in-flight table.
    pub index: u32,
}

/// A valid request: in range, allowed on this export, its payload complete.
#[derive(Debug)]
pub struct Request {
    /// To be returned with the reply.
    pub id: RequestId,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes; `offset + length` does not pass the end. May be 0 only for `Flush`.
    pub length: u32,
    /// What to do.
    pub command: Command,
}

/// The commands an export carries out.
#[derive(Debug)]
pub enum Command {
    /// Fill the buffer (`length` bytes) and give it back in the reply.
    Read {
        /// Where the data go.
        buf: Buf,
        /// The reply may name holes instead of sending their zeroes.
        holes: bool,
    },
    /// Write the buffer (`length` bytes).
    Write {
        /// The data.
        buf: Buf,
        /// Durable before the reply.
        fua: bool,
    },
    /// Make every write that was answered before, on any connection, durable.
    Flush,
    /// Discard the range; it reads as zero afterwards.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Make the range zero.
    WriteZeroes {
        /// Durable before the reply.
        fua: bool,
        /// Keep the space allocated.
        no_hole: bool,
        /// Fail with `NotSup` if this is no faster than writing zeroes.
        fast: bool,
    },
    /// The range will be read soon.
    Cache,
    /// Tell what is known of the range, or of as much of its beginning as is easily found out: at least of one byte,
    /// in multiples of the smallest block.
    BlockStatus {
        /// In these contexts: those that the directory has said the export has, or has had.
        contexts: Contexts,
        /// One extent a context is enough.
        one: bool,
    },
}

/// What a successful reply carries.
#[derive(Debug)]
pub enum Payload {
    /// Nothing: every command but `Read` and `BlockStatus`.
    None,
    /// All the data asked for.
    Data(Buf),
    /// The data asked for, in order and as many pieces as it takes ([`Buf::split_to`]); holes only where the
    /// request allowed them. Without holes this is right for every read, in any form of reply.
    Extents(Vec<Extent>),
    /// What is known in each of the contexts that were asked for, in their order.
    Status(Vec<StatusExtents>),
}

/// A piece of a read's reply.
#[derive(Debug)]
pub enum Extent {
    /// Bytes.
    Data(Buf),
    /// That many zeroes, not sent.
    Hole(u32),
}

/// The only reply to a request.
#[derive(Debug)]
pub struct Reply {
    /// Which request.
    pub id: RequestId,
    /// What came of it.
    pub outcome: Result<Payload, Errno>,
}

/// What an export can reach while it handles one event.
pub struct Io<'a> {
    disk: &'a mut dyn Disk,
    pool: &'a Pool,
    owner: ExportIndex,
    replies: &'a mut Vec<Reply>,
}

impl<'a> Io<'a> {
    /// The world during one event: disk operations go to `disk`, in the name of `owner`, and replies to
    /// `replies`.
    pub fn new(
        disk: &'a mut dyn Disk,
        pool: &'a Pool,
        owner: ExportIndex,
        replies: &'a mut Vec<Reply>,
    ) -> Self {
        Self { disk, pool, owner, replies }
    }

    /// Hands an operation to the disk; its completion arrives through [`Export::disk_done`], or through
    /// [`Backend::disk_done`] with the export that the event was about ([`ExportIndex::NONE`] if it was about
    /// none).
    pub fn submit(&mut self, op: DiskOp) {
        self.disk.submit(self.owner, op);
    }

    /// Answers a request, once. A backend may answer requests to any of its exports during any event.
    pub fn reply(&mut self, id: RequestId, outcome: Result<Payload, Errno>) {
        self.replies.push(Reply { id, outcome });
    }

    /// Where to take buffers for the export's own needs.
    pub fn pool(&self) -> &Pool {
        self.pool
    }
}

/// A disk that clients can use.
pub trait Export {
    /// Starts a request. Each gets exactly one reply, now or while a later event is handled.
    fn start(&mut self, request: Request, io: &mut Io<'_>);

    /// One operation that this export had submitted has ended.
    fn disk_done(&mut self, done: DiskDone, io: &mut Io<'_>);
}

/// Everything that one reactor serves. All calls come from the reactor's thread.
pub trait Backend {
    /// A client has entered transmission on `export`. The directory may have named an export that is gone by
    /// now: such a client's requests must be answered like any other's.
    fn connected(&mut self, _export: ExportIndex, _io: &mut Io<'_>) {}

    /// A client of `export` has left, every request of it answered. Not told of clients that are abandoned at
    /// the deadline of a stop.
    fn disconnected(&mut self, _export: ExportIndex, _io: &mut Io<'_>) {}

    /// Starts a request to `export`. Each gets exactly one reply, now or while a later event is handled.
    fn start(&mut self, export: ExportIndex, request: Request, io: &mut Io<'_>);

    /// One disk operation has ended. `owner` is the export that the event was about in which it was submitted,
    /// or [`ExportIndex::NONE`]; whose work it is where that differs is for the operation's tag to say.
    fn disk_done(&mut self, owner: ExportIndex, done: DiskDone, io: &mut Io<'_>);

    /// Another thread has called [`Waker::wake`], once or more often: take what it has left. A client that was
    /// handed to the reactor after such a call is told of after this one.
    ///
    /// [`Waker::wake`]: crate::reactor::Waker::wake
    fn woken(&mut self, _io: &mut Io<'_>) {}

    /// Replies that were given since the last call are about to be sent: what must be on record somewhere before
    /// a client sees them is put there now. Whoever gives none is not called.
    fn before_replies(&mut self) {}

    /// Called once in every turn of the loop, when its other events are over, and before the loop waits.
    /// Returns when it wants to be called again at the latest; `None`: whenever something happens.
    fn tick(&mut self, _now: Nanos, _io: &mut Io<'_>) -> Option<Nanos> {
        None
    }

    /// The server stops: begin nothing of your own any more, finish what was begun. Requests that were under
    /// way may still be started, and clients may still come, whose requests are refused before they get here.
    fn begin_stop(&mut self, _io: &mut Io<'_>) {}

    /// Nothing is left that must end before the reactor may. Asked when a stop has begun and all clients have
    /// gone.
    fn quiescent(&self) -> bool {
        true
    }
}

/// Exports that share nothing, as one backend: each has the index of its place.
pub struct Separate {
    exports: Vec<Box<dyn Export>>,
}

impl Separate {
    /// The backend of these exports.
    pub fn new(exports: Vec<Box<dyn Export>>) -> Self {
        Self { exports }
    }
}

impl Backend for Separate {
    fn start(&mut self, export: ExportIndex, request: Request, io: &mut Io<'_>) {
        match self.exports.get_mut(export.0 as usize) {
            Some(export) => export.start(request, io),
            None => io.reply(request.id, Err(Errno::Io)),
        }
    }

    fn disk_done(&mut self, owner: ExportIndex, done: DiskDone, io: &mut Io<'_>) {
        self.exports[owner.0 as usize].disk_done(done, io);
    }
}
