//! A client of an HTTP API behind a Unix socket: one request a connection. It believes nothing about the answer's size,
//! and waits for no answer longer than it was told to. Both blockd's API and the agent's own are asked through it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::AbortHandle;

use crate::error::{Error, ErrorAnswer, Kind};

/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// Longest line of a streamed answer.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody listens there.
    #[error("{path}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The server said no.
    #[error("{}", .0.message)]
    Refused(Error),
    /// The connection broke, or what came is not what this version understands.
    #[error("the answer is unusable: {0}")]
    Protocol(String),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// A result of asking.
pub type Result<T> = std::result::Result<T, HttpError>;

fn unusable(error: impl std::fmt::Display) -> HttpError {
    HttpError::Protocol(error.to_string())
}

impl HttpError {
    /// As the error of whoever asked `who`; a refusal keeps its kind and words.
    pub fn of(self, who: &str) -> Error {
        let text = format!("{who}: {self}");
        match self {
            Self::Refused(error) => error,
            Self::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Error::one_line(Kind::Forbidden, text)
            }
            Self::Unreachable { .. } | Self::Late(_) => Error::one_line(Kind::Unreachable, text),
            Self::Protocol(_) => Error::one_line(Kind::Io, text),
        }
    }
}

/// Ends the connection's task with its last user.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Asks the server behind one socket.
#[derive(Clone, Debug)]
pub struct HttpClient {
    socket: PathBuf,
    answer_time_max: Duration,
}

impl HttpClient {
    /// A client of whoever listens there; nothing is opened yet. `answer_time_max` limits each answer.
    pub fn new(socket: impl Into<PathBuf>, answer_time_max: Duration) -> Self {
        Self { socket: socket.into(), answer_time_max }
    }

    /// Where the server is expected.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, Connection)> {
        let unreachable = |source| HttpError::Unreachable { path: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unusable)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an API ended");
            }
        });
        let guard = Connection(task.abort_handle());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(unusable)?;
        let response = sender.send_request(request).await.map_err(unusable)?;
        Ok((response, guard))
    }

    /// Asks, within `time_max`.
    ///
    /// # Errors
    /// See [`HttpError`], here and below.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        time_max: Duration,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        let asking = async {
            let (response, _guard) = self.send(method, path, body).await?;
            serde_json::from_slice(&read_body(response).await?).map_err(unusable)
        };
        tokio::time::timeout(time_max, asking).await.map_err(|_| HttpError::Late(time_max))?
    }

    /// `GET`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(self.answer_time_max, Method::GET, path, Vec::new()).await
    }

    /// `POST` with a JSON body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.post_within(self.answer_time_max, path, body).await
    }

    /// `POST` with a JSON body, within `time_max`.
    pub async fn post_within<T: DeserializeOwned>(
        &self,
        time_max: Duration,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(unusable)?;
        self.ask(time_max, Method::POST, path, body).await
    }

    /// `DELETE`.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(self.answer_time_max, Method::DELETE, path, Vec::new()).await
    }

    /// `POST`; each line of the answer is handed to `on_line`, which ends it by returning something.
    pub async fn post_lines<L: DeserializeOwned, T>(
        &self,
        path: &str,
        body: &impl Serialize,
        mut on_line: impl FnMut(L) -> Result<Option<T>>,
    ) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(unusable)?;
        let sending = self.send(Method::POST, path, body);
        let sent = tokio::time::timeout(self.answer_time_max, sending).await;
        let (response, _guard) = sent.map_err(|_| HttpError::Late(self.answer_time_max))??;
        if !response.status().is_success() {
            return Err(read_body(response).await.err().unwrap_or_else(|| unusable("no error")));
        }
        let mut body = response.into_body();
        let mut gathered = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(unusable)?.into_data() else { continue };
            gathered.extend_from_slice(&data);
            for line in take_lines::<L>(&mut gathered)? {
                if let Some(end) = on_line(line)? {
                    return Ok(end);
                }
            }
        }
        Err(unusable("it broke off before its end"))
    }
}

/// The body of a success.
async fn read_body(response: Response<Incoming>) -> Result<Bytes> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(unusable)?;
    let body = body.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice::<ErrorAnswer>(&body) {
        Ok(answer) => Err(HttpError::Refused(answer.error)),
        Err(_) => Err(unusable(format!("status {status}, and not a word that this version knows"))),
    }
}

/// Takes the whole lines out of what was received.
fn take_lines<T: DeserializeOwned>(gathered: &mut Vec<u8>) -> Result<Vec<T>> {
    let Some(end) = gathered.iter().rposition(|&byte| byte == b'\n') else {
        return if gathered.len() > LINE_BYTES_MAX {
            Err(unusable("a line without an end"))
        } else {
            Ok(Vec::new())
        };
    };
    let rest = gathered.split_off(end + 1);
    let whole = std::mem::replace(gathered, rest);
    let lines = whole[..end].split(|&byte| byte == b'\n');
    lines.map(|line| serde_json::from_slice(line).map_err(unusable)).collect()
}

/// What is not plainly a name's character as `%XX`: names come from people.
pub fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole_and_an_endless_one_is_refused() {
        let mut gathered = b"1\n2\n3".to_vec();
        assert_eq!(take_lines::<u32>(&mut gathered).unwrap(), [1, 2]);
        assert_eq!(gathered, b"3");
        assert!(take_lines::<u32>(&mut vec![b'1'; LINE_BYTES_MAX + 1]).is_err());
    }

    #[test]
    fn a_path_cannot_be_left() {
        assert_eq!(escape("../a b"), "..%2Fa%20b");
    }
}
