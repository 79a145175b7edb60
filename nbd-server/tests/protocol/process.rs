//! Facts of a process: descriptors and memory of the binary, and what it logs. Rows N3, N7-N8 and X5-X6
//! (nothing large is allocated), X12.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fixtures::nbd::client::{
    Client, Negotiation, USUAL_FLAGS, Wire, info_data, option, option_header, option_message,
};
use fixtures::nbd::codec::{command, errno, request};
use fixtures::process::{ChildGuard, wait_for_socket};
use tempfile::TempDir;

use crate::harness::{PATIENCE, eventually};

/// What the server may use at rest, with room for the machine's ways: it uses some 6 MiB.
const RSS_IDLE_MAX_KIB: u64 = 24 << 10;
/// What one connection may hold: 40 MiB of payload, in blocks that are powers of two.
const RSS_ONE_CLIENT_MAX_KIB: u64 = 96 << 10;

struct ServerProcess {
    // Declared before the directory, so that it ends before its files go.
    child: ChildGuard,
    dir: TempDir,
    socket: PathBuf,
}

impl ServerProcess {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = dir.path().join("socket");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let mut server = Command::new(env!("CARGO_BIN_EXE_nbd-server"));
        server.args(arguments).arg("--unix").arg(&socket).args(["--listen", "127.0.0.1:0", "--log", "debug"]);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut child = ChildGuard::spawn(&mut server).expect("the server starts");
        drop(wait_for_socket(&socket, &mut child, PATIENCE).expect("the server listens"));
        Self { child, dir, socket }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("the log")
    }

    /// The port is in the log.
    fn tcp_address(&self) -> SocketAddr {
        let mut address = None;
        eventually("the address in the log", || {
            address = self
                .log()
                .split_once("nbd://")
                .and_then(|(_, rest)| rest.lines().next()?.trim().parse().ok());
            address.is_some()
        });
        address.expect("found")
    }

    fn proc(&self) -> PathBuf {
        Path::new("/proc").join(self.child.pid().to_string())
    }

    fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc().join("fd")).expect("our own child").count()
    }

    /// `VmRSS` or `VmHWM` (the highest it ever was), KiB.
    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(self.proc().join("status")).expect("our own child");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a line of status");
        line.trim_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number")
    }

    fn client(&self) -> Client {
        Client::connect(&self.socket, b"").expect("a client is let in")
    }

    #[track_caller]
    fn assert_healthy(&self) {
        let mut client = self.client();
        assert!(client.read(0, 4096).is_ok(), "another client is served");
        client.leave().expect("another client leaves");
    }

    #[track_caller]
    fn assert_descriptors_return_to(&self, before: usize) {
        eventually("the descriptors that were there before", || self.descriptors() <= before);
    }
}

/// A whole handshake and the first bytes of transmission.
fn script() -> Vec<u8> {
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    bytes.extend(option_message(option::STRUCTURED_REPLY, &[]));
    bytes.extend(option_message(77, b"unknown"));
    bytes.extend(option_message(option::INFO, &info_data(b"memory", &[1, 3])));
    bytes.extend(option_message(option::GO, &info_data(b"", &[])));
    bytes.extend(request(0, command::WRITE, 1, 0, 16));
    bytes.extend([1; 16]);
    bytes
}

/// How a client goes away.
#[derive(Clone, Copy, Debug)]
enum Exit {
    Close,
    Reset,
    /// Reads the greeting first, so that nothing unread turns the close into a reset.
    ReadThenClose,
}

fn vanish(mut wire: Wire, bytes: &[u8], exit: Exit) {
    if matches!(exit, Exit::ReadThenClose) {
        wire.receive(18).expect("a greeting");
    }
    wire.send(bytes).expect("the server reads");
    if matches!(exit, Exit::Reset) {
        wire.reset().expect("a socket option");
    }
}

#[test]
fn n3_clients_that_vanish_at_every_byte() {
    // More than vanish at once: being turned away is row N2.
    let server = ServerProcess::start(&["--memory", "16M", "--max-connections", "2000"]);
    server.assert_healthy();
    let address = server.tcp_address();
    server.assert_healthy();
    let idle = server.client();
    let before = server.descriptors();
    let script = script();
    for exit in [Exit::Close, Exit::Reset, Exit::ReadThenClose] {
        for end in 0..=script.len() {
            vanish(Wire::tcp(address).expect("a connection"), &script[..end], exit);
            if end % 5 == 0 {
                vanish(Wire::unix(&server.socket).expect("a connection"), &script[..end], exit);
            }
        }
        server.assert_healthy();
    }
    server.assert_descriptors_return_to(before);
    drop(idle);
    server.assert_descriptors_return_to(before - 1);
}

#[test]
fn n7_n8_lies_about_lengths_cost_no_memory() {
    let server = ServerProcess::start(&["--memory", "16M"]);
    let mut held = Vec::new();
    for number in [option::EXPORT_NAME, option::LIST, option::GO, 77] {
        for length in [u32::MAX, 1 << 31, (64 << 10) + 1] {
            let mut bad = Negotiation::begin(Wire::unix(&server.socket).unwrap()).unwrap();
            bad.wire().send(&option_header(number, length)).unwrap();
            bad.wire().receive_to_end().unwrap();
        }
        // This one is allowed to announce what it does, and is waited for.
        let mut slow = Negotiation::begin(Wire::unix(&server.socket).unwrap()).unwrap();
        slow.wire().send(&[&option_header(number, 64 << 10)[..], &u32::MAX.to_be_bytes()].concat()).unwrap();
        held.push(slow);
    }
    server.assert_healthy();
    let peak = server.memory("VmHWM:");
    assert!(peak < RSS_IDLE_MAX_KIB, "{peak} KiB");
}

#[test]
fn x5_x6_oversized_requests_cost_no_memory() {
    let server = ServerProcess::start(&["--memory", "8G"]);
    let mut client = server.client();
    for length in [(32 << 20) + 1, 64 << 20, u32::MAX] {
        assert_eq!(client.call(0, command::READ, 0, length).unwrap(), Err(errno::EINVAL));
    }
    let payload = vec![0xEE; 64 << 20];
    for length in [(32 << 20) + 1, 64 << 20] {
        assert_eq!(client.call_write(0, 0, &payload[..length]).unwrap(), Err(errno::EINVAL));
    }
    for length in [(64 << 20) + 1, u32::MAX] {
        let mut bad = server.client();
        bad.wire().send(&request(0, command::WRITE, 1, 0, length)).unwrap();
        assert!(bad.wire().receive_to_end().unwrap().is_empty());
    }
    server.assert_healthy();
    let peak = server.memory("VmHWM:");
    assert!(peak < RSS_IDLE_MAX_KIB, "{peak} KiB");
}

#[test]
fn x12_replies_that_are_never_read_are_bounded() {
    let server = ServerProcess::start(&["--memory", "64M"]);
    let mut greedy = Client::connect_simple(&server.socket, b"").unwrap();
    let mut sender = greedy.wire().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        // 10,000 x 160 KiB: fifty times what one connection may hold. The sending ends when the server stops
        // reading, and fails when the socket is closed below.
        (0..10_000).try_for_each(|cookie| sender.send(&request(0, command::READ, cookie, 0, 160 << 10)))
    });
    let mut other = server.client();
    for turn in 0..2000 {
        let data = [turn as u8; 4096];
        other.write(turn * 4096, &data).unwrap();
        assert_eq!(other.read(turn * 4096, 4096).unwrap(), data);
    }
    let peak = server.memory("VmHWM:");
    assert!(peak < RSS_ONE_CLIENT_MAX_KIB, "{peak} KiB");
    greedy.wire().shutdown(std::net::Shutdown::Both).unwrap();
    drop(flood.join().unwrap());
    server.assert_healthy();
}

#[test]
fn refusals_are_logged_by_code_and_without_the_clients_text() {
    let server = ServerProcess::start(&["--memory", "16M", "--max-connections", "2"]);
    // With two places only, one must have become free again before the next client comes.
    let begin = |flags| {
        let mut found = None;
        eventually("a place", || {
            found = Wire::unix(&server.socket).and_then(|wire| Negotiation::begin_with(wire, flags)).ok();
            found.is_some()
        });
        found.expect("found")
    };
    begin(1 << 9).wire().receive_to_end().unwrap();
    for bytes in [
        &[0xAB; 16][..],
        &option_header(option::GO, u32::MAX),
        &option_message(option::LIST, &[]).repeat(100),
        &option_message(option::EXPORT_NAME, b"sEcReT\nforged INFO line\x1b[31m"),
    ] {
        let mut bad = begin(USUAL_FLAGS);
        bad.wire().send(bytes).unwrap();
        bad.wire().receive_to_end().unwrap();
    }
    let mut magic = begin(USUAL_FLAGS).go(b"").unwrap();
    magic.wire().send(&[0xAB; 28]).unwrap();
    magic.wire().receive_to_end().unwrap();
    let (_first, _second) = (begin(USUAL_FLAGS), begin(USUAL_FLAGS));
    assert!(Wire::unix(&server.socket).unwrap().receive_to_end().unwrap().is_empty());
    let codes = [
        "UNKNOWN_CLIENT_FLAGS",
        "BAD_OPTION_MAGIC",
        "OPTION_TOO_LARGE",
        "TOO_MANY_OPTIONS",
        "UNKNOWN_EXPORT",
        "BAD_REQUEST_MAGIC",
        "TOO_MANY_CONNECTIONS",
    ];
    for code in codes {
        eventually(code, || server.log().contains(code));
    }
    assert!(!server.log().contains("sEcReT") && !server.log().contains("forged"));
}
