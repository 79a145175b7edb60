//! Every route and its handler.

use std::time::Duration;

use axum::extract::{FromRef, State as Extract};
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use local_api::guard;

use super::answer::{Args, Body, Name, Refusal};
use crate::agent::events::EventsPage;
use crate::agent::registry::Registry;
use crate::agent::view::{
    AdoptVm, Console, DefineVm, Done, EventsQuery, StartVm, StatusView, StopVm, VmList, VmState, VmView,
};
use crate::error::{Error, Kind};
use crate::moves::Moves;
use crate::vm::command_line::Beginning;
use crate::vm::places::Places;
use crate::vm::qemu::Qemu;

/// How long a follower of events may wait in one request.
const EVENTS_WAIT_MS_MAX: u64 = 60_000;
/// How long a guest may be given to power off.
const STOP_MS_MAX: u64 = 3_600_000;

type Context = Extract<Registry>;
pub(super) type Reply<T> = Result<Json<T>, Refusal>;

/// The API.
pub fn router(registry: Registry, moves: Moves) -> Router {
    Router::<Shared>::new()
        .route("/v1/status", get(status))
        .route("/v1/vms", get(list).post(define))
        .route("/v1/vms/{name}", get(show).delete(delete))
        .route("/v1/vms/{name}/start", post(start))
        .route("/v1/vms/{name}/stop", post(stop))
        .route("/v1/vms/{name}/console", get(console))
        .route("/v1/adopt", post(adopt))
        .route("/v1/events", get(events))
        .merge(super::moves::routes())
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(guard::whole_body))
        .with_state(Shared { registry, moves })
}

/// What handlers get.
#[derive(Clone)]
pub(crate) struct Shared {
    registry: Registry,
    moves: Moves,
}

impl FromRef<Shared> for Registry {
    fn from_ref(shared: &Shared) -> Self {
        shared.registry.clone()
    }
}

impl FromRef<Shared> for Moves {
    fn from_ref(shared: &Shared) -> Self {
        shared.moves.clone()
    }
}

async fn no_path(uri: Uri) -> Refusal {
    Refusal::new(Kind::BadRequest, format!("there is no path {:?} in this version", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(Kind::BadRequest, format!("there is no {method} for {:?}", uri.path()))
}

fn done() -> Json<Done> {
    Json(Done { done: true })
}

async fn status(Extract(registry): Context) -> Json<StatusView> {
    let host = registry.host();
    let vms = registry.list();
    let qemu = match Qemu::ask(&host.config.qemu).await {
        Ok(qemu) => qemu.version.to_string(),
        Err(error) => error.to_string(),
    };
    let blockd = match host.blockd.status().await {
        Ok(status) => format!("{}, store {}", status.version, status.store.health),
        Err(error) => error.to_string(),
    };
    Json(StatusView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_ms: host.started_ms,
        running: vms.iter().filter(|vm| vm.state == VmState::Running).count(),
        vms: vms.len(),
        qemu,
        blockd,
    })
}

async fn list(Extract(registry): Context) -> Json<VmList> {
    Json(VmList { vms: registry.list() })
}

async fn define(Extract(registry): Context, Body(request): Body<DefineVm>) -> Reply<VmView> {
    Ok(Json(registry.define(request).await?))
}

async fn show(Extract(registry): Context, Name(name): Name) -> Reply<VmView> {
    Ok(Json(registry.view(&name)?))
}

async fn delete(Extract(registry): Context, Name(name): Name) -> Reply<Done> {
    registry.delete(&name).await?;
    Ok(done())
}

async fn start(Extract(registry): Context, Name(name): Name, Body(request): Body<StartVm>) -> Reply<VmView> {
    registry.vm(&name)?.start(Beginning::Boot, !request.paused, None).await?;
    Ok(Json(registry.view(&name)?))
}

async fn stop(Extract(registry): Context, Name(name): Name, Body(request): Body<StopVm>) -> Reply<Done> {
    if request.timeout_ms > STOP_MS_MAX {
        return Err(Error::one_line(Kind::BadValue, "a guest has at most an hour to power off").into());
    }
    let timeout = Duration::from_millis(request.timeout_ms);
    registry.vm(&name)?.stop(timeout, request.force, None).await?;
    Ok(done())
}

async fn console(Extract(registry): Context, Name(name): Name) -> Reply<Console> {
    let view = registry.view(&name)?;
    if view.definition.as_ref().is_some_and(|definition| !definition.serial.enabled) {
        let message = format!("{name} has no serial console that the agent knows of");
        return Err(Error::one_line(Kind::Refused, message).into());
    }
    let config = &registry.host().config;
    let places = Places::new(&config.run, &config.data, &name);
    Ok(Json(Console { socket: places.serial(), log: places.console_log() }))
}

async fn adopt(Extract(registry): Context, Body(request): Body<AdoptVm>) -> Reply<VmView> {
    Ok(Json(registry.adopt(request).await?))
}

async fn events(Extract(registry): Context, Args(query): Args<EventsQuery>) -> Json<EventsPage> {
    let wait = Duration::from_millis(query.wait_ms.unwrap_or(0).min(EVENTS_WAIT_MS_MAX));
    Json(registry.host().events.wait_after(query.after.unwrap_or(0), wait).await)
}
