//! What the records and messages of a move are made of: identities, numbers and bounded texts.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Bytes of a name (of a VM, a volume), at most: what blockd takes.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a text that is meant for people, at most; longer ones are cut when they are made.
pub const TEXT_BYTES_MAX: usize = 512;

macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $bytes]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadHex;

            fn from_str(text: &str) -> Result<Self, BadHex> {
                let mut bytes = [0; $bytes];
                parse_hex(text, &mut bytes)?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

hex_bytes!(
    /// A move: 16 random bytes, never used again.
    MoveId,
    16
);
hex_bytes!(
    /// A snapshot, on whichever hosts it exists: blockd's uid.
    SnapshotUid,
    16
);
hex_bytes!(
    /// The BLAKE3 of a snapshot's image.
    Root,
    32
);
hex_bytes!(
    /// The BLAKE3 of a VM's definition: both sides must mean the same machine.
    Digest,
    32
);

/// Not as many small hexadecimal digits as there must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{expected} hexadecimal digits (0-9, a-f) expected")]
pub struct BadHex {
    /// How many digits there must be.
    pub expected: usize,
}

/// Small letters only: every value has one text.
fn parse_hex(text: &str, bytes: &mut [u8]) -> Result<(), BadHex> {
    let bad = BadHex { expected: bytes.len() * 2 };
    if text.len() != bad.expected {
        return Err(bad);
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = (digit(digits[0]).ok_or(bad)? << 4) | digit(digits[1]).ok_or(bad)?;
    }
    Ok(())
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

/// Counts who owned a volume: every accepted write belongs to one. Grows by one with each move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The next owner's; `None` after the last one.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

/// The name of a VM or of a volume: 1 to [`NAME_BYTES_MAX`] letters, digits, `.`, `_`, `-`, as blockd takes them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// No name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a name has 1 to {NAME_BYTES_MAX} of A-Z, a-z, 0-9, '.', '_', '-', and does not begin with '.' or '-'"
)]
pub struct BadName;

impl Name {
    /// Takes a name.
    ///
    /// # Errors
    /// It is none.
    pub fn new(text: &str) -> Result<Self, BadName> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let long = (1..=NAME_BYTES_MAX).contains(&text.len());
        if long && text.bytes().all(legal) && !text.starts_with(['.', '-']) {
            return Ok(Self(text.into()));
        }
        Err(BadName)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&text).map_err(de::Error::custom)
    }
}

/// What only people read. Machines that differ in nothing else are the same, and the model need not look at both.
#[derive(Clone, Debug)]
pub(super) struct ForPeople<T>(pub(super) T);

impl<T> PartialEq for ForPeople<T> {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl<T> Eq for ForPeople<T> {}

impl<T> std::hash::Hash for ForPeople<T> {
    fn hash<H: std::hash::Hasher>(&self, _state: &mut H) {}
}

/// A text for people, of at most [`TEXT_BYTES_MAX`] bytes. Nothing is decided by what it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl Text {
    /// Takes a text; what is too long is cut.
    pub fn new(text: &str) -> Self {
        Self(text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        if text.len() > TEXT_BYTES_MAX {
            return Err(de::Error::custom(format_args!("a text of more than {TEXT_BYTES_MAX} bytes")));
        }
        Ok(Self(text.into_owned()))
    }
}
