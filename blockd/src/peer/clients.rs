//! Certificates that this host's CA has made for NBD clients, in `DATA/peer/clients.json`.
//!
//! A list of those that are let in, not of those that are not: a certificate that is not in it is refused, whoever
//! signed it. So an old copy of the directory, or a file that is missing, lets in fewer and not more.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use super::certs;
use super::error::{PeerError, PeerErrorKind};
use super::files;
use super::identity::damaged;
use crate::control::is_valid_name;

/// The file's name, beside the identity.
const CLIENTS_FILE: &str = "clients.json";
/// Certificates of clients, revoked ones included.
pub const CLIENTS_MAX: usize = 4096;
/// Largest file.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The file's version.
const VERSION: u32 = 1;

/// A certificate that was made for a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NbdClient {
    /// Whom it names. Several may have one name: the next is made before the last has ended.
    pub name: String,
    /// BLAKE3 of the certificate (DER), 64 hexadecimal digits.
    pub fingerprint: String,
    /// Milliseconds since 1970, UTC: when it was made.
    pub created_ms: u64,
    /// Milliseconds since 1970, UTC: when it ends.
    pub until_ms: u64,
    /// Milliseconds since 1970, UTC: when it was revoked, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<u64>,
}

/// All of them, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Clients {
    v: u32,
    clients: Vec<NbdClient>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { v: VERSION, clients: Vec::new() }
    }
}

impl Clients {
    /// Reads the file of a peer directory; without a file nobody is let in.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(super) fn load(dir: &Path) -> Result<Self, PeerError> {
        let clients: Self = files::load(dir, CLIENTS_FILE, FILE_BYTES_MAX)?.unwrap_or_default();
        if clients.v != VERSION || clients.clients.len() > CLIENTS_MAX {
            return Err(damaged(&dir.join(CLIENTS_FILE), "it has another version, or too many clients"));
        }
        Ok(clients)
    }

    /// Replaces the file; durable when this returns.
    pub(super) fn save(&self, dir: &Path) -> Result<(), PeerError> {
        files::save(dir, CLIENTS_FILE, self)
    }

    pub(super) fn all(&self) -> &[NbdClient] {
        &self.clients
    }

    /// The same with a new one, and without those that have ended.
    ///
    /// # Errors
    /// `BadName`; `Busy`: there are too many.
    pub(super) fn with(&self, client: NbdClient) -> Result<Self, PeerError> {
        check_name(&client.name)?;
        let now_ms = client.created_ms;
        let mut clients: Vec<_> =
            self.clients.iter().filter(|known| known.until_ms > now_ms).cloned().collect();
        if clients.len() == CLIENTS_MAX {
            let message = format!("there are {CLIENTS_MAX} certificates for clients already");
            return Err(PeerError::new(PeerErrorKind::Busy, message).with_next("blockctl client list"));
        }
        clients.push(client);
        Ok(Self { clients, ..Self::default() })
    }

    /// The same with all of that name revoked.
    ///
    /// # Errors
    /// `NotFound`: none of that name is let in.
    pub(super) fn without(&self, name: &str, now_ms: u64) -> Result<Self, PeerError> {
        if !self.has(name) {
            let message = format!("no client {name} is let in");
            return Err(PeerError::new(PeerErrorKind::NotFound, message).with_next("blockctl client list"));
        }
        let mut clients = self.clients.clone();
        for client in clients.iter_mut().filter(|client| client.name == name) {
            client.revoked_ms.get_or_insert(now_ms);
        }
        Ok(Self { clients, ..Self::default() })
    }

    /// Whether any certificate of that name was not revoked.
    pub(super) fn has(&self, name: &str) -> bool {
        self.clients.iter().any(|client| client.name == name && client.revoked_ms.is_none())
    }

    /// Whether this very certificate is let in.
    ///
    /// # Errors
    /// As TLS tells it to the client.
    pub(super) fn check(&self, name: &str, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let fingerprint = certs::fingerprint(certificate).to_string();
        let known =
            self.clients.iter().find(|client| client.fingerprint == fingerprint && client.name == name);
        match known {
            None => Err(certs::refused()),
            Some(client) if client.revoked_ms.is_some() => {
                Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Revoked))
            }
            Some(_) => Ok(()),
        }
    }
}

/// Clients are called like volumes and hosts are.
pub(super) fn check_name(name: &str) -> Result<(), PeerError> {
    if is_valid_name(name) {
        return Ok(());
    }
    Err(PeerError::new(PeerErrorKind::BadName, format!("{name:?} is no name for a client")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str, certificate: &[u8], until_ms: u64) -> NbdClient {
        let fingerprint = certs::fingerprint(&CertificateDer::from(certificate)).to_string();
        NbdClient { name: name.to_owned(), fingerprint, created_ms: 10, until_ms, revoked_ms: None }
    }

    #[test]
    fn only_what_is_in_the_list_is_let_in() {
        let clients = Clients::default().with(client("a", b"one", 100)).unwrap();
        let clients =
            clients.with(client("a", b"two", 100)).unwrap().with(client("b", b"three", 100)).unwrap();
        let check = |clients: &Clients, name, der: &'static [u8]| {
            clients.check(name, &CertificateDer::from(der)).is_ok()
        };
        assert!(
            check(&clients, "a", b"one") && check(&clients, "a", b"two") && check(&clients, "b", b"three")
        );
        assert!(!check(&clients, "a", b"three") && !check(&clients, "a", b"four"));
        let clients = clients.without("a", 20).unwrap();
        assert!(
            !check(&clients, "a", b"one") && !check(&clients, "a", b"two") && check(&clients, "b", b"three")
        );
        assert!(clients.without("a", 30).is_err() && clients.without("c", 30).is_err());
        let again = clients.with(client("a", b"five", 100)).unwrap();
        assert!(
            check(&again, "a", b"five") && !check(&again, "a", b"one"),
            "a new one brings no old one back"
        );
    }

    #[test]
    fn the_list_survives_and_forgets_what_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Clients::load(dir.path()).unwrap(), Clients::default());
        let clients = Clients::default().with(client("old", b"one", 15)).unwrap();
        let clients = clients.with(NbdClient { created_ms: 15, ..client("new", b"two", 100) }).unwrap();
        assert_eq!(clients.all().len(), 1);
        clients.save(dir.path()).unwrap();
        assert_eq!(Clients::load(dir.path()).unwrap(), clients);
        std::fs::write(dir.path().join(CLIENTS_FILE), "{").unwrap();
        assert_eq!(Clients::load(dir.path()).unwrap_err().kind, PeerErrorKind::Damaged);
        assert!(Clients::default().with(client("../x", b"", 100)).is_err());
    }
}
