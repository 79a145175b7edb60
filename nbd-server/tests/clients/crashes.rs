//! The crash rigs in short: our server under kill -9 and power cuts, and the negative controls that show that the
//! rigs bite. The long runs are `crash` (package fixtures).
//!
//! Our server has no snapshots. So that the rigs' part about them has something to bite, [`Snapshotting`] gives it
//! some: it stops the server, copies its images, lets it go on; and it can be made to do that badly.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fixtures::crash::{
    CrashError, Lie, NbdServer, NbdkitLiar, Place, Plan, Snapshots, Summary, Target, Volume, run_kills,
    run_power,
};
use fixtures::lossy_fs::{LossyFs, Options};
use fixtures::nbd::client::{Client, ClientError};
use fixtures::nbd::codec::{errno, flag};
use fixtures::process::{ChildGuard, ProcessError, wait_for_socket, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::server::CACHES;
use crate::tools::require;

const MIB: u64 = 1 << 20;
/// How long a server may take to start.
const START: Duration = Duration::from_secs(10);
/// How long a server may take to notice that it has to stop.
const STOP: Duration = Duration::from_secs(2);

/// Short rounds; many connections would only wait for each other.
fn plan(rounds: u32, seed: u64) -> Plan {
    let lossy = Options { tear_sectors: true, sync_max: Duration::from_millis(2) };
    Plan { rounds, seed, connections: 3, load_max: Duration::from_millis(150), lossy }
}

fn server(cache: &str) -> NbdServer {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_nbd-server"));
    NbdServer { program, cache: cache.to_owned(), volumes: Volume::all(&["v", "w"], 8 * MIB) }
}

fn kills(target: &dyn Target, plan: &Plan) -> Result<Summary, CrashError> {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    run_kills(target, dir.path(), plan, &mut |_| {})
}

fn may_cut_power() -> bool {
    let possible = LossyFs::is_possible();
    if !possible {
        eprintln!("SKIPPED: /dev/fuse is missing or may not be opened");
    }
    possible
}

/// Nothing where file systems in user space cannot be mounted, after saying so.
fn power(target: &dyn Target, plan: &Plan) -> Option<Result<Summary, CrashError>> {
    if !may_cut_power() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    Some(run_power(target, dir.path(), plan, &mut |_| {}))
}

/// The rule that was found broken.
fn broken(result: Result<Summary, CrashError>) -> &'static str {
    match result {
        Err(CrashError::Broken { rule, .. }) => rule,
        Err(CrashError::Rig(error)) => panic!("{error:#}"),
        Ok(summary) => panic!("nothing was found in {summary:?}"),
    }
}

#[test]
fn our_server_survives_kills() {
    for cache in CACHES {
        let summary = kills(&server(cache), &plan(6, 1)).unwrap_or_else(|error| panic!("{error}"));
        assert!(summary.kills == 6 && summary.counts.changes_answered > 0, "{summary:?}");
    }
}

#[test]
fn our_server_survives_power_cuts() {
    for cache in CACHES {
        if let Some(result) = power(&server(cache), &plan(8, 2)) {
            let summary = result.unwrap_or_else(|error| panic!("{error}"));
            assert!(summary.cuts > 0 && summary.survivors.pages_lost > 0, "{summary:?}");
        }
    }
}

/// The real fdatasync fails, as Linux lets it fail: the next would succeed and prove nothing.
#[test]
fn after_a_failed_sync_nothing_is_called_durable() {
    if !may_cut_power() {
        return;
    }
    let (mount, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fs = LossyFs::mount(mount.path(), Options::default()).unwrap();
    let place = Place { data: mount.path().to_owned(), run: run.path().to_owned() };
    let target = server("writeback");
    target.prepare(&place).unwrap();
    let mut child = ChildGuard::spawn(target.command(&place).stderr(Stdio::null())).unwrap();
    drop(wait_for_socket(&place.socket(), &mut child, START).unwrap());
    let mut client = Client::connect(&place.socket(), b"v").unwrap();
    client.write(0, &[1; 4096]).unwrap();
    client.flush().unwrap();
    client.write(0, &[2; 4096]).unwrap();
    fs.fail_syncs(1);
    for _ in 0..3 {
        assert!(matches!(client.flush(), Err(ClientError::Failed(errno::EIO))));
        assert!(matches!(client.call_write(flag::FUA, 0, &[3; 4096]), Ok(Err(errno::EIO))));
    }
    assert_eq!(client.read(0, 4096).unwrap(), [2; 4096], "reads go on");
    Client::connect(&place.socket(), b"w").unwrap().flush().expect("another file has not failed");
    fs.freeze();
    child.kill().unwrap();
    fs.power_on(1);
    let image = fs::read(place.data.join("v.img")).unwrap();
    assert!(image[..4096] == [1; 4096] && image.len() as u64 == 8 * MIB);
}

#[test]
fn liars_are_found_out() {
    require(&["nbdkit"]);
    let liar = |lie| NbdkitLiar { lie, volumes: Volume::all(&["v"], 8 * MIB) };
    assert_eq!(broken(kills(&liar(Lie::KeepsItInAFileOfItsOwn), &plan(30, 3))), "D4");
    for lie in [Lie::KeepsItInAFileOfItsOwn, Lie::NeverSyncs] {
        if let Some(result) = power(&liar(lie), &plan(30, 4)) {
            assert_eq!(broken(result), "D4", "{lie:?}");
        }
    }
    kills(&liar(Lie::NeverSyncs), &plan(3, 5)).expect("the page cache outlives the process");
}

/// How snapshots may be taken badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The copies are of no one moment.
    CopiesWhileItRuns,
    /// They are answered before they are durable.
    NeverSyncs,
    /// A deletion is answered and not done.
    NeverDeletes,
    /// A new snapshot gets into the older ones.
    OverwritesOlder,
}

/// Our server, with snapshots made by hand.
struct Snapshotting {
    server: NbdServer,
    flaw: Flaw,
}

impl Snapshotting {
    fn new(flaw: Flaw) -> Self {
        Self { server: server("writeback"), flaw }
    }
}

impl Target for Snapshotting {
    fn name(&self) -> String {
        format!("nbd-server with snapshots, flaw {:?}", self.flaw)
    }

    fn volumes(&self) -> &[Volume] {
        self.server.volumes()
    }

    fn prepare(&self, place: &Place) -> anyhow::Result<()> {
        self.server.prepare(place)?;
        fs::create_dir(place.data.join("cuts"))?;
        Ok(File::open(&place.data)?.sync_all()?)
    }

    /// Snapshots are looked for when the server starts: the rigs read them then.
    fn command(&self, place: &Place) -> Command {
        let honest = self.server.command(place);
        let mut command = Command::new("/bin/sh");
        let script = "echo $$ >\"$1\"; shift; exec \"$@\"";
        command.args(["-c", script, "sh"]).arg(place.run.join("pid")).arg(honest.get_program());
        for cut in files(&place.data.join("cuts")) {
            let snapshot = cut.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for image in files(&cut).iter().filter(|_| !snapshot.ends_with(".new")) {
                let volume = image.file_name().unwrap_or_default().to_string_lossy();
                command.arg(format!("{volume}@{snapshot}={}", image.display()));
            }
        }
        command.args(honest.get_args());
        command
    }

    fn snapshots(&self, place: &Place) -> Option<Box<dyn Snapshots>> {
        Some(Box::new(ByHand { place: place.clone(), flaw: self.flaw }))
    }
}

/// What a directory holds; nothing when it is not there.
fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

struct ByHand {
    place: Place,
    flaw: Flaw,
}

impl ByHand {
    fn file(&self, name: &str) -> PathBuf {
        let (volume, snapshot) = name.split_once('@').unwrap();
        self.place.data.join("cuts").join(snapshot).join(volume)
    }

    fn sync(&self, path: &Path) -> anyhow::Result<()> {
        if self.flaw != Flaw::NeverSyncs {
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }

    fn copy(&self, names: &[String], cut: &Path) -> anyhow::Result<()> {
        fs::create_dir(cut)?;
        for name in names {
            let volume = name.split_once('@').unwrap().0;
            let (image, copy) = (self.place.data.join(format!("{volume}.img")), cut.join(volume));
            fs::copy(&image, &copy)?;
            // What is in a snapshot is durable, in the volume, too.
            self.sync(&image)?;
            for older in files(&self.place.data.join("cuts")) {
                let older = older.join(volume);
                if self.flaw == Flaw::OverwritesOlder && older.exists() {
                    fs::copy(&image, older)?;
                }
            }
            self.sync(&copy)?;
        }
        self.sync(cut)
    }
}

impl Snapshots for ByHand {
    fn create(&self, names: &[String]) -> anyhow::Result<()> {
        let done = self.file(&names[0]).parent().unwrap().to_owned();
        let new = done.with_extension("new");
        let stopped = Stopped::new(&self.place, self.flaw != Flaw::CopiesWhileItRuns)?;
        self.copy(names, &new)?;
        drop(stopped);
        fs::rename(&new, &done)?;
        self.sync(done.parent().unwrap())
    }

    fn delete(&self, name: &str) -> anyhow::Result<()> {
        let file = self.file(name);
        if self.flaw != Flaw::NeverDeletes {
            fs::remove_file(&file)?;
        }
        self.sync(file.parent().unwrap())
    }

    fn hash(&self, name: &str) -> anyhow::Result<Option<String>> {
        let mut hasher = DefaultHasher::new();
        fs::read(self.file(name))?.hash(&mut hasher);
        Ok(Some(hasher.finish().to_string()))
    }
}

/// The server, not running for a moment.
struct Stopped(Option<Pid>);

impl Stopped {
    fn new(place: &Place, wanted: bool) -> anyhow::Result<Self> {
        let pid: i32 = fs::read_to_string(place.run.join("pid"))?.trim().parse()?;
        // It may have been killed: then nothing is stopped, and nothing else must be.
        anyhow::ensure!(
            fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "nbd-server",
            "it has gone"
        );
        let Some(pid) = Pid::from_raw(pid).filter(|_| wanted) else { return Ok(Self(None)) };
        kill_process(pid, Signal::STOP)?;
        let stopped = Self(Some(pid));
        wait_until("the server's stop", STOP, || Ok::<_, ProcessError>(all_stopped(pid).then_some(())))?;
        Ok(stopped)
    }
}

/// Every thread of it; a thread that ends meanwhile counts as stopped.
fn all_stopped(pid: Pid) -> bool {
    let tasks = files(Path::new(&format!("/proc/{}/task", pid.as_raw_nonzero())));
    let state = |task: &PathBuf| fs::read_to_string(task.join("stat")).unwrap_or_else(|_| ") T".into());
    tasks
        .iter()
        .all(|task| state(task).rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 'Z', 'X'])))
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Some(pid) = self.0
            && let Err(error) = kill_process(pid, Signal::CONT)
        {
            eprintln!("the server has gone meanwhile: {error}");
        }
    }
}

/// Rounds that are long enough for some snapshots.
fn snapshot_plan(rounds: u32, seed: u64) -> Plan {
    Plan { load_max: Duration::from_millis(600), ..plan(rounds, seed) }
}

#[test]
fn snapshots_are_compared_after_each_start() {
    let summary =
        kills(&Snapshotting::new(Flaw::None), &snapshot_plan(8, 6)).unwrap_or_else(|e| panic!("{e}"));
    assert!(summary.snapshots_checked > 0, "{summary:?}");
    if let Some(result) = power(&Snapshotting::new(Flaw::None), &snapshot_plan(8, 7)) {
        let summary = result.unwrap_or_else(|error| panic!("{error}"));
        assert!(summary.snapshots_checked > 0 && summary.cuts > 0, "{summary:?}");
    }
}

#[test]
fn bad_snapshots_are_found_out() {
    let flawed = |flaw| broken(kills(&Snapshotting::new(flaw), &snapshot_plan(40, 8)));
    let copies = flawed(Flaw::CopiesWhileItRuns);
    assert!(copies.starts_with("S1"), "{copies}");
    assert_eq!(flawed(Flaw::NeverDeletes), "S4");
    let overwrites = flawed(Flaw::OverwritesOlder);
    assert!(overwrites.starts_with('S'), "{overwrites}");
    if let Some(result) = power(&Snapshotting::new(Flaw::NeverSyncs), &snapshot_plan(40, 9)) {
        // Missing, too short to be served, or with holes: it depends on the cut.
        let rule = broken(result);
        assert!(["S1", "S4", "D4", "F1"].contains(&rule), "{rule}");
    }
}
