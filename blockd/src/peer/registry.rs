//! The hosts that are paired with this one, in `DATA/peer/hosts.json`.

use std::num::NonZeroU64;
use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::addresses::check_addresses;
use super::certs;
use super::error::{PeerError, PeerErrorKind};
use super::files;
use super::host_id::HostId;
use super::identity::damaged;
use crate::control::is_valid_name;

/// The file's name, beside the identity.
pub(super) const HOSTS_FILE: &str = "hosts.json";
/// Paired hosts.
pub const HOSTS_MAX: usize = 256;
/// Largest file: hosts, each with addresses and a CA of the largest size.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The file's version.
const VERSION: u32 = 1;

/// A host that this one is paired with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairedHost {
    /// What it is for good.
    pub id: HostId,
    /// What it is called here; a name.
    pub name: String,
    /// Where it is reached: `HOST:PORT`, tried in order. May be empty: then only it can connect to us.
    pub addresses: Vec<String>,
    /// The certificate of its CA, PEM.
    pub ca: String,
    /// Milliseconds since 1970, UTC: when it was paired last.
    pub paired_ms: u64,
    /// Whether links with it are allowed.
    pub trusted: bool,
    /// Bytes a second that all jobs together may send to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<NonZeroU64>,
}

impl PairedHost {
    /// Its CA's certificate.
    pub(super) fn ca(&self) -> Option<CertificateDer<'static>> {
        let ca = CertificateDer::from_pem_slice(self.ca.as_bytes()).ok()?;
        certs::check_ca(&ca).is_ok().then_some(ca)
    }
}

/// All of them, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Registry {
    v: u32,
    hosts: Vec<PairedHost>,
}

impl Default for Registry {
    fn default() -> Self {
        Self { v: VERSION, hosts: Vec::new() }
    }
}

impl Registry {
    /// Reads the file of a peer directory.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub(super) fn load(dir: &Path) -> Result<Self, PeerError> {
        let damaged = |why: &str| damaged(&dir.join(HOSTS_FILE), why);
        let registry: Option<Self> = files::load(dir, HOSTS_FILE, FILE_BYTES_MAX)?;
        let registry = registry.ok_or_else(|| damaged("it is missing"))?;
        registry.check().map_err(|why| damaged(&why))?;
        Ok(registry)
    }

    /// The file's content.
    pub(super) fn encode(&self) -> String {
        files::encode(self)
    }

    /// Replaces the file; durable when this returns.
    pub(super) fn save(&self, dir: &Path) -> Result<(), PeerError> {
        files::save(dir, HOSTS_FILE, self)
    }

    fn check(&self) -> Result<(), String> {
        if self.v != VERSION {
            return Err(format!("its version is {}, ours {VERSION}", self.v));
        }
        if self.hosts.len() > HOSTS_MAX {
            return Err(format!("it has {} hosts, at most {HOSTS_MAX} may be", self.hosts.len()));
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let twice =
                self.hosts[..index].iter().any(|other| other.id == host.id || other.name == host.name);
            let addresses = check_addresses(&host.addresses);
            if twice || !is_valid_name(&host.name) || host.ca().is_none() || addresses.is_err() {
                return Err(format!(
                    "host {:?} is there twice, or has a wrong name, CA or address",
                    host.name
                ));
            }
        }
        Ok(())
    }

    /// All hosts, by name.
    pub(super) fn hosts(&self) -> &[PairedHost] {
        &self.hosts
    }

    /// The host with that name.
    pub(super) fn named(&self, name: &str) -> Result<&PairedHost, PeerError> {
        self.hosts.iter().find(|host| host.name == name).ok_or_else(|| PeerError::no_host(name))
    }

    /// The host with that identity.
    pub(super) fn with_id(&self, id: HostId) -> Option<&PairedHost> {
        self.hosts.iter().find(|host| host.id == id)
    }

    /// The same without that host.
    pub(super) fn without(&self, name: &str) -> Result<(Self, PairedHost), PeerError> {
        let host = self.named(name)?.clone();
        let hosts = self.hosts.iter().filter(|other| other.id != host.id).cloned().collect();
        Ok((Self { hosts, ..Self::default() }, host))
    }

    /// The same with one host changed.
    pub(super) fn with_changed(
        &self,
        name: &str,
        change: impl FnOnce(&mut PairedHost),
    ) -> Result<(Self, PairedHost), PeerError> {
        let mut changed = self.named(name)?.clone();
        change(&mut changed);
        let hosts = self.hosts.iter().map(|host| if host.id == changed.id { &changed } else { host });
        Ok((Self { hosts: hosts.cloned().collect(), ..Self::default() }, changed))
    }

    /// The same with a host that was paired now. A host that is known already gets its new addresses, and a new CA
    /// only where `consent` says so.
    ///
    /// # Errors
    /// `Exists`: the name is another host's. `Refused`: known with another CA, or not trusted any more; not the host
    /// that the consent is for. `Busy`: there are too many. `BadValue`, `BadName`.
    pub(super) fn with_paired(
        &self,
        paired: PairedHost,
        consent: &Consent,
    ) -> Result<(Self, PairedHost), PeerError> {
        check_addresses(&paired.addresses)?;
        if !is_valid_name(&paired.name) {
            let message = format!("{:?} is no name for a host", paired.name);
            return Err(
                PeerError::new(PeerErrorKind::BadName, message).with_next("blockctl host pair … --as NAME")
            );
        }
        if consent.replace.is_some_and(|id| id != paired.id) {
            return Err(refused("it is another host than the one to be replaced"));
        }
        let known = self.with_id(paired.id);
        let mut host = paired;
        let ca_replaced = known.is_some_and(|known| known.ca() != host.ca());
        if let Some(known) = known {
            allow_known(known, ca_replaced, consent)?;
            host.name = consent.name.clone().unwrap_or_else(|| known.name.clone());
            host.rate = known.rate;
        }
        if let Some(other) = self.hosts.iter().find(|other| other.name == host.name && other.id != host.id) {
            let message = format!("the name {} is that of another host, {}", other.name, other.id);
            return Err(
                PeerError::new(PeerErrorKind::Exists, message).with_next("blockctl host pair … --as NAME")
            );
        }
        let mut hosts: Vec<_> = self.hosts.iter().filter(|other| other.id != host.id).cloned().collect();
        if hosts.len() == HOSTS_MAX {
            let message = format!("{HOSTS_MAX} hosts are paired already, more cannot be");
            return Err(PeerError::new(PeerErrorKind::Busy, message).with_next("blockctl host remove NAME"));
        }
        hosts.push(host.clone());
        hosts.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok((Self { hosts, ..Self::default() }, host))
    }
}

/// What the operator has agreed to with a token.
#[derive(Clone, Debug, Default)]
pub(super) struct Consent {
    /// What to call the host here; else what it calls itself.
    pub(super) name: Option<String>,
    /// Only that host, which is known already, and whatever CA it shows.
    pub(super) replace: Option<HostId>,
    /// Where this host is to be found; none: where it listens.
    pub(super) addresses: Vec<String>,
}

fn allow_known(known: &PairedHost, ca_replaced: bool, consent: &Consent) -> Result<(), PeerError> {
    if !known.trusted {
        let next = format!("blockctl host trust {}    (then pair again)", known.name);
        return Err(refused(format!("{} is not trusted any more", known.name)).with_next(next));
    }
    // Identities are no secrets: with a token meant for somebody else, a host could take another's place.
    if ca_replaced && consent.replace != Some(known.id) {
        let next = format!("blockctl host pair … --replace {}    (if it was set up anew)", known.name);
        return Err(refused(format!("{} is known with another CA", known.name)).with_next(next));
    }
    Ok(())
}

fn refused(message: impl Into<String>) -> PeerError {
    PeerError::new(PeerErrorKind::Refused, message)
}
