//! How exports reach files: one typed operation in, exactly one completion out.
//!
//! The reactor implements [`Disk`] with io_uring; `fixtures::sim` implements it with a disk that loses,
//! tears and reorders unsynced writes, fails, fills up and moves less than it was asked to. An export
//! cannot tell the two apart.

use crate::reactor::buffer::Buf;
use crate::status::StatusExtents;
use crate::wire::Errno;

/// Names one of the files that an export or a backend was built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// How a range is made zero without sending zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// Give the space back.
    Punch,
    /// Keep the space allocated, so that a later write cannot run out of it.
    KeepAllocated,
}

/// What to do with a file. Offsets and lengths in bytes.
#[derive(Debug)]
pub enum DiskOpKind {
    /// Fill `buf[done..]` from `offset + done`.
    Read {
        /// Where `buf[0]` stands in the file.
        offset: u64,
        /// Bytes that earlier, shorter transfers have moved already.
        done: usize,
        /// Filled by the disk.
        buf: Buf,
    },
    /// Write `buf[done..]` to `offset + done`.
    Write {
        /// Where `buf[0]` goes in the file.
        offset: u64,
        /// Bytes that earlier, shorter transfers have moved already.
        done: usize,
        /// Read by the disk.
        buf: Buf,
    },
    /// Make everything that completed before durable (fdatasync).
    Sync,
    /// Make a range zero.
    Zero {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
        /// What becomes of the space.
        mode: ZeroMode,
    },
    /// The range will be read soon.
    WillNeed {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
    },
    /// Tell what of a range is allocated ([`crate::wire::allocation`]), or of as much of its beginning as is easily
    /// found out.
    Allocation {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
        /// Filled by the disk with one extent at least, unless the operation fails.
        extents: StatusExtents,
    },
    /// The range will be synced soon: the disk may begin to write it. Promises nothing.
    WriteSoon {
        /// Start of the range.
        offset: u64,
        /// Length of the range.
        length: u64,
    },
}

/// One operation on one file.
#[derive(Debug)]
pub struct DiskOp {
    /// Chosen by the export, returned with the completion.
    pub tag: u64,
    /// Which file.
    pub file: FileId,
    /// What to do.
    pub kind: DiskOpKind,
}

/// The end of one operation. The operation comes back whole, with its buffer and its progress as they
/// were submitted.
#[derive(Debug)]
pub struct DiskDone {
    /// What was submitted.
    pub op: DiskOp,
    /// Bytes moved (0 for operations that move none), which may be fewer than asked; or why not.
    pub result: Result<usize, Errno>,
}

/// Something that carries out disk operations.
pub trait Disk {
    /// Takes the operation. It may complete at any later time and in any order, never inside this call.
    /// `export` tells whose operation it is, so that the completion finds its way back.
    fn submit(&mut self, export: ExportIndex, op: DiskOp);
}

/// Names one export of one reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExportIndex(pub u32);

impl ExportIndex {
    /// No export: the owner of what a backend submits on its own account.
    pub const NONE: Self = Self(u32::MAX);
}

/// What a transfer's completion means.
#[derive(Debug)]
pub enum Progress {
    /// All was moved.
    Complete(Buf),
    /// Less was moved than asked: submit this to go on.
    Continue(DiskOp),
    /// The transfer failed; the buffer is given back.
    Failed(Errno, Buf),
}

/// Compares moved with asked: the one place where short transfers are continued.
///
/// A transfer that moves nothing is an error, not a reason to try again: at the end of a file that has
/// shrunk under us a retry would never end.
///
/// # Panics
/// When `done` is not a read or a write: exports call it for their own transfers only.
pub fn transfer_progress(done: DiskDone) -> Progress {
    let DiskDone { op: DiskOp { tag, file, kind }, result } = done;
    let again = |done, rest, moved: usize| done + moved.min(rest);
    match (kind, result) {
        (DiskOpKind::Read { buf, .. } | DiskOpKind::Write { buf, .. }, Err(errno)) => {
            Progress::Failed(errno, buf)
        }
        (DiskOpKind::Read { offset, done, buf }, Ok(moved)) => {
            let now = again(done, buf.len() - done, moved);
            judge(now, moved, buf, |buf| DiskOp {
                tag,
                file,
                kind: DiskOpKind::Read { offset, done: now, buf },
            })
        }
        (DiskOpKind::Write { offset, done, buf }, Ok(moved)) => {
            let now = again(done, buf.len() - done, moved);
            judge(now, moved, buf, |buf| DiskOp {
                tag,
                file,
                kind: DiskOpKind::Write { offset, done: now, buf },
            })
        }
        (kind, _) => panic!("not a transfer: {kind:?}"),
    }
}

fn judge(now: usize, moved: usize, buf: Buf, rest: impl FnOnce(Buf) -> DiskOp) -> Progress {
    if now == buf.len() {
        Progress::Complete(buf)
    } else if moved == 0 {
        Progress::Failed(Errno::Io, buf)
    } else {
        Progress::Continue(rest(buf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::buffer::Pool;

    fn read(done: usize, result: Result<usize, Errno>) -> Progress {
        let kind = DiskOpKind::Read { offset: 100, done, buf: Pool::new().take(10) };
        transfer_progress(DiskDone { op: DiskOp { tag: 5, file: FileId(0), kind }, result })
    }

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        let Progress::Continue(op) = read(3, Ok(4)) else { panic!("not continued") };
        assert_eq!(op.tag, 5);
        assert!(matches!(op.kind, DiskOpKind::Read { offset: 100, done: 7, .. }));
    }

    #[test]
    fn a_transfer_that_moves_nothing_ends() {
        assert!(matches!(read(3, Ok(0)), Progress::Failed(Errno::Io, _)));
        assert!(matches!(read(3, Err(Errno::NoSpace)), Progress::Failed(Errno::NoSpace, _)));
    }

    #[test]
    fn a_whole_transfer_completes() {
        assert!(matches!(read(3, Ok(7)), Progress::Complete(_)));
    }
}
