//! Times of the calendar: cron's grammar, and the part of systemd's that translates into it. UTC throughout, so no
//! hour is ever skipped or repeated.
//!
//! ```text
//! [WEEKDAYS] [[*-]MONTH-DAY] [HOUR:MINUTE[:SECOND]] [UTC]     Mon..Fri 08..18:00/15     *-01,07-01 02:00
//! minutely | hourly | daily | weekly | monthly | quarterly | yearly  [HOUR:MINUTE[:SECOND]]     daily 02:00
//! ```
//!
//! A part is `*`, a number, `A..B`, either with `/STEP`, or a list of such with commas. A number with a step counts on to
//! the end. Weekdays are `Mon` or `Monday`, `Sat..Mon` goes round. Without a time it is midnight. Years, `~` (from the
//! month's end), fractions of seconds and other time zones are not understood.

use std::fmt;
use std::str::FromStr;

use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::{Timestamp, tz::TimeZone};

/// Longest text of a schedule, bytes.
const TEXT_BYTES_MAX: usize = 200;
const DAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
/// Words, and the date and time that they stand for.
const WORDS: [(&str, &str, &str); 9] = [
    ("minutely", "* * *", "*:*"),
    ("hourly", "* * *", "*:00"),
    ("daily", "* * *", "00:00"),
    ("weekly", "* * 1", "00:00"),
    ("monthly", "1 * *", "00:00"),
    ("quarterly", "1 1,4,7,10 *", "00:00"),
    ("semiannually", "1 1,7 *", "00:00"),
    ("yearly", "1 1 *", "00:00"),
    ("annually", "1 1 *", "00:00"),
];

/// Instants of the calendar, UTC.
#[derive(Clone, Debug)]
pub struct Calendar {
    text: String,
    cron: Cron,
}

impl PartialEq for Calendar {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Calendar {}

impl fmt::Display for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Calendar {
    type Err = String;

    /// Five or six fields are cron's, anything else is a calendar event.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.len() > TEXT_BYTES_MAX {
            return Err(format!("a schedule has at most {TEXT_BYTES_MAX} bytes"));
        }
        let is_cron = matches!(text.split_whitespace().count(), 5 | 6);
        if is_cron { Self::cron(text) } else { Self::event(text) }
    }
}

impl Calendar {
    /// Cron's grammar: minute, hour, day of the month, month, day of the week; six fields begin with the second.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn cron(text: &str) -> Result<Self, String> {
        Self::new(text, text, false)
    }

    /// A calendar event, see the module.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn event(text: &str) -> Result<Self, String> {
        let pattern = translate(text).map_err(|why| format!("{text:?} is no calendar event: {why}"))?;
        Self::new(text, &pattern, true)
    }

    fn new(text: &str, pattern: &str, both_days: bool) -> Result<Self, String> {
        // Cron takes days of the month or of the week, systemd those that are both.
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed);
        let parsed = parser.dom_and_dow(both_days).build().parse(pattern);
        let cron = parsed.map_err(|error| format!("{text:?} is no schedule: {error}"))?;
        let calendar = Self { text: text.to_owned(), cron };
        if calendar.next_after(0).is_none() {
            return Err(format!("{text:?} never comes"));
        }
        Ok(calendar)
    }

    /// The first instant later than that; both in milliseconds since 1970. `None`: there is none before the year 5000.
    pub fn next_after(&self, wall_ms: u64) -> Option<u64> {
        let from = Timestamp::from_millisecond(i64::try_from(wall_ms).ok()?).ok()?;
        let civil: DateTime = TimeZone::UTC.to_datetime(from);
        let next = self.cron.find_next_occurrence(&civil, false).ok()?;
        let next = TimeZone::UTC.to_timestamp(next).ok()?;
        u64::try_from(next.as_millisecond()).ok()
    }
}

/// Into cron's grammar with seconds.
fn translate(text: &str) -> Result<String, String> {
    let lower = text.to_lowercase();
    let mut words: Vec<&str> = lower.split_whitespace().collect();
    if words.last() == Some(&"utc") {
        words.pop();
    }
    let first = *words.first().ok_or("it is empty")?;
    if let Some((_, days, usual)) = WORDS.iter().find(|(word, ..)| *word == first) {
        let (time, rest) = (words.get(1).unwrap_or(usual), words.len() > 2);
        return if rest {
            Err("too many words".to_owned())
        } else {
            Ok(format!("{} {days}", clock_time(time)?))
        };
    }
    let mut rest = words.as_slice();
    let weekdays = match rest.first() {
        Some(word) if word.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            rest = &rest[1..];
            weekdays(word)?
        }
        _ => "*".to_owned(),
    };
    let (day, month) = match rest.first() {
        Some(word) if word.contains('-') => {
            rest = &rest[1..];
            date(word)?
        }
        _ => ("*".to_owned(), "*".to_owned()),
    };
    let time = clock_time(rest.first().unwrap_or(&"00:00"))?;
    if rest.len() > 1 {
        return Err(format!("{:?} is too much", rest[1]));
    }
    Ok(format!("{time} {day} {month} {weekdays}"))
}

/// `[*-]MONTH-DAY`: day and month.
fn date(text: &str) -> Result<(String, String), String> {
    let parts: Vec<&str> = text.split('-').collect();
    let (month, day) = match parts[..] {
        [month, day] | ["*", month, day] => (month, day),
        [_, _, _] => return Err("a year cannot be named, only *".to_owned()),
        _ => return Err(format!("{text:?} is no date")),
    };
    Ok((numbers(day, 1, 31)?, numbers(month, 1, 12)?))
}

/// `HOUR:MINUTE[:SECOND]`: cron's first three fields.
fn clock_time(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (hour, minute, second) = match parts[..] {
        [hour, minute] => (hour, minute, "0"),
        [hour, minute, second] => (hour, minute, second),
        _ => return Err(format!("{text:?} is no time of day")),
    };
    Ok(format!("{} {} {}", numbers(second, 0, 59)?, numbers(minute, 0, 59)?, numbers(hour, 0, 23)?))
}

/// A list of numbers, ranges and steps, as cron writes it.
fn numbers(list: &str, min: u32, max: u32) -> Result<String, String> {
    let parts: Result<Vec<String>, String> = list.split(',').map(|part| range(part, min, max)).collect();
    Ok(parts?.join(","))
}

fn range(part: &str, min: u32, max: u32) -> Result<String, String> {
    let number = |text: &str| -> Result<u32, String> {
        let parsed = text.parse().ok().filter(|number| (min..=max).contains(number));
        parsed.ok_or_else(|| format!("{text:?} is not {min} to {max}"))
    };
    let (body, step) = part.split_once('/').map_or((part, None), |(body, step)| (body, Some(step)));
    let (first, last) = match body.split_once("..") {
        Some((first, last)) => (number(first)?, number(last)?),
        None if body == "*" => (min, max),
        None if step.is_some() => (number(body)?, max),
        None => (number(body)?, number(body)?),
    };
    if first > last {
        return Err(format!("{part:?} runs backwards"));
    }
    let Some(step) = step else { return Ok(format!("{first}-{last}")) };
    let step: u32 = step.parse().ok().filter(|step| (1..=max).contains(step)).ok_or("a step of nothing")?;
    // Spelled out: cron's own steps of more than the range are errors to some.
    let all: Vec<String> = (first..=last).step_by(step as usize).map(|number| number.to_string()).collect();
    Ok(all.join(","))
}

fn weekdays(list: &str) -> Result<String, String> {
    let mut days = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once("..").unwrap_or((part, part));
        let (mut day, last) = (weekday(first)?, weekday(last)?);
        while day != last {
            days.push(day.to_string());
            day = (day + 1) % 7;
        }
        days.push(last.to_string());
    }
    Ok(days.join(","))
}

fn weekday(name: &str) -> Result<usize, String> {
    let is_it = |day: &str| name == day || (name.len() == 3 && day.starts_with(name));
    DAYS.iter().position(|day| is_it(day)).ok_or_else(|| format!("{name:?} is no day of the week"))
}
