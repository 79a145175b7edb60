//! What a disk is served through: questions about it, then requests to it.
//!
//! An export is a state machine without I/O. It is told of requests and of completed disk operations,
//! and answers with disk operations and replies; it owns its state alone, on one thread. Requests of
//! one export may come from many connections and overlap in any way.

use crate::disk::{Disk, DiskDone, DiskOp, ExportIndex};
use crate::reactor::buffer::{Buf, Pool};
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
            block_minimum: 1,
            block_preferred: 4096,
        }
    }

    /// The flags told to a client. DF may only be offered together with structured replies.
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let always =
            flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        let writes = flag::SEND_TRIM | flag::SEND_WRITE_ZEROES;
        let mut flags = always;
        flags |= if self.read_only { flag::READ_ONLY } else { writes };
        for (on, bit) in [
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
}

/// What a successful reply carries.
#[derive(Debug)]
pub enum Payload {
    /// Nothing: every command but a read.
    None,
    /// All the data asked for.
    Data(Buf),
    /// The data asked for, in order, with holes where the request allowed them.
    Extents(Vec<Extent>),
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
    index: ExportIndex,
    replies: &'a mut Vec<Reply>,
}

impl<'a> Io<'a> {
    /// The world of export `index`: its disk operations go to `disk`, its replies to `replies`.
    pub fn new(
        disk: &'a mut dyn Disk,
        pool: &'a Pool,
        index: ExportIndex,
        replies: &'a mut Vec<Reply>,
    ) -> Self {
        Self { disk, pool, index, replies }
    }

    /// Hands an operation to the disk; its completion arrives through [`Export::disk_done`].
    pub fn submit(&mut self, op: DiskOp) {
        self.disk.submit(self.index, op);
    }

    /// Answers a request, once.
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
