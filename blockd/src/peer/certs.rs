//! Certificates: how ours are made, and what is asked of anybody's.
//!
//! ```text
//! CA (self-signed, 20 years) ─┬─ host certificate (1 year): URI blockd://HOSTID, DNS name
//!                             ├─ NBD server certificate (90 days): DNS names and addresses, for servers only
//!                             └─ NBD clients' certificates: URI blockd-client://NAME, CN NAME, for clients only
//! ```
//! Keys are ECDSA P-256: every TLS library speaks it, those of QEMU's clients too.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, DnsName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, Error, RootCertStore};
use webpki::EndEntityCert;

use super::error::PeerError;
use super::host_id::HostId;
use crate::control::is_valid_name;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a CA is good.
const CA_LIFE: Duration = Duration::from_secs(DAY.as_secs() * 365 * 20);
/// How long a host certificate is good.
pub(super) const HOST_LIFE: Duration = Duration::from_secs(DAY.as_secs() * 365);
/// How long our certificate for NBD clients is good. It lives in memory only.
pub(super) const NBD_SERVER_LIFE: Duration = Duration::from_secs(DAY.as_secs() * 90);
/// Certificates begin earlier than they are made: the other host's clock may be behind ours.
const CLOCK_SKEW: Duration = DAY;
/// Largest certificate that is accepted from another host.
pub(super) const CERTIFICATE_BYTES_MAX: usize = 4096;
/// A certificate's serial number: random, positive.
const SERIAL_BYTES: usize = 16;
/// What a host's identity is called in its certificate.
const URI_PREFIX: &str = "blockd://";
/// What an NBD client is called in its certificate.
const CLIENT_URI_PREFIX: &str = "blockd-client://";
/// QEMU 7.2 refuses certificates whose critical usages leave the encipherment of keys out, though no cipher of ours has
/// any.
const END_ENTITY_USAGES: [KeyUsagePurpose; 2] =
    [KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
/// Later than any certificate ends.
const NEVER: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));

/// What a certificate is shown for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Usage {
    /// By a server.
    Server,
    /// By a client.
    Client,
}

/// The one provider of cryptography.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));
    &PROVIDER
}

/// Random bytes that nobody can guess.
pub(crate) fn random<const BYTES: usize>() -> Result<[u8; BYTES], PeerError> {
    let mut bytes = [0; BYTES];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| PeerError::crypto("no random numbers", "the system gives none"))?;
    Ok(bytes)
}

/// A new private key.
pub(super) fn new_key() -> Result<KeyPair, PeerError> {
    KeyPair::generate().map_err(|error| PeerError::crypto("cannot make a key", error))
}

/// The CA of a host, signed by itself.
pub(super) fn make_ca(id: HostId, key: &KeyPair, now: SystemTime) -> Result<rcgen::Certificate, PeerError> {
    let mut params = ca_params(id);
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + CA_LIFE).into();
    params.serial_number = Some(serial()?);
    params.self_signed(key).map_err(|error| PeerError::crypto("cannot make a CA", error))
}

/// A host's certificate, signed by its CA.
pub(super) fn make_host(
    id: HostId,
    name: &str,
    key: &KeyPair,
    ca_key: KeyPair,
    now: SystemTime,
) -> Result<rcgen::Certificate, PeerError> {
    let mut params = host_params(id, name)?;
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + HOST_LIFE).into();
    params.serial_number = Some(serial()?);
    // Out of the identity the CA's subject is always the same, so its certificate need not be parsed.
    let issuer = Issuer::new(ca_params(id), ca_key);
    params.signed_by(key, &issuer).map_err(|error| PeerError::crypto("cannot make a certificate", error))
}

/// A certificate for NBD clients to see, signed by the host's CA.
pub(super) fn make_nbd_server(
    id: HostId,
    names: &[String],
    key: &KeyPair,
    ca_key: KeyPair,
    now: SystemTime,
) -> Result<rcgen::Certificate, PeerError> {
    let bad = |error| PeerError::crypto("cannot make a certificate", error);
    let mut params = CertificateParams::new(names.to_vec()).map_err(bad)?;
    params.distinguished_name = common_name(&format!("blockd NBD {id}"));
    end_entity(&mut params, ExtendedKeyUsagePurpose::ServerAuth, (now, now + NBD_SERVER_LIFE))?;
    params.signed_by(key, &Issuer::new(ca_params(id), ca_key)).map_err(bad)
}

/// An NBD client's certificate, signed by the host's CA.
pub(super) fn make_client(
    id: HostId,
    name: &str,
    key: &KeyPair,
    ca_key: KeyPair,
    life: (SystemTime, SystemTime),
) -> Result<rcgen::Certificate, PeerError> {
    let bad = |error| PeerError::crypto("cannot make a certificate", error);
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    let uri = format!("{CLIENT_URI_PREFIX}{name}").try_into().map_err(bad)?;
    params.subject_alt_names.push(SanType::URI(uri));
    end_entity(&mut params, ExtendedKeyUsagePurpose::ClientAuth, life)?;
    params.signed_by(key, &Issuer::new(ca_params(id), ca_key)).map_err(bad)
}

/// What certificates of NBD have in common.
fn end_entity(
    params: &mut CertificateParams,
    purpose: ExtendedKeyUsagePurpose,
    (from, until): (SystemTime, SystemTime),
) -> Result<(), PeerError> {
    params.not_before = (from - CLOCK_SKEW).into();
    params.not_after = until.into();
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = END_ENTITY_USAGES.to_vec();
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    Ok(())
}

fn ca_params(id: HostId) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("blockd CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn host_params(id: HostId, name: &str) -> Result<CertificateParams, PeerError> {
    let bad = |error| PeerError::crypto("cannot make a certificate", error);
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&format!("blockd host {id}"));
    let uri = format!("{URI_PREFIX}{id}").try_into().map_err(bad)?;
    params.subject_alt_names.push(SanType::URI(uri));
    if let Some(name) = dns_name(name) {
        params.subject_alt_names.push(SanType::DnsName(name.try_into().map_err(bad)?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = END_ENTITY_USAGES.to_vec();
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn serial() -> Result<SerialNumber, PeerError> {
    let mut bytes = random::<SERIAL_BYTES>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// A host's name as it stands in its certificate, if DNS could have such a name.
pub(super) fn dns_name(name: &str) -> Option<&str> {
    DnsName::try_from(name).is_ok().then_some(name)
}

/// The host that a certificate speaks for. Says nothing about who signed it.
pub(super) fn host_id_of(certificate: &CertificateDer<'_>) -> Result<HostId, Error> {
    let certificate = parse(certificate)?;
    let mut ids = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(URI_PREFIX));
    match (ids.next().map(str::parse), ids.next()) {
        (Some(Ok(id)), None) => Ok(id),
        // With two of them it would depend on the reader who that is.
        _ => Err(refused()),
    }
}

/// The NBD client that a certificate speaks for, if it is one's. Says nothing about who signed it.
pub(super) fn client_name_of(certificate: &CertificateDer<'_>) -> Result<Option<String>, Error> {
    let certificate = parse(certificate)?;
    let mut names = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(CLIENT_URI_PREFIX));
    match (names.next(), names.next()) {
        (None, _) => Ok(None),
        (Some(name), None) if is_valid_name(name) => Ok(Some(name.to_owned())),
        _ => Err(refused()),
    }
}

/// Whether a certificate carries exactly this name, if the name can stand in a certificate at all.
pub(super) fn is_named(certificate: &CertificateDer<'_>, name: &str) -> Result<bool, Error> {
    Ok(parse(certificate)?.valid_dns_names().eq(dns_name(name)))
}

fn parse<'a>(certificate: &'a CertificateDer<'a>) -> Result<EndEntityCert<'a>, Error> {
    EndEntityCert::try_from(certificate).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// A certificate that is in order, of somebody whom we do not want.
pub(super) fn refused() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

/// Whether that CA itself has signed the certificate, for this usage, and it is good at that time.
pub(super) fn check_signed(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    usage: Usage,
    now: UnixTime,
) -> Result<(), Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    match usage {
        Usage::Server => {
            let algorithms = provider().signature_verification_algorithms.all;
            let parsed = ParsedCertificate::try_from(certificate)?;
            verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms)
        }
        Usage::Client => {
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider()));
            let verifier = builder.build().map_err(|error| Error::General(error.to_string()))?;
            verifier.verify_client_cert(certificate, &[], now).map(drop)
        }
    }
}

/// When a certificate ends. The library tells it only when it refuses one that has ended.
pub(super) fn valid_until(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
) -> Result<SystemTime, Error> {
    match check_signed(certificate, ca, Usage::Server, NEVER) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
        }
        Err(error) => Err(error),
        Ok(()) => Err(refused()),
    }
}

/// Refuses a CA that cannot be one, before it is stored.
pub(super) fn check_ca(ca: &CertificateDer<'_>) -> Result<(), Error> {
    if ca.len() > CERTIFICATE_BYTES_MAX {
        return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
    }
    RootCertStore::empty().add(ca.clone())
}

/// What a CA is recognised by: BLAKE3 of its certificate (DER).
pub(super) fn fingerprint(ca: &CertificateDer<'_>) -> blake3::Hash {
    blake3::hash(ca)
}

/// A certificate as text.
pub(super) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    const LINE_CHARS: usize = 64;
    let text = STANDARD.encode(certificate);
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(LINE_CHARS)
        .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"))
        .collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
