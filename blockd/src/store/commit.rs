//! Group commit: what is durable when (docs/on-disk-format.md, "Order of writes").
//!
//! ```text
//!  Idle ──wanted──► Syncing(n files) ──all synced──► Batching ──durable──► Idle: replies
//!   │                 ▲  │                │ no batch               │ failed
//!   └─► Logging ──────┘  │ a sync failed  └──────► Idle: replies   └──► nothing is committed any more
//!       a frame          └──► what is not in doubt is taken up again by the next commit; the rest gets EIO
//! ```
//!
//! One commit is under way; whoever asks meanwhile shares the next one. A commit takes the changed records *as
//! they are when it begins*: writes that end while it syncs are not covered by that sync, so their records must not
//! be in its batch. A write whose record did not change is covered by the sync alone; if there is nothing to record,
//! there is no batch. If there are map records only, they are synced with the data, in a frame of the intent log
//! ([`super::intents`]), and go into a later batch.
//!
//! **A failed sync is final** for every volume that had written since the last good one: Linux may have dropped
//! their pages, and no later sync would tell. Nothing of theirs is committed any more, and FLUSH and FUA fail.
//! **A failed batch is final** for all: whether it is durable is not known.

use std::collections::{BTreeMap, BTreeSet};

use nbd_server::disk::{DiskDone, DiskOp, DiskOpKind, ExportIndex};
use nbd_server::export::{Io, Payload, RequestId};
use nbd_server::wire::Errno;

use super::served::Subject;
use super::{Store, TAG_COMMIT, Token};
use crate::catalog::format::Change;
use crate::catalog::meta::{MetaError, MetaOp};
use crate::control::{Answer, ControlError, ErrorKind};
use crate::units::{LayerId, VolumeId};

/// Tag of syncs; the operation tells the file.
pub(super) const TAG_SYNC: u64 = u64::MAX;

/// Who waits for a commit.
pub(super) enum Waiter {
    /// A FLUSH, or a request with FUA.
    Request { id: RequestId, export: ExportIndex },
    /// Nobody: a step of the background work, which goes on when the commit has ended.
    Reclaim,
    /// The same, of packing.
    Pack,
}

/// Changes of the catalog that belong together, and the command that asked for them.
pub(super) struct Bundle {
    pub(super) changes: Vec<Change>,
    /// Volumes whose data the changes name: if their sync fails, the changes are void.
    pub(super) volumes: Vec<VolumeId>,
    pub(super) token: Option<Token>,
    /// What it is answered.
    pub(super) answer: Answer,
    /// Exports that exist for clients once the bundle is durable.
    pub(super) publishes: Vec<ExportIndex>,
    /// Volumes whose clients' changes go on once it is.
    pub(super) thaws: Vec<VolumeId>,
    /// Layers whose records are complete once it is.
    pub(super) settles: Vec<LayerId>,
}

impl Bundle {
    pub(super) fn new(changes: Vec<Change>, volumes: Vec<VolumeId>) -> Self {
        Self {
            changes,
            volumes,
            token: None,
            answer: Answer::Done,
            publishes: Vec::new(),
            thaws: Vec::new(),
            settles: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    /// A frame is being written.
    Logging,
    /// So many files are still being synced.
    Syncing(usize),
    Batching,
}

/// How the commit under way makes its records durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It has none: the sync is all.
    Sync,
    /// In a frame of the intent log.
    Frame,
    /// In a batch of the metadata store, with those of all frames before.
    Batch,
}

/// See the module.
pub(super) struct Commits {
    state: State,
    kind: Kind,
    /// The number of the last durable batch.
    commit: u64,
    /// Somebody waits, or there is enough to commit.
    pub(super) wanted: bool,
    /// The next commit goes to the metadata store, whatever a frame could do.
    batch_wanted: bool,
    next: Vec<Waiter>,
    next_bundles: Vec<Bundle>,
    /// So many of them, from the first on, are in the recent log.
    told: usize,
    covered: Vec<Waiter>,
    covered_bundles: Vec<Bundle>,
    /// Records of the commit under way.
    records: Vec<Change>,
    sync_failed: bool,
    /// By pool file: written since its last sync began.
    unsynced: Vec<bool>,
    /// Layers some of whose records are still to be committed, by so many bundles.
    unsettled: BTreeMap<LayerId, u32>,
    /// Some have become complete, or never will, since that was last asked: maps may wait for them.
    pub(super) settled: bool,
    /// A batch has failed: nothing is committed any more.
    pub(super) meta_failed: bool,
    pub(super) durable_count: u64,
    pub(super) syncs: u64,
}

impl Commits {
    pub(super) fn new(commit: u64) -> Self {
        Self {
            state: State::Idle,
            kind: Kind::Sync,
            commit,
            wanted: false,
            batch_wanted: false,
            next: Vec::new(),
            next_bundles: Vec::new(),
            told: 0,
            covered: Vec::new(),
            covered_bundles: Vec::new(),
            records: Vec::new(),
            sync_failed: false,
            unsynced: Vec::new(),
            unsettled: BTreeMap::new(),
            settled: false,
            meta_failed: false,
            durable_count: 0,
            syncs: 0,
        }
    }

    /// Something is submitted to a file.
    pub(super) fn wrote(&mut self, file: usize) {
        if self.unsynced.len() <= file {
            self.unsynced.resize(file + 1, false);
        }
        self.unsynced[file] = true;
    }

    /// A commit is under way, or wanted.
    pub(super) fn busy(&self) -> bool {
        self.state != State::Idle || (self.wanted && !self.meta_failed)
    }

    pub(super) fn last(&self) -> u64 {
        self.commit
    }

    /// Changes that go with the next commit, whenever that is.
    pub(super) fn add_bundle(&mut self, bundle: Bundle) {
        for &layer in &bundle.settles {
            *self.unsettled.entry(layer).or_default() += 1;
        }
        self.next_bundles.push(bundle);
    }

    /// Adds the changes of bundles that have come since the last call.
    pub(super) fn untold(&mut self, changes: &mut Vec<Change>) {
        let untold = self.next_bundles[self.told..].iter();
        changes.extend(untold.flat_map(|bundle| &bundle.changes).cloned());
        self.told = self.next_bundles.len();
    }

    /// Whether the metadata store lacks some of a layer's records.
    pub(super) fn is_unsettled(&self, layer: LayerId) -> bool {
        self.unsettled.contains_key(&layer)
    }

    fn settle(&mut self, bundle: &Bundle) {
        self.settled |= !bundle.settles.is_empty();
        for layer in &bundle.settles {
            if let Some(bundles) = self.unsettled.get_mut(layer) {
                *bundles -= 1;
                if *bundles == 0 {
                    self.unsettled.remove(layer);
                }
            }
        }
    }

    /// The next commit begins as soon as it can, and goes to the metadata store.
    pub(super) fn want_batch(&mut self) {
        (self.wanted, self.batch_wanted) = (true, true);
    }

    /// Clients' requests that wait for a commit.
    pub(super) fn requests(&self) -> u64 {
        let waiters = self.next.iter().chain(&self.covered);
        waiters.filter(|waiter| matches!(waiter, Waiter::Request { .. })).count() as u64
    }

    /// Somebody waits for the next commit. Background work goes on from what the metadata store holds.
    pub(super) fn add_waiter(&mut self, waiter: Waiter) {
        self.batch_wanted |= !matches!(waiter, Waiter::Request { .. });
        self.next.push(waiter);
        self.wanted = true;
    }
}

impl Store {
    /// Whether any record was changed that the metadata store lacks.
    pub(super) fn has_uncommitted(&self) -> bool {
        let dirty = |disk: &super::Served| !disk.failed && !disk.dirty.is_empty();
        let waiting = !self.commits.next_bundles.is_empty() || !self.intents.records.is_empty();
        waiting || self.served.iter().flatten().any(dirty)
    }

    /// Whether anything was written that is not durable.
    pub(super) fn has_unsynced(&self) -> bool {
        self.served.iter().flatten().any(|disk| !disk.failed && disk.unsynced)
    }

    pub(super) fn dirty_records(&self) -> usize {
        self.served.iter().flatten().map(|disk| disk.dirty.len()).sum()
    }

    pub(super) fn flush(&mut self, export: ExportIndex, id: RequestId, io: &mut Io<'_>) {
        self.make_durable(Waiter::Request { id, export }, io);
    }

    /// Whoever waits is told when everything that has ended so far is durable.
    pub(super) fn make_durable(&mut self, waiter: Waiter, io: &mut Io<'_>) {
        if let Waiter::Request { id, export } = waiter {
            self.throttle.request_left();
            if self.commits.meta_failed || self.disk(export).failed {
                return io.reply(id, Err(Errno::Io));
            }
        }
        self.commits.add_waiter(waiter);
        self.start_commit(io);
    }

    /// Changes of the catalog that somebody waits for.
    pub(super) fn commit_bundle(&mut self, bundle: Bundle) {
        self.commits.add_bundle(bundle);
        self.commits.want_batch();
    }

    /// Begins a commit, if one is wanted and none is under way.
    pub(super) fn start_commit(&mut self, io: &mut Io<'_>) {
        if self.commits.state != State::Idle || self.commits.meta_failed {
            return;
        }
        if !self.commits.wanted {
            return;
        }
        self.append_recent();
        let batch = self.needs_batch();
        let commits = &mut self.commits;
        (commits.wanted, commits.batch_wanted, commits.told) = (false, false, 0);
        // Empty here, and it keeps its memory: no allocation at steady state.
        std::mem::swap(&mut commits.covered, &mut commits.next);
        let bundles = std::mem::take(&mut commits.next_bundles);
        self.commits.covered_bundles = self.sound_bundles(bundles);
        self.take_records();
        self.pool.begin_commit();
        if !batch && self.commits.records.is_empty() && !self.intents.holds_writes() {
            self.commits.kind = Kind::Sync;
            return self.sync_files(io);
        }
        let records = std::mem::take(&mut self.commits.records);
        let logged = !batch && self.log_records(&records, io);
        self.commits.records = records;
        if logged {
            (self.commits.kind, self.commits.state) = (Kind::Frame, State::Logging);
            return;
        }
        self.begin_batch();
        self.sync_files(io);
    }

    /// What only the metadata store can take: changes of the catalog, and what background work waits for.
    fn needs_batch(&self) -> bool {
        let commits = &self.commits;
        commits.batch_wanted || !commits.next_bundles.is_empty() || !self.intents.can_log()
    }

    fn begin_batch(&mut self) {
        self.commits.kind = Kind::Batch;
        self.intents.begin_commit();
        if self.has_batch() {
            self.recent.begin_commit();
        }
    }

    /// Nothing of the commit under way has happened: it begins anew, as a batch.
    pub(super) fn put_off_commit(&mut self, io: &mut Io<'_>) {
        self.commits.state = State::Idle;
        self.pool.put_off_commit();
        self.void_records();
        self.void_bundles();
        let commits = &mut self.commits;
        commits.covered.append(&mut commits.next);
        std::mem::swap(&mut commits.covered, &mut commits.next);
        commits.want_batch();
        self.start_commit(io);
    }

    fn take_records(&mut self) {
        let mut records = Vec::new();
        for disk in self.served.iter_mut().flatten().filter(|disk| !disk.failed) {
            if !disk.dirty.is_empty() {
                records.extend(disk.take_dirty());
            }
            disk.syncing |= disk.unsynced;
            // A write under way ends after this sync has begun, and needs the next one.
            disk.unsynced = disk.changing > 0;
        }
        self.commits.records = records;
    }

    /// Whether the commit that has begun has anything to record.
    fn has_batch(&self) -> bool {
        let bundles = &self.commits.covered_bundles;
        let records = !self.commits.records.is_empty() || !self.intents.records.is_empty();
        records || bundles.iter().any(|bundle| !bundle.changes.is_empty())
    }

    pub(super) fn sync_files(&mut self, io: &mut Io<'_>) {
        let mut files = 0;
        for file in 0..self.commits.unsynced.len() {
            if self.commits.unsynced[file] {
                files += 1;
                self.commits.unsynced[file] = self.writes_under_way();
                let file = self.pool.files()[file].file;
                io.submit(DiskOp { tag: TAG_SYNC, file, kind: DiskOpKind::Sync });
            }
        }
        self.commits.syncs += files as u64;
        self.commits.sync_failed = false;
        self.commits.state = State::Syncing(files);
        if files == 0 {
            self.files_synced(io);
        }
    }

    fn writes_under_way(&self) -> bool {
        self.served.iter().flatten().any(|disk| disk.changing > 0)
    }

    pub(super) fn sync_done(&mut self, done: &DiskDone, io: &mut Io<'_>) {
        let State::Syncing(left) = self.commits.state else { unreachable!("a sync ends while syncing") };
        if done.result.is_err() {
            // At once: a kill may come before the other files' syncs have ended.
            self.recent.abandon("a sync of the pool failed");
            self.commits.sync_failed = true;
        }
        self.commits.state = State::Syncing(left - 1);
        if left > 1 {
            return;
        }
        if self.commits.sync_failed {
            self.sync_failed(io);
        } else {
            for disk in self.served.iter_mut().flatten() {
                disk.syncing = false;
            }
            self.files_synced(io);
        }
    }

    fn files_synced(&mut self, io: &mut Io<'_>) {
        match self.commits.kind {
            Kind::Sync => self.commit_ended(io),
            Kind::Frame => {
                let records = std::mem::take(&mut self.commits.records);
                self.intents.frame_durable(records);
                self.commit_ended(io);
            }
            Kind::Batch => self.write_batch(io),
        }
    }

    fn write_batch(&mut self, io: &mut Io<'_>) {
        // In the order in which they were made: the last record of a cluster counts.
        let mut batch = std::mem::take(&mut self.intents.records);
        batch.append(&mut self.commits.records);
        for bundle in &mut self.commits.covered_bundles {
            batch.append(&mut bundle.changes);
        }
        if batch.is_empty() {
            // Clusters are freed by records that change: there are none.
            return self.commit_ended(io);
        }
        let commit = self.commits.commit + 1;
        batch.push(Change::Commit(commit));
        self.commits.state = State::Batching;
        self.meta.submit(TAG_COMMIT, MetaOp::Commit { commit, batch });
    }

    pub(super) fn batch_done(&mut self, result: Result<(), MetaError>, io: &mut Io<'_>) {
        match result {
            Ok(()) => {
                self.commits.commit += 1;
                self.recent.commit_durable(self.commits.commit);
                self.intents.batch_durable(self.commits.commit);
                self.commits.durable_count += 1;
                self.commit_ended(io);
            }
            Err(error) => self.batch_failed(&error, io),
        }
    }

    /// Everything that the commit covers is durable.
    fn commit_ended(&mut self, io: &mut Io<'_>) {
        self.commits.state = State::Idle;
        self.pool.commit_durable();
        let bundles = std::mem::take(&mut self.commits.covered_bundles);
        for bundle in &bundles {
            self.bundle_durable(bundle, io);
        }
        if !bundles.is_empty() {
            self.load_wanted_maps();
            self.reclaim_later();
        }
        let mut covered = std::mem::take(&mut self.commits.covered);
        for waiter in covered.drain(..) {
            match waiter {
                Waiter::Request { id, .. } => io.reply(id, Ok(Payload::None)),
                Waiter::Reclaim => self.reclaim.committed(),
                Waiter::Pack => self.pack.committed(),
            }
        }
        self.commits.covered = covered;
        self.release_held(io);
        self.continue_reclaim(io);
        self.continue_pack(io);
        self.feed_starved(io);
        self.start_commit(io);
    }

    fn bundle_durable(&mut self, bundle: &Bundle, io: &mut Io<'_>) {
        self.commits.settle(bundle);
        for &volume in &bundle.thaws {
            self.thaw(volume, io);
        }
        for &export in &bundle.publishes {
            self.publish(export);
        }
        if let Some(token) = bundle.token {
            self.answer(token, Ok(bundle.answer.clone()));
        }
    }

    /// Whatever was written since the last good sync is in doubt.
    fn sync_failed(&mut self, io: &mut Io<'_>) {
        for disk in self.served.iter_mut().flatten() {
            // The store's own copies are not named yet: they are made again.
            if (disk.syncing || disk.unsynced) && disk.subject != Subject::OwnWork {
                tracing::error!(export = disk.name, "a sync failed: FLUSH and FUA fail from now on");
                disk.failed = true;
            }
        }
        self.commits.state = State::Idle;
        self.intents.fail();
        // Some of the freed clusters belong to records that will never be committed now.
        self.pool.commit_failed();
        self.abandon_reclaim(io);
        self.void_records();
        self.void_bundles();
        for waiter in std::mem::take(&mut self.commits.covered) {
            match waiter {
                Waiter::Request { id, export } if self.disk(export).failed => io.reply(id, Err(Errno::Io)),
                other => self.commits.next.push(other),
            }
        }
        // What they waited for was abandoned: the next step must not take this commit for its own.
        self.commits.next.retain(|waiter| matches!(waiter, Waiter::Request { .. }));
        self.abandon_pack();
        self.fail_waiting(io);
        self.load_wanted_maps();
        self.commits.want_batch();
        self.start_commit(io);
    }

    /// Records of volumes that are not in doubt go with the next commit.
    fn void_records(&mut self) {
        let mut closed = Vec::new();
        for change in std::mem::take(&mut self.commits.records) {
            let Change::Map(layer, cluster, _) = change else { unreachable!("records of maps") };
            let mut disks = self.served.iter_mut().flatten().filter(|disk| disk.is_volume());
            match disks.find(|disk| disk.top == layer) {
                Some(disk) => {
                    disk.dirty.push(cluster);
                    self.intents.moved();
                }
                // Closed since: nothing of it changes any more, but what was sealed later comes later.
                None => closed.push(change),
            }
        }
        let volumes: BTreeSet<VolumeId> = closed.iter().filter_map(|change| self.writer_of(change)).collect();
        for volume in volumes {
            let (own, others) = closed.into_iter().partition(|change| self.writer_of(change) == Some(volume));
            self.commits.covered_bundles.insert(0, Bundle::new(own, vec![volume]));
            closed = others;
        }
    }

    fn writer_of(&self, change: &Change) -> Option<VolumeId> {
        let Change::Map(layer, ..) = change else { return None };
        self.catalog.layers.get(layer).map(|record| record.volume)
    }

    /// Bundles that name data in doubt are void; the others are taken up again, in the same order.
    fn void_bundles(&mut self) {
        let mut bundles = std::mem::take(&mut self.commits.covered_bundles);
        bundles.append(&mut self.commits.next_bundles);
        self.commits.told = 0;
        self.commits.next_bundles = self.sound_bundles(bundles);
    }

    /// Refuses the bundles of volumes that have failed.
    fn sound_bundles(&mut self, bundles: Vec<Bundle>) -> Vec<Bundle> {
        let mut sound = Vec::new();
        for bundle in bundles {
            if bundle.volumes.iter().any(|&volume| self.volume_failed(volume)) {
                let text = "a sync of the pool failed: restart the daemon, which checks the store";
                self.refuse_bundle(&bundle, &ControlError::new(ErrorKind::Io, text));
            } else {
                sound.push(bundle);
            }
        }
        sound
    }

    /// What it would have published stays unseen, so nothing will be read that it would have completed. Its volumes
    /// are ahead of what is durable, a cut's layers for one: nothing of theirs can be committed any more.
    fn refuse_bundle(&mut self, bundle: &Bundle, error: &ControlError) {
        for disk in self.served.iter_mut().flatten() {
            if let Subject::Volume(volume) = disk.subject {
                disk.failed |= bundle.volumes.contains(&volume);
            }
        }
        self.commits.settle(bundle);
        if let Some(token) = bundle.token {
            self.answer(token, Err(error.clone()));
        }
    }

    pub(super) fn volume_failed(&self, volume: VolumeId) -> bool {
        let failed = |disk: &super::Served| disk.failed && disk.subject == Subject::Volume(volume);
        self.commits.meta_failed || self.served.iter().flatten().any(failed)
    }

    /// Requests of failed volumes that wait for the next commit.
    fn fail_waiting(&mut self, io: &mut Io<'_>) {
        for waiter in std::mem::take(&mut self.commits.next) {
            match waiter {
                Waiter::Request { id, export } if self.commits.meta_failed || self.disk(export).failed => {
                    io.reply(id, Err(Errno::Io));
                }
                other => self.commits.next.push(other),
            }
        }
    }

    fn batch_failed(&mut self, error: &MetaError, io: &mut Io<'_>) {
        tracing::error!(%error, "a batch failed: nothing is made durable from now on");
        self.recent.abandon("a batch failed");
        self.commits.meta_failed = true;
        self.commits.state = State::Idle;
        self.pool.commit_failed();
        let covered = std::mem::take(&mut self.commits.covered);
        self.commits.next.extend(covered);
        self.fail_waiting(io);
        self.commits.next.clear();
        let mut bundles = std::mem::take(&mut self.commits.covered_bundles);
        bundles.append(&mut self.commits.next_bundles);
        self.commits.told = 0;
        let refusal = match error {
            MetaError::NoSpace => {
                (ErrorKind::NoSpace, "the file system is full: make room, then restart the daemon")
            }
            _ => (
                ErrorKind::Io,
                "the metadata could not be written: restart the daemon, which checks the store",
            ),
        };
        for bundle in &bundles {
            self.refuse_bundle(bundle, &ControlError::new(refusal.0, refusal.1));
        }
        self.abandon_reclaim(io);
        self.abandon_pack();
        self.load_wanted_maps();
        self.release_held(io);
        self.feed_starved(io);
    }
}
