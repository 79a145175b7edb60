//! The API's socket: who may connect, how many at once, for how long, and how it stops.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::fs::{Gid, Mode, chown};
use rustix::process::umask;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::access::{Access, GroupError};
use crate::error::{ErrorAnswer, ErrorBody, Kind};
use crate::events::Events;
use crate::guard::REQUEST_TIME_MAX;
use crate::stall::StallGuard;

/// Connections at once, unless configured otherwise.
pub const CONNECTIONS_MAX_DEFAULT: usize = 64;
/// How long requests under way may take to end when the server stops.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);
/// Refusals being told at once; further unwelcome clients are cut off without a word.
const REFUSALS_MAX: usize = 8;
/// How long an unwelcome client has to say what it wanted.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(1);
/// Pause after a failed accept (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something else stands at the path.
    #[error("there is a file of another kind in its place")]
    NotASocket,
    /// Another server is alive.
    #[error("another server listens on it")]
    InUse,
    /// The configured group cannot be used.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A listening socket whose file is removed when it is dropped.
#[derive(Debug)]
pub struct BoundSocket {
    listener: StdListener,
    file: SocketFile,
}

/// Removes the socket's file at the end.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!(%error, "socket file was gone already");
        }
    }
}

impl BoundSocket {
    /// The listener, and what removes its file.
    pub fn into_parts(self) -> (StdListener, SocketFile) {
        (self.listener, self.file)
    }
}

/// Binds a path: mode 0600, or 0660 with a group. A socket that nobody listens on any more is replaced; anything
/// else that stands there is left alone. The NBD socket may be opened with it as well.
///
/// # Errors
/// See [`BindError`].
pub fn bind(path: &Path, group: Option<&str>) -> Result<BoundSocket, BindError> {
    let access = Access::new(group)?;
    make_room(path)?;
    // Nobody but the owner may connect from the very first moment on: a later chmod would leave a gap.
    let before = umask(Mode::from_raw_mode(0o177));
    let bound = StdListener::bind(path);
    umask(before);
    let socket = BoundSocket { listener: bound?, file: SocketFile(path.to_owned()) };
    if let Some(gid) = access.gid() {
        chown(path, None, Some(Gid::from_raw(gid))).map_err(io::Error::from)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    }
    Ok(socket)
}

fn make_room(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket);
    }
    if StdStream::connect(path).is_ok() {
        return Err(BindError::InUse);
    }
    Ok(std::fs::remove_file(path)?)
}

/// A running API.
pub struct ApiServer {
    stop: watch::Sender<bool>,
    accepting: JoinSet<()>,
    events: Events,
}

/// What is served.
pub struct Api {
    /// The routes; [`whole_body`](crate::guard::whole_body) is one of their layers.
    pub router: Router,
    /// Closed when the server stops, so that nobody waits for one.
    pub events: Events,
    /// What clients are told that they may not talk to: `daemon`, `agent`.
    pub called: &'static str,
}

/// What every accept loop knows.
#[derive(Clone)]
struct Shared {
    router: Router,
    called: &'static str,
    access: Arc<Access>,
    permits: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    stop: watch::Receiver<bool>,
}

impl ApiServer {
    /// Starts to accept clients, in a tokio runtime.
    ///
    /// # Errors
    /// The group is not known, or a listener cannot be used.
    pub fn start(
        listeners: Vec<StdListener>,
        api: Api,
        group: Option<&str>,
        connections_max: usize,
    ) -> Result<Self, BindError> {
        let (stop, stopped) = watch::channel(false);
        let shared = Shared {
            router: api.router,
            called: api.called,
            access: Arc::new(Access::new(group)?),
            permits: Arc::new(Semaphore::new(connections_max)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            stop: stopped,
        };
        let mut accepting = JoinSet::new();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            accepting.spawn(accept(UnixListener::from_std(listener)?, shared.clone()));
        }
        Ok(Self { stop, accepting, events: api.events })
    }

    /// Accepts nobody any more, lets requests under way end for up to two seconds, then cuts them off.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        self.events.close();
        let ended = async { while self.accepting.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_TIME_MAX, ended).await.is_err() {
            tracing::info!("requests that were still under way are cut off");
        }
    }
}

/// Until the server stops.
async fn told(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|&stop| stop).await.is_err() {
        tracing::debug!("the server went away without a word");
    }
}

/// Accepts until told to stop, then waits for its connections; dropped, it takes them along.
async fn accept(listener: UnixListener, mut shared: Shared) {
    let mut connections = JoinSet::new();
    let mut stop = shared.stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => admit(stream, &mut shared, &mut connections),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of the API");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = told(&mut stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn admit(stream: UnixStream, shared: &mut Shared, connections: &mut JoinSet<()>) {
    let allowed = stream.peer_cred().is_ok_and(|peer| {
        let allowed = shared.access.allows(peer);
        if !allowed {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "a user who may not was turned away");
        }
        allowed
    });
    let refusal = if !allowed {
        let called = shared.called;
        ErrorBody::new(Kind::Forbidden, format!("this user may not talk to the {called}"))
            .with_next(format!("become root, or a member of the {called}'s socket_group"))
    } else if let Ok(permit) = Arc::clone(&shared.permits).try_acquire_owned() {
        connections.spawn(serve(stream, shared.router.clone(), shared.stop.clone(), permit));
        return;
    } else {
        tracing::warn!("too many clients of the API");
        ErrorBody::new(Kind::Overloaded, format!("too many clients talk to the {} at once", shared.called))
    };
    if let Ok(permit) = Arc::clone(&shared.refusals).try_acquire_owned() {
        connections.spawn(turn_away(stream, refusal, permit));
    }
}

async fn serve(
    stream: UnixStream,
    router: Router,
    mut stop: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) {
    let io = TokioIo::new(StallGuard::new(stream));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIME_MAX).max_buf_size(64 << 10);
    let mut connection =
        std::pin::pin!(builder.serve_connection(io, TowerToHyperService::new(router)).with_upgrades());
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = told(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a client's connection ended");
    }
}

/// Says why, in HTTP. The request is read first, so that the client is not cut off in the middle of sending it.
async fn turn_away(mut stream: UnixStream, error: ErrorBody, _permit: OwnedSemaphorePermit) {
    let status = error.kind.status();
    let body = serde_json::to_string(&ErrorAnswer { error }).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    let telling = async {
        let mut request = [0; 4096];
        let heard = stream.read(&mut request).await?;
        tracing::debug!(heard, "bytes of a request that is refused");
        stream.write_all(answer.as_bytes()).await
    };
    match tokio::time::timeout(REFUSAL_TIME_MAX, telling).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a refusal was not heard"),
        Err(_) => tracing::debug!("a refused client said nothing"),
    }
}
