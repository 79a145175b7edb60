//! Sizes as people write and read them: `64GiB`, `8G`, `512`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    /// A number, and perhaps a unit of 1024: K, M, G, T, each also with `iB` or `B` behind it.
    fn from_str(text: &str) -> Result<Self, String> {
        local_api::size::bytes_of(text, "64GiB").map(Self)
    }
}

impl fmt::Display for Size {
    /// At most three digits before a unit, as in `1.5 GiB`; exact only where that is short.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut unit = 0;
        while unit + 1 < UNITS.len() && self.0 >> (10 * (unit + 1)) != 0 {
            unit += 1;
        }
        let one = 1u64 << (10 * unit);
        let (whole, rest) = (self.0 / one, self.0 % one);
        let tenths = u128::from(rest) * 10 / u128::from(one);
        if tenths == 0 || whole >= 100 {
            return write!(f, "{whole} {}", UNITS[unit]);
        }
        write!(f, "{whole}.{tenths} {}", UNITS[unit])
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"64GiB\", or bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes).map(Size).map_err(|_| E::custom("a size is not negative"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (64 << 30, "64 GiB"),
            ((100 << 30) + (512 << 20), "100 GiB"),
            (u64::MAX, "15.9 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(Size(bytes).to_string(), text);
        }
    }
}
