//! The agent's life.
//!
//! ```text
//! signals → lock → records, owners → socket → READY … STOPPING → API; the QEMUs stay as they are
//! ```

use std::io;
use std::path::Path;

use local_api::server::{Api, ApiServer, BindError, bind};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::api::router;
use super::registry::Registry;
use crate::config::Config;
use crate::error::Error;
use crate::exit_code;
use crate::failure::{self, Failure};
use crate::journal::{DataLock, LockError};
use crate::moves::Moves;
use crate::vm::places::private_dir;

/// What a line on standard error says when clients can come; what starts an agent may wait for it.
const READY: &str = "ready";
/// Connections to the API at once.
const CONNECTIONS_MAX: usize = 64;

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// The directories or the socket cannot be used, or another agent has them.
pub async fn run(config: Config) -> Result<(), Failure> {
    // Before the socket: a client that finds it may send SIGTERM as soon as it is done.
    let mut signals = Signals::new().map_err(|error| cannot_start(&error))?;
    let lock = take_lock(&config.data)?;
    let socket = bind(&config.socket, config.socket_group.as_deref());
    let socket = socket.map_err(|error| socket_failure(&config.socket, &error))?;
    let registry = Registry::open(config.clone());
    let registry =
        registry.map_err(|error| failure::of_error("cannot read the VMs' records", &Error::from(error)))?;
    let moves = Moves::open(registry.clone()).await;
    let moves = moves.map_err(|error| failure::of_error("cannot read the moves' journal", &error))?;
    std::fs::create_dir_all(&config.run).map_err(|error| cannot_start(&error))?;
    let peers =
        bind(&config.peer_socket, None).map_err(|error| socket_failure(&config.peer_socket, &error))?;
    let (peers, peers_file) = peers.into_parts();
    let receiving = moves.receive(peers);
    let receiving = receiving.map_err(|error| failure::of_error("cannot take other agents in", &error))?;
    let receiving = tokio::spawn(receiving);
    let (listener, file) = socket.into_parts();
    let events = registry.host().events.clone();
    let api = Api { router: router(registry.clone(), moves), events, called: "agent" };
    let api = ApiServer::start(vec![listener], api, config.socket_group.as_deref(), CONNECTIONS_MAX)
        .map_err(|error| socket_failure(&config.socket, &error))?;
    registry.host().events.record("agent_started", "", env!("CARGO_PKG_VERSION"));
    tracing::info!(socket = %config.socket.display(), "{READY}");
    notify(NotifyState::Ready);
    signals.any().await;
    notify(NotifyState::Stopping);
    api.stop().await;
    receiving.abort();
    drop((file, peers_file, lock));
    Ok(())
}

fn take_lock(data: &Path) -> Result<DataLock, Failure> {
    let shown = data.display();
    private_dir(data).map_err(|error| {
        Failure::new(exit_code::FAILED, format!("cannot use {shown}"), error, format!("ls -ld {shown}"))
    })?;
    DataLock::take(data, "another agent").map_err(|error| match error {
        LockError::Held(..) => Failure::new(
            exit_code::BUSY,
            format!("cannot use {shown}"),
            error,
            format!("fuser -v {shown}/lock    (one agent a directory)"),
        ),
        LockError::Io(..) => {
            Failure::new(exit_code::FAILED, format!("cannot use {shown}"), error, format!("ls -la {shown}"))
        }
    })
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

fn cannot_start(error: &io::Error) -> Failure {
    Failure::new(exit_code::FAILED, "cannot start", error, "ulimit -a    (descriptors)")
}

fn socket_failure(path: &Path, error: &BindError) -> Failure {
    let shown = path.display();
    let (code, next) = match error {
        BindError::NotASocket => (exit_code::BUSY, format!("ls -l {shown}")),
        BindError::InUse => (exit_code::BUSY, format!("fuser -v {shown}")),
        BindError::Group(_) => (exit_code::USAGE, "getent group; groupadd --system vmctl".to_owned()),
        BindError::Io(error) if error.kind() == io::ErrorKind::NotFound => {
            (exit_code::NOT_FOUND, format!("mkdir -p $(dirname {shown})"))
        }
        BindError::Io(error) if error.kind() == io::ErrorKind::InvalidInput => {
            (exit_code::USAGE, "choose a shorter path: a Unix socket's has at most 107 bytes".to_owned())
        }
        BindError::Io(_) => (exit_code::FAILED, format!("ls -ld $(dirname {shown})")),
    };
    Failure::new(code, format!("cannot listen on {shown}"), error, next)
}

/// Without systemd there is nobody to tell.
fn notify(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "systemd not notified");
    }
}
