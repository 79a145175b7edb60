//! What is measured, and the schema of `--json`.
//!
//! The file holds one [`Results`] object. Names are stable within a value of `v`; fields may be added.
//! Units stand in the names: `_s` seconds, `_us` microseconds, `_mib` and `mib_per_s` powers of 1024.

use serde::Serialize;

use crate::client::Client;
use crate::fio::Measurement;
use crate::jobs::Job;
use crate::machine::Machine;
use crate::migrate::MigrateResults;
use crate::servers::{Class, Role, ServerId};
use crate::store::StoreResults;
use crate::sync::SyncResults;
use crate::targets::Outcome;

/// Version of the schema.
pub const SCHEMA_VERSION: u32 = 1;

/// Everything one comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// [`SCHEMA_VERSION`].
    pub v: u32,
    /// What it ran on.
    pub machine: Machine,
    /// How it was asked for.
    pub settings: Settings,
    /// Who took part.
    pub servers: Vec<ServerEntry>,
    /// With what load.
    pub jobs: Vec<&'static Job>,
    /// Every measurement, in the order of time.
    pub runs: Vec<Run>,
    /// What could not be measured.
    pub failures: Vec<FailedRun>,
    /// Medians and ratios.
    pub summaries: Vec<Summary>,
    /// What we want to reach, and whether we do.
    pub targets: Vec<Outcome>,
    /// What the scenarios of the store found, if they were run.
    pub store: Option<StoreResults>,
    /// What the steps of replication found, if they were run.
    pub sync: Option<SyncResults>,
    /// What the cases of moves found, if they were run.
    pub migrate: Option<MigrateResults>,
    /// What a reader has to know.
    pub notices: Vec<String>,
    /// Whether it was stopped before its end.
    pub interrupted: bool,
}

impl Results {
    /// Whether something could not be measured.
    pub fn has_failures(&self) -> bool {
        let of_store = self.store.as_ref().is_some_and(|store| !store.failures.is_empty());
        let of_sync = self.sync.as_ref().is_some_and(|sync| !sync.failures.is_empty());
        let of_moves = self.migrate.as_ref().is_some_and(|moves| !moves.failures.is_empty());
        of_store || of_sync || of_moves || !self.failures.is_empty()
    }
}

/// How the comparison was asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// The command, paths shortened to their last part.
    pub command: String,
    /// Size of the image and of memory servers, MiB.
    pub image_mib: u64,
    /// Seconds a measurement.
    pub runtime_s: u32,
    /// Measurements of each server and job.
    pub rounds: u32,
    /// Whether the server was tied to CPU 0 and the client to CPU 1.
    pub pinned: bool,
    /// Who made the load; targets of the servers are those of the first.
    pub clients: Vec<Client>,
}

/// One server.
#[derive(Debug, Clone, Serialize)]
pub struct ServerEntry {
    /// Key.
    pub server: ServerId,
    /// What it is compared with.
    pub class: Class,
    /// Ours, peer or limit.
    pub role: Role,
    /// Its command line, with placeholders for paths; fio on the file has none.
    pub command: Option<String>,
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    /// Which server.
    pub server: ServerId,
    /// Which class.
    pub class: Class,
    /// Which job, by name.
    pub job: &'static str,
    /// Who made the load.
    pub client: Client,
    /// Which round, from 1.
    pub round: u32,
    /// What the client says.
    #[serde(flatten)]
    pub measurement: Measurement,
    /// CPU time of the server, its threads and its children during the run; none without a server.
    pub cpu_s: Option<f64>,
    /// The same by request: reads, writes, trims and flushes.
    pub cpu_us_per_request: Option<f64>,
}

/// A measurement that failed.
#[derive(Debug, Clone, Serialize)]
pub struct FailedRun {
    /// Which server.
    pub server: ServerId,
    /// Which job, by name.
    pub job: &'static str,
    /// Who made the load.
    pub client: Client,
    /// Which round, from 1.
    pub round: u32,
    /// What failed.
    pub what: String,
    /// Why.
    pub why: String,
}

/// The middle of some measurements and how far they lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// Middle one; of an even number the mean of the two in the middle.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of nothing there is none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), min, max })
    }
}

/// All rounds of one server, job and client.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Which server.
    pub server: ServerId,
    /// Which class.
    pub class: Class,
    /// Which job, by name.
    pub job: &'static str,
    /// Who made the load.
    pub client: Client,
    /// How many rounds were measured.
    pub rounds: usize,
    /// I/Os a second.
    pub iops: Spread,
    /// MiB a second.
    pub mib_per_s: Spread,
    /// Median latency.
    pub p50_us: Spread,
    /// 99th percentile.
    pub p99_us: Spread,
    /// The server's CPU time a request.
    pub cpu_us_per_request: Option<Spread>,
    /// Median IOPS by those of the best peer in the class.
    pub iops_to_best_peer: Option<f64>,
    /// Median CPU time a request by that of the class's yardstick, [`Class::cpu_reference`].
    pub cpu_to_reference: Option<f64>,
}

/// Medians and ratios of all runs, in the order of first appearance.
pub fn summarize(runs: &[Run]) -> Vec<Summary> {
    let mut keys: Vec<Key> = Vec::new();
    for run in runs {
        let key = (run.server, run.job, run.client);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let summaries: Vec<Summary> = keys.iter().filter_map(|key| summary_of(runs, *key)).collect();
    let of_client = |client: Client| -> Vec<Summary> {
        summaries.iter().filter(|summary| summary.client == client).cloned().collect()
    };
    summaries.iter().map(|summary| with_ratios(summary, &of_client(summary.client))).collect()
}

/// What a summary is of.
type Key = (ServerId, &'static str, Client);

fn summary_of(runs: &[Run], key: Key) -> Option<Summary> {
    let (server, job, client) = key;
    let mine: Vec<&Run> = runs.iter().filter(|run| (run.server, run.job, run.client) == key).collect();
    let spread = |value: fn(&Measurement) -> f64| {
        Spread::of(&mine.iter().map(|run| value(&run.measurement)).collect::<Vec<f64>>())
    };
    let cpu: Vec<f64> = mine.iter().filter_map(|run| run.cpu_us_per_request).collect();
    Some(Summary {
        server,
        class: server.class(),
        job,
        client,
        rounds: mine.len(),
        iops: spread(|measured| measured.iops)?,
        mib_per_s: spread(|measured| measured.mib_per_s)?,
        p50_us: spread(|measured| measured.p50_us)?,
        p99_us: spread(|measured| measured.p99_us)?,
        cpu_us_per_request: Spread::of(&cpu),
        iops_to_best_peer: None,
        cpu_to_reference: None,
    })
}

fn with_ratios(summary: &Summary, all: &[Summary]) -> Summary {
    let best = best_peer(all, summary.class, summary.job);
    let yardstick = find(all, summary.class.cpu_reference(), summary.job);
    Summary {
        iops_to_best_peer: best.and_then(|best| ratio(summary.iops.median, best.iops.median)),
        cpu_to_reference: yardstick.and_then(|yardstick| cpu_ratio(summary, yardstick)),
        ..summary.clone()
    }
}

/// The summary of a server and job.
pub fn find<'a>(all: &'a [Summary], server: ServerId, job: &str) -> Option<&'a Summary> {
    all.iter().find(|summary| summary.server == server && summary.job == job)
}

/// The peer with the most IOPS; neither ours nor a limit.
pub fn best_peer<'a>(all: &'a [Summary], class: Class, job: &str) -> Option<&'a Summary> {
    let peers = all.iter().filter(|summary| summary.class == class && summary.job == job);
    let peers = peers.filter(|summary| summary.server.role() == Role::Peer);
    peers.max_by(|left, right| left.iops.median.total_cmp(&right.iops.median))
}

/// CPU time a request of one by that of the other.
pub fn cpu_ratio(summary: &Summary, other: &Summary) -> Option<f64> {
    ratio(summary.cpu_us_per_request?.median, other.cpu_us_per_request?.median)
}

/// `value` by `base`, where that means something.
pub fn ratio(value: f64, base: f64) -> Option<f64> {
    (base > 0.0).then(|| value / base)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn run(server: ServerId, job: &'static str, iops: f64, cpu_us: Option<f64>) -> Run {
        let measurement = Measurement {
            iops,
            mib_per_s: iops / 256.0,
            p50_us: 10.0,
            p99_us: 20.0,
            p999_us: 30.0,
            max_us: 30.0,
            ios: 100,
            flushes: 0,
        };
        let cpu_s = cpu_us.map(|cpu| cpu * 100.0 / 1e6);
        let (class, client) = (server.class(), Client::Fio);
        Run { server, class, job, client, round: 1, measurement, cpu_s, cpu_us_per_request: cpu_us }
    }

    #[test]
    fn a_ratio_never_has_two_clients_in_it() {
        let by = |client, server, iops| Run { client, ..run(server, "j", iops, Some(1.0)) };
        let all = summarize(&[
            by(Client::Fio, ServerId::Ours, 100.0),
            by(Client::Fio, ServerId::NbdkitFile, 50.0),
            by(Client::Ours, ServerId::Ours, 900.0),
            by(Client::Ours, ServerId::NbdkitFile, 100.0),
            by(Client::Ours, ServerId::QemuNbd, 300.0),
        ]);
        let ratios: Vec<_> = all.iter().map(|summary| (summary.client, summary.iops_to_best_peer)).collect();
        let (fio, ours) = (Client::Fio, Client::Ours);
        let third = Some(100.0 / 300.0);
        assert_eq!(
            ratios,
            [(fio, Some(2.0)), (fio, Some(1.0)), (ours, Some(3.0)), (ours, third), (ours, Some(1.0))]
        );
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let middle =
            |values: &[f64]| Spread::of(values).map(|spread| (spread.median, spread.min, spread.max));
        assert_eq!(middle(&[]), None);
        assert_eq!(middle(&[7.0]), Some((7.0, 7.0, 7.0)));
        assert_eq!(middle(&[9.0, 1.0, 2.0]), Some((2.0, 1.0, 9.0)));
        assert_eq!(middle(&[4.0, 1.0, 2.0, 100.0]), Some((3.0, 1.0, 100.0)));
    }

    #[test]
    fn ratios_stay_in_their_class_and_skip_limits() {
        let job = "randread-4k-qd64";
        let all = summarize(&[
            run(ServerId::Ours, job, 120.0, Some(5.0)),
            run(ServerId::NbdkitFile, job, 60.0, Some(20.0)),
            run(ServerId::QemuNbd, job, 40.0, Some(30.0)),
            run(ServerId::NbdkitNull, job, 999.0, Some(1.0)),
            run(ServerId::NbdkitMemory, job, 100.0, Some(10.0)),
        ]);
        let ours = find(&all, ServerId::Ours, job).unwrap();
        assert_eq!((ours.iops_to_best_peer, ours.cpu_to_reference), (Some(2.0), Some(0.25)));
        let null = find(&all, ServerId::NbdkitNull, job).unwrap();
        assert_eq!((null.iops_to_best_peer, null.cpu_to_reference), (Some(9.99), Some(0.1)));
    }

    #[test]
    fn without_a_peer_there_is_no_ratio() {
        let all =
            summarize(&[run(ServerId::Ours, "j", 1.0, Some(1.0)), run(ServerId::FioFile, "j", 1.0, None)]);
        assert!(all.iter().all(|summary| summary.iops_to_best_peer.is_none()));
        assert_eq!(ratio(1.0, 0.0), None);
    }

    #[test]
    fn rounds_of_one_server_are_put_together() {
        let runs = [3.0, 1.0, 2.0].map(|iops| run(ServerId::Ours, "j", iops, None));
        let all = summarize(&runs);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].rounds, all[0].iops.median), (3, 2.0));
        assert_eq!(all[0].cpu_us_per_request, None);
    }
}
