//! Why something between hosts was not done.

use std::fmt::Display;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PeerError {
    /// For programs.
    pub kind: PeerErrorKind,
    /// For people, one line; never has a secret in it.
    pub message: String,
    /// What to type about it, if that is known.
    pub next: Option<String>,
}

/// What kind of failure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerErrorKind {
    /// A name that is none.
    BadName,
    /// A token, an address or another value that cannot be.
    BadValue,
    /// There is no such host.
    NotFound,
    /// The name is taken.
    Exists,
    /// A limit is reached for now.
    Busy,
    /// One side does not trust the other, or a token is not accepted.
    Refused,
    /// Nobody answers, or not in time.
    Unreachable,
    /// A file of the identities is not what was written.
    Damaged,
    /// The medium, or the system, failed.
    Io,
}

impl PeerError {
    /// An error of that kind.
    pub fn new(kind: PeerErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), next: None }
    }

    /// The same, with advice.
    #[must_use]
    pub fn with_next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    /// The system failed at something.
    pub(super) fn io(what: impl Display, error: impl Display) -> Self {
        Self::new(PeerErrorKind::Io, format!("{what}: {error}"))
    }

    /// Certificates or random numbers cannot be made, or TLS cannot be set up.
    pub(super) fn crypto(what: &str, error: impl Display) -> Self {
        Self::io(what, error)
    }

    /// There is no host with that name.
    pub(super) fn no_host(name: &str) -> Self {
        Self::new(PeerErrorKind::NotFound, format!("there is no paired host {name}"))
            .with_next("blockctl host list; blockctl host pair --help")
    }
}
