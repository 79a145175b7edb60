//! The one error that travels: between daemon and client as JSON, inside as a value.

use std::fmt;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// The body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What went wrong.
    pub error: ErrorBody,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ErrorBody {
    /// For programs.
    pub kind: Kind,
    /// For people, one line.
    pub message: String,
    /// What to do about it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Kinds of errors, for programs; their words are a contract (docs/api.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A name that is none.
    BadName,
    /// A size or another value that cannot be.
    BadValue,
    /// There is no such volume, snapshot, export, VM or host.
    NotFound,
    /// The name is taken.
    Exists,
    /// Clients are connected, it runs, or another operation holds it.
    Busy,
    /// A hold, a snapshot, a clone or its state forbids it.
    Refused,
    /// There is no room: in the pool, the metadata or the file system.
    NoSpace,
    /// The medium, the system or QEMU failed.
    Io,
    /// What is stored is not what was written.
    Damaged,
    /// The daemon is stopping.
    Stopping,
    /// What another host sends is older than what is here, or its epoch is.
    Stale,
    /// The request is none that this version knows: path, method, JSON or field.
    BadRequest,
    /// The body has more than 1 MiB.
    TooLarge,
    /// It did not happen in time: a request arrives within ten seconds.
    Timeout,
    /// This user may not talk to the daemon.
    Forbidden,
    /// Too much at once: connections, or long-running requests.
    Overloaded,
    /// Nobody answers: another host, another daemon or QEMU.
    Unreachable,
    /// A kind of a later version.
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// Every kind that the server sends.
    pub const ALL: [Self; 17] = [
        Self::BadName,
        Self::BadValue,
        Self::NotFound,
        Self::Exists,
        Self::Busy,
        Self::Refused,
        Self::NoSpace,
        Self::Io,
        Self::Damaged,
        Self::Stopping,
        Self::Stale,
        Self::BadRequest,
        Self::TooLarge,
        Self::Timeout,
        Self::Forbidden,
        Self::Overloaded,
        Self::Unreachable,
    ];

    /// The HTTP status that goes with it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadName | Self::BadValue | Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Exists | Self::Busy | Self::Refused | Self::Stale => StatusCode::CONFLICT,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Self::Io | Self::Damaged | Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Stopping | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Timeout => StatusCode::REQUEST_TIMEOUT,
            Self::Unreachable => StatusCode::BAD_GATEWAY,
            Self::Forbidden => StatusCode::FORBIDDEN,
        }
    }
}

impl ErrorBody {
    /// An error of that kind, in those words.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), next: None }
    }

    /// The same out of words that may have several lines, as other programs' have: they are joined.
    pub fn one_line(kind: Kind, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Self::new(kind, lines.join("; "))
    }

    /// The same, with the next command to type, unless that is said already.
    #[must_use]
    pub fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next.get_or_insert_with(|| next.into());
        self
    }

    /// The same, with what was being done in front.
    #[must_use]
    pub fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_later_is_unknown_and_others_keep_their_word() {
        let error: ErrorBody = serde_json::from_str(r#"{"kind":"new_thing","message":"x"}"#).unwrap();
        assert_eq!(error.kind, Kind::Unknown);
        assert_eq!(serde_json::to_string(&Kind::NotFound).unwrap(), "\"not_found\"");
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(ErrorBody::one_line(Kind::Io, "a\n\n  b\n").message, "a; b");
    }
}
