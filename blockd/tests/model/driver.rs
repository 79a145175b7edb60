//! One case: what happens is drawn from the seed, what comes of it is held against the reference.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use blockd::catalog::memory::MetaFault;
use blockd::control::{Answer, Control, ControlError, ErrorKind, SnapshotName};
use blockd::store::{Subject, Token};
use blockd::units::LayerId;
use fastrand::Rng;
use fixtures::sim::Fault;
use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, Extent, Payload, Reply};
use nbd_server::reactor::buffer::Buf;
use nbd_server::wire::Errno;

use crate::reference::{CELL_BYTES, Disk, NEVER, Reference, Snapshot, cells};
use crate::world::{PackedRecord, World, load, packed_records};

const KIB: u64 = 1024;
/// Volumes that may exist at once.
const VOLUMES_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 6;

/// What has happened in some cases: a model that never does a thing proves nothing of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    counts: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    fn count(&mut self, what: &'static str) {
        self.count_many(what, 1);
    }

    fn count_many(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_default() += times;
    }

    pub(crate) fn assert_everything_happened(&self) {
        for what in [
            "read",
            "write",
            "zero",
            "trim",
            "flush",
            "fua",
            "power cut",
            "reopen",
            "no space",
            "read error",
            "sync failed",
            "batch failed",
            "create",
            "delete volume",
            "snapshot",
            "group cut",
            "delete snapshot",
            "clone",
            "rollback",
            "grow",
            "rename",
            "hold",
            "snapshot checked",
            "unaligned",
            "all space back",
            "checkpoint used",
            "checkpoint out of date",
            "connection",
            "packed",
            "packed record changed hands",
            "packed layer merged",
        ] {
            assert!(self.counts.get(what).is_some_and(|&count| count > 0), "never happened: {what}");
        }
    }
}

/// A request under way.
struct Pending {
    volume: String,
    kind: Kind,
    cells: Range<usize>,
    issued: u64,
}

enum Kind {
    Read,
    Write {
        stamp: u64,
        fua: bool,
    },
    Flush,
    /// A read of a whole snapshot.
    Check {
        name: (String, String),
    },
}

/// A command under way.
#[derive(Debug)]
enum Asked {
    Create { name: String, size: u64 },
    Grow { name: String, size: u64 },
    Rename { from: String, to: String },
    DeleteVolume { name: String },
    Cut { names: Vec<SnapshotName>, requested: u64 },
    DeleteSnapshot { name: (String, String) },
    Rollback { name: (String, String) },
    Clone { from: (String, String), to: String },
    Other,
}

struct Case {
    world: World,
    reference: Reference,
    pending: HashMap<u32, Pending>,
    asked: BTreeMap<Token, Asked>,
    /// Commands that have failed with an I/O error: whether they had their effect is seen after a crash.
    doubtful: Vec<Asked>,
    time: u64,
    next_id: u32,
    next_name: u32,
    faults: u64,
    /// What was packed when somebody last looked.
    packed: Vec<PackedRecord>,
    children: BTreeMap<LayerId, LayerId>,
    /// Exports that somebody is connected to, each once for each.
    connected: Vec<ExportIndex>,
    /// Volumes one of whose FLUSHes has failed since the store was opened.
    failed: Vec<String>,
    seen: Seen,
    /// Draws what does not change what else is drawn.
    fate: Rng,
    /// The last crash was one of the process only: what it had answered must be there.
    kept: bool,
    /// Faults are drawn in this case.
    with_faults: bool,
    /// Tell what happens.
    trace: bool,
}

/// Tells what happens, when one case is looked at.
macro_rules! trace {
    ($case:expr, $($text:tt)*) => {
        if $case.trace {
            eprintln!("{:>5} {}", $case.time, format_args!($($text)*));
        }
    };
}

pub(crate) fn run_case(seed: u64) {
    println!("{:?}", run_case_counting(seed, true));
}

pub(crate) fn run_case_counting(seed: u64, trace: bool) -> Seen {
    let mut world = World::new(seed);
    let with_faults = world.rng.bool();
    let steps = world.rng.usize(50..400);
    let mut case = Case {
        world,
        reference: Reference::default(),
        pending: HashMap::new(),
        asked: BTreeMap::new(),
        doubtful: Vec::new(),
        time: 1,
        next_id: 0,
        next_name: 0,
        faults: 0,
        packed: Vec::new(),
        children: BTreeMap::new(),
        connected: Vec::new(),
        failed: Vec::new(),
        seen: Seen::default(),
        fate: Rng::with_seed(!seed),
        kept: false,
        with_faults,
        trace,
    };
    case.create();
    case.settle();
    for _ in 0..steps {
        case.step();
        case.collect();
    }
    case.finish();
    case.seen
}

fn fill(buf: &mut Buf, stamp: u64) {
    for chunk in buf.chunks_exact_mut(8) {
        chunk.copy_from_slice(&stamp.to_le_bytes());
    }
}

/// The stamps of whole cells.
fn stamps(bytes: &[u8]) -> Vec<u64> {
    let cell = |cell: &[u8]| {
        let stamp = u64::from_le_bytes(cell[..8].try_into().expect("8 bytes"));
        assert!(cell.chunks_exact(8).all(|c| c == &cell[..8]), "a cell is torn");
        stamp
    };
    bytes.chunks_exact(CELL_BYTES as usize).map(cell).collect()
}

fn content(payload: Payload) -> Vec<u8> {
    match payload {
        Payload::None => Vec::new(),
        Payload::Data(buf) => buf.to_vec(),
        Payload::Extents(extents) => {
            let mut bytes = Vec::new();
            for extent in extents {
                match extent {
                    Extent::Data(buf) => bytes.extend_from_slice(&buf),
                    Extent::Hole(length) => bytes.resize(bytes.len() + length as usize, 0),
                }
            }
            bytes
        }
    }
}

impl Case {
    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// Some volume that no command is about to take away or to change under its name.
    fn some_volume(&mut self) -> Option<String> {
        let names = self.reference.volumes.keys().filter(|name| !self.is_changing(name));
        let names: Vec<String> = names.cloned().collect();
        self.world.rng.choice(names)
    }

    fn is_changing(&self, volume: &str) -> bool {
        self.asked.values().chain(&self.doubtful).any(|asked| match asked {
            Asked::Rename { from: name, .. } | Asked::DeleteVolume { name } => name == volume,
            Asked::Rollback { name } => name.0 == volume,
            _ => false,
        })
    }

    fn some_snapshot(&mut self) -> Option<(String, String)> {
        let deleting = |name: &(String, String)| {
            let asked = self.asked.values().chain(&self.doubtful);
            asked
                .into_iter()
                .any(|asked| matches!(asked, Asked::DeleteSnapshot { name: other } if other == name))
        };
        let names = self.reference.snapshots.keys();
        let names: Vec<_> =
            names.filter(|name| !self.is_changing(&name.0) && !deleting(name)).cloned().collect();
        self.world.rng.choice(names)
    }

    fn faults_hit(&self) -> u64 {
        self.faults + self.world.disk.faults_hit() + self.world.meta.faults_hit()
    }

    fn step(&mut self) {
        match self.world.rng.u32(..100) {
            0..31 => self.request(),
            31..33 => self.world.tick(1000),
            33 => self.check_snapshot(),
            34..64 => {
                self.world.disk_step();
            }
            64..80 => {
                self.world.meta_step();
            }
            80..92 => self.ask(),
            92 => self.world.tick(6000),
            93 => {
                self.settle();
                self.check_all_snapshots();
            }
            94 => {
                self.check_snapshot();
                self.connection();
            }
            95 => self.crash(),
            96..97 if self.world.rng.u8(..4) == 0 => self.reopen(),
            96..100 if self.with_faults => self.fault(),
            _ => self.connection(),
        }
    }

    /// A client comes, whose map stays in memory, or one goes.
    fn connection(&mut self) {
        if self.world.rng.u8(..5) < 2 && !self.connected.is_empty() {
            let at = self.world.rng.usize(..self.connected.len());
            self.world.disconnect(self.connected.swap_remove(at));
            return;
        }
        let name = match self.world.rng.u8(..3) {
            0 => self.some_volume(),
            _ => self.some_snapshot().map(|(volume, snapshot)| format!("{volume}@{snapshot}")),
        };
        if let Some((export, ..)) = name.and_then(|name| self.world.find_export(&name)) {
            self.seen.count("connection");
            self.world.connect(export);
            self.connected.push(export);
        }
    }

    fn fault(&mut self) {
        match self.world.rng.u32(..20) {
            0..4 => self.world.inject(Fault::ReadError),
            4..8 => self.world.inject(Fault::WriteError),
            8..12 => self.world.inject(Fault::Short),
            12 => self.world.inject(Fault::NoSpace),
            13..16 => self.world.inject(Fault::SyncError),
            16 => self.world.meta.inject(MetaFault::Io),
            17 => self.world.meta.inject(MetaFault::NoSpace),
            18 if self.fate.bool() => self.world.recent.fill_up(),
            18 => self.world.meta.inject(MetaFault::ReadIo),
            _ => self.world.disk.fill_up_to(0),
        }
    }

    fn request(&mut self) {
        let Some(volume) = self.some_volume() else { return };
        let size = self.reference.volumes[&volume].cells.len() as u64 * CELL_BYTES;
        let aligned = self.world.rng.u8(..4) != 0;
        let unit = if aligned { 4096 } else { CELL_BYTES };
        let offset = self.world.rng.u64(..size.div_ceil(unit)) * unit;
        let most = match self.world.rng.u8(..8) {
            0 => 300 * KIB,
            1..4 => 16 * KIB,
            _ => 4 * KIB,
        };
        let length = (self.world.rng.u64(1..=most / unit) * unit).min(size - offset);
        if !aligned {
            self.seen.count("unaligned");
        }
        let range = cells(offset)..cells(offset + length);
        let length = u32::try_from(length).expect("a small volume");
        let fua = self.world.rng.u8(..8) == 0;
        if fua {
            self.seen.count("fua");
        }
        let write = |stamp| Kind::Write { stamp, fua };
        match self.world.rng.u32(..20) {
            0..6 => {
                let buf = self.world.buffers.take(length as usize);
                let holes = self.world.rng.bool();
                self.issue(volume, Kind::Read, range, offset, length, Command::Read { buf, holes });
            }
            6..14 => {
                let stamp = self.time + 1;
                let mut buf = self.world.buffers.take(length as usize);
                fill(&mut buf, stamp);
                self.issue(volume, write(stamp), range, offset, length, Command::Write { buf, fua });
            }
            14..16 => self.issue(volume, write(0), range, offset, length, Command::Trim { fua }),
            16..18 => {
                let no_hole = self.world.rng.u8(..3) == 0;
                let command = Command::WriteZeroes { fua, no_hole, fast: false };
                self.issue(volume, write(0), range, offset, length, command);
            }
            18 => self.issue(volume, Kind::Flush, 0..0, 0, 0, Command::Flush),
            _ => {
                let bytes = self.world.buffers.take(length as usize);
                drop(bytes);
                self.issue(volume, Kind::Flush, 0..0, 0, 0, Command::Flush);
            }
        }
    }

    fn issue(
        &mut self,
        volume: String,
        kind: Kind,
        cells: Range<usize>,
        offset: u64,
        length: u32,
        command: Command,
    ) {
        let (export, _, _) = self.world.find_export(&volume).expect("the volume is served");
        let issued = self.now();
        if let Kind::Write { stamp, .. } = kind {
            self.reference.volumes.get_mut(&volume).expect("it exists").issue(cells.clone(), stamp, issued);
        }
        self.seen.count(match (&kind, &command) {
            (Kind::Flush, _) => "flush",
            (Kind::Read, _) => "read",
            (_, Command::Trim { .. }) => "trim",
            (_, Command::WriteZeroes { .. }) => "zero",
            _ => "write",
        });
        let id = self.next_id;
        self.next_id += 1;
        trace!(self, "{id}: {volume} {offset}+{length} {command:?}");
        self.pending.insert(id, Pending { volume, kind, cells, issued });
        self.world.start(export, id, offset, length, command);
    }

    /// Takes what has been answered.
    fn collect(&mut self) {
        for reply in self.world.take_replies() {
            self.reply(reply);
        }
        for (token, answer) in self.world.take_answers() {
            let asked = self.asked.remove(&token).expect("an answer to a command");
            self.answered(asked, answer);
        }
    }

    fn reply(&mut self, reply: Reply) {
        let pending = self.pending.remove(&reply.id.index).expect("one reply to each request");
        let now = self.now();
        let ok = reply.outcome.is_ok();
        trace!(self, "{}: {} replied {:?}", reply.id.index, pending.volume, reply.outcome);
        if let Err(error) = &reply.outcome {
            self.excuse(*error, &pending);
        }
        match pending.kind {
            Kind::Read => {
                let Ok(payload) = reply.outcome else { return };
                let Some(disk) = self.reference.volumes.get(&pending.volume) else { return };
                let found = stamps(&content(payload));
                assert_eq!(found.len(), pending.cells.len(), "length of a read");
                for (at, stamp) in pending.cells.zip(found) {
                    let allowed = disk.cells[at].readable(pending.issued, now);
                    let volume = &pending.volume;
                    assert!(allowed.contains(&stamp), "{volume}, cell {at}: {stamp}, not one of {allowed:?}");
                }
            }
            Kind::Write { fua, .. } => {
                let failed = self.failed.contains(&pending.volume);
                assert!(!(ok && fua && failed), "FUA answered after a failed sync");
                if let Some(disk) = self.reference.volumes.get_mut(&pending.volume) {
                    disk.end(pending.cells, pending.issued, now, ok, fua);
                }
            }
            Kind::Flush if ok => {
                assert!(!self.failed.contains(&pending.volume), "FLUSH answered after a failed sync");
                let horizon = self.horizon();
                if let Some(disk) = self.reference.volumes.get_mut(&pending.volume) {
                    disk.flushed(pending.issued, now, horizon);
                }
            }
            Kind::Flush => self.failed.push(pending.volume),
            Kind::Check { name } => {
                let Ok(payload) = reply.outcome else { return };
                self.snapshot_read(&name, &stamps(&content(payload)));
            }
        }
    }

    /// Before that, nothing is under way that could still see old values.
    fn horizon(&self) -> u64 {
        let requests = self.pending.values().map(|pending| pending.issued);
        let cuts = self.asked.values().map(|asked| match asked {
            Asked::Cut { requested, .. } => *requested,
            _ => NEVER,
        });
        requests.chain(cuts).min().unwrap_or(self.time)
    }

    /// An error needs a cause.
    fn excuse(&mut self, error: Errno, pending: &Pending) {
        match error {
            Errno::NoSpace => self.seen.count("no space"),
            Errno::Io if matches!(pending.kind, Kind::Read | Kind::Check { .. }) => {
                self.seen.count("read error");
                assert!(self.faults_hit() > 0, "a read fails without cause");
            }
            Errno::Io => {
                if matches!(pending.kind, Kind::Flush) {
                    self.seen.count("sync failed");
                }
                assert!(self.faults_hit() > 0, "an error without cause");
            }
            other => panic!("{other:?} to a legal request"),
        }
    }

    fn snapshot_read(&mut self, name: &(String, String), found: &[u64]) {
        let Some(snapshot) = self.reference.snapshots.get_mut(name) else { return };
        let latest = snapshot.check(&format!("{}@{}", name.0, name.1), found);
        self.seen.count("snapshot checked");
        let cut = snapshot.cut;
        for (name, other) in self.reference.snapshots.iter().filter(|(_, other)| other.cut == cut) {
            other.check_causality(&format!("{}@{}", name.0, name.1), latest);
        }
    }

    /// Starts a read of a whole snapshot.
    fn check_snapshot(&mut self) {
        let Some(name) = self.some_snapshot() else { return };
        self.read_snapshot(&name);
    }

    fn read_snapshot(&mut self, name: &(String, String)) {
        let text = format!("{}@{}", name.0, name.1);
        let (export, size, subject) =
            self.world.find_export(&text).expect("an acknowledged snapshot is served");
        assert!(matches!(subject, Subject::Snapshot(_)));
        let length = u32::try_from(size).expect("a small volume");
        let buf = self.world.buffers.take(length as usize);
        let id = self.next_id;
        self.next_id += 1;
        let issued = self.now();
        let kind = Kind::Check { name: name.clone() };
        let pending = Pending { volume: text, kind, cells: 0..0, issued };
        self.pending.insert(id, pending);
        self.world.start(export, id, 0, length, Command::Read { buf, holes: true });
    }

    /// Reads every snapshot, those whose maps clients keep in memory among them.
    fn check_all_snapshots(&mut self) {
        let names: Vec<_> = self.reference.snapshots.keys().cloned().collect();
        for name in names {
            // A deletion that failed may have had its effect.
            if self.exists(&format!("{}@{}", name.0, name.1)) {
                self.read_snapshot(&name);
            }
        }
        self.settle();
    }

    fn busy(&self, volume: &str) -> bool {
        self.pending.values().any(|pending| pending.volume == volume)
    }

    fn new_name(&mut self, prefix: &str) -> String {
        self.next_name += 1;
        format!("{prefix}{}", self.next_name)
    }

    fn put(&mut self, asked: Asked, command: Control) {
        trace!(self, "{command:?}");
        let token = self.world.command(command);
        self.asked.insert(token, asked);
    }

    fn ask(&mut self) {
        match self.world.rng.u32(..26) {
            0..2 => self.create(),
            2..4 => self.grow(),
            4 => self.rename(),
            5..7 => self.delete_volume(),
            7..14 => self.cut(),
            14..20 => self.delete_snapshot(),
            20..22 => self.rollback(),
            22..25 => self.clone_snapshot(),
            _ => self.hold(),
        }
    }

    fn create(&mut self) {
        if self.reference.volumes.len() + self.asked.len() >= VOLUMES_MAX {
            return;
        }
        let name = self.new_name("v");
        let size = self.world.rng.u64(1..=1024) * CELL_BYTES;
        self.put(Asked::Create { name: name.clone(), size }, Control::CreateVolume { name, size });
    }

    fn grow(&mut self) {
        let Some(name) = self.some_volume() else { return };
        let size = self.reference.volumes[&name].cells.len() as u64 * CELL_BYTES;
        let size = (size + self.world.rng.u64(0..200) * CELL_BYTES).min(700 * KIB).max(size);
        self.put(Asked::Grow { name: name.clone(), size }, Control::ResizeVolume { name, size });
    }

    /// A volume that nothing is under way with, neither requests nor commands.
    fn idle_volume(&mut self) -> Option<String> {
        let name = self.some_volume()?;
        (!self.busy(&name) && self.asked.is_empty()).then_some(name)
    }

    fn rename(&mut self) {
        let Some(from) = self.idle_volume() else { return };
        let to = self.new_name("v");
        self.put(Asked::Rename { from: from.clone(), to: to.clone() }, Control::RenameVolume { from, to });
    }

    fn delete_volume(&mut self) {
        let Some(name) = self.idle_volume() else { return };
        self.put(Asked::DeleteVolume { name: name.clone() }, Control::DeleteVolume { name });
    }

    fn cut(&mut self) {
        let existing = self.reference.snapshots.len();
        if existing >= SNAPSHOTS_MAX {
            return;
        }
        let volumes = self.reference.volumes.keys().filter(|name| !self.is_changing(name));
        let mut volumes: Vec<String> = volumes.cloned().collect();
        self.world.rng.shuffle(&mut volumes);
        volumes.truncate(self.world.rng.usize(1..3));
        if volumes.is_empty() {
            return;
        }
        if volumes.len() > 1 {
            self.seen.count("group cut");
        }
        let snapshot = self.new_name("s");
        let names: Vec<SnapshotName> =
            volumes.into_iter().map(|volume| SnapshotName { volume, snapshot: snapshot.clone() }).collect();
        let requested = self.now();
        self.put(Asked::Cut { names: names.clone(), requested }, Control::CreateSnapshots { names });
    }

    fn control_name(name: &(String, String)) -> SnapshotName {
        SnapshotName { volume: name.0.clone(), snapshot: name.1.clone() }
    }

    fn delete_snapshot(&mut self) {
        let Some(name) = self.some_snapshot() else { return };
        if self.busy(&format!("{}@{}", name.0, name.1)) {
            return;
        }
        let control = Control::DeleteSnapshot { name: Self::control_name(&name) };
        self.put(Asked::DeleteSnapshot { name }, control);
    }

    /// A snapshot whose content is known.
    fn known_snapshot(&mut self) -> Option<(String, String)> {
        let name = self.some_snapshot()?;
        self.reference.snapshots[&name].content.is_some().then_some(name)
    }

    fn rollback(&mut self) {
        let Some(name) = self.known_snapshot() else { return };
        if self.busy(&name.0) || !self.asked.is_empty() {
            return;
        }
        let control = Control::Rollback { name: Self::control_name(&name) };
        self.put(Asked::Rollback { name }, control);
    }

    fn clone_snapshot(&mut self) {
        if self.reference.volumes.len() + self.asked.len() >= VOLUMES_MAX {
            return;
        }
        let Some(from) = self.known_snapshot() else { return };
        let to = self.new_name("c");
        let control = Control::Clone { from: Self::control_name(&from), to: to.clone() };
        self.put(Asked::Clone { from, to }, control);
    }

    fn hold(&mut self) {
        let Some(name) = self.some_snapshot() else { return };
        self.seen.count("hold");
        let name = Self::control_name(&name);
        let reason = "test".to_owned();
        let control = if self.world.rng.bool() {
            Control::Hold { name, reason }
        } else {
            Control::Release { name, reason }
        };
        self.put(Asked::Other, control);
    }

    fn answered(&mut self, asked: Asked, answer: Result<Answer, ControlError>) {
        trace!(self, "{asked:?} {answer:?}");
        if let Err(error) = &answer {
            self.excuse_command(&asked, error);
            if matches!(error.kind, ErrorKind::Io | ErrorKind::NoSpace) {
                self.doubtful.push(asked);
            }
            return;
        }
        let now = self.now();
        self.apply(asked, now);
    }

    fn excuse_command(&mut self, asked: &Asked, error: &ControlError) {
        match error.kind {
            ErrorKind::Io | ErrorKind::NoSpace => {
                self.seen.count("batch failed");
                assert!(self.faults_hit() > 0, "a command fails without cause: {error}");
            }
            // A command before it may have taken what this one names.
            ErrorKind::NotFound | ErrorKind::Busy | ErrorKind::Refused | ErrorKind::BadValue => {}
            ErrorKind::Exists if matches!(asked, Asked::Rename { .. }) => {}
            _ => panic!("{error:?}"),
        }
    }

    /// A command has had its effect.
    fn apply(&mut self, asked: Asked, now: u64) {
        match asked {
            Asked::Create { name, size } => {
                self.seen.count("create");
                self.reference.volumes.insert(name, Disk::zeroes(size, now));
            }
            Asked::Grow { name, size } => {
                self.seen.count("grow");
                if let Some(disk) = self.reference.volumes.get_mut(&name) {
                    disk.grow(size.max(disk.cells.len() as u64 * CELL_BYTES));
                }
            }
            Asked::Rename { from, to } => self.renamed(&from, &to),
            Asked::DeleteVolume { name } => {
                self.seen.count("delete volume");
                self.reference.volumes.remove(&name);
            }
            Asked::Cut { names, requested } => self.cut_made(&names, requested, now),
            Asked::DeleteSnapshot { name } => {
                self.seen.count("delete snapshot");
                self.reference.snapshots.remove(&name);
            }
            Asked::Rollback { name } => {
                self.seen.count("rollback");
                let Some(content) = self.reference.snapshots.get(&name).and_then(|s| s.content.clone())
                else {
                    return;
                };
                self.reference.volumes.insert(name.0, Disk::known(content, now));
            }
            Asked::Clone { from, to } => {
                self.seen.count("clone");
                let content = self.reference.snapshots.get(&from).and_then(|s| s.content.clone());
                if let Some(content) = content {
                    self.reference.volumes.insert(to, Disk::known(content, now));
                }
            }
            Asked::Other => {}
        }
    }

    fn renamed(&mut self, from: &str, to: &str) {
        self.seen.count("rename");
        if let Some(disk) = self.reference.volumes.remove(from) {
            self.reference.volumes.insert(to.to_owned(), disk);
        }
        let names: Vec<_> = self.reference.snapshots.keys().filter(|name| name.0 == from).cloned().collect();
        for name in names {
            let snapshot = self.reference.snapshots.remove(&name).expect("it was listed");
            self.reference.snapshots.insert((to.to_owned(), name.1), snapshot);
        }
        if self.failed.iter().any(|name| name == from) {
            self.failed.push(to.to_owned());
        }
    }

    fn cut_made(&mut self, names: &[SnapshotName], requested: u64, now: u64) {
        self.seen.count("snapshot");
        for name in names {
            let Some(disk) = self.reference.volumes.get(&name.volume) else { continue };
            // A volume may have been grown, or be about to be, while the cut was made.
            let mut disk = disk.clone();
            let (_, size, _) = self.world.find_export(&name.to_string()).expect("an acknowledged snapshot");
            disk.cells.truncate(cells(size));
            disk.grow(size);
            let snapshot = Snapshot { disk, requested, answered: now, content: None, cut: requested };
            self.reference.snapshots.insert((name.volume.clone(), name.snapshot.clone()), snapshot);
        }
    }

    /// Counts what has become of packed records since the last look; the records are checked by it.
    fn look_at_packed(&mut self) {
        let (loaded, found) = packed_records(&self.world.meta.snapshot());
        if !found.is_empty() {
            self.seen.count("packed");
        }
        let is_gone = |layer: &LayerId| !loaded.layers.contains_key(layer);
        for before in std::mem::take(&mut self.packed).iter().filter(|before| is_gone(&before.layer)) {
            if found.iter().any(|now| (now.at, now.place) == (before.at, before.place)) {
                self.seen.count("packed record changed hands");
            }
            if self.children.get(&before.layer).is_some_and(|child| !is_gone(child)) {
                self.seen.count("packed layer merged");
            }
        }
        let parents = loaded.layers.iter().filter_map(|(&layer, record)| Some((record.parent?, layer)));
        (self.children, self.packed) = (parents.collect(), found);
    }

    /// Everything under way ends, and is looked at.
    fn settle(&mut self) {
        self.world.disk.heal();
        for _ in 0..4 {
            self.world.settle();
            self.collect();
            self.world.tick(6000);
        }
        self.world.settle();
        self.collect();
        assert!(self.pending.is_empty(), "{} requests were never answered", self.pending.len());
        assert!(self.asked.is_empty(), "{} commands were never answered", self.asked.len());
        self.look_at_packed();
    }

    fn crash(&mut self) {
        self.faults = self.faults_hit();
        if self.fate.bool() {
            self.kept = self.world.kill();
            self.seen.count(if self.kept { "kill" } else { "kill after a failure" });
            trace!(self, "killed");
        } else {
            self.seen.count("power cut");
            trace!(self, "power cut");
            self.world.power_cut();
            self.kept = false;
        }
        self.faults -= self.world.disk.faults_hit();
        self.look_at_packed();
        self.found_again(false);
    }

    /// A clean stop and start.
    fn reopen(&mut self) {
        self.settle();
        self.seen.count("reopen");
        self.world.stop();
        self.world.settle();
        self.collect();
        self.crash();
    }

    /// What is there after a crash: commands that were not answered may have had their effect or not.
    fn found_again(&mut self, _clean: bool) {
        let now = self.now();
        self.pending.clear();
        self.connected.clear();
        self.failed.clear();
        let doubtful = std::mem::take(&mut self.doubtful);
        for asked in doubtful.into_iter().chain(std::mem::take(&mut self.asked).into_values()) {
            self.find_out(asked, now);
        }
        let volumes: Vec<String> = self.reference.volumes.keys().cloned().collect();
        for name in volumes {
            self.check_volume(&name);
        }
        let names: Vec<_> = self.reference.snapshots.keys().cloned().collect();
        for name in names {
            let text = format!("{}@{}", name.0, name.1);
            assert!(self.world.find_export(&text).is_some(), "snapshot {text} is lost");
        }
        let known = self.reference.volumes.len() + self.reference.snapshots.len();
        assert_eq!(self.world.store.exports().count(), known, "something exists that nobody has made");
    }

    fn exists(&self, name: &str) -> bool {
        self.world.find_export(name).is_some()
    }

    fn find_out(&mut self, asked: Asked, now: u64) {
        let text = |name: &(String, String)| format!("{}@{}", name.0, name.1);
        let had_effect = match &asked {
            Asked::Create { name, .. } => self.exists(name),
            Asked::Grow { name, size } => {
                self.world.find_export(name).is_some_and(|(_, found, _)| found == *size)
            }
            Asked::Rename { to, .. } | Asked::Clone { to, .. } => self.exists(to),
            Asked::DeleteVolume { name } => !self.exists(name),
            Asked::Cut { names, .. } => {
                let found = names.iter().filter(|name| self.exists(&name.to_string())).count();
                assert!(found == 0 || found == names.len(), "half a cut was found");
                found > 0
            }
            Asked::DeleteSnapshot { name } => !self.exists(&text(name)),
            Asked::Rollback { name } => return self.find_out_rollback(&name.clone(), now),
            Asked::Other => false,
        };
        if had_effect {
            let time = if matches!(asked, Asked::Cut { .. }) { NEVER } else { now };
            self.apply(asked, time);
        }
    }

    /// A volume that may have been rolled back: told by what it holds.
    fn find_out_rollback(&mut self, name: &(String, String), now: u64) {
        let Some(content) = self.reference.snapshots.get(name).and_then(|s| s.content.clone()) else {
            return;
        };
        let Some((_, size, _)) = self.world.find_export(&name.0) else { return };
        if cells(size) == content.len() && self.read_volume(&name.0) == content {
            self.reference.volumes.insert(name.0.clone(), Disk::known(content, now));
        }
    }

    fn read_volume(&mut self, name: &str) -> Vec<u64> {
        let (export, size, _) =
            self.world.find_export(name).unwrap_or_else(|| panic!("volume {name} is lost"));
        let length = u32::try_from(size).expect("a small volume");
        let buf = self.world.buffers.take(length as usize);
        self.world.start(export, u32::MAX, 0, length, Command::Read { buf, holes: true });
        self.world.settle();
        let mut replies = self.world.take_replies();
        let reply = replies.pop().expect("a reply");
        assert!(replies.is_empty());
        stamps(&content(reply.outcome.expect("no fault is set")))
    }

    /// After a crash: every cell holds what it may, and that is what it holds from now on.
    fn check_volume(&mut self, name: &str) {
        let found = self.read_volume(name);
        let now = self.now();
        let disk = &self.reference.volumes[name];
        assert_eq!(found.len(), disk.cells.len(), "size of {name}");
        for (at, (cell, stamp)) in disk.cells.iter().zip(&found).enumerate() {
            let allowed = if self.kept { cell.left_behind() } else { cell.survivors() };
            assert!(
                allowed.contains(stamp),
                "{name} after a crash, cell {at}: {stamp}, not one of {allowed:?}"
            );
        }
        self.reference.volumes.insert(name.to_owned(), Disk::known(found, now));
    }

    /// The end of a case: all of it is looked at, then deleted, and then all space is free again.
    fn finish(&mut self) {
        self.settle();
        self.check_all_snapshots();
        self.crash();
        let snapshots: Vec<_> = self.reference.snapshots.keys().cloned().collect();
        for name in &snapshots {
            self.read_snapshot(name);
            self.settle();
        }
        for name in snapshots {
            let control = Control::Release { name: Self::control_name(&name), reason: "test".to_owned() };
            self.put(Asked::Other, control);
            let control = Control::DeleteSnapshot { name: Self::control_name(&name) };
            self.put(Asked::DeleteSnapshot { name }, control);
            self.settle();
        }
        // While their layers are merged, the volumes read as before.
        let volumes: Vec<String> = self.reference.volumes.keys().cloned().collect();
        for name in &volumes {
            self.check_volume(name);
        }
        for name in volumes {
            self.put(Asked::DeleteVolume { name: name.clone() }, Control::DeleteVolume { name });
            self.settle();
        }
        assert_eq!(self.reference.volumes.len() + self.reference.snapshots.len(), 0, "all was deleted");
        self.settle();
        let token = self.world.command(Control::Status);
        let answers = self.world.take_answers();
        let status = answers.into_iter().find(|(found, _)| *found == token).expect("status").1;
        let Ok(Answer::Status(status)) = status else { panic!("{status:?}") };
        assert_eq!(status.used_bytes, 0, "space was not given back: {status:?}");
        let (loaded, _) = load(&self.world.meta.snapshot());
        assert!(loaded.layers.is_empty(), "layers are left: {:?}", loaded.layers);
        self.seen.count("all space back");
        self.seen.count_many("checkpoint used", self.world.checkpoints_used);
        self.seen.count_many("checkpoint out of date", self.world.checkpoints_refused);
    }
}
