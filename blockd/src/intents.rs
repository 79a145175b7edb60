//! The intent log: records of a commit, written together with the data that they name, so that one sync of the pool
//! makes both durable (docs/on-disk-format.md, "The intent log"). Bytes and recovery; `area` does the I/O.
//!
//! One sync has no order in it: after a power cut the frame may be there and the data not. So a frame has a checksum of
//! every block that its records name for the first time, and the last frame counts only if all of them are what the
//! medium holds. The frames before it are known to be durable: the next one is not written before.
//!
//! What decides when a frame is written is [`crate::store`].

pub mod area;

use crate::catalog::format::{Change, content};
use crate::store::superblock::SUPERBLOCK_BYTES;
use crate::units::{CLUSTER_BLOCKS, CLUSTER_BYTES, PoolCluster};

/// Where it begins in the pool's first file: behind the superblock, in the superblock's cluster.
pub const INTENTS_OFFSET: u64 = SUPERBLOCK_BYTES as u64;
/// Bytes of it.
pub const INTENTS_BYTES: usize = CLUSTER_BYTES as usize - SUPERBLOCK_BYTES;

const MAGIC: [u8; 8] = *b"blkdINT1";
/// Bytes of a frame before its content.
const HEAD_BYTES: usize = 32;
/// The checksum is the last field of the head, and covers what lies before it and the content.
const CRC_OFFSET: usize = 28;
/// Bytes of a block's place and checksum.
const CHECKED_BYTES: usize = 12;
/// Frames begin at multiples of this.
const ALIGN: usize = 8;

/// Whose frames count: the store's, and what follows that commit of the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// The store's identity.
    pub identity: [u8; 16],
    /// The last commit of the metadata when the frame was written.
    pub commit: u64,
}

/// What a block holds, if its write has come to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Where it lies.
    pub cluster: PoolCluster,
    /// Which block of the cluster.
    pub block: u32,
    /// CRC-32C of its bytes.
    pub crc: u32,
}

/// One commit's worth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Blocks that its records name for the first time.
    pub checked: Vec<Checked>,
    /// Its records.
    pub changes: Vec<Change>,
}

/// Why the log cannot be used, and without it neither the store.
#[derive(Debug, thiserror::Error)]
pub enum IntentsError {
    /// A frame is missing that was durable when a later one was written.
    #[error(
        "INTENTS_DAMAGED: frame {missing} after commit {commit} is not whole, but frame {later} is there"
    )]
    Gap {
        /// Of the metadata.
        commit: u64,
        /// Number of the frame.
        missing: u32,
        /// Number of the one that was found.
        later: u32,
    },
    /// A frame has a good checksum and holds what is none of ours.
    #[error("INTENTS_DAMAGED: frame {0}: {1}")]
    Foreign(u32, &'static str),
}

/// What was found after a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// In order.
    pub changes: Vec<Change>,
    /// Frames that they are of.
    pub frames: u32,
    /// The last frame's data are not all there: it was being written, and nobody was told of it.
    pub unfinished: bool,
}

/// Adds a frame to the bytes of a log. `number` counts the frames of that base, from 0.
///
/// # Panics
/// When a frame has 2^32 bytes.
pub fn push(bytes: &mut Vec<u8>, base: Base, number: u32, checked: &[Checked], changes: &[Change]) {
    debug_assert!(bytes.len().is_multiple_of(ALIGN), "frames are aligned");
    let head = bytes.len();
    bytes.extend([0; HEAD_BYTES]);
    for Checked { cluster, block, crc } in checked {
        [cluster.0, *block, *crc].into_iter().for_each(|field| bytes.extend(field.to_be_bytes()));
    }
    content::push(bytes, changes);
    let length = |bytes: usize| u32::try_from(bytes).expect("a frame fits the log").to_be_bytes();
    let (content, checked) = (length(bytes.len() - head - HEAD_BYTES), length(checked.len()));
    let fields = &mut bytes[head..head + CRC_OFFSET];
    fields[..8].copy_from_slice(&MAGIC);
    fields[8..16].copy_from_slice(&base.commit.to_be_bytes());
    fields[16..20].copy_from_slice(&number.to_be_bytes());
    fields[20..24].copy_from_slice(&content);
    fields[24..28].copy_from_slice(&checked);
    let crc = crc_of(&bytes[head..], base);
    bytes[head + CRC_OFFSET..head + HEAD_BYTES].copy_from_slice(&crc.to_be_bytes());
    bytes.resize(bytes.len().next_multiple_of(ALIGN), 0);
}

/// Of a whole frame. The identity is part of it: frames of another store's pool are none.
fn crc_of(frame: &[u8], base: Base) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&base.identity), &frame[..CRC_OFFSET]);
    crc32c::crc32c_append(crc, &frame[HEAD_BYTES..])
}

/// A frame's head and content, its checksum good.
struct Whole<'a> {
    number: u32,
    checked: usize,
    content: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

fn whole_frame(area: &[u8], at: usize, base: Base) -> Option<Whole<'_>> {
    let head = area.get(at..)?.first_chunk::<HEAD_BYTES>()?;
    let field = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes"));
    let commit = u64::from_be_bytes(head[8..16].try_into().expect("8 bytes"));
    if head[..8] != MAGIC || commit != base.commit {
        return None;
    }
    let end = at + HEAD_BYTES + field(20) as usize;
    let frame = area.get(at..end)?;
    let checked = field(24) as usize;
    let sound =
        crc_of(frame, base) == field(CRC_OFFSET) && checked * CHECKED_BYTES <= frame.len() - HEAD_BYTES;
    let content = &frame[HEAD_BYTES..];
    sound.then(|| Whole { number: field(16), checked, content, end: end.next_multiple_of(ALIGN) })
}

fn decode(whole: &Whole<'_>) -> Result<Frame, IntentsError> {
    let foreign = |why| IntentsError::Foreign(whole.number, why);
    let (checked, changes) = whole.content.split_at(whole.checked * CHECKED_BYTES);
    let mut frame = Frame::default();
    for fields in checked.chunks_exact(CHECKED_BYTES) {
        let field = |at: usize| u32::from_be_bytes(fields[at..at + 4].try_into().expect("4 bytes"));
        let (cluster, block, crc) = (PoolCluster(field(0)), field(4), field(8));
        if block >= CLUSTER_BLOCKS {
            return Err(foreign("it names a block that no cluster has"));
        }
        frame.checked.push(Checked { cluster, block, crc });
    }
    content::decode(changes, &mut frame.changes).map_err(foreign)?;
    if frame.changes.iter().any(|change| !matches!(change, Change::Map(..))) {
        return Err(foreign("it holds what is no map record"));
    }
    Ok(frame)
}

/// The frames that follow a commit, in order, up to the first that is not whole.
///
/// # Errors
/// `Gap`: a whole one lies behind that one. `Foreign`.
pub fn read(area: &[u8], base: Base) -> Result<Vec<Frame>, IntentsError> {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some(whole) = whole_frame(area, at, base).filter(|whole| whole.number as usize == frames.len())
    {
        frames.push(decode(&whole)?);
        at = whole.end;
    }
    let missing = u32::try_from(frames.len()).expect("frames of a small log");
    let behind = (at..area.len()).step_by(ALIGN).filter_map(|at| whole_frame(area, at, base));
    match behind.map(|whole| whole.number).find(|&number| number > missing) {
        Some(later) => Err(IntentsError::Gap { commit: base.commit, missing, later }),
        None => Ok(frames),
    }
}

/// What a log makes durable after a commit. `block` reads a block of the pool. One that cannot be read counts as
/// written: whoever reads it will get an error, and the others of its frame may have been promised.
///
/// # Errors
/// See [`read`].
pub fn recover(
    area: &[u8],
    base: Base,
    mut block: impl FnMut(PoolCluster, u32) -> Option<Vec<u8>>,
) -> Result<Recovered, IntentsError> {
    let mut frames = read(area, base)?;
    let mut unfinished = false;
    if let Some(last) = frames.last() {
        let mut differs = |checked: &Checked| {
            block(checked.cluster, checked.block).is_some_and(|bytes| crc32c::crc32c(&bytes) != checked.crc)
        };
        unfinished = last.checked.iter().any(&mut differs);
    }
    if unfinished {
        frames.pop();
    }
    let count = u32::try_from(frames.len()).expect("frames of a small log");
    let changes = frames.into_iter().flat_map(|frame| frame.changes).collect();
    Ok(Recovered { changes, frames: count, unfinished })
}

#[cfg(test)]
mod tests;
