//! Requests that take long: their answers are lines of JSON, sent as they come up, the result last.

use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body as HttpBody, Bytes};
use axum::extract::State as Extract;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::answer::{Args, Refusal, Snap};
use super::routes::{State, find_snapshot};
use super::types::{DiffQuery, End, Kind, Line, Progress, hex};
use crate::control::{ControlError, SnapshotName};
use crate::service::{Engine, VerifyReport};

/// Lines are gathered up to this many bytes.
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks that may wait for the client.
pub(crate) const CHUNKS_WAITING_MAX: usize = 4;
/// A client that takes nothing for so long is given up, and its work stopped.
pub(crate) const STALL_TIME_MAX: Duration = Duration::from_secs(30);
/// Between two lines of progress.
pub(crate) const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Where a long-running request's lines go.
pub(super) struct Sink {
    chunks: mpsc::Sender<Bytes>,
    gathered: Vec<u8>,
    runtime: Handle,
    told: Option<Instant>,
}

impl Sink {
    /// Adds a line; `false` when the client is gone.
    pub(super) fn line(&mut self, line: &Line) -> bool {
        if let Err(error) = serde_json::to_writer(&mut self.gathered, line) {
            tracing::error!(%error, "a line of an answer has no JSON");
            return false;
        }
        self.gathered.push(b'\n');
        self.gathered.len() < CHUNK_BYTES || self.flush()
    }

    /// Sends what was gathered; `false` when the client is gone or takes nothing.
    pub(super) fn flush(&mut self) -> bool {
        let chunk = Bytes::from(std::mem::take(&mut self.gathered));
        let sent = self.runtime.block_on(async { timeout(STALL_TIME_MAX, self.chunks.send(chunk)).await });
        matches!(sent, Ok(Ok(())))
    }

    /// Says how far it is, now and then; `false` when the client is gone.
    pub(super) fn progress(&mut self, name: &SnapshotName, done: u64, total: u64) -> bool {
        if self.told.is_some_and(|told| told.elapsed() < PROGRESS_INTERVAL) {
            return !self.chunks.is_closed();
        }
        self.told = Some(Instant::now());
        self.line(&Line::Progress(Progress { done, total, name: name.to_string() })) && self.flush()
    }
}

/// A body that is made of chunks as they come.
pub(crate) struct Chunks(pub(crate) mpsc::Receiver<Bytes>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// Runs `work` on a thread of its own and answers with the lines that it writes.
pub(super) fn stream(
    state: &State,
    work: impl FnOnce(&dyn Engine, &mut Sink) -> Result<End, ControlError> + Send + 'static,
) -> Result<Response, Refusal> {
    let busy = |_| Refusal::new(Kind::Overloaded, "too many long-running requests at once; try again later");
    let permit = std::sync::Arc::clone(&state.long_running).try_acquire_owned().map_err(busy)?;
    let (chunks, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    let engine = state.service.engine();
    let mut sink = Sink { chunks, gathered: Vec::new(), runtime: Handle::current(), told: None };
    tokio::task::spawn_blocking(move || {
        let last = match work(&*engine, &mut sink) {
            Ok(end) => Line::End(end),
            Err(error) => Line::Error(error.into()),
        };
        if !(sink.line(&last) && sink.flush()) {
            tracing::debug!("a client left before its answer's end");
        }
        drop(permit);
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::new(Chunks(receiver))).into_response())
}

/// `GET /v1/diff`.
pub(crate) async fn diff(
    Extract(state): Extract<State>,
    Args(DiffQuery { from, to }): Args<DiffQuery>,
) -> Result<Response, Refusal> {
    let from: Option<SnapshotName> = from.map(|name| name.parse()).transpose()?;
    let to: SnapshotName = to.parse()?;
    // What can be refused at once gets a status of its own; later it can only be the last line.
    find_snapshot(&state.service, &to).await?;
    if let Some(from) = &from {
        find_snapshot(&state.service, from).await?;
    }
    stream(&state, move |engine, sink| {
        let (mut count, mut bytes) = (0, 0);
        engine.diff(from.as_ref(), &to, &mut |extent| {
            count += 1;
            bytes += extent.length;
            sink.line(&Line::Extent(extent))
        })?;
        Ok(End { count: Some(count), bytes: Some(bytes), ..End::default() })
    })
}

/// `POST /v1/snapshots/{name}/hash`.
pub(crate) async fn hash(Extract(state): Extract<State>, Snap(name): Snap) -> Result<Response, Refusal> {
    find_snapshot(&state.service, &name).await?;
    stream(&state, move |engine, sink| {
        let hash = engine.hash(&name, &mut |done, total| sink.progress(&name, done, total))?;
        Ok(End { hash: Some(hex(&hash)), ..End::default() })
    })
}

/// `POST /v1/snapshots/{name}/verify`.
pub(crate) async fn verify(Extract(state): Extract<State>, Snap(name): Snap) -> Result<Response, Refusal> {
    find_snapshot(&state.service, &name).await?;
    let events = state.service.events.clone();
    stream(&state, move |engine, sink| {
        let report = engine.verify(&name, &mut |done, total| sink.progress(&name, done, total))?;
        if !report.damaged.is_empty() {
            events.record("snapshot_damaged", name.to_string(), damage(&report));
        }
        Ok(End { report: Some(report), ..End::default() })
    })
}

/// What a report says of damage, for people.
pub(super) fn damage(report: &VerifyReport) -> String {
    let bytes: u64 = report.damaged.iter().map(|extent| extent.length).sum();
    format!("{bytes} bytes in {} places are not what was written", report.damaged.len())
}
