//! Spans of time as people write them: `100ms`, `2s`, `24h`.

/// Units, in milliseconds; the first that fits is meant.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Milliseconds: a number and a unit of `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
/// What is wrong with it, for the person who wrote it.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no time: a number with ms, s, m, h or d, as in 30s");
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (digits, factor) = unit.ok_or_else(bad)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let value: u64 = digits.parse().map_err(|_| bad())?;
    value.checked_mul(*factor).ok_or_else(|| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let good = [
            ("100ms", 100),
            ("2s", 2000),
            ("90m", 5_400_000),
            ("24h", 86_400_000),
            ("0s", 0),
            ("7d", 604_800_000),
        ];
        for (text, ms) in good {
            assert_eq!(milliseconds(text), Ok(ms), "{text}");
        }
        for bad in ["", "100", "ms", "s", "-1s", "+1s", "1.5s", "99999999999999999999s", "1w"] {
            assert!(milliseconds(bad).is_err(), "{bad}");
        }
    }
}
