//! What was done, from the end of the warm-up on.

use super::histogram::Histogram;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    /// How long each read or write took, nanoseconds.
    pub(super) latency: Histogram,
    /// Flushes that were answered.
    pub(super) flushes: u64,
}

impl Tally {
    /// Reads and writes that were answered.
    pub(super) fn ios(&self) -> u64 {
        self.latency.count()
    }
}
