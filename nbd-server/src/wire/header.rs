//! Fixed-size headers: parsed from and written to byte arrays.

use super::constants::{EXTENDED_REQUEST_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC};

/// Bytes of a request header.
pub const REQUEST_HEADER_BYTES: usize = 28;
/// Bytes of an extended request header.
pub const EXTENDED_REQUEST_HEADER_BYTES: usize = 32;

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
    /// Bytes; no more than 32 bits of them without extended headers.
    pub length: u64,
}

impl RequestHeader {
    /// Parses a header; `None` when the magic is wrong: the stream cannot be trusted any more.
    pub fn parse(bytes: &[u8; REQUEST_HEADER_BYTES]) -> Option<Self> {
        let (header, rest) = Self::parse_all_but_length(bytes, REQUEST_MAGIC)?;
        let (length, _) = take::<4>(rest)?;
        Some(Self { length: u64::from(u32::from_be_bytes(length)), ..header })
    }

    /// The same of an extended header.
    pub fn parse_extended(bytes: &[u8; EXTENDED_REQUEST_HEADER_BYTES]) -> Option<Self> {
        let (header, rest) = Self::parse_all_but_length(bytes, EXTENDED_REQUEST_MAGIC)?;
        let (length, _) = take::<8>(rest)?;
        Some(Self { length: u64::from_be_bytes(length), ..header })
    }

    fn parse_all_but_length(bytes: &[u8], expected: u32) -> Option<(Self, &[u8])> {
        let (magic, rest) = take::<4>(bytes)?;
        let (flags, rest) = take::<2>(rest)?;
        let (command, rest) = take::<2>(rest)?;
        let (cookie, rest) = take::<8>(rest)?;
        let (offset, rest) = take::<8>(rest)?;
        let header = Self {
            flags: u16::from_be_bytes(flags),
            command: u16::from_be_bytes(command),
            cookie: u64::from_be_bytes(cookie),
            offset: u64::from_be_bytes(offset),
            length: 0,
        };
        (u32::from_be_bytes(magic) == expected).then_some((header, rest))
    }

    /// The header's bytes, as a client sends them that has not agreed on extended headers.
    ///
    /// # Panics
    /// When the length has more than 32 bits.
    pub fn to_bytes(self) -> [u8; REQUEST_HEADER_BYTES] {
        let mut out = [0; REQUEST_HEADER_BYTES];
        out[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        out[4..6].copy_from_slice(&self.flags.to_be_bytes());
        out[6..8].copy_from_slice(&self.command.to_be_bytes());
        out[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        out[16..24].copy_from_slice(&self.offset.to_be_bytes());
        let length = u32::try_from(self.length).expect("a length of 32 bits");
        out[24..28].copy_from_slice(&length.to_be_bytes());
        out
    }
}

fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    bytes.split_first_chunk::<N>().map(|(head, rest)| (*head, rest))
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
}
