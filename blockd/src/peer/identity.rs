//! This host's long-lived identity: its CA, its key and its certificate, in `DATA/peer`.
//!
//! | file | content | changes |
//! |---|---|---|
//! | `id` | the host's identity, 32 digits | never |
//! | `ca.key`, `ca.crt` | the CA, PEM | never |
//! | `host.key` | the host's key, PEM | never |
//! | `host.crt` | the host's certificate, PEM | when it is renewed |
//! | `hosts.json` | paired hosts (`registry`) | with every pairing |
//! | `clients.json` | certificates of NBD clients (`clients`); missing before the first | when one is made or revoked |
//!
//! All are made at once, in `DATA/peer.new`, which is then renamed: a crash leaves none or all. What is there and does
//! not fit together is named and left alone, for other hosts know us by it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rcgen::{KeyPair, PublicKeyData};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::certs::{self, Usage};
use super::error::{PeerError, PeerErrorKind};
use super::files;
use super::host_id::HostId;
use super::registry::{HOSTS_FILE, Registry};

/// Where identity and paired hosts are, in the data directory.
pub const PEER_DIRECTORY: &str = "peer";
const NEW_DIRECTORY: &str = "peer.new";
const ID_FILE: &str = "id";
const CA_KEY_FILE: &str = "ca.key";
const CA_FILE: &str = "ca.crt";
const HOST_KEY_FILE: &str = "host.key";
const HOST_FILE: &str = "host.crt";
/// Largest of these files.
const FILE_BYTES_MAX: u64 = 16 << 10;
/// A certificate is renewed when less than this part of its life is left.
const RENEW_PART: u32 = 3;

/// See the module.
pub(super) struct Identity {
    dir: PathBuf,
    name: String,
    id: HostId,
    ca: CertificateDer<'static>,
    current: RwLock<Arc<CertifiedKey>>,
}

impl Identity {
    /// Reads the identity of a data directory, or makes one where there is none, and renews its certificate if that
    /// is due.
    ///
    /// # Errors
    /// `Damaged`: a file is missing or not what was written. `Refused`: others may read a key. `Io`.
    pub(super) fn open(data: &Path, name: &str) -> Result<Self, PeerError> {
        let dir = data.join(PEER_DIRECTORY);
        let present = fs::exists(&dir).map_err(|error| PeerError::io(dir.display(), error))?;
        if !present {
            make(data, name)?;
        }
        let identity = Self::load(&dir, name)?;
        identity.renew_if_due(SystemTime::now())?;
        Ok(identity)
    }

    fn load(dir: &Path, name: &str) -> Result<Self, PeerError> {
        let id = read(dir, ID_FILE)?;
        let id: HostId = id.trim_end().parse().map_err(|error| damaged(&dir.join(ID_FILE), error))?;
        let ca = read_certificate(dir, CA_FILE)?;
        certs::check_ca(&ca).map_err(|error| damaged(&dir.join(CA_FILE), error))?;
        let ca_key = read_ca_key(dir)?;
        if !is_key_of(&ca_key, &ca) {
            return Err(damaged(&dir.join(CA_KEY_FILE), "it is not the key of ca.crt"));
        }
        let current = RwLock::new(Arc::new(read_host(dir, id, &ca)?));
        Ok(Self { dir: dir.to_owned(), name: name.to_owned(), id, ca, current })
    }

    /// The host's identity.
    pub(super) fn id(&self) -> HostId {
        self.id
    }

    /// Where the files are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The CA that others know us by.
    pub(super) fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// The CA's key, out of its file: it is not kept in memory.
    ///
    /// # Errors
    /// As [`Identity::open`].
    pub(super) fn ca_key(&self) -> Result<KeyPair, PeerError> {
        read_ca_key(&self.dir)
    }

    /// Certificate, CA and key as they are shown to others from now on.
    pub(super) fn current(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the certificate in use ends.
    pub(super) fn valid_until(&self) -> Result<SystemTime, PeerError> {
        let until = certs::valid_until(&self.current().cert[0], &self.ca);
        until.map_err(|error| damaged(&self.dir.join(HOST_FILE), error))
    }

    /// Makes a new certificate, for the same key, when at that time less than a third of its life is left, or when the
    /// host has another name now. Links that stand are not touched. Whether there is a new one.
    ///
    /// # Errors
    /// `Io`, `Damaged`: the old certificate stays in use.
    pub(super) fn renew_if_due(&self, at: SystemTime) -> Result<bool, PeerError> {
        let current = self.current();
        let named = certs::is_named(&current.cert[0], &self.name);
        let named = named.map_err(|error| damaged(&self.dir.join(HOST_FILE), error))?;
        if named && self.valid_until()? > at + certs::HOST_LIFE / RENEW_PART {
            return Ok(false);
        }
        let host_key = read_key(&self.dir, HOST_KEY_FILE)?;
        let ca_key = read_ca_key(&self.dir)?;
        let certificate = certs::make_host(self.id, &self.name, &host_key, ca_key, SystemTime::now())?;
        let path = self.dir.join(HOST_FILE);
        files::replace(&self.dir, HOST_FILE, certificate.pem().as_bytes())
            .map_err(|error| PeerError::io(path.display(), error))?;
        let renewed = Arc::new(read_host(&self.dir, self.id, &self.ca)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        tracing::info!(host = %self.id, "the host certificate was renewed");
        Ok(true)
    }
}

/// Makes everything, in a directory of its own that appears whole.
fn make(data: &Path, name: &str) -> Result<(), PeerError> {
    let new = data.join(NEW_DIRECTORY);
    let fail = |error: std::io::Error| PeerError::io(format!("cannot make {}", new.display()), error);
    match fs::remove_dir_all(&new) {
        // What a crash has left.
        Ok(()) => tracing::info!(path = %new.display(), "an unfinished identity is removed"),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(fail(error)),
    }
    let id = HostId(certs::random()?);
    let (ca_key, host_key) = (certs::new_key()?, certs::new_key()?);
    let now = SystemTime::now();
    let ca = certs::make_ca(id, &ca_key, now)?;
    files::make_directory(&new).map_err(fail)?;
    let write = |name: &str, text: String| files::write(&new.join(name), text.as_bytes()).map_err(fail);
    write(ID_FILE, format!("{id}\n"))?;
    write(CA_KEY_FILE, ca_key.serialize_pem())?;
    write(CA_FILE, ca.pem())?;
    write(HOST_KEY_FILE, host_key.serialize_pem())?;
    write(HOST_FILE, certs::make_host(id, name, &host_key, ca_key, now)?.pem())?;
    write(HOSTS_FILE, Registry::default().encode())?;
    files::sync_directory(&new).map_err(fail)?;
    fs::rename(&new, data.join(PEER_DIRECTORY)).map_err(fail)?;
    files::sync_directory(data).map_err(fail)
}

/// The certificate in use, with its key, checked against the CA. One that has ended is no damage: it is renewed.
fn read_host(dir: &Path, id: HostId, ca: &CertificateDer<'static>) -> Result<CertifiedKey, PeerError> {
    let path = dir.join(HOST_FILE);
    let host = read_certificate(dir, HOST_FILE)?;
    let until = certs::valid_until(&host, ca).map_err(|error| damaged(&path, error))?;
    if certs::host_id_of(&host).ok() != Some(id) {
        return Err(damaged(&path, "it is the certificate of another host"));
    }
    let at = SystemTime::now();
    if at < until && certs::check_signed(&host, ca, Usage::Client, UnixTime::now()).is_err() {
        tracing::warn!(path = %path.display(), "the host certificate is not valid yet: is the clock right?");
    }
    let key = read_key(dir, HOST_KEY_FILE)?;
    let key = PrivateKeyDer::try_from(key.serialize_der());
    let key_path = dir.join(HOST_KEY_FILE);
    let key = key.map_err(|error| damaged(&key_path, error))?;
    CertifiedKey::from_der(vec![host, ca.clone()], key, certs::provider())
        .map_err(|error| damaged(&key_path, error))
}

fn read_ca_key(dir: &Path) -> Result<KeyPair, PeerError> {
    read_key(dir, CA_KEY_FILE)
}

fn read_key(dir: &Path, name: &str) -> Result<KeyPair, PeerError> {
    let path = dir.join(name);
    let text = read(dir, name)?;
    if files::is_open_to_others(&path).map_err(|error| PeerError::io(path.display(), error))? {
        let message = format!("{}: others than its owner may use this private key", path.display());
        let next = format!("chmod 600 {0}; ls -l {0}", path.display());
        return Err(PeerError::new(PeerErrorKind::Refused, message).with_next(next));
    }
    KeyPair::from_pem(&text).map_err(|_| damaged(&path, "it is no private key"))
}

/// Whether the CA's certificate is for that key.
fn is_key_of(key: &KeyPair, ca: &CertificateDer<'_>) -> bool {
    let anchor = webpki::anchor_from_trusted_cert(ca);
    // The anchor has it without the sequence around it.
    anchor.is_ok_and(|anchor| key.subject_public_key_info().ends_with(&anchor.subject_public_key_info))
}

fn read_certificate(dir: &Path, name: &str) -> Result<CertificateDer<'static>, PeerError> {
    let text = read(dir, name)?;
    CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|_| damaged(&dir.join(name), "it is no certificate"))
}

fn read(dir: &Path, name: &str) -> Result<String, PeerError> {
    let path = dir.join(name);
    files::read(&path, FILE_BYTES_MAX).map_err(|error| match error.kind() {
        ErrorKind::NotFound => damaged(&path, "it is missing"),
        ErrorKind::InvalidData => damaged(&path, error),
        _ => PeerError::io(path.display(), error),
    })
}

/// A file that is not what was written. Nothing is made in its place: other hosts know the old one.
pub(super) fn damaged(path: &Path, why: impl std::fmt::Display) -> PeerError {
    let message = format!("{} is damaged: {why}; nothing was changed", path.display());
    let next = "put the directory back from a backup, or move it away and pair again";
    PeerError::new(PeerErrorKind::Damaged, message).with_next(next)
}
