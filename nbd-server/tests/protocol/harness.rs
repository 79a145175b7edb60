//! A server in this process, on a thread of its own, with a Unix socket (and a TCP port) in a directory of
//! its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fixtures::nbd::client::{Client, Negotiation, Wire};
use fixtures::process::{ProcessError, wait_until};
use nbd_server::connection::Limits;
use nbd_server::image::Image;
use nbd_server::reactor::ReactorStats;
use nbd_server::server::{Listener, Server, ServerConfig};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::exports::{file, pattern};

/// Bytes of the disk that [`TestServer::disk`] serves.
pub(crate) const DISK_BYTES: u64 = 8 << 20;
/// How long anything may take; only a server that hangs needs it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Short limits, so that running into them does not take long.
pub(crate) fn impatient() -> ServerConfig {
    ServerConfig {
        handshake_timeout: Duration::from_millis(200),
        limits: Limits { stall: Duration::from_millis(300), ..Limits::default() },
        ..ServerConfig::default()
    }
}

/// How a stop went.
pub(crate) struct Stopped {
    pub(crate) stats: ReactorStats,
    pub(crate) took: Duration,
}

/// See the module.
pub(crate) struct TestServer {
    dir: TempDir,
    socket: PathBuf,
    tcp: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    stopped: mpsc::Receiver<Stopped>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Controls {
    ready: mpsc::Sender<SocketAddr>,
    stop: oneshot::Receiver<()>,
    stopped: mpsc::Sender<Stopped>,
    end: oneshot::Receiver<()>,
}

impl TestServer {
    /// Serves what `images` makes in the server's directory.
    pub(crate) fn start(config: ServerConfig, images: impl FnOnce(&Path) -> Vec<Image>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let images = images(dir.path());
        Self::run(dir, move || Server::start(images, config).expect("the server starts"))
    }

    /// Serves whatever the server that `start` makes does.
    pub(crate) fn start_with(start: impl FnOnce() -> Server + Send + 'static) -> Self {
        Self::run(tempfile::tempdir().expect("a directory"), start)
    }

    fn run(dir: TempDir, start: impl FnOnce() -> Server + Send + 'static) -> Self {
        let socket = dir.path().join("socket");
        let (ready, standing) = mpsc::channel();
        let (stop, stop_seen) = oneshot::channel();
        let (stopped_tell, stopped) = mpsc::channel();
        let (end, end_seen) = oneshot::channel();
        let controls = Controls { ready, stop: stop_seen, stopped: stopped_tell, end: end_seen };
        let path = socket.clone();
        let thread = std::thread::spawn(move || run(start, &path, controls));
        let tcp = standing.recv_timeout(PATIENCE).expect("the server stands");
        Self { dir, socket, tcp, stop: Some(stop), stopped, end: Some(end), thread: Some(thread) }
    }

    /// Serves one writable file of [`DISK_BYTES`] with [`pattern`] in it.
    pub(crate) fn disk(config: ServerConfig) -> Self {
        Self::start(config, |dir| vec![file(dir, "disk", DISK_BYTES as usize, false)])
    }

    /// Serves these.
    pub(crate) fn of(images: Vec<Image>) -> Self {
        Self::of_with(images, ServerConfig::default())
    }

    /// Serves these.
    pub(crate) fn of_with(images: Vec<Image>, config: ServerConfig) -> Self {
        Self::start(config, |_| images)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    #[track_caller]
    pub(crate) fn wire(&self) -> Wire {
        Wire::unix(&self.socket).expect("a connection")
    }

    #[track_caller]
    pub(crate) fn tcp(&self) -> Wire {
        Wire::tcp(self.tcp).expect("a connection")
    }

    #[track_caller]
    pub(crate) fn negotiation(&self) -> Negotiation {
        Negotiation::begin(self.wire()).expect("a greeting")
    }

    /// A client of the default export with structured replies.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        self.client_of("")
    }

    #[track_caller]
    pub(crate) fn client_of(&self, name: &str) -> Client {
        Client::connect(&self.socket, name.as_bytes()).expect("a client is let in")
    }

    /// A client of the default export with simple replies.
    #[track_caller]
    pub(crate) fn simple_client(&self) -> Client {
        Client::connect_simple(&self.socket, b"").expect("a client is let in")
    }

    /// Another client is served: required after every bad one. For servers from [`Self::disk`] the data
    /// are checked, too.
    #[track_caller]
    pub(crate) fn assert_healthy(&self) {
        let mut client = self.client();
        let data = client.read(4096, 4096).expect("another client is served");
        if client.size() == DISK_BYTES {
            assert!(data == pattern(4096, 4096), "another client reads other bytes");
        }
        client.leave().expect("another client leaves");
    }

    /// The server closes this connection and sends nothing more.
    #[track_caller]
    pub(crate) fn assert_closes(&self, wire: &mut Wire) {
        let rest = wire.receive_to_end().expect("the server closes");
        assert!(rest.is_empty(), "the server sent {rest:x?} before it closed");
        self.assert_healthy();
    }

    /// Asks the server to stop; it goes on accepting clients, to send them away.
    pub(crate) fn begin_stop(&mut self) {
        let stop = self.stop.take().expect("stopped once");
        stop.send(()).expect("the server runs");
    }

    /// Waits until a stop is over.
    #[track_caller]
    pub(crate) fn wait_stopped(&self) -> Stopped {
        self.stopped.recv_timeout(PATIENCE).expect("the server stops")
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        // A server that has failed has dropped its ends of the channels: the join tells.
        for sender in [self.stop.take(), self.end.take()].into_iter().flatten() {
            sender.send(()).unwrap_or(());
        }
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            assert!(matches!(ended, Some(Ok(()))), "the server panicked");
        }
    }
}

fn run(start: impl FnOnce() -> Server, socket: &Path, controls: Controls) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(serve(start, socket, controls));
}

async fn serve(start: impl FnOnce() -> Server, socket: &Path, controls: Controls) {
    let server = start();
    let unix = tokio::net::UnixListener::bind(socket).expect("a socket");
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = tcp.local_addr().expect("an address");
    let mut accepting = tokio::task::JoinSet::new();
    for listener in [Listener::Unix(unix), Listener::Tcp(tcp)] {
        let acceptor = server.acceptor();
        accepting.spawn(async move { acceptor.serve(listener).await });
    }
    controls.ready.send(address).expect("the test waits");
    // A test that is dropped closes its ends: that means the same as a message.
    controls.stop.await.unwrap_or(());
    let began = now();
    let stats = server.stop().await.expect("no reactor failed");
    let stopped = Stopped { stats, took: began.elapsed() };
    if controls.stopped.send(stopped).is_ok() {
        controls.end.await.unwrap_or(());
    }
}

/// Lets time pass, as the pace of a client: never as a proof.
#[expect(clippy::disallowed_methods, reason = "a client on a real socket is not simulated")]
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[expect(clippy::disallowed_methods, reason = "the time that a real server takes is what is looked at")]
fn now() -> Instant {
    Instant::now()
}

/// Waits until `look` is true.
#[track_caller]
pub(crate) fn eventually(what: &str, mut look: impl FnMut() -> bool) {
    let found = wait_until::<_, ProcessError>(what, PATIENCE, || Ok(look().then_some(())));
    found.expect("it happens in time");
}
