//! A host of the simulation: a store over a simulated disk and simulated metadata, and readers of its closed layers.

use std::collections::BTreeMap;
use std::sync::Arc;

use blockd::catalog::format::{Change, FORMAT_VERSION, PoolFileRecord, StoreRecord};
use blockd::catalog::load::scan_pool_use;
use blockd::catalog::memory::{MemoryMeta, SimMetaPort};
use blockd::catalog::meta::MetaStore;
use blockd::control::{Answer, Control, ControlError, ErrorKind, Health, SnapshotName};
use blockd::snapshot::{ClosedReader, PoolHandle};
use blockd::store::pool::{Pool, PoolFile};
use blockd::store::{Store, Token};
use blockd::units::{CLUSTER_BYTES, HostId, LayerId, PoolCluster, SnapshotId, VolumeId};
use fastrand::Rng;
use fixtures::sim::{Fault, SimDisk};
use nbd_server::connection::Nanos;
use nbd_server::disk::{DiskOpKind, FileId, ZeroMode};
use nbd_server::export::Reply;
use nbd_server::reactor::buffer;

use crate::killed::{SimRecent, begin, read_intents};
use crate::mirror::{Mirror, MirrorFile};

/// Clusters of the pool's two files.
const FILES: [u32; 2] = [150, 106];
/// Operations within which whatever was asked for must be answered.
pub(crate) const STEPS_MAX: usize = 100_000;

fn start_of(file: usize) -> usize {
    FILES[..file].iter().map(|clusters| *clusters as usize * CLUSTER_BYTES as usize).sum()
}

/// See the module.
pub struct Host {
    /// What it is to other hosts.
    pub id: HostId,
    /// The store, as the daemon has it.
    pub store: Store,
    /// Its pool's two files.
    pub disk: SimDisk,
    /// Its metadata.
    pub meta: SimMetaPort,
    recent: SimRecent,
    mirror: Mirror,
    pub(crate) buffers: buffer::Pool,
    /// What ends next, and what a crash leaves.
    pub rng: Rng,
    pub(crate) replies: Vec<Reply>,
    answers: BTreeMap<Token, Result<Answer, ControlError>>,
    now: Nanos,
    tokens: u64,
    pub(crate) requests: u32,
    /// How often, of a thousand steps of a blocking call, the process is killed in the middle of it.
    pub kills_per_mille: u32,
    /// It was killed, or its power went, and it has not been started again.
    pub down: bool,
    /// Starts so far, the first one not counted.
    pub starts: u64,
    /// So many of them because the power was gone.
    pub power_cuts: u64,
    /// Milliseconds that pass at one of eight steps; 0: only who calls [`Self::tick`] lets time pass.
    pub drift_ms: u64,
}

/// Runs a call on the store that takes an `Io`.
macro_rules! with_io {
    ($host:expr, |$store:ident, $io:ident| $call:expr) => {{
        let Host { disk, store: $store, buffers, replies, .. } = &mut *$host;
        let $io =
            &mut nbd_server::export::Io::new(disk, buffers, nbd_server::disk::ExportIndex::NONE, replies);
        $call;
    }};
}

pub(crate) use with_io;

fn fresh_meta(id: HostId) -> MemoryMeta {
    let meta = MemoryMeta::new();
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: id.0,
        next_volume: VolumeId(1),
        next_layer: LayerId(1),
        next_snapshot: SnapshotId(1),
        created_ms: 0,
    };
    let mut batch = vec![Change::Store(store), Change::Commit(1)];
    let mut first = 0;
    for (index, clusters) in (0..).zip(FILES) {
        let record = PoolFileRecord { first: PoolCluster(first), clusters, path: format!("pool-{index}") };
        batch.push(Change::PoolFile(index, record));
        first += clusters;
    }
    meta.write(&batch).expect("memory");
    meta.set_mark(1);
    meta
}

/// As a start opens it: checked by the product's own checks.
fn open(meta: &MemoryMeta) -> (Store, SimMetaPort, SimRecent) {
    let loaded = blockd::catalog::load::load(meta, meta.mark()).expect("a sound catalog");
    let in_use = scan_pool_use(meta, &loaded, &mut |_, _, _| {}).expect("sound maps");
    let port = SimMetaPort::new(meta.clone());
    let file = |(index, record): (usize, &PoolFileRecord)| PoolFile {
        file: FileId(u32::try_from(index).expect("few")),
        first: record.first,
        clusters: record.clusters,
        allocated: 1,
    };
    let pool = Pool::new(loaded.files.values().enumerate().map(file).collect(), in_use);
    let mut store = Store::new(loaded, pool, Box::new(port.clone()), 0);
    let recent = SimRecent::default();
    store.keep_recent(Box::new(recent.clone()));
    store.log_intents();
    (store, port, recent)
}

impl Host {
    /// An empty store.
    pub fn new(id: u8, seed: u64) -> Self {
        let id = HostId([id; 16]);
        let bytes = FILES.map(|clusters| clusters as usize * CLUSTER_BYTES as usize);
        let (store, meta, recent) = open(&fresh_meta(id));
        Self {
            id,
            store,
            disk: SimDisk::with_files(&bytes, 4096, seed),
            meta,
            recent,
            mirror: Mirror::default(),
            buffers: buffer::Pool::new(),
            rng: Rng::with_seed(seed),
            replies: Vec::new(),
            answers: BTreeMap::new(),
            now: Nanos(0),
            tokens: 0,
            requests: 0,
            kills_per_mille: 0,
            down: false,
            starts: 0,
            power_cuts: 0,
            drift_ms: 100,
        }
    }

    /// The process ends at once, and perhaps the power goes. What a start finds is decided now.
    pub fn crash(&mut self, power: bool) {
        self.down = true;
        let kept = !power && !self.recent.is_abandoned();
        if power {
            self.disk.power_cut();
        } else {
            self.disk.kill(!kept);
        }
        let meta = self.meta.power_cut(&mut self.rng);
        let intents = read_intents(&self.disk, &meta);
        if power {
            begin(&meta, intents.changes);
        } else {
            self.recent.replay(&meta, intents.changes);
        }
        (self.store, self.meta, self.recent) = open(&meta);
        self.disk.heal();
        self.replies.clear();
        self.answers.clear();
        let blocks = self.disk.blocks().map(|(block, bytes)| (block, bytes.to_vec()));
        self.mirror.replace(blocks.collect());
        // The clock of a process begins with it.
        self.now = Nanos(0);
        self.starts += 1;
        self.power_cuts += u64::from(power);
    }

    /// A reader of what the metadata say, until the next crash.
    pub fn reader(&self) -> ClosedReader {
        let mut first = 0;
        let handles = FILES.iter().enumerate().map(|(at, &clusters)| {
            let file = MirrorFile { mirror: self.mirror.clone(), start: start_of(at) };
            let handle = PoolHandle { file: Arc::new(file), first: PoolCluster(first), clusters };
            first += clusters;
            handle
        });
        ClosedReader::new(self.meta.live(), handles.collect())
    }

    /// What readers see of the pool.
    pub fn pool(&self) -> Vec<u8> {
        let mut all = vec![0; start_of(FILES.len())];
        self.mirror.read(0, &mut all);
        all
    }

    /// Flips a bit wherever these bytes lie, for readers; how often that was.
    pub fn rot(&mut self, bytes: &[u8]) -> usize {
        let mut all = self.pool();
        let mut found = all.chunks_exact_mut(bytes.len()).enumerate().filter(|(_, piece)| *piece == bytes);
        let rotten = found.by_ref().map(|(at, piece)| {
            piece[bytes.len() / 2] ^= 1;
            self.mirror.write(at * bytes.len(), piece);
        });
        rotten.count()
    }

    /// Gives a command; its answer comes with later steps.
    pub fn command(&mut self, command: Control) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        with_io!(self, |store, io| store.command(token, command, io));
        token
    }

    /// The answer, if it has come.
    pub fn answer(&mut self, token: Token) -> Option<Result<Answer, ControlError>> {
        self.answers.extend(self.store.take_answers());
        self.answers.remove(&token)
    }

    /// Some operation ends; `false`: none is under way.
    pub fn step(&mut self) -> bool {
        let ended = self.rng.bool() && self.disk_step();
        let ended = ended || self.meta_step() || self.disk_step();
        if self.drift_ms > 0 && self.rng.u8(..8) == 0 {
            self.tick(self.drift_ms);
        }
        ended
    }

    fn disk_step(&mut self) -> bool {
        let Some((_, done)) = self.disk.complete_one() else { return false };
        if let DiskOpKind::Write { offset, buf, .. } = &done.op.kind {
            self.reflect(done.op.file, *offset, buf.len() as u64);
        }
        if let DiskOpKind::Zero { offset, length, mode } = done.op.kind
            && mode != ZeroMode::KeepAllocated
        {
            self.reflect(done.op.file, offset, length);
        }
        with_io!(self, |store, io| store.disk_done(done, io));
        self.replied();
        true
    }

    fn reflect(&mut self, file: FileId, offset: u64, length: u64) {
        let bytes = self.disk.read_file(file, offset..offset + length);
        let start = start_of(file.0 as usize) + usize::try_from(offset).expect("a small file");
        self.mirror.write(start, &bytes);
    }

    fn meta_step(&mut self) -> bool {
        let Some(done) = self.meta.complete_one(&mut self.rng) else { return false };
        with_io!(self, |store, io| store.meta_done(done, io));
        self.replied();
        true
    }

    /// What a killed process had answered must be in the log by then.
    pub(crate) fn replied(&mut self) {
        if !self.replies.is_empty() {
            self.store.before_replies();
        }
        self.answers.extend(self.store.take_answers());
    }

    /// Time passes.
    pub fn tick(&mut self, milliseconds: u64) {
        self.now = Nanos(self.now.0 + milliseconds * 1_000_000);
        let now = self.now;
        with_io!(self, |store, io| {
            store.tick(now, io);
        });
    }

    /// A command, and its answer; the process may be killed meanwhile.
    ///
    /// # Errors
    /// What the store answers; `Stopping`: the process is gone, and what was asked may be done or not.
    pub fn ask(&mut self, command: Control) -> Result<Answer, ControlError> {
        let gone = || ControlError::new(ErrorKind::Stopping, "the process is gone");
        if self.down {
            return Err(gone());
        }
        let token = self.command(command);
        for _ in 0..STEPS_MAX {
            if let Some(answer) = self.answer(token) {
                return answer;
            }
            if self.rng.u32(..1000) < self.kills_per_mille {
                let power = self.rng.bool();
                self.crash(power);
                return Err(gone());
            }
            self.step();
        }
        panic!("a command is never answered");
    }

    /// What cannot fail, and does not crash.
    pub fn must(&mut self, command: Control) -> Answer {
        let kills = std::mem::take(&mut self.kills_per_mille);
        let answer = self.ask(command.clone());
        self.kills_per_mille = kills;
        answer.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Whether a sync has failed: the daemon must be started again.
    pub fn is_failed(&mut self) -> bool {
        match self.must(Control::Status) {
            Answer::Status(status) => status.health != Health::Ok,
            other => panic!("{other:?}"),
        }
    }

    /// Strikes the next operation that it can strike.
    pub fn inject(&mut self, fault: Fault) {
        self.disk.inject(fault);
    }
}

/// `VOLUME@SNAPSHOT`.
pub fn name(volume: &str, snapshot: &str) -> SnapshotName {
    SnapshotName { volume: volume.to_owned(), snapshot: snapshot.to_owned() }
}
