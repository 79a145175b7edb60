//! NBD clients that were given a certificate: bodies, handlers, and the client's side of them.

use axum::Json;
use axum::extract::State as Extract;
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::answer::{Body, Refusal, VolumeName};
use super::client::{Client, ClientError, escape};
use super::hosts::peers;
use super::routes::{Context, Reply, State};
use super::types::{Done, Kind};
use crate::peer::NbdClient;

/// `GET /v1/clients`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NbdClients {
    /// Certificates that were made and have not ended long ago, the oldest first; at most 4096.
    pub clients: Vec<NbdClient>,
}

/// `POST /v1/clients`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateClient {
    /// Whom the certificate names.
    pub name: String,
    /// How long it is good, at most 3650.
    pub days: u32,
}

/// A client's certificate. The key is a secret that is kept nowhere else, so this cannot be printed by accident.
#[derive(Clone, Serialize, Deserialize)]
pub struct CreatedClient {
    /// The CA that has signed this server's certificate and the client's, PEM.
    pub ca: String,
    /// The certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: String,
    /// As it is listed.
    pub client: NbdClient,
    /// Where clients find exports over TCP, if they do.
    pub tcp: Option<String>,
    /// Whether TLS is spoken there, with certificates of this host's CA.
    pub used: bool,
}

pub(super) async fn list(Extract(state): Context) -> Reply<NbdClients> {
    Ok(Json(NbdClients { clients: peers(&state).await?.nbd_clients() }))
}

pub(super) async fn create(
    Extract(state): Context,
    Body(CreateClient { name, days }): Body<CreateClient>,
) -> Reply<CreatedClient> {
    let made = peers(&state).await?.create_nbd_client(&name, days).await?;
    let (tcp, used) = (state.service.nbd.tcp.clone(), state.service.door.needs_peers());
    Ok(Json(CreatedClient {
        ca: made.ca,
        certificate: made.certificate,
        key: made.key,
        client: made.client,
        tcp,
        used,
    }))
}

pub(super) async fn revoke(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    peers(&state).await?.revoke_nbd_client(&name).await?;
    Ok(Json(Done { done: true }))
}

/// What is wrong with the certificates for NBD clients.
pub(super) async fn trouble(state: &State) -> Result<Option<String>, Refusal> {
    let door = state.service.door.clone();
    // It looks at files.
    let looked = tokio::task::spawn_blocking(move || door.trouble()).await;
    looked.map_err(|error| Refusal::new(Kind::Io, format!("cannot look at certificates: {error}")))
}

impl Client {
    /// Clients that were given a certificate.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub async fn nbd_clients(&self) -> Result<NbdClients, ClientError> {
        self.get("/v1/clients").await
    }

    /// A certificate for a client.
    pub async fn create_nbd_client(&self, wanted: &CreateClient) -> Result<CreatedClient, ClientError> {
        self.post_for("/v1/clients", wanted).await
    }

    /// Lets a client in no more.
    pub async fn revoke_nbd_client(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/clients/{}", escape(name));
        self.ask::<Done>(Method::DELETE, &path, Vec::new()).await.map(drop)
    }
}
