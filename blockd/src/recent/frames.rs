//! The bytes of a recent log, as docs/on-disk-format.md draws them. No I/O.

use super::Origin;
use crate::catalog::format::{Change, content};

/// Bytes of the header.
const HEADER_BYTES: usize = 48;
/// Bytes before a frame's content: its length and its checksum.
const FRAME_HEAD_BYTES: usize = 8;
/// In place of a commit's number: the log was given up. No commit has it.
pub(super) const ABANDONED: u64 = 0;
const MAGIC: [u8; 8] = *b"blkdRCT1";

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) commit: u64,
    pub(super) origin: Origin,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..24].copy_from_slice(&self.origin.identity);
        bytes[24..40].copy_from_slice(&self.origin.boot);
        bytes[40..].copy_from_slice(&self.commit.to_be_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, &'static str> {
        let field = |at: usize| -> [u8; 16] { bytes[at..at + 16].try_into().expect("16 bytes") };
        if bytes[..8] != MAGIC {
            return Err("it is of another version, or none");
        }
        let commit = u64::from_be_bytes(bytes[40..].try_into().expect("8 bytes"));
        Ok(Self { commit, origin: Origin { identity: field(8), boot: field(24) } })
    }
}

/// The checksum of a header, which those of its frames go on from: no frame of another header passes.
pub(super) fn crc_of(header: &[u8; HEADER_BYTES]) -> u32 {
    crc32c::crc32c(header)
}

/// Adds a frame with the changes.
pub(super) fn push(buffer: &mut Vec<u8>, header_crc: u32, changes: &[Change]) {
    let head = buffer.len();
    buffer.extend([0; FRAME_HEAD_BYTES]);
    content::push(buffer, changes);
    let content = &buffer[head + FRAME_HEAD_BYTES..];
    let length = u32::try_from(content.len()).expect("a turn's changes");
    let crc = crc32c::crc32c_append(header_crc, content);
    buffer[head..head + 4].copy_from_slice(&length.to_be_bytes());
    buffer[head + 4..head + 8].copy_from_slice(&crc.to_be_bytes());
}

/// What one file holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) commit: u64,
    pub(super) changes: Vec<Change>,
    /// Its last frame is not whole: the process was killed while it wrote it, and has told nobody.
    pub(super) torn: bool,
}

/// Reads a file; `None`: it is empty.
///
/// # Errors
/// Why it is not to be used.
pub(super) fn read(bytes: &[u8], origin: Origin) -> Result<Option<Kept>, &'static str> {
    let Some((head, mut rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return if bytes.is_empty() { Ok(None) } else { Err("it ends within its header") };
    };
    let header = Header::decode(head)?;
    if header.origin.identity != origin.identity {
        return Err("it is of another store");
    }
    if header.origin.boot != origin.boot {
        return Err("the system was started again since");
    }
    let crc = crc_of(head);
    let mut changes = Vec::new();
    while let Some((content, behind)) = frame(rest, crc) {
        content::decode(content, &mut changes)?;
        rest = behind;
    }
    Ok(Some(Kept { commit: header.commit, changes, torn: !rest.is_empty() }))
}

/// The content of the first frame, if it is whole, and what follows it.
fn frame(bytes: &[u8], header_crc: u32) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<FRAME_HEAD_BYTES>()?;
    let [a, b, c, d, crc @ ..] = *head;
    let (content, behind) = rest.split_at_checked(u32::from_be_bytes([a, b, c, d]) as usize)?;
    (crc32c::crc32c_append(header_crc, content) == u32::from_be_bytes(crc)).then_some((content, behind))
}
