//! How much memory may be left when QEMU stops the guest, told as the time that it takes (`downtime-limit`).
//!
//! Little at first: each millisecond is one of silence. A guest that dirties its memory so fast that QEMU goes over it again and
//! again is allowed more, step by step, until its migration ends.

/// The first step, in milliseconds.
const FIRST_MS: u64 = 10;
/// The same where processors are translated: QEMU 7.2 may lose memory in each pass (docs/migration.md, "Without KVM"), and a
/// lower step takes more of them.
const FIRST_TRANSLATED_MS: u64 = 30;
/// The last one, if no bound allows less: what QEMU itself allows.
const LAST_MS: u64 = 300;
/// Passes over the memory on each step.
const PASSES: u64 = 3;

/// The step that a migration is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stair {
    ms: u64,
    max: u64,
    /// Passes that there had been when this step began.
    since: u64,
}

impl Stair {
    /// The first step; never more than `bound` milliseconds, if there is one.
    pub(super) fn new(bound: Option<u64>, translated: bool) -> Self {
        let first = if translated { FIRST_TRANSLATED_MS } else { FIRST_MS };
        let max = bound.unwrap_or(LAST_MS).clamp(FIRST_MS, LAST_MS);
        Self { ms: first.min(max), max, since: 1 }
    }

    /// Milliseconds.
    pub(super) fn ms(self) -> u64 {
        self.ms
    }

    /// After so many passes: whether this is another step.
    pub(super) fn climb(&mut self, passes: u64) -> bool {
        if self.ms == self.max || passes < self.since + PASSES {
            return false;
        }
        self.ms = (self.ms * 2).min(self.max);
        self.since = passes;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(bound: Option<u64>, translated: bool) -> Vec<u64> {
        let mut stair = Stair::new(bound, translated);
        let mut steps = vec![stair.ms()];
        steps.extend((1..100).filter_map(|passes| stair.climb(passes).then_some(stair.ms())));
        steps
    }

    #[test]
    fn it_ends_where_it_may() {
        assert_eq!(steps(None, false), [10, 20, 40, 80, 160, 300]);
        assert_eq!(steps(Some(50), false), [10, 20, 40, 50]);
        assert_eq!(steps(Some(50), true), [30, 50]);
        assert_eq!(steps(Some(3), true), [10]);
    }

    #[test]
    fn a_step_lasts_some_passes() {
        let mut stair = Stair::new(None, false);
        assert!(!stair.climb(1) && !stair.climb(3));
        assert!(stair.climb(4) && !stair.climb(4) && !stair.climb(6));
        assert!(stair.climb(7));
    }
}
