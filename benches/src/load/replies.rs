//! Replies out of a stream: checked, and payload stepped over where it lies.
//!
//! Strict: what the protocol forbids a server to send ends the run, because a figure from a broken server is worth
//! nothing. So does an error that a server answers with.

use std::fmt;

use nbd_server::wire::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

use super::slots::{Asked, Slots};

/// Bytes of a simple reply without its payload.
const SIMPLE_BYTES: usize = 16;
/// Bytes of a chunk's header.
const CHUNK_BYTES: usize = 20;
/// Bytes of the offset before a chunk's data.
const OFFSET_BYTES: usize = 8;
/// Bytes of a chunk that tells of a hole.
const HOLE_BYTES: usize = 12;
/// Bytes of an error chunk before its message.
const ERROR_BYTES: usize = 6;
/// Chunks of errors have this bit.
const IS_ERROR: u16 = 1 << 15;

/// Why a run cannot go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fault {
    /// The server sent what the protocol forbids.
    Broken(String),
    /// The server answered with an error of the protocol.
    Refused {
        /// What was asked for.
        asked: Asked,
        /// Its number.
        error: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(how) => write!(f, "the server broke the protocol: {how}"),
            Self::Refused { asked, error } => {
                let name = nbd_server::wire::Errno::from_wire(*error);
                let name = name.map_or_else(|| format!("error {error}"), |errno| errno.to_string());
                write!(f, "the server answered {asked} with {name}")
            }
        }
    }
}

fn broken<T>(how: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Broken(how.into()))
}

/// A reply's head was read: what comes next.
#[derive(Debug, Clone, Copy)]
struct Payload {
    /// Bytes to step over.
    rest: usize,
    cookie: u64,
    /// Whether the reply ends with them.
    ends: bool,
}

/// What one step has found.
enum Step {
    /// Not enough bytes.
    NeedInput,
    /// So many bytes of a head, and what follows it.
    Head { bytes: usize, payload: Payload },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Replies {
    structured: bool,
    payload: Option<Payload>,
}

impl Replies {
    /// `structured`: as was agreed on.
    pub(super) fn new(structured: bool) -> Self {
        Self { structured, payload: None }
    }

    /// Takes what it can of `bytes` and tells how many that were. `ended` gets the cookies of whole replies.
    ///
    /// # Errors
    /// See [`Fault`]: the stream cannot be used any more.
    pub(super) fn take(
        &mut self,
        bytes: &[u8],
        slots: &mut Slots,
        mut ended: impl FnMut(&mut Slots, u64),
    ) -> Result<usize, Fault> {
        let mut at = 0;
        loop {
            if let Some(payload) = &mut self.payload {
                let step = payload.rest.min(bytes.len() - at);
                (payload.rest, at) = (payload.rest - step, at + step);
                if payload.rest > 0 {
                    return Ok(at);
                }
                let Payload { cookie, ends, .. } = *payload;
                self.payload = None;
                if ends {
                    ended(slots, cookie);
                }
            }
            match self.head(&bytes[at..], slots)? {
                Step::NeedInput => return Ok(at),
                Step::Head { bytes, payload } => (at, self.payload) = (at + bytes, Some(payload)),
            }
        }
    }

    fn head(&self, bytes: &[u8], slots: &mut Slots) -> Result<Step, Fault> {
        let Some(magic) = word(bytes, 0) else { return Ok(Step::NeedInput) };
        match magic {
            SIMPLE_REPLY_MAGIC => self.simple(bytes, slots),
            STRUCTURED_REPLY_MAGIC if self.structured => structured(bytes, slots),
            STRUCTURED_REPLY_MAGIC => broken("a structured reply, which was not agreed on"),
            _ => broken(format!("a reply that begins with {magic:#010x}")),
        }
    }

    fn simple(&self, bytes: &[u8], slots: &Slots) -> Result<Step, Fault> {
        let (Some(error), Some(cookie)) = (word(bytes, 4), long(bytes, 8)) else {
            return Ok(Step::NeedInput);
        };
        let asked = asked(slots, cookie)?;
        let rest = match asked {
            Asked::Read { .. } if self.structured => {
                return broken(format!("a simple reply to {asked}, where structured ones were agreed on"));
            }
            _ if error != 0 => return Err(Fault::Refused { asked, error }),
            Asked::Read { length, .. } => length as usize,
            Asked::Write { .. } | Asked::Flush => 0,
        };
        Ok(Step::Head { bytes: SIMPLE_BYTES, payload: Payload { rest, cookie, ends: true } })
    }
}

/// A chunk's header.
struct Chunk {
    kind: u16,
    done: bool,
    cookie: u64,
    /// Bytes after the header.
    length: usize,
    asked: Asked,
}

impl Chunk {
    fn parse(bytes: &[u8], slots: &Slots) -> Result<Option<Self>, Fault> {
        let (Some(flags_kind), Some(cookie), Some(length)) =
            (word(bytes, 4), long(bytes, 8), word(bytes, 16))
        else {
            return Ok(None);
        };
        let (flags, kind) = ((flags_kind >> 16) as u16, flags_kind as u16);
        let asked = asked(slots, cookie)?;
        if flags & !chunk::FLAG_DONE != 0 {
            return broken(format!("a chunk with flags {flags:#x}"));
        }
        let done = flags & chunk::FLAG_DONE != 0;
        Ok(Some(Self { kind, done, cookie, length: length as usize, asked }))
    }

    fn wrong<T>(&self, how: &str) -> Result<T, Fault> {
        let Self { kind, length, asked, .. } = self;
        broken(format!("a chunk of kind {kind} with {length} bytes to {asked}: {how}"))
    }

    /// The head was so long; so much of the chunk is left to step over.
    fn head(&self, bytes: usize, slots: &Slots) -> Result<Step, Fault> {
        if self.done
            && let Asked::Read { length, .. } = self.asked
            && slots.told(self.cookie) != u64::from(length)
        {
            return self.wrong(&format!("the reply ends after {} bytes", slots.told(self.cookie)));
        }
        let rest = CHUNK_BYTES + self.length - bytes;
        Ok(Step::Head { bytes, payload: Payload { rest, cookie: self.cookie, ends: self.done } })
    }

    /// Notes which bytes it tells of.
    fn tells(&self, from: u64, bytes: u64, slots: &mut Slots) -> Result<(), Fault> {
        let Asked::Read { offset, length } = self.asked else {
            return self.wrong("there is nothing to read");
        };
        let end = from.checked_add(bytes).filter(|&end| from >= offset && end <= offset + u64::from(length));
        match end {
            Some(end) if bytes > 0 && slots.tell(self.cookie, from, end) => Ok(()),
            Some(_) if bytes > 0 => self.wrong("bytes that were sent before"),
            _ => self.wrong(&format!("{bytes} bytes at {from}")),
        }
    }
}

fn structured(bytes: &[u8], slots: &mut Slots) -> Result<Step, Fault> {
    let Some(chunk) = Chunk::parse(bytes, slots)? else { return Ok(Step::NeedInput) };
    match chunk.kind {
        chunk::NONE if chunk.length == 0 && chunk.done => chunk.head(CHUNK_BYTES, slots),
        chunk::NONE => chunk.wrong("it must be empty and the last"),
        chunk::OFFSET_DATA => data(&chunk, bytes, slots),
        chunk::OFFSET_HOLE => hole(&chunk, bytes, slots),
        kind if kind & IS_ERROR != 0 => error(&chunk, bytes),
        _ => chunk.wrong("not of a kind that answers this"),
    }
}

fn data(chunk: &Chunk, bytes: &[u8], slots: &mut Slots) -> Result<Step, Fault> {
    let Some(data_bytes) = chunk.length.checked_sub(OFFSET_BYTES) else { return chunk.wrong("too short") };
    let Some(from) = long(bytes, CHUNK_BYTES) else { return Ok(Step::NeedInput) };
    chunk.tells(from, data_bytes as u64, slots)?;
    chunk.head(CHUNK_BYTES + OFFSET_BYTES, slots)
}

fn hole(chunk: &Chunk, bytes: &[u8], slots: &mut Slots) -> Result<Step, Fault> {
    if chunk.length != HOLE_BYTES {
        return chunk.wrong("not as long as a hole");
    }
    let (Some(from), Some(hole_bytes)) = (long(bytes, CHUNK_BYTES), word(bytes, CHUNK_BYTES + 8)) else {
        return Ok(Step::NeedInput);
    };
    chunk.tells(from, hole_bytes.into(), slots)?;
    chunk.head(CHUNK_BYTES + HOLE_BYTES, slots)
}

/// Whatever an error's message says, and whether more chunks would come: the run ends with it.
fn error(chunk: &Chunk, bytes: &[u8]) -> Result<Step, Fault> {
    if chunk.length < ERROR_BYTES {
        return chunk.wrong("too short for an error");
    }
    match word(bytes, CHUNK_BYTES) {
        None => Ok(Step::NeedInput),
        Some(0) => chunk.wrong("an error without a number"),
        Some(error) => Err(Fault::Refused { asked: chunk.asked, error }),
    }
}

fn asked(slots: &Slots, cookie: u64) -> Result<Asked, Fault> {
    match slots.asked(cookie) {
        Some(asked) => Ok(asked),
        None => broken(format!("a reply with cookie {cookie:#x}, which no request in flight has")),
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|long| u64::from_be_bytes(*long))
}

#[cfg(test)]
mod tests;
