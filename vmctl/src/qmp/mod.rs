//! QEMU's monitor protocol over a Unix socket.
//!
//! ```text
//! Client (clones) ─► writer task ─► socket ─► reader task ─┬─► the answer to its command, by id
//!                                                          └─► Events, in order
//! ```
//!
//! What QEMU sends is not believed: lines, waiting events and unanswered commands have limits, an answer that nobody asked
//! for ends the connection, and text is escaped before anybody sees it. After a [`QmpError::Closed`] nothing works any more
//! but a new connection. What deliberately does not live here: what a status means for us (`vm`, `agent`).

mod codec;
mod text;

mod client;
mod pending;

mod commands;
pub mod types;

pub use client::{Client, Connection, Events, Greeting, Limits};
pub use codec::{LINE_BYTES_MAX, LineCodec, LineError};
pub use text::shown;
pub use types::{Event, Version};

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Error, Kind};

/// Why a command has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens there, or we may not.
    #[error("{path}: {reason}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        reason: String,
    },
    /// QEMU said no.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// What was asked.
        command: &'static str,
        /// QEMU's class of errors, as in `CommandNotFound`.
        class: String,
        /// QEMU's words, escaped.
        reason: String,
    },
    /// The answer has not the form that this version knows; the connection goes on.
    #[error("QEMU's answer to {command} is unusable: {reason}")]
    Answer {
        /// What was asked.
        command: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// No answer in time. QEMU may still carry the command out.
    #[error("QEMU did not answer {command} within {} ms", .after.as_millis())]
    Late {
        /// What was asked.
        command: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The connection is gone, and why.
    #[error("the connection to QEMU ended: {0}")]
    Closed(String),
}

impl QmpError {
    pub(crate) fn unreachable(path: impl Into<PathBuf>, error: &io::Error) -> Self {
        Self::Unreachable { path: path.into(), reason: error.to_string() }
    }

    /// Whether the connection still works.
    pub fn is_connected(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Answer { .. } | Self::Late { .. })
    }
}

impl From<QmpError> for Error {
    fn from(error: QmpError) -> Self {
        let kind = match &error {
            QmpError::Refused { .. } => Kind::Refused,
            QmpError::Unreachable { .. } | QmpError::Closed(_) => Kind::Unreachable,
            QmpError::Late { .. } => Kind::Timeout,
            QmpError::Answer { .. } => Kind::Io,
        };
        Self::one_line(kind, error)
    }
}
