//! What a host is called for good, whatever people call it.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::hex;

/// Bytes of an identity.
pub const HOST_ID_BYTES: usize = 16;

pub use crate::units::HostId;

/// The text is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a host's identity is 32 hexadecimal digits, small letters")]
pub struct BadHostId;

impl FromStr for HostId {
    type Err = BadHostId;

    fn from_str(text: &str) -> Result<Self, BadHostId> {
        hex::decode(text).map(Self).ok_or(BadHostId)
    }
}

impl Serialize for HostId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_text_for_each() {
        let id = HostId([0xa7; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        let good = "00112233445566778899aabbccddeeff";
        assert!(good.parse::<HostId>().is_ok());
        for bad in [
            "",
            &good[1..],
            &good.to_uppercase(),
            &format!("{good}0"),
            &good.replace('0', "g"),
            &"é".repeat(16),
        ] {
            assert_eq!(bad.parse::<HostId>(), Err(BadHostId), "{bad}");
        }
    }
}
