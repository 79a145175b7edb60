//! Asking an HTTP API behind a Unix socket: blockd's, and the agent's own.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use local_api::http::Limits;
pub use local_api::http::{HttpClient, HttpError, Result, escape};

use crate::error::{Error, Kind};

/// Bytes of the largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Bytes of the longest line of a streamed answer.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A client of whoever listens there; nothing is opened yet. `answer_time_max` limits each answer.
pub fn client(socket: impl Into<PathBuf>, answer_time_max: Duration) -> HttpClient {
    let limits =
        Limits { answer_bytes_max: ANSWER_BYTES_MAX, line_bytes_max: LINE_BYTES_MAX, answer_time_max };
    HttpClient::new(socket, limits)
}

/// As the error of whoever asked `who`; a refusal keeps its kind and words.
pub fn error_of(error: HttpError, who: &str) -> Error {
    let text = format!("{who}: {error}");
    match error {
        HttpError::Refused(error) => error,
        HttpError::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Error::one_line(Kind::Forbidden, text)
        }
        HttpError::Unreachable { .. } | HttpError::Late(_) => Error::one_line(Kind::Unreachable, text),
        HttpError::Protocol(_) => Error::one_line(Kind::Io, text),
    }
}
