//! Every route, and the short ones' handlers.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State as Extract;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, on};
use axum::{Json, Router};
use tokio::sync::Semaphore;

use super::answer::{Args, Body, Refusal, Segment, Snap, VolumeName, check_name};
use super::types::{
    CreateSnapshots, CreateVolume, Done, EventsQuery, Kind, NewName, PAGE_ITEMS_MAX, PageQuery,
    PinnedSnapshot, Reason, ResizeVolume, Snapshots, Status, Volumes,
};
use super::{
    clients, exports, hosts, jobs, long, metrics, mirrors, moves, prune, replicas, scrub, temporary, tunnel,
};
use crate::control::{Answer, Control, ControlError, ErrorKind, SnapshotInfo, SnapshotName, VolumeInfo};
use crate::events::{EventsPage, now_ms};
use crate::service::Service;

/// Long-running requests at once: each holds a thread, and reads the disk as fast as it can.
const LONG_RUNNING_MAX: usize = 4;
/// How long a follower of events may wait in one request.
const EVENTS_WAIT_MS_MAX: u64 = 60_000;

/// What every handler gets.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) service: Service,
    pub(crate) long_running: Arc<Semaphore>,
    pub(crate) tunnels: Arc<Semaphore>,
}

pub(crate) type Context = Extract<State>;
pub(crate) type Reply<T> = Result<Json<T>, Refusal>;

/// A method, a path, and what it does to a router.
struct Route {
    method: Method,
    path: &'static str,
    add: Box<dyn FnOnce(Router<State>) -> Router<State>>,
}

fn route<H, T>(method: Method, path: &'static str, handler: H) -> Route
where
    H: Handler<T, State>,
    T: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).expect("an ordinary method");
    Route { method, path, add: Box::new(move |router| router.route(path, on(filter, handler))) }
}

fn table() -> Vec<Route> {
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let mut routes = vec![
        route(get.clone(), "/v1/status", status),
        route(get.clone(), "/v1/volumes", volumes),
        route(post.clone(), "/v1/volumes", create_volume),
        route(get.clone(), "/v1/volumes/{name}", volume),
        route(delete.clone(), "/v1/volumes/{name}", delete_volume),
        route(post.clone(), "/v1/volumes/{name}/resize", resize_volume),
        route(post.clone(), "/v1/volumes/{name}/rename", rename_volume),
        route(get.clone(), "/v1/snapshots", snapshots),
        route(post.clone(), "/v1/snapshots", create_snapshots),
        route(get.clone(), "/v1/snapshots/{name}", snapshot),
        route(delete.clone(), "/v1/snapshots/{name}", delete_snapshot),
        route(post.clone(), "/v1/snapshots/{name}/rollback", rollback),
        route(post.clone(), "/v1/snapshots/{name}/clone", clone_snapshot),
        route(post.clone(), "/v1/snapshots/{name}/hold", hold),
        route(post.clone(), "/v1/snapshots/{name}/release", release),
        route(post.clone(), "/v1/snapshots/{name}/pin", pin),
        route(post.clone(), "/v1/snapshots/{name}/hash", long::hash),
        route(post.clone(), "/v1/snapshots/{name}/verify", long::verify),
        route(delete.clone(), "/v1/pins/{pin}", unpin),
        route(get.clone(), "/v1/diff", long::diff),
        route(get.clone(), "/v1/clients", clients::list),
        route(post.clone(), "/v1/clients", clients::create),
        route(delete.clone(), "/v1/clients/{name}", clients::revoke),
        route(get.clone(), "/v1/hosts", hosts::list),
        route(get.clone(), "/v1/hosts/{name}", hosts::show),
        route(delete.clone(), "/v1/hosts/{name}", hosts::remove),
        route(post.clone(), "/v1/hosts/{name}/check", hosts::check),
        route(post.clone(), "/v1/hosts/{name}/trust", hosts::trust),
        route(post.clone(), "/v1/hosts/{name}/limit", hosts::limit),
        route(post.clone(), "/v1/hosts/{name}/tunnel", tunnel::open),
        route(post.clone(), "/v1/host-tokens", hosts::new_token),
        route(post.clone(), "/v1/host-pairings", hosts::pair),
        route(post.clone(), "/v1/scrub", scrub::scrub),
        route(get.clone(), "/v1/exports", exports::list),
        route(get.clone(), "/v1/exports/{name}", exports::show),
        route(post.clone(), "/v1/exports", temporary::create),
        route(delete.clone(), "/v1/exports/{name}", temporary::remove),
        route(get, "/v1/events", events),
    ];
    routes.extend(jobs_table());
    routes.extend(replicas_table());
    routes.extend(moves_table());
    routes
}

fn moves_table() -> Vec<Route> {
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    vec![
        route(get.clone(), "/v1/mirrors", mirrors::list),
        route(post.clone(), "/v1/mirrors", mirrors::begin),
        route(delete, "/v1/mirrors/{name}", mirrors::end),
        route(get.clone(), "/v1/moves", moves::list),
        route(get, "/v1/moves/{id}", moves::show),
        route(post.clone(), "/v1/moves/{id}/freeze", moves::freeze),
        route(post.clone(), "/v1/moves/{id}/release", moves::release),
        route(post.clone(), "/v1/moves/{id}/expect", moves::expect),
        route(post.clone(), "/v1/moves/{id}/own", moves::own),
        route(post, "/v1/moves/{id}/abort", moves::abort),
    ]
}

fn replicas_table() -> Vec<Route> {
    let (get, post) = (Method::GET, Method::POST);
    vec![
        route(get.clone(), "/v1/replicas", replicas::list),
        route(get, "/v1/replicas/{name}", replicas::show),
        route(post.clone(), "/v1/replicas/{name}/promote", replicas::promote),
        route(post.clone(), "/v1/replicas/{name}/demote", replicas::demote),
        route(post, "/v1/replicas/{name}/verify", replicas::verify),
    ]
}

fn jobs_table() -> Vec<Route> {
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    vec![
        route(get.clone(), "/v1/jobs", jobs::list),
        route(post.clone(), "/v1/jobs", jobs::add),
        route(get.clone(), "/v1/jobs/{name}", jobs::show),
        route(delete, "/v1/jobs/{name}", jobs::delete),
        route(Method::PATCH, "/v1/jobs/{name}", jobs::change),
        route(post.clone(), "/v1/jobs/{name}/run", jobs::run),
        route(post.clone(), "/v1/jobs/{name}/cancel", jobs::cancel),
        route(post.clone(), "/v1/jobs/{name}/pause", jobs::pause),
        route(post.clone(), "/v1/jobs/{name}/resume", jobs::resume),
        route(post.clone(), "/v1/sync", jobs::sync),
        route(post, "/v1/volumes/{name}/prune", prune::prune),
        route(get, "/v1/metrics", metrics::metrics),
    ]
}

/// Method and path of every route.
pub fn routes() -> Vec<(String, &'static str)> {
    table().into_iter().map(|route| (route.method.to_string(), route.path)).collect()
}

/// The whole API, without a socket.
pub fn router(service: Service) -> Router {
    let long_running = Arc::new(Semaphore::new(LONG_RUNNING_MAX));
    let state = State { service, long_running, tunnels: Arc::new(Semaphore::new(tunnel::TUNNELS_MAX)) };
    let routed = table().into_iter().fold(Router::new(), |router, route| (route.add)(router));
    routed
        .fallback(unknown_route)
        .method_not_allowed_fallback(unknown_method)
        .layer(axum::middleware::from_fn(local_api::guard::whole_body))
        .with_state(state)
}

async fn unknown_route() -> Refusal {
    Refusal::new(Kind::BadRequest, "there is no such path in version 1 of the API")
}

async fn unknown_method() -> Refusal {
    Refusal::new(Kind::BadRequest, "this path does not know that method")
}

/// An answer of a kind that the command cannot have: a bug of ours, told as a failure.
pub(crate) fn unexpected(answer: &Answer) -> Refusal {
    tracing::error!(?answer, "the engine gave an answer of the wrong kind");
    Refusal::new(Kind::Io, "the daemon gave an answer of the wrong kind")
}

/// Runs a command that changes something, and tells of it.
pub(crate) async fn change(
    service: &Service,
    command: Control,
    event: (&str, String, String),
) -> Reply<Done> {
    match service.call(command).await? {
        Answer::Done => {}
        other => return Err(unexpected(&other)),
    }
    let (kind, subject, message) = event;
    service.events.record(kind, subject, message);
    Ok(Json(Done { done: true }))
}

async fn status(Extract(state): Context) -> Reply<Status> {
    match state.service.call(Control::Status).await? {
        Answer::Status(store) => Ok(Json(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: state.service.events.started_ms(),
            now_ms: now_ms(),
            store: *store,
            nbd_limits: state.service.door.limits(),
            nbd_tls_trouble: clients::trouble(&state).await?,
        })),
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn all_volumes(service: &Service) -> Result<Vec<VolumeInfo>, Refusal> {
    match service.call(Control::ListVolumes).await? {
        Answer::Volumes(mut volumes) => {
            // Pages are cut by name.
            volumes.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(volumes)
        }
        other => Err(unexpected(&other)),
    }
}

pub(crate) async fn all_snapshots(
    service: &Service,
    volume: Option<String>,
) -> Result<Vec<SnapshotInfo>, Refusal> {
    match service.call(Control::ListSnapshots { volume }).await? {
        Answer::Snapshots(mut snapshots) => {
            // Pages are cut by sequence number.
            snapshots.sort_unstable_by_key(|snapshot| snapshot.sequence);
            Ok(snapshots)
        }
        other => Err(unexpected(&other)),
    }
}

/// Cuts a page out of a list that is sorted by `key`, and says where the next one begins.
pub(crate) fn page<T>(
    items: Vec<T>,
    query: &PageQuery,
    is_after: impl Fn(&T) -> bool,
    key: impl Fn(&T) -> String,
) -> Result<(Vec<T>, Option<String>), Refusal> {
    let limit = query.limit.unwrap_or(PAGE_ITEMS_MAX);
    if !(1..=PAGE_ITEMS_MAX).contains(&limit) {
        return Err(Refusal::new(Kind::BadValue, format!("limit must be 1 to {PAGE_ITEMS_MAX}")));
    }
    let mut rest = items.into_iter().filter(|item| is_after(item));
    let taken: Vec<T> = rest.by_ref().take(limit).collect();
    let next = rest.next().and_then(|_| taken.last().map(key));
    Ok((taken, next))
}

async fn volumes(Extract(state): Context, Args(query): Args<PageQuery>) -> Reply<Volumes> {
    let all = all_volumes(&state.service).await?;
    let after = query.after.as_deref().unwrap_or_default();
    let (volumes, next) = page(all, &query, |volume| volume.name.as_str() > after, |v| v.name.clone())?;
    Ok(Json(Volumes { volumes, next }))
}

/// A volume's description.
pub(crate) async fn find_volume(service: &Service, name: &str) -> Result<VolumeInfo, Refusal> {
    let found = all_volumes(service).await?.into_iter().find(|volume| volume.name == name);
    found.ok_or_else(|| Refusal::new(Kind::NotFound, format!("there is no volume {name}")))
}

async fn volume(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<VolumeInfo> {
    find_volume(&state.service, &name).await.map(Json)
}

async fn create_volume(
    Extract(state): Context,
    Body(CreateVolume { name, size }): Body<CreateVolume>,
) -> Reply<Done> {
    check_name(&name)?;
    let event = ("volume_created", name.clone(), format!("{size} bytes"));
    change(&state.service, Control::CreateVolume { name, size }, event).await
}

async fn resize_volume(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Body(ResizeVolume { size }): Body<ResizeVolume>,
) -> Reply<Done> {
    let event = ("volume_resized", name.clone(), format!("{size} bytes"));
    change(&state.service, Control::ResizeVolume { name, size }, event).await
}

async fn rename_volume(
    Extract(state): Context,
    VolumeName(from): VolumeName,
    Body(NewName { to }): Body<NewName>,
) -> Reply<Done> {
    check_name(&to)?;
    let event = ("volume_renamed", from.clone(), format!("is now {to}"));
    change(&state.service, Control::RenameVolume { from, to }, event).await
}

async fn delete_volume(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    let event = ("volume_deleted", name.clone(), String::new());
    change(&state.service, Control::DeleteVolume { name }, event).await
}

async fn snapshots(Extract(state): Context, Args(query): Args<PageQuery>) -> Reply<Snapshots> {
    if let Some(volume) = &query.volume {
        check_name(volume)?;
    }
    let bad = |_| Refusal::new(Kind::BadValue, "after must be a snapshot's sequence number");
    let after = query.after.as_deref().map(str::parse::<u64>).transpose().map_err(bad)?;
    let all = all_snapshots(&state.service, query.volume.clone()).await?;
    let is_after = |snapshot: &SnapshotInfo| after.is_none_or(|after| snapshot.sequence > after);
    let (snapshots, next) = page(all, &query, is_after, |snapshot| snapshot.sequence.to_string())?;
    Ok(Json(Snapshots { snapshots, next }))
}

/// A snapshot's description.
pub(crate) async fn find_snapshot(service: &Service, name: &SnapshotName) -> Result<SnapshotInfo, Refusal> {
    let all = all_snapshots(service, Some(name.volume.clone())).await?;
    let found = all.into_iter().find(|snapshot| snapshot.name == name.snapshot);
    found.ok_or_else(|| Refusal::new(Kind::NotFound, format!("there is no snapshot {name}")))
}

async fn snapshot(Extract(state): Context, Snap(name): Snap) -> Reply<SnapshotInfo> {
    find_snapshot(&state.service, &name).await.map(Json)
}

async fn create_snapshots(
    Extract(state): Context,
    Body(CreateSnapshots { names }): Body<CreateSnapshots>,
) -> Reply<Done> {
    let parsed: Result<Vec<SnapshotName>, ControlError> = names.iter().map(|name| name.parse()).collect();
    let parsed = parsed?;
    if parsed.is_empty() {
        return Err(Refusal::new(Kind::BadValue, "no snapshot is named"));
    }
    let event = ("snapshot_created", names.join(" "), format!("{} in one cut", names.len()));
    change(&state.service, Control::CreateSnapshots { names: parsed }, event).await
}

async fn delete_snapshot(Extract(state): Context, Snap(name): Snap) -> Reply<Done> {
    let event = ("snapshot_deleted", name.to_string(), String::new());
    change(&state.service, Control::DeleteSnapshot { name }, event).await
}

async fn rollback(Extract(state): Context, Snap(name): Snap) -> Reply<Done> {
    let event = ("volume_rolled_back", name.volume.clone(), format!("to {name}"));
    change(&state.service, Control::Rollback { name }, event).await
}

async fn clone_snapshot(
    Extract(state): Context,
    Snap(from): Snap,
    Body(NewName { to }): Body<NewName>,
) -> Reply<Done> {
    check_name(&to)?;
    let event = ("volume_cloned", to.clone(), format!("from {from}"));
    change(&state.service, Control::Clone { from, to }, event).await
}

async fn hold(
    Extract(state): Context,
    Snap(name): Snap,
    Body(Reason { reason }): Body<Reason>,
) -> Reply<Done> {
    check_name(&reason)?;
    let event = ("snapshot_held", name.to_string(), reason.clone());
    change(&state.service, Control::Hold { name, reason }, event).await
}

async fn release(
    Extract(state): Context,
    Snap(name): Snap,
    Body(Reason { reason }): Body<Reason>,
) -> Reply<Done> {
    check_name(&reason)?;
    let event = ("snapshot_released", name.to_string(), reason.clone());
    change(&state.service, Control::Release { name, reason }, event).await
}

async fn pin(Extract(state): Context, Snap(name): Snap) -> Reply<PinnedSnapshot> {
    match state.service.call(Control::Pin { name }).await? {
        Answer::Pinned(pinned) => {
            let chain = pinned.chain.iter().map(|layer| layer.0).collect();
            Ok(Json(PinnedSnapshot { pin: pinned.pin, chain, size: pinned.size }))
        }
        other => Err(unexpected(&other)),
    }
}

async fn unpin(Extract(state): Context, Segment(pin): Segment) -> Reply<Done> {
    let bad = |_| ControlError::new(ErrorKind::BadValue, "a pin is a number");
    let pin = pin.parse().map_err(bad)?;
    match state.service.call(Control::Unpin { pin }).await? {
        Answer::Done => Ok(Json(Done { done: true })),
        other => Err(unexpected(&other)),
    }
}

async fn events(Extract(state): Context, Args(query): Args<EventsQuery>) -> Json<EventsPage> {
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(0).min(EVENTS_WAIT_MS_MAX));
    Json(state.service.events.wait_after(query.after.unwrap_or(0), wait).await)
}
