//! `--when quiet`: a moment in which the guest changes less than it usually does. Then less is left to send, and its silence
//! is shorter.
//!
//! Activity: bytes of memory that the guest dirties and of disk that it writes, each second, as QEMU tells them.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::sleep;

use crate::error::Error;
use crate::qmp::Client;

/// How long it is waited for such a moment.
pub(super) const QUIET_TIME_MAX: Duration = Duration::from_secs(600);
/// Seconds of the past that say what is usual.
const PAST_MAX: usize = 300;
/// Fewer say nothing.
const PAST_MIN: usize = 10;
/// Seconds that must be quiet, one after the other: one alone is chance.
const QUIET_SECONDS: usize = 2;
/// So little in a second is quiet whatever is usual.
const IDLE_BYTES: u64 = 1 << 20;
/// Between two looks at a measurement that takes one second.
const LOOK: Duration = Duration::from_millis(100);

/// The last seconds of a guest.
#[derive(Debug, Default)]
pub(super) struct Activity {
    past: VecDeque<u64>,
}

impl Activity {
    /// So many bytes in one second more.
    pub(super) fn push(&mut self, bytes: u64) {
        if self.past.len() == PAST_MAX {
            self.past.pop_front();
        }
        self.past.push_back(bytes);
    }

    /// What is usual when the guest works: four of five seconds have no more.
    pub(super) fn usual(&self) -> u64 {
        let mut sorted: Vec<u64> = self.past.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() * 4 / 5).copied().unwrap_or_default()
    }

    /// The last second.
    pub(super) fn now(&self) -> u64 {
        self.past.back().copied().unwrap_or_default()
    }

    /// Whether this is such a moment.
    pub(super) fn is_quiet(&self) -> bool {
        let (bound, idle) = (self.usual() / 2, self.past.iter().rev().take(QUIET_SECONDS));
        let last: Vec<u64> = idle.copied().collect();
        let all_below = |bound: u64| last.len() == QUIET_SECONDS && last.iter().all(|&bytes| bytes <= bound);
        all_below(IDLE_BYTES) || (self.past.len() >= PAST_MIN && all_below(bound))
    }
}

/// Measures a guest's activity.
pub(super) struct Meter<'a> {
    client: &'a Client,
    /// Bytes that had been written to its disks.
    written: Option<u64>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, written: None }
    }

    /// Bytes that the next second changes.
    pub(super) async fn second(&mut self) -> Result<u64, Error> {
        if self.written.is_none() {
            self.written = Some(self.client.query_written_bytes().await?);
        }
        self.client.calc_dirty_rate(1).await?;
        let dirtied = loop {
            sleep(LOOK).await;
            let rate = self.client.query_dirty_rate().await?;
            if rate.status != "measuring" {
                break rate.mib_per_second.and_then(|mib| u64::try_from(mib).ok()).unwrap_or_default() << 20;
            }
        };
        let written = self.client.query_written_bytes().await?;
        let before = self.written.replace(written).unwrap_or(written);
        Ok(dirtied.saturating_add(written.saturating_sub(before)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn after(seconds: impl IntoIterator<Item = u64>) -> Activity {
        let mut activity = Activity::default();
        seconds.into_iter().for_each(|mib| activity.push(mib * MIB));
        activity
    }

    #[test]
    fn a_trough_between_two_waves_is_quiet() {
        let wave = |seconds: usize| (0..seconds).map(|second| if second % 20 < 15 { 80 } else { 10 });
        assert!(!after(wave(15)).is_quiet(), "in the middle of a wave");
        assert!(!after(wave(16)).is_quiet(), "one second may be chance");
        assert!(after(wave(17)).is_quiet());
        assert!(!after(wave(21)).is_quiet(), "the next wave has begun");
    }

    #[test]
    fn a_guest_that_always_does_the_same_is_not_quiet_unless_it_is_idle() {
        assert!(!after([50; 200]).is_quiet());
        assert!(after([0; 2]).is_quiet());
        assert!(!after([0; 1]).is_quiet());
        assert!(!Activity::default().is_quiet());
    }

    #[test]
    fn little_is_known_after_a_few_seconds() {
        assert!(!after([80, 80, 80, 10, 10]).is_quiet());
    }

    #[test]
    fn the_past_is_bounded() {
        let mut activity = after([80; PAST_MAX]);
        (0..PAST_MAX).for_each(|_| activity.push(7 * MIB));
        assert_eq!((activity.past.len(), activity.usual()), (PAST_MAX, 7 * MIB));
    }
}
