//! The daemon's life: sockets, store, API, signals, and the way down.
//!
//! ```text
//! signals → sockets → store (opened by the caller's function) → API → READY … STOPPING → API → store
//! ```

use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use listenfd::ListenFd;
use nbd_server::server::Listener;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use crate::api::server::{self, BindError, SocketFile, bind};
use crate::config::Config;
use crate::decompress::process::Workers;
use crate::events::Events;
use crate::exit_code;
use crate::failure::Failure;
use crate::jobs;
use crate::jobs::carrier::{Carrier, NoPeers};
use crate::jobs::clock::SystemClock;
use crate::jobs::files::JobFiles;
use crate::jobs::runner::Setup;
use crate::nbd_door::NbdDoor;
use crate::peer::{
    CloseAtOnce, LazyPeers, PeerError, PeerErrorKind, PeerHandler, PeerLimits, PeersConfig, Reception,
};
use crate::service::{Engine, NbdAddresses, Service};
use crate::sync::carry::LinkCarrier;
use crate::sync::mirroring::Mirroring;
use crate::sync::replicator::Replicator;

/// The name that a systemd socket unit gives the API's socket (`FileDescriptorName=api`).
const API_SOCKET_NAME: &str = "api";
/// The name of the socket for other hosts (`FileDescriptorName=peer`). All sockets of other names are NBD's.
const PEER_SOCKET_NAME: &str = "peer";

/// What the store is opened with.
pub struct Opening<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// Where to tell of events.
    pub events: Events,
    /// Where NBD clients come from; set to non-blocking.
    pub nbd: Vec<Listener>,
    /// Who of them is let in over TCP, and what he may see. It is opened when the store is.
    pub door: NbdDoor,
}

/// A store that is open and serves its exports.
pub trait Backend: Send {
    /// What the API talks to.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Ends when the store cannot go on; not otherwise. May be dropped and asked for again.
    fn failed(&mut self) -> impl Future<Output = io::Error> + Send;

    /// Finishes requests in flight, commits, closes.
    fn stop(self) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// For a whole process that is a daemon: sessions take and free a megabyte for each batch, and page faults were an
/// eighth of a first copy's processor time.
pub fn keep_freed_memory() {
    nbd_server::reactor::keep_freed_memory();
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// The sockets cannot be opened, the store cannot be opened or has failed.
pub async fn serve<B: Backend>(
    config: &Config,
    open: impl AsyncFnOnce(Opening<'_>) -> Result<B, Failure>,
) -> Result<(), Failure> {
    // Before the sockets: a client that finds one may send SIGTERM as soon as it is done.
    let mut signals = Signals::new().map_err(|error| cannot_start(&error))?;
    let door = NbdDoor::new(config)?;
    let sockets = Sockets::open(config)?;
    let events = Events::default();
    let addresses = sockets.addresses.clone();
    let Parts { api: api_listeners, nbd, peer, files } = sockets.into_parts();
    let mut backend = open(Opening { config, events: events.clone(), nbd, door: door.clone() }).await?;
    let peers = lazy_peers(config, &events);
    if addresses.tcp.is_some() {
        open_door(&door, &peers).await?;
    }
    let service = Service::new(backend.engine(), events.clone(), addresses).with_peers(peers.clone());
    let service = service.with_door(door);
    let replicator = replicator(&service, &peers, config);
    let handler = replicator.clone().map_or_else(
        || Arc::new(CloseAtOnce) as Arc<dyn PeerHandler>,
        |replicator| replicator as Arc<dyn PeerHandler>,
    );
    let handler = Arc::new(Reception { sync: handler, agent_socket: config.agent_socket.clone() });
    let serving_peers = serve_peers(&peers, peer, handler).await?;
    let repairer = replicator.clone();
    let tidying = replicator.clone().map(|replicator| tokio::spawn(replicator.tidy()));
    let jobs = jobs::runner::start(Setup {
        files: JobFiles::new(&config.data),
        configured: config.jobs.clone(),
        service: service.clone(),
        carrier: carrier(replicator),
        clock: Arc::new(SystemClock),
    });
    let service = service.with_jobs(jobs.clone(), &config.name);
    let service = match repairer {
        Some(replicator) => {
            let mirrors = Arc::new(Mirroring(Arc::clone(&replicator)));
            service.with_repairer(Arc::new(replicator)).with_mirrors(mirrors)
        }
        None => service,
    };
    let group = config.socket_group.as_deref();
    let api = server::start(api_listeners, service, group, config.api_connections_max as usize)
        .map_err(|error| socket_failure(&config.socket, &error))?;
    events.record("daemon_started", config.name.clone(), env!("CARGO_PKG_VERSION"));
    notify(NotifyState::Ready);
    let failed = tokio::select! {
        () = signals.any() => None,
        error = backend.failed() => Some(error),
    };
    notify(NotifyState::Stopping);
    // Before the API: who watches a run is told how it ended.
    jobs.stop().await;
    api.stop().await;
    for task in serving_peers.into_iter().chain(tidying) {
        task.abort();
    }
    let stopped = backend.stop().await;
    drop(files);
    match failed {
        Some(error) => Err(store_failure(&error)),
        None => stopped,
    }
}

/// Identity and paired hosts of the data directory; the store has its lock.
fn lazy_peers(config: &Config, events: &Events) -> LazyPeers {
    let (data, name, events) = (config.data.clone(), config.name.clone(), events.clone());
    LazyPeers::new(PeersConfig { data, name, events, limits: PeerLimits::default() })
}

/// Lets NBD clients over TCP come, with this host's identity where that is what they trust.
async fn open_door(door: &NbdDoor, peers: &LazyPeers) -> Result<(), Failure> {
    let peers = match door.needs_peers() {
        true => Some(peers.get().await.map_err(|error| peer_failure(&error))?),
        false => None,
    };
    door.open(peers);
    Ok(())
}

/// Replication, if the store can be replicated.
fn replicator(service: &Service, peers: &LazyPeers, config: &Config) -> Option<Arc<Replicator>> {
    let reader = service.engine().closed_reader()?;
    let (events, keep) = (service.events.clone(), config.replica_keep);
    Some(Replicator::new(service.clone(), reader, peers.clone(), events, keep, Workers::own()))
}

/// Who carries the runs of jobs out.
fn carrier(replicator: Option<Arc<Replicator>>) -> Arc<dyn Carrier> {
    match replicator {
        Some(replicator) => Arc::new(LinkCarrier(replicator)),
        None => Arc::new(NoPeers),
    }
}

/// Lets other hosts in, where there is a socket for them; until the task is aborted.
async fn serve_peers(
    peers: &LazyPeers,
    listener: Option<TcpListener>,
    handler: Arc<dyn PeerHandler>,
) -> Result<Option<JoinHandle<()>>, Failure> {
    let Some(listener) = listener else { return Ok(None) };
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| cannot_start(&error))?;
    let peers = peers.get().await.map_err(|error| peer_failure(&error))?;
    Ok(Some(tokio::spawn(peers.serve(listener, handler))))
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The sockets, inherited or our own.
#[derive(Default)]
struct Sockets {
    api: Vec<UnixListener>,
    nbd: Vec<Listener>,
    peer: Option<TcpListener>,
    addresses: NbdAddresses,
    files: Vec<SocketFile>,
}

/// What becomes of them.
struct Parts {
    api: Vec<UnixListener>,
    nbd: Vec<Listener>,
    peer: Option<TcpListener>,
    files: Vec<SocketFile>,
}

impl Sockets {
    fn open(config: &Config) -> Result<Self, Failure> {
        let mut sockets = Self::default();
        sockets.addresses.tls = !config.insecure_tcp;
        sockets.inherit().map_err(|error| cannot_start(&error))?;
        if sockets.api.is_empty() {
            let listener = sockets.bind_path(&config.socket, config.socket_group.as_deref())?;
            sockets.api.push(listener);
        }
        if sockets.nbd.is_empty() {
            let listener = sockets.bind_path(&config.nbd_unix, config.nbd_group.as_deref())?;
            let fail = |error: io::Error| socket_failure(&config.nbd_unix, &error.into());
            sockets.add_nbd_unix(listener).map_err(fail)?;
        }
        if let Some(address) = config.nbd_listen {
            let fail = |error: io::Error| socket_failure(Path::new(&address.to_string()), &error.into());
            let listener = TcpListener::bind(address).map_err(fail)?;
            sockets.add_nbd_tcp(listener).map_err(fail)?;
        }
        if let (None, Some(address)) = (&sockets.peer, config.peer_listen) {
            let fail = |error: io::Error| socket_failure(Path::new(&address.to_string()), &error.into());
            let listener = TcpListener::bind(address).map_err(fail)?;
            sockets.set_peer(listener).map_err(fail)?;
        }
        Ok(sockets)
    }

    fn into_parts(self) -> Parts {
        Parts { api: self.api, nbd: self.nbd, peer: self.peer, files: self.files }
    }

    /// Takes what systemd hands over; by name, for several kinds may be of one family.
    fn inherit(&mut self) -> io::Result<()> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut fds = ListenFd::from_env();
        for index in 0..fds.len() {
            match fds.take_unix_listener(index) {
                Ok(Some(listener)) if names.get(index) == Some(&API_SOCKET_NAME) => self.api.push(listener),
                Ok(Some(listener)) => self.add_nbd_unix(listener)?,
                Ok(None) => {}
                Err(_) => {
                    if let Some(listener) = fds.take_tcp_listener(index)? {
                        match names.get(index) {
                            Some(&PEER_SOCKET_NAME) => self.set_peer(listener)?,
                            _ => self.add_nbd_tcp(listener)?,
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn bind_path(&mut self, path: &Path, group: Option<&str>) -> Result<UnixListener, Failure> {
        let (listener, file) = bind(path, group).map_err(|error| socket_failure(path, &error))?.into_parts();
        self.files.push(file);
        Ok(listener)
    }

    fn add_nbd_unix(&mut self, listener: UnixListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        // Absolute: clients stand in other directories than we do.
        let address = listener.local_addr()?;
        let path = address.as_pathname().map(std::path::absolute).transpose()?;
        self.addresses.unix = path.map(|path| path.to_string_lossy().into_owned());
        self.nbd.push(Listener::Unix(tokio::net::UnixListener::from_std(listener)?));
        Ok(())
    }

    fn set_peer(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.peer = Some(listener);
        Ok(())
    }

    fn add_nbd_tcp(&mut self, listener: TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        self.addresses.tcp = Some(listener.local_addr()?.to_string());
        self.nbd.push(Listener::Tcp(tokio::net::TcpListener::from_std(listener)?));
        Ok(())
    }
}

fn peer_failure(error: &PeerError) -> Failure {
    let code = match error.kind {
        PeerErrorKind::Damaged => exit_code::VERIFICATION_FAILED,
        PeerErrorKind::Refused => exit_code::REFUSED,
        _ => exit_code::FAILED,
    };
    let next = error.next.clone().unwrap_or_else(|| "ls -la DATA/peer; df -h DATA".to_owned());
    Failure::new(code, "the identity of this host cannot be used", error, next)
}

fn cannot_start(error: &io::Error) -> Failure {
    Failure::new(exit_code::FAILED, "cannot start", error, "ulimit -a    (descriptors)")
}

fn store_failure(error: &io::Error) -> Failure {
    Failure::new(exit_code::FAILED, "the store failed", error, "dmesg | tail; blockd fsck DIR")
}

fn socket_failure(path: &Path, error: &BindError) -> Failure {
    let shown = path.display();
    let (code, next) = match error {
        BindError::NotASocket => (exit_code::BUSY, format!("ls -l {shown}")),
        BindError::InUse => (exit_code::BUSY, format!("fuser -v {shown}")),
        BindError::Group(_) => (exit_code::USAGE, "getent group; groupadd --system blockd".to_owned()),
        BindError::Io(error) => io_advice(&shown.to_string(), error),
    };
    Failure::new(code, format!("cannot listen on {shown}"), error, next)
}

fn io_advice(place: &str, error: &io::Error) -> (u8, String) {
    match error.kind() {
        io::ErrorKind::AddrInUse => (exit_code::BUSY, "ss -ltnp    (shows who listens where)".to_owned()),
        io::ErrorKind::PermissionDenied => (exit_code::REFUSED, format!("ls -ld $(dirname {place})")),
        io::ErrorKind::NotFound => (exit_code::NOT_FOUND, format!("mkdir -p $(dirname {place})")),
        io::ErrorKind::InvalidInput => {
            (exit_code::USAGE, "choose a shorter path: a Unix socket's has at most 107 bytes".to_owned())
        }
        _ => (exit_code::FAILED, "blockd serve --help".to_owned()),
    }
}

/// Without systemd there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd not notified");
    }
}
