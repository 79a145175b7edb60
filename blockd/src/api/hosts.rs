//! Other hosts: bodies, handlers, and the client's side of them.

use std::num::NonZeroU64;
use std::time::{Duration, UNIX_EPOCH};

use axum::Json;
use axum::extract::State as Extract;
use hyper::Method;
use serde::{Deserialize, Serialize};

use super::answer::{Body, Refusal, VolumeName};
use super::client::{Client, ClientError, escape};
use super::routes::{Context, Reply, State};
use super::types::{Done, ErrorBody, Kind};
use crate::events::now_ms;
use crate::peer::{NewToken, PairRequest, PairedHost, PeerError, PeerErrorKind, Peers};

/// `GET /v1/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// The host that answers.
    pub own: OwnHost,
    /// Those that it is paired with, by name; at most 256.
    pub hosts: Vec<HostInfo>,
}

/// The host that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnHost {
    /// What it calls itself.
    pub name: String,
    /// What it is for good: 32 hexadecimal digits.
    pub id: String,
    /// BLAKE3 of its CA's certificate (DER), 64 hexadecimal digits.
    pub fingerprint: String,
    /// Where it listens for other hosts, if it does.
    pub listen: Option<String>,
    /// Milliseconds since 1970, UTC: when its certificate ends; it is renewed in time.
    pub certificate_until_ms: u64,
}

/// `GET /v1/hosts/{name}`: a paired host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// What it is called here.
    pub name: String,
    /// What it is for good: 32 hexadecimal digits.
    pub id: String,
    /// Where it is reached, tried in order.
    pub addresses: Vec<String>,
    /// Milliseconds since 1970, UTC: when it was paired last.
    pub paired_ms: u64,
    /// Whether links with it are allowed.
    pub trusted: bool,
    /// Links that stand.
    pub links: u64,
    /// Bytes a second that all jobs together may send to it; missing: as fast as it goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
}

/// `POST /v1/hosts/{name}/limit`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitHost {
    /// Bytes a second that all jobs together may send to it; `null`: as fast as it goes.
    pub rate: Option<NonZeroU64>,
}

/// `POST /v1/hosts/{name}/check`: it is there, and lets us in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCheck {
    /// What it calls itself.
    pub remote_name: String,
    /// Where it answered.
    pub address: String,
    /// Microseconds: one round trip.
    pub round_trip_us: u64,
    /// Microseconds until the link could be used.
    pub link_us: u64,
}

/// `POST /v1/hosts/{name}/trust`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustHost {
    /// Whether links with it are allowed.
    pub trusted: bool,
    /// Its addresses from now on; missing: those that it has.
    #[serde(default)]
    pub addresses: Option<Vec<String>>,
}

/// `POST /v1/host-tokens`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// How long it may be used, at most a day.
    pub ttl_ms: u64,
    /// Where the other host finds this one; empty: where it listens.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What to call the other host here; missing: what it calls itself.
    #[serde(default)]
    pub name: Option<String>,
    /// A paired host that was set up anew.
    #[serde(default)]
    pub replace: Option<String>,
}

/// A token; its text is a secret, so this cannot be printed by accident.
#[derive(Clone, Serialize, Deserialize)]
pub struct CreatedToken {
    /// For `POST /v1/host-pairings` on the other host.
    pub token: String,
    /// Milliseconds since 1970, UTC.
    pub expires_ms: u64,
}

/// `POST /v1/host-pairings`; see [`CreatedToken`].
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairHost {
    /// From the other host.
    pub token: String,
    /// Where the other host finds this one; empty: where it listens, if it does.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// What to call the other host here; missing: what it calls itself.
    #[serde(default)]
    pub name: Option<String>,
    /// A paired host that was set up anew.
    #[serde(default)]
    pub replace: Option<String>,
}

impl From<PeerErrorKind> for Kind {
    fn from(kind: PeerErrorKind) -> Self {
        match kind {
            PeerErrorKind::BadName => Self::BadName,
            PeerErrorKind::BadValue => Self::BadValue,
            PeerErrorKind::NotFound => Self::NotFound,
            PeerErrorKind::Exists => Self::Exists,
            PeerErrorKind::Busy => Self::Busy,
            PeerErrorKind::Refused => Self::Refused,
            PeerErrorKind::Unreachable => Self::Unreachable,
            PeerErrorKind::Damaged => Self::Damaged,
            PeerErrorKind::Io => Self::Io,
        }
    }
}

impl From<PeerError> for Refusal {
    fn from(error: PeerError) -> Self {
        // What the store would advise for these kinds is of no help here.
        let next = error.next.unwrap_or_else(|| "blockctl host list; blockctl host pair --help".to_owned());
        Self(ErrorBody { next: Some(next), ..ErrorBody::new(error.kind.into(), error.message) })
    }
}

pub(super) async fn peers(state: &State) -> Result<&Peers, Refusal> {
    match &state.service.peers {
        Some(peers) => Ok(peers.get().await?),
        None => Err(Refusal::new(Kind::BadRequest, "this daemon knows no other hosts")),
    }
}

fn describe((host, links): (PairedHost, usize)) -> HostInfo {
    let PairedHost { id, name, addresses, paired_ms, trusted, rate, .. } = host;
    let rate = rate.map(NonZeroU64::get);
    HostInfo { name, id: id.to_string(), addresses, paired_ms, trusted, links: links as u64, rate }
}

pub(super) async fn list(Extract(state): Context) -> Reply<Hosts> {
    let peers = peers(&state).await?;
    let until = peers.certificate_until()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let own = OwnHost {
        name: peers.name().to_owned(),
        id: peers.host_id().to_string(),
        fingerprint: peers.fingerprint().to_string(),
        listen: peers.listening().map(|address| address.to_string()),
        certificate_until_ms: u64::try_from(until.as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Json(Hosts { own, hosts: peers.list().into_iter().map(describe).collect() }))
}

pub(super) async fn show(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<HostInfo> {
    Ok(Json(describe(peers(&state).await?.show(&name)?)))
}

pub(super) async fn remove(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    peers(&state).await?.remove(&name).await?;
    Ok(Json(Done { done: true }))
}

pub(super) async fn check(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<HostCheck> {
    let check = peers(&state).await?.check(&name).await?;
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    Ok(Json(HostCheck {
        remote_name: check.remote_name,
        address: check.address,
        round_trip_us: micros(check.round_trip),
        link_us: micros(check.link_time),
    }))
}

pub(super) async fn trust(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Body(TrustHost { trusted, addresses }): Body<TrustHost>,
) -> Reply<Done> {
    peers(&state).await?.trust(&name, trusted, addresses).await?;
    Ok(Json(Done { done: true }))
}

pub(super) async fn limit(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Body(LimitHost { rate }): Body<LimitHost>,
) -> Reply<Done> {
    peers(&state).await?.limit(&name, rate).await?;
    Ok(Json(Done { done: true }))
}

pub(super) async fn new_token(
    Extract(state): Context,
    Body(CreateToken { ttl_ms, addresses, name, replace }): Body<CreateToken>,
) -> Reply<CreatedToken> {
    let time_max = Duration::from_millis(ttl_ms);
    let token = peers(&state).await?.new_token(NewToken { time_max, addresses, name, replace })?;
    Ok(Json(CreatedToken { token: token.to_text(), expires_ms: now_ms() + ttl_ms }))
}

pub(super) async fn pair(
    Extract(state): Context,
    Body(PairHost { token, addresses, name, replace }): Body<PairHost>,
) -> Reply<HostInfo> {
    let host = peers(&state).await?.pair(PairRequest { token, name, replace, addresses }).await?;
    Ok(Json(describe((host, 0))))
}

impl Client {
    /// This host and those that it is paired with.
    ///
    /// # Errors
    /// See [`ClientError`], here and below.
    pub async fn hosts(&self) -> Result<Hosts, ClientError> {
        self.get("/v1/hosts").await
    }

    /// One paired host.
    pub async fn host(&self, name: &str) -> Result<HostInfo, ClientError> {
        self.get(&format!("/v1/hosts/{}", escape(name))).await
    }

    /// Whether it is there and lets us in.
    pub async fn check_host(&self, name: &str) -> Result<HostCheck, ClientError> {
        self.ask(Method::POST, &format!("/v1/hosts/{}/check", escape(name)), Vec::new()).await
    }

    /// Trusts it, or no more.
    pub async fn trust_host(&self, name: &str, trust: &TrustHost) -> Result<(), ClientError> {
        self.post(&format!("/v1/hosts/{}/trust", escape(name)), trust).await
    }

    /// Limits what is sent to it.
    pub async fn limit_host(&self, name: &str, rate: Option<NonZeroU64>) -> Result<(), ClientError> {
        self.post(&format!("/v1/hosts/{}/limit", escape(name)), &LimitHost { rate }).await
    }

    /// Forgets it.
    pub async fn remove_host(&self, name: &str) -> Result<(), ClientError> {
        let path = format!("/v1/hosts/{}", escape(name));
        self.ask::<Done>(Method::DELETE, &path, Vec::new()).await.map(drop)
    }

    /// A token for another host.
    pub async fn new_host_token(&self, terms: &CreateToken) -> Result<CreatedToken, ClientError> {
        self.post_for("/v1/host-tokens", terms).await
    }

    /// Uses another host's token.
    pub async fn pair_host(&self, request: &PairHost) -> Result<HostInfo, ClientError> {
        self.post_for("/v1/host-pairings", request).await
    }
}
