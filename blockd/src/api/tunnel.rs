//! Tunnels: a client of this API and the agent of another host speak through the link between the two daemons.
//!
//! `vmctl` needs no keys of its own and no port: who is at the other end is what mutual TLS between the hosts says. After
//! the answer `101 Switching Protocols` the connection carries bytes, in both directions, until one side ends it.

use std::sync::Arc;

use axum::extract::{Request, State as Extract};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{Refusal, VolumeName};
use super::routes::Context;
use super::types::Kind;
use crate::peer::{PeerLink, TUNNEL_BUFFER_BYTES};

/// Tunnels that this host's clients may have open at once.
pub(super) const TUNNELS_MAX: usize = 64;
/// What the client asks to speak from then on.
const PROTOCOL: &str = "blockd-tunnel";

pub(super) async fn open(
    Extract(state): Context,
    VolumeName(host): VolumeName,
    mut request: Request,
) -> Result<Response, Refusal> {
    if !wants_tunnel(request.headers()) {
        let message =
            format!("a tunnel needs the headers \"Connection: Upgrade\" and \"Upgrade: {PROTOCOL}\"");
        return Err(Refusal::new(Kind::BadRequest, message));
    }
    let Ok(permit) = Arc::clone(&state.tunnels).try_acquire_owned() else {
        return Err(Refusal::new(Kind::Overloaded, format!("{TUNNELS_MAX} tunnels are open")));
    };
    let link = super::hosts::peers(&state).await?.connect_agent(&host).await?;
    // Its task ends with the two connections that it ties together, or with the daemon.
    drop(tokio::spawn(carry(hyper::upgrade::on(&mut request), link, permit)));
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn wants_tunnel(headers: &HeaderMap) -> bool {
    let is = |name, expected: &str| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|value| value.eq_ignore_ascii_case(expected))
    };
    is(CONNECTION, "upgrade") && is(UPGRADE, PROTOCOL)
}

async fn carry(upgrade: OnUpgrade, mut link: PeerLink, _permit: OwnedSemaphorePermit) {
    let mut client = match upgrade.await {
        Ok(upgraded) => TokioIo::new(upgraded),
        Err(error) => return tracing::debug!(%error, "a client went before its tunnel stood"),
    };
    let (size, host) = (TUNNEL_BUFFER_BYTES, link.name.clone());
    match copy_bidirectional_with_sizes(&mut client, &mut link.stream, size, size).await {
        Ok((sent, received)) => tracing::debug!(host, sent, received, "a tunnel was closed"),
        Err(error) => tracing::debug!(host, %error, "a tunnel broke off"),
    }
}
