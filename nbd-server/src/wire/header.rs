//! Fixed-size headers: parsed from and written to byte arrays.

use super::constants::{
    OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
};
use super::errno::Errno;

/// Bytes of a request header.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a structured chunk's header.
const CHUNK_HEADER_BYTES: usize = 20;
/// Bytes of a whole hole chunk: header, offset, length.
pub const HOLE_CHUNK_BYTES: usize = CHUNK_HEADER_BYTES + 12;

/// Bytes of an extent of a `BLOCK_STATUS` chunk.
pub const STATUS_EXTENT_BYTES: usize = 8;

/// A request as it stands on the wire, before anything was checked but its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags ([`super::command_flag`]).
    pub flags: u16,
    /// Command number ([`super::command`]).
    pub command: u16,
    /// The client's own mark, returned in every reply.
    pub cookie: u64,
    /// Bytes from the start of the export.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl RequestHeader {
    /// Parses a header; `None` when the magic is wrong: the stream cannot be trusted any more.
    pub fn parse(bytes: &[u8; REQUEST_HEADER_BYTES]) -> Option<Self> {
        let (magic, rest) = take::<4>(bytes)?;
        let (flags, rest) = take::<2>(rest)?;
        let (command, rest) = take::<2>(rest)?;
        let (cookie, rest) = take::<8>(rest)?;
        let (offset, rest) = take::<8>(rest)?;
        let (length, _) = take::<4>(rest)?;
        (u32::from_be_bytes(magic) == REQUEST_MAGIC).then(|| Self {
            flags: u16::from_be_bytes(flags),
            command: u16::from_be_bytes(command),
            cookie: u64::from_be_bytes(cookie),
            offset: u64::from_be_bytes(offset),
            length: u32::from_be_bytes(length),
        })
    }

    /// The header's bytes, as a client sends them.
    pub fn to_bytes(self) -> [u8; REQUEST_HEADER_BYTES] {
        let mut out = [0; REQUEST_HEADER_BYTES];
        out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        out[24..28].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    bytes.split_first_chunk::<N>().map(|(head, rest)| (*head, rest))
}

/// A simple reply's header; `None` for success.
pub fn simple_reply(cookie: u64, error: Option<Errno>) -> [u8; SIMPLE_REPLY_BYTES] {
    let mut out = [0; SIMPLE_REPLY_BYTES];
    out[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.map_or(0, Errno::to_wire).to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// A structured chunk's header. `payload` counts the bytes that follow it.
pub fn chunk_header(cookie: u64, kind: u16, done: bool, payload: u32) -> [u8; CHUNK_HEADER_BYTES] {
    let mut out = [0; CHUNK_HEADER_BYTES];
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    out[0..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..20].copy_from_slice(&payload.to_be_bytes());
    out
}

/// Header and offset of an `OFFSET_DATA` chunk whose `length` data bytes follow.
pub fn data_chunk_header(cookie: u64, done: bool, offset: u64, length: u32) -> [u8; CHUNK_HEADER_BYTES + 8] {
    let mut out = [0; CHUNK_HEADER_BYTES + 8];
    out[..20].copy_from_slice(&chunk_header(cookie, chunk::OFFSET_DATA, done, length + 8));
    out[20..].copy_from_slice(&offset.to_be_bytes());
    out
}

/// A whole `OFFSET_HOLE` chunk.
pub fn hole_chunk(cookie: u64, done: bool, offset: u64, length: u32) -> [u8; HOLE_CHUNK_BYTES] {
    let mut out = [0; HOLE_CHUNK_BYTES];
    out[..20].copy_from_slice(&chunk_header(cookie, chunk::OFFSET_HOLE, done, 12));
    out[20..28].copy_from_slice(&offset.to_be_bytes());
    out[28..].copy_from_slice(&length.to_be_bytes());
    out
}

/// Header of a `BLOCK_STATUS` chunk with so many extents, and the number of its meta context.
pub fn status_chunk_header(
    cookie: u64,
    done: bool,
    context: u32,
    extents: usize,
) -> [u8; CHUNK_HEADER_BYTES + 4] {
    let mut out = [0; CHUNK_HEADER_BYTES + 4];
    // Extents are bounded by STATUS_EXTENTS_MAX, far below 2^28.
    let payload = u32::try_from(4 + STATUS_EXTENT_BYTES * extents).expect("a short list");
    out[..20].copy_from_slice(&chunk_header(cookie, chunk::BLOCK_STATUS, done, payload));
    out[20..].copy_from_slice(&context.to_be_bytes());
    out
}

/// An extent as it stands in a `BLOCK_STATUS` chunk.
pub fn status_extent(length: u32, flags: u32) -> [u8; STATUS_EXTENT_BYTES] {
    let mut out = [0; STATUS_EXTENT_BYTES];
    out[..4].copy_from_slice(&length.to_be_bytes());
    out[4..].copy_from_slice(&flags.to_be_bytes());
    out
}

/// A whole, last error chunk without a message.
pub fn error_chunk(cookie: u64, error: Errno) -> [u8; CHUNK_HEADER_BYTES + 6] {
    let mut out = [0; CHUNK_HEADER_BYTES + 6];
    out[..20].copy_from_slice(&chunk_header(cookie, chunk::ERROR, true, 6));
    out[20..24].copy_from_slice(&error.to_wire().to_be_bytes());
    out
}

/// Appends a reply to an option.
pub fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    // Our own replies are far below 4 GiB; a longer one would be a bug of ours, not of the peer.
    let length = u32::try_from(data.len()).expect("an option reply fits 32 bits");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_header_round_trips() {
        let header =
            RequestHeader { flags: 3, command: 6, cookie: u64::MAX - 1, offset: 1 << 40, length: 77 };
        assert_eq!(RequestHeader::parse(&header.to_bytes()), Some(header));
    }

    #[test]
    fn a_wrong_magic_is_no_request() {
        let mut bytes = RequestHeader { flags: 0, command: 0, cookie: 0, offset: 0, length: 1 }.to_bytes();
        bytes[0] ^= 1;
        assert_eq!(RequestHeader::parse(&bytes), None);
    }

    #[test]
    fn chunks_carry_the_lengths_of_the_protocol_document() {
        let data = data_chunk_header(7, true, 4096, 512);
        assert_eq!(u32::from_be_bytes(data[16..20].try_into().unwrap()), 520);
        assert_eq!(hole_chunk(7, false, 0, 512)[4..6], [0, 0]);
        assert_eq!(error_chunk(7, Errno::Io)[20..24], [0, 0, 0, 5]);
    }
}
