//! A client of an HTTP API behind a Unix socket: one request a connection. It believes nothing about the answer's size,
//! and waits for no ordinary answer longer than it was told to.

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

use crate::error::{ErrorAnswer, ErrorBody};

/// What a client takes from a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the largest answer that is read.
    pub answer_bytes_max: usize,
    /// Bytes of the longest line of a streamed answer.
    pub line_bytes_max: usize,
    /// How long an ordinary answer may take.
    pub answer_time_max: Duration,
}

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
    Refused(ErrorBody),
    /// The connection broke, or what came is not what this version understands.
    #[error("the answer is unusable: {0}")]
    Protocol(String),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
}

/// A result of asking.
pub type Result<T> = std::result::Result<T, HttpError>;

/// The error of an answer, or of a question, that cannot be used.
pub fn unusable(error: impl std::fmt::Display) -> HttpError {
    HttpError::Protocol(error.to_string())
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
    limits: Limits,
}

impl HttpClient {
    /// A client of whoever listens there; nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>, limits: Limits) -> Self {
        Self { socket: socket.into(), limits }
    }

    /// The same, with another patience.
    #[must_use]
    pub fn with_answer_time_max(mut self, answer_time_max: Duration) -> Self {
        self.limits.answer_time_max = answer_time_max;
        self
    }

    /// How long an ordinary answer may take.
    pub fn answer_time_max(&self) -> Duration {
        self.limits.answer_time_max
    }

    /// Where the server is expected.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks, and waits without a limit for the answer's beginning: some begin when the work is done.
    ///
    /// # Errors
    /// See [`HttpError`], here and below.
    pub async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer> {
        let unreachable = |source| HttpError::Unreachable { path: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unusable)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an API ended");
            }
        });
        let connection = Connection(task.abort_handle());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(unusable)?;
        let response = sender.send_request(request).await.map_err(unusable)?;
        Ok(Answer { response, limits: self.limits, _connection: connection })
    }

    /// Asks, within `time_max`.
    pub async fn ask<T: DeserializeOwned>(
        &self,
        time_max: Duration,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        let asking = async { self.send(method, path, body).await?.json().await };
        tokio::time::timeout(time_max, asking).await.map_err(|_| HttpError::Late(time_max))?
    }

    /// `GET`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(self.limits.answer_time_max, Method::GET, path, Vec::new()).await
    }

    /// `POST` with a JSON body.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.post_within(self.limits.answer_time_max, path, body).await
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
        self.ask(self.limits.answer_time_max, Method::DELETE, path, Vec::new()).await
    }

    /// `GET` of what is no JSON.
    pub async fn get_text(&self, path: &str) -> Result<String> {
        let time_max = self.limits.answer_time_max;
        let asking = async { self.send(Method::GET, path, Vec::new()).await?.text().await };
        tokio::time::timeout(time_max, asking).await.map_err(|_| HttpError::Late(time_max))?
    }

    /// `POST`; each line of the answer is handed to `on_line`, which ends it by returning something.
    pub async fn post_lines<L: DeserializeOwned, T>(
        &self,
        path: &str,
        body: &impl Serialize,
        on_line: impl FnMut(L) -> Result<Option<T>>,
    ) -> Result<T> {
        let time_max = self.limits.answer_time_max;
        let body = serde_json::to_vec(body).map_err(unusable)?;
        let sent = tokio::time::timeout(time_max, self.send(Method::POST, path, body)).await;
        sent.map_err(|_| HttpError::Late(time_max))??.lines(on_line).await
    }
}

/// An answer that has begun.
pub struct Answer {
    response: Response<Incoming>,
    limits: Limits,
    _connection: Connection,
}

impl Answer {
    /// The body of a success.
    async fn bytes(self) -> Result<Bytes> {
        let status = self.response.status();
        let body = Limited::new(self.response.into_body(), self.limits.answer_bytes_max);
        let body = body.collect().await.map_err(unusable)?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<ErrorAnswer>(&body) {
            Ok(answer) => Err(HttpError::Refused(answer.error)),
            Err(_) => Err(unusable(format!("status {status}, and not a word that this version knows"))),
        }
    }

    /// All of it, as JSON.
    ///
    /// # Errors
    /// See [`HttpError`], here and below.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T> {
        serde_json::from_slice(&self.bytes().await?).map_err(unusable)
    }

    /// All of it, as text.
    pub async fn text(self) -> Result<String> {
        String::from_utf8(self.bytes().await?.to_vec()).map_err(unusable)
    }

    /// Each line is handed to `on_line`, which ends it by returning something.
    pub async fn lines<L: DeserializeOwned, T>(
        self,
        mut on_line: impl FnMut(L) -> Result<Option<T>>,
    ) -> Result<T> {
        if !self.response.status().is_success() {
            return Err(self.bytes().await.err().unwrap_or_else(|| unusable("no error")));
        }
        let mut body = self.response.into_body();
        let mut gathered = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(unusable)?.into_data() else { continue };
            gathered.extend_from_slice(&data);
            for line in take_lines::<L>(&mut gathered, self.limits.line_bytes_max)? {
                if let Some(end) = on_line(line)? {
                    return Ok(end);
                }
            }
        }
        Err(unusable("it broke off before its end"))
    }
}

/// Takes the whole lines out of what was received.
fn take_lines<T: DeserializeOwned>(gathered: &mut Vec<u8>, line_bytes_max: usize) -> Result<Vec<T>> {
    let Some(end) = gathered.iter().rposition(|&byte| byte == b'\n') else {
        return if gathered.len() > line_bytes_max {
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
        assert_eq!(take_lines::<u32>(&mut gathered, 8).unwrap(), [1, 2]);
        assert_eq!(gathered, b"3");
        assert!(take_lines::<u32>(&mut vec![b'1'; 9], 8).is_err());
    }

    #[test]
    fn a_path_cannot_be_left() {
        assert_eq!(escape("../a b"), "..%2Fa%20b");
    }
}
