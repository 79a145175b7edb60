//! TLS under the protocol: records in, bytes out, and back; without I/O, but for the files of certificates.
//!
//! ```text
//!  handshake (tokio):  socket ─► Session ─► Handshake          line (crate::line)
//!  transmission:       ring ──► Relay(Session) ──► Connection  engine
//! ```
//!
//! What lives here: one connection's session ([`Session`]), what stands between a connection and its socket in
//! transmission (`relay`), who decides about certificates ([`Security`]), and certificates out of files
//! ([`CertificateFiles`]). What does not: cryptography, chains and versions, which are rustls's: TLS 1.3 and 1.2,
//! nothing older, no renegotiation. We resume no sessions and take no early data: each client is looked at.

mod files;
mod relay;
mod session;

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ServerConfig, SupportedCipherSuite};

pub use files::{CertificateFiles, FilesError};
pub(crate) use relay::{Next, Relay};
pub use session::{Opened, RECORD_BYTES_MAX, Sealed, Session, SessionError, sealed_bytes_max};

/// Decides how this server shows itself and whom it lets in.
pub trait Security: Send + Sync + fmt::Debug {
    /// The configuration for one new client. Made with [`server_config`].
    ///
    /// # Errors
    /// Why there is none, for the log.
    fn config(&self) -> Result<Arc<ServerConfig>, String>;

    /// Whom a chain that was verified names, if anybody. The client's own certificate is the first.
    ///
    /// # Errors
    /// Why such a client is not let in after all.
    fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Option<String>, String>;
}

/// The one provider of cryptography, with its ciphers in our order.
///
/// In TLS 1.2 keys cannot be renewed, and AES-GCM may encrypt 2^24 records with one: a disk in use is there within
/// hours, and its connection would end. ChaCha20 has no such limit, so it goes first there.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = ring::default_provider();
        let old_aes = |suite: &SupportedCipherSuite| {
            suite.tls13().is_none() && !format!("{:?}", suite.suite()).contains("CHACHA20")
        };
        provider.cipher_suites.sort_by_key(old_aes);
        Arc::new(provider)
    });
    &PROVIDER
}

/// A configuration as every server of ours has it: TLS 1.3 and 1.2, no resumption, no early data.
///
/// # Errors
/// The provider has no cipher for these versions.
pub fn server_config(
    verifier: Arc<dyn ClientCertVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    // A resumed session would let a client in without a look at whether it still may.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}
