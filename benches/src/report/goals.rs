//! The goals and what came of them, row by row.

use super::{NONE, Table};
use crate::goals::Goal;
use crate::results::Spread;
use crate::servers::ServerId;
use crate::targets::{Direction, Measure, Outcome};

/// What a reader of the table has to know.
pub(super) const LEGEND: &str = "\
Measured is a ratio of medians, or in scenarios a median in the unit of what is wanted; min-max are the ends of the \
rounds, in ratios those of the rounds' own ratios. Short by: what is missing, as a part of what is wanted, rounded up.";

/// Every goal with its targets; none when nothing that was asked for belongs to one.
pub(super) fn table(outcomes: &[Outcome]) -> Option<Table> {
    outcomes.iter().any(|outcome| outcome.goal.is_some()).then(|| Table {
        title: "goals".to_owned(),
        head: vec!["goal", "job", "of", "measure", "wanted", "verdict", "measured", "min-max"],
        rows: Goal::ALL.iter().flat_map(|goal| goal_rows(*goal, outcomes)).collect(),
        words: 6,
    })
}

/// The targets that belong to no goal.
pub(super) fn others(outcomes: &[Outcome]) -> Option<Table> {
    let rows: Vec<Vec<String>> =
        outcomes.iter().filter(|outcome| outcome.goal.is_none()).map(cells).collect();
    (!rows.is_empty()).then(|| Table {
        title: "targets".to_owned(),
        head: vec!["job", "of", "measure", "wanted", "verdict", "measured", "min-max"],
        rows,
        words: 5,
    })
}

/// The goal's title stands in its first row; a goal without targets is one that was not measured.
fn goal_rows(goal: Goal, outcomes: &[Outcome]) -> Vec<Vec<String>> {
    let of_goal = outcomes.iter().filter(|outcome| outcome.goal == Some(goal));
    let mut rows: Vec<Vec<String>> = of_goal.map(cells).collect();
    if rows.is_empty() {
        rows.push([NONE, NONE, NONE, NONE, "not measured", NONE, NONE].map(str::to_owned).to_vec());
    }
    let titles = std::iter::once(goal.title()).chain(std::iter::repeat(""));
    rows.into_iter().zip(titles).map(|(row, title)| [vec![title.to_owned()], row].concat()).collect()
}

fn cells(outcome: &Outcome) -> Vec<String> {
    vec![
        outcome.job.to_owned(),
        outcome.server.map_or(outcome.class, ServerId::name).to_owned(),
        Measure::text_of(&outcome.measure).to_owned(),
        outcome.demand.clone(),
        outcome.verdict_text(),
        outcome.measured.map_or(NONE.to_owned(), |value| outcome.direction.shown(value)),
        outcome.spread.map_or(NONE.to_owned(), |spread| ends(outcome.direction, spread)),
    ]
}

/// Both rounded as the value between them is, so that a single round has one figure.
fn ends(direction: Direction, spread: Spread) -> String {
    format!("{}-{}", direction.shown(spread.min), direction.shown(spread.max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::{servers, short_by, verdict};

    fn outcome(goal: Option<Goal>, job: &'static str, measured: f64) -> Outcome {
        let base = servers::evaluate(&[ServerId::Ours], &[], &[]).remove(0);
        let (direction, value) = (Direction::AtLeast, Some(measured));
        let (verdict, short_by) = (verdict(value, direction, 1.0), short_by(value, direction, 1.0));
        let spread = Spread::of(&[measured - 0.001, measured + 0.02]);
        Outcome { goal, job, measured: value, spread, direction, verdict, short_by, ..base }
    }

    #[test]
    fn every_goal_has_a_row_in_the_order_of_the_table() {
        let rows = table(&[outcome(Some(Goal::Space), "one", 1.0)]).unwrap().rows;
        let titles: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(titles, Goal::ALL.map(Goal::title));
        let verdicts: Vec<&str> = rows.iter().map(|row| row[5].as_str()).collect();
        assert!(
            verdicts.iter().zip(titles).all(|(verdict, title)| (*verdict == "met") == (title == "space"))
        );
    }

    #[test]
    fn rows_of_a_goal_stand_together_and_tell_what_is_missing() {
        let goal = Some(Goal::Memory);
        let outcomes = [outcome(goal, "one", 0.77), outcome(None, "other", 2.0), outcome(goal, "two", 1.5)];
        let rows = table(&outcomes).unwrap().rows;
        let last: Vec<String> = rows.iter().rev().take(2).rev().map(|row| row.join("|")).collect();
        assert!(last[0].starts_with("memory|one|ours|"), "{last:?}");
        assert!(last[0].ends_with("|short by 23 %|0.77|0.76-0.79"), "{last:?}");
        assert!(last[1].starts_with("|two|ours|"), "{last:?}");
        let rest = others(&outcomes).unwrap().rows;
        assert_eq!((rest.len(), rest[0][0].as_str()), (1, "other"));
    }

    #[test]
    fn without_goals_there_is_no_table() {
        assert_eq!(table(&[outcome(None, "other", 1.0)]), None);
        assert_eq!(others(&[outcome(Some(Goal::Space), "one", 1.0)]), None);
    }
}
