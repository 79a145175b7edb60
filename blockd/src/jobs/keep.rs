//! How much of the past is kept: the words are restic's.

use serde::{Deserialize, Serialize};

use super::span::Span;

/// Largest count: beyond it a policy keeps everything, and should say so by being left out.
pub const KEEP_COUNT_MAX: u32 = 100_000;

/// Which snapshots to keep: each rule keeps some, what no rule keeps may go. Counts are of periods that have a snapshot, the
/// newest of each is kept; UTC. A rule that is not used up keeps the oldest one, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// The newest so many.
    #[serde(skip_serializing_if = "is_zero")]
    pub last: u32,
    /// The newest of each of so many minutes.
    #[serde(skip_serializing_if = "is_zero")]
    pub minutely: u32,
    /// … hours.
    #[serde(skip_serializing_if = "is_zero")]
    pub hourly: u32,
    /// … days.
    #[serde(skip_serializing_if = "is_zero")]
    pub daily: u32,
    /// … weeks, from Monday.
    #[serde(skip_serializing_if = "is_zero")]
    pub weekly: u32,
    /// … months.
    #[serde(skip_serializing_if = "is_zero")]
    pub monthly: u32,
    /// … years.
    #[serde(skip_serializing_if = "is_zero")]
    pub yearly: u32,
    /// All that are at most so much older than the newest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Span>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

impl Keep {
    /// What a job keeps unless told otherwise: enough to look back at, little enough for a job that runs every second.
    pub const DEFAULT: Self =
        Self { last: 3, minutely: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0, yearly: 0, within: None };

    /// Whether no rule is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses counts that cannot be meant.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), String> {
        let counts =
            [self.last, self.minutely, self.hourly, self.daily, self.weekly, self.monthly, self.yearly];
        match counts.iter().find(|&&count| count > KEEP_COUNT_MAX) {
            Some(count) => Err(format!("keep {count}: at most {KEEP_COUNT_MAX}")),
            None => Ok(()),
        }
    }
}
