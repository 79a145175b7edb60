//! Which snapshots stay, and why: pure.
//!
//! A policy ([`Keep`]) says what should stay; guards say what must: the newest snapshot, the last one that a target has as
//! well (without it the next transfer would have nothing to build on), those that a target has yet to get, and those that
//! are held, in use or cloned. Order is that of the snapshots' sequence numbers: clocks jump.

use std::fmt;

use jiff::{Timestamp, tz::TimeZone};
use serde::{Serialize, Serializer};

use super::keep::Keep;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;

/// A snapshot of one volume, as retention sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its name within the volume.
    pub name: String,
    /// Milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// Its place among all snapshots.
    pub sequence: u64,
    /// Reasons that somebody gave not to delete it.
    pub holds: Vec<String>,
    /// Volumes that were cloned from it.
    pub clones: Vec<String>,
    /// Clients of its export.
    pub clients: u64,
    /// Targets for which it is the newest that both sides have.
    pub base_of: Vec<String>,
    /// Targets that are to get it, or a later one, and have not yet.
    pub unreplicated_to: Vec<String>,
    /// The policy speaks of it. Others stay as they are.
    pub subject: bool,
}

/// Why a snapshot stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rule of the policy, by its name.
    Rule(&'static str),
    /// The newest of its volume, or of those that the policy speaks of.
    Newest,
    /// The newest that this host and that target have both.
    CommonBase(String),
    /// That target does not have it yet.
    NotReplicated(String),
    /// Somebody holds it, for that reason.
    Held(String),
    /// Volumes were cloned from it; one of them.
    Cloned(String),
    /// Clients are connected to its export.
    InUse,
    /// Not made by a job, or by one without a policy.
    NotSubject,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => f.write_str(rule),
            Self::Newest => f.write_str("newest"),
            Self::CommonBase(target) => write!(f, "last common base with {target}"),
            Self::NotReplicated(target) => write!(f, "not replicated to {target}"),
            Self::Held(reason) => write!(f, "held: {reason}"),
            Self::Cloned(volume) => write!(f, "cloned as {volume}"),
            Self::InUse => f.write_str("in use"),
            Self::NotSubject => f.write_str("no rule speaks of it"),
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What becomes of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its name.
    pub name: String,
    /// Why it stays; empty: it may be deleted.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// Whether it stays.
    pub fn keep(&self) -> bool {
        !self.reasons.is_empty()
    }
}

/// A rule that counts periods: how many it may still keep, and the last one that it kept.
struct Rule {
    name: &'static str,
    left: u32,
    period: fn(&Candidate) -> i64,
    last: Option<i64>,
}

impl Rule {
    /// Whether the rule keeps this one; they come newest first.
    fn takes(&mut self, candidate: &Candidate, oldest: bool) -> bool {
        if self.left == 0 {
            return false;
        }
        let period = (self.period)(candidate);
        if self.last == Some(period) && !oldest {
            return false;
        }
        self.last = Some(period);
        self.left -= 1;
        true
    }
}

fn periods(ms: u64, length_ms: u64) -> i64 {
    i64::try_from(ms / length_ms).unwrap_or(i64::MAX)
}

/// Weeks begin on Mondays; 1970 began on a Thursday.
fn week(candidate: &Candidate) -> i64 {
    periods(candidate.created_ms.saturating_add(3 * DAY_MS), 7 * DAY_MS)
}

/// Year and month. Times that no calendar has are all in one month, the last.
fn month(candidate: &Candidate) -> i64 {
    let time = i64::try_from(candidate.created_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let date = TimeZone::UTC.to_datetime(time.unwrap_or(Timestamp::MAX));
    i64::from(date.year()) * 12 + i64::from(date.month()) - 1
}

fn rules(keep: &Keep) -> [Rule; 7] {
    let rule = |name, left, period| Rule { name, left, period, last: None };
    [
        rule("last", keep.last, |candidate| i64::try_from(candidate.sequence).unwrap_or(i64::MAX)),
        rule("minutely", keep.minutely, |candidate| periods(candidate.created_ms, MINUTE_MS)),
        rule("hourly", keep.hourly, |candidate| periods(candidate.created_ms, HOUR_MS)),
        rule("daily", keep.daily, |candidate| periods(candidate.created_ms, DAY_MS)),
        rule("weekly", keep.weekly, week),
        rule("monthly", keep.monthly, month),
        rule("yearly", keep.yearly, |candidate| month(candidate).div_euclid(12)),
    ]
}

/// Judges all snapshots of one volume; the newest comes first in the answer.
pub fn judge(keep: &Keep, mut candidates: Vec<Candidate>) -> Vec<Verdict> {
    candidates.sort_unstable_by_key(|candidate| std::cmp::Reverse(candidate.sequence));
    let newest = candidates.first().map(|candidate| candidate.sequence);
    let mut subjects = candidates.iter().filter(|candidate| candidate.subject);
    let newest_subject = subjects.next().map(|candidate| (candidate.sequence, candidate.created_ms));
    let oldest = candidates.iter().rfind(|candidate| candidate.subject).map(|candidate| candidate.sequence);
    let (mut rules, newest_ms) = (rules(keep), newest_subject.map_or(0, |(_, created_ms)| created_ms));
    let newest = [newest, newest_subject.map(|(sequence, _)| sequence)];
    let judged = candidates.into_iter().map(|candidate| {
        let mut reasons = if candidate.subject {
            let is_oldest = oldest == Some(candidate.sequence);
            wanted(keep, &mut rules, &candidate, is_oldest, newest_ms)
        } else {
            vec![Reason::NotSubject]
        };
        if newest.contains(&Some(candidate.sequence)) {
            reasons.push(Reason::Newest);
        }
        reasons.extend(guards(&candidate));
        Verdict { name: candidate.name, reasons }
    });
    judged.collect()
}

/// The rules that keep it.
fn wanted(
    keep: &Keep,
    rules: &mut [Rule],
    candidate: &Candidate,
    is_oldest: bool,
    newest_ms: u64,
) -> Vec<Reason> {
    let taken = rules.iter_mut().filter_map(|rule| rule.takes(candidate, is_oldest).then_some(rule.name));
    let mut reasons: Vec<Reason> = taken.map(Reason::Rule).collect();
    let age_ms = newest_ms.saturating_sub(candidate.created_ms);
    if keep.within.is_some_and(|within| age_ms <= within.as_millis()) {
        reasons.push(Reason::Rule("within"));
    }
    reasons
}

/// What forbids to delete it, whatever the policy says.
fn guards(candidate: &Candidate) -> Vec<Reason> {
    let bases = candidate.base_of.iter().cloned().map(Reason::CommonBase);
    let owed = candidate.unreplicated_to.iter().cloned().map(Reason::NotReplicated);
    let holds = candidate.holds.iter().cloned().map(Reason::Held);
    let clones = candidate.clones.first().cloned().map(Reason::Cloned);
    let in_use = (candidate.clients > 0).then_some(Reason::InUse);
    bases.chain(owed).chain(holds).chain(clones).chain(in_use).collect()
}

#[cfg(test)]
mod tests;
