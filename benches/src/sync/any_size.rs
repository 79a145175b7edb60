//! As many changed blocks in a small volume, and in large ones that hold as much data, spread over them or in one piece.
//!
//! All three are there at once and take turns, so that their ratios are of one minute. So each holds a quarter of
//! `--size` only: each changed block takes a cluster at both ends, until layers are packed, and that for all rounds.

use super::content::Layout;
use super::host::Pair;
use super::increment;
use super::wire::Wire;
use super::{Bench, CPU, WALL};
use crate::trouble::Trouble;

/// Name of the step.
pub const NAME: &str = "any-size";

/// A volume that takes part.
struct Volume {
    name: &'static str,
    subject: String,
    bytes: u64,
    layout: Layout,
}

/// Measures the three of them.
///
/// # Errors
/// Something failed, or somebody asked to stop.
pub fn run(bench: &mut Bench<'_>) -> Result<(), Trouble> {
    let wire = Wire::new(bench.room, bench.recorder)?;
    let volumes = volumes(bench.plan.bytes, bench.plan.large_bytes);
    let pair = Pair::start(bench, &wire, bench.plan.bytes * 6)?;
    for volume in &volumes {
        let mut sink = pair.source.create_volume(bench.room, volume.name, volume.bytes)?;
        volume.layout.fill(&mut sink, 1, bench.room.interrupt)?;
        bench.settle()?;
        pair.sync(bench.room, volume.name)?;
    }
    for round in 1..=bench.plan.runs {
        for Volume { name, subject, layout, .. } in &volumes {
            increment::one(bench, &wire, &pair, (NAME, subject, name), *layout, round)?;
        }
    }
    let [small, large @ ..] = &volumes;
    for large in large {
        let subject = ratio_subject(&large.subject, &small.subject);
        for (measure, times) in [(WALL, WALL_TIMES), (CPU, CPU_TIMES)] {
            let (value, base) = ((large.subject.as_str(), measure), (small.subject.as_str(), measure));
            bench.put_ratios(NAME, (&subject, times), value, base);
        }
    }
    pair.end()
}

/// What the ratio of two volumes is called.
fn ratio_subject(large: &str, small: &str) -> String {
    format!("{large} / {small}")
}

/// A large volume's time by the small one's.
pub const WALL_TIMES: &str = "time, times";
/// The same of processor time.
pub const CPU_TIMES: &str = "processor, times";

fn volumes(small: u64, large: u64) -> [Volume; 3] {
    let filled = small / 4;
    let (contiguous, spread) = (Layout::contiguous(filled), Layout::spread(filled, large));
    let gib = |bytes: u64| format!("{} GiB", bytes as f64 / f64::from(1 << 30));
    [
        Volume { name: "small", subject: gib(small), bytes: small, layout: contiguous },
        Volume { name: "spread", subject: format!("{}, spread", gib(large)), bytes: large, layout: spread },
        Volume {
            name: "piece",
            subject: format!("{}, one piece", gib(large)),
            bytes: large,
            layout: contiguous,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::targets;

    #[test]
    fn targets_name_what_is_measured() {
        let [small, spread, piece] = volumes(4 << 30, 64 << 30);
        let named = [spread, piece].map(|large| ratio_subject(&large.subject, &small.subject));
        assert_eq!(named, [targets::SPREAD, targets::ONE_PIECE]);
    }
}
