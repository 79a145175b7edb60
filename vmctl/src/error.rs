//! The one error that travels: between agent and client as JSON, inside the agent as a value, out of blockd as it came.

use std::fmt;

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

/// What kind of error, for programs; a contract. The words are those of blockd's API (docs/api.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A name that is none.
    BadName,
    /// A value that cannot be.
    BadValue,
    /// There is no such VM, volume or host.
    NotFound,
    /// The name is taken.
    Exists,
    /// It runs, or another operation holds it.
    Busy,
    /// What is asked for is not allowed in this state.
    Refused,
    /// No room.
    NoSpace,
    /// The system or QEMU failed.
    Io,
    /// What is stored is not what was written.
    Damaged,
    /// The daemon is stopping.
    Stopping,
    /// Something newer is there.
    Stale,
    /// The request is none that this version knows: path, method, JSON or field.
    BadRequest,
    /// The body has more than 1 MiB.
    TooLarge,
    /// It did not happen in time.
    Timeout,
    /// This user may not.
    Forbidden,
    /// Too much at once.
    Overloaded,
    /// Nobody answers: QEMU, blockd or another host.
    Unreachable,
    /// A kind of a later version.
    #[serde(other)]
    Unknown,
}

impl Kind {
    /// Every kind that has a name.
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

/// What went wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For programs.
    pub kind: Kind,
    /// For people; one line.
    pub message: String,
    /// The next command to type, if there is a better one than usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl Error {
    /// An error without advice of its own. Lines are joined: an error is one line.
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        let lines: Vec<&str> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Self { kind, message: lines.join("; "), next: None }
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

/// The body of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorAnswer {
    /// What went wrong.
    pub error: Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_of_later_is_unknown_and_others_keep_their_word() {
        let error: Error = serde_json::from_str(r#"{"kind":"new_thing","message":"x"}"#).unwrap();
        assert_eq!(error.kind, Kind::Unknown);
        assert_eq!(serde_json::to_string(&Kind::NotFound).unwrap(), "\"not_found\"");
    }

    #[test]
    fn an_error_is_one_line() {
        assert_eq!(Error::new(Kind::Io, "a\n\n  b\n").message, "a; b");
    }
}
