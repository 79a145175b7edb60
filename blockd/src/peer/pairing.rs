//! Pairing: two hosts that share a token come to know each other.
//!
//! ```text
//! joining host                                   inviting host (made the token)
//!    TLS: is the CA the token's? ──────────────────► TLS: any host that is signed by the CA it brings
//!    join {token, proof, name, addresses} ─────────► token open? proof right? could it be stored? token used up
//!    proof right? could it be stored? ◄───────────── invite {proof, name, addresses}
//!    confirm ──────────────────────────────────────► stored durably
//!    stored durably ◄─────────────────────────────── stored
//! ```
//! Either side may say `refused` instead. Up to `confirm` nothing is stored anywhere.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use super::addresses::check_addresses;
use super::dial::{connect, export, first_of, tls_failure};
use super::error::{PeerError, PeerErrorKind};
use super::host_id::HostId;
use super::registry::{Consent, PairedHost};
use super::tls::{self, ChainVerifier};
use super::token::{Prover, Secret, Token, TokenId, Transcript};
use super::{Inner, certs, frames, hex, lock};
use crate::control::is_valid_name;
use crate::events::now_ms;

/// How to use a token.
#[derive(Clone, Debug, Default)]
pub struct PairRequest {
    /// The token's text.
    pub token: String,
    /// What to call the other host here; else what it calls itself.
    pub name: Option<String>,
    /// A paired host that was set up anew: it may show another CA than before.
    pub replace: Option<String>,
    /// Where the other host finds this one; empty: where this one listens, if it does.
    pub addresses: Vec<String>,
}

/// What is said; JSON, one key.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Join {
        /// Which token, 16 digits.
        token: String,
        #[serde(flatten)]
        about: About,
    },
    Invite(About),
    Confirm {},
    Stored {},
    Refused {
        message: String,
    },
}

/// What a host says of itself.
#[derive(Clone, Serialize, Deserialize)]
struct About {
    /// 64 digits.
    proof: String,
    /// What it calls itself.
    name: String,
    /// Where it is found.
    addresses: Vec<String>,
}

/// The two hosts and their connection, as one of them sees it.
pub(super) struct Met {
    pub(super) exporter: [u8; 32],
    pub(super) id: HostId,
    pub(super) ca: CertificateDer<'static>,
}

fn refused(why: impl Into<String>) -> PeerError {
    PeerError::new(PeerErrorKind::Refused, why)
}

fn out_of_turn() -> PeerError {
    refused("the other host said something else than its turn was")
}

/// Uses a token.
pub(super) async fn join(inner: &Arc<Inner>, request: PairRequest) -> Result<PairedHost, PeerError> {
    let token: Token = request.token.parse()?;
    let consent = inner.consent(request.name, request.replace.as_deref(), request.addresses)?;
    if certs::fingerprint(inner.ca()) == token.fingerprint {
        return Err(refused("the token is one of this host: use it on the other one"));
    }
    let verifier = ChainVerifier::of_fingerprint(token.fingerprint);
    let config = tls::client(inner.identity.current(), verifier, tls::PAIR_ALPN);
    let config = config.map_err(|error| PeerError::crypto("cannot speak TLS", error))?;
    let time_max = inner.limits.prove_time_max;
    let (stream, address) = first_of(&token.addresses, time_max, |address| {
        let config = Arc::clone(&config);
        async move { Ok((connect(config, address).await?.0, address)) }
    })
    .await?;
    let local = stream.get_ref().0.local_addr().ok().map(|local| local.ip());
    let addresses = inner.own_addresses(&consent.addresses, local);
    let joining = async {
        let other = tls::other_side(stream.get_ref().1, tls::PAIR_ALPN)?;
        let exporter = export(stream.get_ref().1, tls::PAIR_EXPORTER)?;
        let ca = other.ca.ok_or_else(out_of_turn)?;
        say_join(inner, stream, &token, Met { exporter, id: other.id, ca }, addresses, &consent).await
    };
    let late = |_| PeerError::new(PeerErrorKind::Unreachable, format!("{address}: no answer in time"));
    let paired = tokio::time::timeout(time_max, joining).await.map_err(late)??;
    let half = |error: PeerError| PeerError {
        message: format!("the other host has stored this one, but not the other way: {}", error.message),
        next: Some("blockctl host pair --new    (there; then pair again)".to_owned()),
        ..error
    };
    store(inner, paired, consent).await.map_err(half)
}

/// The joining side's words; the host that is to be stored.
async fn say_join(
    inner: &Inner,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    token: &Token,
    met: Met,
    addresses: Vec<String>,
    consent: &Consent,
) -> Result<PairedHost, PeerError> {
    let own = (inner.identity.id(), inner.ca());
    let transcript = Transcript { exporter: met.exporter, joining: own, inviting: (met.id, &met.ca) };
    let proof = transcript.proof(&token.secret, Prover::Joining).to_string();
    let about = About { proof, name: inner.name.clone(), addresses };
    let join = Message::Join { token: hex::encode(&token.secret.token_id()), about };
    say(&mut stream, &join).await?;
    let Message::Invite(about) = hear(&mut stream).await? else { return Err(out_of_turn()) };
    if !is_proven(&about, &transcript, &token.secret, Prover::Inviting) {
        return Err(refused("the other host does not know the token's secret"));
    }
    let paired = describe(about, &met, consent)?;
    // Before the other side stores us: it does not when the connection ends here.
    lock(&inner.state).registry.with_paired(paired.clone(), consent)?;
    say(&mut stream, &Message::Confirm {}).await?;
    match hear(&mut stream).await? {
        Message::Stored {} => Ok(paired),
        _ => Err(out_of_turn()),
    }
}

/// The inviting side: answers a host that has come to pair, and stores it.
pub(super) async fn invite(
    inner: &Arc<Inner>,
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    met: Met,
    local: Option<IpAddr>,
) -> Result<PairedHost, PeerError> {
    let invited = hear_join(inner, &mut stream, &met, local).await;
    let stored = match invited {
        Ok((paired, consent)) => store(inner, paired, consent).await,
        Err(error) => Err(error),
    };
    let last = match &stored {
        Ok(_) => Message::Stored {},
        Err(error) => Message::Refused { message: error.message.clone() },
    };
    let told = frames::send(&mut stream, &last).await;
    if let Err(error) = told.and(tokio::io::AsyncWriteExt::shutdown(&mut stream).await) {
        tracing::debug!(%error, "a host that is pairing did not hear the end");
    }
    stored
}

async fn hear_join(
    inner: &Inner,
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    met: &Met,
    local: Option<IpAddr>,
) -> Result<(PairedHost, Consent), PeerError> {
    let own = (inner.identity.id(), inner.ca());
    if met.id == own.0 {
        return Err(refused("a host cannot be paired with itself"));
    }
    let Message::Join { token, about } = hear(stream).await? else { return Err(out_of_turn()) };
    let token: TokenId = hex::decode(&token).ok_or_else(out_of_turn)?;
    let transcript = Transcript { exporter: met.exporter, joining: (met.id, &met.ca), inviting: own };
    let is_right = |secret: &Secret| is_proven(&about, &transcript, secret, Prover::Joining);
    let redeemed = lock(&inner.tokens).redeem(token, Instant::now(), is_right);
    let (secret, consent) = redeemed?;
    let proof = transcript.proof(&secret, Prover::Inviting).to_string();
    let paired = describe(about, met, &consent)?;
    lock(&inner.state).registry.with_paired(paired.clone(), &consent)?;
    // What the token's maker has said, not what we happen to listen on: a relay or a gateway may be in between.
    let addresses = inner.own_addresses(&consent.addresses, local);
    say(stream, &Message::Invite(About { proof, name: inner.name.clone(), addresses })).await?;
    match hear(stream).await? {
        Message::Confirm {} => Ok((paired, consent)),
        _ => Err(out_of_turn()),
    }
}

fn is_proven(about: &About, transcript: &Transcript<'_>, secret: &Secret, prover: Prover) -> bool {
    // Hashes are compared in constant time.
    blake3::Hash::from_hex(&about.proof).is_ok_and(|proof| proof == transcript.proof(secret, prover))
}

/// A host as it says that it is, under the name that it gets here.
fn describe(about: About, met: &Met, consent: &Consent) -> Result<PairedHost, PeerError> {
    if !is_valid_name(&about.name) {
        return Err(PeerError::new(PeerErrorKind::BadName, "the other host's name is none"));
    }
    check_addresses(&about.addresses)?;
    let name = consent.name.clone().unwrap_or(about.name);
    let ca = certs::to_pem(&met.ca);
    Ok(PairedHost {
        id: met.id,
        name,
        addresses: about.addresses,
        ca,
        paired_ms: now_ms(),
        trusted: true,
        rate: None,
    })
}

async fn store(inner: &Arc<Inner>, paired: PairedHost, consent: Consent) -> Result<PairedHost, PeerError> {
    let id = paired.id;
    let known = lock(&inner.state).registry.with_id(id).and_then(PairedHost::ca);
    let change = move |registry: &super::registry::Registry| registry.with_paired(paired, &consent);
    // Links that were let in by another CA are not those of this host any more.
    let host = inner.change(change, move |host| known.is_some_and(|known| Some(known) != host.ca())).await?;
    inner.teller.tell("host_paired", &host.name, format!("{id} at {}", host.addresses.join(" ")));
    Ok(host)
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), message: &Message) -> Result<(), PeerError> {
    frames::send(stream, message).await.map_err(|error| broken(&error))
}

/// What the other host says; a refusal is an error.
async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Result<Message, PeerError> {
    match frames::receive(stream).await.map_err(|error| broken(&error))? {
        Message::Refused { message } => {
            Err(refused(format!("the other host says: {}", frames::shown(&message))))
        }
        message => Ok(message),
    }
}

fn broken(error: &io::Error) -> PeerError {
    if error.kind() == io::ErrorKind::InvalidData && error.get_ref().is_some_and(|e| !e.is::<rustls::Error>())
    {
        return refused("the other host said what is none of pairing's messages");
    }
    tls_failure("pairing", error)
}
