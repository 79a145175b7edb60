//! One comparison from beginning to end.
//!
//! Order: class, then job, then round, then server. Within a job the servers take turns (A B C, A B C, …), so that
//! a machine that slows down or warms up does so for all of them. Every measurement has a freshly started server
//! and the same cache: nothing dirty, and the image completely in the page cache or not at all.

mod measure;
mod turn;

use std::path::Path;

use crate::image::Image;
use crate::interrupt::Interrupt;
use crate::machine::Machine;
use crate::migrate::{self, MigrateResults};
use crate::options::{Options, format_size};
use crate::plan::Plan;
use crate::process::adopt_orphans;
use crate::results::{FailedRun, Results, Run, SCHEMA_VERSION, ServerEntry, Settings, Summary, summarize};
use crate::servers::{Places, ServerId};
use crate::store::{self, StoreResults};
use crate::sync::{self, SyncResults};
use crate::targets::{self, Outcome};
use crate::trouble::Trouble;
use crate::volume::WholeVolume;

use measure::Campaign;

/// Plans, measures and sums up. Failed measurements are part of the results, as is an early stop.
///
/// # Errors
/// Nothing can be measured at all: a program, space or rights are missing.
pub fn compare(options: &Options, arguments: &[String], interrupt: &Interrupt) -> Result<Results, Trouble> {
    let plan = Plan::new(options)?;
    for notice in &plan.notices {
        eprintln!("note: {notice}");
    }
    // A guest's QEMU is in the background and nobody's child: as our orphan it would stay a zombie.
    if plan.migrate.is_none() {
        adopt_orphans()?;
    }
    let measured = measure_servers(&plan, interrupt)?;
    let store = match &plan.store {
        Some(store) if !interrupt.requested() => Some(store::run(store, interrupt)?),
        _ => None,
    };
    let sync = match &plan.sync {
        Some(sync) if !interrupt.requested() => Some(sync::run(sync, interrupt)?),
        _ => None,
    };
    let migrate = match &plan.migrate {
        Some(migrate) if !interrupt.requested() => Some(migrate::run(migrate, interrupt)?),
        _ => None,
    };
    let machine = Machine::look(&plan, Some(&plan.dir))?;
    let summaries = summarize(&measured.runs);
    let mut targets = all_targets(&plan, &measured.runs, &summaries, store.as_ref(), sync.as_ref());
    targets.extend(migrate.iter().flat_map(MigrateResults::targets));
    Ok(Results {
        v: SCHEMA_VERSION,
        machine,
        settings: settings(&plan, arguments),
        servers: plan.servers.iter().map(|server| entry(*server, &plan)).collect(),
        jobs: plan.jobs.clone(),
        targets,
        store,
        sync,
        migrate,
        summaries,
        runs: measured.runs,
        failures: measured.failures,
        notices: [plan.notices.clone(), measured.notices].concat(),
        interrupted: interrupt.requested(),
    })
}

/// The targets of what was asked for.
fn all_targets(
    plan: &Plan,
    runs: &[Run],
    summaries: &[Summary],
    store: Option<&StoreResults>,
    sync: Option<&SyncResults>,
) -> Vec<Outcome> {
    let (runs, summaries) = of_first(plan, runs, summaries);
    let servers = targets::servers::evaluate(&plan.servers, &runs, &summaries);
    let store = store.map_or(Vec::new(), |store| store::targets::evaluate(&store.scenarios, &store.rows));
    let sync = sync.map_or(Vec::new(), |sync| sync::targets::evaluate(&sync.steps, &sync.rows));
    [servers, store, sync].concat()
}

/// What the client that was named first has measured: targets are held against one client's figures.
fn of_first(plan: &Plan, runs: &[Run], summaries: &[Summary]) -> (Vec<Run>, Vec<Summary>) {
    let first = plan.clients.first();
    let runs = runs.iter().filter(|run| Some(&run.client) == first).cloned().collect();
    (runs, summaries.iter().filter(|summary| Some(&summary.client) == first).cloned().collect())
}

/// What came of the servers' turns.
#[derive(Default)]
struct Measured {
    runs: Vec<Run>,
    failures: Vec<FailedRun>,
    notices: Vec<String>,
}

/// Takes the servers' turns. The image is gone afterwards.
fn measure_servers(plan: &Plan, interrupt: &Interrupt) -> Result<Measured, Trouble> {
    if plan.servers.is_empty() {
        return Ok(Measured::default());
    }
    let image = make_image(plan, interrupt)?;
    let volume = WholeVolume::make(plan, interrupt)?;
    let mut campaign = Campaign::new(plan, image, volume, interrupt)?;
    campaign.run_all()?;
    let Campaign { runs, failures, notices, .. } = campaign;
    Ok(Measured { runs, failures, notices })
}

fn make_image(plan: &Plan, interrupt: &Interrupt) -> Result<Option<Image>, Trouble> {
    if !plan.needs_image() {
        return Ok(None);
    }
    eprintln!("writing an image of {}", format_size(plan.image_bytes));
    Image::create(&plan.dir, plan.image_bytes, plan.keep, interrupt).map(Some)
}

fn settings(plan: &Plan, arguments: &[String]) -> Settings {
    let command =
        ["cargo xtask compare".to_owned()].into_iter().chain(arguments.iter().map(|text| shorten(text)));
    Settings {
        command: command.collect::<Vec<String>>().join(" "),
        image_mib: plan.image_bytes >> 20,
        runtime_s: plan.runtime_s,
        rounds: plan.rounds,
        pinned: plan.pinned,
        clients: plan.clients.clone(),
    }
}

/// An argument without the directories of an absolute path in it.
fn shorten(argument: &str) -> String {
    let (switch, value) = argument.split_once('=').map_or(("", argument), |(switch, value)| (switch, value));
    let name = Path::new(value).file_name().filter(|_| value.starts_with('/'));
    let value = name.map_or(value.to_owned(), |name| name.to_string_lossy().into_owned());
    if switch.is_empty() { value } else { format!("{switch}={value}") }
}

fn entry(server: ServerId, plan: &Plan) -> ServerEntry {
    let line = server.command(&Places::placeholders(&format_size(plan.image_bytes)));
    ServerEntry {
        server,
        class: server.class(),
        role: server.role(),
        command: line.map(|line| line.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::client::Client;

    #[test]
    fn no_directory_of_this_machine_gets_into_the_command() {
        assert_eq!(shorten("/srv/data/img"), "img");
        assert_eq!(shorten("--dir=/srv/data"), "--dir=data");
        assert_eq!(shorten("target/compare"), "target/compare");
        assert_eq!(shorten("--all"), "--all");
    }

    #[test]
    fn targets_are_held_against_the_client_that_was_named_first() {
        let options = Options::try_parse_from(["compare", "--client", "ours,fio"]).unwrap();
        let by = |client, iops| Run { client, ..crate::results::tests::run(ServerId::Ours, "j", iops, None) };
        let runs = [by(Client::Fio, 1.0), by(Client::Ours, 2.0)];
        let (runs, summaries) = of_first(&Plan::bare(&options), &runs, &summarize(&runs));
        assert_eq!(summaries.iter().map(|summary| summary.iops.median).collect::<Vec<f64>>(), [2.0]);
        assert_eq!(runs.iter().map(|run| run.measurement.iops).collect::<Vec<f64>>(), [2.0]);
    }
}
