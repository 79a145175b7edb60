//! Certificates out of a directory, under the names that QEMU and nbdkit give them.
//!
//! | file | |
//! |---|---|
//! | `server-cert.pem` | this server's certificate, with those between it and its CA behind it |
//! | `server-key.pem` | its key; not for others' eyes |
//! | `ca-cert.pem` | the CAs whose clients are let in |
//! | `ca-crl.pem` | what these have revoked; may be missing |
//!
//! The files are looked at for every new client: who replaces them need tell nobody. A set that cannot be used (half
//! replaced, say) leaves the last good one in use, and is told once.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};

use super::{Security, provider, server_config};

const CERTIFICATE: &str = "server-cert.pem";
const KEY: &str = "server-key.pem";
const CA: &str = "ca-cert.pem";
const REVOKED: &str = "ca-crl.pem";
/// Largest of these files, bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Rights of everybody on a key.
const RIGHTS_OF_ALL: u32 = 0o007;

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// A file cannot be read.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// A file is not what it should be.
    #[error("{0}: {1}")]
    Content(PathBuf, String),
}

/// Enough of a file's metadata to see that it was replaced or written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

type Stamps = [Option<Stamp>; 4];

/// See the module.
#[derive(Debug)]
pub struct CertificateFiles {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Of the files that were tried last.
    stamps: Stamps,
    config: Arc<ServerConfig>,
    error: Option<String>,
}

impl CertificateFiles {
    /// Reads the files of a directory. Blocking, as everything here.
    ///
    /// # Errors
    /// A file is missing, cannot be read or is not what it should be; everybody may use the key.
    pub fn open(dir: &Path) -> Result<Self, FilesError> {
        let stamps = stamps(dir);
        let state = State { stamps, config: load(dir)?, error: None };
        Ok(Self { dir: dir.to_owned(), state: Mutex::new(state) })
    }

    /// Looks whether the files have changed, and takes them if they can be used. Why they cannot be, if so.
    pub fn refresh(&self) -> Option<String> {
        self.with_current(|state| state.error.clone())
    }

    fn with_current<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamps(&self.dir);
        if now != state.stamps {
            state.stamps = now;
            match load(&self.dir) {
                Ok(config) => {
                    tracing::info!(dir = %self.dir.display(), "new certificates are in use");
                    (state.config, state.error) = (config, None);
                }
                Err(error) => {
                    tracing::error!(%error, "the new certificates cannot be used, the old ones stay");
                    state.error = Some(error.to_string());
                }
            }
        }
        look(&state)
    }
}

impl Security for CertificateFiles {
    fn config(&self) -> Result<Arc<ServerConfig>, String> {
        Ok(self.with_current(|state| Arc::clone(&state.config)))
    }

    fn identify(&self, _chain: &[CertificateDer<'_>]) -> Result<Option<String>, String> {
        Ok(None)
    }
}

fn stamps(dir: &Path) -> Stamps {
    [CERTIFICATE, KEY, CA, REVOKED].map(|name| {
        // What cannot be looked at cannot be read either: that is told there.
        let metadata = fs::metadata(dir.join(name)).ok()?;
        Some(Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    })
}

fn load(dir: &Path) -> Result<Arc<ServerConfig>, FilesError> {
    let in_key = |error: rustls::Error| FilesError::Content(dir.join(KEY), error.to_string());
    let chain = read_certificates(&dir.join(CERTIFICATE))?;
    let own = CertifiedKey::from_der(chain, read_key(&dir.join(KEY))?, provider()).map_err(in_key)?;
    let path = dir.join(CA);
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(&path)? {
        roots.add(certificate).map_err(|error| FilesError::Content(path.clone(), error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider()));
    let builder = match read_revoked(&dir.join(REVOKED))? {
        // The list of one CA says nothing of the others' clients.
        Some(lists) => {
            builder.with_crls(lists).only_check_end_entity_revocation().allow_unknown_revocation_status()
        }
        None => builder,
    };
    let verifier =
        builder.build().map_err(|error| FilesError::Content(dir.join(REVOKED), error.to_string()))?;
    server_config(verifier, Arc::new(SingleCertAndKey::from(own))).map_err(in_key)
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let text = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(content(path, "there is no certificate in it")),
        Err(error) => Err(content(path, &error.to_string())),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, FilesError> {
    let mode = fs::metadata(path).map_err(|error| FilesError::Io(path.to_owned(), error))?.mode();
    if mode & RIGHTS_OF_ALL != 0 {
        return Err(content(path, "everybody may use this private key: chmod 600"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(path)?);
    // What the parser says of it might be a part of it.
    key.map_err(|_| content(path, "it is no private key without a password"))
}

fn read_revoked(path: &Path) -> Result<Option<Vec<CertificateRevocationListDer<'static>>>, FilesError> {
    if !fs::exists(path).map_err(|error| FilesError::Io(path.to_owned(), error))? {
        return Ok(None);
    }
    let all: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&read(path)?).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(Some(all)),
        Ok(_) => Err(content(path, "there is no list of revoked certificates in it")),
        Err(error) => Err(content(path, &error.to_string())),
    }
}

fn content(path: &Path, why: &str) -> FilesError {
    FilesError::Content(path.to_owned(), why.to_owned())
}

fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let fail = |error| FilesError::Io(path.to_owned(), error);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(fail)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(content(path, "it has more than 4 MiB"));
    }
    Ok(bytes)
}
