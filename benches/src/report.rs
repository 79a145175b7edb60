//! How results are shown: aligned text for a terminal, and a page in Markdown.

mod goals;
mod method;
mod page;
mod table;
mod tables;
#[cfg(test)]
pub(crate) mod tests;

use crate::migrate;
use crate::results::{FailedRun, Results};
use crate::store::record::FailedScenario;
use crate::sync;

pub use page::markdown;
pub use table::Table;
pub(crate) use tables::few_digits;
use tables::{job_tables, scenario_tables};

/// What stands in a cell without a value.
pub(crate) const NONE: &str = "-";

/// Everything for a terminal.
pub fn text(results: &Results) -> String {
    let jobs = job_tables(results);
    let legend = (!jobs.is_empty()).then(|| LEGEND.to_owned());
    let mut parts: Vec<String> = goals::table(&results.targets).iter().map(Table::text).collect();
    parts.extend(jobs.iter().map(Table::text).chain(legend));
    parts.extend(results.store.iter().flat_map(scenario_tables).map(|table| table.text()));
    parts.extend(results.sync.iter().flat_map(sync::report::tables).map(|table| table.text()));
    parts.extend(results.migrate.iter().flat_map(migrate::report::tables).map(|table| table.text()));
    parts.extend(goals::others(&results.targets).iter().map(Table::text));
    parts.extend(remarks(results));
    parts.extend(results.failures.iter().map(|failure| format!("failed: {}", failure_text(failure))));
    parts.extend(results.notices.iter().map(|notice| format!("note: {notice}")));
    if results.interrupted {
        parts.push(INTERRUPTED.to_owned());
    }
    parts.join("\n")
}

/// Above or below the tables of jobs.
const LEGEND: &str = "\
IOPS, MiB/s, latencies and CPU are medians over the rounds; min-max belongs to IOPS.
x best peer: IOPS by those of the fastest peer in the same class; limits are no peers.
x CPU ref: CPU time a request by that of nbdkit-file (cached), qemu-nbd-direct (direct), nbdkit-memory (ceiling).
";

const INTERRUPTED: &str = "note: stopped before the end; these are the measurements until then";

/// What went wrong in the scenarios, and what a reader of them has to know.
fn remarks(results: &Results) -> Vec<String> {
    let store = results.store.iter().map(|store| remarks_of(&store.failures, &store.notices));
    let sync = results.sync.iter().map(|sync| remarks_of(&sync.failures, &sync.notices));
    let moves = results.migrate.iter().map(|moves| remarks_of(&moves.failures, &moves.notices));
    store.chain(sync).chain(moves).flatten().collect()
}

fn remarks_of(failures: &[FailedScenario], notices: &[String]) -> Vec<String> {
    let failures = failures.iter().map(|failed| {
        let FailedScenario { scenario, subject, what, why } = failed;
        format!("failed: {scenario}, {subject}: {what}: {why}")
    });
    failures.chain(notices.iter().map(|notice| format!("note: {notice}"))).collect()
}

fn failure_text(failure: &FailedRun) -> String {
    let FailedRun { server, job, client, round, what, why } = failure;
    format!("{job}, {}, by {}, round {round}: {what}: {why}", server.name(), client.label())
}
