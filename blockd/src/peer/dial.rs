//! Opens connections to other hosts.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{AlertDescription, ClientConfig};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::error::{PeerError, PeerErrorKind};
use super::links::{LinkStream, PeerLink, Purpose};
use super::registry::PairedHost;
use super::tls::{self, ChainVerifier};
use super::{Inner, frames, lock};

/// When the first probe is sent on a silent connection, the pause between probes, and how many may be unanswered.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// What a server says first on a link, when it has let the client in or not.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Greeting {
    /// Come in.
    Welcome {
        /// What the host calls itself.
        name: String,
    },
    /// There is no room.
    Busy {
        /// Why; for people.
        message: String,
    },
}

/// What a look at another host has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCheck {
    /// What the host calls itself.
    pub remote_name: String,
    /// The address that it answered at.
    pub address: String,
    /// One round trip: how long TCP's handshake took.
    pub round_trip: Duration,
    /// How long it took until the link could be used.
    pub link_time: Duration,
}

/// Opens a link, at the first address where the host answers.
pub(super) async fn link(
    inner: &Arc<Inner>,
    name: &str,
    purpose: Purpose,
) -> Result<(PeerLink, PeerCheck), PeerError> {
    let host = lock(&inner.state).registry.named(name)?.clone();
    if !host.trusted {
        let next = format!("blockctl host trust {name}");
        return Err(
            PeerError::new(PeerErrorKind::Refused, format!("{name} is not trusted any more")).with_next(next)
        );
    }
    if host.addresses.is_empty() {
        let next = format!("blockctl host trust {name} --address HOST:PORT");
        let message = format!("no address of {name} is known: it can only connect to us");
        return Err(PeerError::new(PeerErrorKind::Unreachable, message).with_next(next));
    }
    let advise = |error: PeerError| match &error.next {
        None => error.with_next(format!("blockctl host show {name}; journalctl -u blockd    (there)")),
        Some(_) => error,
    };
    let time_max = inner.limits.prove_time_max;
    first_of(&host.addresses, time_max, |address| link_at(inner, &host, address, purpose))
        .await
        .map_err(advise)
}

/// Tries addresses in order; each gets its part of the time that is left. The result is the first success, or all that
/// was found.
pub(super) async fn first_of<'a, T, F>(
    addresses: &'a [String],
    time_max: Duration,
    attempt: impl Fn(&'a str) -> F,
) -> Result<T, PeerError>
where
    F: Future<Output = Result<T, PeerError>>,
{
    let until = Instant::now() + time_max;
    let mut errors: Vec<PeerError> = Vec::new();
    for (index, address) in addresses.iter().enumerate() {
        let left = until.saturating_duration_since(Instant::now());
        let part = left / u32::try_from(addresses.len() - index).unwrap_or(1);
        let error = match timeout(part, attempt(address)).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => error,
            Err(_) => unreachable(address, "no answer in time"),
        };
        errors.push(error);
    }
    Err(errors.into_iter().reduce(worse).unwrap_or_else(|| unreachable("nowhere", "no address is known")))
}

/// What to say of two failures: that somebody answered and said no weighs more.
fn worse(one: PeerError, other: PeerError) -> PeerError {
    let message = format!("{}; {}", one.message, other.message);
    let first = if one.kind == PeerErrorKind::Unreachable { other } else { one };
    PeerError { message, ..first }
}

fn unreachable(address: &str, why: impl std::fmt::Display) -> PeerError {
    PeerError::new(PeerErrorKind::Unreachable, format!("{address}: {why}"))
}

async fn link_at(
    inner: &Arc<Inner>,
    host: &PairedHost,
    address: &str,
    purpose: Purpose,
) -> Result<(PeerLink, PeerCheck), PeerError> {
    let began = Instant::now();
    let ca = host.ca().ok_or_else(|| PeerError::new(PeerErrorKind::Damaged, "its CA is none"))?;
    let config = tls::client(inner.identity.current(), ChainVerifier::of_host(host.id, ca), purpose.alpn());
    let config = config.map_err(|error| PeerError::crypto("cannot speak TLS", error))?;
    let (mut stream, round_trip) = connect(config, address).await?;
    let other = tls::other_side(stream.get_ref().1, purpose.alpn())?;
    let greeting = frames::receive::<Greeting>(&mut stream).await;
    let remote_name = match greeting.map_err(|error| tls_failure(address, &error))? {
        Greeting::Welcome { name } => frames::shown(&name),
        Greeting::Busy { message } => {
            let message = format!("{address}: {}", frames::shown(&message));
            return Err(PeerError::new(PeerErrorKind::Busy, message));
        }
    };
    let exporter = export(stream.get_ref().1, tls::LINK_EXPORTER)?;
    let (name, place, closed) = inner.open_link(&other)?;
    let stream = Box::new(LinkStream::new(stream, place, &closed));
    let link = PeerLink { host: other.id, name, purpose, exporter, stream, closed };
    let check =
        PeerCheck { remote_name, address: address.to_owned(), round_trip, link_time: began.elapsed() };
    Ok((link, check))
}

/// A secret of the connection.
pub(super) fn export<Data>(
    connection: &rustls::ConnectionCommon<Data>,
    label: &[u8],
) -> Result<[u8; 32], PeerError> {
    let exported = connection.export_keying_material([0; 32], label, None);
    exported.map_err(|error| PeerError::crypto("TLS gives no secret", error))
}

/// A connection with TLS, and how long TCP took.
pub(super) async fn connect(
    config: Arc<ClientConfig>,
    address: &str,
) -> Result<(TlsStream<TcpStream>, Duration), PeerError> {
    let began = Instant::now();
    let tcp = TcpStream::connect(address).await.map_err(|error| unreachable(address, error))?;
    let round_trip = began.elapsed();
    tune(&tcp).map_err(|error| unreachable(address, error))?;
    let shaken = TlsConnector::from(config).connect(tls::no_name(), tcp).await;
    Ok((shaken.map_err(|error| tls_failure(address, &error))?, round_trip))
}

/// Messages leave at once, and a host that vanished without a word is noticed within half a minute.
pub(super) fn tune(tcp: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    let (idle, pause, probes) = KEEPALIVE;
    tcp.set_nodelay(true)?;
    sockopt::set_tcp_keepidle(tcp, idle)?;
    sockopt::set_tcp_keepintvl(tcp, pause)?;
    sockopt::set_tcp_keepcnt(tcp, probes)?;
    Ok(sockopt::set_socket_keepalive(tcp, true)?)
}

/// Why a handshake, or the first words after it, failed: a refusal by either side, or the net.
pub(super) fn tls_failure(address: &str, error: &io::Error) -> PeerError {
    let refused = |why: &str| PeerError::new(PeerErrorKind::Refused, format!("{address}: {why}"));
    match error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::AlertReceived(alert)) => refused(alert_meaning(*alert)),
        Some(rustls::Error::InvalidCertificate(why)) => {
            refused(&format!("who answers there is not the host that we expect ({why})"))
        }
        Some(other) => refused(&format!("it does not speak our protocol ({other})")),
        None => unreachable(address, format!("the connection broke off ({error})")),
    }
}

/// What the other host means. It does not know more words than TLS has.
fn alert_meaning(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => "it does not know this host, or not with this CA: pair again",
        AlertDescription::CertificateRevoked => "it does not trust this host any more",
        AlertDescription::CertificateExpired => {
            "it says that our certificate is not valid now: are both clocks right?"
        }
        AlertDescription::NoApplicationProtocol => "it does not speak our protocol",
        AlertDescription::ProtocolVersion => "it does not speak TLS 1.3",
        _ => "it has refused the connection",
    }
}
