//! What the guests say on their consoles (`writer.sh`, `checker.sh`), read.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// What the kernel says, in a guest, when its disk fails.
const COMPLAINTS: [&str; 5] =
    ["I/O error", "EXT4-fs error", "EXT4-fs warning", "Aborting journal", "Remounting filesystem"];

/// Checksums by path, as a guest saw them.
pub(super) type Sums = BTreeMap<String, String>;

/// The files that were durable when this was said; of a rewritten file, what it held last.
pub(super) fn sums(console: &str) -> Sums {
    let words = lines(console).filter_map(|line| line.strip_prefix("DEMO-SUM ")?.split_once(' '));
    words.map(|(md5, path)| (path.to_owned(), md5.to_owned())).collect()
}

/// The round that began last; 0 before the first.
pub(super) fn begun(console: &str) -> u32 {
    rounds(console, " begins")
}

/// The round that ended last; 0 before the first.
pub(super) fn ended(console: &str) -> u32 {
    rounds(console, " ends")
}

fn rounds(console: &str, what: &str) -> u32 {
    let number =
        |line: &str| line.strip_prefix("DEMO-ROUND ")?.strip_suffix(what)?.parse().ok() as Option<u32>;
    lines(console).filter_map(number).last().unwrap_or(0)
}

/// How long each of the small durable writes took, in order.
pub(super) fn beats(console: &str) -> Result<Vec<Duration>> {
    let words = lines(console).filter_map(|line| line.strip_prefix("DEMO-BEAT "));
    words.map(|text| beat(text).with_context(|| format!("unreadable: DEMO-BEAT {text}"))).collect()
}

fn beat(text: &str) -> Option<Duration> {
    let (from, to) = text.strip_prefix("from=")?.split_once(" to=")?;
    let (from, to): (f64, f64) = (from.parse().ok()?, to.parse().ok()?);
    Duration::try_from_secs_f64(to - from).ok()
}

/// How many files the guest compared with their checksums, all equal.
pub(super) fn verified(console: &str) -> Result<usize> {
    let found = lines(console).find_map(|line| line.strip_prefix("DEMO-VERIFIED "));
    Ok(found.context("the guest never printed DEMO-VERIFIED")?.trim().parse()?)
}

/// A guest that outlives its server must have noticed nothing but the time.
pub(super) fn refuse_complaints(console: &str) -> Result<()> {
    match console.lines().find(|line| COMPLAINTS.iter().any(|words| line.contains(words))) {
        Some(line) => bail!("the guest saw an error: {}", line.trim()),
        None => Ok(()),
    }
}

/// Whole lines: the last one may still be growing.
fn lines(console: &str) -> impl Iterator<Item = &str> {
    let (complete, _) = console.rsplit_once('\n').unwrap_or_default();
    complete.lines().map(str::trim_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "GUEST-READY up=1\nDEMO-SUM aa /data/rewritten\nDEMO-ROUND 1 begins\n\
        DEMO-SUM bb /data/round-1/file-1\nDEMO-BEAT from=1.50 to=1.53\nDEMO-ROUND 1 ends\r\n\
        DEMO-SUM cc /data/rewritten\nDEMO-ROUND 2 begins\nDEMO-VERIFIED 2\nDEMO-SUM dd /data/rou";

    #[test]
    fn the_last_sum_of_a_path_counts_and_a_growing_line_does_not() {
        let sums = sums(CONSOLE);
        assert_eq!(sums["/data/rewritten"], "cc");
        assert_eq!(sums.len(), 2);
    }

    #[test]
    fn rounds_beats_and_the_verdict_are_read() {
        assert_eq!((begun(CONSOLE), ended(CONSOLE), begun("")), (2, 1, 0));
        assert_eq!(beats(CONSOLE).unwrap().len(), 1);
        assert!((beats(CONSOLE).unwrap()[0].as_secs_f64() - 0.03).abs() < 1e-6);
        assert_eq!(verified(CONSOLE).unwrap(), 2);
        assert!(verified("").is_err() && beats("DEMO-BEAT from=2 to=1\n").is_err());
    }

    #[test]
    fn a_failing_disk_is_noticed() {
        refuse_complaints(CONSOLE).unwrap();
        assert!(refuse_complaints("[ 9.1] blk_update_request: I/O error, dev vda, sector 8\n").is_err());
    }
}
