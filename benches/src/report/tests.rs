//! Shared sample, and what is shown of it.

use super::tables::job_table;
use super::*;
use crate::client::Client;
use crate::goals::Goal;
use crate::jobs::{RANDREAD_QD64, find};
use crate::machine::Machine;
use crate::plots::Link;
use crate::results::tests::run;
use crate::results::{Run, SCHEMA_VERSION, ServerEntry, Settings, summarize};
use crate::servers::ServerId;
use crate::store::record::{Key, Recorder};
use crate::store::{DiskEntry, Scenario, StoreResults};
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
