//! Hosts that know each other: identities, pairing, and links over mutual TLS 1.3.
//!
//! ```text
//! identity (CA, key, certificate) ─┐
//! registry (paired hosts) ─────────┼─ Peers ─┬─ server: accept → TLS → pairing | link → handler
//! token (open tokens) ─────────────┘         └─ dial: connect → TLS → pairing | link
//! ```
//! docs/replication.md draws every byte. What deliberately does not live here: what is said over a link (`PeerHandler`
//! and whoever calls [`Peers::connect`]).

mod hex;

pub mod host_id;

mod error;
mod files;

mod addresses;
mod agent;
mod certs;
mod clients;
mod identity;
mod registry;
mod token;

mod frames;
mod tls;

mod links;
mod teller;

mod dial;
mod nbd;
mod pairing;
mod server;

mod lazy;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;

use crate::events::Events;
use addresses::check_addresses;
use clients::Clients;
use identity::Identity;
use links::Links;
use registry::{Consent, Registry};
use teller::Teller;
use token::{OpenTokens, Secret};

pub use addresses::{ADDRESS_BYTES_MAX, ADDRESSES_MAX};
pub use agent::{Reception, TUNNEL_BUFFER_BYTES};
pub(crate) use certs::random;
pub use clients::{CLIENTS_MAX, NbdClient};
pub use dial::PeerCheck;
pub use error::{PeerError, PeerErrorKind};
pub use frames::MESSAGE_BYTES_MAX;
pub use host_id::HostId;
pub use identity::PEER_DIRECTORY;
pub use lazy::LazyPeers;
pub use links::{CloseAtOnce, Closed, Closer, LinkIo, PeerHandler, PeerLink, Purpose};
pub use nbd::{CLIENT_DAYS_MAX, MadeClient};
pub use pairing::PairRequest;
pub use registry::{HOSTS_MAX, PairedHost};
pub use token::{OPEN_TOKENS_MAX, TOKEN_TIME_MAX, Token, WRONG_PROOFS_MAX};

/// What may be at once, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct PeerLimits {
    /// Links that other hosts have opened.
    pub links_max: usize,
    /// Those of one host among them.
    pub links_per_host_max: usize,
    /// Connections of which it is not known yet who is there.
    pub unproven_max: usize,
    /// Those from one address among them.
    pub unproven_per_address_max: usize,
    /// Hosts that are pairing.
    pub pairings_max: usize,
    /// How long it may take until it is known who is there, whichever side asks.
    pub prove_time_max: Duration,
}

impl Default for PeerLimits {
    fn default() -> Self {
        Self {
            links_max: 128,
            links_per_host_max: 32,
            unproven_max: 32,
            unproven_per_address_max: 8,
            pairings_max: 4,
            prove_time_max: Duration::from_secs(10),
        }
    }
}

/// What [`Peers::start`] needs.
#[derive(Clone)]
pub struct PeersConfig {
    /// The data directory; locked by whoever calls.
    pub data: PathBuf,
    /// This host's name.
    pub name: String,
    /// Where to tell of events.
    pub events: Events,
    /// See [`PeerLimits`].
    pub limits: PeerLimits,
}

/// A new token's terms.
#[derive(Clone, Debug, Default)]
pub struct NewToken {
    /// How long it may be used; at most [`TOKEN_TIME_MAX`].
    pub time_max: Duration,
    /// Where the other host finds this one; empty: where this one listens.
    pub addresses: Vec<String>,
    /// What to call the other host here; else what it calls itself.
    pub name: Option<String>,
    /// A paired host that was set up anew: the token is only for it, and it may show another CA than before.
    pub replace: Option<String>,
}

/// This host among the others; clones are handles to the same one.
#[derive(Clone)]
pub struct Peers(Arc<Inner>);

struct Inner {
    identity: Identity,
    name: String,
    limits: PeerLimits,
    teller: Teller,
    /// Held while `hosts.json` is changed, so that two changes do not undo each other.
    changing: Mutex<()>,
    state: Mutex<State>,
    tokens: Mutex<OpenTokens>,
    listening: Mutex<Option<SocketAddr>>,
    /// Called when somebody has lost a right.
    on_revocation: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Who is trusted, and the links with them: one lock, so that no link slips in behind a removal.
struct State {
    registry: Registry,
    clients: Clients,
    links: Links,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("id", &self.0.identity.id()).finish_non_exhaustive()
    }
}

/// A panic elsewhere leaves what is behind our locks whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peers {
    /// Opens the identity and the paired hosts of a data directory, or makes them; events are told to nobody.
    ///
    /// # Errors
    /// As [`Peers::start`].
    pub fn open(data: impl Into<PathBuf>, name: &str) -> Result<Self, PeerError> {
        let (events, limits) = (Events::default(), PeerLimits::default());
        Self::start(PeersConfig { data: data.into(), name: name.to_owned(), events, limits })
    }

    /// Opens the identity and the paired hosts of a data directory, or makes them where there are none. Blocking: reads
    /// and syncs files.
    ///
    /// # Errors
    /// `Damaged`: a file is not what was written, and was left alone. `Refused`: others may read a private key. `Io`.
    pub fn start(config: PeersConfig) -> Result<Self, PeerError> {
        let identity = Identity::open(&config.data, &config.name)?;
        let registry = Registry::load(identity.dir())?;
        let clients = Clients::load(identity.dir())?;
        let limits = config.limits;
        let links = Links::new(limits.links_max, limits.links_per_host_max);
        Ok(Self(Arc::new(Inner {
            identity,
            name: config.name,
            limits,
            teller: Teller::new(config.events),
            changing: Mutex::default(),
            state: Mutex::new(State { registry, clients, links }),
            tokens: Mutex::default(),
            listening: Mutex::default(),
            on_revocation: OnceLock::new(),
        })))
    }

    /// What this host is for good.
    pub fn host_id(&self) -> HostId {
        self.0.identity.id()
    }

    /// What this host calls itself.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What others recognise this host by: BLAKE3 of its CA's certificate.
    pub fn fingerprint(&self) -> blake3::Hash {
        certs::fingerprint(self.0.identity.ca())
    }

    /// When this host's certificate ends, unless it is renewed.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn certificate_until(&self) -> Result<SystemTime, PeerError> {
        self.0.identity.valid_until()
    }

    /// Where this host listens for others, if it does.
    pub fn listening(&self) -> Option<SocketAddr> {
        *lock(&self.0.listening)
    }

    /// The paired hosts, by name, and how many links stand with each.
    pub fn list(&self) -> Vec<(PairedHost, usize)> {
        let state = lock(&self.0.state);
        state.registry.hosts().iter().map(|host| (host.clone(), state.links.count(host.id))).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn show(&self, name: &str) -> Result<(PairedHost, usize), PeerError> {
        let state = lock(&self.0.state);
        let host = state.registry.named(name)?;
        Ok((host.clone(), state.links.count(host.id)))
    }

    /// Forgets a host and ends its links. Durable when this returns.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub async fn remove(&self, name: &str) -> Result<(), PeerError> {
        let name = name.to_owned();
        let host = self.0.change(move |registry| registry.without(&name), |_| true).await?;
        self.0.teller.tell("host_removed", &host.name, host.id.to_string());
        Ok(())
    }

    /// Trusts a host, or no more: then its links end and new ones are refused, both ways. Addresses, if there are any,
    /// replace those it had. Durable when this returns.
    ///
    /// # Errors
    /// `NotFound`, `BadValue`, `Io`.
    pub async fn trust(
        &self,
        name: &str,
        trusted: bool,
        addresses: Option<Vec<String>>,
    ) -> Result<PairedHost, PeerError> {
        check_addresses(addresses.as_deref().unwrap_or_default())?;
        let name = name.to_owned();
        let change = move |registry: &Registry| {
            registry.with_changed(&name, |host| {
                host.trusted = trusted;
                host.addresses = addresses.unwrap_or_else(|| host.addresses.clone());
            })
        };
        let host = self.0.change(change, |host| !host.trusted).await?;
        let kind = if trusted { "host_trusted" } else { "host_revoked" };
        self.0.teller.tell(kind, &host.name, host.id.to_string());
        Ok(host)
    }

    /// Limits what all jobs together send to a host; also for links that stand.
    ///
    /// # Errors
    /// `NotFound`; `Io`, `Damaged`.
    pub async fn limit(&self, name: &str, rate: Option<NonZeroU64>) -> Result<PairedHost, PeerError> {
        let name = name.to_owned();
        let change = move |registry: &Registry| registry.with_changed(&name, |host| host.rate = rate);
        self.0.change(change, |_| false).await
    }

    /// Bytes a second that may be sent to a host; 0: as fast as it goes.
    pub fn rate_of(&self, host: HostId) -> u64 {
        let rate = lock(&self.0.state).registry.with_id(host).and_then(|host| host.rate);
        rate.map_or(0, NonZeroU64::get)
    }

    /// Opens a pairing token, for one use. It is forgotten when the daemon ends.
    ///
    /// # Errors
    /// `BadValue`, `BadName`; `NotFound`: the host to replace; `Busy`: too many are open; `Refused`: this host does not
    /// listen for others.
    pub fn new_token(&self, new: NewToken) -> Result<Token, PeerError> {
        if new.time_max > TOKEN_TIME_MAX {
            let message = "a token may be open for a day at most";
            return Err(PeerError::new(PeerErrorKind::BadValue, message));
        }
        let consent = self.0.consent(new.name, new.replace.as_deref(), new.addresses.clone())?;
        let addresses = self.0.token_addresses(new.addresses)?;
        let secret = Secret(certs::random()?);
        let now = Instant::now();
        lock(&self.0.tokens).add(secret.clone(), consent, now, now + new.time_max)?;
        let fingerprint = *self.fingerprint().as_bytes();
        Ok(Token { secret, fingerprint, addresses })
    }

    /// Pairs with the host that has made a token: both sides store each other.
    ///
    /// # Errors
    /// `BadValue`: the token has a typing error. `Unreachable`. `Refused`: by the other host, or it is not the one that
    /// the token is of, or it is this one. `Exists`: the name is another host's. `Busy`, `Io`.
    pub async fn pair(&self, request: PairRequest) -> Result<PairedHost, PeerError> {
        pairing::join(&self.0, request).await
    }

    /// Opens a link with a paired host.
    ///
    /// # Errors
    /// `NotFound`; `Refused`: one side does not trust the other; `Busy`: it has too many links; `Unreachable`.
    pub async fn connect(&self, host: &str) -> Result<PeerLink, PeerError> {
        dial::link(&self.0, host, Purpose::Sync).await.map(|(link, _)| link)
    }

    /// Opens a link with the agent of a paired host.
    ///
    /// # Errors
    /// As [`Peers::connect`]. That there is no agent is seen by the link's end.
    pub async fn connect_agent(&self, host: &str) -> Result<PeerLink, PeerError> {
        dial::link(&self.0, host, Purpose::Agent).await.map(|(link, _)| link)
    }

    /// Looks whether a paired host is there and lets us in.
    ///
    /// # Errors
    /// As [`Peers::connect`].
    pub async fn check(&self, host: &str) -> Result<PeerCheck, PeerError> {
        dial::link(&self.0, host, Purpose::Sync).await.map(|(_, check)| check)
    }

    /// Lets other hosts in until the future is dropped, which ends their links.
    pub fn serve(
        &self,
        listener: TcpListener,
        handler: Arc<dyn PeerHandler>,
    ) -> impl Future<Output = ()> + Send + use<> {
        *lock(&self.0.listening) = listener.local_addr().ok();
        server::serve(Arc::clone(&self.0), listener, handler)
    }

    /// Makes a new certificate when, at that time, less than a third of the old one's life is left. Links that stand are
    /// not touched. Blocking. Whether there is a new one.
    ///
    /// # Errors
    /// `Io`, `Damaged`: the old certificate stays in use.
    pub fn renew_if_due(&self, at: SystemTime) -> Result<bool, PeerError> {
        self.0.identity.renew_if_due(at)
    }
}

impl Inner {
    /// Changes the paired hosts: first durably, then in effect. Runs to its end even when nobody waits for it any more.
    async fn change(
        self: &Arc<Self>,
        change: impl FnOnce(&Registry) -> Result<(Registry, PairedHost), PeerError> + Send + 'static,
        closes_links: impl FnOnce(&PairedHost) -> bool + Send + 'static,
    ) -> Result<PairedHost, PeerError> {
        let inner = Arc::clone(self);
        let changing = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = lock(&inner.changing);
            let before = lock(&inner.state).registry.clone();
            let (registry, host) = change(&before)?;
            registry.save(inner.identity.dir())?;
            let mut state = lock(&inner.state);
            state.registry = registry;
            if closes_links(&host) {
                state.links.close(host.id);
                drop(state);
                inner.tell_revocation();
            }
            Ok(host)
        });
        changing.await.map_err(|error| PeerError::io("the list of hosts was not changed", error))?
    }

    /// Changes the list of NBD clients, the same way.
    async fn change_clients<T: Send + 'static>(
        self: &Arc<Self>,
        change: impl FnOnce(&Self, &Clients) -> Result<(Clients, T), PeerError> + Send + 'static,
    ) -> Result<T, PeerError> {
        let inner = Arc::clone(self);
        let changing = tokio::task::spawn_blocking(move || {
            let _one_at_a_time = lock(&inner.changing);
            let before = lock(&inner.state).clients.clone();
            let (clients, result) = change(&inner, &before)?;
            clients.save(inner.identity.dir())?;
            lock(&inner.state).clients = clients;
            inner.tell_revocation();
            Ok(result)
        });
        changing.await.map_err(|error| PeerError::io("the list of clients was not changed", error))?
    }

    fn tell_revocation(&self) {
        if let Some(act) = self.on_revocation.get() {
            act();
        }
    }

    /// What the operator agrees to with a token, made or used.
    fn consent(
        &self,
        name: Option<String>,
        replace: Option<&str>,
        addresses: Vec<String>,
    ) -> Result<Consent, PeerError> {
        check_addresses(&addresses)?;
        if let Some(name) = name.as_deref().filter(|name| !crate::control::is_valid_name(name)) {
            return Err(PeerError::new(PeerErrorKind::BadName, format!("{name:?} is no name for a host")));
        }
        let replace = replace.map(|name| lock(&self.state).registry.named(name).map(|host| host.id));
        Ok(Consent { name, replace: replace.transpose()?, addresses })
    }

    /// The certificate that others know us by.
    fn ca(&self) -> &CertificateDer<'static> {
        self.identity.ca()
    }
}
