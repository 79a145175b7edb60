//! When a job is due: pure, time is an argument.
//!
//! Spans are measured on the monotonic clock, so setting the system's clock changes nothing for them. Only calendar
//! times look at the system's clock, and are looked at anew every [`RECHECK_MS`]. However many times were missed, they
//! become one run.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::calendar::Calendar;
use super::clock::Now;
use super::span::Span;

/// Shortest span between two runs.
pub const EVERY_SECONDS_MIN: u64 = 1;
/// Longest one.
const EVERY_SECONDS_MAX: u64 = 366 * 86_400;
/// How long a wait for a calendar time may be before the clock is looked at again: it may have been set.
pub const RECHECK_MS: u64 = 30_000;
/// Jobs that are due together are spread over at most this long, and over a tenth of their interval.
const SPREAD_MS_MAX: u64 = 10_000;
/// A clock that is set back by less is a correction: calendar times that it shows twice count once.
const CORRECTION_MS: u64 = 60_000;

/// When a job runs by itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Schedule {
    /// Only when somebody says so.
    #[default]
    Manual,
    /// So long after the beginning of the last run.
    Every(Span),
    /// At times of the calendar, UTC.
    Calendar(Box<Calendar>),
}

/// What the next run is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// When the last run began, or the job was made.
    pub since: Now,
    /// There was a run.
    pub ran: bool,
}

/// When the next run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Never by itself.
    Never,
    /// Now.
    Due,
    /// In so many milliseconds, unless the clock is set.
    In(u64),
}

impl Anchor {
    /// Follows a clock that was set back: otherwise a calendar job would wait until it has caught up.
    pub fn follow(&mut self, now: Now) {
        if self.since.wall_ms > now.wall_ms.saturating_add(CORRECTION_MS) {
            self.since.wall_ms = now.wall_ms;
        }
    }
}

impl Schedule {
    /// `every` in the form that flags and files have it.
    ///
    /// # Errors
    /// Shorter than a second, or longer than a year.
    pub fn every(span: Span) -> Result<Self, String> {
        if (EVERY_SECONDS_MIN..=EVERY_SECONDS_MAX).contains(&span.as_secs()) {
            return Ok(Self::Every(span));
        }
        Err(format!("every {span}: a job runs every second at most, and every year at least"))
    }

    /// When the next run is. `seed` spreads jobs that would begin together, always in the same way.
    ///
    /// The anchor must have followed the clock, see [`Anchor::follow`].
    pub fn next_after(&self, anchor: Anchor, now: Now, seed: u64) -> Next {
        let wait_ms = match self {
            Self::Manual => return Next::Never,
            Self::Every(span) => {
                let spread = seed % spread_ms(span.as_millis());
                let after = if anchor.ran { span.as_millis() } else { spread };
                after.saturating_sub(now.since(anchor.since))
            }
            Self::Calendar(calendar) => {
                let Some(next) = calendar.next_after(anchor.since.wall_ms) else { return Next::Never };
                let gap = calendar.next_after(next).map_or(SPREAD_MS_MAX, |after| after - next);
                (next + seed % spread_ms(gap)).saturating_sub(now.wall_ms)
            }
        };
        if wait_ms == 0 { Next::Due } else { Next::In(wait_ms) }
    }

    /// Milliseconds between two runs, for what is measured in intervals; `None`: manual.
    pub fn interval_ms(&self, wall_ms: u64) -> Option<u64> {
        match self {
            Self::Manual => None,
            Self::Every(span) => Some(span.as_millis()),
            Self::Calendar(calendar) => {
                let next = calendar.next_after(wall_ms)?;
                Some(calendar.next_after(next)? - next)
            }
        }
    }
}

fn spread_ms(interval_ms: u64) -> u64 {
    (interval_ms / 10).clamp(1, SPREAD_MS_MAX)
}

/// A number that a name always gives: FNV-1a.
pub fn seed_of(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    // Its high bits are the good ones.
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step) >> 20
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manual => f.write_str("manual"),
            Self::Every(span) => span.fmt(f),
            Self::Calendar(calendar) => calendar.fmt(f),
        }
    }
}

impl FromStr for Schedule {
    type Err = String;

    /// `manual`, a span (`15s`, `every 15s`), cron's five or six fields, or a calendar event.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text == "manual" {
            return Ok(Self::Manual);
        }
        if let Some(span) = text.strip_prefix("every ") {
            return Self::every(span.parse()?);
        }
        if let Ok(span) = text.parse() {
            return Self::every(span);
        }
        let one_word = !text.contains([' ', '\t', ':', '-', '/']);
        if one_word && text.starts_with(|c: char| c.is_ascii_digit()) {
            // Meant as a span, and wrong.
            text.parse::<Span>()?;
        }
        Ok(Self::Calendar(Box::new(text.parse()?)))
    }
}

impl Serialize for Schedule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Schedule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
