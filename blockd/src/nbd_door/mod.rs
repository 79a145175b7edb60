//! The NBD door over TCP: TLS, who stands before it, and what each may see.
//!
//! ```text
//! certificate ─► Security (our CA, or files) ─► identity ─► Access (rules) ─► exports of the directory
//! ```
//! Clients over the Unix socket, and over TCP that was declared insecure, are nobody in particular and see everything.

mod access;
mod exports;
mod limits;
mod names;
mod temporary;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use nbd_server::client::Client;
use nbd_server::registry::Registry;
use nbd_server::server::{Acceptor, ServerConfig as NbdConfig};
use nbd_server::tls::{CertificateFiles, Security};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::config::Config;
use crate::control::{ControlError, ErrorKind};
use crate::events::now_ms;
use crate::exit_code;
use crate::failure::Failure;
use crate::peer::{Peers, random};

pub use access::{Access, AccessMode, AccessRule, RULES_MAX};
pub(crate) use exports::{Exports, listed_name};
pub use limits::{LimitSettings, NbdLimits};
pub(crate) use names::is_host_name;
pub use temporary::{Ended, TemporaryExport, Wanted};
pub(crate) use temporary::{Made, Temporaries};

/// How clients prove who they are.
#[derive(Debug)]
enum Proof {
    /// By a certificate of this host's CA, or as a paired host.
    Own(Own),
    /// By a certificate of whoever the files name.
    Files(CertificateFiles),
}

/// Our own certificate, when there is one.
#[derive(Debug, Default)]
struct Own {
    names: Vec<String>,
    peers: OnceLock<Peers>,
    current: Mutex<Option<Current>>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    renew_at: SystemTime,
}

/// See the module. Clones are handles to the same.
#[derive(Clone)]
pub struct NbdDoor(Arc<Inner>);

struct Inner {
    /// `None`: TCP is in clear.
    proof: Option<Proof>,
    access: Access,
    limits: NbdLimits,
    registry: Registry,
    temporary: Temporaries,
    open: watch::Sender<bool>,
    server: OnceLock<(Acceptor, Weak<Exports>)>,
}

impl fmt::Debug for NbdDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdDoor").field("proof", &self.0.proof).finish_non_exhaustive()
    }
}

impl NbdDoor {
    /// A door through which nobody can come yet.
    ///
    /// # Errors
    /// The files of certificates cannot be used.
    pub fn new(config: &Config) -> Result<Self, Failure> {
        let proof = match &config.nbd_tls_dir {
            _ if config.insecure_tcp => None,
            Some(dir) => {
                Some(Proof::Files(CertificateFiles::open(dir).map_err(|error| refused(dir.clone(), &error))?))
            }
            None => Some(Proof::Own(Own { names: names::of(config), ..Own::default() })),
        };
        let access = Access::new(config.nbd_access.clone());
        Ok(Self::with(proof, access, config.nbd_limits, false))
    }

    fn with(proof: Option<Proof>, access: Access, limits: NbdLimits, open: bool) -> Self {
        let temporary = Temporaries::default();
        let registry = Registry::watched(Arc::new(temporary.clone()));
        let (open, server) = (watch::Sender::new(open), OnceLock::new());
        Self(Arc::new(Inner { proof, access, limits, registry, temporary, open, server }))
    }

    /// A door where TCP is in clear, if there is any.
    pub fn in_clear() -> Self {
        Self::with(None, Access::new(Vec::new()), NbdLimits::default(), true)
    }

    /// How the server behind it is set up.
    pub fn server_config(&self) -> NbdConfig {
        let limits = self.limits();
        NbdConfig {
            limits: limits.connection(),
            connections_max: limits.connections,
            connections_per_client_max: limits.connections_per_client,
            handshake_timeout: Duration::from_secs(limits.handshake_seconds),
            handshake_limits: limits.handshake(),
            registry: self.registry().clone(),
            security: self.security(),
            ..NbdConfig::default()
        }
    }

    /// The bounds of clients.
    pub fn limits(&self) -> NbdLimits {
        self.0.limits
    }

    /// Who is connected.
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(crate) fn temporary(&self) -> &Temporaries {
        &self.0.temporary
    }

    /// Makes a temporary export of the listed export of that name.
    ///
    /// # Errors
    /// `NotFound`, `Refused`, and as the table's.
    pub(crate) fn create_temporary(&self, name: &str, wanted: &Wanted) -> Result<Made, ControlError> {
        let not_found = || ControlError::new(ErrorKind::NotFound, format!("there is no export {name}"));
        let exports = self.0.server.get().and_then(|(_, exports)| exports.upgrade());
        let (target, read_only) = exports.and_then(|exports| exports.target(name)).ok_or_else(not_found)?;
        if wanted.write && read_only {
            return Err(ControlError::new(ErrorKind::Refused, format!("{name} is read-only")));
        }
        let no_random = |error| ControlError::new(ErrorKind::Io, format!("no secret can be made: {error}"));
        self.temporary().create(target, wanted, random().map_err(no_random)?, now_ms())
    }

    /// Ends a temporary export and disconnects its clients; `false` when there is none of that name.
    pub(crate) fn end_temporary(&self, label: &str, why: Ended) -> bool {
        let ended = self.temporary().end(label, why);
        if ended {
            self.review();
        }
        ended
    }

    /// What the server asks for certificates; `None`: TCP is in clear.
    pub fn security(&self) -> Option<Arc<dyn Security>> {
        self.0.proof.as_ref().map(|_| Arc::new(self.clone()) as Arc<dyn Security>)
    }

    /// Whether this host's own identity is needed before anybody can come.
    pub fn needs_peers(&self) -> bool {
        matches!(self.0.proof, Some(Proof::Own(_)))
    }

    /// How many clients are disconnected from when their rights end: by that acceptor.
    pub(crate) fn attach(&self, acceptor: Acceptor, exports: &Arc<Exports>) {
        // There is one server in a process; a second one's clients are not ours.
        self.0.server.get_or_init(|| (acceptor, Arc::downgrade(exports)));
    }

    /// Clients may come: this host's identity is there, if it is needed.
    pub fn open(&self, peers: Option<&Peers>) {
        if let (Some(Proof::Own(own)), Some(peers)) = (&self.0.proof, peers) {
            let door = self.clone();
            peers.on_revocation(Box::new(move || door.review()));
            own.peers.get_or_init(|| peers.clone());
        }
        self.0.open.send_replace(true);
    }

    /// Waits until clients may come.
    pub async fn opened(&self) {
        // The sender is ours: it is not gone.
        drop(self.0.open.subscribe().wait_for(|open| *open).await);
    }

    /// Disconnects clients that have lost their rights.
    fn review(&self) {
        if let Some((acceptor, _)) = self.0.server.get()
            && let Err(error) = acceptor.review()
        {
            tracing::error!(%error, "clients that are not let in any more may still be there");
        }
    }

    /// What a client may do with an export, if it may see it at all.
    pub fn mode(&self, client: &Client, export: &str) -> Option<AccessMode> {
        match &client.identity {
            // Nobody gets here unproven; if he did, he would see nothing.
            None if client.address.is_some() && self.0.proof.is_some() => None,
            None => Some(AccessMode::Write),
            Some(identity) => self.0.access.mode(identity, export),
        }
    }

    /// Whether a client that was let in still is.
    pub fn admits(&self, client: &Client, export: &str) -> bool {
        self.temporary().admits(export) && self.knows(client)
    }

    fn knows(&self, client: &Client) -> bool {
        let (Some(identity), Some(Proof::Own(own))) = (&client.identity, &self.0.proof) else { return true };
        let Some(peers) = own.peers.get() else { return false };
        match identity.split_once(':') {
            Some(("client", name)) => peers.has_nbd_client(name),
            Some(("host", name)) => peers.trusts(name),
            _ => false,
        }
    }

    /// What is wrong with the certificates, if anything is. Blocking: looks at files.
    pub fn trouble(&self) -> Option<String> {
        match &self.0.proof {
            Some(Proof::Files(files)) => files.refresh(),
            Some(Proof::Own(own)) if own.peers.get().is_some() => own.config().err(),
            _ => None,
        }
    }
}

impl Own {
    /// The certificate in use, or a new one when that is due. An old one stays in use as long as it must.
    fn config(&self) -> Result<Arc<ServerConfig>, String> {
        let Some(peers) = self.peers.get() else { return Err("the daemon is not ready".to_owned()) };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        if let Some(current) = &*current
            && now < current.renew_at
        {
            return Ok(Arc::clone(&current.config));
        }
        match (peers.nbd_server(&self.names), &*current) {
            (Ok((config, renew_at)), _) => {
                *current = Some(Current { config: Arc::clone(&config), renew_at });
                Ok(config)
            }
            (Err(error), Some(old)) => {
                tracing::error!(%error, "the certificate for NBD clients could not be renewed");
                Ok(Arc::clone(&old.config))
            }
            (Err(error), None) => Err(error.message),
        }
    }
}

impl Security for NbdDoor {
    fn config(&self) -> Result<Arc<ServerConfig>, String> {
        match &self.0.proof {
            Some(Proof::Own(own)) => own.config(),
            Some(Proof::Files(files)) => files.config(),
            None => Err("TCP is in clear here".to_owned()),
        }
    }

    fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Option<String>, String> {
        let first = chain.first().ok_or_else(|| "it has shown no certificate".to_owned())?;
        match &self.0.proof {
            Some(Proof::Own(Own { peers, .. })) => {
                let peers = peers.get().ok_or_else(|| "the daemon is not ready".to_owned())?;
                peers.nbd_identity(first).map(Some)
            }
            _ => names::subject(first).map(|name| Some(format!("cert:{name}"))),
        }
    }
}

fn refused(dir: PathBuf, error: &nbd_server::tls::FilesError) -> Failure {
    let next = format!("ls -l {}    (server-cert.pem, server-key.pem, ca-cert.pem)", dir.display());
    Failure::new(exit_code::FAILED, "the certificates for NBD clients cannot be used", error, next)
}
