//! Whether to look for work a little longer before going to sleep. Pure decisions: no clock, no ring.
//!
//! A client that keeps one or a few requests in flight sends the next some microseconds after our reply.
//! To sleep meanwhile costs far more than that: waking a processor that has gone idle takes tens of
//! microseconds, on a virtual machine above all. So with few requests a turn, and only while they come
//! that quickly, the reactor polls before it sleeps (QEMU's event loops do the same). It stops at once when
//! a wait was longer than the window, when requests come in batches (then there is work enough), and when
//! the processor is wanted by others: a poll that took much longer than its window had been set aside.

use std::time::Duration;

/// Requests of one turn that a shallow client may send: what QEMU keeps in flight at most.
const SHALLOW_REQUESTS: u64 = 16;
/// Shallow turns in a row before polling is tried: long enough that a deep queue shows itself now and then.
const SHALLOW_TURNS: u32 = 4096;
/// Waits without polling after the processor was found to be wanted by others.
const PAUSE_WAITS: u32 = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct IdlePoll {
    window: Duration,
    /// Turns in a row that started few requests.
    shallow_turns: u32,
    /// The last wait was shorter than the window.
    quick: bool,
    pause: u32,
}

impl IdlePoll {
    /// Polls for at most `window`; never if it is zero.
    pub(super) fn new(window: Duration) -> Self {
        Self { window, shallow_turns: 0, quick: false, pause: 0 }
    }

    /// A turn has ended that started so many requests.
    pub(super) fn turn_ended(&mut self, requests: u64) {
        self.shallow_turns =
            if requests > SHALLOW_REQUESTS { 0 } else { (self.shallow_turns + 1).min(SHALLOW_TURNS) };
    }

    /// How long to poll before this wait.
    pub(super) fn poll_for(&self) -> Option<Duration> {
        let worth = self.quick && self.pause == 0 && self.shallow_turns == SHALLOW_TURNS;
        (worth && !self.window.is_zero()).then_some(self.window)
    }

    /// A wait has ended after so long. `polled`: it began with polling.
    pub(super) fn wait_ended(&mut self, waited: Duration, polled: bool) {
        self.pause = self.pause.saturating_sub(1);
        self.quick = waited < self.window;
        if polled && waited > self.window * 4 {
            self.pause = PAUSE_WAITS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);
    const QUICK: Duration = Duration::from_micros(20);

    fn warm() -> IdlePoll {
        let mut idle = IdlePoll::new(WINDOW);
        for _ in 0..SHALLOW_TURNS {
            idle.turn_ended(1);
            idle.wait_ended(QUICK, false);
        }
        idle
    }

    #[test]
    fn few_quick_requests_are_worth_polling_for() {
        assert_eq!(IdlePoll::new(WINDOW).poll_for(), None);
        assert_eq!(warm().poll_for(), Some(WINDOW));
    }

    #[test]
    fn one_long_wait_ends_it() {
        let mut idle = warm();
        idle.wait_ended(WINDOW * 2, true);
        assert_eq!(idle.poll_for(), None);
    }

    #[test]
    fn batches_end_it() {
        let mut idle = warm();
        idle.turn_ended(SHALLOW_REQUESTS + 1);
        assert_eq!(idle.poll_for(), None);
    }

    #[test]
    fn a_wanted_processor_is_left_alone_for_a_while() {
        let mut idle = warm();
        idle.wait_ended(WINDOW * 100, true);
        for _ in 0..PAUSE_WAITS - 1 {
            idle.wait_ended(QUICK, false);
        }
        assert_eq!(idle.poll_for(), None);
        idle.wait_ended(QUICK, false);
        assert_eq!(idle.poll_for(), Some(WINDOW));
    }

    #[test]
    fn a_window_of_zero_never_polls() {
        let mut idle = IdlePoll::new(Duration::ZERO);
        for _ in 0..100 {
            idle.turn_ended(0);
            idle.wait_ended(Duration::ZERO, false);
        }
        assert_eq!(idle.poll_for(), None);
    }
}
