//! Spans of time as people write them: `30s`, `5m`, `1h30m`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Units from the largest on, with their seconds. A month is none: its length depends.
const UNITS: [(char, u64); 6] =
    [('y', 365 * 86_400), ('w', 7 * 86_400), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];
/// Longest span: sums of it with any date stay within what can be counted.
const SECONDS_MAX: u64 = 100 * 365 * 86_400;

/// A span of whole seconds, as in `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(u64);

impl Span {
    /// So many seconds; at most 100 years.
    pub fn from_secs(seconds: u64) -> Self {
        Self(seconds.min(SECONDS_MAX))
    }

    /// In seconds.
    pub fn as_secs(self) -> u64 {
        self.0
    }

    /// In milliseconds.
    pub fn as_millis(self) -> u64 {
        self.0 * 1000
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_secs(span.0)
    }
}

impl FromStr for Span {
    type Err = String;

    /// Numbers, each with its unit: y (365 days), w, d, h, m (minutes), s.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("{text:?} is no span of time: expected a number with s, m, h, d, w or y, as in 30s");
        let (mut total, mut number, mut begun) = (0u64, None::<u64>, false);
        for c in text.trim().chars() {
            if let Some(digit) = c.to_digit(10) {
                let so_far = number.unwrap_or(0).checked_mul(10).ok_or_else(bad)?;
                number = Some(so_far.checked_add(u64::from(digit)).ok_or_else(bad)?);
                continue;
            }
            let seconds = UNITS.iter().find(|(unit, _)| *unit == c).ok_or_else(bad)?.1;
            let part = number.take().ok_or_else(bad)?.checked_mul(seconds).ok_or_else(bad)?;
            total = total.checked_add(part).ok_or_else(bad)?;
            begun = true;
        }
        if number.is_some() || !begun {
            return Err(bad());
        }
        if total > SECONDS_MAX {
            return Err(format!("{text:?} is more than 100 years"));
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, seconds) in UNITS {
            // 7d rather than 1w, and years only where they are whole: what people type.
            let usual = unit != 'w' && (unit != 'y' || rest.is_multiple_of(seconds));
            if usual && rest >= seconds {
                write!(f, "{}{unit}", rest / seconds)?;
                rest %= seconds;
            }
        }
        Ok(())
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_and_written() {
        for (text, seconds, shown) in [
            ("30s", 30, "30s"),
            ("5m", 300, "5m"),
            ("1h30m", 5400, "1h30m"),
            ("90s", 90, "1m30s"),
            ("7d", 604_800, "7d"),
            ("2w", 1_209_600, "14d"),
            ("1y", 31_536_000, "1y"),
            ("0s", 0, "0s"),
        ] {
            let span: Span = text.parse().unwrap();
            assert_eq!((span.as_secs(), span.to_string().as_str()), (seconds, shown));
            assert_eq!(shown.parse(), Ok(span));
        }
        for text in ["", "5", "s", "5x", "-5s", "5s3", "1.5h", "101y", "99999999999999999999s", "5 s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
    }
}
