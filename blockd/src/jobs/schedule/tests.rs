//! Schedules under clocks that are set, and calendars with their odd days.

use super::*;

const DAY_MS: u64 = 86_400_000;
const YEARS_10_MS: u64 = 3652 * DAY_MS;

/// `2026-11-20T14:03:30Z` in milliseconds since 1970.
fn ms(text: &str) -> u64 {
    let time: jiff::Timestamp = text.parse().unwrap();
    u64::try_from(time.as_millisecond()).unwrap()
}

fn parse(text: &str) -> Schedule {
    text.parse().unwrap_or_else(|why| panic!("{why}"))
}

fn next(text: &str, from: &str) -> String {
    let Schedule::Calendar(calendar) = parse(text) else { panic!("{text} is no calendar") };
    let next = calendar.next_after(ms(from)).unwrap();
    jiff::Timestamp::from_millisecond(i64::try_from(next).unwrap()).unwrap().to_string()
}

#[test]
fn calendar_events() {
    // 2026-11-20 is a Friday.
    for (text, from, expected) in [
        ("Mon..Fri 08..18:00/15", "2026-11-20T14:03:30Z", "2026-11-20T14:15:00Z"),
        ("Mon..Fri 08..18:00/15", "2026-11-20T18:45:00Z", "2026-11-23T08:00:00Z"),
        ("daily 02:00", "2026-11-20T02:00:00Z", "2026-11-21T02:00:00Z"),
        ("daily", "2026-11-20T14:03:30Z", "2026-11-21T00:00:00Z"),
        ("hourly", "2026-11-20T14:03:30Z", "2026-11-20T15:00:00Z"),
        ("minutely", "2026-11-20T14:03:30Z", "2026-11-20T14:04:00Z"),
        ("weekly", "2026-11-20T14:03:30Z", "2026-11-23T00:00:00Z"),
        ("monthly 03:30", "2026-11-20T14:03:30Z", "2026-12-01T03:30:00Z"),
        ("quarterly", "2026-11-20T14:03:30Z", "2027-01-01T00:00:00Z"),
        ("Sat,Sun 04:00 UTC", "2026-11-20T14:03:30Z", "2026-11-21T04:00:00Z"),
        ("Sat..Mon 04:00", "2026-11-22T05:00:00Z", "2026-11-23T04:00:00Z"),
        ("*-*-01 02:00", "2026-11-20T14:03:30Z", "2026-12-01T02:00:00Z"),
        ("*-01,07-01 02:00", "2026-11-20T14:03:30Z", "2027-01-01T02:00:00Z"),
        ("Fri *-*-13 00:00", "2026-11-20T14:03:30Z", "2027-08-13T00:00:00Z"),
        ("02:30:15", "2026-11-20T14:03:30Z", "2026-11-21T02:30:15Z"),
        ("*:*:00/20", "2026-11-20T14:03:30Z", "2026-11-20T14:03:40Z"),
        ("*/15 * * * *", "2026-11-20T14:03:30Z", "2026-11-20T14:15:00Z"),
        ("0 2 13 * FRI", "2026-11-20T14:03:30Z", "2026-11-27T02:00:00Z"),
        ("*/10 * * * * *", "2026-11-20T14:03:31Z", "2026-11-20T14:03:40Z"),
    ] {
        assert_eq!(next(text, from), expected, "{text}");
    }
}

#[test]
fn leap_days_and_the_hours_that_others_skip() {
    assert_eq!(next("02-29 00:00", "2026-11-20T00:00:00Z"), "2028-02-29T00:00:00Z");
    assert_eq!(next("02-29 00:00", "2096-03-01T00:00:00Z"), "2104-02-29T00:00:00Z", "2100 is none");
    assert_eq!(next("*-*-31 00:00", "2026-11-20T00:00:00Z"), "2026-12-31T00:00:00Z");
    // Europe skips 02:30 on the first of these days, and has it twice on the second.
    assert_eq!(next("daily 02:30", "2026-03-29T00:00:00Z"), "2026-03-29T02:30:00Z");
    assert_eq!(next("daily 02:30", "2026-10-25T02:30:00Z"), "2026-10-26T02:30:00Z");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for text in [
        "",
        "every 0s",
        "0s",
        "900y",
        "02-30 00:00",
        "Mun 08:00",
        "25:00",
        "08:60",
        "2027-01-01 00:00",
        "18..08:00",
        "daily 02:00 03:00",
        "* * *",
        "61 * * * *",
        "*:00/0",
        "08:00 garbage",
        "nonsense",
        "5 parsecs",
        "30x",
    ] {
        assert!(text.parse::<Schedule>().is_err(), "{text:?}");
    }
}

#[test]
fn schedules_are_written_as_they_were_read() {
    for text in ["15s", "manual", "Mon..Fri 08..18:00/15", "*/5 * * * *"] {
        assert_eq!(parse(text).to_string(), text);
        let json = serde_json::to_string(&parse(text)).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), parse(text));
    }
    assert_eq!(parse("every 15s"), parse("15s"));
}

/// A clock by hand, and a schedule that runs on it: when the runs began, in monotonic milliseconds.
struct Rig {
    schedule: Schedule,
    now: Now,
    anchor: Anchor,
    runs: Vec<i64>,
}

impl Rig {
    fn new(text: &str) -> Self {
        let now = Now { wall_ms: ms("2026-11-20T14:00:00Z"), mono_ms: 5_000 };
        Self { schedule: parse(text), now, anchor: Anchor { since: now, ran: true }, runs: Vec::new() }
    }

    /// Lets time pass, looking at the schedule as the runner does.
    fn pass(&mut self, mut left_ms: u64) {
        loop {
            self.anchor.follow(self.now);
            let wait = match self.schedule.next_after(self.anchor, self.now, 0) {
                Next::Never => RECHECK_MS,
                Next::In(wait) => wait.min(RECHECK_MS),
                Next::Due => {
                    self.runs.push(self.now.mono_ms);
                    self.anchor = Anchor { since: self.now, ran: true };
                    continue;
                }
            };
            if wait > left_ms {
                self.step(left_ms);
                return;
            }
            self.step(wait);
            left_ms -= wait;
        }
    }

    fn step(&mut self, by_ms: u64) {
        self.now.wall_ms += by_ms;
        self.now.mono_ms += i64::try_from(by_ms).unwrap();
    }
}

#[test]
fn a_set_clock_changes_nothing_for_spans() {
    let mut rig = Rig::new("15s");
    rig.pass(60_000);
    rig.now.wall_ms += YEARS_10_MS;
    rig.pass(60_000);
    rig.now.wall_ms -= 2 * YEARS_10_MS;
    rig.pass(60_000);
    let gaps: Vec<i64> = rig.runs.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(rig.runs.len(), 12);
    assert!(gaps.iter().all(|&gap| gap == 15_000), "{gaps:?}");
}

#[test]
fn calendar_jobs_neither_stampede_nor_stop_when_the_clock_is_set() {
    let mut rig = Rig::new("*:00/5");
    rig.pass(600_000);
    assert_eq!(rig.runs.len(), 2);
    rig.now.wall_ms += YEARS_10_MS;
    rig.pass(600_000);
    assert_eq!(rig.runs.len(), 5, "one for all that the jump has passed over, then the usual two");
    rig.now.wall_ms -= 2 * YEARS_10_MS;
    rig.pass(3_600_000);
    assert_eq!(rig.runs.len(), 17, "it goes on at once");
}

#[test]
fn a_corrected_clock_does_not_run_a_job_twice() {
    let mut rig = Rig::new("*:00/5");
    rig.pass(301_000);
    assert_eq!(rig.runs.len(), 1);
    rig.now.wall_ms -= 10_000;
    rig.pass(60_000);
    assert_eq!(rig.runs.len(), 1);
}

#[test]
fn missed_times_become_one_run() {
    for text in ["15s", "*:*", "hourly"] {
        let mut rig = Rig::new(text);
        // Nobody has looked for a day: asleep, or stopped.
        rig.step(DAY_MS);
        rig.pass(0);
        assert_eq!(rig.runs.len(), 1, "{text}");
    }
}

#[test]
fn jobs_that_begin_together_are_spread_always_alike() {
    let now = Now { wall_ms: ms("2026-11-20T14:00:00Z"), mono_ms: 0 };
    let anchor = Anchor { since: now, ran: false };
    for text in ["60s", "hourly"] {
        let waits: std::collections::BTreeSet<u64> = (0..100)
            .map(|number| match parse(text).next_after(anchor, now, seed_of(&format!("job-{number}"))) {
                Next::In(wait) => wait,
                Next::Due => 0,
                Next::Never => panic!("{text}"),
            })
            .collect();
        assert!(waits.len() > 80, "{text}: {} different", waits.len());
        assert!(waits.last().unwrap() - waits.first().unwrap() <= SPREAD_MS_MAX, "{text}");
    }
    assert_eq!(seed_of("web1"), seed_of("web1"));
}
