//! What a job is: which volumes go where, when, and what is kept of them.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use jiff::{Timestamp, tz::TimeZone};
use serde::{Deserialize, Deserializer, Serialize, de};

use super::keep::Keep;
use super::schedule::Schedule;
use super::span::Span;
use crate::control::is_valid_name;
use crate::size::Size;

/// Jobs in all, those that ran only once included.
pub const JOBS_MAX: usize = 1000;
/// Volumes of one job, cut at one instant.
pub const VOLUMES_MAX: usize = 64;
/// Targets of one job.
pub const TARGETS_MAX: usize = 8;
/// Longest name of a job, bytes: its snapshots' and files' names are longer.
pub const JOB_NAME_BYTES_MAX: usize = 200;
/// What the names of jobs' snapshots begin with.
pub const SNAPSHOT_PREFIX: &str = "auto-";
/// `-2026-11-20T140330.123Z`
const STAMP_BYTES: usize = 23;

/// A job. Volumes are cut at one instant; each target gets runs of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Its name; its snapshots are called after it.
    pub name: String,
    /// The volumes.
    pub volumes: Vec<String>,
    /// The targets: names of hosts.
    pub to: Vec<String>,
    /// When it runs by itself.
    #[serde(default)]
    pub schedule: Schedule,
    /// Which of its snapshots are kept here.
    #[serde(default = "keep_default")]
    pub keep: Keep,
    /// Which are kept at the targets; missing: as here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_remote: Option<Keep>,
    /// Bytes a second at most, for each run.
    #[serde(default)]
    pub rate: Option<u64>,
    /// How old the last verified point may become: the objective that monitors watch.
    #[serde(default)]
    pub rpo: Option<Span>,
    /// Runs neither by itself nor when told to.
    #[serde(default)]
    pub paused: bool,
    /// It stands in the configuration file, and is changed there.
    #[serde(default)]
    pub from_config: bool,
}

fn keep_default() -> Keep {
    Keep::DEFAULT
}

impl Job {
    /// A job that runs when told to.
    pub fn new(name: impl Into<String>, volumes: Vec<String>, to: Vec<String>) -> Self {
        Self {
            name: name.into(),
            volumes,
            to,
            schedule: Schedule::Manual,
            keep: Keep::DEFAULT,
            keep_remote: None,
            rate: None,
            rpo: None,
            paused: false,
            from_config: false,
        }
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        if !is_valid_name(&self.name) || self.name.len() > JOB_NAME_BYTES_MAX {
            return Err(format!(
                "{:?} is no job's name: 1 to {JOB_NAME_BYTES_MAX} of A-Z a-z 0-9 . _ -, not beginning with . or -",
                self.name
            ));
        }
        check_names("volume", &self.volumes, VOLUMES_MAX)?;
        check_names("target", &self.to, TARGETS_MAX)?;
        if self.rate == Some(0) {
            return Err("a rate of 0 would never end: pause the job, or leave the rate out".to_owned());
        }
        if self.rpo.is_some_and(|rpo| rpo.as_secs() == 0) {
            return Err("an rpo of 0s cannot be met".to_owned());
        }
        self.keep.check()?;
        self.keep_remote.map_or(Ok(()), |keep| keep.check())
    }

    /// What is kept at the targets.
    pub fn keep_there(&self) -> Keep {
        self.keep_remote.unwrap_or(self.keep)
    }
}

fn check_names(what: &str, names: &[String], max: usize) -> Result<(), String> {
    if names.is_empty() || names.len() > max {
        return Err(format!("a job has 1 to {max} {what}s"));
    }
    if let Some(bad) = names.iter().find(|name| !is_valid_name(name)) {
        return Err(format!("{bad:?} is no {what}'s name"));
    }
    let mut seen = HashSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(twice) => Err(format!("{what} {twice} is named twice")),
        None => Ok(()),
    }
}

/// What a job's snapshot that is cut at that time is called, in each of its volumes.
pub fn snapshot_name(job: &str, wall_ms: u64) -> String {
    let time = i64::try_from(wall_ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let civil = TimeZone::UTC.to_datetime(time.unwrap_or(Timestamp::MAX));
    let (date, clock) = (civil.date(), civil.time());
    let (hour, minute, second) = (clock.hour(), clock.minute(), clock.second());
    let millis = clock.millisecond();
    format!("{SNAPSHOT_PREFIX}{job}-{date}T{hour:02}{minute:02}{second:02}.{millis:03}Z")
}

/// The job that made a snapshot, by its name.
pub fn job_of(snapshot: &str) -> Option<&str> {
    let rest = snapshot.strip_prefix(SNAPSHOT_PREFIX)?;
    let (job, stamp) = rest.split_at_checked(rest.len().checked_sub(STAMP_BYTES)?)?;
    let fits =
        |(byte, pattern): (u8, u8)| if pattern == b'0' { byte.is_ascii_digit() } else { byte == pattern };
    let is_stamp = stamp.bytes().zip(*b"-0000-00-00T000000.000Z").all(fits);
    (is_stamp && !job.is_empty()).then_some(job)
}

/// Bytes a second, as in `40MB/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub u64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = |_| format!("{text:?} is no rate: expected bytes a second, as in 40MB/s");
        let size: Size = text.strip_suffix("/s").unwrap_or(text).trim().parse().map_err(bad)?;
        if size.0 == 0 { Err("a rate of 0 would never end".to_owned()) } else { Ok(Self(size.0)) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", Size(self.0))
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_tell_their_job() {
        let name = snapshot_name("web-db", 1_795_183_410_123);
        assert_eq!(name, "auto-web-db-2026-11-20T140330.123Z");
        assert_eq!(job_of(&name), Some("web-db"));
        for other in
            ["monday", "auto-web", "auto-2026-11-20T140330.123Z", "auto-web-2026-11-20T140330.123X", "auto-é"]
        {
            assert_eq!(job_of(other), None, "{other}");
        }
        assert!(is_valid_name(&snapshot_name(&"x".repeat(JOB_NAME_BYTES_MAX), u64::MAX)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let job = || Job::new("web", vec!["web".to_owned()], vec!["B".to_owned()]);
        assert_eq!(job().check(), Ok(()));
        let refused = [
            Job { name: "../x".to_owned(), ..job() },
            Job { name: "x".repeat(201), ..job() },
            Job { volumes: Vec::new(), ..job() },
            Job { volumes: vec!["web".to_owned(); 2], ..job() },
            Job { to: vec!["B C".to_owned()], ..job() },
            Job { to: (0..9).map(|n| n.to_string()).collect(), ..job() },
            Job { rate: Some(0), ..job() },
            Job { rpo: Some(Span::default()), ..job() },
            Job { keep: Keep { last: 1_000_000, ..Keep::default() }, ..job() },
        ];
        for job in refused {
            assert!(job.check().is_err(), "{job:?}");
        }
    }

    #[test]
    fn rates() {
        assert_eq!("40MB/s".parse(), Ok(Rate(40 << 20)));
        assert_eq!("1000".parse(), Ok(Rate(1000)));
        assert!("0".parse::<Rate>().is_err() && "fast".parse::<Rate>().is_err());
    }
}
