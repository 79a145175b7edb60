//! Messages as bytes: a length, then JSON with the version in it.
//!
//! ```text
//!  ┌────────────────────┬──────────────────────────────────────────────────────┐
//!  │ length, 4 bytes BE │ {"v":1,"id":"…32 hex…","message":{"type":"commit",…}} │
//!  └────────────────────┴──────────────────────────────────────────────────────┘
//! ```
//!
//! Whoever is at the other end may send anything: lengths are judged before anything is kept for them, and after the first
//! error a [`Decoder`] says nothing but that error: bytes behind it mean nothing.

use serde::{Deserialize, Serialize};

use super::ids::MoveId;
use super::message::{Envelope, Message};

/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// Bytes of the JSON, at most. The longest message (32 volumes with longest names) has less than 16 KiB.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Why bytes are no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The length is not within the limit.
    #[error("a message of {0} bytes; 1 to {MESSAGE_BYTES_MAX} expected")]
    Length(u32),
    /// Another version.
    #[error("version {0} of the agents' protocol; version {VERSION} expected")]
    Version(u32),
    /// Not JSON, or not a message.
    #[error("not a message of the agents' protocol: {0}")]
    Malformed(String),
}

#[derive(Serialize)]
struct Written<'a> {
    v: u32,
    id: MoveId,
    message: &'a Message,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Read {
    #[serde(rename = "v")]
    _judged_before: u32,
    id: MoveId,
    message: Message,
}

/// Only the version: of a later one nothing else is understood.
#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// The bytes of a message, with its length.
pub fn encode(envelope: &Envelope) -> Vec<u8> {
    let written = Written { v: VERSION, id: envelope.id, message: &envelope.message };
    let json = serde_json::to_vec(&written).expect("strings and numbers only: always JSON");
    let length = u32::try_from(json.len()).expect("bounded by the limits of its parts");
    [&length.to_be_bytes()[..], &json].concat()
}

/// Makes messages out of bytes as they come.
#[derive(Debug, Default)]
pub struct Decoder {
    /// At most one message and its length, and what was pushed last.
    bytes: Vec<u8>,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// Takes bytes that came; any number. [`Self::next`] until it has nothing more, before more are pushed: what is kept is
    /// then at most one message and one push.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The next message, if it is there whole.
    ///
    /// # Errors
    /// [`DecodeError`], from then on always: the connection is to be closed.
    #[allow(clippy::should_implement_trait, reason = "it is no iterator: after None more may come")]
    pub fn next(&mut self) -> Result<Option<Envelope>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.take().inspect_err(|error| {
            self.bytes = Vec::new();
            self.failed = Some(error.clone());
        })
    }

    /// Whether the stream may end here: not within a message.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.failed.is_none()
    }

    fn take(&mut self) -> Result<Option<Envelope>, DecodeError> {
        let Some((length, rest)) = self.bytes.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length);
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if bytes == 0 || bytes > MESSAGE_BYTES_MAX {
            return Err(DecodeError::Length(length));
        }
        let Some(json) = rest.get(..bytes) else { return Ok(None) };
        let envelope = parse(json)?;
        self.bytes.drain(..4 + bytes);
        Ok(Some(envelope))
    }
}

fn parse(json: &[u8]) -> Result<Envelope, DecodeError> {
    let malformed = |error: serde_json::Error| DecodeError::Malformed(error.to_string());
    let Versioned { v } = serde_json::from_slice(json).map_err(malformed)?;
    if v != VERSION {
        return Err(DecodeError::Version(v));
    }
    let Read { id, message, .. } = serde_json::from_slice(json).map_err(malformed)?;
    Ok(Envelope { id, message })
}
