//! Volumes of blockd beside their peers, in scenarios: what snapshots cost, what a large store costs.
//!
//! ```text
//! plan ─► room (directories, programs) ─► scenarios ─► recorder ─► rows ─► targets
//!                                          │
//!          disks: a volume, a plain file, ├─ steady         the usual jobs, everything allocated
//!          qcow2 in four ways, files on   ├─ first-writes   before and after a snapshot
//!          XFS and on btrfs               ├─ deep-reads     with more and more snapshots and with none
//!          stores whose metadata are made ├─ diff, snapshot-calls
//!          directly                       ├─ full-store, worst-memory   memory, idleness, starts, snapshot-calls
//!          volumes in a store of their    ├─ delete-middle, space, soak
//!          own, and plain files           ├─ flushes, guest-view
//!          a file in the page cache       └─ tls            the plain server over TLS, beside nbdkit
//! ```
//!
//! Everything goes through the host's page cache. Within a scenario the disks take turns in rounds, and ratios are of
//! values of one round. What deliberately does not live here: any NBD code; the client is fio's nbd engine, as
//! everywhere in this crate.

pub mod client;
pub mod daemon;
pub mod disks;
pub mod files;
pub mod loop_fs;
pub mod made;
pub mod room;

pub mod calls;
pub mod deep_reads;
pub mod delete_middle;
pub mod diff;
pub mod first_writes;
pub mod flushes;
pub mod full;
pub mod guest_view;
pub mod paced;
pub mod soak;
pub mod space;
pub mod steady;
pub mod tls;
pub mod worst_memory;

mod alone;

pub mod record;
pub mod targets;

use clap::ValueEnum;
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::plan::StorePlan;
use crate::trouble::Trouble;
use daemon::Daemon;
use deep_reads::{CHAIN_DEPTHS, DEPTHS, FILE_DEPTHS, Pair};
use disks::{Disk, Qcow2, QcowCut, Shared, Volume};
use files::PlainFile;
use loop_fs::{Kind, LoopFs};
use record::{FailedScenario, Recorder, Row};
use room::Room;

/// Size of a peer's file system by that of an image: two disks, and what their snapshots keep.
const FS_FACTOR: u64 = 4;
/// Size of the pool by that of an image: two volumes, and 20 snapshots whose scattered blocks take a cluster each until
/// they are packed. Who takes more waits for that.
const POOL_FACTOR: u64 = 5;
/// The smallest file system worth making.
const FS_BYTES_MIN: u64 = 2 << 30;

/// What can be asked for by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// The usual jobs on a volume, a plain file and the peers, everything allocated.
    Steady,
    /// First writes after a snapshot, and before it.
    FirstWrites,
    /// Reads with many snapshots and with none.
    DeepReads,
    /// Diffs of a small and a large volume.
    Diff,
    /// Snapshot calls beside a writer, on a small volume.
    SnapshotCalls,
    /// Memory, idle CPU, starts and snapshot calls of a large store.
    FullStore,
    /// A snapshot in the middle deleted under load.
    DeleteMiddle,
    /// What twenty snapshots take of the pool.
    Space,
    /// Writes that are made durable, with and without new mappings.
    Flushes,
    /// Memory of a large store whose clusters all come from two places.
    WorstMemory,
    /// Memory over a long time of load.
    Soak,
    /// fio in a guest, its disk on a volume and on images.
    GuestView,
    /// The plain server over TCP with TLS, beside nbdkit.
    Tls,
}

impl Scenario {
    /// Whether it yields rows of that name: a large store's snapshot calls are among its own.
    pub fn measures(self, rows: &str) -> bool {
        match self {
            Self::Steady => rows == steady::NAME,
            Self::FirstWrites => rows == first_writes::NAME,
            Self::DeepReads => rows == deep_reads::NAME,
            Self::Diff => rows == diff::NAME,
            Self::SnapshotCalls => rows == calls::NAME,
            Self::FullStore => rows == full::NAME || rows == calls::NAME,
            Self::DeleteMiddle => rows == delete_middle::NAME,
            Self::Space => rows == space::NAME,
            Self::Flushes => rows == flushes::NAME,
            Self::WorstMemory => rows == worst_memory::NAME,
            Self::Soak => rows == soak::NAME,
            Self::GuestView => rows == guest_view::NAME,
            Self::Tls => rows == tls::NAME,
        }
    }
}

/// A disk that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskEntry {
    /// Its name in the rows.
    pub disk: &'static str,
    /// How it is served and cut.
    pub how: String,
}

/// Everything the scenarios found.
#[derive(Debug, Clone, Serialize)]
pub struct StoreResults {
    /// Which were run.
    pub scenarios: Vec<Scenario>,
    /// Size of the written volumes and their peers, MiB.
    pub image_mib: u64,
    /// Size of the mapped volume, GiB.
    pub large_gib: u64,
    /// Seconds a measurement.
    pub runtime_s: u32,
    /// Rounds.
    pub rounds: u32,
    /// Who took part.
    pub disks: Vec<DiskEntry>,
    /// All figures.
    pub rows: Vec<Row>,
    /// What could not be measured.
    pub failures: Vec<FailedScenario>,
    /// What a reader has to know.
    pub notices: Vec<String>,
}

/// Runs the scenarios. Failed ones are part of the results.
///
/// # Errors
/// Nothing can be measured at all: there is no space for images.
pub fn run(plan: &StorePlan, interrupt: &Interrupt) -> Result<StoreResults, Trouble> {
    let mut recorder = Recorder::default();
    let mut entries = Vec::new();
    if plan.needs_disks() {
        let room = Room::new(plan, interrupt)?;
        with_disks(&room, &mut recorder, &mut entries).or_else(|trouble| stopped(interrupt, trouble))?;
    }
    alone::run(plan, &mut recorder, interrupt);
    Ok(StoreResults {
        scenarios: plan.scenarios.clone(),
        image_mib: plan.image_bytes >> 20,
        large_gib: plan.large_bytes >> 30,
        runtime_s: plan.runtime_s,
        rounds: plan.rounds,
        disks: entries,
        rows: recorder.rows(),
        failures: recorder.failures,
        notices: recorder.notices,
    })
}

impl StorePlan {
    fn wants(&self, scenario: Scenario) -> bool {
        self.scenarios.contains(&scenario)
    }

    fn needs_disks(&self) -> bool {
        [Scenario::Steady, Scenario::FirstWrites, Scenario::DeepReads].iter().any(|one| self.wants(*one))
    }
}

/// An early stop keeps what was measured until then; other trouble goes on.
fn stopped(interrupt: &Interrupt, trouble: Trouble) -> Result<(), Trouble> {
    if interrupt.requested() { Ok(()) } else { Err(trouble) }
}

/// The file systems that this host can make.
#[derive(Default)]
struct FileSystems {
    xfs: Option<LoopFs>,
    btrfs: Option<LoopFs>,
}

impl FileSystems {
    fn make(room: &Room<'_>, recorder: &mut Recorder) -> Self {
        let bytes = (room.plan.image_bytes * FS_FACTOR).max(FS_BYTES_MIN);
        let mut make = |kind| match LoopFs::make(room, kind, bytes) {
            Ok(made) => Some(made),
            Err(trouble) => {
                recorder.note(format!("{} left out: {}: {}", kind.name(), trouble.what, trouble.why));
                None
            }
        };
        Self { xfs: make(Kind::Xfs), btrfs: make(Kind::Btrfs) }
    }

    /// A disk on each of them, under that name.
    fn disks<'a>(&'a self, name: &'static str) -> Vec<Box<dyn Disk + 'a>> {
        let all = [(Kind::Xfs, &self.xfs), (Kind::Btrfs, &self.btrfs)];
        let there = all.into_iter().filter_map(|(kind, fs)| Some((kind, fs.as_ref()?)));
        there.map(|(kind, fs)| Box::new(Shared::new(fs, kind, name)) as Box<dyn Disk + 'a>).collect()
    }
}

/// The scenarios whose disks are written.
fn with_disks(room: &Room<'_>, recorder: &mut Recorder, entries: &mut Vec<DiskEntry>) -> Result<(), Trouble> {
    let systems = FileSystems::make(room, recorder);
    room.interrupt.check()?;
    let daemon = empty_store(room)?;
    if room.plan.wants(Scenario::Steady) {
        let mut disks = steady_disks(&daemon, &systems);
        enter(entries, &disks);
        steady::run(room, recorder, &mut disks)?;
    }
    if room.plan.wants(Scenario::FirstWrites) {
        let mut disks = cut_disks(&daemon, &systems);
        enter(entries, &disks);
        first_writes::run(room, recorder, &mut disks)?;
    }
    if room.plan.wants(Scenario::DeepReads) {
        deep_reads::run(room, recorder, &mut deep_pairs(&daemon, &systems))?;
    }
    daemon.stop()
}

/// A daemon with an empty store, whose pool has been written.
fn empty_store(room: &Room<'_>) -> Result<Daemon, Trouble> {
    let data = room.new_image("store");
    made::make(&data, &[], room.plan.image_bytes * POOL_FACTOR, room.interrupt)?;
    Daemon::start(room, &data)
}

fn steady_disks<'a>(daemon: &'a Daemon, systems: &'a FileSystems) -> Vec<Box<dyn Disk + 'a>> {
    let mut disks: Vec<Box<dyn Disk + 'a>> = vec![
        Box::new(Volume::new(daemon, "steady")),
        Box::<PlainFile>::default(),
        Box::new(Qcow2::new("qcow2", QcowCut::Overlay)),
    ];
    disks.extend(systems.disks("steady"));
    disks
}

fn cut_disks<'a>(daemon: &'a Daemon, systems: &'a FileSystems) -> Vec<Box<dyn Disk + 'a>> {
    let mut disks: Vec<Box<dyn Disk + 'a>> = vec![
        Box::new(Volume::new(daemon, "cut")),
        Box::new(Volume::control(daemon)),
        Box::new(Qcow2::new("qcow2-overlay", QcowCut::Overlay)),
        Box::new(Qcow2::new("qcow2-extended-l2", QcowCut::ExtendedL2)),
        Box::new(Qcow2::new(first_writes::CHAIN, QcowCut::Overlay)),
        Box::new(Qcow2::new("qcow2-internal", QcowCut::Internal)),
    ];
    disks.extend(systems.disks("cut"));
    disks
}

fn deep_pairs<'a>(daemon: &'a Daemon, systems: &'a FileSystems) -> Vec<Pair<'a>> {
    let qcow2 = || Box::new(Qcow2::new(first_writes::CHAIN, QcowCut::Overlay));
    let (deep, flat) = (Volume::new(daemon, "deep"), Volume::new(daemon, "flat"));
    let mut pairs = vec![
        Pair { deep: Box::new(deep), flat: Box::new(flat), depths: &DEPTHS },
        Pair { deep: qcow2(), flat: qcow2(), depths: &CHAIN_DEPTHS },
    ];
    let files = systems.disks("deep").into_iter().zip(systems.disks("flat"));
    pairs.extend(files.map(|(deep, flat)| Pair { deep, flat, depths: &FILE_DEPTHS }));
    pairs
}

fn enter(entries: &mut Vec<DiskEntry>, disks: &[Box<dyn Disk + '_>]) {
    for disk in disks {
        let entry = DiskEntry { disk: disk.name(), how: disk.how() };
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
}
