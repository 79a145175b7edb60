//! Temporary exports: bodies, handlers, and the client's side of them.
//!
//! Whoever makes one may hold it: then the answer is a stream that stays open, and the export ends with it.

use std::time::Duration;

use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::State as Extract;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use hyper::Method;
use local_api::http::HttpError;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::answer::{Body, Refusal, Segment};
use super::client::{Client, ClientError, escape};
use super::long::{CHUNKS_WAITING_MAX, Chunks};
use super::routes::{Context, Reply, State};
use super::types::{Done, Kind};
use crate::control::{ControlError, ErrorKind};
use crate::nbd_door::{Ended, Made, NbdDoor, TemporaryExport, Wanted};

/// `POST /v1/exports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateExport {
    /// The export that it stands for: `VOLUME`, `VOLUME@SNAPSHOT`, or a replica.
    pub name: String,
    /// How long it lasts, 1000 to 604800000 (7 days).
    pub ttl_ms: u64,
    /// Its name is a secret, for one use.
    #[serde(default)]
    pub token: bool,
    /// Its clients may write.
    #[serde(default)]
    pub write: bool,
    /// It ends with this request's connection: the answer is a stream of [`HeldLine`]s.
    #[serde(default)]
    pub hold: bool,
}

/// A temporary export that was made. What opens it may be a secret, so this cannot be printed by accident.
#[derive(Clone, Serialize, Deserialize)]
pub struct CreatedExport {
    /// As it is listed.
    pub export: TemporaryExport,
    /// The name that clients open it by.
    pub open_as: String,
    /// How to open it, as an NBD URI; missing when the daemon listens nowhere that it knows of.
    pub uri: Option<String>,
}

/// A line of the answer to who holds a temporary export (`application/x-ndjson`): first `created`, last `ended`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldLine {
    /// It is there.
    Created(CreatedExport),
    /// It is over.
    Ended(Ended),
}

impl Client {
    /// Makes a temporary export that lasts its time, whoever made it.
    ///
    /// # Errors
    /// What the daemon says, or that it cannot be reached.
    pub async fn create_export(&self, wanted: &CreateExport) -> Result<CreatedExport, ClientError> {
        self.post_for("/v1/exports", wanted).await
    }

    /// Makes one that ends when this call does, and waits for that.
    ///
    /// # Errors
    /// As [`Self::create_export`].
    pub async fn hold_export(
        &self,
        wanted: &CreateExport,
        mut on_created: impl FnMut(CreatedExport),
    ) -> Result<Ended, ClientError> {
        let ended = self.post_lines("/v1/exports", wanted, |line| match line {
            HeldLine::Created(created) => {
                on_created(created);
                Ok(None)
            }
            HeldLine::Ended(why) => Ok::<_, HttpError>(Some(why)),
        });
        ended.await
    }

    /// Ends one, and disconnects its clients.
    ///
    /// # Errors
    /// `not_found`, and as [`Self::create_export`].
    pub async fn remove_export(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/exports/{}", escape(name));
        self.ask::<Done>(Method::DELETE, &path, Vec::new()).await.map(drop)
    }
}

pub(super) async fn create(
    Extract(state): Context,
    Body(wanted): Body<CreateExport>,
) -> Result<Response, Refusal> {
    let door = state.service.door.clone();
    let ttl = Duration::from_millis(wanted.ttl_ms);
    let asked = Wanted { write: wanted.write, token: wanted.token, ttl };
    let made = door.create_temporary(&wanted.name, &asked).map_err(|error| refusal(error, &wanted.name))?;
    state.service.events.record("export_created", made.export.name.clone(), lasts(&made.export, ttl));
    let Made { export, open_as, ended } = made;
    let label = export.name.clone();
    let uri = state.service.nbd.uri(&open_as);
    let created = CreatedExport { export, open_as, uri };
    if wanted.hold {
        return Ok(hold(door, created, ttl, ended));
    }
    tokio::spawn(watch_over(door, label, ttl, ended, std::future::pending()));
    Ok(Json(created).into_response())
}

/// With what to do about it.
fn refusal(error: ControlError, name: &str) -> Refusal {
    let next = match error.kind {
        ErrorKind::NotFound => "blockctl export list".to_owned(),
        ErrorKind::Refused => format!("blockctl export create {name} --ttl TIME    (without --write)"),
        ErrorKind::Busy => "blockctl export list    (and export remove NAME:tmp-ID)".to_owned(),
        _ => "blockctl export create --help".to_owned(),
    };
    Refusal(error.into()).with_next(next)
}

fn lasts(export: &TemporaryExport, ttl: Duration) -> String {
    let access = if export.read_only { "read-only" } else { "writable" };
    let uses = if export.one_use { ", for one use" } else { "" };
    format!("{access}{uses}, for {} s", ttl.as_secs())
}

/// Answers with a stream that the export ends with, whichever is over first.
fn hold(
    door: NbdDoor,
    created: CreatedExport,
    ttl: Duration,
    ended: watch::Receiver<Option<Ended>>,
) -> Response {
    let (lines, receiver) = mpsc::channel::<Bytes>(CHUNKS_WAITING_MAX);
    let label = created.export.name.clone();
    tokio::spawn(async move {
        send(&lines, &HeldLine::Created(created)).await;
        let creator_gone = lines.closed();
        let why = watch_over(door, label, ttl, ended, creator_gone).await;
        send(&lines, &HeldLine::Ended(why)).await;
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::new(Chunks(receiver))).into_response()
}

async fn send(lines: &mpsc::Sender<Bytes>, line: &HeldLine) {
    match serde_json::to_vec(line) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            // A reader who has gone is what the caller looks for next.
            if lines.send(bytes.into()).await.is_err() {
                tracing::debug!("nobody holds the export any more");
            }
        }
        Err(error) => tracing::error!(%error, "a line of an answer has no JSON"),
    }
}

/// Ends a temporary export when its time is up or its creator has gone, unless it ends before.
async fn watch_over(
    door: NbdDoor,
    label: String,
    ttl: Duration,
    mut ended: watch::Receiver<Option<Ended>>,
    creator_gone: impl Future<Output = ()>,
) -> Ended {
    let why = tokio::select! {
        // The table's entry has its sender: it is told before that is gone.
        _ = ended.wait_for(Option::is_some) => None,
        () = tokio::time::sleep(ttl) => Some(Ended::Expired),
        () = creator_gone => Some(Ended::CreatorGone),
    };
    if let Some(why) = why {
        door.end_temporary(&label, why);
    }
    let told = *ended.borrow();
    told.or(why).unwrap_or(Ended::Removed)
}

pub(super) async fn remove(Extract(state): Context, Segment(name): Segment) -> Reply<Done> {
    match state.service.door.end_temporary(&name, Ended::Removed) {
        true => {
            state.service.events.record("export_removed", name, "");
            Ok(Json(Done { done: true }))
        }
        false => Err(not_temporary(&state, &name)),
    }
}

fn not_temporary(state: &State, name: &str) -> Refusal {
    let known = state.service.door.temporary().list();
    let next = match known.first() {
        Some(_) => "blockctl export list    (temporary ones are VOLUME:tmp-…)",
        None => "blockctl volume delete NAME    (a volume's own export goes with the volume)",
    };
    Refusal::new(Kind::NotFound, format!("there is no temporary export {name:?}")).with_next(next)
}
