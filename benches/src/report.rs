//! How results are shown: aligned text for a terminal, and a page in Markdown.

mod goals;

use crate::client::Client;
use crate::jobs::Job;
use crate::migrate::{self, MigrateResults};
use crate::plots::Link;
use crate::results::{FailedRun, Results, Settings, Spread, Summary};
use crate::servers::{Class, Role, ServerId, debian_config};
use crate::store::StoreResults;
use crate::store::record::{FailedScenario, Row};
use crate::sync::{self, SyncResults};

/// What stands in a cell without a value.
pub(crate) const NONE: &str = "-";

/// A table, and which of its columns are words (aligned left) rather than numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Heads of the columns.
    pub head: Vec<&'static str>,
    /// Cells, as many a row as there are heads.
    pub rows: Vec<Vec<String>>,
    /// How many columns from the left are words.
    pub words: usize,
}

impl Table {
    /// Aligned with spaces.
    pub fn text(&self) -> String {
        let head: Vec<String> = self.head.iter().map(|&head| head.to_owned()).collect();
        let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&self.rows).collect();
        let width =
            |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let lines: Vec<String> = all.iter().map(|row| self.line(row, &widths)).collect();
        format!("{}\n{}\n", self.title, lines.join("\n"))
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let cell = |(column, (text, &width)): (usize, (&String, &usize))| {
            if column < self.words { format!("{text:<width$}") } else { format!("{text:>width$}") }
        };
        let cells: Vec<String> = row.iter().zip(widths).enumerate().map(cell).collect();
        format!("  {}", cells.join("  ").trim_end())
    }

    /// As a Markdown table under a heading of the third level.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
        let head: Vec<String> = self.head.iter().map(|&head| head.to_owned()).collect();
        let rule: Vec<String> = (0..head.len())
            .map(|column| if column < self.words { "---" } else { "---:" }.to_owned())
            .collect();
        let mut lines = vec![line(&head), line(&rule)];
        lines.extend(self.rows.iter().map(|row| line(row)));
        format!("### {}\n\n{}\n", self.title, lines.join("\n"))
    }
}

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

const LEGEND: &str = "\
IOPS, MiB/s, latencies and CPU are medians over the rounds; min-max belongs to IOPS.
x best peer: IOPS by those of the fastest peer in the same class; limits are no peers.
x CPU ref: CPU time a request by that of nbdkit-file (cached), qemu-nbd-direct (direct), nbdkit-memory (ceiling).
";

const INTERRUPTED: &str = "note: stopped before the end; these are the measurements until then";

fn job_tables(results: &Results) -> Vec<Table> {
    let clients = &results.settings.clients;
    let of_job = |&job: &&'static Job| clients.iter().map(move |&client| job_table(results, job, client));
    results.jobs.iter().flat_map(of_job).filter(|table| !table.rows.is_empty()).collect()
}

fn job_table(results: &Results, job: &Job, client: Client) -> Table {
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
fn scenario_tables(store: &StoreResults) -> Vec<Table> {
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

fn range(spread: Spread) -> String {
    format!("{:.0}-{:.0}", spread.min, spread.max)
}

fn two_digits(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.2}"))
}

fn failure_text(failure: &FailedRun) -> String {
    let FailedRun { server, job, client, round, what, why } = failure;
    format!("{job}, {}, by {}, round {round}: {what}: {why}", server.name(), client.label())
}

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

fn sync_body(sync: &SyncResults) -> String {
    let mut parts = vec![sync::report::LEGEND.to_owned()];
    parts.extend(sync::report::tables(sync).iter().map(Table::markdown));
    let remarks = remarks_of(&sync.failures, &sync.notices);
    if !remarks.is_empty() {
        let remarks: Vec<String> = remarks.iter().map(|remark| format!("- {remark}")).collect();
        parts.push(format!("### Remarks on replication\n\n{}\n", remarks.join("\n")));
    }
    parts.join("\n")
}

fn moves_body(moves: &MigrateResults) -> String {
    let mut parts = vec![migrate::report::LEGEND.to_owned()];
    parts.extend(migrate::report::tables(moves).iter().map(Table::markdown));
    let remarks = remarks_of(&moves.failures, &moves.notices);
    if !remarks.is_empty() {
        let remarks: Vec<String> = remarks.iter().map(|remark| format!("- {remark}")).collect();
        parts.push(format!("### Remarks on moves\n\n{}\n", remarks.join("\n")));
    }
    parts.join("\n")
}

fn store_body(store: &StoreResults) -> String {
    let mut parts = vec![STORE_LEGEND.to_owned()];
    parts.extend(scenario_tables(store).iter().map(Table::markdown));
    let remarks: Vec<String> =
        remarks_of(&store.failures, &store.notices).iter().map(|remark| format!("- {remark}")).collect();
    if !remarks.is_empty() {
        parts.push(format!("### Remarks on the store\n\n{}\n", remarks.join("\n")));
    }
    parts.push(format!("### Disks\n\n{}\n", disks_table(store)));
    parts.join("\n")
}

fn disks_table(store: &StoreResults) -> String {
    let rows = store.disks.iter().map(|entry| format!("| {} | {} |", entry.disk, entry.how));
    let head = ["| disk | how it is served and cut |".to_owned(), "| --- | --- |".to_owned()];
    head.into_iter().chain(rows).collect::<Vec<String>>().join("\n")
}

const STORE_LEGEND: &str = "\
Everything here goes through the page cache. A row has the median of its values and their ends; rows in `x` are ratios \
of two values of the same round. What each scenario does is told in benches/README.md.
";

const PREFACE: &str = "This page is written by `cargo xtask compare --markdown FILE`; do not edit it. Quote the ratios rather than \
     the figures: the latter belong to the machine.\n";

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

fn method_body(results: &Results) -> String {
    let settings = &results.settings;
    let command = format!("```console\n$ {}\n```\n", settings.command);
    let servers = (!results.servers.is_empty()).then(|| servers_method(results));
    let store = results.store.as_ref().map(store_method);
    let sync = results.sync.as_ref().map(sync_method);
    let moves = results.migrate.as_ref().map(migrate::report::method);
    [Some(command), servers, store, sync, moves].into_iter().flatten().collect::<Vec<String>>().join("\n")
}

fn store_method(store: &StoreResults) -> String {
    format!(
        "- The store: volumes and peers of {} MiB, {} round(s), {} s a job; {} GiB mapped without data in `full-store`. \
         Before each measurement the disk is flushed and nothing is dirty in any page cache.\n",
        store.image_mib, store.rounds, store.runtime_s, store.large_gib
    )
}

fn sync_method(sync: &SyncResults) -> String {
    format!(
        "- Replication: a volume of {} MiB, completely written with what nothing compresses, large ones of {} GiB; {} round(s); \
         the schedule watched for {} s. All daemons and peers of a step in a network of their own, whose loopback device \
         counts the bytes. Before each measurement nothing is dirty in any page cache.\n",
        sync.size_mib, sync.large_gib, sync.runs, sync.watch_s
    )
}

fn servers_method(results: &Results) -> String {
    let settings = &results.settings;
    let pinned = if settings.pinned {
        "the server tied to CPU 0, the client to CPU 1"
    } else {
        "free to use all CPUs"
    };
    format!(
        "- One image of {} MiB, completely written, for all servers; {} round(s) of {} s a job, server by server in turn, \
         each freshly started; {pinned}.\n{}{METHOD}",
        settings.image_mib,
        settings.rounds,
        settings.runtime_s,
        clients_method(settings)
    )
}

fn clients_method(settings: &Settings) -> String {
    let one = |client: &Client| format!("- Client {}: {}\n", client.label(), client.described());
    let all: String = settings.clients.iter().map(one).collect();
    let note = "- The targets of the servers are held against what the first client measured; no ratio has two clients in it.\n";
    if settings.clients.len() > 1 { all + note } else { all }
}

const METHOD: &str = "\
- Cached class: the image is in the page cache and nothing is dirty before each run. Direct class: the page cache is \
dropped before each run. Memory servers are written once before they are measured.
- CPU: user and system time of the server, its threads and its children over the whole run, by the number of requests, \
flushes included.
- Classes are never mixed in a ratio. `fio-file` is fio's io_uring engine on the image itself, without a server; \
`nbdkit-null` has no data. Both are limits, not peers.
";

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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::goals::Goal;
    use crate::jobs::{RANDREAD_QD64, find};
    use crate::machine::Machine;
    use crate::results::tests::run;
    use crate::results::{Run, SCHEMA_VERSION, ServerEntry, summarize};
    use crate::store::record::{Key, Recorder};
    use crate::store::{DiskEntry, Scenario};
    use crate::targets::servers::evaluate;

    pub(crate) fn sample() -> Results {
        let runs = vec![
            run(ServerId::Ours, RANDREAD_QD64, 90_000.0, Some(8.0)),
            run(ServerId::NbdkitFile, RANDREAD_QD64, 60_000.0, Some(20.0)),
            run(ServerId::FioFile, RANDREAD_QD64, 89_000.0, None),
            Run { client: Client::Ours, ..run(ServerId::Ours, RANDREAD_QD64, 300_000.0, Some(2.0)) },
        ];
        let summaries = summarize(&runs);
        let of_fio: Vec<Run> = runs.iter().filter(|run| run.client == Client::Fio).cloned().collect();
        Results {
            v: SCHEMA_VERSION,
            machine: Machine {
                cpu: "Some CPU".into(),
                cpus: 2,
                kernel: "6.1".into(),
                memory_mib: 1024,
                file_system: "ext4".into(),
                versions: [("fio".to_owned(), "fio-3.33".to_owned())].into(),
            },
            settings: Settings {
                command: "cargo xtask compare --quick".into(),
                image_mib: 4096,
                runtime_s: 3,
                rounds: 1,
                pinned: false,
                clients: vec![Client::Fio, Client::Ours],
            },
            servers: vec![entry(ServerId::Ours, Some("nbd-server $IMG")), entry(ServerId::FioFile, None)],
            jobs: find(RANDREAD_QD64).into_iter().collect(),
            targets: evaluate(&[ServerId::Ours], &of_fio, &summarize(&of_fio)),
            summaries,
            runs,
            failures: vec![],
            notices: vec!["nbd-server left out".into()],
            store: Some(sample_store()),
            sync: None,
            migrate: None,
            interrupted: false,
        }
    }

    fn sample_store() -> StoreResults {
        let mut recorder = Recorder::default();
        for (round, value) in [(1, 12.0), (2, 8.0), (3, 9.5)] {
            let (subject, measure) = ("64 GiB".to_owned(), "diff".to_owned());
            recorder.put(Key { scenario: "diff", subject, measure, unit: "ms" }, round, value);
        }
        StoreResults {
            scenarios: vec![Scenario::Diff],
            image_mib: 1024,
            large_gib: 1024,
            runtime_s: 3,
            rounds: 3,
            disks: vec![DiskEntry { disk: "volume", how: "blockd serve".into() }],
            rows: recorder.rows(),
            failures: Vec::new(),
            notices: vec!["btrfs left out".into()],
        }
    }

    fn entry(server: ServerId, command: Option<&str>) -> ServerEntry {
        let command = command.map(str::to_owned);
        ServerEntry { server, class: server.class(), role: server.role(), command }
    }

    #[test]
    fn text_tables_are_aligned() {
        let shown = job_table(&sample(), sample().jobs[0], Client::Fio).text();
        let lines: Vec<&str> = shown.lines().skip(1).collect();
        assert_eq!(lines.len(), 4, "{shown}");
        let class_at = lines[0].find("class").unwrap();
        assert!(lines[1..3].iter().all(|line| line[class_at..].starts_with("cached")), "{shown}");
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()), "{shown}");
        assert!(lines[1].ends_with("1.50       0.40"), "{shown}");
    }

    #[test]
    fn a_page_has_targets_tables_machine_and_command() {
        let picture = Link { title: "Reads".into(), target: "benchmarks/a.svg".into() };
        let page = markdown(&sample(), &[picture]);
        for part in [
            "# Benchmarks",
            "## Goals",
            "| 4k random read, depth 64, cached | randread-4k-qd64 | ours | IOPS | >= 1.4 x nbdkit-file | met | 1.50 | 1.50-1.50 |",
            "|  | randread-4k-qd64 | ours | CPU a request | <= 0.35 x nbdkit-file | short by 15 % | 0.40 | 0.40-0.40 |",
            "## Charts\n\n![Reads](benchmarks/a.svg)\n",
            "### randread-4k-qd64 (client: fio)\n",
            "### randread-4k-qd64 (client: nbd-load, ours)\n",
            "| ours | cached | 300000 |",
            "- Client nbd-load, ours: `nbd-load`, ours, over a Unix socket",
            "held against what the first client measured",
            "| fio-file (limit) | direct | 89000 |",
            "$ cargo xtask compare --quick",
            "- CPU: Some CPU, 2 usable",
            "- fio: fio-3.33",
            "- nbd-server left out",
            "## The store",
            "| 64 GiB | diff | 9.500 | ms | 8.000-12.000 | 3 |",
            "- note: btrfs left out",
            "| volume | blockd serve |",
        ] {
            assert!(page.contains(part), "{part} is missing in\n{page}");
        }
    }

    #[test]
    fn json_has_the_documented_names() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["v"], SCHEMA_VERSION);
        assert_eq!(json["runs"][0]["server"], "ours");
        assert_eq!(json["runs"][0]["iops"], 90_000.0);
        assert_eq!(json["runs"][2]["cpu_us_per_request"], serde_json::Value::Null);
        let target = &json["targets"][0];
        assert_eq!((&target["verdict"], &target["goal"]), (&"met".into(), &Goal::RandomReads.title().into()));
        assert_eq!((&target["server"], &target["short_by"]), (&"ours".into(), &serde_json::Value::Null));
        assert_eq!(target["spread"]["max"], 1.5);
        let missed = json["targets"][2]["short_by"].as_f64().unwrap();
        assert!((missed - 0.05 / 0.35).abs() < 1e-9, "{missed}");
        assert_eq!(json["jobs"][0]["rw"], "randread");
        assert_eq!(json["targets"][0]["measure"], "iops");
        let row = &json["store"]["rows"][0];
        assert_eq!((&row["median"], &row["unit"]), (&9.5.into(), &"ms".into()));
    }
}
