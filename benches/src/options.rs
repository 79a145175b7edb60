//! The command line.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, ValueEnum};

use crate::client::Client;
use crate::jobs::{self, JOBS, Job};
use crate::migrate::Case;
use crate::servers::{Class, ServerId};
use crate::store::Scenario;
use crate::sync::Step;

/// Bytes an image is a multiple of: the largest block of any job.
const IMAGE_UNIT: u64 = 1 << 20;
/// The smallest image worth measuring.
const IMAGE_MIN: u64 = 16 << 20;

/// Measures our NBD server, blockd's volumes and their peers side by side in one run, with fio's nbd engine
/// or with a client of our own.
///
/// Without --migrate, --sync, --store, --scenario, --servers, --class, --only and --all: everything but replication and moves.
#[derive(Debug, Clone, Parser)]
#[command(name = "compare", version)]
pub struct Options {
    /// Size of the image and of the memory servers, with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = parse_size)]
    pub image_size: u64,

    /// Directory for the image [default: compare in cargo's target directory]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Leave the image behind
    #[arg(long)]
    pub keep: bool,

    /// Our server's binary [default: release/nbd-server in cargo's target directory]
    #[arg(long, value_name = "PATH")]
    pub ours: Option<PathBuf>,

    /// Seconds each job is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub runtime: u32,

    /// How often everything is measured; medians are reported
    #[arg(long, visible_alias = "runs", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    pub rounds: u32,

    /// A first look: 3 seconds, 1 round
    #[arg(long, conflicts_with_all = ["runtime", "rounds"])]
    pub quick: bool,

    /// Also run the jobs beyond the headline set
    #[arg(long)]
    pub all: bool,

    /// Run these jobs only
    #[arg(long, value_name = "JOB,...", value_delimiter = ',', value_parser = job_parser(), conflicts_with = "all")]
    pub only: Vec<&'static Job>,

    /// Run these servers only
    #[arg(long, value_name = "SERVER,...", value_delimiter = ',')]
    pub servers: Vec<ServerId>,

    /// Who makes the load on the servers; of several, each has tables of its own, and targets are those of the first
    #[arg(long, value_name = "CLIENT,...", value_delimiter = ',', default_value = "fio")]
    pub client: Vec<Client>,

    /// Run these classes only
    #[arg(long, value_name = "CLASS,...", value_delimiter = ',')]
    pub class: Vec<Class>,

    /// Run the scenarios of the store only: volumes, snapshots, diffs, memory, starts
    #[arg(long, conflicts_with_all = ["servers", "class", "only", "all"])]
    pub store: bool,

    /// Run these scenarios of the store only
    #[arg(long, value_name = "SCENARIO,...", value_delimiter = ',', conflicts_with_all = ["servers", "class", "only", "all"])]
    pub scenario: Vec<Scenario>,

    /// Measure replication only: first copy, increments beside rsync and others, hashing, a schedule
    #[arg(long, conflicts_with_all = ["store", "scenario", "servers", "class", "only", "all", "pinned"])]
    pub sync: bool,

    /// Run these steps of replication only
    #[arg(long, value_name = "STEP,...", value_delimiter = ',', requires = "sync")]
    pub step: Vec<Step>,

    /// Size of the volume that is replicated, all of it written [default: 4G, with --quick 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "sync")]
    pub size: Option<u64>,

    /// Measure moves of a running guest only: silence, whole time and bytes, beside QEMU's own mirror and migration
    #[arg(long, conflicts_with_all = ["sync", "store", "scenario", "servers", "class", "only", "all", "pinned"])]
    pub migrate: bool,

    /// Run these cases of moves only
    #[arg(long, value_name = "CASE,...", value_delimiter = ',', requires = "migrate")]
    pub case: Vec<Case>,

    /// Size of the guest's disk, all of it written [default: 2G, with --quick 128M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "migrate")]
    pub disk: Option<u64>,

    /// How often each contestant moves its guest where forecasts are held against what was [default: 10, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=999), requires = "migrate")]
    pub moves: Option<u32>,

    /// Size of the volumes that the scenarios write, and of their peers [default: 2G, with --quick 512M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub store_size: Option<u64>,

    /// Size of the volume that is mapped and not written [default: 1T, with --quick 32G; with --sync 64G and 2G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub large_size: Option<u64>,

    /// Seconds a job is measured in the scenarios [default: 3, with --quick 1]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub store_runtime: Option<u32>,

    /// How long the daemon's memory is watched in the scenario soak [default: 2, with --quick 1; a full run: 60]
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(1..=1440))]
    pub soak: Option<u32>,

    /// The daemon's binary [default: release/blockd in cargo's target directory]
    #[arg(long, value_name = "PATH")]
    pub blockd: Option<PathBuf>,

    /// Tie the server to CPU 0 and fio to CPU 1
    #[arg(long)]
    pub pinned: bool,

    /// Write all raw results there
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Write a results page there
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,

    /// Write charts there, as SVG; the results page links them
    #[arg(long, value_name = "DIR")]
    pub plots: Option<PathBuf>,

    /// End with exit code 1 when a measured target is not met, or none was measured
    #[arg(long)]
    pub strict: bool,
}

impl Options {
    /// Seconds each job is measured.
    pub fn runtime_s(&self) -> u32 {
        if self.quick { 3 } else { self.runtime }
    }

    /// Who makes the load, each once.
    pub fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        for client in &self.client {
            if !clients.contains(client) {
                clients.push(*client);
            }
        }
        clients
    }

    /// Whether the servers are compared.
    pub fn wants_servers(&self) -> bool {
        !self.store && !self.sync && !self.migrate && self.scenario.is_empty()
    }

    /// The scenarios of the store that will be run: none when servers, classes or jobs were asked for.
    pub fn chosen_scenarios(&self) -> Vec<Scenario> {
        let servers_only = self.sync
            || self.migrate
            || self.all
            || !(self.servers.is_empty() && self.class.is_empty() && self.only.is_empty());
        let all = <Scenario as ValueEnum>::value_variants().iter().copied();
        let wanted = |scenario: &Scenario| self.scenario.is_empty() || self.scenario.contains(scenario);
        all.filter(|scenario| !servers_only && wanted(scenario)).collect()
    }

    /// Size of the volumes that the scenarios write.
    pub fn store_bytes(&self) -> u64 {
        self.store_size.unwrap_or(if self.quick { 512 << 20 } else { 2 << 30 })
    }

    /// The steps of replication that will be run: none unless asked for.
    pub fn chosen_steps(&self) -> Vec<Step> {
        let all = <Step as ValueEnum>::value_variants().iter().copied();
        all.filter(|step| self.sync && (self.step.is_empty() || self.step.contains(step))).collect()
    }

    /// Size of the volume that is replicated.
    pub fn sync_bytes(&self) -> u64 {
        self.size.unwrap_or(if self.quick { 128 << 20 } else { 4 << 30 })
    }

    /// Size of the volumes of which replication writes little.
    pub fn sync_large_bytes(&self) -> u64 {
        self.large_size.unwrap_or(if self.quick { 2 << 30 } else { 64 << 30 })
    }

    /// The cases of moves that will be run: none unless asked for.
    pub fn chosen_cases(&self) -> Vec<Case> {
        let all = <Case as ValueEnum>::value_variants().iter().copied();
        all.filter(|case| self.migrate && (self.case.is_empty() || self.case.contains(case))).collect()
    }

    /// Size of the disk of a guest that moves.
    pub fn disk_bytes(&self) -> u64 {
        self.disk.unwrap_or(if self.quick { 128 << 20 } else { 2 << 30 })
    }

    /// How often each contestant moves its guest.
    pub fn move_count(&self) -> u32 {
        self.moves.unwrap_or(if self.quick { 2 } else { 10 })
    }

    /// Seconds a schedule is watched.
    pub fn watch_s(&self) -> u64 {
        if self.quick { 3 } else { 60 }
    }

    /// Size of each volume on a schedule.
    pub fn scheduled_bytes(&self) -> u64 {
        if self.quick { 16 << 20 } else { 256 << 20 }
    }

    /// Size of the volume that is only mapped.
    pub fn large_bytes(&self) -> u64 {
        self.large_size.unwrap_or(if self.quick { 32 << 30 } else { 1 << 40 })
    }

    /// Seconds a job is measured in the scenarios.
    pub fn store_runtime_s(&self) -> u32 {
        self.store_runtime.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// Seconds the idle daemon is watched.
    pub fn idle_s(&self) -> u32 {
        if self.quick { 5 } else { 20 }
    }

    /// How long the daemon's memory is watched.
    pub fn soak_minutes(&self) -> u32 {
        self.soak.unwrap_or(if self.quick { 1 } else { 2 })
    }

    /// Seconds with a snapshot every five, and as many without before them.
    pub fn paced_s(&self) -> u32 {
        if self.quick { 15 } else { 60 }
    }

    /// How often everything is measured.
    pub fn round_count(&self) -> u32 {
        if self.quick { 1 } else { self.rounds }
    }
}

fn job_parser() -> impl TypedValueParser<Value = &'static Job> {
    let names = PossibleValuesParser::new(JOBS.iter().map(|job| job.name));
    names.try_map(|name| jobs::find(&name).ok_or_else(|| format!("no job has the name {name}")))
}

/// Reads a size such as `4G` or `512M`.
///
/// Units: bytes; suffixes are powers of 1024.
/// # Errors
/// No number, an unknown suffix, or not a multiple of 1 MiB from 16 MiB upwards.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        Some((at, 'T' | 't')) => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| "expected a number with K, M, G or T".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or("too large")?;
    if bytes < IMAGE_MIN || !bytes.is_multiple_of(IMAGE_UNIT) {
        return Err("expected a multiple of 1M, at least 16M".to_owned());
    }
    Ok(bytes)
}

/// Writes a size the way all servers read it: `4G`, `512M`.
///
/// Units: bytes, a multiple of 1 MiB.
pub fn format_size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) { format!("{}G", bytes >> 30) } else { format!("{}M", bytes >> 20) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Options as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn sizes_survive_a_round_trip() {
        for (text, bytes) in [("4G", 4 << 30), ("512M", 512 << 20), ("1T", 1 << 40), ("16777216", 16 << 20)] {
            assert_eq!(parse_size(text), Ok(bytes));
            assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }
        for text in ["", "G", "-1G", "1", "15M", "16777217", "99999999999T", "4X"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lists_are_split_and_checked() {
        let options =
            Options::try_parse_from(["compare", "--servers", "ours,qemu-nbd", "--only", "read-1m-qd8"])
                .unwrap();
        assert_eq!(options.servers, [ServerId::Ours, ServerId::QemuNbd]);
        assert_eq!(options.only[0].name, "read-1m-qd8");
        assert!(Options::try_parse_from(["compare", "--only", "nonsense"]).is_err());
        assert!(Options::try_parse_from(["compare", "--quick", "--rounds", "2"]).is_err());
    }

    #[test]
    fn asking_for_one_part_leaves_the_other_out() {
        let parse = |arguments: &[&str]| {
            let options = Options::try_parse_from([&["compare"], arguments].concat()).unwrap();
            (options.wants_servers(), options.chosen_scenarios().len())
        };
        assert_eq!(parse(&[]), (true, Scenario::value_variants().len()));
        assert_eq!(parse(&["--store"]), (false, Scenario::value_variants().len()));
        assert_eq!(parse(&["--scenario", "diff,full-store"]), (false, 2));
        assert_eq!(parse(&["--class", "direct"]), (true, 0));
        assert!(Options::try_parse_from(["compare", "--store", "--all"]).is_err());
    }

    #[test]
    fn replication_is_asked_for_by_name_and_stands_alone() {
        let parse = |arguments: &[&str]| Options::try_parse_from([&["compare"], arguments].concat());
        assert!(parse(&[]).unwrap().chosen_steps().is_empty());
        let options = parse(&["--sync", "--size", "1G", "--runs", "5"]).unwrap();
        assert_eq!(options.chosen_steps(), Step::value_variants());
        assert_eq!((options.sync_bytes(), options.round_count()), (1 << 30, 5));
        assert_eq!((options.wants_servers(), options.chosen_scenarios().len()), (false, 0));
        let options = parse(&["--sync", "--step", "schedule,first-copy"]).unwrap();
        assert_eq!(options.chosen_steps(), [Step::FirstCopy, Step::Schedule]);
        for wrong in [["--size", "1G"], ["--step", "schedule"], ["--sync", "--store"]] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn moves_are_asked_for_by_name_and_stand_alone() {
        let parse = |arguments: &[&str]| Options::try_parse_from([&["compare"], arguments].concat());
        assert!(parse(&["--sync"]).unwrap().chosen_cases().is_empty());
        let options = parse(&["--migrate", "--disk", "64M", "--moves", "12"]).unwrap();
        assert_eq!(options.chosen_cases(), Case::value_variants());
        assert_eq!((options.disk_bytes(), options.move_count()), (64 << 20, 12));
        assert_eq!((options.wants_servers(), options.chosen_scenarios().len()), (false, 0));
        assert_eq!(parse(&["--migrate", "--case", "pressure"]).unwrap().chosen_cases(), [Case::Pressure]);
        for wrong in [["--disk", "1G"], ["--case", "switch"], ["--migrate", "--sync"]] {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn quick_means_three_seconds_once() {
        let options = Options::try_parse_from(["compare", "--quick"]).unwrap();
        assert_eq!((options.runtime_s(), options.round_count()), (3, 1));
    }
}
