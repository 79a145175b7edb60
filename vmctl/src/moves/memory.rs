//! QEMU's migration stream between the hosts: Unix sockets at both ends, a tunnel in between.

use std::io;
use std::path::{Path, PathBuf};

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinSet};

use super::record::MULTIFD_MAX;
use super::stream::{dial_memory, reply};
use crate::cutover::ids::MoveId;
use crate::error::{Error, Kind};

/// Bytes on their way in each direction: large, so that the relay is not what limits a move.
const BUFFER_BYTES: usize = 256 << 10;
/// Connections of one migration: one, or as many as multifd has channels and one.
const CONNECTIONS_MAX: usize = MULTIFD_MAX as usize + 1;

/// The source's end: QEMU connects to a socket of ours. Dropped, it ends, and QEMU's migration fails.
pub(super) struct Relay {
    task: AbortHandle,
    socket: PathBuf,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the socket of a migration was gone already");
        }
    }
}

impl Relay {
    /// Listens there, and leads who connects to the other host's QEMU.
    pub(super) fn start(socket: &Path, blockd: &Path, host: &str, id: MoveId) -> io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        let (blockd, host) = (blockd.to_owned(), host.to_owned());
        let task = tokio::spawn(accept(listener, blockd, host, id)).abort_handle();
        Ok(Self { task, socket: socket.to_owned() })
    }
}

async fn accept(listener: UnixListener, blockd: PathBuf, host: String, id: MoveId) {
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if streams.len() < CONNECTIONS_MAX => match accepted {
                // One after the other, in QEMU's order: the QEMU there takes the first that it sees for the main one.
                Ok((near, _)) => match dial_memory(&blockd, &host, id).await {
                    Ok(far) => {
                        streams.spawn(carry(near, far));
                    }
                    Err(error) => tracing::warn!(%error, "memory finds no way to the other host"),
                },
                Err(error) => return tracing::error!(%error, "QEMU's migration cannot be accepted"),
            },
            Some(_) = streams.join_next() => {}
        }
    }
}

async fn carry(mut near: UnixStream, mut far: UnixStream) {
    match copy_bidirectional_with_sizes(&mut near, &mut far, BUFFER_BYTES, BUFFER_BYTES).await {
        Ok((sent, received)) => tracing::debug!(sent, received, "a memory stream has ended"),
        Err(error) => tracing::debug!(%error, "a memory stream broke off"),
    }
}

/// The destination's end: what came is for the QEMU that waits there. The source hears when it is led there.
pub(super) async fn deliver(mut far: UnixStream, socket: &Path) {
    let near = UnixStream::connect(socket).await.map_err(|error| {
        Error::one_line(
            Kind::Unreachable,
            format!("no QEMU waits for memory at {}: {error}", socket.display()),
        )
    });
    let (near, answer) = match near {
        Ok(near) => (Some(near), Ok(())),
        Err(error) => (None, Err(error)),
    };
    match (reply(&mut far, answer).await, near) {
        (Ok(()), Some(near)) => carry(near, far).await,
        (told, _) => tracing::warn!(?told, "memory of a guest that does not come"),
    }
}
