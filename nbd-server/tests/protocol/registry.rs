//! The book of connections, as a server keeps it: who is there, what each has done, and how many one client may have.

use std::collections::BTreeMap;
use std::sync::Arc;

use fixtures::nbd::certificates::{Authority, Wanted};
use fixtures::nbd::client::{Client, Negotiation, option, reply_type};
use fixtures::nbd::codec::{command, errno};
use fixtures::nbd::tls::client_of;
use nbd_server::connection::Limits;
use nbd_server::handshake::HandshakeLimits;
use nbd_server::registry::{Class, Registry};
use nbd_server::server::ServerConfig;
use nbd_server::tls::{CertificateFiles, Security};
use rustls::pki_types::CertificateDer;

use crate::harness::{DISK_BYTES, TestServer, eventually};

fn counting() -> (Registry, TestServer) {
    let registry = Registry::default();
    let config = ServerConfig { registry: registry.clone(), ..ServerConfig::default() };
    (registry, TestServer::disk(config))
}

#[test]
fn connections_are_listed_with_what_they_have_done() {
    let (registry, server) = counting();
    let mut first = server.client();
    let mut second = Negotiation::begin(server.tcp()).unwrap().go(b"disk").unwrap();
    first.write(0, &[1; 4096]).unwrap();
    first.read(512, 1024).unwrap();
    first.flush().unwrap();
    second.read(0, 512).unwrap();
    assert!(matches!(second.call(0, command::READ, DISK_BYTES, 512), Ok(Err(errno::EINVAL))));
    let listed = registry.connected();
    assert_eq!(listed.iter().map(|one| one.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(listed[0].client.place(), "unix");
    assert!(listed[1].client.place().starts_with("127.0.0.1:"), "{listed:?}");
    let counts = &listed[0].counts;
    let counted = |class: Class| counts.latencies[class as usize].count();
    assert_eq!((counted(Class::Read), counted(Class::Write), counted(Class::Flush)), (1, 1, 1));
    assert_eq!((counts.read_bytes, counts.written_bytes, counts.errors), (1024, 4096, 0));
    assert_eq!((listed[1].counts.read_bytes, listed[1].counts.errors), (512, 1));
    first.leave().unwrap();
    eventually("only the second is there", || registry.connected().len() == 1);
    let exports = registry.exports();
    let (counts, connected) = &exports["disk"];
    assert_eq!((counts.read_bytes, counts.requests(), *connected), (1536, 5, 1), "{exports:?}");
}

/// What was held back by the limits has waited here, and that is told.
#[test]
fn every_request_is_counted_once_however_many_wait() {
    let registry = Registry::default();
    let limits = Limits { requests_max: 2, ..Limits::default() };
    let config = ServerConfig { registry: registry.clone(), limits, ..ServerConfig::default() };
    let server = TestServer::disk(config);
    let mut client = server.client();
    for _ in 0..100 {
        client.submit(0, command::READ, 0, 4096).unwrap();
    }
    for _ in 0..100 {
        assert!(client.reply().unwrap().result.is_ok());
    }
    let counts = registry.connected().remove(0).counts;
    let reads = &counts.latencies[Class::Read as usize];
    assert_eq!((reads.count(), counts.requests(), counts.read_bytes), (100, 100, 100 * 4096));
    assert!(
        reads.sum_us < 60_000_000,
        "a time is since the request came, not since the clock began: {reads:?}"
    );
}

#[test]
fn n2_one_address_cannot_take_all_places() {
    let config =
        ServerConfig { connections_max: 4, connections_per_client_max: 2, ..ServerConfig::default() };
    let server = TestServer::disk(config);
    let haggling = Negotiation::begin(server.tcp()).unwrap();
    let served = Negotiation::begin(server.tcp()).unwrap().go(b"disk").unwrap();
    for _ in 0..20 {
        assert!(Negotiation::begin(server.tcp()).is_err(), "a third one of this address");
        server.assert_healthy();
    }
    drop(haggling);
    eventually("its place is free", || Negotiation::begin(server.tcp()).is_ok());
    drop(served);
    let two = || {
        let first = Negotiation::begin(server.tcp());
        first.is_ok() && Negotiation::begin(server.tcp()).is_ok()
    };
    eventually("both places are free", two);
}

/// Names clients by their certificates: good enough for a test, which has made them itself.
#[derive(Debug)]
struct ByCertificate {
    files: CertificateFiles,
    names: BTreeMap<Vec<u8>, &'static str>,
}

impl Security for ByCertificate {
    fn config(&self) -> Result<Arc<rustls::ServerConfig>, String> {
        self.files.config()
    }

    fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Option<String>, String> {
        Ok(self.names.get(chain[0].as_ref()).map(|&name| name.to_owned()))
    }
}

#[test]
fn n2_one_identity_cannot_take_all_places() {
    let (authority, dir) = (Authority::new("ours"), tempfile::tempdir().unwrap());
    authority.write(dir.path()).unwrap();
    authority.make(&Wanted::server()).write(dir.path(), "server").unwrap();
    let (greedy, other) =
        (authority.make(&Wanted::client("greedy")), authority.make(&Wanted::client("other")));
    let name_of = |made: &fixtures::nbd::certificates::Made| made.certificate.der().to_vec();
    let names = BTreeMap::from([(name_of(&greedy), "greedy"), (name_of(&other), "other")]);
    let files = CertificateFiles::open(dir.path()).unwrap();
    let registry = Registry::default();
    let config = ServerConfig {
        connections_per_client_max: 3,
        security: Some(Arc::new(ByCertificate { files, names })),
        registry: registry.clone(),
        ..ServerConfig::default()
    };
    let server = TestServer::disk(config);
    let enter = |made| {
        let clear = Negotiation::begin(server.tcp())?;
        clear.start_tls(client_of(&authority, made), "localhost")?.go(b"disk")
    };
    let held: Vec<Client> = (0..3).map(|_| enter(&greedy).unwrap()).collect();
    for _ in 0..5 {
        assert!(enter(&greedy).is_err(), "a fourth one");
        enter(&other).expect("another identity has places of its own").leave().unwrap();
    }
    let identities: Vec<_> = registry.connected().into_iter().filter_map(|one| one.client.identity).collect();
    assert_eq!(identities.iter().filter(|name| *name == "greedy").count(), 3);
    drop(held);
    eventually("its places are free", || enter(&greedy).is_ok());
}

#[test]
fn bounds_of_the_option_phase_can_be_chosen() {
    let handshake_limits = HandshakeLimits { option_bytes_max: 100, options_max: 3 };
    let server = TestServer::disk(ServerConfig { handshake_limits, ..ServerConfig::default() });
    let mut large = server.negotiation();
    assert_eq!(large.ask_one(77, &[0; 100]).unwrap().kind, reply_type::ERR_UNSUP);
    assert_eq!(large.ask_one(77, &[0; 101]).unwrap().kind, reply_type::ERR_TOO_BIG);
    let mut many = server.negotiation();
    // Three, and four for the one export.
    for number in 0..7 {
        assert!(many.ask(option::LIST, &[]).is_ok(), "{number}");
    }
    assert!(many.ask(option::LIST, &[]).is_err());
    server.assert_healthy();
}
