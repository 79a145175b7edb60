//! Names of VMs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name: it stands in the names of sockets, of which a whole path has 107 bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// A VM's name: 1 to 63 of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`. Safe as a part of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let good = (1..=NAME_BYTES_MAX).contains(&text.len())
            && text.bytes().all(plain)
            && !text.starts_with(['.', '-']);
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "{:?} is no name of a VM: 1 to 63 of A-Z a-z 0-9 . _ -, not beginning with . or -",
            text.chars().take(80).collect::<String>()
        ))
    }
}

impl TryFrom<String> for VmName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_directory() {
        for name in ["web1", "a", "Db.2_x-y", &"n".repeat(63)] {
            assert!(name.parse::<VmName>().is_ok(), "{name}");
        }
        for name in ["", ".", "..", "-x", "a/b", "a b", "ä", "a\n", &"n".repeat(64)] {
            assert!(name.parse::<VmName>().is_err(), "{name}");
        }
    }
}
