//! A client of the API: one request a connection, the answers typed. It believes nothing about their size.

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

use super::types::{
    CreateSnapshots, CreateVolume, DiffQuery, Done, End, ErrorAnswer, ErrorBody, ExportInfo, Exports, Line,
    NewName, Reason, ResizeVolume, Scrub, Snapshots, Status, Volumes,
};
use crate::control::{SnapshotInfo, VolumeInfo};
use crate::events::EventsPage;

mod jobs;

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Longest line of a streamed answer.
const LINE_BYTES_MAX: usize = 4 << 20;
/// How long an ordinary answer may take, unless said otherwise: longer than any commit on a busy disk.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("{path}: {source}")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("{}", .0.message)]
    Refused(ErrorBody),
    /// The connection broke, or what came is not what this version understands.
    #[error("the daemon's answer is unusable: {0}")]
    Protocol(String),
    /// No answer in time.
    #[error("the daemon did not answer within {} s", .0.as_secs())]
    Late(Duration),
}

type Result<T> = std::result::Result<T, ClientError>;

fn unusable(error: impl std::fmt::Display) -> ClientError {
    ClientError::Protocol(error.to_string())
}

/// Ends the connection's task with its last user.
struct Connection(AbortHandle);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Talks to the daemon behind a socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
    answer_time_max: Duration,
}

impl Client {
    /// A client of the daemon that listens on that socket. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), answer_time_max: ANSWER_TIME_MAX }
    }

    /// The same, with less patience.
    #[must_use]
    pub fn with_answer_time_max(self, answer_time_max: Duration) -> Self {
        Self { answer_time_max, ..self }
    }

    /// Where the daemon is expected.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(Response<Incoming>, Connection)> {
        let unreachable = |source| ClientError::Unreachable { path: self.socket.clone(), source };
        let stream = UnixStream::connect(&self.socket).await.map_err(unreachable)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unusable)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the daemon ended");
            }
        });
        let guard = Connection(task.abort_handle());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "blockd")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(unusable)?;
        let response = sender.send_request(request).await.map_err(unusable)?;
        Ok((response, guard))
    }

    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        self.ask_within(self.answer_time_max, method, path, body).await
    }

    async fn ask_within<T: DeserializeOwned>(
        &self,
        time_max: Duration,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        let asking = async {
            let (response, _guard) = self.send(method, path, body).await?;
            read_answer(response).await
        };
        tokio::time::timeout(time_max, asking).await.map_err(|_| ClientError::Late(time_max))?
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, Vec::new()).await
    }

    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> Result<()> {
        self.post_for::<Done>(path, body).await.map(drop)
    }

    /// A change that is answered with more than that it was done.
    pub(super) async fn post_for<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).map_err(unusable)?;
        self.ask(Method::POST, path, body).await
    }

    /// Reads an answer line by line; the result is its last line.
    pub(super) async fn lines(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        mut on_line: impl FnMut(Line),
    ) -> Result<End> {
        let (response, _guard) = self.send(method, path, body).await?;
        if !response.status().is_success() {
            return read_answer::<End>(response).await;
        }
        let mut body = response.into_body();
        let mut gathered = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(unusable)?.into_data() else { continue };
            gathered.extend_from_slice(&data);
            for line in take_lines(&mut gathered)? {
                match line {
                    Line::End(end) => return Ok(end),
                    Line::Error(error) => return Err(ClientError::Refused(error)),
                    other => on_line(other),
                }
            }
        }
        Err(unusable("it broke off before its end"))
    }

    /// The store as a whole.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub async fn status(&self) -> Result<Status> {
        self.get("/v1/status").await
    }

    /// All volumes, by name.
    pub async fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page: Volumes = self.get(&paged("/v1/volumes", None, after.as_deref())).await?;
            all.extend(page.volumes);
            after = further(after.as_deref(), page.next)?;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// One volume.
    pub async fn volume(&self, name: &str) -> Result<VolumeInfo> {
        self.get(&format!("/v1/volumes/{}", escape(name))).await
    }

    /// A thin volume of zeroes.
    pub async fn create_volume(&self, name: &str, size: u64) -> Result<()> {
        self.post("/v1/volumes", &CreateVolume { name: name.to_owned(), size }).await
    }

    /// Grow.
    pub async fn resize_volume(&self, name: &str, size: u64) -> Result<()> {
        self.post(&format!("/v1/volumes/{}/resize", escape(name)), &ResizeVolume { size }).await
    }

    /// Rename.
    pub async fn rename_volume(&self, from: &str, to: &str) -> Result<()> {
        self.post(&format!("/v1/volumes/{}/rename", escape(from)), &NewName { to: to.to_owned() }).await
    }

    /// Delete.
    pub async fn delete_volume(&self, name: &str) -> Result<()> {
        self.ask::<Done>(Method::DELETE, &format!("/v1/volumes/{}", escape(name)), Vec::new()).await.map(drop)
    }

    /// Snapshots, oldest first; of one volume or of all.
    pub async fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page: Snapshots = self.get(&paged("/v1/snapshots", volume, after.as_deref())).await?;
            all.extend(page.snapshots);
            after = further(after.as_deref(), page.next)?;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// One snapshot, `VOLUME@SNAPSHOT`, here and below.
    pub async fn snapshot(&self, name: &str) -> Result<SnapshotInfo> {
        self.get(&format!("/v1/snapshots/{}", escape(name))).await
    }

    /// One cut.
    pub async fn create_snapshots(&self, names: &[String]) -> Result<()> {
        self.post("/v1/snapshots", &CreateSnapshots { names: names.to_vec() }).await
    }

    /// Delete.
    pub async fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.ask::<Done>(Method::DELETE, &format!("/v1/snapshots/{}", escape(name)), Vec::new())
            .await
            .map(drop)
    }

    /// The volume becomes what the snapshot holds.
    pub async fn rollback(&self, name: &str) -> Result<()> {
        self.ask::<Done>(Method::POST, &format!("/v1/snapshots/{}/rollback", escape(name)), Vec::new())
            .await
            .map(drop)
    }

    /// A new volume that begins as the snapshot.
    pub async fn clone_snapshot(&self, name: &str, to: &str) -> Result<()> {
        self.post(&format!("/v1/snapshots/{}/clone", escape(name)), &NewName { to: to.to_owned() }).await
    }

    /// Adds a reason not to delete.
    pub async fn hold(&self, name: &str, reason: &str) -> Result<()> {
        let body = Reason { reason: reason.to_owned() };
        self.post(&format!("/v1/snapshots/{}/hold", escape(name)), &body).await
    }

    /// Takes a reason away.
    pub async fn release(&self, name: &str, reason: &str) -> Result<()> {
        let body = Reason { reason: reason.to_owned() };
        self.post(&format!("/v1/snapshots/{}/release", escape(name)), &body).await
    }

    /// BLAKE3 of the content, as `End::hash`.
    pub async fn hash(&self, name: &str, on_line: impl FnMut(Line)) -> Result<End> {
        let path = format!("/v1/snapshots/{}/hash", escape(name));
        self.lines(Method::POST, &path, Vec::new(), on_line).await
    }

    /// Compares with the recorded hashes; the report is `End::report`.
    pub async fn verify(&self, name: &str, on_line: impl FnMut(Line)) -> Result<End> {
        let path = format!("/v1/snapshots/{}/verify", escape(name));
        self.lines(Method::POST, &path, Vec::new(), on_line).await
    }

    /// Verifies all snapshots, of one volume or of all, and repairs them if asked to.
    pub async fn scrub(&self, scrub: &Scrub, on_line: impl FnMut(Line)) -> Result<End> {
        let body = serde_json::to_vec(scrub).map_err(unusable)?;
        self.lines(Method::POST, "/v1/scrub", body, on_line).await
    }

    /// The extents that differ.
    pub async fn diff(&self, query: &DiffQuery, on_line: impl FnMut(Line)) -> Result<End> {
        let from = query.from.as_ref().map(|from| format!("from={}&", escape(from))).unwrap_or_default();
        let path = format!("/v1/diff?{from}to={}", escape(&query.to));
        self.lines(Method::GET, &path, Vec::new(), on_line).await
    }

    /// All exports, by name.
    pub async fn exports(&self) -> Result<Vec<ExportInfo>> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            let page: Exports = self.get(&paged("/v1/exports", None, after.as_deref())).await?;
            all.extend(page.exports);
            after = further(after.as_deref(), page.next)?;
            if after.is_none() {
                return Ok(all);
            }
        }
    }

    /// One export.
    pub async fn export(&self, name: &str) -> Result<ExportInfo> {
        self.get(&format!("/v1/exports/{}", escape(name))).await
    }

    /// Events after a number; waits for one if there is none.
    pub async fn events(&self, after: u64, wait: Duration) -> Result<EventsPage> {
        let path = format!("/v1/events?after={after}&wait_ms={}", wait.as_millis());
        self.ask_within(wait + self.answer_time_max, Method::GET, &path, Vec::new()).await
    }
}

async fn read_answer<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T> {
    serde_json::from_slice(&read_body(response).await?).map_err(unusable)
}

async fn read_text(response: Response<Incoming>) -> Result<String> {
    String::from_utf8(read_body(response).await?.to_vec()).map_err(unusable)
}

/// The body of a success.
async fn read_body(response: Response<Incoming>) -> Result<Bytes> {
    let status = response.status();
    let body =
        Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(unusable)?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    match serde_json::from_slice::<ErrorAnswer>(&body) {
        Ok(answer) => Err(ClientError::Refused(answer.error)),
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

pub(super) fn paged(path: &str, volume: Option<&str>, after: Option<&str>) -> String {
    let volume = volume.map(|volume| format!("volume={}", escape(volume)));
    let after = after.map(|after| format!("after={}", escape(after)));
    let query: Vec<String> = volume.into_iter().chain(after).collect();
    format!("{path}?{}", query.join("&"))
}

/// A list must end: a server that answers the same page for ever is not followed.
pub(super) fn further(before: Option<&str>, next: Option<String>) -> Result<Option<String>> {
    if next.is_some() && next.as_deref() == before {
        return Err(unusable("its list does not end"));
    }
    Ok(next)
}

/// What is not plainly a name's character as `%XX`: names come from people.
pub(super) fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    name.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
