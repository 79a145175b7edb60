//! Rules one by one, then what no policy may do.

use proptest::prelude::*;

use super::*;
use crate::jobs::span::Span;

/// A snapshot that a job has made; named after its sequence number.
fn made(sequence: u64, time: &str) -> Candidate {
    let time: Timestamp = time.parse().unwrap();
    let created_ms = u64::try_from(time.as_millisecond()).unwrap();
    Candidate { name: sequence.to_string(), created_ms, sequence, subject: true, ..Candidate::default() }
}

fn kept(keep: &Keep, candidates: &[Candidate]) -> Vec<String> {
    let verdicts = judge(keep, candidates.to_vec());
    verdicts.into_iter().filter(Verdict::keep).map(|verdict| verdict.name).collect()
}

fn hours(count: u64) -> Vec<Candidate> {
    // Every 20 minutes, back from 14:00 on a Friday.
    let end = made(0, "2026-11-20T14:00:00Z").created_ms;
    let at = |number| Candidate {
        created_ms: end - (count * 3 - 1 - number) * 20 * MINUTE_MS,
        sequence: number,
        name: number.to_string(),
        subject: true,
        ..Candidate::default()
    };
    (0..count * 3).map(at).collect()
}

#[test]
fn the_newest_of_each_period_is_kept() {
    let all = hours(6);
    assert_eq!(kept(&Keep { last: 4, ..Keep::default() }, &all), ["17", "16", "15", "14"]);
    // 14:00 alone, then 13:40, 12:40 …
    assert_eq!(kept(&Keep { hourly: 3, ..Keep::default() }, &all), ["17", "16", "13"]);
    let within = Keep { within: Some(Span::from_secs(40 * 60)), ..Keep::default() };
    assert_eq!(kept(&within, &all), ["17", "16", "15"]);
}

#[test]
fn a_rule_that_is_not_used_up_keeps_the_oldest() {
    assert_eq!(kept(&Keep { daily: 7, ..Keep::default() }, &hours(3)), ["8", "0"]);
    assert_eq!(kept(&Keep { daily: 1, ..Keep::default() }, &hours(3)), ["8"]);
}

#[test]
fn weeks_begin_on_mondays_and_months_have_their_own_lengths() {
    let all = [
        made(1, "2024-02-28T23:59:00Z"),
        made(2, "2024-02-29T00:00:00Z"),
        made(3, "2024-02-29T23:59:59Z"),
        made(4, "2024-03-01T00:00:00Z"),
        made(5, "2024-03-03T23:59:59Z"),
        made(6, "2024-03-04T00:00:00Z"),
        made(7, "2024-12-31T23:59:59Z"),
        made(8, "2025-01-01T00:00:00Z"),
    ];
    assert_eq!(kept(&Keep { monthly: 3, ..Keep::default() }, &all), ["8", "7", "6"]);
    assert_eq!(kept(&Keep { monthly: 4, ..Keep::default() }, &all), ["8", "7", "6", "3"]);
    assert_eq!(kept(&Keep { yearly: 2, ..Keep::default() }, &all), ["8", "7"]);
    // 2024-12-31 and 2025-01-01 share a week, 2024-03-03 was a Sunday.
    assert_eq!(kept(&Keep { weekly: 3, ..Keep::default() }, &all), ["8", "6", "5"]);
    assert_eq!(kept(&Keep { daily: 4, ..Keep::default() }, &all), ["8", "7", "6", "5"]);
}

#[test]
fn reasons_are_told() {
    let mut all = hours(1);
    all[0].base_of = vec!["B".to_owned()];
    all[1].holds = vec!["audit".to_owned()];
    all[2].unreplicated_to = vec!["B".to_owned()];
    let verdicts = judge(&Keep { hourly: 1, ..Keep::default() }, all);
    let told: Vec<String> = verdicts
        .iter()
        .map(|verdict| verdict.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
        .collect();
    assert_eq!(told, ["hourly, newest, not replicated to B", "held: audit", "last common base with B"]);
}

/// Snapshots as a host has them whose clock was set now and then.
fn histories() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0u64..4_000_000_000_000, 0u8..16, any::<bool>());
    proptest::collection::vec(one, 0..40).prop_map(|all| {
        let candidate = |(sequence, (created_ms, marks, subject)): (usize, (u64, u8, bool))| {
            let mark = |bit: u8, text: &str| if marks == bit { vec![text.to_owned()] } else { Vec::new() };
            Candidate {
                name: sequence.to_string(),
                created_ms,
                sequence: sequence as u64,
                holds: mark(1, "audit"),
                clones: mark(2, "web2"),
                clients: u64::from(marks == 3),
                base_of: mark(4, "B"),
                unreplicated_to: mark(5, "C"),
                subject,
            }
        };
        all.into_iter().enumerate().map(candidate).collect()
    })
}

fn policies() -> impl Strategy<Value = Keep> {
    let count = || 0u32..5;
    let within = proptest::option::of((0u64..4_000_000_000).prop_map(Span::from_secs));
    (count(), count(), count(), count(), count(), count(), count(), within).prop_map(
        |(last, minutely, hourly, daily, weekly, monthly, yearly, within)| Keep {
            last,
            minutely,
            hourly,
            daily,
            weekly,
            monthly,
            yearly,
            within,
        },
    )
}

/// The same policy and more.
fn more() -> impl Strategy<Value = (Keep, Keep)> {
    (policies(), policies()).prop_map(|(less, by)| {
        let more = Keep {
            last: less.last + by.last,
            minutely: less.minutely + by.minutely,
            hourly: less.hourly + by.hourly,
            daily: less.daily + by.daily,
            weekly: less.weekly + by.weekly,
            monthly: less.monthly + by.monthly,
            yearly: less.yearly + by.yearly,
            within: less.within.max(by.within),
        };
        (less, more)
    })
}

proptest! {
    #[test]
    fn guarded_ones_stay_under_every_policy(all in histories(), keep in policies()) {
        let kept = kept(&keep, &all);
        let newest = all.iter().max_by_key(|candidate| candidate.sequence);
        let newest_subject = all.iter().filter(|one| one.subject).max_by_key(|one| one.sequence);
        for one in newest.into_iter().chain(newest_subject) {
            prop_assert!(kept.contains(&one.name), "the newest, {}", one.name);
        }
        for one in &all {
            let guarded = !one.holds.is_empty() || !one.clones.is_empty() || one.clients > 0
                || !one.base_of.is_empty() || !one.unreplicated_to.is_empty() || !one.subject;
            prop_assert!(!guarded || kept.contains(&one.name), "{one:?}");
        }
    }

    #[test]
    fn who_keeps_more_loses_nothing((less, more) in more(), all in histories()) {
        let with_more = kept(&more, &all);
        for name in kept(&less, &all) {
            prop_assert!(with_more.contains(&name), "{name} goes although more is kept");
        }
    }

    /// The last so many are the last by sequence, whatever the clock said when they were made.
    #[test]
    fn order_is_by_sequence(all in histories(), last in 0u32..10) {
        let keep = Keep { last, ..Keep::default() };
        let verdicts = judge(&keep, all.clone());
        let by_rule = |verdict: &&Verdict| verdict.reasons.contains(&Reason::Rule("last"));
        let kept: Vec<&str> = verdicts.iter().filter(by_rule).map(|verdict| verdict.name.as_str()).collect();
        let mut subjects: Vec<&Candidate> = all.iter().filter(|one| one.subject).collect();
        subjects.sort_by_key(|one| std::cmp::Reverse(one.sequence));
        let expected: Vec<&str> = subjects.iter().take(last as usize).map(|one| one.name.as_str()).collect();
        prop_assert_eq!(kept, expected);
    }

    /// Exactly one of each of the newest hours, days and so on, for a clock that was never set.
    #[test]
    fn each_period_is_kept_once(count in 1u64..60, hourly in 1u32..10) {
        let all = hours(count);
        let kept = kept(&Keep { hourly, ..Keep::default() }, &all);
        let hours = all.iter().map(|one| one.created_ms / HOUR_MS).collect::<std::collections::BTreeSet<_>>().len();
        let oldest = usize::from(hours < hourly as usize && all.len() > 1 && count > 0);
        prop_assert!(kept.len() >= hours.min(hourly as usize) && kept.len() <= hours.min(hourly as usize) + oldest);
    }
}
