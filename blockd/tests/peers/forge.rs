//! Somebody who makes certificates and messages of his own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::host::PATIENCE;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A CA: of a host (read from its directory), or of the forger.
pub(crate) struct Ca {
    pub(crate) id: String,
    key: String,
    pub(crate) certificate: CertificateDer<'static>,
}

impl Ca {
    /// A new one.
    pub(crate) fn new(id: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = ca_params(id).self_signed(&key).unwrap().der().clone();
        Self { id: id.to_owned(), key: key.serialize_pem(), certificate }
    }

    /// A host's own.
    pub(crate) fn of(data: &Path) -> Self {
        use rustls::pki_types::pem::PemObject;
        let read = |name: &str| std::fs::read_to_string(data.join("peer").join(name)).unwrap();
        let certificate = CertificateDer::from_pem_slice(read("ca.crt").as_bytes()).unwrap();
        Self { id: read("id").trim().to_owned(), key: read("ca.key"), certificate }
    }

    /// A certificate for a host, as the product makes them but for these.
    pub(crate) fn sign(
        &self,
        ids: &[&str],
        key: &KeyPair,
        valid: (i64, i64),
        usage: Purposes,
    ) -> rcgen::Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "forged");
        for id in ids {
            params.subject_alt_names.push(SanType::URI(format!("blockd://{id}").try_into().unwrap()));
        }
        params.extended_key_usages = usage.0;
        (params.not_before, params.not_after) = (from_now(valid.0).into(), from_now(valid.1).into());
        params.serial_number = Some(rcgen::SerialNumber::from_slice(&[7; 16]));
        let issuer = Issuer::new(ca_params(&self.id), KeyPair::from_pem(&self.key).unwrap());
        params.signed_by(key, &issuer).unwrap()
    }

    /// Who says that it is that host, with a certificate of this CA, good from and until so many days from now.
    pub(crate) fn client(&self, ids: &[&str], valid: (i64, i64)) -> Client {
        let key = KeyPair::generate().unwrap();
        let certificate = self.sign(ids, &key, valid, Purposes::both());
        Client { chain: vec![certificate.der().clone(), self.certificate.clone()], key: key.serialize_der() }
    }

    /// One whose certificate is good for servers only.
    pub(crate) fn server_only(&self) -> Client {
        let key = KeyPair::generate().unwrap();
        let usage = Purposes(vec![ExtendedKeyUsagePurpose::ServerAuth]);
        let certificate = self.sign(&[&self.id], &key, (-1, 1), usage);
        Client { chain: vec![certificate.der().clone(), self.certificate.clone()], key: key.serialize_der() }
    }
}

pub(crate) struct Purposes(Vec<ExtendedKeyUsagePurpose>);

impl Purposes {
    pub(crate) fn both() -> Self {
        Self(vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth])
    }
}

fn from_now(days: i64) -> SystemTime {
    let span = DAY * u32::try_from(days.unsigned_abs()).unwrap();
    if days < 0 { SystemTime::now() - span } else { SystemTime::now() + span }
}

fn ca_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("blockd CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Somebody with a certificate, who believes every server.
pub(crate) struct Client {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

#[derive(Debug)]
struct BelievesAll;

impl ServerCertVerifier for BelievesAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Somebody without a certificate.
pub(crate) fn nobody() -> Client {
    Client { chain: Vec::new(), key: Vec::new() }
}

impl Client {
    /// A connection for that protocol.
    pub(crate) async fn connect(&self, to: SocketAddr, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(BelievesAll));
        let mut config = if self.chain.is_empty() {
            builder.with_no_client_auth()
        } else {
            let key = PrivateKeyDer::try_from(self.key.clone()).unwrap();
            builder.with_client_auth_cert(self.chain.clone(), key).unwrap()
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let tcp = TcpStream::connect(to).await?;
        let name = ServerName::try_from("anything.example").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// What the server says on a link; the error when it lets us not in.
    pub(crate) async fn greeting(&self, to: SocketAddr) -> std::io::Result<String> {
        let mut stream = self.connect(to, b"blockd-peer/1").await?;
        hear(&mut stream).await
    }
}

/// One message.
pub(crate) async fn hear(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    let hearing = async {
        let length = stream.read_u32().await?;
        let mut body = vec![0; length as usize];
        stream.read_exact(&mut body).await?;
        Ok(String::from_utf8(body).unwrap())
    };
    tokio::time::timeout(PATIENCE, hearing).await.unwrap()
}

/// Says one.
pub(crate) async fn say(stream: &mut TlsStream<TcpStream>, message: &str) {
    stream.write_u32(message.len() as u32).await.unwrap();
    stream.write_all(message.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
}
