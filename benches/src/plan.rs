//! From the command line to what will be run: which programs are there, which servers and jobs take part.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::client::{self, Client};
use crate::jobs::{JOBS, Job, JobSet};
use crate::machine;
use crate::migrate::MigratePlan;
use crate::options::Options;
use crate::servers::{Class, DiskKind, Program, Role, ServerId};
use crate::store::Scenario;
use crate::sync::SyncPlan;
use crate::trouble::Trouble;

/// Directories where Debian's nbd-server may be; `PATH` is not asked, ours has the same name.
const SYSTEM_DIRS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
/// How Debian's nbd-server introduces itself.
const DEBIAN_GREETING: &str = "This is nbd-server version";
/// Bytes that must stay available beside a memory server.
const MEMORY_SPARE: u64 = 512 << 20;

/// What will be run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// In the order of running within a round.
    pub servers: Vec<ServerId>,
    /// In the order of running.
    pub jobs: Vec<&'static Job>,
    /// Who makes the load, in the order of running within a round.
    pub clients: Vec<Client>,
    /// Seconds a job.
    pub runtime_s: u32,
    /// Rounds a job.
    pub rounds: u32,
    /// Size of the image and of the memory servers.
    pub image_bytes: u64,
    /// Where the image goes.
    pub dir: PathBuf,
    /// Whether it stays.
    pub keep: bool,
    /// Whether server and client are tied to a CPU each.
    pub pinned: bool,
    /// Our server's binary.
    pub ours: PathBuf,
    /// Debian's nbd-server.
    pub debian: PathBuf,
    /// Where and how large the volume is that takes part beside the servers.
    pub volume: StorePlan,
    /// The scenarios of the store, if any of them will be run.
    pub store: Option<StorePlan>,
    /// The steps of replication, if any of them will be run.
    pub sync: Option<SyncPlan>,
    /// The cases of moves, if any of them will be run.
    pub migrate: Option<MigratePlan>,
    /// What the reader of the results has to know.
    pub notices: Vec<String>,
}

/// What will be run of the store's scenarios.
#[derive(Debug, Clone)]
pub struct StorePlan {
    /// Which.
    pub scenarios: Vec<Scenario>,
    /// The daemon's binary.
    pub blockd: PathBuf,
    /// Our server's binary, for plain files.
    pub nbd_server: PathBuf,
    /// Where images and stores go.
    pub dir: PathBuf,
    /// Size of the volumes that are written, and of their peers.
    pub image_bytes: u64,
    /// Size of the volume that is only mapped.
    pub large_bytes: u64,
    /// Seconds a measurement.
    pub runtime_s: u32,
    /// Rounds.
    pub rounds: u32,
    /// Seconds the idle daemon is watched.
    pub idle_s: u32,
    /// Seconds with a snapshot every five, and as many without before them.
    pub paced_s: u32,
    /// Minutes that the daemon's memory is watched.
    pub soak_minutes: u32,
}

impl StorePlan {
    /// Blocks of 4 KiB of a written volume.
    pub fn image_blocks(&self) -> u64 {
        self.image_bytes / 4096
    }

    fn new(options: &Options, dir: &Path) -> Option<Self> {
        let plan = Self::bare(options, dir);
        (!plan.scenarios.is_empty()).then_some(plan)
    }

    fn bare(options: &Options, dir: &Path) -> Self {
        let release = target_dir().join("release");
        Self {
            scenarios: options.chosen_scenarios(),
            blockd: options.blockd.clone().unwrap_or_else(|| release.join("blockd")),
            nbd_server: options.ours.clone().unwrap_or_else(|| release.join("nbd-server")),
            dir: dir.to_owned(),
            image_bytes: options.store_bytes(),
            large_bytes: options.large_bytes(),
            runtime_s: options.store_runtime_s(),
            rounds: options.round_count(),
            idle_s: options.idle_s(),
            paced_s: options.paced_s(),
            soak_minutes: options.soak_minutes(),
        }
    }

    fn check_programs(&self) -> Result<(), Trouble> {
        need_ours(&self.blockd, BUILD_DAEMON)?;
        need_ours(&self.nbd_server, BUILD_SERVER)?;
        ["qemu-io", "qemu-img", "qemu-nbd"]
            .iter()
            .try_for_each(|name| need_in_path(name, "apt install qemu-utils"))
    }
}

impl SyncPlan {
    fn new(options: &Options, dir: &Path) -> Option<Self> {
        let steps = options.chosen_steps();
        (!steps.is_empty()).then(|| Self {
            steps,
            store: StorePlan::bare(options, dir),
            bytes: options.sync_bytes(),
            large_bytes: options.sync_large_bytes(),
            runs: options.round_count(),
            watch: Duration::from_secs(options.watch_s()),
            scheduled_bytes: options.scheduled_bytes(),
        })
    }

    /// Peers that are missing are left out; ours are not.
    fn check_programs(&self) -> Result<(), Trouble> {
        let blockctl = self.store.blockd.with_file_name("blockctl");
        [&self.store.blockd, &blockctl]
            .into_iter()
            .try_for_each(|path| need_ours(path, "cargo build --release -p blockd   (or --blockd PATH)"))
    }
}

impl MigratePlan {
    fn new(options: &Options, dir: &Path) -> Option<Self> {
        let cases = options.chosen_cases();
        (!cases.is_empty()).then(|| Self {
            cases,
            store: StorePlan::bare(options, dir),
            bytes: options.disk_bytes(),
            moves: options.move_count(),
            rounds: options.round_count(),
            slow_bytes: if options.quick { 32 << 20 } else { 128 << 20 },
        })
    }

    fn check_programs(&self) -> Result<(), Trouble> {
        let beside = |name: &str| self.store.blockd.with_file_name(name);
        let next = "cargo build --release -p blockd -p vmctl   (or --blockd PATH)";
        [self.store.blockd.clone(), beside("blockctl"), beside("vmctl")]
            .iter()
            .try_for_each(|path| need_ours(path, next))?;
        need_in_path("qemu-system-x86_64", "apt install qemu-system-x86")
    }
}

impl Plan {
    /// Decides what will be run.
    ///
    /// # Errors
    /// A program is missing that was asked for by name, or nothing is left to run.
    pub fn new(options: &Options) -> Result<Self, Trouble> {
        let mut plan = Self::bare(options);
        if plan.sync.is_none() && plan.migrate.is_none() {
            need_in_path("fio", "apt install fio")?;
        }
        if plan.pinned {
            need_two_cpus()?;
        }
        if options.wants_servers() {
            if plan.clients.contains(&Client::Ours) {
                need_ours(&client::beside_us(), "cargo build --release -p benches   (or --client fio)")?;
            }
            plan.choose_servers(options)?;
            plan.check_memory(options.servers.is_empty())?;
        }
        plan.store.iter().try_for_each(StorePlan::check_programs)?;
        plan.sync.iter().try_for_each(SyncPlan::check_programs)?;
        plan.migrate.iter().try_for_each(MigratePlan::check_programs)?;
        let nothing = plan.store.is_none() && plan.sync.is_none() && plan.migrate.is_none();
        if plan.servers.is_empty() && nothing {
            let next = "name servers and classes that go together (--help)";
            return Err(Trouble::new("plan the comparison", "no server is left to run", next));
        }
        Ok(plan)
    }

    pub(crate) fn bare(options: &Options) -> Self {
        let target = target_dir();
        let dir = options.dir.clone().unwrap_or_else(|| target.join("compare"));
        Self {
            servers: Vec::new(),
            jobs: choose_jobs(options),
            clients: options.clients(),
            runtime_s: options.runtime_s(),
            rounds: options.round_count(),
            image_bytes: options.image_size,
            volume: StorePlan { image_bytes: options.image_size, ..StorePlan::bare(options, &dir) },
            store: StorePlan::new(options, &dir),
            sync: SyncPlan::new(options, &dir),
            migrate: MigratePlan::new(options, &dir),
            dir,
            keep: options.keep,
            pinned: options.pinned,
            ours: options.ours.clone().unwrap_or_else(|| target.join("release").join("nbd-server")),
            debian: PathBuf::new(),
            notices: Vec::new(),
        }
    }

    fn choose_servers(&mut self, options: &Options) -> Result<(), Trouble> {
        let named = !options.servers.is_empty();
        let asked = if named { &options.servers } else { <ServerId as clap::ValueEnum>::value_variants() };
        for &server in asked {
            let in_class = options.class.is_empty() || options.class.contains(&server.class());
            if !in_class || self.servers.contains(&server) {
                continue;
            }
            match self.find_program(server) {
                Ok(()) => self.servers.push(server),
                // Ours is what the comparison is about: never left out in silence.
                Err(trouble) if named || server.role() == Role::Ours => return Err(trouble),
                Err(trouble) => self.notices.push(format!("{} left out: {}", server.name(), trouble.why)),
            }
        }
        Ok(())
    }

    fn find_program(&mut self, server: ServerId) -> Result<(), Trouble> {
        match server.program() {
            Program::Ours => need_ours(&self.ours, BUILD_SERVER),
            Program::Blockd => need_ours(&self.volume.blockd, BUILD_DAEMON),
            Program::InPath(name) => need_in_path(name, &format!("apt install {}", package_of(name))),
            Program::Debian => {
                self.debian = find_debian()?;
                Ok(())
            }
        }
    }

    /// Memory servers must not drive the machine out of memory, and a cached image has to fit the cache.
    fn check_memory(&mut self, may_leave_out: bool) -> Result<(), Trouble> {
        let available = machine::memory_available()?;
        let too_small = available < self.image_bytes + MEMORY_SPARE;
        if !too_small {
            return Ok(());
        }
        let why = format!("{} MiB of memory available, image of {}", available >> 20, self.image_bytes >> 20);
        if may_leave_out {
            self.servers.retain(|server| !server.holds_memory());
            self.notices.push(format!("memory servers left out: {why} MiB"));
        } else if self.servers.iter().any(|server| server.holds_memory()) {
            let next = "use a smaller --image-size";
            return Err(Trouble::new("run a memory server", format!("{why} MiB"), next));
        }
        if self.servers.iter().any(|server| server.class() == Class::Cached) {
            self.notices.push(format!(
                "the image does not fit the page cache, cached figures have disk in them: {why} MiB"
            ));
        }
        Ok(())
    }

    /// How many measurements there will be.
    pub fn run_count(&self) -> usize {
        let count = |client: &Client, job: &Job| {
            self.servers.iter().filter(|server| client.can_run(**server, job)).count()
        };
        let of_client = |client| self.jobs.iter().map(|job| count(client, job)).sum::<usize>();
        self.clients.iter().map(of_client).sum::<usize>() * self.rounds as usize
    }

    /// Whether any server needs the image.
    pub fn needs_image(&self) -> bool {
        self.servers.iter().any(|server| server.disk() == DiskKind::Image)
    }
}

fn choose_jobs(options: &Options) -> Vec<&'static Job> {
    let wanted = |job: &&Job| {
        if options.only.is_empty() {
            options.all || job.set == JobSet::Headline
        } else {
            options.only.contains(job)
        }
    };
    JOBS.iter().filter(wanted).collect()
}

/// cargo's target directory: where this program itself was built, else what cargo would take.
pub fn target_dir() -> PathBuf {
    let own = env::current_exe().ok();
    let profile_dir = own.as_deref().and_then(Path::parent);
    let is_profile = |dir: &&Path| dir.ends_with("release") || dir.ends_with("debug");
    let built_in = profile_dir.filter(is_profile).and_then(Path::parent).map(Path::to_owned);
    built_in.or_else(|| env::var_os("CARGO_TARGET_DIR").map(PathBuf::from)).unwrap_or_else(|| "target".into())
}

/// How to get our daemon.
const BUILD_DAEMON: &str = "cargo build --release -p blockd   (or --blockd PATH, or --servers without it)";
/// How to get our server.
const BUILD_SERVER: &str =
    "cargo build --release -p nbd-server   (or --ours PATH, or --servers without ours)";

fn need_ours(path: &Path, next: &str) -> Result<(), Trouble> {
    if path.is_file() {
        return Ok(());
    }
    Err(Trouble::new("find our program", format!("{} is not there", path.display()), next))
}

/// Where a program is.
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

pub(crate) fn need_in_path(name: &str, next: &str) -> Result<(), Trouble> {
    if find_in_path(name).is_some() {
        return Ok(());
    }
    Err(Trouble::new(format!("find {name}"), format!("{name} is not installed"), next))
}

fn package_of(program: &str) -> &str {
    if program == "qemu-nbd" { "qemu-utils" } else { program }
}

fn find_debian() -> Result<PathBuf, Trouble> {
    let candidates = SYSTEM_DIRS.iter().map(|dir| Path::new(dir).join("nbd-server"));
    candidates.filter(|path| path.is_file()).find(|path| introduces_itself(path)).ok_or_else(|| {
        Trouble::new("find Debian's nbd-server", "nbd-server is not installed", "apt install nbd-server")
    })
}

fn introduces_itself(path: &Path) -> bool {
    let spoken = Command::new(path).arg("-V").output();
    spoken.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(DEBIAN_GREETING))
}

fn need_two_cpus() -> Result<(), Trouble> {
    need_in_path("taskset", "apt install util-linux")?;
    if machine::cpu_count() < 2 {
        return Err(Trouble::new("pin server and client", "there is one CPU only", "leave out --pinned"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["compare"], arguments].concat()).unwrap()
    }

    #[test]
    fn jobs_are_chosen_by_set_and_by_name() {
        assert_eq!(choose_jobs(&options(&[])).len(), 14);
        assert_eq!(choose_jobs(&options(&["--all"])).len(), JOBS.len());
        let only = choose_jobs(&options(&["--only", "randtrim-64k-qd16,randread-4k-qd1"]));
        let names: Vec<&str> = only.iter().map(|job| job.name).collect();
        assert_eq!(names, ["randread-4k-qd1", "randtrim-64k-qd16"], "in the order of running");
    }

    #[test]
    fn a_missing_server_of_ours_is_never_left_out_in_silence() {
        let mut plan = Plan::bare(&options(&["--ours", "/nonexistent/nbd-server"]));
        let trouble = plan.choose_servers(&options(&[])).unwrap_err();
        assert!(trouble.next.contains("cargo build --release -p nbd-server"), "{}", trouble.next);
    }

    #[test]
    fn a_client_is_counted_with_what_it_can_run() {
        let count = |client: &str| {
            let options = options(&["--rounds", "2", "--all", "--client", client]);
            let servers = vec![ServerId::NbdkitFile, ServerId::FioFile];
            Plan { servers, ..Plan::bare(&options) }.run_count()
        };
        let (trims, mixed, paced) = (1, 1, 1);
        assert_eq!(count("fio"), 2 * (2 * JOBS.len() - trims));
        assert_eq!(count("ours"), 2 * (JOBS.len() - trims - mixed - paced));
        assert_eq!(count("ours,fio,ours"), count("fio") + count("ours"));
    }
}
