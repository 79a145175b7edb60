//! Which chunk lies in which pack.
//!
//! Index objects repeat what the packs say about themselves, so that a reader need not ask each pack. A wrong one can
//! hide a chunk, never change it: chunks are checked by their hashes.

use std::collections::{HashMap, HashSet};

use super::bytes::{Fields, Parsed, head};
use super::pack::{self, ENTRY_BYTES, Encoding, Entry, PACK_CHUNKS_MAX};
use super::{ArchiveError, Digest};

/// Packs in one index object.
pub const INDEX_PACKS_MAX: usize = 256;
/// Bytes of the largest index object.
pub const INDEX_BYTES_MAX: u64 = (16 + INDEX_PACKS_MAX * (36 + PACK_CHUNKS_MAX * ENTRY_BYTES)) as u64;
/// Chunks of an archive that are kept in memory, 44 bytes each, twice that while they are read: 2 TiB of different
/// content.
pub const CHUNKS_MAX: usize = 1 << 25;

const MAGIC: [u8; 8] = *b"BLKDINDX";

/// A pack and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedPack {
    /// Its name.
    pub name: Digest,
    /// What is in it, in order.
    pub entries: Vec<Entry>,
}

/// An index object.
pub fn encode(packs: &[IndexedPack]) -> Vec<u8> {
    assert!(packs.len() <= INDEX_PACKS_MAX, "an index object is full");
    let mut bytes = head(MAGIC);
    bytes.extend_from_slice(&u32::try_from(packs.len()).expect("few packs").to_le_bytes());
    for pack in packs {
        bytes.extend_from_slice(&pack.name);
        bytes.extend_from_slice(&u32::try_from(pack.entries.len()).expect("few chunks").to_le_bytes());
        for entry in &pack.entries {
            entry.encode(&mut bytes);
        }
    }
    bytes
}

/// What an index object says.
///
/// # Errors
/// It is no index object.
pub fn parse(bytes: &[u8]) -> Result<Vec<IndexedPack>, String> {
    let mut fields = Fields::open(bytes, MAGIC)?;
    let count = fields.u32()? as usize;
    if count > INDEX_PACKS_MAX {
        return Err(format!("it claims to have {count} packs"));
    }
    let packs = (0..count).map(|_| parse_pack(&mut fields)).collect::<Parsed<_>>()?;
    fields.end()?;
    Ok(packs)
}

fn parse_pack(fields: &mut Fields<'_>) -> Parsed<IndexedPack> {
    let (name, count) = (fields.array()?, fields.u32()? as usize);
    // Before anything is allocated for them.
    if !(1..=PACK_CHUNKS_MAX).contains(&count) || count * ENTRY_BYTES > fields.left() {
        return Err(format!("a pack claims to have {count} chunks"));
    }
    let entries = (0..count).map(|_| Entry::parse(fields)).collect::<Parsed<_>>()?;
    Ok(IndexedPack { name, entries })
}

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The pack's number in [`Index::pack`].
    pub pack: u32,
    /// Its first byte in the pack.
    pub offset: u32,
    /// How it is stored there.
    pub entry: Entry,
}

/// A [`Place`], packed: the pack's number, the offset, and the stored length, whose top bit tells the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    hash: Digest,
    pack: u32,
    offset: u32,
    stored: u32,
}

const PLAIN_BIT: u32 = 1 << 31;

impl Slot {
    fn place(self) -> Place {
        let encoding = if self.stored & PLAIN_BIT == 0 { Encoding::Zstd } else { Encoding::Plain };
        let entry = Entry { hash: self.hash, stored: self.stored & !PLAIN_BIT, encoding };
        Place { pack: self.pack, offset: self.offset, entry }
    }
}

/// All that is known of an archive's chunks.
#[derive(Debug, Default)]
pub struct Index {
    packs: Vec<Digest>,
    numbers: HashMap<Digest, u32>,
    /// Sorted by hash once [`seal`](Self::seal)ed.
    slots: Vec<Slot>,
    /// Chunks of packs that are under way.
    coming: HashSet<Digest>,
}

impl Index {
    /// Adds a pack; one that is known already changes nothing.
    ///
    /// # Errors
    /// There are too many chunks.
    pub fn add(&mut self, pack: &IndexedPack) -> Result<(), ArchiveError> {
        if self.numbers.contains_key(&pack.name) {
            return Ok(());
        }
        self.check_room(pack.entries.len())?;
        let number = u32::try_from(self.packs.len()).expect("fewer packs than chunks");
        self.numbers.insert(pack.name, number);
        self.packs.push(pack.name);
        let mut offset = u32::try_from(pack::HEAD_BYTES).expect("a few bytes");
        for entry in &pack.entries {
            let flag = if entry.encoding == Encoding::Plain { PLAIN_BIT } else { 0 };
            self.slots.push(Slot { hash: entry.hash, pack: number, offset, stored: entry.stored | flag });
            offset += entry.stored;
        }
        Ok(())
    }

    fn check_room(&self, chunks: usize) -> Result<(), ArchiveError> {
        if self.slots.len() + self.coming.len() + chunks <= CHUNKS_MAX {
            return Ok(());
        }
        let text = format!("the archive has more than {CHUNKS_MAX} chunks: begin another one");
        Err(ArchiveError::TooLarge(text))
    }

    /// Makes what was added be found. The first of several copies of a chunk is kept.
    pub fn seal(&mut self) {
        self.slots.sort_unstable();
        self.slots.dedup_by_key(|slot| slot.hash);
        self.slots.shrink_to_fit();
    }

    /// Where a chunk lies.
    pub fn find(&self, hash: &Digest) -> Option<Place> {
        let at = self.slots.binary_search_by(|slot| slot.hash.cmp(hash)).ok()?;
        Some(self.slots[at].place())
    }

    /// Whether a chunk is stored, or on its way.
    pub fn has(&self, hash: &Digest) -> bool {
        self.coming.contains(hash) || self.find(hash).is_some()
    }

    /// Notes that a chunk is on its way.
    ///
    /// # Errors
    /// There are too many chunks.
    pub fn comes(&mut self, hash: Digest) -> Result<(), ArchiveError> {
        self.check_room(1)?;
        self.coming.insert(hash);
        Ok(())
    }

    /// A pack's name.
    pub fn pack(&self, number: u32) -> Digest {
        self.packs[number as usize]
    }

    /// Whether a pack is known.
    pub fn has_pack(&self, name: &Digest) -> bool {
        self.numbers.contains_key(name)
    }

    /// How many chunks are known.
    pub fn chunks(&self) -> usize {
        self.slots.len()
    }

    /// How many packs are known.
    pub fn packs(&self) -> usize {
        self.packs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::tests::{chunk, pack_of};
    use super::*;

    fn indexed(seeds: &[u64]) -> IndexedPack {
        let pack = pack_of(seeds);
        IndexedPack { name: pack.name, entries: pack.entries }
    }

    #[test]
    fn chunks_are_found_where_they_lie() {
        let pack = pack_of(&[1, 2, 3]);
        let mut index = Index::default();
        index.add(&indexed(&[1, 2, 3])).unwrap();
        index.add(&indexed(&[3, 4])).unwrap();
        index.add(&indexed(&[1, 2, 3])).unwrap();
        index.seal();
        assert_eq!((index.chunks(), index.packs()), (4, 2));
        for seed in [1, 2, 3] {
            let (hash, content) = chunk(seed);
            let Place { offset, entry, .. } = index.find(&hash).unwrap();
            let stored = &pack.bytes[offset as usize..][..entry.stored as usize];
            assert_eq!(pack::decode(&entry, stored).unwrap(), content);
        }
        assert_eq!(index.find(&[9; 32]), None);
        index.comes([9; 32]).unwrap();
        assert!(index.has(&[9; 32]) && index.find(&[9; 32]).is_none());
    }

    #[test]
    fn objects_are_read_as_they_were_written() {
        let packs = [indexed(&[1]), indexed(&[2, 3])];
        assert_eq!(parse(&encode(&packs)).unwrap(), packs);
        assert_eq!(parse(&encode(&[])).unwrap(), []);
    }

    #[test]
    fn lying_counts_are_refused_before_anything_is_allocated() {
        let whole = encode(&[indexed(&[1, 2])]);
        for (at, count) in [(12, u32::MAX), (12, 3), (48, u32::MAX), (48, 0), (48, 3), (48, 4097)] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&count.to_le_bytes());
            assert!(parse(&bytes).is_err(), "{count} at {at}");
        }
        for length in 0..whole.len() {
            assert!(parse(&whole[..length]).is_err(), "cut to {length}");
        }
        assert!(parse(&[&whole[..], &[0]].concat()).is_err(), "a byte too many");
    }
}
