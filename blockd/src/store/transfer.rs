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

use std::ops::Range;

use nbd_server::disk::{DiskDone, DiskOp, DiskOpKind, ExportIndex, Progress, ZeroMode, transfer_progress};
use nbd_server::export::{Command, Extent, Io, Payload, Request, RequestId};
use nbd_server::reactor::buffer::Buf;
use nbd_server::wire::Errno;
use smallvec::SmallVec;

use super::commit::Waiter;
use super::copy::Copying;
use super::pool::Extension;
use super::reclaim::{Merge, OWN_WORK};
use super::served::{MapState, is_aligned};
use super::status::Asking;
use super::{DIRTY_RECORDS_LIMIT, DIRTY_RECORDS_MAX, Store};
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

    /// The runs that a range of whole blocks is read from.
    fn runs(&self, export: ExportIndex, range: &Range<u64>) -> SmallVec<[Run; 4]> {
        let map = self.disk(export).map();
        let mut runs = SmallVec::new();
        for (cluster, blocks) in clusters(range) {
            let entry = map.get(cluster);
            for block in (0..crate::units::CLUSTER_BLOCKS).filter(|&block| blocks.has(block)) {
                let place = source(&entry, block).map(|(cluster, block)| {
                    let place = self.pool.place(cluster, block);
                    (place.file, place.offset)
                });
                push_run(&mut runs, place, BLOCK_BYTES as usize);
            }
        }
        runs
    }

    /// Reads runs into a buffer, which is split where they are more than one.
    fn read_runs(&mut self, key: usize, runs: &[Run], mut buf: Buf, holes: bool, io: &mut Io<'_>) -> Pieces {
        let mut pieces = Pieces::new();
        for (part, run) in runs.iter().enumerate() {
            let mut piece = if part + 1 == runs.len() {
                std::mem::replace(&mut buf, io.pool().take(0))
            } else {
                buf.split_to(run.bytes)
            };
            pieces.push(match run.place {
                Some((file, offset)) => {
                    let kind = DiskOpKind::Read { offset, done: 0, buf: piece };
                    self.submit_part(key, part, file, kind, io);
                    Piece::Pending
                }
                None if holes => Piece::Hole(u32::try_from(run.bytes).expect("no longer than a request")),
                None => {
                    piece.fill(0);
                    Piece::Data(piece)
                }
            });
        }
        pieces
    }

    pub(super) fn submit_part(
        &mut self,
        key: usize,
        part: usize,
        file: usize,
        kind: DiskOpKind,
        io: &mut Io<'_>,
    ) {
        let tag = (key as u64) << 32 | part as u64;
        self.jobs[key].pending += 1;
        io.submit(DiskOp { tag, file: self.pool.files()[file].file, kind });
    }

    fn begin_read(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let (export, range) = (job.export, job.range.clone());
        let Task::Read { buf, holes, .. } = &mut job.task else { unreachable!("a read") };
        let (buf, holes) = (buf.take().expect("reads begin once"), *holes);
        let runs = self.runs(export, &range);
        let read = self.read_runs(key, &runs, buf, holes, io);
        if let Task::Read { pieces, .. } = &mut self.jobs[key].task {
            *pieces = read;
        }
        if self.jobs[key].pending == 0 {
            self.parts_ended(key, io);
        }
    }

    fn read_around(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &self.jobs[key];
        let (export, range) = (job.export, whole_blocks(&job.range));
        let runs = self.runs(export, &range);
        let buf = io.pool().take(usize::try_from(range.end - range.start).expect("fits memory"));
        let read = self.read_runs(key, &runs, buf, false, io);
        if let Task::ReadAround { pieces, .. } | Task::Around { pieces, .. } = &mut self.jobs[key].task {
            *pieces = read;
        }
        if self.jobs[key].pending == 0 {
            self.parts_ended(key, io);
        }
    }

    fn read_ahead(&mut self, key: usize, io: &mut Io<'_>) {
        /// More pieces than that are not worth the advice.
        const RUNS_MAX: usize = 64;
        let job = &self.jobs[key];
        let (export, range) = (job.export, whole_blocks(&job.range));
        let runs = self.runs(export, &range);
        let data = runs.iter().filter_map(|run| run.place.map(|place| (place, run.bytes)));
        for (part, ((file, offset), bytes)) in data.take(RUNS_MAX).enumerate() {
            self.submit_part(key, part, file, DiskOpKind::WillNeed { offset, length: bytes as u64 }, io);
        }
        if self.jobs[key].pending == 0 {
            self.end_job(key, Ok(Payload::None), io);
        }
    }

    /// Where each cluster's worth of a write goes, or how many clusters are missing.
    fn find_targets(
        &mut self,
        export: ExportIndex,
        range: &Range<u64>,
    ) -> Result<SmallVec<[Target; 4]>, u64> {
        let disk = self.served[export.0 as usize].as_mut().expect("a job's export exists");
        let mut targets = SmallVec::<[Target; 4]>::new();
        let mut missing = 0;
        for (cluster, blocks) in clusters(range) {
            if let Some(place) = disk.map().owned(cluster, blocks) {
                targets.push(Target { cluster, place, grows: false, learned: Mask::NONE });
                continue;
            }
            let place = disk.own_place(cluster);
            missing += u64::from(place.is_none());
            targets.push(Target { cluster, place: place.unwrap_or(NOWHERE), grows: true, learned: blocks });
        }
        let room = disk.dirty.len() < DIRTY_RECORDS_LIMIT;
        if missing > 0 && (missing > self.pool.free_now() || !room) {
            return Err(missing);
        }
        for target in targets.iter_mut().filter(|target| target.grows) {
            let taken = target.place == NOWHERE;
            if taken {
                target.place = self.pool.take().expect("counted before");
            }
            disk.begin_growing(target.cluster, target.place, taken);
        }
        Ok(targets)
    }

    fn begin_write(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &self.jobs[key];
        let Task::Write { at, buf: Some(buf), .. } = &job.task else { unreachable!("a write with its data") };
        let (export, range) = (job.export, *at..*at + buf.len() as u64);
        let found = self.find_targets(export, &range);
        self.extend_pool(io);
        let Ok(found) = found else { return self.starve(key) };
        let mut runs = SmallVec::<[Run; 4]>::new();
        for (target, (_, blocks)) in found.iter().zip(clusters(&range)) {
            let (end, first) = (16 - blocks.0.leading_zeros(), blocks.0.trailing_zeros());
            let place = self.pool.place(target.place, first);
            push_run(&mut runs, Some((place.file, place.offset)), bytes(end - first));
        }
        let Task::Write { buf, targets, .. } = &mut self.jobs[key].task else { unreachable!("a write") };
        *targets = found;
        let buf = buf.take().expect("looked at above");
        self.disk_mut(export).unsynced = true;
        self.write_runs(key, &runs, buf, io);
    }

    fn write_runs(&mut self, key: usize, runs: &[Run], mut buf: Buf, io: &mut Io<'_>) {
        for (part, run) in runs.iter().enumerate() {
            let (file, offset) = run.place.expect("writes go somewhere");
            let piece = if part + 1 == runs.len() {
                std::mem::replace(&mut buf, io.pool().take(0))
            } else {
                buf.split_to(run.bytes)
            };
            self.commits.wrote(file);
            if let Some(applying) = self.jobs[key].applying {
                self.applying[applying].wrote(file, offset..offset + piece.len() as u64);
            }
            self.submit_part(key, part, file, DiskOpKind::Write { offset, done: 0, buf: piece }, io);
        }
    }

    /// The map learns of a write that has ended.
    fn write_ended(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let (export, error) = (job.export, job.error);
        let Task::Write { targets, fua, .. } = &mut job.task else { unreachable!("a write") };
        let (targets, fua) = (std::mem::take(targets), *fua);
        for target in targets.iter().filter(|target| target.grows) {
            if error.is_none() && !target.learned.is_empty() {
                self.learn(export, target);
            } else {
                self.forget(export, target);
            }
        }
        match error {
            Some(error) => self.end_job(key, Err(error), io),
            None => self.end_change(key, fua, io),
        }
    }

    fn learn(&mut self, export: ExportIndex, target: &Target) {
        self.recent.touch(export);
        let disk = self.disk_mut(export);
        disk.install(target.cluster, target.place, target.learned);
        disk.end_growing(target.cluster, true);
    }

    /// A write has failed, or was overtaken: its blocks stay what they are. A cluster that was taken for it, and that no other write
    /// goes to, is given back.
    fn forget(&mut self, export: ExportIndex, target: &Target) {
        let disk = self.disk_mut(export);
        let failed = disk.failed;
        match disk.end_growing(target.cluster, false) {
            Some((place, false)) => self.pool.give_back(place),
            Some((place, true)) if !failed => self.pool.free_later(place),
            _ => {}
        }
    }

    fn begin_zero(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &self.jobs[key];
        let Task::Zero { keep, .. } = job.task else { unreachable!("a zeroing") };
        let (export, range) = (job.export, job.range.clone());
        let size = self.disk(export).size;
        let end = if range.end == size { size.next_multiple_of(BLOCK_BYTES) } else { range.end };
        let middle = range.start.next_multiple_of(BLOCK_BYTES)..end / BLOCK_BYTES * BLOCK_BYTES;
        if middle.start < middle.end && !self.zero_blocks(export, &middle, keep) {
            self.extend_pool(io);
            return self.starve(key);
        }
        self.jobs[key].pending += 1;
        for edge in edges(&(range.start..end)) {
            self.zero_edge(key, edge, io);
        }
        self.part_ended(key, None, io);
        // While it waited for clusters it kept others from beginning; its parts stand behind those.
        self.admit(export, io);
    }

    /// Writes under way, of which the map has not learned, come before a zeroing that is about to happen: the map must
    /// not learn of those blocks any more. (What lies there when the write ends need not even be its own data: a
    /// write that was answered before the zeroing began may have reached the medium later.)
    fn overtake_writes(&mut self, export: ExportIndex, range: &Range<u64>) {
        for (_, job) in self.jobs.iter_mut().filter(|(_, job)| job.export == export) {
            let Task::Write { targets, .. } = &mut job.task else { continue };
            for target in targets.iter_mut().filter(|target| target.grows) {
                let start = target.cluster.start();
                let zeroed = range.start.max(start)..range.end.min(start + CLUSTER_BYTES);
                if zeroed.start < zeroed.end
                    && let Some((_, blocks)) = clusters(&zeroed).next()
                {
                    target.learned = target.learned.without(blocks);
                }
            }
        }
    }

    /// Whether there are clusters for every cluster of a range that has none of its own.
    fn can_reserve(&self, export: ExportIndex, range: &Range<u64>) -> bool {
        let disk = self.disk(export);
        let missing =
            clusters(range).filter(|&(cluster, _)| disk.own_place(cluster).is_none()).count() as u64;
        missing <= self.pool.free_now()
    }

    /// Makes whole blocks zero. False: not now, for there are no clusters to keep for them.
    fn zero_blocks(&mut self, export: ExportIndex, range: &Range<u64>, keep: bool) -> bool {
        if keep && !self.can_reserve(export, range) {
            return false;
        }
        self.recent.touch(export);
        if !self.disk(export).growing.is_empty() {
            self.overtake_writes(export, range);
        }
        let disk = self.served[export.0 as usize].as_mut().expect("a job's export exists");
        if keep {
            for (cluster, blocks) in clusters(range) {
                let reserve = disk.own_place(cluster).or_else(|| self.pool.take());
                let unused = disk.zero(cluster, blocks, reserve, true);
                debug_assert!(unused.is_none());
                if let Some(growing) = disk.growing.get_mut(&cluster) {
                    (growing.installed, growing.named) = (true, true);
                }
            }
            return true;
        }
        let first = range.start / CLUSTER_BYTES;
        let mapped: Vec<ClusterIndex> =
            disk.map().mapped_from(first).take_while(|cluster| cluster.start() < range.end).collect();
        for cluster in mapped {
            let part = range.start.max(cluster.start())..range.end.min(cluster.start() + CLUSTER_BYTES);
            let (_, blocks) = clusters(&part).next().expect("a part of the range");
            // What the durable records of a volume that has failed name stays theirs.
            if let Some(unused) = disk.zero(cluster, blocks, None, false)
                && !disk.failed
            {
                self.pool.free_later(unused);
            }
        }
        true
    }

    /// Zeroes bytes inside a block, if there is anything to zero.
    fn zero_edge(&mut self, parent: usize, edge: Range<u64>, io: &mut Io<'_>) {
        let export = self.jobs[parent].export;
        let (cluster, blocks) = clusters(&whole_blocks(&edge)).next().expect("a block");
        if self.disk(export).map().get(cluster).visible().and(blocks).is_empty()
            && !self.disk(export).growing.contains_key(&cluster)
        {
            return;
        }
        self.jobs[parent].pending += 1;
        let job = Job::around(export, None, edge, None, false);
        self.add_job(Job { parent: Some(parent), ..job }, io);
    }

    /// A disk operation of a job has ended.
    pub(super) fn transfer_done(&mut self, done: DiskDone, io: &mut Io<'_>) {
        let (key, part) = ((done.op.tag >> 32) as usize, done.op.tag as u32 as usize);
        if matches!(done.op.kind, DiskOpKind::WillNeed { .. }) {
            // Advice that could not be followed is no error of the request.
            return self.part_ended(key, None, io);
        }
        let read = matches!(done.op.kind, DiskOpKind::Read { .. });
        match transfer_progress(done) {
            Progress::Continue(op) => io.submit(op),
            Progress::Failed(error, _) => self.part_ended(key, Some(error), io),
            Progress::Complete(buf) => {
                if read {
                    self.keep_piece(key, part, buf);
                }
                self.part_ended(key, None, io);
            }
        }
    }

    fn keep_piece(&mut self, key: usize, part: usize, buf: Buf) {
        match &mut self.jobs[key].task {
            Task::Read { pieces, .. } | Task::ReadAround { pieces, .. } | Task::Around { pieces, .. } => {
                pieces[part] = Piece::Data(buf);
            }
            Task::Merge(Merge { copying, .. }) | Task::Pack(copying) => copying.keep(part, buf),
            Task::Write { .. } | Task::Zero { .. } | Task::Cache | Task::Status(_) => {
                unreachable!("these do not read")
            }
        }
    }

    fn part_ended(&mut self, key: usize, error: Option<Errno>, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        job.error = job.error.or(error);
        job.pending -= 1;
        if job.pending == 0 {
            self.parts_ended(key, io);
        }
    }

    /// Everything that a job has started has ended: its next stage, or its end.
    fn parts_ended(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        match (&mut job.task, job.error) {
            (Task::Write { .. }, _) => self.write_ended(key, io),
            (Task::Merge(_), _) => self.merge_parts_ended(key, io),
            (Task::Pack(_), _) => self.pack_parts_ended(key, io),
            (_, Some(error)) => self.end_job(key, Err(error), io),
            (Task::Read { pieces, .. }, None) => {
                let payload = payload(std::mem::take(pieces));
                self.end_job(key, Ok(payload), io);
            }
            (Task::ReadAround { .. }, None) => self.read_around_ended(key, io),
            (Task::Around { .. }, None) => self.change_around(key, io),
            (&mut Task::Zero { fua, .. }, None) => self.end_change(key, fua, io),
            (Task::Cache, None) => self.end_job(key, Ok(Payload::None), io),
            (Task::Status(_), None) => unreachable!("a question has no parts"),
        }
    }

    fn read_around_ended(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let skip = (job.range.start % BLOCK_BYTES) as usize;
        let Task::ReadAround { user, pieces } = &mut job.task else { unreachable!("a read") };
        let blocks = gather(std::mem::take(pieces), io);
        let mut user = std::mem::replace(user, io.pool().take(0));
        let length = user.len();
        user.copy_from_slice(&blocks[skip..skip + length]);
        self.end_job(key, Ok(Payload::Data(user)), io);
    }

    /// The blocks around have been read: change the bytes and write them.
    fn change_around(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let outer = whole_blocks(&job.range);
        let skip = (job.range.start - outer.start) as usize;
        let length = (job.range.end - job.range.start) as usize;
        let Task::Around { payload, fua, pieces } = &mut job.task else { unreachable!("a change") };
        let mut blocks = gather(std::mem::take(pieces), io);
        match payload.take() {
            Some(payload) => blocks[skip..skip + length].copy_from_slice(&payload),
            None => blocks[skip..skip + length].fill(0),
        }
        let fua = *fua;
        job.task = Task::Write { buf: Some(blocks), at: outer.start, fua, targets: SmallVec::new() };
        self.begin_write(key, io);
    }

    /// A change is on the medium, and in the map: have it mirrored, if that is wanted, before it is answered.
    fn end_change(&mut self, key: usize, fua: bool, io: &mut Io<'_>) {
        let export = self.jobs[key].export;
        self.commits.wanted |= self.disk(export).dirty.len() >= DIRTY_RECORDS_MAX;
        if !self.park(key, fua, io) {
            self.end_mirrored_change(key, fua, io);
        }
    }

    /// A change is wherever it has to be: answer, or make it durable first.
    pub(super) fn end_mirrored_change(&mut self, key: usize, fua: bool, io: &mut Io<'_>) {
        let export = self.jobs[key].export;
        let job = &mut self.jobs[key];
        match job.client.filter(|_| fua) {
            Some(id) => {
                job.client = None;
                self.end_job(key, Ok(Payload::None), io);
                self.make_durable(Waiter::Request { id, export }, io);
            }
            None => self.end_job(key, Ok(Payload::None), io),
        }
    }

    /// The end of a job: whoever waits for it goes on.
    pub(super) fn end_job(&mut self, key: usize, outcome: Result<Payload, Errno>, io: &mut Io<'_>) {
        let job = self.jobs.remove(key);
        if let Some(era) = job.era {
            self.pool.operation_ended(era);
        }
        self.counters.errors += u64::from(outcome.is_err());
        let error = outcome.as_ref().err().copied();
        let read = match job.client {
            Some(id) => {
                io.reply(id, outcome);
                None
            }
            None => job.mirroring.map(|batch| (batch, outcome)),
        };
        let disk = self.disk_mut(job.export);
        disk.jobs -= 1;
        disk.merges -= u32::from(job.is_merge());
        disk.changing -= u32::from(job.changes() && job.active);
        disk.exclusive -= u32::from(job.exclusive && job.active);
        let waiting = !disk.waiting.is_empty() && job.changes();
        disk.drop_idle_view();
        if let Some(parent) = job.parent {
            self.part_ended(parent, error, io);
        }
        if let Some(applying) = job.applying {
            self.applied(applying, error, io);
        }
        if let Some((batch, outcome)) = read {
            self.mirror_read(job.export, batch, job.range.start, outcome);
        }
        if waiting {
            self.admit(job.export, io);
        }
    }

    /// A job waits for clusters. It touches none meanwhile: what was freed waits for all operations that began before,
    /// and would wait for this one, which waits for it.
    fn starve(&mut self, key: usize) {
        if let Some(era) = self.jobs[key].era.take() {
            self.pool.operation_ended(era);
        }
        self.starved.push_back(key);
    }

    /// Jobs that wait for clusters go on, or fail when there will be none.
    pub(super) fn feed_starved(&mut self, io: &mut Io<'_>) {
        while let Some(key) = self.starved.pop_front() {
            let others = self.starved.len();
            self.jobs[key].era = Some(self.pool.operation_began());
            if matches!(self.jobs[key].task, Task::Zero { .. }) {
                self.begin_zero(key, io);
            } else {
                self.begin_write(key, io);
            }
            if self.starved.len() > others && self.starved.back() == Some(&key) {
                // In order of arrival: the others wait behind it.
                self.starved.pop_back();
                self.starved.push_front(key);
                break;
            }
        }
        if self.starved.is_empty() || self.may_get_clusters(io) {
            return;
        }
        while let Some(key) = self.starved.pop_front() {
            self.end_job(key, Err(Errno::NoSpace), io);
        }
    }

    /// Whether there is hope for more free clusters; asks for what brings them.
    fn may_get_clusters(&mut self, io: &mut Io<'_>) -> bool {
        self.extend_pool(io);
        let dirty = self.served.iter().flatten().any(|disk| disk.dirty.len() >= DIRTY_RECORDS_LIMIT);
        if self.pool.has_freed() || dirty {
            self.commits.wanted = true;
        }
        // What packing has taken it gives back, or frees more for it.
        let waiting = self.pool.pending_free() > 0 || dirty || self.pack.has_taken();
        self.extending.is_some() || (waiting && !self.commits.meta_failed)
    }

    /// Has more of the pool's space allocated, if few clusters are left.
    pub(super) fn extend_pool(&mut self, io: &mut Io<'_>) {
        if self.extending.is_some() || self.pool.full {
            return;
        }
        let Some(extension) = self.pool.wants_extension(self.room) else { return };
        let (offset, length) = (u64::from(extension.clusters.start) * CLUSTER_BYTES, extension.bytes());
        let kind = DiskOpKind::Zero { offset, length, mode: ZeroMode::KeepAllocated };
        io.submit(DiskOp { tag: TAG_EXTEND, file: self.pool.files()[extension.file].file, kind });
        self.room -= length;
        self.extending = Some(extension);
    }

    pub(super) fn extended(&mut self, result: Result<usize, Errno>, _io: &mut Io<'_>) {
        let Some(Extension { file, clusters }) = self.extending.take() else { return };
        match result {
            // Without a way to allocate ahead the space comes with the writes.
            Ok(_) | Err(Errno::NotSup) => self.pool.extended(file, clusters.end),
            Err(error) => {
                tracing::warn!(?error, "the pool cannot grow further");
                self.pool.full = true;
            }
        }
    }
}

/// The parts of a range that are not whole blocks: at most one at each end.
fn edges(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *range;
    let (first, last) = (start.next_multiple_of(BLOCK_BYTES), end / BLOCK_BYTES * BLOCK_BYTES);
    let parts = if first > last { [start..end, end..end] } else { [start..first, last..end] };
    parts.into_iter().filter(|part| part.start < part.end)
}

fn payload(mut pieces: Pieces) -> Payload {
    if let [Piece::Data(_)] = pieces[..]
        && let Some(Piece::Data(buf)) = pieces.pop()
    {
        return Payload::Data(buf);
    }
    let extent = |piece| match piece {
        Piece::Data(buf) => Extent::Data(buf),
        Piece::Hole(bytes) => Extent::Hole(bytes),
        Piece::Pending => unreachable!("every part has ended"),
    };
    Payload::Extents(pieces.into_iter().map(extent).collect())
}

/// The pieces of a read, side by side in one buffer.
fn gather(mut pieces: Pieces, io: &Io<'_>) -> Buf {
    if let [Piece::Data(_)] = pieces[..]
        && let Some(Piece::Data(buf)) = pieces.pop()
    {
        return buf;
    }
    let parts = pieces.iter().map(|piece| match piece {
        Piece::Data(buf) => &buf[..],
        Piece::Hole(_) | Piece::Pending => unreachable!("read without holes, to the end"),
    });
    let mut all = io.pool().take(parts.clone().map(<[u8]>::len).sum());
    let mut at = 0;
    for part in parts {
        all[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    all
}
