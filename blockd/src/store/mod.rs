//! The store: volumes, snapshots, clones, and the one pool under them. A state machine without I/O.
//!
//! One `Store` lives on one reactor thread and owns everything: maps, allocation, what waits for what. Requests,
//! ended disk operations, ended metadata operations and commands come in; disk operations, metadata operations,
//! replies and answers go out. The simulator drives the very same code.
//!
//! ```text
//!  request ─► job ─► (waits for: its map, a cut, an overlapping job, space) ─► disk operations ─► map ─► reply
//!                                                                                            │
//!             FLUSH, FUA, commands ─► commit: sync of the pool ─► one batch ─► mark ─► reply ◄┘ dirty records
//! ```
//!
//! | file | what it does |
//! |---|---|
//! | `served` | one disk that clients see: its map, its waiting jobs, what of it is not committed yet |
//! | `transfer` | reads, writes and zeroes; what is read from where, what is written in place |
//! | `commit` | group commit: what is durable when |
//! | `intents` | records that are made durable with their data, before the metadata store has them |
//! | `commands` | volumes, snapshots and clones are made, changed and deleted |
//! | `reclaim` | layers that nobody names any more are merged or dropped in the background |
//! | `pack` | sparse records of closed layers are packed in the background |
//! | `copy` | blocks are copied for the two |
//! | `throttle` | the two leave clients their speed |
//! | `foresight` | what an expected cut will have to sync is written before |
//! | `replica` | volumes that follow another host's |
//! | `mirror` | what clients change of a volume is at another host before they are answered |
//! | `moves` | volumes go from one host to another: who may write |
//! | `doors` | exports of one epoch of a volume |
//! | `status` | what is allocated, and what has changed since a snapshot |
//! | `identity` | what volumes and snapshots are called on every host |
//! | `recent` | what is not committed is kept for the next process |
//! | `pool` | where clusters lie, which are free |

mod catalog;
mod commands;
mod commit;
mod copy;
mod doors;
mod foresight;
mod identity;
mod intents;
mod mirror;
mod moves;
mod pack;
pub mod pool;
mod recent;
mod reclaim;
mod replica;
mod served;
mod status;
pub mod superblock;
mod throttle;
mod transfer;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nbd_server::connection::Nanos;
use nbd_server::disk::{DiskDone, ExportIndex};
use nbd_server::export::{Io, Payload, Request};
use nbd_server::wire::Errno;
use slab::Slab;

use crate::catalog::format::StoreRecord;
use crate::catalog::load::Loaded;
use crate::catalog::meta::{MetaAnswer, MetaDone, MetaOp, MetaPort};
use crate::checkpoint::{Saved, SavedMap};
use crate::control::mirror::MirrorId;
use crate::control::{Answer, Control, ControlError, Counters, Health};
use crate::map::FlatMap;
use crate::units::{LayerId, VolumeId};

use catalog::Catalog;
use commit::Commits;
use doors::Admitted;
use foresight::Foresight;
use intents::Intents;
use pack::Pack;
use pool::Pool;
use recent::Recent;
use reclaim::Reclaim;
use served::{MapState, Served};
use throttle::Throttle;
use transfer::Job;

pub use mirror::{MIRROR_BACKLOG_MAX, MIRROR_BATCH_CLUSTERS, MIRROR_BATCHES_MAX, MIRROR_STALL_MAX};
pub use moves::FROZEN_HOLD;
pub use recent::RecentLog;
pub use replica::PATCHES_MAX;
pub use served::Subject;
pub use status::contexts;

/// Changed map records of a volume are committed when there are so many, asked for or not.
pub const DIRTY_RECORDS_MAX: usize = 16_384;
/// Writes that would change more records wait when there are so many.
pub const DIRTY_RECORDS_LIMIT: usize = 1 << 20;
/// Changes that nobody asks to be made durable are committed after that time.
pub const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// Names a command that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// What an ended metadata operation was for.
const TAG_COMMIT: u64 = 0;
const TAG_RECLAIM: u64 = 1;
const TAG_PACK: u64 = 2;
/// Plus the export's index.
const TAG_MAP: u64 = 3;

/// See the module.
pub struct Store {
    catalog: Catalog,
    pool: Pool,
    /// By export index. Places are never used again: an export that is gone stays `None`.
    served: Vec<Option<Served>>,
    jobs: Slab<Job>,
    /// Jobs that wait for free clusters, in order of arrival.
    starved: VecDeque<usize>,
    extending: Option<pool::Extension>,
    commits: Commits,
    intents: Intents,
    recent: Recent,
    reclaim: Reclaim,
    pack: Pack,
    throttle: Throttle,
    foresight: Foresight,
    pins: Slab<Vec<LayerId>>,
    applying: Slab<replica::Applying>,
    asked: status::Asked,
    /// Early writes that are under way.
    writes_soon: u32,
    former_moves: moves::FormerMoves,
    doors: doors::Doors,
    mirrors: BTreeMap<MirrorId, ExportIndex>,
    last_mirror: MirrorId,
    /// Number of the last batch of any mirror.
    last_batch: u64,
    cuts: Vec<commands::Cut>,
    /// Commands that wait for the store's own work; as many as the host lets wait.
    deferred: Vec<(Token, Control)>,
    meta: Box<dyn MetaPort>,
    answers: Vec<(Token, Result<Answer, ControlError>)>,
    counters: Counters,
    now: Nanos,
    /// Milliseconds since 1970 when `now` was 0: for people only, nothing is decided by it.
    epoch_ms: u64,
    stopping: bool,
    /// Bytes that the pool may grow by until somebody looks again.
    room: u64,
    /// Counts changes of what there is to export.
    version: u64,
    next_commit_at: Nanos,
}

impl Store {
    /// A store as it was loaded. `epoch_ms` is the time of day, in milliseconds since 1970, at the instant that
    /// `Nanos` 0 stands for.
    pub fn new(loaded: Loaded, pool: Pool, meta: Box<dyn MetaPort>, epoch_ms: u64) -> Self {
        let commit = loaded.commit;
        let mut store = Self {
            catalog: Catalog::new(loaded),
            pool,
            served: vec![Some(Served::own_work())],
            jobs: Slab::new(),
            starved: VecDeque::new(),
            extending: None,
            commits: Commits::new(commit),
            intents: Intents::default(),
            recent: Recent::new(commit),
            reclaim: Reclaim::default(),
            pack: Pack::default(),
            throttle: Throttle::default(),
            foresight: Foresight::default(),
            pins: Slab::new(),
            applying: Slab::new(),
            asked: status::Asked::default(),
            writes_soon: 0,
            former_moves: moves::FormerMoves::default(),
            doors: doors::Doors::default(),
            mirrors: BTreeMap::new(),
            last_mirror: MirrorId(0),
            last_batch: 0,
            cuts: Vec::new(),
            deferred: Vec::new(),
            meta,
            answers: Vec::new(),
            counters: Counters::default(),
            now: Nanos::default(),
            epoch_ms,
            stopping: false,
            room: u64::MAX,
            version: 0,
            next_commit_at: Nanos::default(),
        };
        store.serve_all();
        store
    }

    fn serve_all(&mut self) {
        let volumes: Vec<_> = self.catalog.volumes.keys().copied().collect();
        for volume in volumes {
            let export = self.serve_volume(volume);
            self.publish(export);
        }
        let snapshots: Vec<_> = self.catalog.snapshots.keys().copied().collect();
        for snapshot in snapshots {
            let export = self.serve_snapshot(snapshot);
            self.publish(export);
        }
        self.freeze_again();
        self.expect_again();
        self.reclaim_later();
    }

    /// What there is to export, with the index of each.
    pub fn exports(&self) -> impl Iterator<Item = (ExportIndex, &Served)> {
        self.served.iter().enumerate().filter_map(|(index, served)| {
            let served = served.as_ref().filter(|served| served.published && !served.hidden)?;
            Some((ExportIndex(u32::try_from(index).expect("few exports")), served))
        })
    }

    /// Differs from what it was whenever [`Self::exports`] has changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The answers that commands have got since the last call.
    pub fn take_answers(&mut self) -> Vec<(Token, Result<Answer, ControlError>)> {
        std::mem::take(&mut self.answers)
    }

    fn answer(&mut self, token: Token, answer: Result<Answer, ControlError>) {
        self.answers.push((token, answer));
    }

    /// The store's identity and counters, as recorded.
    pub fn record(&self) -> &StoreRecord {
        &self.catalog.store
    }

    fn disk(&self, export: ExportIndex) -> &Served {
        self.served[export.0 as usize].as_ref().expect("a job's export exists until its last job has ended")
    }

    fn disk_mut(&mut self, export: ExportIndex) -> &mut Served {
        self.served[export.0 as usize].as_mut().expect("a job's export exists until its last job has ended")
    }

    fn find_disk(&mut self, export: ExportIndex) -> Option<&mut Served> {
        self.served.get_mut(export.0 as usize)?.as_mut()
    }

    /// A client has come.
    pub fn connected(&mut self, export: ExportIndex) {
        if let Some(disk) = self.find_disk(export) {
            disk.clients += 1;
            self.load_map(self.behind(export));
        }
    }

    /// A client has gone.
    pub fn disconnected(&mut self, export: ExportIndex) {
        if let Some(disk) = self.find_disk(export) {
            disk.clients -= 1;
            disk.drop_idle_view();
            let last = disk.clients == 0;
            if last {
                self.forget_scans(export);
            }
            self.drop_idle_door(export);
        }
    }

    /// Asks for the map of an export, unless it is there or on its way. Not before all its records are durable,
    /// and not while one of its layers is being moved: it would be out of date when it arrives.
    fn load_map(&mut self, export: ExportIndex) {
        let Some(disk) = self.find_disk(export) else { return };
        if !matches!(disk.map, MapState::Absent) {
            return;
        }
        disk.map_wanted = true;
        let (top, clusters, published) = (disk.top, crate::units::cluster_count(disk.size), disk.published);
        let chain = self.catalog.chain(top);
        let unsettled = chain.iter().any(|layer| self.commits.is_unsettled(*layer));
        if !published || unsettled || self.reclaim.touches(&chain) {
            return;
        }
        let disk = self.disk_mut(export);
        (disk.map, disk.map_top, disk.map_wanted) = (MapState::Loading, top, false);
        self.meta.submit(TAG_MAP + u64::from(export.0), MetaOp::LoadMap { chain, clusters });
    }

    /// What was in the way of some maps is gone.
    fn load_wanted_maps(&mut self) {
        for index in 0..self.served.len() {
            if self.served[index].as_ref().is_some_and(|disk| disk.map_wanted) {
                self.load_map(ExportIndex(u32::try_from(index).expect("few exports")));
            }
        }
    }

    fn map_loaded(&mut self, export: ExportIndex, result: Result<Box<FlatMap>, String>, io: &mut Io<'_>) {
        let Some(disk) = self.find_disk(export) else { return };
        disk.map = match result {
            Ok(mut map) => {
                map.grow(crate::units::cluster_count(disk.size));
                if disk.map_top != disk.top {
                    // A snapshot was taken meanwhile: what the map has as its open layer is closed.
                    map.cut();
                }
                MapState::Loaded(map)
            }
            Err(error) => {
                tracing::error!(export = disk.name, error, "map cannot be loaded: nothing of it is served");
                MapState::Damaged
            }
        };
        self.admit(export, io);
        self.reclaim_later();
        self.continue_reclaim(io);
    }

    /// Starts a request.
    pub fn start(&mut self, export: ExportIndex, request: Request, io: &mut Io<'_>) {
        match self.admitted(export, &request.command) {
            // A rollback between a client's handshake and its entry has made the volume smaller than it was told.
            Ok(Admitted::To(export))
                if request.offset + u64::from(request.length) > self.disk(export).size =>
            {
                io.reply(request.id, Err(Errno::Inval));
            }
            Ok(Admitted::To(export)) => self.begin_request(export, request, io),
            Ok(Admitted::NothingToDo) => io.reply(request.id, Ok(Payload::None)),
            Err(error) => io.reply(request.id, Err(error)),
        }
    }

    /// A metadata operation has ended.
    pub fn meta_done(&mut self, done: MetaDone, io: &mut Io<'_>) {
        match (done.tag, done.result) {
            (TAG_COMMIT, result) => self.batch_done(result.map(|_| ()), io),
            (TAG_RECLAIM, Ok(MetaAnswer::Records(records))) => self.reclaim_records(records, io),
            (TAG_RECLAIM, result) => self.reclaim_unread(&format!("{result:?}"), io),
            (TAG_PACK, Ok(MetaAnswer::Records(records))) => self.pack_records(&records, io),
            (TAG_PACK, result) => self.pack_unread(&format!("{result:?}"), io),
            (tag, result) if tag & status::TAG_STATUS != 0 => self.status_scanned(tag, result, io),
            (tag, result) => {
                let export = ExportIndex(u32::try_from(tag - TAG_MAP).expect("an export's index"));
                let result = match result {
                    Ok(MetaAnswer::Map(map)) => Ok(map),
                    Ok(other) => Err(format!("{other:?} where a map was asked for")),
                    Err(error) => Err(error.to_string()),
                };
                self.map_loaded(export, result, io);
            }
        }
        self.pump(io);
    }

    /// A disk operation has ended.
    pub fn disk_done(&mut self, done: DiskDone, io: &mut Io<'_>) {
        match done.op.tag {
            commit::TAG_SYNC => self.sync_done(&done, io),
            intents::TAG_INTENT => self.intent_written(done, io),
            // Advice: what comes of it, a sync will say.
            replica::TAG_WRITE_SOON | foresight::TAG_PASS => self.writes_soon -= 1,
            transfer::TAG_EXTEND => self.extended(done.result, io),
            _ => self.transfer_done(done, io),
        }
        self.pump(io);
    }

    /// What can go on, goes on. Every event ends with it.
    fn pump(&mut self, io: &mut Io<'_>) {
        self.retry_deferred(io);
        self.perform_cuts(io);
        self.feed_starved(io);
        self.start_commit(io);
        self.continue_status(io);
        if std::mem::take(&mut self.commits.settled) {
            self.load_wanted_maps();
        }
    }

    /// Time passes. Returns when to be called again at the latest.
    pub fn tick(&mut self, now: Nanos, io: &mut Io<'_>) -> Option<Nanos> {
        self.now = now;
        self.look_at_load();
        if now >= self.next_commit_at {
            self.next_commit_at = now.after(COMMIT_INTERVAL);
            if self.has_uncommitted() {
                self.commits.want_batch();
            }
            // Room may have been made on the file system since.
            self.pool.full = false;
            self.reclaim.unblock();
        }
        let refuse_at = self.refuse_held_too_long(now, io);
        let break_at = self.break_stalled_mirrors(now, io);
        let pass_at = self.foresee_cuts(io);
        self.continue_reclaim(io);
        self.continue_pack(io);
        self.pump(io);
        let times = [self.background_at(), refuse_at, break_at, pass_at];
        times.into_iter().flatten().chain([self.next_commit_at]).min()
    }

    /// No new background work; what is not committed is.
    pub fn begin_stop(&mut self, io: &mut Io<'_>) {
        self.stopping = true;
        self.end_all_mirrors(io);
        if self.has_uncommitted() || self.has_unsynced() {
            self.commits.want_batch();
        }
        self.pump(io);
    }

    /// Nothing is under way, and nothing waits to be committed.
    pub fn quiescent(&self) -> bool {
        self.jobs.is_empty() && !self.commits.busy() && self.extending.is_none() && self.writes_soon == 0
    }

    /// What the next start need not learn from the records: allocator and volumes' maps. `None` while anything is
    /// under way or waits to be committed, and after a failure: then the records do not say the same.
    pub fn checkpoint(&self) -> Option<Saved<'_>> {
        let failed = self.commits.meta_failed || self.served.iter().flatten().any(|disk| disk.failed);
        if failed || self.pool.has_lost_clusters() || !self.quiescent() || self.has_uncommitted() {
            return None;
        }
        let map = |(&volume, &export): (&VolumeId, &ExportIndex)| {
            let disk = self.disk(export);
            disk.loaded().map(|map| (volume, disk.top, map))
        };
        Some(Saved {
            identity: self.catalog.store.identity,
            commit: self.commits.last(),
            pool_clusters: self.pool.files().iter().map(|file| file.clusters).sum(),
            in_use: self.pool.in_use(),
            maps: self.catalog.volume_exports.iter().filter_map(map).collect(),
        })
    }

    /// Takes the maps of a checkpoint of the state that the store was loaded from. Comes before any event.
    pub fn adopt_maps(&mut self, maps: Vec<SavedMap>) {
        for SavedMap { volume, head, map } in maps {
            let Some(&export) = self.catalog.volume_exports.get(&volume) else { continue };
            let disk = self.disk_mut(export);
            debug_assert_eq!(disk.top, head, "a map of another state");
            disk.map = MapState::Loaded(map);
        }
    }

    /// So many bytes of the file system may become the pool's; the rest is for metadata. What is being allocated just
    /// now may have been counted as free.
    pub fn set_room(&mut self, bytes: u64) {
        let under_way = self.extending.as_ref().map_or(0, pool::Extension::bytes);
        self.room = bytes.saturating_sub(under_way);
    }

    /// The pool may grow.
    pub fn has_room(&self) -> bool {
        self.room >= u64::from(pool::EXTEND_CLUSTERS_MIN) * crate::units::CLUSTER_BYTES
    }

    /// Milliseconds since 1970, for people.
    fn wall_ms(&self) -> u64 {
        self.epoch_ms + self.now.0 / 1_000_000
    }

    /// The worst that has happened to any volume.
    fn health(&self) -> Health {
        let healths: Vec<Health> = self.served.iter().flatten().map(Served::health).collect();
        let worst = |kind| healths.contains(&kind);
        if worst(Health::Damaged) {
            Health::Damaged
        } else if worst(Health::SyncFailed) || self.commits.meta_failed {
            Health::SyncFailed
        } else {
            Health::Ok
        }
    }
}
