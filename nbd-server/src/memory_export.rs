//! Memory as an export: nothing survives the process. For tests, scratch disks and measurements.
//!
//! Chunks are allocated when they are first written and freed when they are trimmed; reads name the
//! missing ones as holes where the client can take them, and the allocation is told.

use std::ops::Range;

use crate::disk::DiskDone;
use crate::export::{Command, Export, Extent, Io, Payload, Request};
use crate::reactor::buffer::Buf;
use crate::status::StatusExtents;
use crate::wire::{Errno, allocation};

/// The unit of allocation and of holes.
const CHUNK_BYTES: usize = 64 << 10;

/// See the module.
pub struct MemoryExport {
    chunks: Vec<Option<Box<[u8]>>>,
}

/// The part of one chunk that a request touches.
struct Piece {
    chunk: usize,
    inside: Range<usize>,
    /// Where the piece stands in the request.
    at: usize,
}

fn pieces(offset: u64, length: u32) -> impl Iterator<Item = Piece> {
    let length = length as usize;
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == length {
            return None;
        }
        // The offset lies inside the export, whose chunks all have an index.
        let position = usize::try_from(offset).expect("the export fits memory") + at;
        let start = position % CHUNK_BYTES;
        let take = (CHUNK_BYTES - start).min(length - at);
        let piece = Piece { chunk: position / CHUNK_BYTES, inside: start..start + take, at };
        at += take;
        Some(piece)
    })
}

impl MemoryExport {
    /// `size` bytes, all zero, none allocated.
    ///
    /// # Errors
    /// `NoSpace` when the table of chunks alone does not fit the address space.
    pub fn new(size: u64) -> Result<Self, Errno> {
        let count = usize::try_from(size.div_ceil(CHUNK_BYTES as u64)).map_err(|_| Errno::NoSpace)?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(count).map_err(|_| Errno::NoSpace)?;
        chunks.resize_with(count, || None);
        Ok(Self { chunks })
    }

    fn chunk_mut(&mut self, index: usize) -> &mut [u8] {
        self.chunks[index].get_or_insert_with(|| vec![0; CHUNK_BYTES].into_boxed_slice())
    }

    fn read_flat(&self, offset: u64, length: u32, mut buf: Buf) -> Payload {
        for piece in pieces(offset, length) {
            let target = &mut buf[piece.at..piece.at + piece.inside.len()];
            match &self.chunks[piece.chunk] {
                Some(chunk) => target.copy_from_slice(&chunk[piece.inside]),
                None => target.fill(0),
            }
        }
        Payload::Data(buf)
    }

    /// Neighbouring chunks of a kind become one extent.
    fn read_extents(&self, offset: u64, length: u32, buf: Buf) -> Payload {
        let Payload::Data(mut rest) = self.read_flat(offset, length, buf) else { return Payload::None };
        let mut runs: Vec<(bool, usize)> = Vec::new();
        for piece in pieces(offset, length) {
            let hole = self.chunks[piece.chunk].is_none();
            match runs.last_mut() {
                Some((same, bytes)) if *same == hole => *bytes += piece.inside.len(),
                _ => runs.push((hole, piece.inside.len())),
            }
        }
        let extent = |(hole, bytes): (bool, usize)| {
            let data = rest.split_to(bytes);
            if hole {
                Extent::Hole(u32::try_from(bytes).expect("no longer than a request"))
            } else {
                Extent::Data(data)
            }
        };
        Payload::Extents(runs.into_iter().map(extent).collect())
    }

    fn read(&self, offset: u64, length: u32, buf: Buf, holes: bool) -> Payload {
        let sparse = || pieces(offset, length).any(|piece| self.chunks[piece.chunk].is_none());
        if holes && sparse() {
            self.read_extents(offset, length, buf)
        } else {
            self.read_flat(offset, length, buf)
        }
    }

    fn write(&mut self, offset: u64, buf: &[u8]) {
        let length = u32::try_from(buf.len()).expect("a payload fits 32 bits");
        for piece in pieces(offset, length) {
            let data = &buf[piece.at..piece.at + piece.inside.len()];
            self.chunk_mut(piece.chunk)[piece.inside].copy_from_slice(data);
        }
    }

    fn allocation(&self, offset: u64, length: u32, one: bool) -> StatusExtents {
        let mut extents = StatusExtents::new(u64::from(length), one);
        for piece in pieces(offset, length) {
            let hole = self.chunks[piece.chunk].is_none();
            let flags = if hole { allocation::HOLE | allocation::ZERO } else { 0 };
            if !extents.push(piece.inside.len() as u64, flags) {
                break;
            }
        }
        extents
    }

    fn zero(&mut self, offset: u64, length: u32, keep: bool) {
        for piece in pieces(offset, length) {
            let whole = piece.inside.len() == CHUNK_BYTES;
            if whole && !keep {
                self.chunks[piece.chunk] = None;
            } else if keep || self.chunks[piece.chunk].is_some() {
                self.chunk_mut(piece.chunk)[piece.inside].fill(0);
            }
        }
    }
}

impl Export for MemoryExport {
    fn start(&mut self, request: Request, io: &mut Io<'_>) {
        let Request { id, offset, length, command } = request;
        let payload = match command {
            Command::Read { buf, holes } => self.read(offset, length, buf, holes),
            Command::Write { buf, .. } => {
                self.write(offset, &buf);
                Payload::None
            }
            Command::Trim { .. } => {
                self.zero(offset, length, false);
                Payload::None
            }
            Command::WriteZeroes { no_hole, .. } => {
                self.zero(offset, length, no_hole);
                Payload::None
            }
            Command::Flush | Command::Cache => Payload::None,
            Command::BlockStatus { contexts, one } => {
                let allocation = |_| self.allocation(offset, length, one);
                Payload::Status(contexts.iter().map(allocation).collect())
            }
        };
        io.reply(id, Ok(payload));
    }

    fn disk_done(&mut self, done: DiskDone, _io: &mut Io<'_>) {
        panic!("memory has no disk, yet {:?} ended", done.op);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::buffer::Pool;

    #[test]
    fn holes_are_named_and_zeroes_are_kept_when_asked() {
        let mut memory = MemoryExport::new(1 << 20).unwrap();
        memory.write(CHUNK_BYTES as u64, &[7; CHUNK_BYTES]);
        let buf = Pool::new().take(3 * CHUNK_BYTES);
        let Payload::Extents(extents) = memory.read(0, 3 * CHUNK_BYTES as u32, buf, true) else { panic!() };
        assert!(matches!(extents[..], [Extent::Hole(65_536), Extent::Data(_), Extent::Hole(65_536)]));
        let told = memory.allocation(100, 3 * CHUNK_BYTES as u32, false);
        let told: Vec<_> = told.as_slice().iter().map(|extent| (extent.length, extent.flags)).collect();
        assert_eq!(told, [(65_436, 3), (65_536, 0), (65_636, 3)]);
        memory.zero(CHUNK_BYTES as u64, CHUNK_BYTES as u32, true);
        assert!(memory.chunks[1].is_some());
        memory.zero(CHUNK_BYTES as u64, CHUNK_BYTES as u32, false);
        assert!(memory.chunks[1].is_none());
    }
}
