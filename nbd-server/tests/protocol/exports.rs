//! What the servers under test serve.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use nbd_server::disk::DiskDone;
use nbd_server::export::{Command, Export, ExportInfo, Extent, Io, Payload, Request, RequestId};
use nbd_server::image::{CacheMode, Image, ImageOptions, open_image};
use nbd_server::memory_export::MemoryExport;
use nbd_server::reactor::ExportSpec;
use nbd_server::reactor::buffer::Buf;

/// Bytes that differ everywhere: a read from a wrong place does not go unnoticed.
pub(crate) fn pattern(offset: u64, length: usize) -> Vec<u8> {
    let word = |at: u64| (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    let end = (offset + length as u64).div_ceil(8);
    let words: Vec<u8> = (offset / 8..end).flat_map(word).collect();
    let skip = offset as usize & 7;
    words[skip..skip + length].to_vec()
}

/// A file full of [`pattern`].
pub(crate) fn file(dir: &Path, name: &str, bytes: usize, read_only: bool) -> Image {
    let path = dir.join(format!("{name}.img"));
    std::fs::write(&path, pattern(0, bytes)).expect("a new file");
    let options =
        ImageOptions { path, name: name.into(), read_only, cache: CacheMode::Writeback, rotational: false };
    open_image(&options).expect("our own file")
}

/// Memory, all holes.
pub(crate) fn memory(name: &str, size: u64) -> Image {
    memory_with(ExportInfo { fast_zero: true, tells_allocation: true, ..ExportInfo::new(name, size) })
}

/// Memory that clients are told this about.
pub(crate) fn memory_with(info: ExportInfo) -> Image {
    let memory = MemoryExport::new(info.size).expect("a small export");
    Image { info, spec: ExportSpec { files: Vec::new(), build: Box::new(move |_| Box::new(memory)) } }
}

/// Bytes of each piece that [`scattered`] answers with.
pub(crate) const PIECE_BYTES: usize = 1000;

/// An export that answers reads of [`pattern`] in pieces, as a store that finds its blocks in many places. In
/// its upper half every third piece, from the second on, is a hole where that is allowed, and zero elsewhere.
pub(crate) fn scattered(name: &str, size: u64) -> Image {
    let build = move || Scattered { half: size / 2 };
    let spec = ExportSpec { files: Vec::new(), build: Box::new(move |_| Box::new(build())) };
    Image { info: ExportInfo::new(name, size), spec }
}

struct Scattered {
    half: u64,
}

impl Scattered {
    fn read(&self, offset: u64, mut rest: Buf, holes: bool) -> Payload {
        let bytes = pattern(offset, rest.len());
        rest.copy_from_slice(&bytes);
        // Empty pieces may come out of careless arithmetic; they must not reach the wire.
        let mut extents = vec![Extent::Data(rest.split_to(0))];
        for number in 0.. {
            let mut piece = rest.split_to(rest.len().min(PIECE_BYTES));
            let zero = offset >= self.half && number % 3 == 1;
            if zero && holes {
                extents.push(Extent::Hole(u32::try_from(piece.len()).expect("a piece")));
            } else {
                if zero {
                    piece.fill(0);
                }
                extents.push(Extent::Data(piece));
            }
            if rest.is_empty() {
                break;
            }
        }
        extents.push(Extent::Data(rest));
        Payload::Extents(extents)
    }
}

impl Export for Scattered {
    fn start(&mut self, request: Request, io: &mut Io<'_>) {
        let payload = match request.command {
            Command::Read { buf, holes } => self.read(request.offset, buf, holes),
            _ => Payload::None,
        };
        io.reply(request.id, Ok(payload));
    }

    fn disk_done(&mut self, done: DiskDone, _io: &mut Io<'_>) {
        panic!("nothing has no disk, yet {:?} ended", done.op);
    }
}

/// The commands that have reached an export, in order.
pub(crate) type Journal = Arc<Mutex<Vec<String>>>;

/// What a journal holds now.
pub(crate) fn entries(journal: &Journal) -> Vec<String> {
    journal.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// An export that answers nothing until a `CACHE` request, then everything at once in an
/// order that nobody asked for: every second one first. Reads
/// see [`pattern`].
pub(crate) fn gate(name: &str, size: u64) -> (Image, Journal) {
    let journal = Journal::default();
    let told = Arc::clone(&journal);
    // Made on the reactor's thread: buffers do not leave it.
    let build = move || Gate { held: Vec::new(), journal: told };
    let spec = ExportSpec { files: Vec::new(), build: Box::new(move |_| Box::new(build())) };
    (Image { info: ExportInfo::new(name, size), spec }, journal)
}

struct Gate {
    held: Vec<(RequestId, Payload)>,
    journal: Journal,
}

impl Gate {
    fn note(&self, request: &Request) {
        let name = match request.command {
            Command::Read { .. } => "read",
            Command::Write { .. } => "write",
            Command::Flush => "flush",
            Command::Trim { .. } => "trim",
            Command::WriteZeroes { .. } => "zeroes",
            Command::Cache => "cache",
            Command::BlockStatus { .. } => "status",
        };
        let line = format!("{name} {}+{}", request.offset, request.length);
        self.journal.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

impl Export for Gate {
    fn start(&mut self, request: Request, io: &mut Io<'_>) {
        self.note(&request);
        let opens = matches!(request.command, Command::Cache);
        let payload = match request.command {
            Command::Read { mut buf, .. } => {
                let bytes = buf.len();
                buf.copy_from_slice(&pattern(request.offset, bytes));
                Payload::Data(buf)
            }
            _ => Payload::None,
        };
        self.held.push((request.id, payload));
        if opens {
            let (even, odd): (Vec<_>, Vec<_>) =
                (0..).zip(self.held.drain(..)).partition(|(at, _)| at % 2 == 0);
            for (_, (id, payload)) in odd.into_iter().chain(even) {
                io.reply(id, Ok(payload));
            }
        }
    }

    fn disk_done(&mut self, done: DiskDone, _io: &mut Io<'_>) {
        panic!("the gate has no disk, yet {:?} ended", done.op);
    }
}
