//! What we want of volumes, and whether a run shows that we reach it.

use super::Scenario;
use super::record::Row;
use super::{calls, deep_reads, diff, first_writes, full, steady, tls};
use super::{delete_middle, flushes, paced, soak, space, worst_memory};
use crate::goals::Goal;
use crate::targets::{Direction, Outcome, short_by, verdict};

/// The class of these targets.
const CLASS: &str = "store";
/// Until a store that was stopped serves, and how much longer after `kill -9`.
const START_S: f64 = 2.0;
const AFTER_KILL_S: f64 = 5.0;
/// Memory of a mapped TiB, in the usual case.
const MIB_A_TIB: f64 = 130.0;

/// A bound for the median of a row.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    goal: Option<Goal>,
    pub(crate) scenario: &'static str,
    subject: &'static str,
    measure: String,
    unit: &'static str,
    direction: Direction,
    bound: f64,
}

impl Target {
    /// The same, as part of a goal.
    pub(crate) fn towards(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }
}

/// Holds the targets of the scenarios that were asked for against the rows.
pub fn evaluate(scenarios: &[Scenario], rows: &[Row]) -> Vec<Outcome> {
    let asked = |target: &Target| scenarios.iter().any(|scenario| scenario.measures(target.scenario));
    targets().iter().filter(|target| asked(target)).map(|target| outcome(CLASS, target, rows)).collect()
}

/// Holds a target of a class against the rows.
pub(crate) fn outcome(class: &'static str, target: &Target, rows: &[Row]) -> Outcome {
    let Target { goal, scenario, subject, measure, unit, direction, bound } = target;
    let is_it = |row: &&Row| row.scenario == *scenario && row.subject == *subject && row.measure == *measure;
    let spread = rows.iter().find(is_it).map(|row| row.spread);
    let measured = spread.map(|spread| spread.median);
    Outcome {
        goal: *goal,
        class,
        server: None,
        job: scenario,
        measure: format!("{subject}: {measure}"),
        demand: format!("{} {bound} {unit}", direction.sign()),
        measured,
        spread,
        direction: *direction,
        verdict: verdict(measured, *direction, *bound),
        short_by: short_by(measured, *direction, *bound),
    }
}

fn targets() -> Vec<Target> {
    let calls = call_targets("4 GiB").into_iter().chain(call_targets("1 TiB"));
    let rest = steady_targets().into_iter().chain(snapshot_targets());
    rest.chain(calls).chain(full_targets()).chain(tls_targets()).chain(own_targets()).collect()
}

/// Those that stand beside their scenarios.
fn own_targets() -> Vec<Target> {
    let towards = |goal: Goal, targets: Vec<Target>| {
        targets.into_iter().map(move |target| target.towards(goal)).collect::<Vec<_>>()
    };
    [
        towards(Goal::DeepReads, deep_reads::targets()),
        towards(Goal::SnapshotCalls, paced::targets("4 GiB", &paced::WRITERS)),
        towards(Goal::SnapshotCalls, paced::targets("1 TiB", &[paced::DEEP])),
        towards(Goal::Deletion, delete_middle::targets()),
        towards(Goal::Space, space::targets()),
        towards(Goal::Memory, worst_memory::targets()),
        towards(Goal::Memory, soak::targets()),
        towards(Goal::Flush, flushes::targets()),
    ]
    .concat()
}

pub(crate) fn at_least(scenario: &'static str, subject: &'static str, measure: &str, bound: f64) -> Target {
    let (measure, direction) = (measure.to_owned(), Direction::AtLeast);
    Target { goal: None, scenario, subject, measure, unit: "x", direction, bound }
}

pub(crate) fn at_most(
    scenario: &'static str,
    subject: &'static str,
    measure: &str,
    bound: f64,
    unit: &'static str,
) -> Target {
    let (measure, direction) = (measure.to_owned(), Direction::AtMost);
    Target { goal: None, scenario, subject, measure, unit, direction, bound }
}

fn steady_targets() -> Vec<Target> {
    steady::JOBS.map(|job| at_least(steady::NAME, steady::RATIO, job, 0.9)).into()
}

fn snapshot_targets() -> Vec<Target> {
    vec![
        at_least(first_writes::NAME, "volume", first_writes::RATIO, 0.9).towards(Goal::FirstWrites),
        at_least(first_writes::NAME, "volume / qcow2-extended-l2", first_writes::AFTER, 3.0)
            .towards(Goal::FirstWrites),
        at_least(deep_reads::NAME, "volume", &deep_reads::ratio_name(deep_reads::SNAPSHOTS), 0.95)
            .towards(Goal::DeepReads),
        at_most(diff::NAME, diff::RATIO, diff::SAME_CHANGES, 1.25, "x"),
    ]
}

fn call_targets(subject: &'static str) -> Vec<Target> {
    let most = |measure: &str, bound| at_most(calls::NAME, subject, measure, bound, "ms");
    let no_flush = |measure| format!("{measure}{}", calls::NO_FLUSH);
    vec![
        most(calls::IDLE_CALL, 10.0),
        most(calls::CALL, 10.0),
        most(calls::LONGEST_CALL, 10.0),
        most(&no_flush(calls::CALL), 10.0),
        most(calls::LONGEST_OVERLAPPING, 20.0),
        most(&no_flush(calls::LONGEST_OVERLAPPING), 20.0),
    ]
}

fn full_targets() -> Vec<Target> {
    let starts = full::STARTS.map(|(measure, stop, _)| {
        let seconds = if stop == full::Stop::Kill { START_S + AFTER_KILL_S } else { START_S };
        at_most(full::NAME, "1 TiB", measure, seconds, "s").towards(Goal::StartUp)
    });
    let memory = full::RESIDENT
        .map(|(_, measure)| at_most(full::NAME, "1 TiB", measure, MIB_A_TIB, "MiB").towards(Goal::Memory));
    let idle = at_most(full::NAME, "1 TiB", full::IDLE, 0.5, "%");
    starts.into_iter().chain(memory).chain([idle]).collect()
}

fn tls_targets() -> Vec<Target> {
    tls::CPU.map(|measure| at_least(tls::NAME, tls::RATIO, measure, 1.2)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Spread;
    use crate::targets::Verdict;
    use clap::ValueEnum;

    fn row(scenario: &'static str, subject: &str, measure: &str, value: f64) -> Row {
        let spread = Spread::of(&[value]).unwrap();
        let (subject, measure) = (subject.to_owned(), measure.to_owned());
        Row { scenario, subject, measure, unit: "x", values: vec![value], spread }
    }

    #[test]
    fn every_row_about_the_store_has_a_target() {
        let targets = targets();
        for goal in Goal::ALL.iter().skip_while(|goal| **goal != Goal::FirstWrites) {
            assert!(targets.iter().any(|target| target.goal == Some(*goal)), "{}", goal.title());
        }
    }

    #[test]
    fn a_target_needs_its_own_row() {
        let rows = [
            row(first_writes::NAME, "volume", first_writes::RATIO, 0.8999),
            row(full::NAME, "64 GiB", full::IDLE, 0.1),
        ];
        let of = |measure: &str| {
            evaluate(Scenario::value_variants(), &rows)
                .into_iter()
                .find(|outcome| outcome.measure.contains(measure))
                .unwrap()
                .verdict
        };
        assert_eq!(of("volume: after / before"), Verdict::NotMet);
        assert_eq!(of(full::IDLE), Verdict::NotMeasured, "another size says nothing of 1 TiB");
    }
}
