//! Clients that stall, and the bounds they run into: rows X12 and X13.

use std::net::Shutdown;
use std::time::Duration;

use fixtures::nbd::client::{ClientError, Wire, info_data, option, option_message, reply_type};
use fixtures::nbd::codec::{command, request};
use nbd_server::connection::Limits;
use nbd_server::server::ServerConfig;

use crate::exports::pattern;
use crate::harness::{TestServer, impatient, pause};

#[test]
fn x12_a_client_that_never_reads_is_closed() {
    let server = TestServer::disk(impatient());
    let mut greedy = server.client();
    let mut sender = greedy.wire().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let mut sent = Ok(());
        for cookie in 0..10_000 {
            sent = sent.and_then(|()| sender.send(&request(0, command::READ, cookie, 0, 64 << 10)));
        }
        sent
    });
    let mut other = server.client();
    for turn in 0..200 {
        assert_eq!(other.read(turn * 4096, 4096).unwrap(), pattern(turn * 4096, 4096), "others are served");
    }
    greedy.wire().wait_for_hang_up().unwrap();
    let sent = flood.join().unwrap();
    assert!(matches!(sent, Ok(()) | Err(ClientError::Closed)), "{sent:?}");
    assert!(other.read(0, 4096).is_ok());
    server.assert_healthy();
}

/// At the limit a server stops reading; it does not drop, refuse or reorder anything.
#[test]
fn x12_a_client_that_reads_late_gets_everything() {
    let limits = Limits { requests_max: 4, payload_bytes_max: 33 << 20, ..Limits::default() };
    let server = TestServer::disk(ServerConfig { limits, ..ServerConfig::default() });
    let mut late = server.client();
    let mut bytes = Vec::new();
    for turn in 0..1000 {
        bytes.extend(late.prepare(0, command::READ, turn * 4096, 4096).1);
    }
    late.wire().send(&bytes).unwrap();
    server.assert_healthy();
    for _ in 0..1000 {
        let reply = late.reply().unwrap();
        let offset = (reply.cookie - 1) * 4096;
        assert_eq!(reply.result, Ok(pattern(offset, 4096)));
    }
    late.leave().unwrap();
}

/// The two ways of receiving a payload: small ones through the read-ahead buffer, large ones directly.
const PAYLOADS: [(u32, usize); 5] =
    [(4096, 0), (4096, 4095), (1 << 20, 1), (1 << 20, 300_000), (1 << 20, (1 << 20) - 1)];

#[test]
fn x13_half_a_payload_then_silence() {
    let server = TestServer::disk(impatient());
    let stall = |(length, sent): (u32, usize)| {
        let mut bad = server.client().into_wire();
        bad.send(&request(0, command::WRITE, 1, 4096, length)).unwrap();
        bad.send(&vec![0xEE; sent]).unwrap();
        bad
    };
    let stalled: Vec<Wire> = PAYLOADS.into_iter().map(stall).collect();
    for mut bad in stalled {
        assert!(bad.receive_to_end().unwrap().is_empty());
    }
    assert_eq!(server.client().read(0, 2 << 20).unwrap(), pattern(0, 2 << 20), "nothing was applied");
    server.assert_healthy();
}

#[test]
fn x13_half_a_payload_then_close() {
    let server = TestServer::disk(ServerConfig::default());
    for (length, sent) in PAYLOADS {
        for wire in [server.client().into_wire(), server.client().into_wire()] {
            let mut bad = wire;
            bad.send(&[&request(0, command::WRITE, 1, 4096, length)[..], &vec![0xEE; sent]].concat())
                .unwrap();
            bad.shutdown(Shutdown::Write).unwrap();
            assert!(bad.receive_to_end().unwrap().is_empty(), "{sent} of {length}");
        }
    }
    assert_eq!(server.client().read(0, 2 << 20).unwrap(), pattern(0, 2 << 20), "nothing was applied");
    server.assert_healthy();
}

#[test]
fn x13_half_a_header_then_silence_or_close() {
    let server = TestServer::disk(impatient());
    for bytes in 1..28 {
        let mut closing = server.client();
        closing.wire().send(&request(0, command::READ, 1, 0, 512)[..bytes]).unwrap();
        closing.wire().shutdown(Shutdown::Write).unwrap();
        assert!(closing.wire().receive_to_end().unwrap().is_empty());
    }
    let mut silent = server.client();
    silent.wire().send(&request(0, command::READ, 1, 0, 512)[..27]).unwrap();
    server.assert_closes(silent.wire());
}

#[test]
fn x13_half_of_a_refused_payload_then_silence() {
    let server = TestServer::disk(impatient());
    let mut bad = server.client();
    bad.wire().send(&request(0, command::WRITE, 1, 0, 64 << 20)).unwrap();
    bad.wire().send(&vec![0xEE; 1 << 20]).unwrap();
    server.assert_closes(bad.wire());
}

/// Idle is not stalled: between requests a client may be silent as long as it likes.
#[test]
fn an_idle_client_is_not_stalled() {
    let server = TestServer::disk(impatient());
    let mut idle = server.client();
    assert!(idle.read(0, 512).is_ok());
    let mut stalled = server.client();
    stalled.wire().send(&[0x25]).unwrap();
    // Once this one was found stalled, the idle one was looked at too, later in its silence.
    assert!(stalled.wire().receive_to_end().unwrap().is_empty());
    assert_eq!(idle.read(4096, 512).unwrap(), pattern(4096, 512));
}

/// A client that closes its sending side still gets its answers.
#[test]
fn answers_reach_a_client_that_has_closed_its_sending_side() {
    let server = TestServer::disk(ServerConfig::default());
    let mut half = server.client();
    for turn in 0..50 {
        half.submit(0, command::READ, turn * 65_536, 65_536).unwrap();
    }
    half.wire().shutdown(Shutdown::Write).unwrap();
    for _ in 0..50 {
        let reply = half.reply().unwrap();
        assert_eq!(reply.result, Ok(pattern((reply.cookie - 1) * 65_536, 65_536)));
    }
    server.assert_closes(half.wire());
}

/// Reads 32 MiB in small steps with pauses: longer than the stall limit in sum, never silent for as long.
#[test]
fn a_slow_reader_that_goes_on_is_not_stalled() {
    let config = ServerConfig {
        limits: Limits { stall: Duration::from_secs(1), ..Limits::default() },
        ..ServerConfig::default()
    };
    let server = TestServer::of_with(vec![crate::exports::memory("memory", 64 << 20)], config);
    let mut slow = server.simple_client();
    slow.wire().send(&request(0, command::READ, 1, 0, 32 << 20)).unwrap();
    let mut wire = slow.into_wire();
    let mut left = 16 + (32 << 20);
    while left > 0 {
        let step = left.min(512 << 10);
        assert!(wire.receive(step).is_ok(), "closed with {left} bytes to go");
        left -= step;
        pause(Duration::from_millis(60));
    }
}

/// The clock of a half request must start when the client had its turn, not when the server was started.
#[test]
fn a_request_split_right_behind_go_is_not_stalled() {
    let config = ServerConfig {
        limits: Limits { stall: Duration::from_secs(4), ..Limits::default() },
        ..ServerConfig::default()
    };
    let server = TestServer::disk(config);
    // The server must be older than the limit; and looks at its clients must fall into the half second below.
    pause(Duration::from_secs(5));
    let read = request(0, command::READ, 1, 4096, 512);
    for _ in 0..3 {
        let mut negotiation = server.negotiation();
        let go = option_message(option::GO, &info_data(b"", &[]));
        negotiation.wire().send(&[&go, &read[..10]].concat()).unwrap();
        let replies = negotiation.replies(option::GO).unwrap();
        assert_eq!(replies.last().map(|reply| reply.kind), Some(reply_type::ACK));
        let mut client = negotiation.enter(&replies).unwrap();
        client.expect(command::READ, 1, 4096, 512);
        pause(Duration::from_millis(1200));
        assert!(client.wire().send(&read[10..]).is_ok(), "closed after 1.2 s of 4");
        assert_eq!(client.reply_to(1).unwrap().result, Ok(pattern(4096, 512)));
    }
}
