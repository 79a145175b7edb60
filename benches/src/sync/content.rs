//! What is written: data that nothing can compress, the same for a volume and for a peer's file.
//!
//! This is preparation, not load: one request at a time, and nobody measures meanwhile.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use fixtures::nbd::client::Client;

use crate::interrupt::Interrupt;
use crate::trouble::{OrTrouble, Trouble};

/// Bytes of a block that is changed.
pub const BLOCK: u64 = 4096;
/// Bytes of a cluster of the store.
pub const CLUSTER: u64 = 64 << 10;
/// Bytes of a write that fills.
const PIECE: u64 = 1 << 20;
const NEXT: &str = "choose another place with --dir, or a smaller --size";

/// Takes what is written.
pub trait Sink {
    /// Writes all of it there.
    ///
    /// # Errors
    /// It is not taken.
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<(), Trouble>;
    /// Makes it durable.
    ///
    /// # Errors
    /// It does not become so.
    fn flush(&mut self) -> Result<(), Trouble>;
}

/// A served volume.
pub struct Served(Client);

impl Served {
    /// Connects to it.
    ///
    /// # Errors
    /// It is not there.
    pub fn connect(socket: &Path, export: &str) -> Result<Self, Trouble> {
        let client = Client::connect(socket, export.as_bytes());
        client.map(Self).or_trouble(|| format!("connect to {export}"), "look at blockd's log")
    }
}

impl Sink for Served {
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<(), Trouble> {
        self.0.write(offset, data).or_trouble(|| "write to a volume".into(), NEXT)
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        self.0.flush().or_trouble(|| "flush a volume".into(), NEXT)
    }
}

/// A file.
#[derive(Debug)]
pub struct Plain(File);

impl Plain {
    /// Opens it, and makes it if it is not there.
    ///
    /// # Errors
    /// No space or no permission.
    pub fn open(path: &Path) -> Result<Self, Trouble> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        file.map(Self).or_trouble(|| format!("open {}", path.display()), NEXT)
    }
}

impl Sink for Plain {
    fn put(&mut self, offset: u64, data: &[u8]) -> Result<(), Trouble> {
        self.0.write_all_at(data, offset).or_trouble(|| "write a file".into(), NEXT)
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        self.0.sync_all().or_trouble(|| "sync a file".into(), NEXT)
    }
}

/// Where data lie: whole clusters, one every so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes that are written.
    pub filled: u64,
    /// Bytes from the beginning of a written cluster to that of the next; [`CLUSTER`]: no gaps.
    pub stride: u64,
}

impl Layout {
    /// All in one piece, from the beginning.
    pub fn contiguous(filled: u64) -> Self {
        Self { filled, stride: CLUSTER }
    }

    /// Evenly over so many bytes.
    pub fn spread(filled: u64, over: u64) -> Self {
        Self { filled, stride: (over / (filled / CLUSTER)) / CLUSTER * CLUSTER }
    }

    /// Where a written block lies, by its number.
    fn offset(self, block: u64) -> u64 {
        let at = block * BLOCK;
        at / CLUSTER * self.stride + at % CLUSTER
    }

    /// Writes everything, durably.
    ///
    /// # Errors
    /// It is not taken, or somebody asked to stop.
    pub fn fill(self, sink: &mut dyn Sink, seed: u64, interrupt: &Interrupt) -> Result<(), Trouble> {
        let piece = if self.stride == CLUSTER { PIECE } else { CLUSTER };
        let mut data = vec![0; usize::try_from(piece).or_trouble(|| "fill".into(), NEXT)?];
        let mut random = fastrand::Rng::with_seed(seed);
        for at in (0..self.filled).step_by(data.len()) {
            interrupt.check()?;
            random.fill(&mut data);
            sink.put(self.offset(at / BLOCK), &data)?;
        }
        sink.flush()
    }

    /// Writes so many of the written blocks anew, drawn at random and each once, durably.
    ///
    /// # Errors
    /// It is not taken, or somebody asked to stop.
    pub fn change(
        self,
        sink: &mut dyn Sink,
        count: u64,
        seed: u64,
        interrupt: &Interrupt,
    ) -> Result<(), Trouble> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut data = [0; BLOCK as usize];
        for block in self.draw(count, &mut random) {
            interrupt.check()?;
            random.fill(&mut data);
            sink.put(self.offset(block), &data)?;
        }
        sink.flush()
    }

    fn draw(self, count: u64, random: &mut fastrand::Rng) -> Vec<u64> {
        let blocks = self.filled / BLOCK;
        let (mut seen, mut drawn) = (HashSet::new(), Vec::new());
        while (drawn.len() as u64) < count.min(blocks) {
            let block = random.u64(0..blocks);
            if seen.insert(block) {
                drawn.push(block);
            }
        }
        drawn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Blocks by their offset.
    #[derive(Default)]
    struct Memory {
        blocks: BTreeMap<u64, Vec<u8>>,
        writes: usize,
    }

    impl Sink for Memory {
        fn put(&mut self, offset: u64, data: &[u8]) -> Result<(), Trouble> {
            for (at, block) in (offset..).step_by(BLOCK as usize).zip(data.chunks(BLOCK as usize)) {
                self.blocks.insert(at, block.to_vec());
            }
            self.writes += 1;
            Ok(())
        }

        fn flush(&mut self) -> Result<(), Trouble> {
            Ok(())
        }
    }

    #[test]
    fn changes_hit_written_blocks_each_once_and_change_them() {
        for layout in [Layout::contiguous(4 << 20), Layout::spread(4 << 20, 64 << 20)] {
            let (mut before, interrupt) = (Memory::default(), Interrupt::default());
            layout.fill(&mut before, 1, &interrupt).unwrap();
            assert_eq!(before.blocks.len() as u64, layout.filled / BLOCK);
            let mut after = Memory { blocks: before.blocks.clone(), writes: 0 };
            layout.change(&mut after, 100, 2, &interrupt).unwrap();
            assert_eq!((after.writes, after.blocks.len()), (100, before.blocks.len()));
            let changed = after.blocks.iter().filter(|(at, block)| before.blocks[at] != **block).count();
            assert_eq!(changed, 100);
        }
    }

    #[test]
    fn no_two_blocks_are_equal() {
        let mut memory = Memory::default();
        Layout::contiguous(8 << 20).fill(&mut memory, 7, &Interrupt::default()).unwrap();
        let distinct: HashSet<&Vec<u8>> = memory.blocks.values().collect();
        assert_eq!(distinct.len(), memory.blocks.len());
    }

    #[test]
    fn what_is_spread_reaches_over_the_volume() {
        let layout = Layout::spread(4 << 30, 64 << 30);
        assert_eq!(layout.stride, 1 << 20);
        assert_eq!(layout.offset((4 << 30) / BLOCK - 1), (64 << 30) - (1 << 20) + CLUSTER - BLOCK);
    }
}
