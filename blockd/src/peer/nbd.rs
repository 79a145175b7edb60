//! NBD clients among those that this host knows: their certificates, ours for them, and who is let in.
//!
//! ```text
//! our CA ─┬─ host certificate, for other hosts          (identity)
//!         ├─ NBD server certificate, in memory, 90 days (here)
//!         └─ clients' certificates: URI blockd-client://NAME, CN NAME (here; the list: clients)
//! ```
//! A client is let in that shows one of ours that is in the list, or the certificate of a paired, trusted host. What it
//! may then see is not decided here.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::KeyPair;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, ServerConfig};

use super::certs::{self, Usage};
use super::clients::{NbdClient, check_name};
use super::error::{PeerError, PeerErrorKind};
use super::tls::ChainVerifier;
use super::{Inner, Peers, lock, server};
use crate::events::now_ms;

/// Longest life of a client's certificate.
pub const CLIENT_DAYS_MAX: u32 = 3650;

/// A client's certificate with all that belongs to it, PEM. The key is kept nowhere.
#[derive(Clone)]
pub struct MadeClient {
    /// The CA that has signed our server's certificate, and the client's.
    pub ca: String,
    /// The client's certificate.
    pub certificate: String,
    /// Its key: a secret.
    pub key: String,
    /// As it is listed.
    pub client: NbdClient,
}

impl fmt::Debug for MadeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MadeClient").field("client", &self.client).finish_non_exhaustive()
    }
}

impl Peers {
    /// The certificates of NBD clients, the oldest first.
    pub fn nbd_clients(&self) -> Vec<NbdClient> {
        lock(&self.0.state).clients.all().to_vec()
    }

    /// Makes a certificate for a client. Listed durably when this returns.
    ///
    /// # Errors
    /// `BadName`, `BadValue`; `Busy`: there are too many; `Io`, `Damaged`.
    pub async fn create_nbd_client(&self, name: &str, days: u32) -> Result<MadeClient, PeerError> {
        check_name(name)?;
        if !(1..=CLIENT_DAYS_MAX).contains(&days) {
            let message = format!("a certificate may be good for 1 to {CLIENT_DAYS_MAX} days");
            return Err(PeerError::new(PeerErrorKind::BadValue, message));
        }
        let name = name.to_owned();
        let made = self.0.change_clients(move |inner, clients| {
            let made = inner.make_client(name, days)?;
            Ok((clients.with(made.client.clone())?, made))
        });
        let made = made.await?;
        self.0.teller.tell("nbd_client_created", &made.client.name, made.client.fingerprint.clone());
        Ok(made)
    }

    /// Lets no client of that name in any more. Durable when this returns; who is in already is the caller's business.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub async fn revoke_nbd_client(&self, name: &str) -> Result<(), PeerError> {
        let revoked = name.to_owned();
        self.0.change_clients(move |_, clients| Ok((clients.without(&revoked, now_ms())?, ()))).await?;
        self.0.teller.tell("nbd_client_revoked", name, "");
        Ok(())
    }

    /// Whether the client of that name is let in.
    pub fn has_nbd_client(&self, name: &str) -> bool {
        lock(&self.0.state).clients.has(name)
    }

    /// Whether the paired host of that name is trusted.
    pub fn trusts(&self, name: &str) -> bool {
        lock(&self.0.state).registry.named(name).is_ok_and(|host| host.trusted)
    }

    /// Has that called whenever a host or a client has lost its right to be here. Once; later calls do nothing.
    pub fn on_revocation(&self, act: Box<dyn Fn() + Send + Sync>) {
        // Whoever sets it second is a second door, and there is only one.
        drop(self.0.on_revocation.set(act));
    }

    /// How NBD clients are let in, with a new certificate for this server, and when that should be replaced. Blocking:
    /// reads the CA's key.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `Refused`.
    pub fn nbd_server(&self, names: &[String]) -> Result<(Arc<ServerConfig>, SystemTime), PeerError> {
        let now = SystemTime::now();
        let key = certs::new_key()?;
        let ca_key = self.0.identity.ca_key()?;
        let certificate = certs::make_nbd_server(self.host_id(), names, &key, ca_key, now)?;
        let chain = vec![certificate.der().clone(), self.0.identity.ca().clone()];
        let own = CertifiedKey::from_der(chain, der(&key)?, nbd_server::tls::provider())
            .map_err(|error| PeerError::crypto("cannot use our certificate", error))?;
        let inner = Arc::clone(&self.0);
        let verifier = ChainVerifier::new(move |client, _, now| check_client(&inner, client, now));
        let config = nbd_server::tls::server_config(verifier, Arc::new(SingleCertAndKey::from(own)))
            .map_err(|error| PeerError::crypto("cannot speak TLS", error))?;
        Ok((config, now + certs::NBD_SERVER_LIFE * 2 / 3))
    }

    /// Whom a certificate that was let in names: `client:NAME` or `host:NAME`.
    ///
    /// # Errors
    /// It has lost its right meanwhile.
    pub fn nbd_identity(&self, certificate: &CertificateDer<'_>) -> Result<String, String> {
        let identity = match certs::client_name_of(certificate) {
            Ok(Some(name)) => Some(format!("client:{name}")),
            Ok(None) => {
                let id = certs::host_id_of(certificate).ok();
                let state = lock(&self.0.state);
                id.and_then(|id| state.registry.with_id(id)).map(|host| format!("host:{}", host.name))
            }
            Err(_) => None,
        };
        identity.ok_or_else(|| "it is not known any more".to_owned())
    }
}

fn der(key: &KeyPair) -> Result<PrivateKeyDer<'static>, PeerError> {
    PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| PeerError::crypto("cannot use a key", error))
}

impl Inner {
    fn make_client(&self, name: String, days: u32) -> Result<MadeClient, PeerError> {
        let now = SystemTime::now();
        let until = now + Duration::from_secs(u64::from(days) * 24 * 60 * 60);
        let key = certs::new_key()?;
        let ca_key = self.identity.ca_key()?;
        let certificate = certs::make_client(self.identity.id(), &name, &key, ca_key, (now, until))?;
        let ms = |time: SystemTime| {
            u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
        };
        let fingerprint = certs::fingerprint(certificate.der()).to_string();
        let client =
            NbdClient { name, fingerprint, created_ms: ms(now), until_ms: ms(until), revoked_ms: None };
        Ok(MadeClient {
            ca: certs::to_pem(self.identity.ca()),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            client,
        })
    }
}

/// Whether a certificate lets an NBD client in, by the lists of clients and of hosts as they are at that moment.
fn check_client(inner: &Inner, certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    match certs::client_name_of(certificate)? {
        Some(name) => {
            certs::check_signed(certificate, inner.identity.ca(), Usage::Client, now)?;
            lock(&inner.state).clients.check(&name, certificate)
        }
        None => server::check_paired(inner, certificate, now),
    }
}
