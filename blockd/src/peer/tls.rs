//! TLS between hosts: version 1.3 only, both sides show a certificate, nothing is resumed. And who decides about the
//! certificates of NBD clients, which may come with 1.2, too.
//!
//! Whom we talk to is decided by a check of the chain, one for each case: a paired host (either side), any host that
//! wants to pair (server), the host that a token names (client). DNS names play no part: a host is who its CA says.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ServerConfig};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
};

use super::certs::{self, Usage};
use super::error::PeerError;
use super::host_id::HostId;
use super::links::Purpose;

/// The protocol of links between paired hosts.
const LINK_ALPN: &[u8] = b"blockd-peer/1";
/// The protocol of links between the agents of paired hosts.
const AGENT_ALPN: &[u8] = b"blockd-agent/1";
/// The protocol of pairing.
pub(super) const PAIR_ALPN: &[u8] = b"blockd-pair/1";
/// Label of the secret that links take out of their connection (RFC 5705).
pub(super) const LINK_EXPORTER: &[u8] = b"EXPORTER-blockd-peer-1";
/// The same, for pairing.
pub(super) const PAIR_EXPORTER: &[u8] = b"EXPORTER-blockd-pair-1";
/// What the client calls the server: needed by the library, not sent, not checked.
const NO_NAME: &str = "blockd.invalid";

impl Purpose {
    /// What such links are called in the handshake.
    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Sync => LINK_ALPN,
            Self::Agent => AGENT_ALPN,
        }
    }
}

type Check = dyn Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error> + Send + Sync;

/// Decides by a check of the chain, and leaves the signature of the handshake to the library.
pub(super) struct ChainVerifier(Box<Check>);

impl fmt::Debug for ChainVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainVerifier")
    }
}

impl ChainVerifier {
    /// A verifier that asks this; it gets the certificate, what came behind it, and the time.
    pub(super) fn new(
        check: impl Fn(&CertificateDer<'_>, &[CertificateDer<'_>], UnixTime) -> Result<(), Error>
        + Send
        + Sync
        + 'static,
    ) -> Arc<Self> {
        Arc::new(Self(Box::new(check)))
    }

    /// Exactly that host, by exactly that CA.
    pub(super) fn of_host(id: HostId, ca: CertificateDer<'static>) -> Arc<Self> {
        Self::new(move |host, _, now| check_host(host, id, &ca, Usage::Server, now))
    }

    /// Whichever host has the CA with that fingerprint.
    pub(super) fn of_fingerprint(fingerprint: [u8; 32]) -> Arc<Self> {
        Self::new(move |host, behind, now| {
            let ca = own_ca(behind)?;
            // In constant time, though it is no secret.
            if certs::fingerprint(ca) != fingerprint {
                return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
            }
            certs::host_id_of(host)?;
            certs::check_signed(host, ca, Usage::Server, now)
        })
    }

    /// Any host whose certificate is signed by the CA that it brings along.
    pub(super) fn of_anybody() -> Arc<Self> {
        Self::new(|host, behind, now| {
            certs::host_id_of(host)?;
            certs::check_signed(host, own_ca(behind)?, Usage::Client, now)
        })
    }
}

/// Whether a certificate is that host's: signed by its CA, and with its identity in it.
pub(super) fn check_host(
    certificate: &CertificateDer<'_>,
    id: HostId,
    ca: &CertificateDer<'_>,
    usage: Usage,
    now: UnixTime,
) -> Result<(), Error> {
    certs::check_signed(certificate, ca, usage, now)?;
    if certs::host_id_of(certificate)? == id { Ok(()) } else { Err(certs::refused()) }
}

/// The one certificate behind the host's, if it can be a CA.
fn own_ca<'a>(behind: &'a [CertificateDer<'a>]) -> Result<&'a CertificateDer<'a>, Error> {
    match behind {
        [ca] => certs::check_ca(ca).map(|()| ca),
        _ => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
    }
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature(
        message,
        certificate,
        signature,
        &certs::provider().signature_verification_algorithms,
    )
}

fn schemes() -> Vec<SignatureScheme> {
    certs::provider().signature_verification_algorithms.supported_schemes()
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        (self.0)(end_entity, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for ChainVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whom we know is nobody's business.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        (self.0)(end_entity, intermediates, now).map(|()| ClientCertVerified::assertion())
    }

    /// For NBD clients: whether that version is spoken at all is for the configuration to say, and hosts do not.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &certs::provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// How a server shows itself, whom it lets in, and for what.
pub(super) fn server(
    key: Arc<CertifiedKey>,
    verifier: Arc<ChainVerifier>,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(certs::provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session would bring in a host without a look at whether it is still trusted.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// How a client shows itself, whom it expects, and for what.
pub(super) fn client(
    key: Arc<CertifiedKey>,
    verifier: Arc<ChainVerifier>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(certs::provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// What the client side calls every server.
pub(super) fn no_name() -> ServerName<'static> {
    ServerName::try_from(NO_NAME).expect("a constant name")
}

/// The other side of a finished handshake, for a protocol.
pub(super) struct OtherSide {
    /// Out of its certificate, which was checked.
    pub(super) id: HostId,
    /// Its certificate.
    pub(super) certificate: CertificateDer<'static>,
    /// What came behind it.
    pub(super) ca: Option<CertificateDer<'static>>,
}

/// Who is there, if that protocol was agreed upon.
pub(super) fn other_side(connection: &CommonState, alpn: &[u8]) -> Result<OtherSide, PeerError> {
    let refuse = |why: &str| PeerError::new(super::PeerErrorKind::Refused, why);
    if connection.alpn_protocol() != Some(alpn) {
        return Err(refuse("it does not speak our protocol"));
    }
    let chain = connection.peer_certificates().unwrap_or_default();
    let Some((host, behind)) = chain.split_first() else {
        return Err(refuse("it has shown no certificate"));
    };
    let id = certs::host_id_of(host).map_err(|error| refuse(&error.to_string()))?;
    Ok(OtherSide { id, certificate: host.clone(), ca: behind.first().cloned() })
}
