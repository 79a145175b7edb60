//! Reads, writes and zeroes.
//!
//! **Reads** take each block from where the map says. A request that lies in one piece of the pool is one disk
//! operation on the request's own buffer; otherwise the buffer is split.
//!
//! **Writes** of whole blocks go in place where the open layer holds the blocks already: no record changes.
//! Elsewhere they go to a cluster of the open layer's own, taken now if there is none yet, and the map learns of
//! them when they have ended: until then the old blocks are read, and a crash leaves the old blocks. Other bytes
//! are written by reading their blocks, changing them, and writing them back; such jobs are *exclusive*: nothing that
//! changes the same blocks may be under way with them.
//!
//! **Zeroes and trims** of whole blocks are changes of the map only. A cluster without any data left is freed, unless
//! writes are under way to it that the map has not learned of: those keep it. A write in place that was under way
//! ends in a cluster that nobody names: it counts as having come first.
//!
//! Rooms: `reads`, `writes`, `zeroes`; `ends` (what becomes of operations and jobs), `room` (jobs that wait for it); here what a
//! job is, and how one begins.

mod ends;
mod reads;
mod room;
mod writes;
mod zeroes;

use std::ops::Range;

use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, Io, Request, RequestId};
use nbd_server::reactor::buffer::Buf;
use nbd_server::wire::Errno;
use smallvec::SmallVec;

use super::Store;
use super::copy::Copying;
use super::reclaim::{Merge, OWN_WORK};
use super::served::{MapState, is_aligned};
use super::status::Asking;
use crate::control::replication::Patch;
use crate::map::Entry;
use crate::units::{BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex, Mask, PoolCluster};

/// Tag of the operation that allocates more of a pool file's space.
pub(super) const TAG_EXTEND: u64 = u64::MAX - 1;

/// A request, or a part of the store's own work, until its end.
pub(super) struct Job {
    pub(super) export: ExportIndex,
    /// Who is to be answered.
    pub(super) client: Option<RequestId>,
    /// The job that this one is a part of.
    parent: Option<usize>,
    /// The `Apply` that this one is a part of.
    applying: Option<usize>,
    /// The batch of a mirror that this one is a part of.
    mirroring: Option<u64>,
    /// Bytes of the export.
    pub(super) range: Range<u64>,
    pub(super) task: Task,
    /// Disk operations, or parts, that have not ended.
    pub(super) pending: u32,
    error: Option<Errno>,
    pub(super) era: Option<u64>,
    active: bool,
    exclusive: bool,
}

/// What a job does.
pub(super) enum Task {
    /// Read whole blocks.
    Read { buf: Option<Buf>, holes: bool, pieces: Pieces },
    /// Read blocks around the bytes asked for.
    ReadAround { user: Buf, pieces: Pieces },
    /// Write whole blocks, from `at` on.
    Write { buf: Option<Buf>, at: u64, fua: bool, targets: SmallVec<[Target; 4]> },
    /// Change bytes inside blocks: first the blocks are read. Without payload: to zero.
    Around { payload: Option<Buf>, fua: bool, pieces: Pieces },
    /// Make zero.
    Zero { fua: bool, keep: bool },
    /// Read ahead.
    Cache,
    /// Tell what is known.
    Status(Asking),
    /// Move a record of a layer that is merged into its child.
    Merge(Merge),
    /// Copy sparse records' blocks into one cluster.
    Pack(Copying),
}

type Pieces = SmallVec<[Piece; 1]>;

/// A part of a read.
pub(super) enum Piece {
    /// On its way.
    Pending,
    Data(Buf),
    Hole(u32),
}

/// Where one cluster's worth of a write goes.
#[derive(Clone, Copy)]
pub(super) struct Target {
    cluster: ClusterIndex,
    place: PoolCluster,
    /// The map did not know all the blocks there when the write began.
    grows: bool,
    /// Blocks that the map is to learn of.
    learned: Mask,
    /// The cluster was taken for this write: no other can be under way to it.
    taken: bool,
    /// Blocks that are written.
    blocks: Mask,
    /// Those of them that the intent log watches.
    watched: Mask,
}

impl Target {
    /// The map knows all the blocks there.
    fn in_place(cluster: ClusterIndex, place: PoolCluster, blocks: Mask) -> Self {
        let (grows, taken, learned, watched) = (false, false, Mask::NONE, Mask::NONE);
        Self { cluster, place, grows, taken, learned, blocks, watched }
    }

    /// It does not; without a place a cluster is to be taken.
    fn growing(cluster: ClusterIndex, place: Option<PoolCluster>, blocks: Mask) -> Self {
        let (taken, place) = (place.is_none(), place.unwrap_or(NOWHERE));
        Self { cluster, place, grows: true, taken, learned: blocks, blocks, watched: Mask::NONE }
    }
}

/// A place that is still to be found: cluster 0 is a superblock.
pub(super) const NOWHERE: PoolCluster = PoolCluster(0);

impl Job {
    pub(super) fn error(&self) -> Option<Errno> {
        self.error
    }

    fn is_merge(&self) -> bool {
        matches!(self.task, Task::Merge(_))
    }

    pub(super) fn changes(&self) -> bool {
        !matches!(self.task, Task::Read { .. } | Task::ReadAround { .. } | Task::Cache | Task::Status(_))
    }

    /// Whether this job must not begin while the other one is there. A zeroing that has begun has no operations
    /// of its own, only parts, which stand for themselves; unless it waits for clusters to reserve, and has all of
    /// its changes of the map still to make.
    fn excluded_by(&self, other: &Self) -> bool {
        let (mine, others) = (whole_blocks(&self.range), whole_blocks(&other.range));
        let overlap = mine.start < others.end && others.start < mine.end;
        let idle = other.active && other.pending > 0 && matches!(other.task, Task::Zero { .. });
        overlap && (self.exclusive || other.exclusive) && other.changes() && !idle
    }

    /// A job of the store's own on one cluster, which nothing may overlap.
    pub(super) fn merge(export: ExportIndex, cluster: ClusterIndex, merge: Merge) -> Self {
        let range = cluster.start()..cluster.start() + CLUSTER_BYTES;
        Self { exclusive: true, ..Self::new(export, None, range, Task::Merge(merge)) }
    }

    /// A job of the store's own on what no client can write to.
    pub(super) fn pack(copying: Copying) -> Self {
        Self::new(OWN_WORK, None, 0..0, Task::Pack(copying))
    }

    fn new(export: ExportIndex, client: Option<RequestId>, range: Range<u64>, task: Task) -> Self {
        Self {
            export,
            client,
            parent: None,
            applying: None,
            mirroring: None,
            range,
            task,
            pending: 0,
            error: None,
            era: None,
            active: false,
            exclusive: false,
        }
    }

    /// Whole blocks are read for a mirror.
    pub(super) fn mirrored(export: ExportIndex, range: Range<u64>, buf: Buf, batch: u64) -> Self {
        let task = Task::Read { buf: Some(buf), holes: true, pieces: Pieces::new() };
        Self { mirroring: Some(batch), ..Self::new(export, None, range, task) }
    }

    /// Bytes inside blocks are changed, and nothing else may change those blocks meanwhile.
    fn around(
        export: ExportIndex,
        client: Option<RequestId>,
        range: Range<u64>,
        payload: Option<Buf>,
        fua: bool,
    ) -> Self {
        let task = Task::Around { payload, fua, pieces: Pieces::new() };
        Self { exclusive: true, ..Self::new(export, client, range, task) }
    }
}

/// The smallest range of whole blocks around a range.
pub(super) fn whole_blocks(range: &Range<u64>) -> Range<u64> {
    range.start / BLOCK_BYTES * BLOCK_BYTES..range.end.next_multiple_of(BLOCK_BYTES)
}

/// A range by clusters: which, and which of its blocks. The range consists of whole blocks.
pub(super) fn clusters(range: &Range<u64>) -> impl Iterator<Item = (ClusterIndex, Mask)> + use<> {
    let Range { start, end } = *range;
    let last = if start < end { (end - 1) / CLUSTER_BYTES + 1 } else { 0 };
    (start / CLUSTER_BYTES..last).map(move |index| {
        let cluster = ClusterIndex(u32::try_from(index).expect("a cluster of a volume"));
        let block = |at: u64| ((at - cluster.start()) / BLOCK_BYTES) as u32;
        let from = block(start.max(cluster.start()));
        let to = block(end.min(cluster.start() + CLUSTER_BYTES));
        (cluster, Mask::of(from..to))
    })
}

fn bytes(blocks: u32) -> usize {
    blocks as usize * BLOCK_BYTES as usize
}

/// A run of blocks that lie side by side in one file, or that are all zero.
struct Run {
    place: Option<(usize, u64)>,
    bytes: usize,
}

/// Adds a piece to the runs, to the last one if it goes on there.
fn push_run(runs: &mut SmallVec<[Run; 4]>, place: Option<(usize, u64)>, bytes: usize) {
    if let Some(last) = runs.last_mut() {
        let goes_on = match (last.place, place) {
            (Some((file, offset)), Some((next_file, next))) => {
                file == next_file && offset + last.bytes as u64 == next
            }
            (None, None) => true,
            _ => false,
        };
        if goes_on {
            last.bytes += bytes;
            return;
        }
    }
    runs.push(Run { place, bytes });
}

/// Where a block is read from.
fn source(entry: &Entry, block: u32) -> Option<(PoolCluster, u32)> {
    if let Some(head) = entry.head
        && head.data.has(block)
    {
        return Some((head.cluster.expect("data lie somewhere"), block));
    }
    let source = entry.older.iter().find(|source| source.shown.has(block))?;
    Some((source.cluster, source.place(block)))
}

impl Store {
    /// Makes a job of a request.
    pub(super) fn begin_request(&mut self, export: ExportIndex, request: Request, io: &mut Io<'_>) {
        let Request { id, offset, length, command } = request;
        let range = offset..offset + u64::from(length);
        self.count_request(&command, length);
        self.throttle.request_came();
        let aligned = is_aligned(offset, length);
        let new = |task| Job::new(export, Some(id), range.clone(), task);
        let job = match command {
            Command::Read { buf, holes } if aligned => {
                new(Task::Read { buf: Some(buf), holes, pieces: Pieces::new() })
            }
            Command::Read { buf, .. } => new(Task::ReadAround { user: buf, pieces: Pieces::new() }),
            Command::Write { buf, fua } if aligned => {
                new(Task::Write { buf: Some(buf), at: offset, fua, targets: SmallVec::new() })
            }
            Command::Write { buf, fua } => Job::around(export, Some(id), range.clone(), Some(buf), fua),
            Command::Flush => return self.flush(export, id, io),
            Command::Trim { fua } => new(Task::Zero { fua, keep: false }),
            Command::WriteZeroes { fua, no_hole, .. } => new(Task::Zero { fua, keep: no_hole }),
            Command::Cache => new(Task::Cache),
            Command::BlockStatus { contexts, one } => new(Task::Status(Asking::new(contexts, one))),
        };
        self.add_job(job, io);
    }

    /// Makes a job of a part of what another host sends.
    pub(super) fn apply_patch(
        &mut self,
        export: ExportIndex,
        applying: usize,
        patch: Patch,
        io: &mut Io<'_>,
    ) {
        let range = patch.range().expect("patches are checked");
        let task = match patch {
            Patch::Zero { .. } => Task::Zero { fua: false, keep: false },
            Patch::Data { offset, bytes } => {
                let mut buf = io.pool().take(bytes.len());
                buf.copy_from_slice(&bytes);
                if !is_aligned(offset, u32::try_from(bytes.len()).expect("a patch is small")) {
                    let job = Job::around(export, None, range, Some(buf), false);
                    return self.add_job(Job { applying: Some(applying), ..job }, io);
                }
                Task::Write { buf: Some(buf), at: offset, fua: false, targets: SmallVec::new() }
            }
        };
        self.add_job(Job { applying: Some(applying), ..Job::new(export, None, range, task) }, io);
    }

    fn count_request(&mut self, command: &Command, length: u32) {
        let counters = &mut self.counters;
        match command {
            Command::Read { .. } => {
                counters.reads += 1;
                counters.read_bytes += u64::from(length);
            }
            Command::Write { .. } => {
                counters.writes += 1;
                counters.written_bytes += u64::from(length);
            }
            Command::Trim { .. } | Command::WriteZeroes { .. } => counters.zeroes += 1,
            Command::Flush => counters.flushes += 1,
            Command::Cache | Command::BlockStatus { .. } => {}
        }
    }

    /// Starts a job, now or when nothing is in its way any more.
    pub(super) fn add_job(&mut self, job: Job, io: &mut Io<'_>) {
        let export = job.export;
        let key = self.jobs.insert(job);
        let merge = self.jobs[key].is_merge();
        let disk = self.disk_mut(export);
        disk.jobs += 1;
        disk.merges += u32::from(merge);
        if matches!(disk.map, MapState::Absent) {
            self.load_map(export);
        }
        let position = self.disk(export).waiting.len();
        if self.must_wait(key, position) {
            self.disk_mut(export).waiting.push_back(key);
        } else {
            self.begin_job(key, io);
        }
    }

    /// Whether a job has to wait, with those before `position` in the queue ahead of it.
    pub(super) fn must_wait(&self, key: usize, position: usize) -> bool {
        let job = &self.jobs[key];
        let disk = self.disk(job.export);
        match disk.map {
            MapState::Absent | MapState::Loading => return true,
            MapState::Damaged => return false,
            MapState::Loaded(_) => {}
        }
        if !job.changes() {
            return false;
        }
        // A cut waits for jobs that have begun, their parts among them, and for moves of records. So these neither
        // wait for the cut nor for jobs that do.
        // Nor do they wait for a move, which a cut ends; clients do.
        let frozen = disk.frozen_until.is_some();
        let held = disk.holds > 0 || frozen;
        if disk.holds > 0 && job.parent.is_none() && !job.is_merge() || frozen && job.client.is_some() {
            return true;
        }
        let mut ahead = disk.waiting.iter().take(position).map(|&other| &self.jobs[other]);
        if !held && ahead.any(|other| job.excluded_by(other)) {
            return true;
        }
        let look = job.exclusive || disk.exclusive > 0;
        let mut others = self.jobs.iter().filter(|(other, _)| *other != key).map(|(_, other)| other);
        look && others.any(|other| other.active && other.export == job.export && job.excluded_by(other))
    }

    /// Nothing is in its way: it begins.
    pub(super) fn begin_job(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        job.active = true;
        job.era = Some(self.pool.operation_began());
        let (export, changes, exclusive) = (job.export, job.changes(), job.exclusive);
        let disk = self.disk_mut(export);
        disk.changing += u32::from(changes);
        disk.exclusive += u32::from(exclusive);
        if matches!(disk.map, MapState::Damaged) {
            return self.end_job(key, Err(Errno::Io), io);
        }
        match self.jobs[key].task {
            Task::Read { .. } => self.begin_read(key, io),
            Task::ReadAround { .. } | Task::Around { .. } => self.read_around(key, io),
            Task::Write { .. } => self.begin_write(key, io),
            Task::Zero { .. } => self.begin_zero(key, io),
            Task::Cache => self.read_ahead(key, io),
            Task::Status(_) => self.begin_status(key, io),
            Task::Merge(_) => self.begin_merge(key, io),
            Task::Pack(_) => self.read_copied(key, io),
        }
    }
}
