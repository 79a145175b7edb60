//! Packs: chunks, one after the other, and at the end what lies where.
//!
//! An entry tells how long its chunk is, not where it lies: that follows from those before it, so entries cannot
//! overlap. Nor does it tell the length of the content, which is always [`CHUNK_BYTES`].

use super::bytes::{Fields, Parsed, head};
use super::{Digest, hex};

/// Bytes of a chunk's content: one cluster. A cluster that the volume's end cuts short is filled up with zeroes.
pub const CHUNK_BYTES: usize = crate::units::CLUSTER_BYTES as usize;
/// Bytes of chunks at which a pack is closed.
pub const PACK_DATA_BYTES: usize = 16 << 20;
/// Chunks at which a pack is closed.
pub const PACK_CHUNKS_MAX: usize = 4096;
/// Bytes of the largest pack.
pub const PACK_BYTES_MAX: u64 =
    (HEAD_BYTES + PACK_DATA_BYTES + CHUNK_BYTES + PACK_CHUNKS_MAX * ENTRY_BYTES + TAIL_BYTES) as u64;
/// Bytes before the first chunk: magic and version.
pub const HEAD_BYTES: usize = 12;
/// Bytes of an entry: hash, stored length, encoding.
pub const ENTRY_BYTES: usize = 37;
/// Bytes after the entries: their BLAKE3, their number, magic.
pub const TAIL_BYTES: usize = 44;

const MAGIC: [u8; 8] = *b"BLKDPACK";
const TAIL_MAGIC: [u8; 8] = *b"BLKDPEND";
/// Higher levels take several times as long for a few percent.
const ZSTD_LEVEL: i32 = 3;
/// What compression must save to be worth undoing it.
const SAVED_BYTES_MIN: usize = CHUNK_BYTES / 32;

/// How a chunk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Plain,
    /// One zstd frame, or several.
    Zstd,
}

/// A chunk in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// BLAKE3 of its content.
    pub hash: Digest,
    /// Bytes in the pack.
    pub stored: u32,
    /// How to read them.
    pub encoding: Encoding,
}

impl Entry {
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.hash);
        bytes.extend_from_slice(&self.stored.to_le_bytes());
        bytes.push(match self.encoding {
            Encoding::Plain => 0,
            Encoding::Zstd => 1,
        });
    }

    pub(super) fn parse(fields: &mut Fields<'_>) -> Parsed<Self> {
        let (hash, stored) = (fields.array()?, fields.u32()?);
        let encoding = match fields.u8()? {
            0 => Encoding::Plain,
            1 => Encoding::Zstd,
            other => return Err(format!("a chunk has the unknown encoding {other}")),
        };
        let fits = match encoding {
            Encoding::Plain => stored as usize == CHUNK_BYTES,
            Encoding::Zstd => (1..CHUNK_BYTES).contains(&(stored as usize)),
        };
        if fits { Ok(Self { hash, stored, encoding }) } else { Err(format!("a chunk of {stored} bytes")) }
    }
}

/// A chunk as it is put into a pack.
#[derive(Debug)]
pub struct Stored {
    entry: Entry,
    bytes: Vec<u8>,
}

/// Compresses a chunk, if that pays.
///
/// # Panics
/// When the content has another length than [`CHUNK_BYTES`].
pub fn encode(hash: Digest, content: Vec<u8>) -> Stored {
    assert_eq!(content.len(), CHUNK_BYTES, "a chunk is a whole cluster");
    // A failure to compress is no failure to store.
    let smaller = zstd::bulk::compress(&content, ZSTD_LEVEL).ok();
    let smaller = smaller.filter(|smaller| smaller.len() + SAVED_BYTES_MIN <= CHUNK_BYTES);
    let (encoding, bytes) = match smaller {
        Some(smaller) => (Encoding::Zstd, smaller),
        None => (Encoding::Plain, content),
    };
    let stored = u32::try_from(bytes.len()).expect("no more than a chunk");
    Stored { entry: Entry { hash, stored, encoding }, bytes }
}

/// Restores a chunk's content, and checks it.
///
/// # Errors
/// It is not what the entry says. Nothing larger than a chunk is ever made of it.
pub fn decode(entry: &Entry, stored: &[u8]) -> Result<Vec<u8>, String> {
    let content = match entry.encoding {
        Encoding::Plain => stored.to_vec(),
        Encoding::Zstd => {
            let mut content = vec![0; CHUNK_BYTES];
            let made = zstd::bulk::decompress_to_buffer(stored, &mut content[..]);
            let made =
                made.map_err(|error| format!("chunk {} cannot be restored: {error}", hex(&entry.hash)))?;
            content.truncate(made);
            content
        }
    };
    if content.len() != CHUNK_BYTES {
        return Err(format!("chunk {} has {} bytes, not {CHUNK_BYTES}", hex(&entry.hash), content.len()));
    }
    let found: Digest = blake3::hash(&content).into();
    if found == entry.hash {
        Ok(content)
    } else {
        Err(format!("chunk {} has another hash", hex(&entry.hash)))
    }
}

/// A pack that is complete.
#[derive(Debug)]
pub struct Pack {
    /// BLAKE3 of the bytes.
    pub name: Digest,
    /// The object.
    pub bytes: Vec<u8>,
    /// What is in it.
    pub entries: Vec<Entry>,
}

/// Gathers chunks.
#[derive(Debug)]
pub struct PackBuilder {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Default for PackBuilder {
    fn default() -> Self {
        Self { bytes: head(MAGIC), entries: Vec::new() }
    }
}

impl PackBuilder {
    /// Appends a chunk.
    ///
    /// # Panics
    /// When it is full.
    pub fn add(&mut self, chunk: Stored) {
        assert!(!self.is_full(), "a full pack is finished first");
        self.bytes.extend_from_slice(&chunk.bytes);
        self.entries.push(chunk.entry);
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether it takes no more.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= HEAD_BYTES + PACK_DATA_BYTES || self.entries.len() >= PACK_CHUNKS_MAX
    }

    /// Closes it.
    pub fn finish(self) -> Pack {
        let Self { mut bytes, entries } = self;
        let start = bytes.len();
        for entry in &entries {
            entry.encode(&mut bytes);
        }
        let digest: Digest = blake3::hash(&bytes[start..]).into();
        bytes.extend_from_slice(&digest);
        let count = u32::try_from(entries.len()).expect("few chunks");
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(&TAIL_MAGIC);
        Pack { name: blake3::hash(&bytes).into(), bytes, entries }
    }
}

/// Bytes of a pack with these entries.
pub fn size_of(entries: &[Entry]) -> u64 {
    let data: u64 = entries.iter().map(|entry| u64::from(entry.stored)).sum();
    data + (HEAD_BYTES + entries.len() * ENTRY_BYTES + TAIL_BYTES) as u64
}

/// How many bytes from a pack's end hold all its entries, whatever their number.
pub fn footer_bytes(size: u64) -> u64 {
    size.min((PACK_CHUNKS_MAX * ENTRY_BYTES + TAIL_BYTES) as u64)
}

/// What a pack of `size` bytes holds, out of its last [`footer_bytes`].
///
/// # Errors
/// It does not describe a pack of that size.
pub fn parse_footer(size: u64, footer: &[u8]) -> Result<Vec<Entry>, String> {
    let start = footer.len().checked_sub(TAIL_BYTES).ok_or("it is too short for a pack")?;
    let mut tail = Fields::of(&footer[start..]);
    let (digest, count) = (tail.array::<32>()?, tail.u32()? as usize);
    if tail.array::<8>()? != TAIL_MAGIC {
        return Err("it does not end as a pack does".to_owned());
    }
    if !(1..=PACK_CHUNKS_MAX).contains(&count) {
        return Err(format!("it claims to have {count} chunks"));
    }
    let entries = start.checked_sub(count * ENTRY_BYTES).ok_or("it is too short for its chunks")?;
    if *blake3::hash(&footer[entries..start]).as_bytes() != digest {
        return Err("its list of chunks is damaged".to_owned());
    }
    let mut fields = Fields::of(&footer[entries..start]);
    let entries: Vec<Entry> = (0..count).map(|_| Entry::parse(&mut fields)).collect::<Parsed<_>>()?;
    let expected = size_of(&entries);
    if expected == size {
        Ok(entries)
    } else {
        Err(format!("it has {size} bytes, its chunks need {expected}"))
    }
}

#[cfg(test)]
pub(crate) mod tests;
