//! Lets other hosts in: who they are, how many at once, for how long.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::Acceptor;
use rustls::{CertificateError, Error};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::certs::{self, Usage};
use super::dial::{Greeting, export, tune};
use super::error::{PeerError, PeerErrorKind};
use super::links::{LinkPlace, LinkStream, Purpose};
use super::pairing::Met;
use super::tls::{self, ChainVerifier, OtherSide};
use super::{Closed, Inner, PairedHost, PeerHandler, PeerLink, State, frames, lock, pairing};

/// Pause after a failed accept (no descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every connection's task knows.
struct Door {
    inner: Arc<Inner>,
    handler: Arc<dyn PeerHandler>,
    unproven: Arc<Semaphore>,
    pairings: Semaphore,
    addresses: Mutex<HashMap<IpAddr, usize>>,
}

/// The place of a connection of which it is not known yet who is there.
struct Unproven {
    door: Arc<Door>,
    ip: IpAddr,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Unproven {
    fn drop(&mut self) {
        let mut addresses = lock(&self.door.addresses);
        if let Some(count) = addresses.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&self.ip);
            }
        }
    }
}

/// Accepts until it is dropped, which ends all connections.
pub(super) async fn serve(inner: Arc<Inner>, listener: TcpListener, handler: Arc<dyn PeerHandler>) {
    let limits = inner.limits;
    let door = Arc::new(Door {
        inner,
        handler,
        unproven: Arc::new(Semaphore::new(limits.unproven_max)),
        pairings: Semaphore::new(limits.pairings_max),
        addresses: Mutex::default(),
    });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((tcp, from)) => match door.admit(from) {
                    Ok(unproven) => drop(connections.spawn(Arc::clone(&door).receive(tcp, from, unproven))),
                    Err(why) => door.inner.teller.refused(&from.ip().to_string(), why),
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept another host");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the task of a link ended badly");
                }
            }
        }
    }
}

impl Door {
    fn admit(self: &Arc<Self>, from: SocketAddr) -> Result<Unproven, &'static str> {
        let ip = from.ip().to_canonical();
        let permit = Arc::clone(&self.unproven).try_acquire_owned();
        let permit = permit.map_err(|_| "too many connections that have not said who they are")?;
        let mut addresses = lock(&self.addresses);
        let count = addresses.entry(ip).or_default();
        if *count == self.inner.limits.unproven_per_address_max {
            return Err("too many connections from this address that have not said who they are");
        }
        *count += 1;
        drop(addresses);
        Ok(Unproven { door: Arc::clone(self), ip, _permit: permit })
    }

    /// One connection, from its first byte to its end.
    async fn receive(self: Arc<Self>, tcp: TcpStream, from: SocketAddr, unproven: Unproven) {
        let proving = self.prove(tcp);
        let proven = match timeout(self.inner.limits.prove_time_max, proving).await {
            Ok(proven) => proven,
            Err(_) => Err(refused("it did not say in time who it is")),
        };
        drop(unproven);
        match proven {
            Ok(Some(link)) => self.serve_link(link).await,
            Ok(None) => {}
            Err(error) => self.inner.teller.refused(&from.ip().to_string(), &error.message),
        }
    }

    /// Finds out who is there. A link is left, or nothing after a pairing.
    async fn prove(&self, tcp: TcpStream) -> Result<Option<PeerLink>, PeerError> {
        tune(&tcp).map_err(|error| failed(&error))?;
        let hello =
            LazyConfigAcceptor::new(Acceptor::default(), tcp).await.map_err(|error| failed(&error))?;
        let wants = |protocol: &[u8]| {
            let offered = hello.client_hello().alpn();
            offered.is_some_and(|mut offered| offered.any(|alpn| alpn == protocol))
        };
        let wants_pairing = wants(tls::PAIR_ALPN);
        let purpose = if wants(Purpose::Agent.alpn()) { Purpose::Agent } else { Purpose::Sync };
        let (verifier, alpn) = match wants_pairing {
            true => (ChainVerifier::of_anybody(), tls::PAIR_ALPN),
            false => (of_paired_hosts(Arc::clone(&self.inner)), purpose.alpn()),
        };
        let config = tls::server(self.inner.identity.current(), verifier, alpn);
        let config = config.map_err(|error| PeerError::crypto("cannot speak TLS", error))?;
        let stream = hello.into_stream(config).await.map_err(|error| failed(&error))?;
        let other = tls::other_side(stream.get_ref().1, alpn)?;
        if wants_pairing {
            return self.pair(stream, other).await.map(|()| None);
        }
        self.open(stream, other, purpose).await.map(Some)
    }

    async fn pair(&self, stream: TlsStream<TcpStream>, other: OtherSide) -> Result<(), PeerError> {
        let Ok(_place) = self.pairings.try_acquire() else {
            return Err(refused("too many hosts are pairing"));
        };
        let exporter = export(stream.get_ref().1, tls::PAIR_EXPORTER)?;
        let ca = other.ca.ok_or_else(|| refused("it has shown no CA"))?;
        let local = stream.get_ref().0.local_addr().ok().map(|local| local.ip());
        pairing::invite(&self.inner, stream, Met { exporter, id: other.id, ca }, local).await.map(drop)
    }

    /// Lets a paired host in, if there is room.
    async fn open(
        &self,
        mut stream: TlsStream<TcpStream>,
        other: OtherSide,
        purpose: Purpose,
    ) -> Result<PeerLink, PeerError> {
        let exporter = export(stream.get_ref().1, tls::LINK_EXPORTER)?;
        let (name, place, closed) = match self.inner.accept_link(&other) {
            Ok(accepted) => accepted,
            Err(error) => {
                let busy = Greeting::Busy { message: error.message.clone() };
                frames::send(&mut stream, &busy).await.map_err(|error| failed(&error))?;
                return Err(error);
            }
        };
        let welcome = Greeting::Welcome { name: self.inner.name.clone() };
        frames::send(&mut stream, &welcome).await.map_err(|error| failed(&error))?;
        let stream = Box::new(LinkStream::new(stream, place, &closed));
        Ok(PeerLink { host: other.id, name, purpose, exporter, stream, closed })
    }

    async fn serve_link(&self, link: PeerLink) {
        let mut closed = link.closed.clone();
        let name = link.name.clone();
        tokio::select! {
            () = Arc::clone(&self.handler).serve(link) => {}
            () = closed.wait() => tracing::info!(host = name, "a link is closed: the host is not trusted any more"),
        }
    }
}

fn refused(why: &str) -> PeerError {
    PeerError::new(PeerErrorKind::Refused, why)
}

fn failed(error: &io::Error) -> PeerError {
    PeerError::new(PeerErrorKind::Refused, format!("the handshake failed: {error}"))
}

/// Lets in whoever is paired and trusted now, by exactly the CA that was stored.
fn of_paired_hosts(inner: Arc<Inner>) -> Arc<ChainVerifier> {
    ChainVerifier::new(move |certificate, _, now: UnixTime| check_paired(&inner, certificate, now))
}

/// Whether a certificate is that of a host that is paired and trusted now.
pub(super) fn check_paired(
    inner: &Inner,
    certificate: &CertificateDer<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    let id = certs::host_id_of(certificate)?;
    let host = lock(&inner.state).registry.with_id(id).cloned();
    let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
    let host = host.ok_or_else(unknown)?;
    let ca = host.ca().ok_or_else(unknown)?;
    tls::check_host(certificate, id, &ca, Usage::Client, now)?;
    // After the chain: only who is the host itself is told that it is not trusted.
    if host.trusted { Ok(()) } else { Err(Error::InvalidCertificate(CertificateError::Revoked)) }
}

impl Inner {
    /// A place for a link that another host has opened.
    fn accept_link(&self, other: &OtherSide) -> Result<(String, LinkPlace, Closed), PeerError> {
        let mut state = lock(&self.state);
        let name = state.still_trusted(other, Usage::Client)?;
        let (place, closed) = state
            .links
            .accept(other.id)
            .map_err(|error| PeerError::new(PeerErrorKind::Busy, format!("{name}: {error}")))?;
        Ok((name, place, closed))
    }

    /// A place for a link that we have opened.
    pub(super) fn open_link(&self, other: &OtherSide) -> Result<(String, LinkPlace, Closed), PeerError> {
        let mut state = lock(&self.state);
        let name = state.still_trusted(other, Usage::Server)?;
        let (place, closed) = state.links.open(other.id);
        Ok((name, place, closed))
    }
}

impl State {
    /// Whether a host is still what it was during the handshake; its name. While the lock is held in which its link
    /// gets a place: after that, a removal finds the link.
    fn still_trusted(&self, other: &OtherSide, usage: Usage) -> Result<String, PeerError> {
        let host = self.registry.with_id(other.id).filter(|host| host.trusted);
        let is_same = |host: &&PairedHost| {
            let check = |ca| tls::check_host(&other.certificate, other.id, &ca, usage, UnixTime::now());
            host.ca().is_some_and(|ca| check(ca).is_ok())
        };
        let host = host.filter(is_same).ok_or_else(|| refused("it is not trusted any more"))?;
        Ok(host.name.clone())
    }
}
