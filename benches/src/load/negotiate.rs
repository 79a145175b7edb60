//! Connecting: a socket that is in transmission, and what was agreed on.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use fixtures::nbd::client::{ClientError, Negotiation, Wire};
use nbd_server::wire::transmission_flag;

use rustix::net::sockopt::set_socket_send_buffer_size;

use super::Workload;
use crate::trouble::{OrTrouble, Trouble};

/// What a socket may hold of requests on their way, as far as the system allows: a whole queue of writes, not a
/// part of it, so that the server finds them together.
const SEND_BYTES: usize = 1 << 20;

/// Whom the load goes to.
#[derive(Debug, Clone)]
pub struct Target {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The export's name; empty is the default one.
    pub export: String,
    /// Structured replies are not asked for.
    pub simple: bool,
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    /// Bytes.
    pub(super) size: u64,
    /// Transmission flags.
    pub(super) flags: u16,
    /// Whether replies are structured.
    pub(super) structured: bool,
}

impl Target {
    /// A connection.
    ///
    /// # Errors
    /// The server does not listen, does not have the export, or breaks the protocol.
    pub(super) fn connect(&self) -> Result<(OwnedFd, Export), Trouble> {
        self.negotiate().or_trouble(
            || format!("connect to export {:?} at {}", self.export, self.socket.display()),
            "look whether the server runs, and what it exports (nbdinfo --list)",
        )
    }

    fn negotiate(&self) -> Result<(OwnedFd, Export), String> {
        let said = |error: ClientError| match error {
            // The error itself says "the socket failed" only.
            ClientError::Socket(cause) => cause.to_string(),
            other => other.to_string(),
        };
        let mut negotiation = Wire::unix(&self.socket).and_then(Negotiation::begin).map_err(said)?;
        let structured = if self.simple { false } else { agrees(negotiation.structured()).map_err(said)? };
        let client = negotiation.go(self.export.as_bytes()).map_err(said)?;
        let export = Export { size: client.size(), flags: client.flags(), structured };
        let socket = client.into_wire().into_socket().ok_or("a connection without a socket of its own")?;
        set_socket_send_buffer_size(&socket, SEND_BYTES).map_err(|error| error.to_string())?;
        Ok((socket, export))
    }
}

/// A server without structured replies is a server nevertheless.
fn agrees(answer: Result<(), ClientError>) -> Result<bool, ClientError> {
    match answer {
        Ok(()) => Ok(true),
        Err(ClientError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Export {
    /// Whether the load can be put on it.
    ///
    /// # Errors
    /// It is too small, or does not take such requests.
    pub(super) fn check(&self, workload: &Workload) -> Result<(), Trouble> {
        let has = |flag: u16| self.flags & flag != 0;
        let no = |why: &str, next: &str| Err(Trouble::new("put the load on the export", why, next));
        if self.size < workload.block_bytes.into() {
            return no(&format!("it has {} bytes, less than a block", self.size), "use a smaller --bs");
        }
        if workload.pattern.writes() && has(transmission_flag::READ_ONLY) {
            return no("it is read-only", "read from it, or export it for writing");
        }
        if workload.flush_every.is_some() && !has(transmission_flag::SEND_FLUSH) {
            return no("it has no FLUSH", "leave out --fsync");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Pattern;

    #[test]
    fn an_export_that_cannot_take_the_load_is_told_before() {
        let check = |size, flags, pattern, flush_every| {
            let workload =
                Workload { pattern, block_bytes: 4096, depth: 1, connections: 1, flush_every, seed: 0 };
            let checked = Export { size, flags, structured: true }.check(&workload);
            checked.map_err(|trouble| trouble.why)
        };
        let flush = transmission_flag::SEND_FLUSH;
        assert_eq!(check(4096, transmission_flag::READ_ONLY, Pattern::Read, None), Ok(()));
        assert_eq!(check(4096, flush, Pattern::RandWrite, Some(1)), Ok(()));
        assert!(check(4095, flush, Pattern::Read, None).unwrap_err().contains("4095 bytes"));
        assert!(
            check(4096, transmission_flag::READ_ONLY, Pattern::Write, None)
                .unwrap_err()
                .contains("read-only")
        );
        assert!(check(4096, 0, Pattern::Write, Some(32)).unwrap_err().contains("FLUSH"));
    }
}
