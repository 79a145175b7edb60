//! What we want to reach, as a table, and whether a comparison shows that we do.

use serde::Serialize;

use crate::goals::Goal;
use crate::jobs::{RANDREAD_QD1, RANDREAD_QD64, RANDWRITE_QD1, RANDWRITE_QD64, READ_256K, WRITE_256K};
use crate::results::{self, Spread, Summary};
use crate::servers::ServerId;

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// I/Os a second.
    Iops,
    /// The server's CPU time a request.
    CpuPerRequest,
}

impl Measure {
    /// Its key in the results.
    pub fn key(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::CpuPerRequest => "cpu-per-request",
        }
    }

    /// What a table says for a key.
    pub fn text_of(key: &str) -> &str {
        match key {
            "iops" => "IOPS",
            "cpu-per-request" => "CPU a request",
            other => other,
        }
    }
}

/// Whom we are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Against {
    Server(ServerId),
    BestPeer,
}

/// Which way a demand goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// More is better.
    AtLeast,
    /// Less is better.
    AtMost,
}

impl Direction {
    /// Whether a value is good enough.
    pub fn is_met(self, value: f64, bound: f64) -> bool {
        match self {
            Self::AtLeast => value >= bound,
            Self::AtMost => value <= bound,
        }
    }

    /// How it is written.
    pub fn sign(self) -> &'static str {
        match self {
            Self::AtLeast => ">=",
            Self::AtMost => "<=",
        }
    }

    /// A value with two digits, rounded to the side that flatters nobody.
    pub fn shown(self, value: f64) -> String {
        let hundredths = value * 100.0;
        // So little that it only undoes what binary fractions add: 0.29 is 28.999… hundredths.
        let slack = 1e-9 * hundredths.abs();
        let rounded = match self {
            Self::AtLeast => (hundredths + slack).floor(),
            Self::AtMost => (hundredths - slack).ceil(),
        };
        format!("{:.2}", rounded / 100.0)
    }
}

/// Met, not met, or not measured.
pub fn verdict(measured: Option<f64>, direction: Direction, bound: f64) -> Verdict {
    match measured {
        None => Verdict::NotMeasured,
        Some(value) if direction.is_met(value, bound) => Verdict::Met,
        Some(_) => Verdict::NotMet,
    }
}

/// By how much of its bound a value misses it.
///
/// Units: a fraction; 0.23 is 23 % less than the least, or more than the most.
pub fn short_by(measured: Option<f64>, direction: Direction, bound: f64) -> Option<f64> {
    measured.filter(|value| !direction.is_met(*value, bound)).map(|value| (value - bound).abs() / bound)
}

/// One thing to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Target {
    ours: ServerId,
    job: &'static str,
    measure: Measure,
    against: Against,
    direction: Direction,
    bound: f64,
}

const TARGETS: [Target; 12] = [
    iops(RANDREAD_QD64, 1.2, Against::Server(ServerId::NbdkitFile)),
    iops(RANDREAD_QD64, 2.5, Against::Server(ServerId::QemuNbd)),
    iops(RANDWRITE_QD64, 1.0, Against::Server(ServerId::NbdkitFile)),
    iops(RANDWRITE_QD64, 2.5, Against::Server(ServerId::QemuNbd)),
    half_the_cpu(RANDREAD_QD64),
    half_the_cpu(RANDWRITE_QD64),
    iops(RANDREAD_QD1, 1.0, Against::Server(ServerId::NbdkitFile)),
    iops(RANDWRITE_QD1, 1.0, Against::Server(ServerId::NbdkitFile)),
    iops(READ_256K, 1.0, Against::BestPeer),
    iops(WRITE_256K, 1.0, Against::BestPeer),
    direct(RANDREAD_QD64),
    direct(RANDWRITE_QD64),
];

const fn iops(job: &'static str, at_least: f64, against: Against) -> Target {
    Target {
        ours: ServerId::Ours,
        job,
        measure: Measure::Iops,
        against,
        direction: Direction::AtLeast,
        bound: at_least,
    }
}

const fn half_the_cpu(job: &'static str) -> Target {
    Target {
        ours: ServerId::Ours,
        job,
        measure: Measure::CpuPerRequest,
        against: Against::Server(ServerId::NbdkitFile),
        direction: Direction::AtMost,
        bound: 0.5,
    }
}

const fn direct(job: &'static str) -> Target {
    Target { ours: ServerId::OursDirect, ..iops(job, 0.7, Against::Server(ServerId::FioFile)) }
}

/// Whether a target is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The ratio is as wanted.
    Met,
    /// It is not.
    NotMet,
    /// One of the two was not measured.
    NotMeasured,
}

impl Verdict {
    /// The words in tables.
    pub fn text(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::NotMet => "NOT MET",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A target and what was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Which row of the table of goals it belongs to, if any.
    pub goal: Option<Goal>,
    /// Class of both; `store` for the store's scenarios.
    pub class: &'static str,
    /// Job or scenario, by name.
    pub job: &'static str,
    /// `iops`, `cpu-per-request`, or what the scenario measured of whom.
    pub measure: String,
    /// What is wanted, in words.
    pub demand: String,
    /// The ratio of the medians; in scenarios the median, in the unit of the demand.
    pub measured: Option<f64>,
    /// How far what was measured lies apart; of a ratio that of the rounds.
    pub spread: Option<Spread>,
    /// Which way the demand goes.
    #[serde(skip)]
    pub direction: Direction,
    /// Whether it is met.
    pub verdict: Verdict,
    /// How much of the bound is missing, or is too much; none unless it is missed.
    pub short_by: Option<f64>,
}

/// Holds every target against what was measured.
pub fn evaluate(summaries: &[Summary]) -> Vec<Outcome> {
    TARGETS.iter().map(|target| outcome_of(target, summaries)).collect()
}

/// Whether all targets that could be measured are met, and at least one could.
pub fn all_met(outcomes: &[Outcome]) -> bool {
    let count = |verdict| outcomes.iter().filter(|outcome| outcome.verdict == verdict).count();
    count(Verdict::NotMet) == 0 && count(Verdict::Met) > 0
}

fn outcome_of(target: &Target, summaries: &[Summary]) -> Outcome {
    let measured = measured(target, summaries);
    Outcome {
        goal: None,
        class: target.ours.class().name(),
        job: target.job,
        measure: target.measure.key().to_owned(),
        demand: demand_text(target),
        measured,
        spread: None,
        direction: target.direction,
        verdict: verdict(measured, target.direction, target.bound),
        short_by: short_by(measured, target.direction, target.bound),
    }
}

fn measured(target: &Target, summaries: &[Summary]) -> Option<f64> {
    let ours = results::find(summaries, target.ours, target.job)?;
    let other = match target.against {
        Against::Server(server) => results::find(summaries, server, target.job)?,
        Against::BestPeer => results::best_peer(summaries, target.ours.class(), target.job)?,
    };
    match target.measure {
        Measure::Iops => results::ratio(ours.iops.median, other.iops.median),
        Measure::CpuPerRequest => results::cpu_ratio(ours, other),
    }
}

fn demand_text(target: &Target) -> String {
    let whom = match target.against {
        Against::Server(server) => server.name(),
        Against::BestPeer => "best peer",
    };
    format!("{} {:.1} x {whom}", target.direction.sign(), target.bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::summarize;
    use crate::results::tests::run;

    fn verdicts(summaries: &[Summary], job: &str) -> Vec<(String, Verdict)> {
        let outcomes = evaluate(summaries);
        let of_job = outcomes.into_iter().filter(|outcome| outcome.job == job);
        of_job.map(|outcome| (outcome.demand, outcome.verdict)).collect()
    }

    #[test]
    fn a_target_is_met_at_its_bound_and_missed_below() {
        let reads = |ours_iops, ours_cpu| {
            summarize(&[
                run(ServerId::Ours, RANDREAD_QD64, ours_iops, Some(ours_cpu)),
                run(ServerId::NbdkitFile, RANDREAD_QD64, 100.0, Some(10.0)),
                run(ServerId::QemuNbd, RANDREAD_QD64, 40.0, Some(20.0)),
            ])
        };
        let at_bound = verdicts(&reads(120.0, 5.0), RANDREAD_QD64);
        let wanted = [
            (">= 1.2 x nbdkit-file", Verdict::Met),
            (">= 2.5 x qemu-nbd", Verdict::Met),
            ("<= 0.5 x nbdkit-file", Verdict::Met),
            (">= 0.7 x fio-file", Verdict::NotMeasured),
        ];
        assert_eq!(at_bound, wanted.map(|(text, verdict)| (text.to_owned(), verdict)));
        let below = verdicts(&reads(99.0, 5.1), RANDREAD_QD64);
        assert!(below.iter().take(3).all(|(_, verdict)| *verdict == Verdict::NotMet), "{below:?}");
    }

    #[test]
    fn no_figure_is_rounded_in_our_favour() {
        assert_eq!(Direction::AtLeast.shown(0.8999), "0.89");
        assert_eq!(Direction::AtMost.shown(140.001), "140.01");
        assert_eq!(Direction::AtLeast.shown(0.29), "0.29");
        assert_eq!(verdict(Some(0.8999), Direction::AtLeast, 0.9), Verdict::NotMet);
    }

    #[test]
    fn the_best_peer_is_of_the_same_class() {
        let summaries = summarize(&[
            run(ServerId::Ours, READ_256K, 100.0, None),
            run(ServerId::QemuNbd, READ_256K, 80.0, None),
            run(ServerId::NbdkitFile, READ_256K, 50.0, None),
            run(ServerId::QemuNbdDirect, READ_256K, 900.0, None),
        ]);
        let outcome = evaluate(&summaries).into_iter().find(|outcome| outcome.job == READ_256K).unwrap();
        assert_eq!((outcome.measured, outcome.verdict), (Some(1.25), Verdict::Met));
    }

    #[test]
    fn nothing_measured_is_not_a_success() {
        let outcomes = evaluate(&[]);
        assert_eq!(outcomes.len(), TARGETS.len());
        assert!(outcomes.iter().all(|outcome| outcome.verdict == Verdict::NotMeasured));
        assert!(!all_met(&outcomes));
    }

    #[test]
    fn every_target_names_a_job_and_stays_in_its_class() {
        for target in &TARGETS {
            assert!(crate::jobs::find(target.job).is_some());
            if let Against::Server(server) = target.against {
                assert_eq!(server.class(), target.ours.class());
            }
        }
    }
}
