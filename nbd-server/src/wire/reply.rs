//! Heads of replies: what stands before a reply's data, or is all of it.

use std::ops::Deref;

use super::constants::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};
use super::errno::Errno;

/// The longest head, bytes: an extended chunk's header, and a hole.
const HEAD_BYTES_MAX: usize = 48;

/// How replies are written on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyForm {
    /// One header each; data follow it.
    Simple,
    /// Chunks for what has something to say, simple replies for the rest.
    Structured,
    /// Chunks only, with longer headers.
    Extended,
}

impl ReplyForm {
    /// Bytes of an extent of a meta context.
    pub fn extent_bytes(self) -> usize {
        if self == Self::Extended { 16 } else { 8 }
    }
}

/// The beginning of a reply, or a whole one.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    length: usize,
}

impl Head {
    const EMPTY: Self = Self { bytes: [0; HEAD_BYTES_MAX], length: 0 };

    fn with(mut self, bytes: &[u8]) -> Self {
        let end = self.length + bytes.len();
        self.bytes[self.length..end].copy_from_slice(bytes);
        self.length = end;
        self
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The request that is replied to.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo {
    /// As agreed on.
    pub form: ReplyForm,
    /// The client's mark.
    pub cookie: u64,
    /// As the request had it.
    pub offset: u64,
}

impl ReplyTo {
    /// Success without anything more. `chunked`: of a command whose replies come in chunks where they can.
    pub fn nothing(&self, chunked: bool) -> Head {
        if self.is_chunked(chunked) { self.chunk(chunk::NONE, true, 0) } else { self.simple(0) }
    }

    /// An error without a message; see [`Self::nothing`].
    pub fn error(&self, error: Errno, chunked: bool) -> Head {
        let number = error.to_wire();
        if self.is_chunked(chunked) {
            self.chunk(chunk::ERROR, true, 6).with(&number.to_be_bytes()).with(&[0; 2])
        } else {
            self.simple(number)
        }
    }

    /// What stands before so many bytes of data.
    pub fn data(&self, done: bool, offset: u64, length: u32) -> Head {
        if self.form == ReplyForm::Simple {
            return self.simple(0);
        }
        self.chunk(chunk::OFFSET_DATA, done, 8 + u64::from(length)).with(&offset.to_be_bytes())
    }

    /// A whole chunk about zeroes that are not sent.
    pub fn hole(&self, done: bool, offset: u64, length: u32) -> Head {
        let head = self.chunk(chunk::OFFSET_HOLE, done, 12);
        head.with(&offset.to_be_bytes()).with(&length.to_be_bytes())
    }

    /// What stands before the extents of a meta context.
    pub fn status(&self, done: bool, context: u32, extents: usize) -> Head {
        let bytes = (extents * self.form.extent_bytes()) as u64;
        // They are bounded by STATUS_EXTENTS_MAX.
        let count = u32::try_from(extents).expect("a short list").to_be_bytes();
        let context = context.to_be_bytes();
        match self.form {
            ReplyForm::Extended => {
                self.chunk(chunk::BLOCK_STATUS_EXT, done, 8 + bytes).with(&context).with(&count)
            }
            _ => self.chunk(chunk::BLOCK_STATUS, done, 4 + bytes).with(&context),
        }
    }

    /// Writes an extent into its place, of [`ReplyForm::extent_bytes`]. `length`: 32 bits where the form has no more.
    pub fn write_extent(&self, place: &mut [u8], length: u64, flags: u32) {
        if self.form == ReplyForm::Extended {
            place[..8].copy_from_slice(&length.to_be_bytes());
            place[8..].copy_from_slice(&u64::from(flags).to_be_bytes());
        } else {
            let length = u32::try_from(length).expect("no longer than its request");
            place[..4].copy_from_slice(&length.to_be_bytes());
            place[4..].copy_from_slice(&flags.to_be_bytes());
        }
    }

    /// A chunk's header; so many bytes follow it.
    pub fn chunk(&self, kind: u16, done: bool, payload: u64) -> Head {
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        let magic = match self.form {
            ReplyForm::Extended => EXTENDED_REPLY_MAGIC,
            _ => STRUCTURED_REPLY_MAGIC,
        };
        let head = Head::EMPTY.with(&magic.to_be_bytes()).with(&flags.to_be_bytes());
        let head = head.with(&kind.to_be_bytes()).with(&self.cookie.to_be_bytes());
        if self.form == ReplyForm::Extended {
            return head.with(&self.offset.to_be_bytes()).with(&payload.to_be_bytes());
        }
        // Payloads are bounded by MAX_PAYLOAD_BYTES and STATUS_EXTENTS_MAX.
        head.with(&u32::try_from(payload).expect("a bounded payload").to_be_bytes())
    }

    fn simple(&self, error: u32) -> Head {
        let head = Head::EMPTY.with(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head.with(&error.to_be_bytes()).with(&self.cookie.to_be_bytes())
    }

    fn is_chunked(&self, chunked: bool) -> bool {
        match self.form {
            ReplyForm::Simple => false,
            ReplyForm::Structured => chunked,
            ReplyForm::Extended => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(form: ReplyForm) -> ReplyTo {
        ReplyTo { form, cookie: 7, offset: 4096 }
    }

    #[test]
    fn chunks_carry_the_lengths_of_the_protocol_document() {
        let structured = to(ReplyForm::Structured);
        let data = structured.data(true, 4096, 512);
        assert_eq!((data.len(), &data[16..20]), (28, &520_u32.to_be_bytes()[..]));
        assert_eq!((structured.hole(false, 0, 512).len(), structured.hole(false, 0, 512)[5]), (32, 0));
        assert_eq!(structured.error(Errno::Io, true)[20..], [0, 0, 0, 5, 0, 0]);
        assert_eq!(structured.status(true, 9, 2)[16..], [0, 0, 0, 20, 0, 0, 0, 9]);
    }

    #[test]
    fn extended_chunks_repeat_the_requests_offset() {
        let extended = to(ReplyForm::Extended);
        for head in [extended.nothing(false), extended.error(Errno::Io, false), extended.hole(true, 8192, 1)]
        {
            assert_eq!(head[..4], EXTENDED_REPLY_MAGIC.to_be_bytes());
            assert_eq!(head[16..24], 4096_u64.to_be_bytes());
            assert_eq!(head[24..32], (head.len() as u64 - 32).to_be_bytes());
        }
        assert_eq!(extended.status(true, 9, 2)[24..], [0, 0, 0, 0, 0, 0, 0, 40, 0, 0, 0, 9, 0, 0, 0, 2]);
    }

    #[test]
    fn only_what_says_something_is_chunked_without_extended_headers() {
        assert_eq!(to(ReplyForm::Structured).nothing(false).len(), 16);
        assert_eq!(to(ReplyForm::Structured).nothing(true).len(), 20);
        assert_eq!(to(ReplyForm::Simple).error(Errno::Io, true).len(), 16);
    }
}
