//! Extended headers: what is agreed on, longer lengths, payloads where a flag says so. The client's decoder takes nothing
//! but extended chunks there.

use fixtures::nbd::client::{Client, ClientError, option, option_message, reply_type};
use fixtures::nbd::codec::{command, errno, extended_request, flag, request};
use nbd_server::handshake::Offer;
use nbd_server::server::ServerConfig;

use crate::contexts::contextual;
use crate::exports::{entries, gate, memory, pattern};
use crate::harness::{DISK_BYTES, TestServer, eventually};

const GIB: u64 = 1 << 30;
const HOLE: u64 = 3;
/// `BLOCK_STATUS_PAYLOAD` among the transmission flags.
const FILTERS: u16 = 1 << 12;

fn client(server: &TestServer) -> Client {
    let mut negotiation = server.negotiation();
    negotiation.extended().expect("extended headers");
    negotiation.go(b"").expect("the export")
}

#[test]
fn extended_headers_carry_every_command() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = client(&server);
    assert!(client.flags() & 0x80 != 0, "DF, as with structured replies");
    assert_eq!(client.read(4096, 100_000).unwrap(), pattern(4096, 100_000));
    client.write(8192, &[7; 5000]).unwrap();
    assert_eq!(client.read(8192, 5000).unwrap(), [7; 5000]);
    client.flush().unwrap();
    for command in [command::TRIM, command::WRITE_ZEROES, command::CACHE] {
        assert_eq!(client.call(flag::FUA, command, 8192, 4096).unwrap(), Ok(Vec::new()), "command {command}");
    }
    assert_eq!(client.read(8192, 4096).unwrap(), [0; 4096]);
    for (command, offset, length, error) in [
        (command::READ, DISK_BYTES, 1, errno::EINVAL),
        (command::TRIM, DISK_BYTES - 1, 2, errno::EINVAL),
        (command::WRITE_ZEROES, 0, u64::MAX, errno::ENOSPC),
        (command::READ, 0, (32 << 20) + 1, errno::EINVAL),
        (command::BLOCK_STATUS, 0, 4096, errno::EINVAL),
        (99, 0, 0, errno::EINVAL),
    ] {
        assert_eq!(client.call_long(0, command, offset, length).unwrap(), Err(error), "command {command}");
    }
    for command in [command::READ, command::TRIM] {
        assert_eq!(client.call(0, command, 4096, 0).unwrap(), Ok(Vec::new()), "nothing");
    }
    client.leave().unwrap();
    server.assert_healthy();
}

#[test]
fn extended_headers_replace_structured_replies_and_end_export_name() {
    let server = TestServer::disk(ServerConfig::default());
    for structured_first in [false, true] {
        let mut negotiation = server.negotiation();
        if structured_first {
            negotiation.structured().unwrap();
        }
        assert_eq!(
            negotiation.ask_one(option::EXTENDED_HEADERS, &[0]).unwrap().kind,
            reply_type::ERR_INVALID
        );
        negotiation.extended().unwrap();
        negotiation.extended().unwrap();
        let refused = negotiation.structured();
        assert!(matches!(refused, Err(ClientError::Refused(reply_type::ERR_EXT_HEADER_REQD))), "{refused:?}");
        assert_eq!(negotiation.choose_contexts(b"", &["base:allocation"]).unwrap().len(), 1);
        negotiation.wire().send(&option_message(option::EXPORT_NAME, b"disk")).unwrap();
        server.assert_closes(negotiation.wire());
    }
}

#[test]
fn extended_headers_can_be_switched_off() {
    let offer = Offer { extended_headers: false, ..Offer::default() };
    let server = TestServer::disk(ServerConfig { offer, ..ServerConfig::default() });
    let mut negotiation = server.negotiation();
    let refused = negotiation.extended();
    assert!(matches!(refused, Err(ClientError::Refused(reply_type::ERR_UNSUP))), "{refused:?}");
    negotiation.structured().unwrap();
    assert!(negotiation.go(b"").unwrap().read(0, 512).is_ok());
}

#[test]
fn headers_of_the_other_kind_close() {
    let server = TestServer::disk(ServerConfig::default());
    let mut bad = client(&server);
    bad.wire().send(&request(0, command::READ, 1, 0, 512)).unwrap();
    bad.wire().send(&[0; 4]).unwrap();
    server.assert_closes(bad.wire());
    let mut bad = server.client();
    bad.wire().send(&extended_request(0, command::READ, 1, 0, 512)).unwrap();
    server.assert_closes(bad.wire());
}

/// A payload is where the flag says, whatever the command; a write has one without it, too: QEMU's client forgets the flag.
#[test]
fn payloads_without_the_flag_and_flags_without_a_use() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = client(&server);
    let (cookie, mut write) = client.prepare(0, command::WRITE, 4096, 4096);
    write.extend(pattern(4096, 4096));
    client.wire().send(&write).unwrap();
    assert_eq!(client.reply_to(cookie).unwrap().result, Ok(Vec::new()));
    for command in [command::READ, command::TRIM, command::FLUSH, command::CACHE, command::BLOCK_STATUS, 99] {
        for bytes in [1, 28, 5000, 100_000] {
            let (cookie, mut request) = client.prepare(flag::PAYLOAD_LEN, command, 4096, bytes);
            // A header hidden in it is data.
            request.extend(extended_request(0, command::DISC, 0, 0, 0).iter().cycle().take(bytes as usize));
            client.wire().send(&request).unwrap();
            assert_eq!(client.reply_to(cookie).unwrap().result, Err(errno::EINVAL), "command {command}");
        }
    }
    let (cookie, mut write) = client.prepare(flag::PAYLOAD_LEN, command::WRITE, 0, (32 << 20) + 1);
    write.resize(write.len() + (32 << 20) + 1, 0xEE);
    client.wire().send(&write).unwrap();
    assert_eq!(client.reply_to(cookie).unwrap().result, Err(errno::EINVAL));
    assert_eq!(client.read(4096, 4096).unwrap(), pattern(4096, 4096), "in step, and untouched");
    for length in [(64 << 20) + 1, u64::from(u32::MAX) + 4096, u64::MAX] {
        let mut bad = self::client(&server);
        let (_, bytes) = bad.prepare_long(flag::PAYLOAD_LEN, command::READ, 0, length);
        bad.wire().send(&bytes).unwrap();
        server.assert_closes(bad.wire());
    }
    let mut compact = server.client();
    let refused = compact.call(flag::PAYLOAD_LEN, command::TRIM, 0, 4096).unwrap();
    assert_eq!(refused, Err(errno::EINVAL), "only with extended headers");
}

#[test]
fn a_disk_of_many_gigabytes_in_one_request() {
    let server = TestServer::of(vec![memory("large", 20 * GIB)]);
    let mut negotiation = server.negotiation();
    negotiation.extended().unwrap();
    negotiation.choose_contexts(b"", &["base:allocation"]).unwrap();
    let mut client = negotiation.go(b"").unwrap();
    let places = [0, 4 * GIB - 65_536, 4 * GIB, 9 * GIB, 20 * GIB - 4096];
    for command in [command::TRIM, command::WRITE_ZEROES] {
        for at in places {
            client.write(at, &[7; 4096]).unwrap();
        }
        assert_eq!(client.call_long(0, command, 0, 20 * GIB).unwrap(), Ok(Vec::new()));
        for at in places {
            assert_eq!(client.read(at, 4096).unwrap(), [0; 4096], "command {command} at {at}");
        }
    }
    assert!(client.call_long(0, command::CACHE, 0, 20 * GIB).unwrap().is_ok());
    client.write(9 * GIB, &[1]).unwrap();
    let (mut at, mut told) = (0, Vec::new());
    while at < 20 * GIB {
        for (bytes, flags) in client.block_status_long(0, at, 20 * GIB - at).unwrap().remove(0).extents {
            at += bytes;
            told.push((bytes, flags));
        }
    }
    assert_eq!(told.iter().filter(|(_, flags)| *flags == 0).collect::<Vec<_>>(), [&(65_536, 0)]);
    assert!(told.iter().all(|(_, flags)| [0, HOLE].contains(flags)), "{told:?}");
    assert!(told.len() < 10, "about 4 GiB a question: {told:?}");
    client.leave().unwrap();
}

/// The backend sees a large request in parts, one after another, and the client one reply.
#[test]
fn a_large_request_is_handed_on_in_parts() {
    let (image, journal) = gate("gate", 10 * GIB);
    let server = TestServer::of(vec![image]);
    let mut client = client(&server);
    let mut opener = server.client();
    let (cookie, bytes) = client.prepare_long(0, command::WRITE_ZEROES, 4096, 9 * GIB);
    client.wire().send(&bytes).unwrap();
    let part = (1_u64 << 32) - 65_536;
    let rest = 9 * GIB - 2 * part;
    let parts = [(4096, part), (4096 + part, part), (4096 + 2 * part, rest)]
        .map(|(at, bytes)| format!("zeroes {at}+{bytes}"));
    let seen =
        || entries(&journal).into_iter().filter(|entry| entry.starts_with("zeroes")).collect::<Vec<_>>();
    for number in 1..=parts.len() {
        eventually("a part", || seen().len() == number);
        assert_eq!(seen(), parts[..number]);
        assert!(opener.call(0, command::CACHE, 0, 512).unwrap().is_ok());
    }
    assert_eq!(client.reply_to(cookie).unwrap().result, Ok(Vec::new()));
    client.leave().unwrap();
}

/// What had begun ends; what is left of it does not begin.
#[test]
fn a_client_that_breaks_off_in_the_middle_of_a_large_request() {
    let (image, journal) = gate("gate", 10 * GIB);
    let server = TestServer::of(vec![image]);
    let (mut bad, mut opener) = (client(&server), server.client());
    let (_, mut bytes) = bad.prepare_long(0, command::TRIM, 0, 10 * GIB);
    bytes.extend([0xff; 32]);
    bad.wire().send(&bytes).unwrap();
    eventually("the first part", || entries(&journal).len() == 1);
    assert!(opener.call(0, command::CACHE, 0, 512).unwrap().is_ok());
    assert!(bad.wire().receive_to_end().unwrap().is_empty(), "closed without an answer");
    assert_eq!(entries(&journal).iter().filter(|entry| entry.starts_with("trim")).count(), 1);
}

#[test]
fn filters_choose_among_the_contexts() {
    let server = contextual();
    let mut negotiation = server.negotiation();
    negotiation.extended().unwrap();
    assert_eq!(negotiation.choose_contexts(b"3", &["x-test:c0", "x-test:c1", "x-test:c2"]).unwrap().len(), 3);
    let mut client = negotiation.go(b"3").unwrap();
    assert_eq!(client.flags() & FILTERS, FILTERS);
    for wanted in [&[2][..], &[3, 1], &[1, 2, 3]] {
        let told = client.block_status_of(0, 4096, 8192, wanted).unwrap();
        let mut sorted = wanted.to_vec();
        sorted.sort_unstable();
        assert_eq!(told.iter().map(|status| status.context).collect::<Vec<_>>(), sorted);
        assert!(told.iter().all(|status| status.extents == [(8192, HOLE)]));
    }
    assert_eq!(client.block_status_of(flag::REQ_ONE, 0, 8192, &[2]).unwrap()[0].extents, [(8192, HOLE)]);
    let bad: [(u64, &[u32]); 7] = [
        (0, &[1]),
        (1 << 21, &[1]),
        (u64::MAX, &[1]),
        (512, &[]),
        (512, &[1, 1]),
        (512, &[4]),
        (512, &[1, 2, 3, 1]),
    ];
    for (length, contexts) in bad {
        let refused = client.block_status_of(0, 0, length, contexts);
        assert!(
            matches!(refused, Err(ClientError::Failed(errno::EINVAL))),
            "{length} {contexts:?}: {refused:?}"
        );
    }
    assert_eq!(
        client.block_status(0, 0, 4096).unwrap().len(),
        3,
        "in step; without a filter all are told of"
    );
}

#[test]
fn filters_are_offered_where_there_is_something_to_filter() {
    let server = contextual();
    for (extended, of, offered) in [(false, "3", false), (true, "3", true), (true, "100", false)] {
        let mut negotiation = server.negotiation();
        if extended {
            negotiation.extended().unwrap();
        } else {
            negotiation.structured().unwrap();
        }
        negotiation.choose_contexts(of.as_bytes(), &["x-test:c0"]).unwrap();
        assert_eq!(negotiation.go(b"3").unwrap().flags() & FILTERS != 0, offered, "{extended} {of}");
    }
}
