//! TLS on the wire: rows L1-L9 by name, each with a client made by hand, and another one that still reads.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fixtures::nbd::certificates::{Authority, Made, Purpose, Wanted};
use fixtures::nbd::client::{
    Client, ClientError, Negotiation, Wire, info_data, option, option_message, reply_type,
};
use fixtures::nbd::codec::{command, request};
use fixtures::nbd::tls::{MemoryClient, client_config, client_of};
use nbd_server::server::ServerConfig;
use nbd_server::tls::{CertificateFiles, SessionError, sealed_bytes_max};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, ClientConfig, ContentType, Error, ProtocolVersion};
use tempfile::TempDir;

use crate::exports::{file, memory, pattern};
use crate::harness::{DISK_BYTES, TestServer, impatient};

/// How a server is called in these certificates.
const NAME: &str = "localhost";

/// A server that insists on TLS over TCP, and who may sign for its clients.
struct Secured {
    authority: Authority,
    client: Made,
    dir: TempDir,
    server: TestServer,
}

impl Secured {
    fn start() -> Self {
        Self::start_with(ServerConfig::default())
    }

    fn start_with(config: ServerConfig) -> Self {
        let authority = Authority::new("ours");
        let dir = tempfile::tempdir().expect("it works");
        authority.write(dir.path()).expect("it works");
        authority.make(&Wanted::server()).write(dir.path(), "server").expect("it works");
        let files = Arc::new(CertificateFiles::open(dir.path()).expect("it works"));
        let config = ServerConfig { security: Some(files), ..config };
        let server = TestServer::start(config, |dir| {
            vec![file(dir, "disk", DISK_BYTES as usize, false), memory("other", 1 << 20)]
        });
        let client = authority.make(&Wanted::client("good"));
        Self { authority, client, dir, server }
    }

    fn clear(&self) -> Negotiation {
        Negotiation::begin(self.server.tcp()).expect("it works")
    }

    fn good(&self) -> Arc<ClientConfig> {
        client_of(&self.authority, &self.client)
    }

    fn secured(&self) -> Negotiation {
        self.clear().start_tls(self.good(), NAME).expect("a good client is let in")
    }

    /// What becomes of a client with that configuration: it may learn of it with its first read only.
    fn outcome(&self, config: Arc<ClientConfig>) -> Result<Client, ClientError> {
        let mut negotiation = self.clear().start_tls(config, NAME)?;
        negotiation.structured()?;
        negotiation.go(b"disk")
    }

    /// Another client reads, over TLS and over the Unix socket.
    #[track_caller]
    fn assert_healthy(&self) {
        let mut client = self.secured().go(b"disk").expect("another client is let in");
        assert!(
            client.read(4096, 4096).expect("it works") == pattern(4096, 4096),
            "another client reads other bytes"
        );
        client.leave().expect("it works");
        self.server.assert_healthy();
    }

    #[track_caller]
    fn assert_closes(&self, wire: &mut Wire) {
        let rest = wire.receive_to_end().expect("the server closes");
        assert!(rest.is_empty(), "the server sent {rest:x?} before it closed");
        self.assert_healthy();
    }

    /// The server says with an alert that it does not let this client in.
    #[track_caller]
    fn assert_alert(&self, config: Arc<ClientConfig>, wanted: &[AlertDescription]) {
        match self.outcome(config) {
            Err(ClientError::Tls(Error::AlertReceived(alert))) if wanted.contains(&alert) => {}
            Err(error) => panic!("{wanted:?} was to come, not {error:?}"),
            Ok(_) => panic!("the client was let in"),
        }
        self.assert_healthy();
    }
}

#[test]
fn l1_nothing_is_answered_in_clear() {
    let secured = Secured::start();
    let mut client = secured.clear();
    for (number, data) in [
        (option::LIST, Vec::new()),
        (option::INFO, info_data(b"disk", &[])),
        (option::GO, info_data(b"disk", &[])),
        (option::GO, info_data(b"missing", &[])),
        (option::STRUCTURED_REPLY, Vec::new()),
        (option::LIST_META_CONTEXT, info_data(b"disk", &[])),
        (option::SET_META_CONTEXT, info_data(b"disk", &[])),
        (77, vec![1; 100]),
    ] {
        let reply = client.ask_one(number, &data).unwrap();
        assert_eq!(reply.kind, reply_type::ERR_TLS_REQD, "option {number}");
    }
    assert_eq!(client.ask_one(option::ABORT, &[]).unwrap().kind, reply_type::ACK);
    secured.assert_closes(client.wire());
    let mut old = secured.clear();
    old.wire().send(&option_message(option::EXPORT_NAME, b"disk")).unwrap();
    secured.assert_closes(old.wire());
}

#[test]
fn l2_what_was_asked_in_clear_is_forgotten() {
    let secured = Secured::start();
    let mut client = secured.clear();
    client.ask_one(option::STRUCTURED_REPLY, &[]).unwrap();
    client.ask_one(option::SET_META_CONTEXT, &info_data(b"disk", &[])).unwrap();
    // Its decoder takes simple replies only.
    let mut client = client.start_tls(secured.good(), NAME).unwrap().go(b"disk").unwrap();
    assert_eq!(client.flags() & 0x80, 0, "DF would need structured replies");
    assert_eq!(client.read(8, 100).unwrap(), pattern(8, 100));
    client.leave().unwrap();
    secured.assert_healthy();
}

#[test]
fn l3_bytes_in_clear_behind_starttls_close() {
    let secured = Secured::start();
    let start = option_message(option::STARTTLS, &[]);
    for behind in [option_message(option::GO, &info_data(b"disk", &[])), vec![0], vec![22, 3, 1, 0, 5]] {
        let mut bad = secured.clear();
        bad.wire().send(&[&start[..], &behind].concat()).unwrap();
        secured.assert_closes(bad.wire());
    }
    // In a segment of their own they are taken for TLS, which they are not.
    let mut bad = secured.clear();
    assert_eq!(bad.ask_one(option::STARTTLS, &[]).unwrap().kind, reply_type::ACK);
    bad.wire().send(&option_message(option::GO, &info_data(b"disk", &[])).repeat(20)).unwrap();
    let answer = bad.wire().receive_to_end().unwrap();
    assert!(answer.len() <= 7 && answer.first().is_none_or(|&kind| kind == 21), "an alert: {answer:x?}");
    secured.assert_healthy();
}

#[test]
fn l4_starttls_with_data_or_twice_is_invalid() {
    let secured = Secured::start();
    let mut client = secured.clear();
    for data in [&[0][..], &[7; 3000]] {
        assert_eq!(client.ask_one(option::STARTTLS, data).unwrap().kind, reply_type::ERR_INVALID);
    }
    let mut client = client.start_tls(secured.good(), NAME).unwrap();
    for data in [&[][..], &[0]] {
        assert_eq!(client.ask_one(option::STARTTLS, data).unwrap().kind, reply_type::ERR_INVALID);
    }
    assert!(client.go(b"disk").unwrap().read(0, 512).is_ok(), "in step");
    secured.assert_healthy();
}

#[test]
fn l5_clients_without_a_good_certificate_get_an_alert() {
    use AlertDescription as A;
    let secured = Secured::start();
    let (ours, theirs) = (&secured.authority, Authority::new("theirs"));
    let client = Wanted::client("bad");
    let made_by = |authority: &Authority, wanted: Wanted| {
        let made = authority.make(&wanted);
        Some((vec![made.certificate.der().clone()], made.key()))
    };
    let no_certificate = [A::CertificateRequired, A::HandshakeFailure];
    let unknown = [A::UnknownCA, A::DecryptError, A::BadCertificate];
    for version in [&TLS13, &TLS12] {
        let config = |shows| client_config(ours, shows, Some(version));
        secured.assert_alert(config(None), &no_certificate);
        let ended = Wanted { days: (-3, -1), ..client.clone() };
        secured.assert_alert(config(made_by(ours, ended)), &[A::CertificateExpired]);
        let to_come = Wanted { days: (1, 3), ..client.clone() };
        secured.assert_alert(config(made_by(ours, to_come)), &[A::BadCertificate, A::CertificateExpired]);
        secured.assert_alert(config(made_by(&theirs, client.clone())), &unknown);
        // Of the same name as ours, but another key.
        secured.assert_alert(config(made_by(&Authority::new("ours"), client.clone())), &unknown);
        let server = Wanted { purpose: Purpose::Server, ..client.clone() };
        secured.assert_alert(config(made_by(ours, server)), &[A::UnsupportedCertificate, A::BadCertificate]);
        let (mut chain, key) = made_by(&theirs, client.clone()).unwrap();
        let long = Wanted { ballast: 16 << 10, ..client.clone() };
        chain.push(theirs.make(&long).certificate.der().clone());
        secured.assert_alert(config(Some((chain, key))), &unknown);
    }
}

#[test]
fn l5_revoked_clients_get_an_alert() {
    let secured = Secured::start();
    let revoked = secured.authority.make(&Wanted::client("revoked"));
    let config = client_of(&secured.authority, &revoked);
    assert!(secured.outcome(Arc::clone(&config)).is_ok());
    secured.authority.revoke(secured.dir.path(), &[&revoked]).unwrap();
    secured.assert_alert(config, &[AlertDescription::CertificateRevoked]);
}

#[test]
fn l7_old_versions_and_early_data_are_refused() {
    let secured = Secured::start();
    // A ClientHello of TLS 1.1, with ciphers of those days (RC4, 3DES, none): made by hand, for no library here would.
    for version in [[3, 0], [3, 1], [3, 2]] {
        let mut old = secured.clear();
        assert_eq!(old.ask_one(option::STARTTLS, &[]).unwrap().kind, reply_type::ACK);
        let mut hello = vec![version[0], version[1]];
        hello.extend([7; 32]);
        hello.push(0);
        hello.extend([0, 6, 0, 5, 0, 10, 0, 1]);
        hello.extend([1, 0]);
        let mut message = vec![1, 0, 0, u8::try_from(hello.len()).unwrap()];
        message.extend(hello);
        let mut record = vec![22, version[0], version[1], 0, u8::try_from(message.len()).unwrap()];
        record.extend(message);
        old.wire().send(&record).unwrap();
        let answer = old.wire().receive_to_end().unwrap();
        assert!(answer.len() == 7 && answer[0] == 21 && answer[5] == 2, "a fatal alert: {answer:x?}");
        secured.assert_healthy();
    }
    for (version, spoken) in [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)] {
        let shows = Some((vec![secured.client.certificate.der().clone()], secured.client.key()));
        let mut config = client_config(&secured.authority, shows, Some(version));
        Arc::make_mut(&mut config).enable_early_data = true;
        let mut client = secured.clear().start_tls(Arc::clone(&config), NAME).unwrap();
        let tls = &client.wire().tls().unwrap().conn;
        assert_eq!(tls.protocol_version(), Some(spoken));
        assert!(!tls.is_early_data_accepted());
        assert_eq!(tls.tls13_tickets_received(), 0, "nothing to resume with");
        assert!(client.go(b"disk").unwrap().read(0, 512).is_ok());
    }
    secured.assert_healthy();
}

/// A port for one client that does not know how NBD begins TLS: behind it, it has begun.
fn after_starttls(mut clear: Negotiation) -> String {
    assert_eq!(clear.ask_one(option::STARTTLS, &[]).expect("it works").kind, reply_type::ACK);
    let listener = TcpListener::bind("127.0.0.1:0").expect("it works");
    let address = listener.local_addr().expect("it works").to_string();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("it works");
        let (mut back, mut client_back) =
            (clear.wire().try_clone().expect("it works"), client.try_clone().expect("it works"));
        std::thread::spawn(move || {
            let mut room = [0; 4096];
            while let Ok(bytes @ 1..) = back.receive_some(&mut room) {
                if client_back.write_all(&room[..bytes]).is_err() {
                    break;
                }
            }
            client_back.shutdown(Shutdown::Both)
        });
        let mut room = [0; 4096];
        while let Ok(bytes @ 1..) = client.read(&mut room) {
            if clear.wire().send(&room[..bytes]).is_err() {
                break;
            }
        }
    });
    address
}

/// In TLS 1.2 a client may ask for another handshake; there is none.
#[test]
fn l7_renegotiation_is_refused() {
    let Some(openssl) = fixtures::process::find_program("openssl") else {
        panic!("openssl is not installed: run `cargo xtask setup --for test`");
    };
    let secured = Secured::start();
    secured.client.write(secured.dir.path(), "client").unwrap();
    let path = |name: &str| secured.dir.path().join(name);
    let mut s_client = std::process::Command::new(openssl);
    s_client.args(["s_client", "-tls1_2", "-connect", &after_starttls(secured.clear())]);
    s_client.arg("-cert").arg(path("client-cert.pem")).arg("-key").arg(path("client-key.pem"));
    s_client.arg("-CAfile").arg(path("ca-cert.pem"));
    s_client.stdin(std::process::Stdio::piped());
    s_client.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = s_client.spawn().unwrap();
    // A line that is only "R" asks for it.
    child.stdin.as_mut().unwrap().write_all(b"R\n").unwrap();
    let said = child.wait_with_output().unwrap();
    let said = [said.stdout, said.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    secured.assert_healthy();
}

#[test]
fn l8_new_certificates_for_new_clients_old_ones_go_on() {
    let secured = Secured::start();
    let mut old = secured.secured().go(b"disk").unwrap();
    let other = Authority::new("other");
    let dir = secured.dir.path();
    // Half of a new set: it fits nothing.
    fs::write(dir.join("server-cert.pem"), "no certificate").unwrap();
    secured.assert_healthy();
    let next = other.make(&Wanted::server());
    next.write(dir, "server").unwrap();
    other.write(dir).unwrap();
    let made = other.make(&Wanted::client("new"));
    let mut new = secured.outcome(client_of(&other, &made)).unwrap();
    assert!(
        matches!(secured.outcome(secured.good()), Err(ClientError::Tls(_))),
        "that was the old authority"
    );
    for client in [&mut old, &mut new] {
        assert_eq!(client.read(8, 100).unwrap(), pattern(8, 100));
    }
    // The key of another certificate.
    fs::copy(dir.join("server-key.pem"), dir.join("kept")).unwrap();
    other.make(&Wanted::server()).write(dir, "unused").unwrap();
    fs::rename(dir.join("unused-key.pem"), dir.join("server-key.pem")).unwrap();
    assert!(secured.outcome(client_of(&other, &made)).is_ok(), "the last good set stays");
    fs::rename(dir.join("kept"), dir.join("server-key.pem")).unwrap();
    assert!(secured.outcome(client_of(&other, &made)).is_ok());
    old.leave().unwrap();
}

#[test]
fn l8_what_is_wrong_with_files_is_told_and_kept() {
    let secured = Secured::start();
    let dir = secured.dir.path();
    let files = CertificateFiles::open(dir).unwrap();
    assert_eq!(files.refresh(), None);
    fs::write(dir.join("ca-cert.pem"), "").unwrap();
    assert!(files.refresh().unwrap().contains("ca-cert.pem: there is no certificate in it"));
    assert!(files.refresh().is_some(), "until it is put right");
    secured.authority.write(dir).unwrap();
    assert_eq!(files.refresh(), None);
    fs::remove_file(dir.join("server-key.pem")).unwrap();
    assert!(files.refresh().unwrap().contains("server-key.pem"));
    let own = secured.authority.make(&Wanted::server());
    own.write(dir, "server").unwrap();
    assert_eq!(files.refresh(), None);
    let rights = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(dir.join("server-key.pem"), rights).unwrap();
    assert!(files.refresh().unwrap().contains("everybody may use this private key"));
    assert!(CertificateFiles::open(Path::new("/nowhere")).is_err());
}

/// What a client needs to refuse us: no TLS where none is, no other name than asked for.
#[test]
fn l9_clients_can_insist() {
    let secured = Secured::start();
    let plain = TestServer::disk(ServerConfig::default());
    for wire in [plain.wire(), plain.tcp(), secured.server.wire()] {
        let mut client = Negotiation::begin(wire).unwrap();
        assert_eq!(client.ask_one(option::STARTTLS, &[]).unwrap().kind, reply_type::ERR_UNSUP);
        assert!(client.go(b"").unwrap().read(0, 512).is_ok(), "in step");
    }
    let wrong = secured.clear().start_tls(secured.good(), "elsewhere.example").map(drop);
    assert!(matches!(wrong, Err(ClientError::Tls(Error::InvalidCertificate(_)))), "{wrong:?}");
    let other = Authority::new("other");
    let wrong = secured.clear().start_tls(client_of(&other, &secured.client), NAME).map(drop);
    assert!(matches!(wrong, Err(ClientError::Tls(Error::InvalidCertificate(_)))), "{wrong:?}");
    for name in ["127.0.0.1", "::1"] {
        assert!(secured.clear().start_tls(secured.good(), name).is_ok(), "{name}");
    }
    secured.assert_healthy();
}

#[test]
fn large_and_small_requests_travel_whole() {
    let secured = Secured::start();
    for version in [&TLS13, &TLS12] {
        let shows = Some((vec![secured.client.certificate.der().clone()], secured.client.key()));
        let config = client_config(&secured.authority, shows, Some(version));
        let mut negotiation = secured.clear().start_tls(config, NAME).unwrap();
        negotiation.structured().unwrap();
        let mut client = negotiation.go(b"disk").unwrap();
        for (offset, length) in
            [(0_u64, 1_usize), (1, 511), (4096, 4096), (5, 16_384), (9, 300_001), (1 << 20, 5 << 20)]
        {
            let data: Vec<u8> = (0..length).map(|at| (at * 7 + length) as u8).collect();
            client.write(offset, &data).unwrap();
            assert!(client.read(offset, u32::try_from(length).unwrap()).unwrap() == data, "{length} bytes");
        }
        client.flush().unwrap();
        client.leave().unwrap();
    }
}

#[test]
fn many_requests_at_once() {
    let secured = Secured::start();
    let mut client = secured.secured().go(b"disk").unwrap();
    let mut bytes = Vec::new();
    for number in 0..200_u64 {
        let (_, request) = client.prepare(0, command::READ, number * 4096, 4096);
        bytes.extend(request);
    }
    client.wire().send(&bytes).unwrap();
    for _ in 0..200 {
        let reply = client.reply().unwrap();
        let data = reply.result.unwrap();
        assert!(data == pattern((reply.cookie - 1) * 4096, 4096));
    }
    client.leave().unwrap();
}

/// `leave` sees to it that nothing comes behind the goodbye; that it comes is seen here.
#[test]
fn the_server_says_goodbye() {
    let secured = Secured::start();
    let mut client = secured.secured().go(b"disk").unwrap();
    client.wire().send(&request(0, command::DISC, 0, 0, 0)).unwrap();
    assert_eq!(client.wire().receive_some(&mut [0; 100]).unwrap(), 0, "an end, not a connection cut off");
}

#[test]
fn the_server_says_goodbye_when_it_stops() {
    let mut secured = Secured::start();
    let mut client = secured.secured().go(b"disk").unwrap();
    assert!(client.read(0, 512).is_ok());
    secured.server.begin_stop();
    assert_eq!(client.wire().receive_some(&mut [0; 100]).unwrap(), 0, "an end, not a connection cut off");
    let stopped = secured.server.wait_stopped();
    assert!(stopped.took < Duration::from_secs(5));
}

#[test]
fn n1_the_deadline_covers_tls() {
    let secured = Secured::start_with(impatient());
    for sent in [0, 1, 100] {
        let mut slow = secured.clear();
        assert_eq!(slow.ask_one(option::STARTTLS, &[]).unwrap().kind, reply_type::ACK);
        // The beginning of a record that never ends.
        slow.wire().send(&[&[22, 3, 1, 2, 0][..], &[1; 200]].concat()[..sent]).unwrap();
        assert!(slow.wire().receive_to_end().unwrap().is_empty());
    }
    let mut idle = secured.secured();
    idle.wire().send(&option_message(option::GO, b"x")[..10]).unwrap();
    assert!(idle.wire().receive_to_end().unwrap().is_empty());
}

#[test]
fn half_a_record_is_given_up() {
    let secured = Secured::start_with(impatient());
    let mut client = secured.secured().go(b"disk").unwrap();
    assert!(client.read(0, 512).is_ok());
    let stream = client.wire().tls().unwrap();
    stream.sock.write_all(&[23, 3, 3, 1, 0, 7, 7]).unwrap();
    assert!(client.wire().receive_to_end().unwrap().is_empty());
    secured.assert_healthy();
}

#[test]
fn garbage_in_transmission_closes() {
    let secured = Secured::start();
    for garbage in [vec![23, 3, 3, 0, 40], vec![0; 100], vec![23, 3, 3, 0xff, 0xff], vec![22, 3, 3, 0, 1, 9]]
    {
        let mut client = secured.secured().go(b"disk").unwrap();
        let stream = client.wire().tls().unwrap();
        stream.sock.write_all(&garbage).unwrap();
        stream.sock.write_all(&[9; 1000]).unwrap();
        assert!(client.wire().receive_to_end().is_ok(), "{garbage:x?}");
        secured.assert_healthy();
    }
}

/// A client may stop at every byte of its TLS handshake: descriptors and permits come back.
#[test]
fn n3_ends_at_every_byte_of_tls() {
    let config = ServerConfig { connections_max: 4, ..ServerConfig::default() };
    let secured = Secured::start_with(config);
    for end in (0..400).step_by(7) {
        let mut client = secured.clear();
        assert_eq!(client.ask_one(option::STARTTLS, &[]).unwrap().kind, reply_type::ACK);
        let name = rustls::pki_types::ServerName::try_from(NAME).unwrap();
        let mut tls = rustls::ClientConnection::new(secured.good(), name).unwrap();
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).unwrap();
        client.wire().send(&hello[..end.min(hello.len())]).unwrap();
        if end % 2 == 0 {
            client.into_wire().reset().unwrap();
        }
    }
    crate::harness::eventually("room for another client", || {
        Negotiation::begin(secured.server.tcp())
            .and_then(|clear| clear.start_tls(secured.good(), NAME))
            .is_ok()
    });
    secured.assert_healthy();
}

/// The library keeps positions in memory that is gone by then: it must not be asked to go on.
#[test]
fn a_handshake_message_in_pieces_ends_the_connection() {
    const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
    let mut room = [0; 100];
    let mut out = vec![0; 64 << 10];
    let (client, mut server) = MemoryClient::pair(false);
    let mut whole = client.into_forger().record(ContentType::Handshake, &KEY_UPDATE);
    let (filled, opened) = server.open(&mut whole, (&mut [], &mut room)).unwrap();
    assert_eq!((filled, opened.used), (0, whole.len()), "a whole one is fine");
    assert!(server.seal(std::iter::once(&[1; 100][..]), &mut out).is_ok());
    for cut in 1..KEY_UPDATE.len() {
        let (client, mut server) = MemoryClient::pair(false);
        let mut piece = client.into_forger().record(ContentType::Handshake, &KEY_UPDATE[..cut]);
        let ended = server.open(&mut piece, (&mut [], &mut room));
        assert!(matches!(ended, Err(SessionError::Pieces)), "{ended:?}");
        assert!(server.seal(std::iter::once(&[1; 100][..]), &mut out).is_err());
        assert_eq!(server.say_goodbye(&mut out), 0);
    }
}

/// Plaintext in pieces of any size comes out whole, whatever room there is on the way.
#[test]
fn a_session_is_a_pipe() {
    for older in [false, true] {
        let (mut client, mut server) = MemoryClient::pair(older);
        let data: Vec<u8> = (0..200_000_u32).map(|at| ((at * 31) >> 3) as u8).collect();
        let cuts = [1, 20, 16_383, 16_384, 16_385, 40_000, 7];
        let (mut at, mut sent) = (0, Vec::new());
        for cut in cuts.iter().cycle() {
            let end = (at + cut).min(data.len());
            let mut out = vec![0; sealed_bytes_max(end - at)];
            let pieces = [&data[at..at + (end - at) / 3], &data[at + (end - at) / 3..end]];
            let sealed = server.seal(pieces.into_iter(), &mut out).unwrap();
            assert_eq!(sealed.plain, end - at, "all of it fits");
            sent.extend(client.receive(&out[..sealed.cipher]).unwrap());
            at = end;
            if at == data.len() {
                break;
            }
        }
        assert!(sent == data);
        let mut cipher = client.seal(&data);
        let (mut used, mut got) = (0, Vec::new());
        for room in cuts.iter().cycle() {
            let (mut first, mut second) = (vec![0; room / 2], vec![0; room - room / 2]);
            let (filled, opened) = server.open(&mut cipher[used..], (&mut first, &mut second)).unwrap();
            first.append(&mut second);
            got.extend_from_slice(&first[..filled]);
            used += opened.used;
            if got.len() == data.len() {
                break;
            }
            assert!(filled > 0, "it goes on");
        }
        assert!(got == data);
    }
}
