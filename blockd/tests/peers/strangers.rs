//! Who is not let in: wrong certificates, old protocols, silence, and too many at once.

use std::time::Duration;

use blockd::peer::{PeerErrorKind, PeerLimits};
use rustls::pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::forge::{self, Ca};
use crate::host::{Host, PATIENCE, echo, pair};

#[tokio::test]
async fn only_a_paired_hosts_own_certificate_opens_a_link() {
    let (a, b) = pair().await;
    let (id, own) = (a.peers.host_id().to_string(), Ca::of(a.dir.path()));
    let other = "22".repeat(16);
    let foreign = Ca::new(&other);
    let b_id = b.peers.host_id().to_string();
    let same_subject = Ca::new(&id);
    let cases = [
        ("the right one", own.client(&[&id], (-1, 1)), ""),
        ("not paired", foreign.client(&[&other], (-1, 1)), "UnknownCA"),
        ("another CA", foreign.client(&[&id], (-1, 1)), "UnknownCA"),
        (
            "another CA of the same name",
            same_subject.client(&[&id], (-1, 1)),
            "BadSignature|DecryptError|UnknownCA",
        ),
        ("another host's identity", own.client(&[&b_id], (-1, 1)), "UnknownCA"),
        ("no identity", own.client(&[], (-1, 1)), "AccessDenied"),
        ("two identities", own.client(&[&id, &other], (-1, 1)), "AccessDenied"),
        ("a bad identity", own.client(&["x"], (-1, 1)), "AccessDenied"),
        ("ended", own.client(&[&id], (-9, -1)), "CertificateExpired"),
        ("not valid yet", own.client(&[&id], (1, 9)), "CertificateExpired"),
        ("for servers only", own.server_only(), "UnsupportedCertificate|AccessDenied|BadCertificate"),
        ("no certificate", forge::nobody(), "CertificateRequired"),
    ];
    for (case, client, alert) in cases {
        match client.greeting(b.address).await {
            Ok(greeting) => assert!(alert.is_empty() && greeting.contains("welcome"), "{case}: {greeting}"),
            Err(error) => {
                let text = error.to_string();
                assert!(
                    !alert.is_empty() && alert.split('|').any(|alert| text.contains(alert)),
                    "{case}: {text}"
                );
            }
        }
    }
    assert!(b.event("peer_refused").await.starts_with("127.0.0.1: the handshake failed"));
}

/// A paired host's CA speaks for that host alone.
#[tokio::test]
async fn a_paired_host_cannot_be_another_one() {
    let (a, b) = pair().await;
    let c = Host::new("C").await;
    c.pair_with(&b).await;
    let pretender = Ca::of(c.dir.path()).client(&[&a.peers.host_id().to_string()], (-1, 1));
    let error = pretender.greeting(b.address).await.unwrap_err();
    assert!(error.to_string().contains("UnknownCA") || error.to_string().contains("Decrypt"), "{error}");
}

/// The client's side: somebody else answers at a paired host's address.
#[tokio::test]
async fn a_client_believes_only_the_host_that_it_looks_for() {
    let (a, b) = pair().await;
    let c = Host::new("C").await;
    a.pair_with(&c).await;
    a.peers.trust("B", true, Some(vec![c.address.to_string()])).await.unwrap();
    let error = a.peers.connect("B").await.unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("not the host that we expect"), "{error}");
    // One wrong address does not matter where another one is right.
    a.peers.trust("B", true, Some(vec![c.address.to_string(), b.address.to_string()])).await.unwrap();
    echo(&mut a.peers.connect("B").await.unwrap()).await.unwrap();
}

/// Same CA, another identity: a host that was cloned with its keys, say.
#[tokio::test]
async fn a_server_with_another_identity_is_refused() {
    let (a, b) = pair().await;
    let dir = b.stop();
    let ca = Ca::of(dir.path());
    let key = std::fs::read_to_string(dir.path().join("peer/host.key")).unwrap();
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    let impostor = ca.sign(&[&"22".repeat(16)], &key, (-1, 300), forge::Purposes::both());
    let chain = vec![impostor.der().clone(), ca.certificate.clone()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(std::sync::Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(chain, key)
    .unwrap();
    config.alpn_protocols = vec![b"blockd-peer/1".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.peers.trust("B", true, Some(vec![listener.local_addr().unwrap().to_string()])).await.unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let serving = async {
        let (tcp, _) = listener.accept().await.unwrap();
        assert!(acceptor.accept(tcp).await.is_err());
    };
    let (connected, ()) = tokio::join!(a.peers.connect("B"), serving);
    assert_eq!(connected.unwrap_err().kind, PeerErrorKind::Refused);
}

/// Pairing is all that the pairing protocol gives.
#[tokio::test]
async fn protocols_do_not_mix() {
    let (a, b) = pair().await;
    let id = a.peers.host_id().to_string();
    let client = Ca::of(a.dir.path()).client(&[&id], (-1, 1));
    let mut stream = client.connect(b.address, b"blockd-pair/1").await.unwrap();
    forge::say(&mut stream, "hello").await;
    assert!(forge::hear(&mut stream).await.unwrap().contains("refused"));
    let error = client.connect(b.address, b"http/1.1").await.unwrap_err();
    assert!(error.to_string().contains("NoApplicationProtocol"), "{error}");
    // Somebody who brings a CA that has not signed.
    let mut mixed = Ca::new(&id);
    mixed.certificate = Ca::new(&id).certificate;
    let mixed = mixed.client(&[&id], (-1, 1));
    let opened = mixed.connect(b.address, b"blockd-pair/1").await;
    let error = match opened {
        Ok(mut stream) => forge::hear(&mut stream).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.to_string().contains("alert"), "{error}");
}

/// A ClientHello of TLS 1.2, by hand: it names no later version.
#[tokio::test]
async fn tls_1_2_is_refused() {
    let b = Host::new("B").await;
    let alpn = b"\x00\x10\x00\x10\x00\x0e\x0dblockd-peer/1";
    let groups = b"\x00\x0a\x00\x04\x00\x02\x00\x17";
    let signatures = b"\x00\x0d\x00\x04\x00\x02\x04\x03";
    let extensions = [alpn.as_slice(), groups, signatures].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    // No session; ECDHE-ECDSA-AES128-GCM-SHA256; no compression.
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut hello = vec![1, 0];
    hello.extend((body.len() as u16).to_be_bytes());
    hello.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((hello.len() as u16).to_be_bytes());
    record.extend(hello);
    let mut tcp = TcpStream::connect(b.address).await.unwrap();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.unwrap().unwrap();
    // An alert, fatal, protocol_version.
    assert_eq!((answer[0], &answer[5..]), (21, [2, 70].as_slice()), "{answer:?}");
    assert!(b.event("peer_refused").await.contains("handshake failed"));
}

#[tokio::test]
async fn who_says_nothing_is_cut_off() {
    let limits = PeerLimits { prove_time_max: Duration::from_millis(50), ..PeerLimits::default() };
    let b = Host::with_limits("B", limits).await;
    let forger = Ca::new(&"11".repeat(16));
    let client = forger.client(&[&forger.id], (-1, 1));
    let mut silent = TcpStream::connect(b.address).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, silent.read(&mut [0; 16])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    // Or after the handshake.
    if let Ok(mut stream) = client.connect(b.address, b"blockd-pair/1").await {
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 16])).await.unwrap();
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    assert!(b.event("peer_refused").await.contains("did not say in time who it is"));
}

/// Nor is a client held up by a server that says nothing.
#[tokio::test]
async fn a_silent_server_is_left() {
    let limits = PeerLimits { prove_time_max: Duration::from_millis(100), ..PeerLimits::default() };
    let (a, b) = (Host::with_limits("A", PeerLimits::default()).await, Host::new("B").await);
    a.pair_with(&b).await;
    let dir = a.stop();
    let a = Host::at(dir, "A", limits).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    a.peers.trust("B", true, Some(vec![listener.local_addr().unwrap().to_string()])).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, a.peers.connect("B")).await.unwrap().unwrap_err();
    assert_eq!(error.kind, PeerErrorKind::Unreachable);
    assert!(error.to_string().contains("no answer in time"), "{error}");
}

#[tokio::test]
async fn silent_strangers_do_not_keep_others_out() {
    let limits = PeerLimits { unproven_max: 4, unproven_per_address_max: 2, ..PeerLimits::default() };
    let b = Host::with_limits("B", limits).await;
    let a = Host::new("A").await;
    a.pair_with(&b).await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        silent.push(socket.connect(b.address).await.unwrap());
    }
    // The third is turned away at once, the first two are still waited for.
    let ended = tokio::time::timeout(PATIENCE, silent[2].read(&mut [0; 16])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)));
    assert!(b.event("peer_refused").await.contains("127.0.0.2: too many connections from this address"));
    echo(&mut a.peers.connect("B").await.unwrap()).await.unwrap();
    drop(silent);
}
