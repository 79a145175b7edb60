//! Routes of moves (docs/vmctl.md, "Moves").

use axum::extract::{Path, State as Extract};
use axum::routing::{get, post};
use axum::{Json, Router};

use super::answer::{Args, Body, Name, Refusal};
use super::routes::{Reply, Shared};
use crate::agent::view::{Begun, Migrate, MoveList, MovePlan, MovesQuery, RecoverAnswer, Rollback};
use crate::error::Kind;
use crate::moves::Moves;
use crate::moves::record::MoveRecord;

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/vms/{name}/migrate", post(migrate))
        .route("/v1/vms/{name}/migrate-plan", post(plan))
        .route("/v1/vms/{name}/abort", post(abort))
        .route("/v1/vms/{name}/rollback", post(rollback))
        .route("/v1/moves", get(list))
        .route("/v1/moves/{id}", get(show))
        .route("/v1/recover", post(recover))
}

type Context = Extract<Moves>;

async fn migrate(Extract(moves): Context, Name(name): Name, Body(body): Body<Migrate>) -> Reply<Begun> {
    let id = moves.migrate(&name, &body.to, body.options).await?;
    Ok(Json(Begun { id, on: None }))
}

async fn plan(Extract(moves): Context, Name(name): Name, Body(body): Body<Migrate>) -> Reply<MovePlan> {
    Ok(Json(moves.plan(&name, &body.to, body.options).await?))
}

async fn abort(Extract(moves): Context, Name(name): Name) -> Reply<Begun> {
    Ok(Json(Begun { id: moves.abort(&name).await?, on: None }))
}

async fn rollback(Extract(moves): Context, Name(name): Name, Body(body): Body<Rollback>) -> Reply<Begun> {
    let (on, id) = moves.rollback(&name, body.options).await?;
    Ok(Json(Begun { id, on: Some(on) }))
}

async fn list(Extract(moves): Context, Args(query): Args<MovesQuery>) -> Reply<MoveList> {
    Ok(Json(MoveList { moves: moves.list(query.vm.as_ref())? }))
}

async fn show(Extract(moves): Context, Path(id): Path<String>) -> Reply<MoveRecord> {
    let bad = |error| Refusal::new(Kind::BadValue, format!("{id:?} is no move: {error}"));
    let id = id.parse().map_err(bad)?;
    Ok(Json(moves.show(id)?))
}

async fn recover(Extract(moves): Context) -> Reply<RecoverAnswer> {
    let given_up = moves.give_up_orphans().await?;
    let moves = moves.list(None)?.into_iter().filter(|record| !record.has_ended()).collect();
    Ok(Json(RecoverAnswer { given_up, moves }))
}
