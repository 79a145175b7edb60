//! Sizes as people write them: `64GiB`, `8G`, `512`.

/// Bytes of what was written: a number, and perhaps a unit of 1024: K, M, G, T, each also with `iB` or `B` behind it.
///
/// # Errors
/// What is wrong with it, for people; `example` is what they are shown as a right one.
pub fn bytes_of(text: &str, example: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size: expected a number with K, M, G or T, as in {example}");
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let shift = match unit.trim_start_matches(' ') {
        "" | "B" => 0,
        "K" | "k" | "KB" | "KiB" => 10,
        "M" | "m" | "MB" | "MiB" => 20,
        "G" | "g" | "GB" | "GiB" => 30,
        "T" | "t" | "TB" | "TiB" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = digits.parse().map_err(|_| bad())?;
    let bytes = number.checked_mul(1 << shift).filter(|&bytes| i64::try_from(bytes).is_ok());
    bytes.ok_or_else(|| format!("{text:?} is more than 8 EiB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        let cases =
            [("512", 512), ("64K", 65_536), ("8GiB", 8 << 30), ("1T", 1 << 40), ("1MB", 1 << 20), ("0", 0)];
        for (text, bytes) in cases {
            assert_eq!(bytes_of(text, "1G"), Ok(bytes), "{text}");
        }
        for text in ["", "K", "-1", "16777216T", "1.5G", "9E", "iB", "8 G B", "+1"] {
            assert!(bytes_of(text, "1G").is_err(), "{text}");
        }
        assert!(bytes_of("x", "64GiB").unwrap_err().ends_with("as in 64GiB"));
    }
}
