//! The store at work: on its reactor's thread, reached by NBD clients, commands and metadata threads.
//!
//! ```text
//!  blockctl ─ API ─► queue ─┐                         ┌─► disk operations, replies (the reactor)
//!                           ├─ wake ─► StoreBackend ──┤
//!  metadata threads ─ done ─┘                         └─► directory of exports, answers
//! ```
//!
//! The directory, which handshakes look into, is brought up to date before an answer is given: who was told that a
//! volume exists can open it.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use nbd_server::connection::Nanos;
use nbd_server::disk::{DiskDone, ExportIndex, FileId};
use nbd_server::export::{Backend, Io, Request};
use nbd_server::handshake::Directory;
use nbd_server::reactor::{ReactorSpec, Waker};
use nbd_server::server::{Listener, Server};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::catalog::load::{Loaded, PoolUse};
use crate::catalog::meta::{MetaOp, MetaPort};
use crate::catalog::rocks::RocksMeta;
use crate::catalog::worker::MetaWorker;
use crate::checkpoint::{self, SavedMap};
use crate::control::{Answer, Control, ControlError, ErrorKind, Pinned, SnapshotName};
use crate::daemon::{self, Opening};
use crate::exit_code;
use crate::failure::Failure;
use crate::lock::DataLock;
use crate::nbd_door::Exports;
use crate::open::{self, OpenError, OpenStore};
use crate::recent::RecentFiles;
use crate::service::{DiffExtent, Engine, Recomputed, VerifyReport};
use crate::snapshot::{self, ClosedReader, PoolHandle, Sleeps, Trees, with_pin};
use crate::store::pool::{Pool, PoolFile};
use crate::store::{Store, Token};

/// Commands that wait for the reactor; one more is refused.
const COMMANDS_MAX: usize = 4096;
/// How often the free space of the file system is looked at.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// A snapshot whose layers are being merged is waited for: so often, and so long each time.
const BUSY_TRIES: u32 = 200;
/// See [`BUSY_TRIES`].
const BUSY_PAUSE: Duration = Duration::from_millis(50);

type Reply = oneshot::Sender<Result<Answer, ControlError>>;

/// Commands on their way to the reactor.
#[derive(Default)]
struct Queue {
    commands: Mutex<Commands>,
}

#[derive(Default)]
struct Commands {
    waiting: VecDeque<(Control, Reply)>,
    /// The reactor takes no more.
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Commands> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, command: Control, reply: Reply) {
        let mut commands = self.lock();
        let refusal = if commands.closed {
            ControlError::new(ErrorKind::Stopping, "the daemon is stopping")
        } else if commands.waiting.len() >= COMMANDS_MAX {
            ControlError::new(ErrorKind::Busy, format!("{COMMANDS_MAX} commands wait already"))
        } else {
            return commands.waiting.push_back((command, reply));
        };
        drop(commands);
        send(reply, Err(refusal));
    }

    fn take(&self) -> VecDeque<(Control, Reply)> {
        std::mem::take(&mut self.lock().waiting)
    }

    fn close(&self) {
        let left = {
            let mut commands = self.lock();
            commands.closed = true;
            std::mem::take(&mut commands.waiting)
        };
        for (_, reply) in left {
            send(reply, Err(ControlError::new(ErrorKind::Stopping, "the daemon is stopping")));
        }
    }
}

/// Whoever asked may have gone: then nobody wants to know.
fn send(reply: Reply, answer: Result<Answer, ControlError>) {
    if reply.send(answer).is_err() {
        tracing::debug!("nobody waits for the answer any more");
    }
}

/// The store's way to its worker, which the backend shares.
struct Port(Rc<RefCell<MetaWorker>>);

impl MetaPort for Port {
    fn submit(&mut self, tag: u64, op: MetaOp) {
        self.0.borrow_mut().submit(tag, op);
    }
}

struct StoreBackend {
    store: Store,
    worker: Rc<RefCell<MetaWorker>>,
    queue: Arc<Queue>,
    exports: Arc<Exports>,
    published: u64,
    asked: HashMap<Token, Reply>,
    tokens: u64,
    space: SpaceWatch,
    pins_in_the_way: Arc<AtomicBool>,
}

/// Keeps the pool from taking the room that metadata need.
struct SpaceWatch {
    data: std::path::PathBuf,
    keep_bytes: u64,
    next: Nanos,
}

impl SpaceWatch {
    /// Bytes that the pool may grow by, if it is time to look again.
    fn look(&mut self, now: Nanos) -> Option<u64> {
        if now < self.next {
            return None;
        }
        self.next = now.after(SPACE_INTERVAL);
        let stat = rustix::fs::statvfs(&self.data).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize).saturating_sub(self.keep_bytes))
    }

    /// Whether what metadata need is still there after so many bytes are taken.
    fn has_room_for(&self, bytes: u64) -> io::Result<bool> {
        let stat = rustix::fs::statvfs(&self.data)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize) >= self.keep_bytes.saturating_add(bytes))
    }
}

impl StoreBackend {
    fn take_done(&mut self, io: &mut Io<'_>) {
        loop {
            // Bound before the call: the store may submit, which borrows the worker again.
            let done = self.worker.borrow_mut().take_done();
            let Some(done) = done else { return };
            self.store.meta_done(done, io);
        }
    }

    fn take_commands(&mut self, io: &mut Io<'_>) {
        for (command, reply) in self.queue.take() {
            self.tokens += 1;
            self.asked.insert(Token(self.tokens), reply);
            self.store.command(Token(self.tokens), command, io);
        }
    }

    fn answer(&mut self) {
        if self.published != self.store.version() {
            self.published = self.store.version();
            self.exports.publish(&self.store);
        }
        for (token, answer) in self.store.take_answers() {
            if let Some(reply) = self.asked.remove(&token) {
                send(reply, answer);
            }
        }
    }
}

impl Backend for StoreBackend {
    fn connected(&mut self, export: ExportIndex, _io: &mut Io<'_>) {
        self.store.connected(export);
    }

    fn disconnected(&mut self, export: ExportIndex, _io: &mut Io<'_>) {
        self.store.disconnected(export);
    }

    fn start(&mut self, export: ExportIndex, request: Request, io: &mut Io<'_>) {
        self.store.start(export, request, io);
    }

    fn disk_done(&mut self, _owner: ExportIndex, done: DiskDone, io: &mut Io<'_>) {
        self.store.disk_done(done, io);
    }

    fn woken(&mut self, io: &mut Io<'_>) {
        self.take_done(io);
        self.take_commands(io);
    }

    fn tick(&mut self, now: Nanos, io: &mut Io<'_>) -> Option<Nanos> {
        if let Some(bytes) = self.space.look(now) {
            self.store.set_room(bytes);
        }
        let next = self.store.tick(now, io);
        self.pins_in_the_way.store(self.store.waits_for_pins(), Ordering::Relaxed);
        self.answer();
        // Without room the next write would be refused on the strength of an old look.
        if self.store.has_room() { next } else { next.map(|next| next.min(self.space.next)) }
    }

    fn before_replies(&mut self) {
        self.store.before_replies();
    }

    fn begin_stop(&mut self, io: &mut Io<'_>) {
        self.queue.close();
        self.store.begin_stop(io);
    }

    fn quiescent(&self) -> bool {
        self.store.quiescent()
    }
}

impl StoreBackend {
    /// Only once the reactor has ended: it takes as long as a disk takes for the maps, 128 MiB per TiB mapped.
    fn save_checkpoint(&self) {
        let Some(saved) = self.store.checkpoint() else {
            return tracing::warn!("not everything was finished: no checkpoint is written");
        };
        // The next start opens RocksDB before it removes the checkpoint.
        let room = self
            .space
            .has_room_for(saved.bytes_about())
            .and_then(|room| if room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) });
        if let Err(error) = room.and_then(|()| checkpoint::file::save(&self.space.data, &saved)) {
            tracing::warn!(%error, "no checkpoint could be written: the next start reads all map records");
        }
    }
}

/// The reactor has ended: nothing happens to the store any more.
impl Drop for StoreBackend {
    fn drop(&mut self) {
        self.queue.close();
        self.save_checkpoint();
    }
}

/// The API's way to the store, and the hasher's.
struct Handle {
    queue: Arc<Queue>,
    waker: Waker,
    reader: ClosedReader,
    hasher: OnceLock<Thread>,
    /// Pins stand in the way of reclaiming.
    pins_in_the_way: Arc<AtomicBool>,
}

impl Handle {
    /// Hands a command over and waits for its answer, on a thread that may block.
    fn ask(&self, command: Control) -> Result<Answer, ControlError> {
        let (sender, receiver) = oneshot::channel();
        self.submit(command, sender);
        let gone = |_| ControlError::new(ErrorKind::Stopping, "the daemon is stopping");
        receiver.blocking_recv().map_err(gone)?
    }

    /// Runs work on a snapshot whose layers stay as they are meanwhile. While they are being merged it waits.
    fn pinned<T>(
        &self,
        name: &SnapshotName,
        work: &mut dyn FnMut(&Pinned) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        let mut patience = BUSY_TRIES;
        loop {
            let mut begun = false;
            let result = with_pin(&|command| self.ask(command), name, |pin| {
                begun = true;
                work(pin)
            });
            match result {
                Err(error) if error.kind == ErrorKind::Busy && !begun && patience > 0 => patience -= 1,
                result => return result,
            }
            std::thread::sleep(BUSY_PAUSE);
        }
    }
}

impl Engine for Handle {
    fn submit(&self, command: Control, answer: Reply) {
        let for_hasher = matches!(command, Control::CreateSnapshots { .. } | Control::DeleteVolume { .. });
        self.queue.push(command, answer);
        self.waker.wake();
        if for_hasher && let Some(hasher) = self.hasher.get() {
            hasher.unpark();
        }
    }

    fn closed_reader(&self) -> Option<ClosedReader> {
        Some(self.reader.clone())
    }

    fn diff(
        &self,
        from: Option<&SnapshotName>,
        to: &SnapshotName,
        visit: &mut dyn FnMut(DiffExtent) -> bool,
    ) -> Result<(), ControlError> {
        self.pinned(to, &mut |to| match from {
            Some(from) => self.pinned(from, &mut |from| snapshot::diff(&self.reader, Some(from), to, visit)),
            None => snapshot::diff(&self.reader, None, to, visit),
        })
    }

    fn hash(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<[u8; 32], ControlError> {
        let submit = |command| self.ask(command);
        self.pinned(name, &mut |pinned| snapshot::hash(&self.reader, pinned, &submit, progress))
    }

    fn verify(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<VerifyReport, ControlError> {
        self.pinned(name, &mut |pinned| snapshot::verify(&self.reader, pinned, progress))
    }

    fn recompute(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Recomputed, ControlError> {
        self.pinned(name, &mut |pinned| snapshot::recompute(&self.reader, pinned, progress))
    }
}

/// The thread that hashes new snapshots while nobody waits for it.
struct HasherThread {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl HasherThread {
    fn start(handle: &Arc<Handle>) -> io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let (engine, stopping) = (Arc::clone(handle), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("hasher".to_owned()).spawn(move || {
            let submit = |command| engine.ask(command);
            let in_the_way = Arc::clone(&engine.pins_in_the_way);
            let sleeps = Sleeps { in_the_way, ..Sleeps::default() };
            snapshot::run_hasher(&engine.reader, &submit, &stopping, &sleeps);
        })?;
        handle.hasher.get_or_init(|| thread.thread().clone());
        Ok(Self { stop, thread })
    }

    fn end(self) {
        self.stop.store(true, Ordering::Release);
        self.thread.thread().unpark();
        if self.thread.join().is_err() {
            tracing::error!("the hasher has panicked");
        }
    }
}

/// A store that is served.
pub struct Host {
    server: Server,
    handle: Arc<Handle>,
    hasher: HasherThread,
    accepting: Vec<JoinHandle<io::Result<()>>>,
    /// Released last.
    _lock: DataLock,
}

impl Host {
    /// Opens the store and serves its exports.
    ///
    /// # Errors
    /// The store is refused, or the system has no ring for us.
    pub fn start(opening: Opening<'_>) -> Result<Self, Failure> {
        let data = &opening.config.data;
        let store = open::open(opening.config).map_err(|error| refusal(data, &error))?;
        let door = opening.door;
        let (queue, exports) = (Arc::<Queue>::default(), Arc::new(Exports::new(door.clone())));
        let late = Arc::<OnceLock<Waker>>::default();
        let trees = Trees::new(data, store.loaded.store.identity);
        let (lock, reader, parts) = OpenParts::of(store);
        let reader = if opening.config.hash_cache {
            reader.with_trees(trees)
        } else {
            if let Err(error) = trees.remove_others(&BTreeSet::new()) {
                tracing::warn!(%error, "tree caches that nobody uses any more stay");
            }
            reader
        };
        let pins_in_the_way = Arc::<AtomicBool>::default();
        let spec = reactor_spec(parts, data.clone(), &queue, &exports, &late, &pins_in_the_way)
            .map_err(|error| cannot_serve(data, &error))?;
        let directory: Arc<dyn Directory> = Arc::<Exports>::clone(&exports);
        let server = Server::start_with(vec![spec], directory, door.server_config());
        let server = server.map_err(|error| cannot_serve(data, &error))?;
        let waker = server.wakers().pop().expect("one reactor");
        let acceptor = server.acceptor();
        door.attach(acceptor.clone(), &exports);
        let accept = |listener| {
            let (acceptor, door) = (acceptor.clone(), door.clone());
            tokio::spawn(async move {
                if matches!(listener, Listener::Tcp(_)) {
                    door.opened().await;
                }
                acceptor.serve(listener).await
            })
        };
        let accepting = opening.nbd.into_iter().map(accept).collect();
        let handle = Arc::new(Handle { queue, waker, reader, hasher: OnceLock::new(), pins_in_the_way });
        let hasher = HasherThread::start(&handle).map_err(|error| cannot_serve(data, &error))?;
        Ok(Self { server, handle, hasher, accepting, _lock: lock })
    }
}

/// What the reactor's thread is given of an open store.
struct OpenParts {
    loaded: Loaded,
    in_use: PoolUse,
    maps: Vec<SavedMap>,
    files: Vec<nbd_server::reactor::OpenFile>,
    meta: Arc<RocksMeta>,
    mark: crate::catalog::mark::Mark,
    recent: Option<RecentFiles>,
    log_intents: bool,
    ballast: crate::catalog::ballast::Ballast,
    reserve_bytes: u64,
}

impl OpenParts {
    fn of(store: OpenStore) -> (DataLock, ClosedReader, Self) {
        let OpenStore {
            lock,
            loaded,
            in_use,
            maps,
            meta,
            mark,
            ballast,
            files,
            readers,
            recent,
            log_intents,
            reserve_bytes,
        } = store;
        let handles = readers.into_iter().zip(loaded.files.values());
        let handles = handles.map(|(file, record)| {
            let (first, clusters) = (record.first, record.clusters);
            PoolHandle { file: Arc::new(file), first, clusters }
        });
        let reader = ClosedReader::new(Arc::<RocksMeta>::clone(&meta), handles.collect());
        let parts =
            Self { loaded, in_use, maps, files, meta, mark, recent, log_intents, ballast, reserve_bytes };
        (lock, reader, parts)
    }
}

fn reactor_spec(
    parts: OpenParts,
    data: std::path::PathBuf,
    queue: &Arc<Queue>,
    exports: &Arc<Exports>,
    late: &Arc<OnceLock<Waker>>,
    pins_in_the_way: &Arc<AtomicBool>,
) -> io::Result<ReactorSpec> {
    let OpenParts { loaded, in_use, maps, files, meta, mark, recent, log_intents, ballast, reserve_bytes } =
        parts;
    let wake_late = Arc::clone(late);
    let wake = Arc::new(move || {
        // Nothing is submitted before the reactor has set it.
        if let Some(waker) = wake_late.get() {
            waker.wake();
        }
    });
    let worker = MetaWorker::start(meta, mark, ballast, wake)?;
    let (queue, exports, late) = (Arc::clone(queue), Arc::clone(exports), Arc::clone(late));
    let pins_in_the_way = Arc::clone(pins_in_the_way);
    let epoch_ms = crate::events::now_ms();
    let build = move |ids: &[FileId], _pool: &nbd_server::reactor::buffer::Pool, waker: Waker| {
        late.get_or_init(|| waker);
        let worker = Rc::new(RefCell::new(worker));
        let pool = Pool::new(pool_files(&loaded, ids), in_use);
        let mut store = Store::new(loaded, pool, Box::new(Port(Rc::clone(&worker))), epoch_ms);
        store.adopt_maps(maps);
        if let Some(recent) = recent {
            store.keep_recent(Box::new(recent));
        }
        if log_intents {
            store.log_intents();
        }
        exports.publish(&store);
        let keep_bytes = 2 * reserve_bytes;
        let space = SpaceWatch { data, keep_bytes, next: Nanos::default() };
        let published = store.version();
        let asked = HashMap::new();
        let backend = StoreBackend {
            store,
            worker,
            queue,
            exports,
            published,
            asked,
            tokens: 0,
            space,
            pins_in_the_way,
        };
        Box::new(backend) as Box<dyn Backend>
    };
    Ok(ReactorSpec { files, build: Box::new(build) })
}

fn pool_files(loaded: &Loaded, ids: &[FileId]) -> Vec<PoolFile> {
    let files = loaded.files.values().zip(ids);
    files
        .map(|(record, &file)| PoolFile {
            file,
            first: record.first,
            clusters: record.clusters,
            allocated: 1,
        })
        .collect()
}

impl daemon::Backend for Host {
    fn engine(&self) -> Arc<dyn Engine> {
        Arc::<Handle>::clone(&self.handle)
    }

    async fn failed(&mut self) -> io::Error {
        self.server.failed().await
    }

    async fn stop(self) -> Result<(), Failure> {
        for task in &self.accepting {
            task.abort();
        }
        // Its commands get answers as long as the reactor runs.
        let hasher = self.hasher;
        let ended = tokio::task::spawn_blocking(move || hasher.end()).await;
        if let Err(error) = ended {
            tracing::error!(%error, "the hasher has not ended");
        }
        let stats = self.server.stop().await.map_err(|error| {
            Failure::new(exit_code::FAILED, "the store failed while it stopped", error, "blockd fsck DIR")
        })?;
        tracing::info!(connections = stats.connections, requests = stats.requests, "stopped");
        if stats.abandoned > 0 {
            let why = format!("{} operations did not end in time", stats.abandoned);
            return Err(Failure::new(exit_code::FAILED, "not everything was finished", why, "dmesg | tail"));
        }
        Ok(())
    }
}

fn cannot_serve(data: &std::path::Path, error: &dyn std::fmt::Display) -> Failure {
    let what = format!("cannot serve {}", data.display());
    Failure::new(exit_code::FAILED, what, error, "sysctl kernel.io_uring_disabled; ulimit -a")
}

/// Why a store is refused, and what to do.
fn refusal(data: &std::path::Path, error: &OpenError) -> Failure {
    let shown = data.display();
    let (code, next) = match error {
        OpenError::Lock(_) => (exit_code::BUSY, format!("fuser -v {shown}/lock")),
        OpenError::Foreign(..) => {
            (exit_code::REFUSED, format!("ls -la {shown}    (choose an empty directory)"))
        }
        OpenError::Load(_) | OpenError::Pool(..) | OpenError::Intents(..) => {
            (exit_code::VERIFICATION_FAILED, format!("blockd fsck {shown}"))
        }
        OpenError::Recent(place, _) => (
            exit_code::VERIFICATION_FAILED,
            format!("rm {}.?    (gives up what was never flushed)", place.display()),
        ),
        OpenError::Io(_, error) if error.kind() == io::ErrorKind::PermissionDenied => {
            (exit_code::REFUSED, format!("ls -ld {shown}"))
        }
        OpenError::Io(..) => (exit_code::FAILED, format!("df -h {shown}; ls -la {shown}")),
    };
    Failure::new(code, format!("cannot serve {shown}"), error, next)
}
