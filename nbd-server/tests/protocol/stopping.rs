//! Stopping with clients in every stage: row N4.

use std::time::Duration;

use fixtures::nbd::client::{
    Client, ClientError, Wire, info, info_data, option, option_header, option_message, reply_type,
};
use fixtures::nbd::codec::{command, errno, request};
use nbd_server::export::ExportInfo;
use nbd_server::server::ServerConfig;

use crate::exports::{entries, gate, memory, memory_with, pattern};
use crate::harness::{TestServer, eventually, pause};

/// What the row allows.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Sockets in every stage of a handshake.
fn haggling(server: &TestServer) -> Vec<Wire> {
    let mut half = server.negotiation();
    half.wire().send(&option_header(option::LIST, 100)[..9]).expect("the server reads");
    let mut waiting = server.negotiation();
    waiting.wire().send(&option_header(77, 1000)).expect("the server reads");
    let mut asking = server.negotiation();
    asking.structured().expect("the server reads");
    vec![server.wire(), half.into_wire(), waiting.into_wire(), asking.into_wire()]
}

#[test]
fn n4_stop_with_idle_clients() {
    let mut server = TestServer::disk(ServerConfig::default());
    let sockets = haggling(&server);
    let mut clients: Vec<Client> = (0..3).map(|_| server.client()).collect();
    assert!(clients[0].read(0, 512).is_ok());
    server.begin_stop();
    let stopped = server.wait_stopped();
    assert!(stopped.took < STOP_MAX, "{:?}", stopped.took);
    assert_eq!(stopped.stats.abandoned, 0);
    for mut client in clients {
        assert!(client.wire().receive_to_end().unwrap().is_empty());
    }
    drop(sockets);
}

#[test]
fn n4_stop_with_half_requests_and_unread_replies() {
    let mut server = TestServer::disk(ServerConfig::default());
    let sockets = haggling(&server);
    let mut clients: Vec<Client> = (0..4).map(|_| server.client()).collect();
    clients[0].wire().send(&request(0, command::READ, 1, 0, 512)[..20]).unwrap();
    clients[1]
        .wire()
        .send(&[&request(0, command::WRITE, 1, 4096, 1 << 20)[..], &[0xEE; 5000]].concat())
        .unwrap();
    clients[2].wire().send(&request(0, command::READ, 1, 0, 4 << 20)).unwrap();
    clients[3].wire().send(&request(0, command::WRITE, 1, 0, 64 << 20)).unwrap();
    server.assert_healthy();
    server.begin_stop();
    let stopped = server.wait_stopped();
    assert!(stopped.took < STOP_MAX, "{:?}", stopped.took);
    assert_eq!(stopped.stats.abandoned, 0, "the kernel gave everything back");
    let disk = std::fs::read(server.dir().join("disk.img")).unwrap();
    assert!(disk[..2 << 20] == pattern(0, 2 << 20), "half a write was applied");
    drop((clients, sockets));
}

/// An export that never answers cannot hold a stop up.
#[test]
fn n4_stop_with_requests_that_never_end() {
    let (image, journal) = gate("gate", 1 << 20);
    let mut server = TestServer::of(vec![image]);
    let mut client = server.client();
    client.submit(0, command::READ, 0, 512).unwrap();
    eventually("the read", || entries(&journal).len() == 1);
    server.begin_stop();
    let stopped = server.wait_stopped();
    assert!(stopped.took < STOP_MAX, "{:?}", stopped.took);
    assert!(client.wire().receive_to_end().unwrap().is_empty());
}

/// What a client finds that is still in the handshake when a stop begins.
#[test]
fn go_after_a_stop_is_answered_shutdown() {
    let mut server = TestServer::disk(ServerConfig::default());
    let mut idle = server.client();
    let mut before = server.negotiation();
    let mut old = server.negotiation();
    server.begin_stop();
    assert!(idle.wire().receive_to_end().unwrap().is_empty(), "the stop has begun");
    let mut after = server.negotiation();
    for client in [&mut before, &mut after] {
        for number in [option::INFO, option::GO] {
            let reply = client.ask_one(number, &info_data(b"disk", &[])).unwrap();
            assert_eq!(reply.kind, reply_type::ERR_SHUTDOWN);
        }
    }
    old.wire().send(&option_message(option::EXPORT_NAME, b"disk")).unwrap();
    assert!(old.wire().receive_to_end().unwrap().is_empty(), "no other way to say no");
    assert!(matches!(
        Client::connect(server.socket(), b""),
        Err(ClientError::Refused(reply_type::ERR_SHUTDOWN))
    ));
}

/// A request that is half here when a stop begins keeps its connection; what follows it is refused.
#[test]
fn requests_during_a_stop_are_answered_shutdown() {
    let mut server = TestServer::disk(ServerConfig::default());
    let mut idle = server.client();
    let mut busy = server.client();
    let (read, mut bytes) = busy.prepare(0, command::READ, 4096, 512);
    let (write, header) = busy.prepare(0, command::WRITE, 0, 4096);
    bytes.extend(header);
    busy.wire().send(&bytes).unwrap();
    assert!(busy.reply_to(read).unwrap().result.is_ok(), "the write's header was seen with it");
    server.begin_stop();
    assert!(idle.wire().receive_to_end().unwrap().is_empty(), "the stop has begun");
    let mut rest = vec![7; 4096];
    let (late_write, header) = busy.prepare(0, command::WRITE, 4096, 4096);
    rest.extend(header);
    rest.extend([0xEE; 4096]);
    let late_read = busy.prepare(0, command::READ, 0, 512);
    let late_flush = busy.prepare(0, command::FLUSH, 0, 0);
    rest.extend([&late_read.1[..], &late_flush.1].concat());
    busy.wire().send(&rest).unwrap();
    for _ in 0..4 {
        let reply = busy.reply().unwrap();
        let expected = if reply.cookie == write { Ok(Vec::new()) } else { Err(errno::ESHUTDOWN) };
        assert_eq!(reply.result, expected, "cookie {}", reply.cookie);
    }
    assert!(late_write > write && late_read.0 > late_write, "all four were told apart");
    assert!(busy.wire().receive_to_end().unwrap().is_empty());
    assert!(server.wait_stopped().took < STOP_MAX);
    let disk = std::fs::read(server.dir().join("disk.img")).unwrap();
    assert!(disk[..4096] == [7; 4096] && disk[4096..8192] == pattern(4096, 4096));
}

#[test]
fn a_stop_without_clients_is_quick_and_counts() {
    let mut server = TestServer::of(vec![memory("memory", 1 << 20)]);
    for _ in 0..3 {
        server.assert_healthy();
    }
    server.begin_stop();
    let stopped = server.wait_stopped();
    assert!(stopped.took < STOP_MAX);
    assert_eq!((stopped.stats.connections, stopped.stats.requests), (3, 3));
}

/// Has the server say that many answers, none of which is read, and a `GO` after them; then stops it. Tells
/// what came of the `GO`: the stop was first, or the agreement, and then the connection must end.
fn go_into_a_stop(answers: usize) -> Result<u32, ClientError> {
    let long = "d".repeat(4000);
    let export = ExportInfo { description: long.clone(), ..ExportInfo::new(long, 1 << 20) };
    let mut server = TestServer::of(vec![memory_with(export)]);
    let mut late = server.negotiation();
    let data = info_data(b"", &[info::NAME, info::DESCRIPTION]);
    let mut bytes = option_message(option::INFO, &data).repeat(answers);
    bytes.extend(option_message(option::GO, &data));
    late.wire().send(&bytes)?;
    // Until the server has filled the socket: less would only try another moment of the stop.
    pause(Duration::from_millis(30));
    server.begin_stop();
    server.wait_stopped();
    for _ in 0..answers {
        late.replies(option::INFO)?;
    }
    let kind = late.replies(option::GO)?.last().map_or(0, |reply| reply.kind);
    if kind == reply_type::ACK {
        late.wire().receive_to_end()?;
    }
    Ok(kind)
}

/// A client that takes the answer to its `GO` only when the reactor is gone must be closed all the same. For
/// one number of answers the socket is full in the middle of that one.
#[test]
fn a_client_that_enters_behind_a_stop_is_closed() {
    let mut seen = Vec::new();
    for answers in 0..32 {
        seen.push(go_into_a_stop(answers).unwrap_or_else(|error| panic!("{answers} answers: {error}")));
    }
    assert!(seen.contains(&reply_type::ACK) && seen.contains(&reply_type::ERR_SHUTDOWN), "{seen:x?}");
}
