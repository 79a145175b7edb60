//! Replication's tables: a line for each tool, a column for each measure.

use super::SyncResults;
use super::{
    CPU, CPU_SOURCE, CPU_TARGET, WALL, WIRE, WIRE_X, any_size, first_copy, hashing, increment, schedule,
};
use crate::report::{NONE, Table, few_digits};
use crate::store::record::Row;

/// One table a step.
pub fn tables(results: &SyncResults) -> Vec<Table> {
    results
        .steps
        .iter()
        .map(|step| table(&results.rows, step.name(), &KNOWN))
        .filter(|table| !table.rows.is_empty())
        .collect()
}

/// The table of a step: a column for each of the known measures that it has, in their order.
pub(crate) fn table(rows: &[Row], step: &'static str, known: &[&'static str]) -> Table {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.scenario == step).collect();
    let mut measures: Vec<&str> = rows.iter().map(|row| row.measure.as_str()).collect();
    let known = known.iter().copied().filter(|known| measures.contains(known));
    let columns: Vec<&'static str> = known.collect();
    measures.retain(|measure| !columns.contains(measure));
    debug_assert!(measures.is_empty(), "no column for {measures:?}");
    let mut subjects: Vec<&str> = Vec::new();
    for row in &rows {
        if !subjects.contains(&row.subject.as_str()) {
            subjects.push(&row.subject);
        }
    }
    let cell = |subject: &str, measure: &str| {
        let row = rows.iter().find(|row| row.subject == subject && row.measure == measure);
        row.map_or(NONE.to_owned(), |row| shown(row))
    };
    let line = |subject: &&str| {
        let cells = columns.iter().map(|measure| cell(subject, measure));
        std::iter::once((*subject).to_owned()).chain(cells).collect()
    };
    Table {
        title: step.to_owned(),
        head: std::iter::once("of").chain(columns.iter().copied()).collect(),
        rows: subjects.iter().map(line).collect(),
        words: 1,
    }
}

/// The median, and the ends of times and ratios, which is where noise shows.
fn shown(row: &Row) -> String {
    let median = few_digits(row.spread.median);
    let has_ends = row.values.len() > 1 && (row.measure == WALL || matches!(row.unit, "x" | "ms"));
    let ends = || format!(" ({}-{})", few_digits(row.spread.min), few_digits(row.spread.max));
    if has_ends { median + &ends() } else { median }
}

/// All measures, in the order of columns.
const KNOWN: [&str; 19] = [
    first_copy::SPEED,
    WALL,
    WIRE,
    WIRE_X,
    increment::TOLD_X,
    CPU,
    CPU_SOURCE,
    CPU_TARGET,
    first_copy::RATIO,
    increment::TIMES,
    increment::CPU_TIMES,
    any_size::WALL_TIMES,
    any_size::CPU_TIMES,
    hashing::RATIO,
    hashing::CPU_RATIO,
    schedule::LONGEST,
    schedule::MEDIAN,
    schedule::RUNS,
    schedule::BUSY,
];

/// What a reader of the tables has to know.
pub const LEGEND: &str = "\
Medians over the rounds, in brackets the smallest and the largest. Both ends are on one machine and share its \
processors. What each step does is told in benches/README.md.
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::Recorder;
    use crate::sync::{OURS, Step, key};

    #[test]
    fn a_tool_is_a_line_and_a_measure_a_column() {
        let mut recorder = Recorder::default();
        for (round, wall) in [(1, 1.0), (2, 3.0), (3, 2.0)] {
            recorder.put(key(increment::NAME, OURS, WALL), round, wall);
        }
        recorder.put(key(increment::NAME, OURS, CPU), 1, 0.5);
        recorder.put(key(increment::NAME, "peer", WALL), 1, 40.0);
        let results = SyncResults {
            steps: vec![Step::Increment, Step::Schedule],
            size_mib: 1,
            large_gib: 1,
            runs: 3,
            watch_s: 1,
            rows: recorder.rows(),
            failures: Vec::new(),
            notices: Vec::new(),
        };
        let tables = tables(&results);
        assert_eq!(tables.len(), 1, "a step without rows has no table");
        assert_eq!(tables[0].head, ["of", WALL, CPU]);
        let rows = [["blockd", "2.000 (1.000-3.000)", "0.500"], ["peer", "40.000", "-"]];
        assert_eq!(tables[0].rows, rows);
    }
}
