//! A client of the API: one request a connection, the answers typed. It believes nothing about their size.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::Method;
pub(super) use local_api::http::escape;
use local_api::http::{HttpClient, HttpError, Limits};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{
    CreateSnapshots, CreateVolume, DiffQuery, Done, End, ErrorBody, ExportInfo, Exports, Line, NewName,
    Reason, ResizeVolume, Scrub, Snapshots, Status, Volumes,
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

impl From<HttpError> for ClientError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Unreachable { path, source } => Self::Unreachable { path, source },
            HttpError::Refused(error) => Self::Refused(error),
            HttpError::Protocol(why) => Self::Protocol(why),
            HttpError::Late(time_max) => Self::Late(time_max),
        }
    }
}

/// Talks to the daemon behind a socket.
#[derive(Clone, Debug)]
pub struct Client {
    http: HttpClient,
}

impl Client {
    /// A client of the daemon that listens on that socket. Nothing is opened yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let limits = Limits {
            answer_bytes_max: ANSWER_BYTES_MAX,
            line_bytes_max: LINE_BYTES_MAX,
            answer_time_max: ANSWER_TIME_MAX,
        };
        Self { http: HttpClient::new(socket, limits) }
    }

    /// The same, with less patience.
    #[must_use]
    pub fn with_answer_time_max(self, answer_time_max: Duration) -> Self {
        Self { http: self.http.with_answer_time_max(answer_time_max) }
    }

    /// Where the daemon is expected.
    pub fn socket(&self) -> &Path {
        self.http.socket()
    }

    pub(super) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T> {
        Ok(self.http.ask(self.http.answer_time_max(), method, path, body).await?)
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

    /// Sends a body, and hands each line of the answer to `on_line`, which ends it by returning something.
    pub(super) async fn post_lines<L: DeserializeOwned, T>(
        &self,
        path: &str,
        body: &impl Serialize,
        on_line: impl FnMut(L) -> std::result::Result<Option<T>, HttpError>,
    ) -> Result<T> {
        Ok(self.http.post_lines(path, body, on_line).await?)
    }

    /// Reads an answer line by line; the result is its last line.
    pub(super) async fn lines(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        mut on_line: impl FnMut(Line),
    ) -> Result<End> {
        let answer = self.http.send(method, path, body).await?;
        let end = answer.lines(|line| match line {
            Line::End(end) => Ok(Some(end)),
            Line::Error(error) => Err(HttpError::Refused(error)),
            other => {
                on_line(other);
                Ok(None)
            }
        });
        Ok(end.await?)
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
        Ok(self.http.ask(wait + self.http.answer_time_max(), Method::GET, &path, Vec::new()).await?)
    }
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
