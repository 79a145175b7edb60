//! A host of the simulation: a store over a simulated disk and simulated metadata, and readers of its closed layers.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use blockd::catalog::format::{Change, FORMAT_VERSION, PoolFileRecord, StoreRecord};
use blockd::catalog::load::scan_pool_use;
use blockd::catalog::memory::{MemoryMeta, SimMetaPort};
use blockd::catalog::meta::MetaStore;
use blockd::control::{Answer, Control, ControlError, ErrorKind, Health, SnapshotName};
use blockd::snapshot::{ClosedReader, PoolHandle, PoolRead};
use blockd::store::pool::{Pool, PoolFile};
use blockd::store::{Store, Token};
use blockd::units::{CLUSTER_BYTES, HostId, LayerId, PoolCluster, SnapshotId, VolumeId};
use fastrand::Rng;
use fixtures::sim::{BLOCK_BYTES, Fault, SimDisk};
use nbd_server::connection::Nanos;
use nbd_server::disk::{DiskOpKind, ExportIndex, FileId, ZeroMode};
use nbd_server::export::{Command, Io, Payload, Reply, Request, RequestId};
use nbd_server::reactor::buffer;
use nbd_server::wire::Errno;

use crate::killed::SimRecent;

/// Clusters of the pool's two files.
const FILES: [u32; 2] = [150, 106];
/// Operations within which whatever was asked for must be answered.
const STEPS_MAX: usize = 100_000;

/// What readers outside of the store see of the disk: blocks that were written, by their place.
#[derive(Clone, Default)]
struct Mirror(Arc<Mutex<BTreeMap<usize, Vec<u8>>>>);

impl Mirror {
    fn read(&self, at: usize, buffer: &mut [u8]) {
        let blocks = self.0.lock().expect("one thread");
        for (block, inside, piece) in pieces(at, buffer.len()) {
            match blocks.get(&block) {
                Some(bytes) => buffer[piece].copy_from_slice(&bytes[inside]),
                None => buffer[piece].fill(0),
            }
        }
    }

    fn write(&self, at: usize, data: &[u8]) {
        let mut blocks = self.0.lock().expect("one thread");
        for (block, inside, piece) in pieces(at, data.len()) {
            let bytes = blocks.entry(block).or_insert_with(|| vec![0; BLOCK_BYTES]);
            bytes[inside].copy_from_slice(&data[piece]);
        }
    }
}

/// The blocks that bytes lie in: which block, where in it, and which of the bytes.
fn pieces(at: usize, length: usize) -> impl Iterator<Item = (usize, Range<usize>, Range<usize>)> {
    let end = at + length;
    (at / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES)).map(move |block| {
        let (first, last) = ((block * BLOCK_BYTES).max(at), ((block + 1) * BLOCK_BYTES).min(end));
        let start = block * BLOCK_BYTES;
        (block, first - start..last - start, first - at..last - at)
    })
}

struct MirrorFile {
    mirror: Mirror,
    start: usize,
}

impl PoolRead for MirrorFile {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.mirror.read(self.start + usize::try_from(offset).expect("a small file"), buffer);
        Ok(())
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.mirror.write(self.start + usize::try_from(offset).expect("a small file"), bytes);
        Ok(())
    }

    fn settle(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }
}

fn start_of(file: usize) -> usize {
    FILES[..file].iter().map(|clusters| *clusters as usize * CLUSTER_BYTES as usize).sum()
}

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) store: Store,
    pub(crate) disk: SimDisk,
    pub(crate) meta: SimMetaPort,
    recent: SimRecent,
    mirror: Mirror,
    buffers: buffer::Pool,
    pub(crate) rng: Rng,
    replies: Vec<Reply>,
    answers: BTreeMap<Token, Result<Answer, ControlError>>,
    now: Nanos,
    tokens: u64,
    requests: u32,
    /// How often, of a thousand steps of a blocking call, the process is killed in the middle of it.
    pub(crate) kills_per_mille: u32,
    /// It was killed, or its power went, and it has not been started again.
    pub(crate) down: bool,
    /// Starts so far.
    pub(crate) starts: u64,
}

/// Runs a call on the store that takes an `Io`.
macro_rules! with_io {
    ($host:expr, |$store:ident, $io:ident| $call:expr) => {{
        let Host { disk, store: $store, buffers, replies, .. } = &mut *$host;
        let $io = &mut Io::new(disk, buffers, ExportIndex::NONE, replies);
        $call;
    }};
}

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
    (store, port, recent)
}

impl Host {
    pub(crate) fn new(id: u8, seed: u64) -> Self {
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
        }
    }

    /// The process ends at once, and perhaps the power goes. What a start finds is decided now.
    pub(crate) fn crash(&mut self, power: bool) {
        self.down = true;
        let kept = !power && !self.recent.is_abandoned();
        if power {
            self.disk.power_cut();
        } else {
            self.disk.kill(!kept);
        }
        let meta = self.meta.power_cut(&mut self.rng);
        if !power {
            self.recent.replay(&meta);
        }
        (self.store, self.meta, self.recent) = open(&meta);
        self.disk.heal();
        self.replies.clear();
        self.answers.clear();
        let blocks = self.disk.blocks().map(|(block, bytes)| (block, bytes.to_vec()));
        *self.mirror.0.lock().expect("one thread") = blocks.collect();
        self.starts += 1;
    }

    /// A reader of what the metadata say, until the next crash.
    pub(crate) fn reader(&self) -> ClosedReader {
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
    pub(crate) fn pool(&self) -> Vec<u8> {
        let mut all = vec![0; start_of(FILES.len())];
        self.mirror.read(0, &mut all);
        all
    }

    /// Flips a bit wherever these bytes lie, for readers; how often that was.
    pub(crate) fn rot(&mut self, bytes: &[u8]) -> usize {
        let mut all = self.pool();
        let mut found = all.chunks_exact_mut(bytes.len()).enumerate().filter(|(_, piece)| *piece == bytes);
        let rotten = found.by_ref().map(|(at, piece)| {
            piece[bytes.len() / 2] ^= 1;
            self.mirror.write(at * bytes.len(), piece);
        });
        rotten.count()
    }

    pub(crate) fn command(&mut self, command: Control) -> Token {
        self.tokens += 1;
        let token = Token(self.tokens);
        with_io!(self, |store, io| store.command(token, command, io));
        token
    }

    /// The answer, if it has come.
    pub(crate) fn answer(&mut self, token: Token) -> Option<Result<Answer, ControlError>> {
        self.answers.extend(self.store.take_answers());
        self.answers.remove(&token)
    }

    /// Some operation ends, if one is under way.
    pub(crate) fn step(&mut self) {
        let ended = self.rng.bool() && self.disk_step();
        if !ended && !self.meta_step() {
            self.disk_step();
        }
        if self.rng.u8(..8) == 0 {
            self.tick(100);
        }
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
    fn replied(&mut self) {
        if !self.replies.is_empty() {
            self.store.before_replies();
        }
        self.answers.extend(self.store.take_answers());
    }

    pub(crate) fn tick(&mut self, milliseconds: u64) {
        self.now = Nanos(self.now.0 + milliseconds * 1_000_000);
        let now = self.now;
        with_io!(self, |store, io| {
            store.tick(now, io);
        });
    }

    /// A command, and its answer; the process may be killed meanwhile.
    pub(crate) fn ask(&mut self, command: Control) -> Result<Answer, ControlError> {
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
    pub(crate) fn must(&mut self, command: Control) -> Answer {
        let kills = std::mem::take(&mut self.kills_per_mille);
        let answer = self.ask(command.clone());
        self.kills_per_mille = kills;
        answer.unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    pub(crate) fn find_export(&self, name: &str) -> Option<ExportIndex> {
        self.store.exports().find(|(_, served)| served.info().name == name).map(|(index, _)| index)
    }

    /// A request, and its reply.
    pub(crate) fn request(
        &mut self,
        export: ExportIndex,
        offset: u64,
        length: u64,
        command: Command,
    ) -> Result<Payload, Errno> {
        self.requests += 1;
        let id = RequestId { connection: 0, index: self.requests };
        let length = u32::try_from(length).expect("a short request");
        let request = Request { id, offset, length, command };
        with_io!(self, |store, io| store.start(export, request, io));
        for _ in 0..STEPS_MAX {
            self.replied();
            if let Some(at) = self.replies.iter().position(|reply| reply.id == id) {
                return self.replies.swap_remove(at).outcome;
            }
            self.step();
        }
        panic!("a request is never answered");
    }

    pub(crate) fn write(&mut self, volume: &str, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let export = self.find_export(volume).expect("it is served");
        let mut buf = self.buffers.take(bytes.len());
        buf.copy_from_slice(bytes);
        self.request(export, offset, bytes.len() as u64, Command::Write { buf, fua: false }).map(drop)
    }

    pub(crate) fn zero(&mut self, volume: &str, offset: u64, length: u64) -> Result<(), Errno> {
        let export = self.find_export(volume).expect("it is served");
        self.request(export, offset, length, Command::Trim { fua: false }).map(drop)
    }

    /// Everything that an export shows, as its clients read it.
    pub(crate) fn read(&mut self, name: &str, size: u64) -> Vec<u8> {
        let export = self.find_export(name).unwrap_or_else(|| panic!("{name} is not served"));
        let mut all = Vec::new();
        for offset in (0..size).step_by(1 << 20) {
            let length = (size - offset).min(1 << 20);
            let buf = self.buffers.take(usize::try_from(length).expect("a small volume"));
            match self.request(export, offset, length, Command::Read { buf, holes: false }) {
                Ok(Payload::Data(buf)) => all.extend_from_slice(&buf),
                Ok(Payload::Extents(extents)) => {
                    for extent in extents {
                        match extent {
                            nbd_server::export::Extent::Data(buf) => all.extend_from_slice(&buf),
                            nbd_server::export::Extent::Hole(bytes) => {
                                all.resize(all.len() + bytes as usize, 0);
                            }
                        }
                    }
                }
                other => panic!("{name} cannot be read: {other:?}"),
            }
        }
        all
    }

    /// Whether a sync has failed: the daemon must be started again.
    pub(crate) fn is_failed(&mut self) -> bool {
        match self.must(Control::Status) {
            Answer::Status(status) => status.health != Health::Ok,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn inject(&mut self, fault: Fault) {
        self.disk.inject(fault);
    }
}

pub(crate) fn name(volume: &str, snapshot: &str) -> SnapshotName {
    SnapshotName { volume: volume.to_owned(), snapshot: snapshot.to_owned() }
}
