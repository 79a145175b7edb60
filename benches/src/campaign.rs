//! One comparison from beginning to end.
//!
//! Order: class, then job, then round, then server. Within a job the servers take turns (A B C, A B C, …), so that
//! a machine that slows down or warms up does so for all of them. Every measurement has a freshly started server
//! and the same cache: nothing dirty, and the image completely in the page cache or not at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use crate::client::{self, Client, NbdLoad};
use crate::fio::{self, Aim, Fio, Measurement};
use crate::image::{self, CacheDrop, Image};
use crate::interrupt::Interrupt;
use crate::jobs::Job;
use crate::machine::Machine;
use crate::migrate::{self, MigrateResults};
use crate::options::{Options, format_size};
use crate::plan::Plan;
use crate::process::{Launch, READY_WITHIN, Server, adopt_orphans};
use crate::results::{FailedRun, Results, Run, SCHEMA_VERSION, ServerEntry, Settings, Summary, summarize};
use crate::servers::{Class, DiskKind, Places, Program, ServerId, debian_config};
use crate::store::{self, StoreResults};
use crate::sync::{self, SyncResults};
use crate::targets::{self, Outcome};
use crate::trouble::{OrTrouble, Trouble};
use crate::volume::{self, STOP_WITHIN, WholeVolume};

/// Given to a server after fio's end, to close its connection and to collect a child process; it spends no CPU
/// time waiting, so the figures do not change by it.
const SETTLE: Duration = Duration::from_millis(100);
/// With `--pinned`.
const SERVER_CPU: u32 = 0;
/// With `--pinned`.
const CLIENT_CPU: u32 = 1;
/// Said once when the direct class begins with a full cache.
const NOT_COOLED: &str =
    "the page cache could not be dropped (needs root): the direct class may find it warm";

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

/// Where one measurement stands.
#[derive(Debug, Clone, Copy)]
struct Turn {
    server: ServerId,
    job: &'static Job,
    client: Client,
    round: u32,
}

struct Campaign<'a> {
    plan: &'a Plan,
    image: Option<Image>,
    volume: Option<WholeVolume<'a>>,
    interrupt: &'a Interrupt,
    /// Sockets, logs and fio's files.
    dir: TempDir,
    runs: Vec<Run>,
    failures: Vec<FailedRun>,
    notices: Vec<String>,
}

impl<'a> Campaign<'a> {
    fn new(
        plan: &'a Plan,
        image: Option<Image>,
        volume: Option<WholeVolume<'a>>,
        interrupt: &'a Interrupt,
    ) -> Result<Self, Trouble> {
        let dir = tempfile::Builder::new().prefix("cmp").tempdir();
        let dir =
            dir.or_trouble(|| "make a temporary directory".into(), "set TMPDIR to a writable directory")?;
        let (runs, failures, notices) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { plan, image, volume, interrupt, dir, runs, failures, notices })
    }

    /// Takes all turns, or those until somebody asks to stop.
    fn run_all(&mut self) -> Result<(), Trouble> {
        for turn in turns(self.plan) {
            let outcome = self.prepare(turn).and_then(|()| self.measure(turn));
            // What an interrupt cut short is no failure of the server.
            if self.interrupt.requested() {
                return Ok(());
            }
            self.record(turn, outcome);
            let repaired = self.repair(turn);
            if self.interrupt.requested() {
                return Ok(());
            }
            repaired?;
        }
        Ok(())
    }

    /// Brings the page cache into the state of the class.
    fn prepare(&mut self, turn: Turn) -> Result<(), Trouble> {
        match turn.server.class() {
            Class::Cached => image::warm(&self.disk_path(turn.server)),
            Class::Direct => self.cool(),
            Class::Ceiling => Ok(()),
        }
    }

    fn cool(&mut self) -> Result<(), Trouble> {
        let refused = image::drop_caches()? == CacheDrop::NotAllowed;
        if refused && !self.notices.iter().any(|said| said == NOT_COOLED) {
            eprintln!("note: {NOT_COOLED}");
            self.notices.push(NOT_COOLED.to_owned());
        }
        Ok(())
    }

    /// What holds the bytes that a server serves.
    fn disk_path(&self, server: ServerId) -> PathBuf {
        match (server.disk(), &self.volume) {
            (DiskKind::Volume, Some(volume)) => volume.pool(),
            _ => self.image_path().to_owned(),
        }
    }

    /// Closes the holes a trimming job made: the disk has to be completely written.
    fn repair(&self, turn: Turn) -> Result<(), Trouble> {
        if !turn.job.trims() {
            return Ok(());
        }
        match (turn.server.disk(), &self.image, &self.volume) {
            (DiskKind::Image, Some(image), _) => image.fill(self.interrupt),
            (DiskKind::Volume, _, Some(volume)) => volume.fill(),
            _ => Ok(()),
        }
    }

    fn measure(&self, turn: Turn) -> Result<(Measurement, Option<Duration>), Trouble> {
        let cpu = self.plan.pinned.then_some(CLIENT_CPU);
        let fio = Fio { dir: self.dir.path(), cpu, interrupt: self.interrupt };
        match self.launch(turn)? {
            Some(launch) => self.measure_server(turn, &launch, &fio),
            None => {
                let measured = fio.run(turn.job, Aim::File(self.image_path()), self.plan.runtime_s)?;
                Ok((measured, None))
            }
        }
    }

    fn measure_server(
        &self,
        turn: Turn,
        launch: &Launch,
        fio: &Fio<'_>,
    ) -> Result<(Measurement, Option<Duration>), Trouble> {
        let uri = fio::uri(turn.server.export(), &launch.socket);
        let server = Server::start(launch, self.interrupt)?;
        if turn.server.holds_memory() {
            fio.fill(&uri)?;
            thread::sleep(SETTLE);
        }
        let before = server.cpu_spent()?;
        let measured = match turn.client {
            Client::Fio => fio.run(turn.job, Aim::Uri(&uri), self.plan.runtime_s)?,
            Client::Ours => self.run_ours(turn, &launch.socket)?,
        };
        thread::sleep(SETTLE);
        let spent = server.cpu_spent()?.saturating_sub(before);
        match turn.server.program() {
            // It has a store to bring to rest.
            Program::Blockd => server.stop_cleanly(STOP_WITHIN)?,
            _ => server.stop()?,
        }
        Ok((measured, Some(spent)))
    }

    fn run_ours(&self, turn: Turn, socket: &Path) -> Result<Measurement, Trouble> {
        let cpu = self.plan.pinned.then_some(CLIENT_CPU);
        let program = client::beside_us();
        let load = NbdLoad { program: &program, dir: self.dir.path(), cpu, interrupt: self.interrupt };
        load.run(turn.job, socket, turn.server.export(), self.plan.runtime_s)
    }

    /// How to start the server of this turn; none for fio on the file.
    fn launch(&self, turn: Turn) -> Result<Option<Launch>, Trouble> {
        let file = |suffix: &str| self.dir.path().join(format!("{}{suffix}", self.turns_taken()));
        let (socket, pid_file, config) = (file(".s"), file(".pid"), file(".conf"));
        let is_daemon = turn.server == ServerId::DebianNbdServer;
        if is_daemon {
            let text = debian_config(&text_of(self.image_path()), &text_of(&socket));
            fs::write(&config, text).or_trouble(|| "write a configuration file".into(), "free some space")?;
        }
        let store = self.volume.as_ref().map_or(Path::new(""), WholeVolume::store);
        let places = Places {
            ours: text_of(&self.plan.ours),
            blockd: text_of(&self.plan.volume.blockd),
            store: text_of(store),
            api: text_of(&file(".a")),
            debian: text_of(&self.plan.debian),
            image: text_of(&self.disk_path(turn.server)),
            size: format_size(self.plan.image_bytes),
            socket: text_of(&socket),
            config: text_of(&config),
            pid_file: text_of(&pid_file),
        };
        let (name, cpu) = (turn.server.name(), self.plan.pinned.then_some(SERVER_CPU));
        let pid_file = is_daemon.then_some(pid_file);
        let is_store = turn.server.program() == Program::Blockd;
        let (log, ready_within) = (file(".log"), if is_store { volume::READY_WITHIN } else { READY_WITHIN });
        let to_launch = |line| Launch { name, line, socket, pid_file, log, cpu, ready_within };
        Ok(turn.server.command(&places).map(to_launch))
    }

    fn image_path(&self) -> &Path {
        self.image.as_ref().map_or(Path::new(""), Image::path)
    }

    fn turns_taken(&self) -> usize {
        self.runs.len() + self.failures.len()
    }

    fn record(&mut self, turn: Turn, outcome: Result<(Measurement, Option<Duration>), Trouble>) {
        let place = format!("[{}/{}]", self.turns_taken() + 1, self.plan.run_count());
        let Turn { server, job, client, round } = turn;
        let whose = format!("{:<30} round {round} {:<18} {:<14}", job.name, server.name(), client.label());
        match outcome {
            Ok((measured, spent)) => {
                let run = to_run(turn, measured, spent);
                let cpu =
                    run.cpu_us_per_request.map_or(String::new(), |cpu| format!(" {cpu:6.2} us CPU/request"));
                eprintln!("{place} {whose} {:9.0} IOPS{cpu}", measured.iops);
                self.runs.push(run);
            }
            Err(trouble) => {
                eprintln!("{place} {whose}\n{trouble}");
                let (what, why) = (self.scrub(&trouble.what), self.scrub(&trouble.why));
                self.failures.push(FailedRun { server, job: job.name, client, round, what, why });
            }
        }
    }

    /// A text for the results: this machine's paths replaced by placeholders.
    fn scrub(&self, text: &str) -> String {
        let store = self.volume.as_ref().map_or(PathBuf::new(), |volume| volume.store().to_owned());
        let places: [(PathBuf, &str); 6] = [
            (client::beside_us(), "nbd-load"),
            (self.image_path().to_owned(), "$IMG"),
            (store, "$STORE"),
            (self.plan.volume.blockd.clone(), "blockd"),
            (self.dir.path().to_owned(), "$TMP"),
            (self.plan.ours.clone(), "nbd-server"),
        ];
        let known = places.iter().filter(|(path, _)| !path.as_os_str().is_empty());
        known.fold(text.to_owned(), |text, (path, name)| text.replace(&text_of(path), name))
    }
}

fn turns(plan: &Plan) -> Vec<Turn> {
    let mut turns = Vec::new();
    for class in Class::ALL {
        for &job in &plan.jobs {
            for round in 1..=plan.rounds {
                turns.extend(
                    plan.clients.iter().flat_map(|&client| round_of(plan, class, job, client, round)),
                );
            }
        }
    }
    turns
}

fn round_of(
    plan: &Plan,
    class: Class,
    job: &'static Job,
    client: Client,
    round: u32,
) -> impl Iterator<Item = Turn> {
    let takes_part = move |server: &&ServerId| server.class() == class && client.can_run(**server, job);
    plan.servers.iter().filter(takes_part).map(move |&server| Turn { server, job, client, round })
}

fn to_run(turn: Turn, measurement: Measurement, spent: Option<Duration>) -> Run {
    let requests = measurement.ios + measurement.flushes;
    let by_request = |spent: Duration| spent.as_secs_f64() * 1e6 / requests.max(1) as f64;
    Run {
        server: turn.server,
        class: turn.server.class(),
        job: turn.job.name,
        client: turn.client,
        round: turn.round,
        measurement,
        cpu_s: spent.map(|spent| spent.as_secs_f64()),
        cpu_us_per_request: spent.map(by_request),
    }
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn no_directory_of_this_machine_gets_into_the_command() {
        assert_eq!(shorten("/srv/data/img"), "img");
        assert_eq!(shorten("--dir=/srv/data"), "--dir=data");
        assert_eq!(shorten("target/compare"), "target/compare");
        assert_eq!(shorten("--all"), "--all");
    }

    #[test]
    fn flushes_are_requests_too() {
        let measurement = Measurement {
            iops: 1.0,
            mib_per_s: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            max_us: 1.0,
            ios: 600,
            flushes: 400,
        };
        let turn = Turn { server: ServerId::Ours, job: &crate::jobs::JOBS[0], client: Client::Fio, round: 1 };
        let run = to_run(turn, measurement, Some(Duration::from_millis(10)));
        assert_eq!(run.cpu_us_per_request, Some(10.0));
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

    #[test]
    fn servers_take_turns_within_a_job_and_classes_do_not_mix() {
        let options = Options::try_parse_from(["compare", "--rounds", "2", "--only", "read-1m-qd8"]).unwrap();
        let plan = Plan {
            servers: vec![ServerId::Ours, ServerId::NbdkitNull, ServerId::QemuNbd],
            ..Plan::bare(&options)
        };
        let both = Plan { clients: vec![Client::Ours, Client::Fio], rounds: 1, ..plan.clone() };
        let clients: Vec<Client> = turns(&both).iter().map(|turn| turn.client).collect();
        assert_eq!(clients[..4], [Client::Ours, Client::Ours, Client::Fio, Client::Fio]);
        let order: Vec<(ServerId, u32)> = turns(&plan).iter().map(|turn| (turn.server, turn.round)).collect();
        assert_eq!(
            order,
            [
                (ServerId::Ours, 1),
                (ServerId::QemuNbd, 1),
                (ServerId::Ours, 2),
                (ServerId::QemuNbd, 2),
                (ServerId::NbdkitNull, 1),
                (ServerId::NbdkitNull, 2),
            ]
        );
        assert_eq!(order.len(), plan.run_count());
    }
}
