//! Tells of events; of those that strangers can cause, only so many in a while.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::lock;
use crate::events::Events;

/// Refusals told in [`WINDOW`]: strangers must not wash everything else out of the events and fill the log.
const REFUSALS_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Teller {
    events: Events,
    window: Mutex<Option<Window>>,
}

struct Window {
    since: Instant,
    told: u32,
    untold: u32,
}

impl Teller {
    pub(super) fn new(events: Events) -> Self {
        Self { events, window: Mutex::default() }
    }

    /// Of something that the operator did.
    pub(super) fn tell(&self, kind: &str, subject: &str, message: impl Into<String>) {
        self.events.record(kind, subject, message);
    }

    /// Of somebody who was not let in.
    pub(super) fn refused(&self, subject: &str, why: &str) {
        self.refused_at(subject, why, Instant::now());
    }

    fn refused_at(&self, subject: &str, why: &str, now: Instant) {
        let mut window = lock(&self.window);
        let old =
            window.take().filter(|window| now.duration_since(window.since) < WINDOW || window.untold > 0);
        let before = match old {
            Some(mut current) if now.duration_since(current.since) < WINDOW => {
                if current.told == REFUSALS_MAX {
                    current.untold += 1;
                    *window = Some(current);
                    return;
                }
                current.told += 1;
                *window = Some(current);
                0
            }
            ended => {
                *window = Some(Window { since: now, told: 1, untold: 0 });
                ended.map_or(0, |ended| ended.untold)
            }
        };
        let more =
            if before > 0 { format!(" (before, {before} more were not told of)") } else { String::new() };
        self.events.record("peer_refused", subject, format!("{why}{more}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_cannot_wash_other_events_out() {
        let teller = Teller::new(Events::default());
        let begin = Instant::now();
        for _ in 0..1000 {
            teller.refused_at("10.0.0.9", "unknown", begin);
        }
        assert_eq!(teller.events.after(0).events.len(), 10);
        teller.refused_at("10.0.0.9", "unknown", begin + WINDOW);
        let last = teller.events.after(10).events.remove(0);
        assert_eq!(last.message, "unknown (before, 990 more were not told of)");
        teller.refused_at("10.0.0.9", "unknown", begin + WINDOW);
        assert_eq!(teller.events.after(11).events[0].message, "unknown");
    }
}
