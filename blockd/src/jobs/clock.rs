//! Time as jobs see it: one clock that people set, and one that only goes on.

use std::fs;

use rustix::time::{ClockId, clock_gettime};

use crate::events;

/// An instant on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since 1970, UTC, as the system's clock shows it: it may jump, both ways, by any distance.
    pub wall_ms: u64,
    /// Milliseconds since the host was started, pauses of the whole host included: never goes back, never jumps.
    pub mono_ms: i64,
}

/// Where jobs get their time from.
pub trait Clock: Send + Sync {
    /// Both clocks, now.
    fn now(&self) -> Now;

    /// What the monotonic clock counts from; the same name means that its numbers can be compared.
    fn boot(&self) -> String;
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let since_boot = clock_gettime(ClockId::Boottime);
        let mono_ms = since_boot.tv_sec.saturating_mul(1000) + since_boot.tv_nsec / 1_000_000;
        Now { wall_ms: events::now_ms(), mono_ms }
    }

    fn boot(&self) -> String {
        // Without it nothing is compared across a restart: an empty name equals no other.
        fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
    }
}

impl Now {
    /// Milliseconds from `earlier` to this, on the clock that does not jump.
    pub fn since(self, earlier: Self) -> u64 {
        u64::try_from(self.mono_ms.saturating_sub(earlier.mono_ms)).unwrap_or(0)
    }
}
