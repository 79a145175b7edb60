//! The checkpoint: allocator and head maps of a store that was stopped, so that the next start need not read every
//! map record. Drawn byte by byte in docs/on-disk-format.md, "checkpoint".
//!
//! What lives here: bytes from a stopped store ([`Saved::write`]) and back ([`Checkpoint::decode`]), without files. Where
//! the bytes are kept is in [`mod@file`].
//!
//! **It is a cache.** It is believed only as a whole: every byte under a checksum, of this store, and of this store's
//! last commit. Two states of one store with the same commit number cannot both have been durable, so "the same
//! commit" means "the same records". (Whoever puts together files of two backups, after a store was put back to one of
//! them and went on, can make that untrue: fsck finds it.) Whatever else is found is not used, and nothing is lost by
//! that but time.

use std::collections::HashMap;
use std::io::{self, Write};

use crate::catalog::format::FORMAT_VERSION;
use crate::catalog::load::{Loaded, PoolUse};
use crate::map::{FlatMap, PageFault};
use crate::units::{LayerId, Mask, PoolCluster, VolumeId, cluster_count};

pub mod file;
#[cfg(test)]
mod tests;

const MAGIC: &[u8; 8] = b"BLKDCKPT";
const HEADER_BYTES: usize = 64;
/// The header's checksum covers what lies before it.
const HEADER_CRC: usize = 60;
const PAGE_HEAD_BYTES: usize = 16;
/// Of the allocator's bitmap in a page.
const WORDS_PER_PAGE: usize = 8192;
const PACKED_ROWS_PER_PAGE: usize = 8192;

/// Kinds of pages.
mod kind {
    pub(super) const IN_USE: u32 = 1;
    pub(super) const PACKED: u32 = 2;
    pub(super) const MAP: u32 = 3;
    pub(super) const ENTRIES: u32 = 4;
    pub(super) const END: u32 = 5;
}

/// Why a checkpoint is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Some byte is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Of a later program.
    #[error("it has version {0}, this program knows {FORMAT_VERSION}")]
    Newer(u32),
    /// Of another store.
    #[error("it is of another store")]
    Foreign,
    /// The store has gone on since.
    #[error("it is of commit {found}, the store is at {expected}")]
    OutOfDate {
        /// The checkpoint's.
        found: u64,
        /// The store's.
        expected: u64,
    },
}

use Unusable::Damaged;

/// What a checkpoint says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the store.
    pub identity: [u8; 16],
    /// The last one that it holds.
    pub commit: u64,
    /// Of all pool files.
    pub pool_clusters: u32,
    /// How many there are.
    pub maps: u32,
}

fn field<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.maps.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.identity);
        bytes[32..40].copy_from_slice(&self.commit.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.pool_clusters.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..HEADER_CRC]);
        bytes[HEADER_CRC..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Takes any bytes.
    ///
    /// # Errors
    /// `Damaged`, `Newer`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unusable> {
        let bytes = bytes.first_chunk().ok_or(Damaged("its header is cut short"))?;
        if field(bytes, 0) != *MAGIC || crc_of(bytes) != crc32c::crc32c(&bytes[..HEADER_CRC]) {
            return Err(Damaged("its header"));
        }
        match u32::from_le_bytes(field(bytes, 8)) {
            FORMAT_VERSION => {}
            found => return Err(Unusable::Newer(found)),
        }
        Ok(Self {
            identity: field(bytes, 16),
            commit: u64::from_le_bytes(field(bytes, 32)),
            pool_clusters: u32::from_le_bytes(field(bytes, 40)),
            maps: u32::from_le_bytes(field(bytes, 12)),
        })
    }

    /// Whether it is of the state that a catalog is of.
    fn check(&self, loaded: &Loaded) -> Result<(), Unusable> {
        if self.identity != loaded.store.identity {
            return Err(Unusable::Foreign);
        }
        if self.commit != loaded.commit {
            return Err(Unusable::OutOfDate { found: self.commit, expected: loaded.commit });
        }
        if u64::from(self.pool_clusters) != loaded.pool_clusters() {
            return Err(Damaged("it is of another pool"));
        }
        Ok(())
    }
}

fn crc_of(header: &[u8; HEADER_BYTES]) -> u32 {
    u32::from_le_bytes(field(header, HEADER_CRC))
}

/// A stopped store, to be written.
#[derive(Debug)]
pub struct Saved<'a> {
    /// Of the store.
    pub identity: [u8; 16],
    /// The last one: everything here is durable.
    pub commit: u64,
    /// Of all pool files.
    pub pool_clusters: u32,
    /// What records name.
    pub in_use: PoolUse,
    /// Of volumes, with their head layers.
    pub maps: Vec<(VolumeId, LayerId, &'a FlatMap)>,
}

impl Saved<'_> {
    /// How long it will be, about.
    pub fn bytes_about(&self) -> u64 {
        let maps = self.maps.iter().map(|(_, _, map)| map.memory_bytes() as u64);
        maps.sum::<u64>() + 8 * (self.in_use.used.len() + self.in_use.packed.len()) as u64
    }

    /// Writes the checkpoint, page by page.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let maps = u32::try_from(self.maps.len()).map_err(io::Error::other)?;
        let Self { identity, commit, pool_clusters, .. } = *self;
        let header = Header { identity, commit, pool_clusters, maps }.encode();
        out.write_all(&header)?;
        let mut pages = PageWriter { out, number: 0, header_crc: crc_of(&header), content: Vec::new() };
        self.write_pool(&mut pages)?;
        for &(volume, head, map) in &self.maps {
            write_map(volume, head, map, &mut pages)?;
        }
        pages.end(kind::END)
    }

    fn write_pool(&self, pages: &mut PageWriter<'_>) -> io::Result<()> {
        for words in self.in_use.used.chunks(WORDS_PER_PAGE) {
            pages.content.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            pages.end(kind::IN_USE)?;
        }
        let mut packed: Vec<_> = self.in_use.packed.iter().collect();
        packed.sort_unstable_by_key(|(cluster, _)| **cluster);
        for rows in packed.chunks(PACKED_ROWS_PER_PAGE) {
            for (cluster, blocks) in rows {
                pages.content.extend_from_slice(&cluster.0.to_le_bytes());
                pages.content.extend_from_slice(&u32::from(blocks.0).to_le_bytes());
            }
            pages.end(kind::PACKED)?;
        }
        Ok(())
    }
}

fn write_map(volume: VolumeId, head: LayerId, map: &FlatMap, pages: &mut PageWriter<'_>) -> io::Result<()> {
    pages.content.extend_from_slice(&volume.0.to_le_bytes());
    pages.content.extend_from_slice(&head.0.to_le_bytes());
    pages.content.extend_from_slice(&map.clusters().to_le_bytes());
    pages.end(kind::MAP)?;
    for number in map.page_numbers() {
        map.encode_page(number, &mut pages.content);
        if !pages.content.is_empty() {
            pages.end(kind::ENTRIES)?;
        }
    }
    Ok(())
}

struct PageWriter<'a> {
    out: &'a mut dyn Write,
    number: u32,
    header_crc: u32,
    /// Of the page at hand.
    content: Vec<u8>,
}

impl PageWriter<'_> {
    /// The page at hand is complete.
    fn end(&mut self, kind: u32) -> io::Result<()> {
        let length = u32::try_from(self.content.len()).map_err(io::Error::other)?;
        let mut head = [0; PAGE_HEAD_BYTES];
        for (at, field) in [(0, kind), (4, self.number), (8, length)] {
            head[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        let crc = page_crc(self.header_crc, &head, &self.content);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        self.out.write_all(&head)?;
        self.out.write_all(&self.content)?;
        self.content.clear();
        self.number += 1;
        Ok(())
    }
}

fn page_crc(header_crc: u32, head: &[u8; PAGE_HEAD_BYTES], content: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(header_crc, &head[..12]), content)
}

/// The map of a volume, as a checkpoint had it.
#[derive(Debug)]
pub struct SavedMap {
    /// Whose.
    pub volume: VolumeId,
    /// Its open layer.
    pub head: LayerId,
    /// What it says.
    pub map: Box<FlatMap>,
}

/// What a start takes from a checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    /// What records name.
    pub in_use: PoolUse,
    /// Of some volumes.
    pub maps: Vec<SavedMap>,
}

impl Checkpoint {
    /// Reads a checkpoint of the very state that the catalog is of. Takes any bytes.
    ///
    /// # Errors
    /// Why it is not used.
    pub fn decode(bytes: &[u8], loaded: &Loaded) -> Result<Self, Unusable> {
        let header = Header::decode(bytes)?;
        header.check(loaded)?;
        let crc = bytes.first_chunk().map(crc_of).ok_or(Damaged("its header is cut short"))?;
        let pages = PageReader { bytes: &bytes[HEADER_BYTES..], number: 0, header_crc: crc };
        Reading::new(header, loaded).run(pages)
    }
}

struct PageReader<'a> {
    bytes: &'a [u8],
    number: u32,
    header_crc: u32,
}

impl<'a> PageReader<'a> {
    fn next(&mut self) -> Result<(u32, &'a [u8]), Unusable> {
        let (head, rest) = self.bytes.split_first_chunk().ok_or(Damaged("it is cut short"))?;
        let field = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let split = rest.split_at_checked(field(8) as usize);
        let (content, rest) = split.ok_or(Damaged("it is cut short"))?;
        if field(12) != page_crc(self.header_crc, head, content) {
            return Err(Damaged("a page fails its checksum"));
        }
        if field(4) != self.number {
            return Err(Damaged("its pages are out of order"));
        }
        self.number += 1;
        self.bytes = rest;
        Ok((field(0), content))
    }
}

/// Takes pages. Every one has passed its checksum; that they are what a program of ours would write is checked here.
struct Reading<'a> {
    header: Header,
    loaded: &'a Loaded,
    words: usize,
    read: Checkpoint,
    /// Pages of kinds below that come no more.
    kind: u32,
}

impl<'a> Reading<'a> {
    fn new(header: Header, loaded: &'a Loaded) -> Self {
        let words = header.pool_clusters.div_ceil(64) as usize;
        let in_use = PoolUse { used: Vec::with_capacity(words), packed: HashMap::new() };
        Self { header, loaded, words, read: Checkpoint { in_use, maps: Vec::new() }, kind: 0 }
    }

    fn run(mut self, mut pages: PageReader<'_>) -> Result<Checkpoint, Unusable> {
        loop {
            let (kind, content) = pages.next()?;
            if kind < self.kind {
                return Err(Damaged("its pages are out of order"));
            }
            self.kind = if kind == kind::ENTRIES { kind::MAP } else { kind };
            match kind {
                kind::IN_USE => self.in_use(content)?,
                kind::PACKED => self.packed(content)?,
                kind::MAP => self.begin_map(content)?,
                kind::ENTRIES => self.entries(content)?,
                kind::END if content.is_empty() && pages.bytes.is_empty() => return self.finish(),
                _ => return Err(Damaged("a page of no known kind, or more after the last")),
            }
        }
    }

    fn in_use(&mut self, content: &[u8]) -> Result<(), Unusable> {
        let (words, rest) = content.as_chunks();
        let used = &mut self.read.in_use.used;
        if !rest.is_empty() || used.len() + words.len() > self.words {
            return Err(Damaged("its pool is longer than the pool"));
        }
        used.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
        Ok(())
    }

    fn packed(&mut self, content: &[u8]) -> Result<(), Unusable> {
        let (rows, rest) = content.as_chunks();
        for &[a, b, c, d, low, high, zero, zero_too] in rows {
            let cluster = PoolCluster(u32::from_le_bytes([a, b, c, d]));
            let blocks = Mask(u16::from_le_bytes([low, high]));
            let sound = zero == 0 && zero_too == 0 && self.read.in_use.is_used(cluster);
            if !sound || self.read.in_use.packed.insert(cluster, blocks).is_some() {
                return Err(Damaged("a row of a packed cluster cannot be"));
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Damaged("a row of a packed cluster is cut short")) }
    }

    fn begin_map(&mut self, content: &[u8]) -> Result<(), Unusable> {
        let &[a, b, c, d, e, f, g, h, ref clusters @ ..] =
            <&[u8; 16]>::try_from(content).map_err(|_| Damaged("the beginning of a map"))?;
        let volume = VolumeId(u32::from_le_bytes([a, b, c, d]));
        let head = LayerId(u32::from_le_bytes([e, f, g, h]));
        let clusters = u64::from_le_bytes(*clusters);
        let record = self.loaded.volumes.get(&volume);
        let known = record.is_some_and(|r| r.head == head && cluster_count(r.size) == clusters);
        if !known || self.read.maps.last().is_some_and(|last| last.volume >= volume) {
            return Err(Damaged("it has a map that no volume can have"));
        }
        self.read.maps.push(SavedMap { volume, head, map: Box::new(FlatMap::new(clusters)) });
        Ok(())
    }

    fn entries(&mut self, content: &[u8]) -> Result<(), Unusable> {
        let saved = self.read.maps.last_mut().ok_or(Damaged("it has entries of no map"))?;
        let fault = |fault: PageFault| Damaged(fault);
        saved.map.decode_page(content, self.header.pool_clusters).map_err(fault)
    }

    fn finish(self) -> Result<Checkpoint, Unusable> {
        let used = &self.read.in_use.used;
        let past = self.header.pool_clusters % 64;
        let beyond = past != 0 && used.last().is_some_and(|word| word >> past != 0);
        if used.len() != self.words || beyond || self.read.maps.len() != self.header.maps as usize {
            return Err(Damaged("it has less or more than its header says"));
        }
        Ok(self.read)
    }
}
