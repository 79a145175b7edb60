//! How long requests took, in bounded memory.
//!
//! Buckets are log-linear: each doubling is cut into [`STEPS`] equal parts, so that a percentile is at most 1/64 too
//! large, and never too small.

/// Parts of a doubling.
const STEPS: u64 = 64;
/// Their logarithm.
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Enough for every number of 64 bits.
const BUCKETS: usize = ((u64::BITS - STEP_BITS + 1) as usize) * STEPS as usize;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    /// Adds a value.
    pub(super) fn add(&mut self, value: u64) {
        self.counts[bucket(value)] += 1;
        self.count += 1;
        self.max = self.max.max(value);
    }

    /// How many values there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The largest of them; 0 of none.
    pub(super) fn max(&self) -> u64 {
        self.max
    }

    /// A value that so many of a thousand are not above; 0 of none.
    pub(super) fn per_mille(&self, share: u64) -> u64 {
        let rank = (self.count * share).div_ceil(1000).max(1);
        let mut seen = 0;
        for (at, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(at).min(self.max);
            }
        }
        self.max
    }
}

/// Where a value is counted. Values below [`STEPS`] have a bucket each.
fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (u64::from(shift) * STEPS + (value >> shift)) as usize
}

/// The largest value that is counted there.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / STEPS).saturating_sub(1);
    let first = bucket - shift * STEPS;
    (((u128::from(first) + 1) << shift) - 1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket() {
        let near = |power: u32| {
            let value = 1_u64 << power;
            [value.wrapping_sub(1), value, value + 1, value + value / 3]
        };
        for value in (0..5000).chain((0..63).flat_map(near)).chain([1 << 63, u64::MAX]) {
            let at = bucket(value);
            assert!(at < BUCKETS, "{value}");
            assert!(upper_bound(at) >= value, "{value} above its bucket's end {}", upper_bound(at));
            assert!(at == 0 || upper_bound(at - 1) < value, "{value} within the bucket before");
            assert!(upper_bound(at) - value <= value / STEPS, "{value} told as {}", upper_bound(at));
        }
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_values_or_a_little_more() {
        let mut random = fastrand::Rng::with_seed(7);
        for count in [1, 2, 10, 999, 1000, 50_000] {
            let mut exact: Vec<u64> = (0..count).map(|_| 1 << random.u32(8..34)).collect();
            exact.iter_mut().for_each(|value| *value += random.u64(0..*value));
            let mut histogram = Histogram::default();
            exact.iter().for_each(|&value| histogram.add(value));
            exact.sort_unstable();
            for share in [1, 500, 990, 999, 1000] {
                let expected = exact[(exact.len() * share).div_ceil(1000).max(1) - 1];
                let told = histogram.per_mille(share as u64);
                let slack = expected / STEPS;
                assert!(
                    (expected..=expected + slack).contains(&told),
                    "{share} of {count}: {told}, {expected}"
                );
            }
            assert_eq!((histogram.count(), histogram.max()), (count as u64, exact[exact.len() - 1]));
        }
    }

    #[test]
    fn of_nothing_everything_is_zero() {
        let none = Histogram::default();
        assert_eq!((none.count(), none.max(), none.per_mille(500)), (0, 0, 0));
    }
}
