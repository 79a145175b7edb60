//! The results page.

use super::method::method_body;
use super::tables::{job_tables, scenario_tables};
use super::{INTERRUPTED, LEGEND, Table, failure_text, goals, remarks_of};
use crate::migrate::{self, MigrateResults};
use crate::plots::Link;
use crate::results::Results;
use crate::servers::{ServerId, debian_config};
use crate::store::StoreResults;
use crate::sync::{self, SyncResults};

const PREFACE: &str = "This page is written by `cargo xtask compare --markdown FILE`; do not edit it. Quote the ratios rather than \
     the figures: the latter belong to the machine.\n";

/// The results page, with its pictures.
pub fn markdown(results: &Results, pictures: &[Link]) -> String {
    let mut page = String::from("# Benchmarks: side by side with the peers\n\n");
    page.push_str(PREFACE);
    if let Some(table) = goals::table(&results.targets) {
        section(&mut page, "Goals", &format!("{}\n\n{}", goals::LEGEND, without_heading(&table.markdown())));
    }
    if let Some(table) = goals::others(&results.targets) {
        section(&mut page, "Targets", &without_heading(&table.markdown()));
    }
    if !pictures.is_empty() {
        let shown = pictures.iter().map(|Link { title, target }| format!("![{title}]({target})"));
        section(&mut page, "Charts", &shown.collect::<Vec<String>>().join("\n\n"));
    }
    if !results.servers.is_empty() {
        section(&mut page, "Results", &results_body(results));
    }
    if let Some(store) = &results.store {
        section(&mut page, "The store", &store_body(store));
    }
    if let Some(sync) = &results.sync {
        section(&mut page, "Replication", &sync_body(sync));
    }
    if let Some(moves) = &results.migrate {
        section(&mut page, "Moves", &moves_body(moves));
    }
    section(&mut page, "How it was measured", &method_body(results));
    section(&mut page, "Machine", &machine_body(results));
    if !results.servers.is_empty() {
        section(&mut page, "Servers", &servers_body(results));
    }
    page
}

fn section(page: &mut String, heading: &str, body: &str) {
    page.push_str(&format!("\n## {heading}\n\n{}\n", body.trim_end()));
}

/// A table whose title is already the section's heading.
fn without_heading(table: &str) -> String {
    table.lines().skip(2).collect::<Vec<&str>>().join("\n")
}

fn results_body(results: &Results) -> String {
    let mut parts: Vec<String> = vec![LEGEND.to_owned()];
    parts.extend(job_tables(results).iter().map(Table::markdown));
    let failures = results.failures.iter().map(|failure| format!("- failed: {}", failure_text(failure)));
    let notices = results.notices.iter().map(|notice| format!("- {notice}"));
    let remarks: Vec<String> = failures.chain(notices).collect();
    if !remarks.is_empty() {
        parts.push(format!("### Remarks\n\n{}\n", remarks.join("\n")));
    }
    if results.interrupted {
        parts.push(format!("{INTERRUPTED}\n"));
    }
    parts.join("\n")
}

fn store_body(store: &StoreResults) -> String {
    let remarks = remarks_of(&store.failures, &store.notices);
    let body = tables_body(STORE_LEGEND, &scenario_tables(store), ("the store", &remarks));
    format!("{body}\n### Disks\n\n{}\n", disks_table(store))
}

fn sync_body(sync: &SyncResults) -> String {
    let remarks = remarks_of(&sync.failures, &sync.notices);
    tables_body(sync::report::LEGEND, &sync::report::tables(sync), ("replication", &remarks))
}

fn moves_body(moves: &MigrateResults) -> String {
    let remarks = remarks_of(&moves.failures, &moves.notices);
    tables_body(migrate::report::LEGEND, &migrate::report::tables(moves), ("moves", &remarks))
}

/// Tables under their legend, and what is to be said of their subject.
fn tables_body(legend: &str, tables: &[Table], (subject, remarks): (&str, &[String])) -> String {
    let mut parts = vec![legend.to_owned()];
    parts.extend(tables.iter().map(Table::markdown));
    if !remarks.is_empty() {
        let remarks: Vec<String> = remarks.iter().map(|remark| format!("- {remark}")).collect();
        parts.push(format!("### Remarks on {subject}\n\n{}\n", remarks.join("\n")));
    }
    parts.join("\n")
}

const STORE_LEGEND: &str = "\
Everything here goes through the page cache. A row has the median of its values and their ends; rows in `x` are ratios \
of two values of the same round. What each scenario does is told in benches/README.md.
";

fn disks_table(store: &StoreResults) -> String {
    let rows = store.disks.iter().map(|entry| format!("| {} | {} |", entry.disk, entry.how));
    let head = ["| disk | how it is served and cut |".to_owned(), "| --- | --- |".to_owned()];
    head.into_iter().chain(rows).collect::<Vec<String>>().join("\n")
}

fn machine_body(results: &Results) -> String {
    let machine = &results.machine;
    let versions = machine.versions.iter().map(|(name, version)| format!("- {name}: {version}"));
    format!(
        "- CPU: {}, {} usable\n- memory: {} MiB\n- kernel: {}\n- file system of the image: {}\n{}",
        machine.cpu,
        machine.cpus,
        machine.memory_mib,
        machine.kernel,
        machine.file_system,
        versions.collect::<Vec<String>>().join("\n")
    )
}

fn servers_body(results: &Results) -> String {
    let mut body = String::from("| server | class | command |\n| --- | --- | --- |\n");
    for entry in &results.servers {
        let command = entry.command.as_deref().unwrap_or(NO_SERVER);
        let (name, class) = (entry.server.name(), entry.class.name());
        body.push_str(&format!("| {name} | {class} | `{command}` |\n"));
    }
    if results.servers.iter().any(|entry| entry.server == ServerId::DebianNbdServer) {
        let config = debian_config("$IMG", "$SOCK");
        body.push_str(&format!("\n`$CONF` of debian-nbd-server:\n\n```ini\n{config}```\n"));
    }
    body
}

/// Stands for the command of a server where there is none.
const NO_SERVER: &str =
    "none: fio --ioengine=io_uring --direct=1 --registerfiles=1 --fixedbufs=1 --filename=$IMG";
