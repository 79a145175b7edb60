//! The tables of jobs and of the store's scenarios.

use super::{NONE, Table};
use crate::client::Client;
use crate::jobs::Job;
use crate::results::{Results, Spread, Summary};
use crate::servers::{Class, Role};
use crate::store::StoreResults;
use crate::store::record::Row;

pub(super) fn job_tables(results: &Results) -> Vec<Table> {
    let clients = &results.settings.clients;
    let of_job = |&job: &&'static Job| clients.iter().map(move |&client| job_table(results, job, client));
    results.jobs.iter().flat_map(of_job).filter(|table| !table.rows.is_empty()).collect()
}

pub(super) fn job_table(results: &Results, job: &Job, client: Client) -> Table {
    let in_class = |class: Class| {
        let of_job = results.summaries.iter();
        let of_job = of_job.filter(move |summary| summary.job == job.name && summary.client == client);
        of_job.filter(move |summary| summary.class == class).map(job_row)
    };
    Table {
        title: format!("{} (client: {})", job.name, client.label()),
        head: vec![
            "server",
            "class",
            "IOPS",
            "min-max",
            "MiB/s",
            "p50 us",
            "p99 us",
            "CPU us/io",
            "x best peer",
            "x CPU ref",
        ],
        rows: Class::ALL.into_iter().flat_map(in_class).collect(),
        words: 2,
    }
}

fn job_row(summary: &Summary) -> Vec<String> {
    let limit = if summary.server.role() == Role::Limit { " (limit)" } else { "" };
    vec![
        format!("{}{limit}", summary.server.name()),
        summary.class.name().to_owned(),
        format!("{:.0}", summary.iops.median),
        range(summary.iops),
        format!("{:.1}", summary.mib_per_s.median),
        format!("{:.1}", summary.p50_us.median),
        format!("{:.1}", summary.p99_us.median),
        summary.cpu_us_per_request.map_or(NONE.to_owned(), |cpu| format!("{:.2}", cpu.median)),
        two_digits(summary.iops_to_best_peer),
        two_digits(summary.cpu_to_reference),
    ]
}

/// One table a scenario.
pub(super) fn scenario_tables(store: &StoreResults) -> Vec<Table> {
    let mut names: Vec<&str> = store.rows.iter().map(|row| row.scenario).collect();
    names.dedup();
    names.iter().map(|name| scenario_table(store, name)).collect()
}

fn scenario_table(store: &StoreResults, scenario: &str) -> Table {
    let rows = store.rows.iter().filter(|row| row.scenario == scenario);
    Table {
        title: scenario.to_owned(),
        head: vec!["of", "measure", "median", "unit", "min-max", "values"],
        rows: rows.map(scenario_row).collect(),
        words: 2,
    }
}

fn scenario_row(row: &Row) -> Vec<String> {
    let Spread { median, min, max } = row.spread;
    vec![
        row.subject.clone(),
        row.measure.clone(),
        few_digits(median),
        row.unit.to_owned(),
        format!("{}-{}", few_digits(min), few_digits(max)),
        row.values.len().to_string(),
    ]
}

/// Large values whole, small ones with three digits after the point.
pub(crate) fn few_digits(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

fn range(spread: Spread) -> String {
    format!("{:.0}-{:.0}", spread.min, spread.max)
}

fn two_digits(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.2}"))
}
