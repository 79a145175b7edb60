//! What we want of servers, as a table: ratios to the peers.

use super::{Direction, Measure, Outcome, short_by, verdict};
use crate::goals::Goal;
use crate::jobs::{
    FSYNC_1, FSYNC_32, RANDREAD_JOBS4, RANDREAD_QD1, RANDREAD_QD16, RANDREAD_QD64, RANDWRITE_JOBS4,
    RANDWRITE_QD1, RANDWRITE_QD16, RANDWRITE_QD64, READ_1M, READ_256K, WRITE_1M, WRITE_256K,
};
use crate::results::{self, Run, Spread, Summary};
use crate::servers::{Class, Role, ServerId};

/// Whom we are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Against {
    Server(ServerId),
    BestPeer,
}

/// One thing to reach, by each server of ours in the class.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Target {
    goal: Goal,
    class: Class,
    job: &'static str,
    measure: Measure,
    against: Against,
    direction: Direction,
    bound: f64,
}

const NBDKIT: Against = Against::Server(ServerId::NbdkitFile);
const QEMU: Against = Against::Server(ServerId::QemuNbd);

const TARGETS: [Target; 26] = [
    iops(Goal::RandomReads, RANDREAD_QD64, 1.4, NBDKIT),
    iops(Goal::RandomReads, RANDREAD_QD64, 2.8, QEMU),
    cpu(Goal::RandomReads, RANDREAD_QD64, 0.35),
    // The client is the limit.
    iops(Goal::RandomWrites, RANDWRITE_QD64, 1.0, NBDKIT),
    iops(Goal::RandomWrites, RANDWRITE_QD64, 2.8, QEMU),
    cpu(Goal::RandomWrites, RANDWRITE_QD64, 0.5),
    iops(Goal::OneAtATime, RANDREAD_QD1, 1.0, NBDKIT),
    iops(Goal::OneAtATime, RANDREAD_QD1, 1.4, QEMU),
    iops(Goal::OneAtATime, RANDWRITE_QD1, 1.0, NBDKIT),
    iops(Goal::OneAtATime, RANDWRITE_QD1, 1.4, QEMU),
    iops(Goal::Connections, RANDREAD_JOBS4, 1.4, NBDKIT),
    iops(Goal::Connections, RANDWRITE_JOBS4, 1.4, NBDKIT),
    iops(Goal::OneDisk, RANDREAD_QD16, 1.3, NBDKIT),
    iops(Goal::OneDisk, RANDREAD_QD16, 2.0, QEMU),
    iops(Goal::OneDisk, RANDWRITE_QD16, 1.3, NBDKIT),
    iops(Goal::OneDisk, RANDWRITE_QD16, 2.0, QEMU),
    iops(Goal::Sequential, READ_256K, 1.5, Against::BestPeer),
    iops(Goal::Sequential, READ_1M, 1.5, Against::BestPeer),
    iops(Goal::Sequential, WRITE_256K, 1.2, Against::BestPeer),
    iops(Goal::Sequential, WRITE_1M, 1.2, Against::BestPeer),
    direct(RANDREAD_QD64, 0.75, ServerId::FioFile),
    direct(RANDREAD_QD64, 1.5, ServerId::QemuNbdDirect),
    direct(RANDWRITE_QD64, 0.75, ServerId::FioFile),
    direct(RANDWRITE_QD64, 1.5, ServerId::QemuNbdDirect),
    // Without new mappings to commit: all is written. With them it is a scenario of the store.
    iops(Goal::Flush, FSYNC_1, 1.0, Against::BestPeer),
    iops(Goal::Flush, FSYNC_32, 1.0, Against::BestPeer),
];

const fn iops(goal: Goal, job: &'static str, bound: f64, against: Against) -> Target {
    let (measure, direction) = (Measure::Iops, Direction::AtLeast);
    Target { goal, class: Class::Cached, job, measure, against, direction, bound }
}

const fn cpu(goal: Goal, job: &'static str, bound: f64) -> Target {
    let (measure, direction) = (Measure::CpuPerRequest, Direction::AtMost);
    Target { measure, direction, ..iops(goal, job, bound, NBDKIT) }
}

const fn direct(job: &'static str, bound: f64, server: ServerId) -> Target {
    Target { class: Class::Direct, ..iops(Goal::Direct, job, bound, Against::Server(server)) }
}

/// Holds every target of ours among `servers` against what was measured.
pub fn evaluate(servers: &[ServerId], runs: &[Run], summaries: &[Summary]) -> Vec<Outcome> {
    let ours = |class| servers.iter().filter(move |server| takes_part(**server, class));
    let pairs = TARGETS.iter().flat_map(|target| ours(target.class).map(move |server| (target, *server)));
    pairs.map(|(target, server)| outcome_of(target, server, runs, summaries)).collect()
}

fn takes_part(server: ServerId, class: Class) -> bool {
    server.class() == class && server.role() == Role::Ours
}

fn outcome_of(target: &Target, ours: ServerId, runs: &[Run], summaries: &[Summary]) -> Outcome {
    let other = match target.against {
        Against::Server(server) => Some(server),
        Against::BestPeer => {
            results::best_peer(summaries, target.class, target.job).map(|summary| summary.server)
        }
    };
    let measured = other.and_then(|other| measured(target, ours, other, summaries));
    let spread = other.and_then(|other| spread(target, ours, other, runs));
    Outcome {
        goal: Some(target.goal),
        class: target.class.name(),
        server: Some(ours),
        job: target.job,
        measure: target.measure.key().to_owned(),
        demand: demand_text(target, other),
        measured,
        spread,
        direction: target.direction,
        verdict: verdict(measured, target.direction, target.bound),
        short_by: short_by(measured, target.direction, target.bound),
    }
}

fn measured(target: &Target, ours: ServerId, other: ServerId, summaries: &[Summary]) -> Option<f64> {
    let ours = results::find(summaries, ours, target.job)?;
    let other = results::find(summaries, other, target.job)?;
    match target.measure {
        Measure::Iops => results::ratio(ours.iops.median, other.iops.median),
        Measure::CpuPerRequest => results::cpu_ratio(ours, other),
    }
}

/// The ratios of the rounds, in each of which both took their turn one soon after the other.
fn spread(target: &Target, ours: ServerId, other: ServerId, runs: &[Run]) -> Option<Spread> {
    let value = |run: &Run| match target.measure {
        Measure::Iops => Some(run.measurement.iops),
        Measure::CpuPerRequest => run.cpu_us_per_request,
    };
    let of = |server| runs.iter().filter(move |run| run.server == server && run.job == target.job);
    let ratio = |run: &Run| {
        let base = of(other).find(|base| base.round == run.round)?;
        results::ratio(value(run)?, value(base)?)
    };
    Spread::of(&of(ours).filter_map(ratio).collect::<Vec<f64>>())
}

/// The demand, and with the best peer who that was.
fn demand_text(target: &Target, other: Option<ServerId>) -> String {
    let name = other.map(ServerId::name);
    let whom = match (target.against, name) {
        (Against::Server(server), _) => server.name().to_owned(),
        (Against::BestPeer, None) => "best peer".to_owned(),
        (Against::BestPeer, Some(name)) => format!("best peer ({name})"),
    };
    format!("{} {} x {whom}", target.direction.sign(), number(target.bound))
}

/// A bound with one digit at least.
fn number(bound: f64) -> String {
    format!("{bound:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::summarize;
    use crate::results::tests::run;
    use crate::targets::{Verdict, all_met};
    use clap::ValueEnum;

    fn outcomes(runs: &[Run]) -> Vec<Outcome> {
        evaluate(ServerId::value_variants(), runs, &summarize(runs))
    }

    fn of_ours(runs: &[Run], job: &str) -> Vec<Outcome> {
        let all = outcomes(runs).into_iter();
        all.filter(|outcome| outcome.job == job && outcome.server == Some(ServerId::Ours)).collect()
    }

    fn reads(iops: f64, cpu: f64) -> Vec<Run> {
        vec![
            run(ServerId::Ours, RANDREAD_QD64, iops, Some(cpu)),
            run(ServerId::NbdkitFile, RANDREAD_QD64, 100.0, Some(10.0)),
            run(ServerId::QemuNbd, RANDREAD_QD64, 50.0, Some(20.0)),
        ]
    }

    #[test]
    fn a_target_is_met_at_its_bound_and_missed_below() {
        let told = |iops, cpu| -> Vec<(String, String)> {
            let all = of_ours(&reads(iops, cpu), RANDREAD_QD64).into_iter();
            all.map(|outcome| (outcome.demand.clone(), outcome.verdict_text())).collect()
        };
        let rows = |verdicts: [&str; 3]| {
            let demands = [">= 1.4 x nbdkit-file", ">= 2.8 x qemu-nbd", "<= 0.35 x nbdkit-file"];
            demands
                .into_iter()
                .zip(verdicts)
                .map(|(demand, verdict)| (demand.into(), verdict.into()))
                .collect()
        };
        let at_bound: Vec<(String, String)> = rows(["met", "met", "met"]);
        assert_eq!(told(140.0, 3.5), at_bound);
        let below: Vec<(String, String)> = rows(["short by 24 %", "short by 24 %", "short by 43 %"]);
        assert_eq!(told(107.0, 5.0), below);
    }

    #[test]
    fn the_best_peer_is_of_the_same_class() {
        let runs = [
            run(ServerId::Ours, READ_256K, 120.0, None),
            run(ServerId::QemuNbd, READ_256K, 80.0, None),
            run(ServerId::NbdkitFile, READ_256K, 50.0, None),
            run(ServerId::QemuNbdDirect, READ_256K, 900.0, None),
        ];
        let outcome = of_ours(&runs, READ_256K).remove(0);
        assert_eq!((outcome.measured, outcome.verdict), (Some(1.5), Verdict::Met));
        assert_eq!(outcome.demand, ">= 1.5 x best peer (qemu-nbd)");
    }

    #[test]
    fn the_spread_is_that_of_the_rounds_ratios() {
        let round = |round, ours, peer| {
            let runs = [
                run(ServerId::Ours, RANDREAD_QD1, ours, None),
                run(ServerId::NbdkitFile, RANDREAD_QD1, peer, None),
            ];
            runs.map(|run| Run { round, ..run })
        };
        // The machine slows down by half: the figures lie far apart, the ratios do not.
        let runs = [round(1, 200.0, 100.0), round(2, 105.0, 50.0), round(3, 95.0, 50.0)].concat();
        let outcome = of_ours(&runs, RANDREAD_QD1).remove(0);
        assert_eq!(outcome.spread.map(|spread| (spread.min, spread.max)), Some((1.9, 2.1)));
        assert_eq!(outcome.measured, Some(2.1), "the ratio of the medians");
        let alone = [run(ServerId::Ours, RANDREAD_QD1, 1.0, None)];
        assert_eq!(of_ours(&alone, RANDREAD_QD1)[0].spread, None);
    }

    #[test]
    fn each_of_ours_has_its_own_verdict() {
        let runs = [reads(140.0, 3.5), vec![run(ServerId::Blockd, RANDREAD_QD64, 70.0, Some(7.0))]].concat();
        let all = outcomes(&runs);
        let verdict = |server| {
            let mut of_job = all.iter().filter(|outcome| outcome.job == RANDREAD_QD64);
            of_job.find(|outcome| outcome.server == Some(server)).unwrap().verdict_text()
        };
        assert_eq!(
            (verdict(ServerId::Ours), verdict(ServerId::Blockd)),
            ("met".into(), "short by 50 %".into())
        );
        let without = evaluate(&[ServerId::Ours, ServerId::NbdkitFile], &runs, &summarize(&runs));
        assert!(without.iter().all(|outcome| outcome.server == Some(ServerId::Ours)));
    }

    #[test]
    fn nothing_measured_is_not_a_success() {
        let outcomes = outcomes(&[]);
        assert!(outcomes.len() >= TARGETS.len());
        assert!(outcomes.iter().all(|outcome| outcome.verdict == Verdict::NotMeasured));
        assert!(!all_met(&outcomes));
        assert!(!all_met(&[]));
    }

    #[test]
    fn every_target_names_a_headline_job_and_stays_in_its_class() {
        for target in &TARGETS {
            assert_eq!(crate::jobs::find(target.job).unwrap().set, crate::jobs::JobSet::Headline);
            assert!(target.bound > 0.0, "a part of nothing is nothing");
            if let Against::Server(server) = target.against {
                assert_eq!(server.class(), target.class);
            }
            assert!(ServerId::value_variants().iter().any(|server| takes_part(*server, target.class)));
        }
    }

    #[test]
    fn every_row_about_servers_has_targets_in_its_jobs() {
        let rows: [(Goal, &[&str]); 8] = [
            (Goal::RandomReads, &[RANDREAD_QD64]),
            (Goal::RandomWrites, &[RANDWRITE_QD64]),
            (Goal::OneAtATime, &[RANDREAD_QD1, RANDWRITE_QD1]),
            (Goal::Connections, &[RANDREAD_JOBS4, RANDWRITE_JOBS4]),
            (Goal::OneDisk, &[RANDREAD_QD16, RANDWRITE_QD16]),
            (Goal::Sequential, &[READ_256K, READ_1M, WRITE_256K, WRITE_1M]),
            (Goal::Direct, &[RANDREAD_QD64, RANDWRITE_QD64]),
            (Goal::Flush, &[FSYNC_1, FSYNC_32]),
        ];
        assert!(rows.iter().map(|(goal, _)| goal).eq(Goal::ALL.iter().take(rows.len())));
        assert_eq!(Goal::ALL.get(rows.len()), Some(&Goal::FirstWrites), "the rest is the store's");
        for (goal, wanted) in rows {
            let mut jobs: Vec<&str> =
                TARGETS.iter().filter(|target| target.goal == goal).map(|target| target.job).collect();
            jobs.dedup();
            assert_eq!(jobs, wanted, "{}", goal.title());
        }
    }
}
