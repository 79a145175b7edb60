//! What readers outside of the store see of a simulated host's pool.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use blockd::snapshot::PoolRead;
use fixtures::sim::BLOCK_BYTES;

/// What readers outside of the store see of the disk: blocks that were written, by their place.
#[derive(Clone, Default)]
pub(crate) struct Mirror(Arc<Mutex<BTreeMap<usize, Vec<u8>>>>);

impl Mirror {
    /// It shows these blocks from now on, and no others.
    pub(crate) fn replace(&self, blocks: BTreeMap<usize, Vec<u8>>) {
        *self.0.lock().expect("one thread") = blocks;
    }

    pub(crate) fn read(&self, at: usize, buffer: &mut [u8]) {
        let blocks = self.0.lock().expect("one thread");
        for (block, inside, piece) in pieces(at, buffer.len()) {
            match blocks.get(&block) {
                Some(bytes) => buffer[piece].copy_from_slice(&bytes[inside]),
                None => buffer[piece].fill(0),
            }
        }
    }

    pub(crate) fn write(&self, at: usize, data: &[u8]) {
        let mut blocks = self.0.lock().expect("one thread");
        for (block, inside, piece) in pieces(at, data.len()) {
            let bytes = blocks.entry(block).or_insert_with(|| vec![0; BLOCK_BYTES]);
            bytes[inside].copy_from_slice(&data[piece]);
        }
    }
}

/// The blocks that bytes lie in: which block, where in it, and which of the bytes.
fn pieces(at: usize, length: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let end = at + length;
    (at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).map(move |block| {
        let (first, last) = ((block * BLOCK_BYTES).max(at), ((block + 1) * BLOCK_BYTES).min(end));
        let start = block * BLOCK_BYTES;
        (block, first - start..last - start, first - at..last - at)
    })
}

/// One file of the pool.
pub(crate) struct MirrorFile {
    pub(crate) mirror: Mirror,
    /// Where it begins in the pool, in bytes.
    pub(crate) start: usize,
}

impl PoolRead for MirrorFile {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.mirror.read(self.start + usize::try_from(offset).expect("a small file"), buffer);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.mirror.write(self.start + usize::try_from(offset).expect("a small file"), bytes);
        Ok(())
    }

    fn settle(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }
}
