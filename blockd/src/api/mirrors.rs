//! Mirrored volumes: bodies and handlers (docs/replication.md, "Mirroring").

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::answer::{Body, Refusal, VolumeName, check_name};
use super::client::{Client, ClientError, escape};
use super::replicas::trusted_host;
use super::routes::{Context, Reply, State};
use super::types::{Done, Kind};
use crate::sync::mirroring::{MirrorInfo, Mirrors};

/// `GET /v1/mirrors`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorList {
    /// By volume; one that has ended until it is begun again.
    pub mirrors: Vec<MirrorInfo>,
}

/// `POST /v1/mirrors`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeginMirror {
    /// The volume's name.
    pub volume: String,
    /// The other host's name here.
    pub to: String,
}

impl Client {
    /// Mirrored volumes.
    ///
    /// # Errors
    /// What the daemon says, or that it cannot be reached.
    pub async fn mirrors(&self) -> Result<Vec<MirrorInfo>, ClientError> {
        Ok(self.get::<MirrorList>("/v1/mirrors").await?.mirrors)
    }

    /// Clients of a volume are answered without its mirror.
    ///
    /// # Errors
    /// `not_found`, and as [`Self::mirrors`].
    pub async fn end_mirror(&self, volume: &str) -> Result<(), ClientError> {
        let path = format!("/v1/mirrors/{}", escape(volume));
        self.ask::<Done>(Method::DELETE, &path, Vec::new()).await.map(drop)
    }
}

fn mirrors(state: &State) -> Result<Arc<dyn Mirrors>, Refusal> {
    let nobody = || Refusal::new(Kind::Refused, "this daemon has no replication: nothing can be mirrored");
    state.service.mirrors.clone().ok_or_else(nobody)
}

pub(super) async fn begin(
    Extract(state): Context,
    Body(BeginMirror { volume, to }): Body<BeginMirror>,
) -> Reply<Done> {
    check_name(&volume)?;
    trusted_host(&state, &to).await?;
    mirrors(&state)?.begin(&volume, &to)?;
    state.service.events.record("mirror_begun", volume, format!("to {to}"));
    Ok(Json(Done { done: true }))
}

pub(super) async fn end(Extract(state): Context, VolumeName(volume): VolumeName) -> Reply<Done> {
    mirrors(&state)?.end(&volume).await?;
    Ok(Json(Done { done: true }))
}

pub(super) async fn list(Extract(state): Context) -> Reply<MirrorList> {
    Ok(Json(MirrorList { mirrors: mirrors(&state)?.list() }))
}
