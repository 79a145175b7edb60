//! Bad and good option haggling: rows N1, N2, N5-N8, N10-N12 and N14 (N3, N4, N9 and N13 are in `process`, `stopping`,
//! `names` and `contexts`).

use std::time::Duration;

use fixtures::nbd::client::{
    Client, ClientError, Negotiation, info, info_data, option, option_header, option_message, reply_type,
};
use fixtures::nbd::codec::{command, request};
use nbd_server::handshake::Offer;
use nbd_server::server::ServerConfig;

use crate::exports::{memory, pattern};
use crate::harness::{DISK_BYTES, TestServer, eventually, impatient, pause};

/// Options that one client may send where there is one export: 32, and 4 for each export. Numbers on purpose.
const OPTIONS_MAX: usize = 32 + 4;
const OPTION_BYTES_MAX: u32 = 64 << 10;

#[test]
fn n1_a_silent_client_is_closed() {
    let server = TestServer::disk(impatient());
    let mut early = server.client();
    let (mut silent, mut greeted) = (server.wire(), server.negotiation());
    assert_eq!(silent.receive_to_end().unwrap().len(), 18, "nothing but the greeting");
    server.assert_closes(greeted.wire());
    assert!(early.read(0, 512).is_ok(), "the deadline ends with the handshake");
}

#[test]
fn n1_a_slow_client_is_closed_however_alive_it_is() {
    let server = TestServer::disk(impatient());
    let mut slow = server.negotiation();
    let mut bytes = option_header(77, OPTION_BYTES_MAX).into_iter().chain(std::iter::repeat(0));
    // The pace of the client, not the proof: each pause is far below the deadline, the sum is not.
    let refused = loop {
        match slow.wire().send(&[bytes.next().unwrap()]) {
            Ok(()) => pause(Duration::from_millis(10)),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, ClientError::Closed), "{refused}");
    server.assert_closes(slow.wire());
}

#[test]
fn n2_clients_beyond_the_limit_are_turned_away_until_one_leaves() {
    let server = TestServer::disk(ServerConfig { connections_max: 2, ..ServerConfig::default() });
    let haggling = server.negotiation();
    let mut served = server.client();
    for _ in 0..20 {
        assert!(server.wire().receive_to_end().unwrap().is_empty(), "turned away without a greeting");
    }
    assert!(served.read(0, 512).is_ok(), "those inside do not notice");
    drop(haggling);
    eventually("place for another client", || Client::connect(server.socket(), b"").is_ok());
    assert!(served.read(0, 512).is_ok());
    drop(served);
    eventually("place for two", || {
        let first = Client::connect(server.socket(), b"");
        first.is_ok() && Client::connect(server.socket(), b"").is_ok()
    });
}

#[test]
fn n5_unknown_client_flags() {
    let server = TestServer::disk(ServerConfig::default());
    for bit in 2..32 {
        let mut bad = Negotiation::begin_with(server.wire(), 3 | 1 << bit).unwrap();
        let rest = bad.wire().receive_to_end().unwrap();
        assert!(rest.is_empty(), "flag {bit} was answered with {rest:x?}");
    }
    server.assert_healthy();
    for flags in 0..4 {
        let negotiation = Negotiation::begin_with(server.wire(), flags).unwrap();
        assert!(negotiation.go(b"").is_ok(), "flags {flags:#x} are ours");
    }
}

#[test]
fn n6_a_wrong_option_magic() {
    let server = TestServer::disk(ServerConfig::default());
    for bit in 0..64 {
        let mut message = option_message(option::LIST, &[]);
        message[bit / 8] ^= 1 << (bit % 8);
        let mut bad = server.negotiation();
        bad.wire().send(&message).unwrap();
        assert!(bad.wire().receive_to_end().unwrap().is_empty(), "bit {bit}");
    }
    server.assert_healthy();
}

/// The announced bytes are never sent: a server that wanted to read them would wait for them.
#[test]
fn n7_an_oversized_option_is_refused_unread() {
    let server = TestServer::disk(ServerConfig::default());
    for length in [OPTION_BYTES_MAX + 1, 1 << 24, 1 << 31, u32::MAX] {
        for number in [option::LIST, option::GO, option::INFO, option::STRUCTURED_REPLY, 77] {
            let mut bad = server.negotiation();
            bad.wire().send(&option_header(number, length)).unwrap();
            let replies = bad.replies(number).unwrap();
            assert_eq!(replies.len(), 1);
            assert_eq!(replies[0].kind, reply_type::ERR_TOO_BIG, "option {number}, {length} bytes");
            assert!(bad.wire().receive_to_end().unwrap().is_empty());
        }
    }
    server.assert_healthy();
}

#[test]
fn n7_the_largest_option_is_read() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.negotiation();
    let reply = client.ask_one(77, &vec![0xA5; OPTION_BYTES_MAX as usize]).unwrap();
    assert_eq!(reply.kind, reply_type::ERR_UNSUP);
    assert!(client.go(b"").is_ok(), "in step behind 64 KiB");
}

#[test]
fn n7_n8_an_oversized_export_name_closes() {
    let server = TestServer::disk(ServerConfig::default());
    for length in [OPTION_BYTES_MAX + 1, u32::MAX] {
        let mut bad = server.negotiation();
        bad.wire().send(&option_header(option::EXPORT_NAME, length)).unwrap();
        server.assert_closes(bad.wire());
    }
}

#[test]
fn n8_lies_about_lengths_are_invalid() {
    let server = TestServer::disk(ServerConfig::default());
    let good = info_data(b"disk", &[info::NAME]);
    let with = |at: usize, bytes: &[u8]| {
        let mut data = good.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        data
    };
    let mut lies = vec![
        with(0, &u32::MAX.to_be_bytes()),
        with(0, &0x8000_0000_u32.to_be_bytes()),
        with(0, &9_u32.to_be_bytes()),
        with(0, &3_u32.to_be_bytes()),
        with(8, &[0xff, 0xff]),
        with(8, &[0, 0]),
        with(8, &[0, 2]),
        [&good[..], &[0]].concat(),
        [&good[..], &[0, 3]].concat(),
    ];
    lies.extend((0..good.len()).map(|length| good[..length].to_vec()));
    for lie in lies {
        let mut client = server.negotiation();
        for number in [option::INFO, option::GO] {
            let reply = client.ask_one(number, &lie).unwrap();
            assert_eq!(reply.kind, reply_type::ERR_INVALID, "option {number} with {lie:x?}");
        }
        assert!(client.go(b"disk").is_ok(), "in step after {lie:x?}");
    }
    server.assert_healthy();
}

#[test]
fn n10_one_option_too_many() {
    let server = TestServer::disk(ServerConfig::default());
    for number in [option::LIST, option::STRUCTURED_REPLY, 77] {
        let mut bad = server.negotiation();
        for _ in 0..OPTIONS_MAX {
            assert!(bad.ask(number, &[]).is_ok());
        }
        bad.wire().send(&option_message(number, &[])).unwrap();
        assert!(bad.wire().receive_to_end().unwrap().is_empty(), "option {number}");
    }
    server.assert_healthy();
}

#[test]
fn n10_the_last_option_allowed_may_be_go() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.negotiation();
    for _ in 1..OPTIONS_MAX {
        assert!(client.ask(option::LIST, &[]).is_ok());
    }
    assert!(client.go(b"").unwrap().read(0, 512).is_ok());
}

/// A client that asks for the details of every export is no attacker.
#[test]
fn n10_the_allowance_grows_with_the_exports() {
    let names: Vec<String> = (0..100).map(|number| format!("export-{number}")).collect();
    let server = TestServer::of(names.iter().map(|name| memory(name, 1 << 20)).collect());
    let mut curious = server.negotiation();
    for name in names.iter().cycle().take(32 + 4 * names.len()) {
        let told = curious.ask(option::INFO, &info_data(name.as_bytes(), &[])).unwrap();
        assert_eq!(told.last().map(|reply| reply.kind), Some(reply_type::ACK));
    }
    curious.wire().send(&option_message(option::INFO, &info_data(b"", &[]))).unwrap();
    server.assert_closes(curious.wire());
}

#[test]
fn n10_a_thousand_lists_at_once() {
    let server = TestServer::disk(ServerConfig::default());
    let mut bad = server.negotiation();
    bad.wire().send(&option_message(option::LIST, &[]).repeat(1000)).unwrap();
    for _ in 0..OPTIONS_MAX {
        assert!(bad.replies(option::LIST).is_ok());
    }
    server.assert_closes(bad.wire());
}

#[test]
fn n11_unknown_options_are_skipped() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.negotiation();
    for number in [0, 4, 5, 12, 77, u32::MAX] {
        for bytes in [0, 1, 5000, 60_000] {
            // What looks like another option inside the data must not be taken for one.
            let data = option_message(option::ABORT, &vec![0; bytes]);
            assert_eq!(client.ask_one(number, &data).unwrap().kind, reply_type::ERR_UNSUP, "option {number}");
        }
    }
    assert!(client.go(b"").unwrap().read(0, 512).is_ok());
}

#[test]
fn n12_missing_exports_are_all_alike() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.negotiation();
    let mut answers = Vec::new();
    for name in [&b"nothing"[..], b"disk.img", b"Disk", b"disk ", &[b'x'; 300]] {
        for number in [option::INFO, option::GO] {
            answers.push(client.ask_one(number, &info_data(name, &[info::NAME])).unwrap());
        }
    }
    assert_eq!(answers[0].kind, reply_type::ERR_UNKNOWN);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:x?}");
    client.wire().send(&option_message(option::EXPORT_NAME, b"nothing")).unwrap();
    server.assert_closes(client.wire());
}

#[test]
fn n14_options_in_any_order() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.negotiation();
    assert_eq!(
        client.ask_one(option::GO, &info_data(b"nothing", &[])).unwrap().kind,
        reply_type::ERR_UNKNOWN
    );
    client.ask(option::INFO, &info_data(b"disk", &[])).unwrap();
    client.structured().unwrap();
    client.ask(option::LIST, &[]).unwrap();
    client.structured().unwrap();
    client.ask(option::INFO, &info_data(b"nothing", &[])).unwrap();
    client.ask(option::INFO, &info_data(b"", &[])).unwrap();
    assert!(client.export_name(b"disk", false).unwrap().read(0, 512).is_ok());
}

#[test]
fn n14_go_twice_is_a_bad_request() {
    let server = TestServer::disk(ServerConfig::default());
    let mut twice = server.negotiation();
    let go = option_message(option::GO, &info_data(b"", &[]));
    // Long enough for a whole request header.
    twice.wire().send(&go.repeat(3)).unwrap();
    assert!(twice.replies(option::GO).unwrap().last().unwrap().kind == reply_type::ACK);
    server.assert_closes(twice.wire());
}

#[test]
fn n14_data_after_abort_are_ignored() {
    let server = TestServer::disk(ServerConfig::default());
    for payload in [&b""[..], b"why not"] {
        let mut bad = server.negotiation();
        let mut bytes = option_message(option::ABORT, payload);
        bytes.extend(option_message(option::GO, &info_data(b"", &[])));
        bytes.extend([0xff; 1000]);
        bad.wire().send(&bytes).unwrap();
        let replies = bad.replies(option::ABORT).unwrap();
        assert_eq!(replies.len(), 1);
        assert_eq!(replies[0].kind, reply_type::ACK);
        server.assert_closes(bad.wire());
    }
}

#[test]
fn n14_abort_without_waiting_for_the_answer() {
    let server = TestServer::disk(ServerConfig::default());
    for _ in 0..20 {
        let mut hasty = server.negotiation();
        hasty.wire().send(&option_message(option::ABORT, &[])).unwrap();
        drop(hasty);
    }
    server.assert_healthy();
}

#[test]
fn options_that_take_no_data_refuse_it() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.negotiation();
    for number in [option::LIST, option::STRUCTURED_REPLY] {
        for data in [&[0][..], &[0; 4096]] {
            assert_eq!(client.ask_one(number, data).unwrap().kind, reply_type::ERR_INVALID);
        }
    }
    // Refused means not agreed on: this client expects simple replies, and its decoder insists.
    assert_eq!(client.go(b"").unwrap().read(4096, 512).unwrap(), pattern(4096, 512));
}

#[test]
fn export_name_with_and_without_zeroes() {
    let server = TestServer::disk(ServerConfig::default());
    for (flags, zeroes) in [(0, true), (1, true), (2, false), (3, false)] {
        for structured in [false, true] {
            let mut negotiation = Negotiation::begin_with(server.wire(), flags).unwrap();
            if structured {
                negotiation.structured().unwrap();
            }
            let mut client = negotiation.export_name(b"disk", zeroes).unwrap();
            assert_eq!(client.size(), DISK_BYTES);
            assert_eq!(client.flags() & 0x80 != 0, structured, "DF needs structured replies");
            assert_eq!(client.read(8, 100).unwrap(), pattern(8, 100));
            client.leave().unwrap();
        }
    }
}

#[test]
fn structured_replies_can_be_switched_off() {
    let offer = Offer { structured_replies: false, ..Offer::default() };
    let config = ServerConfig { offer, ..ServerConfig::default() };
    let server = TestServer::disk(config);
    let mut client = server.negotiation();
    assert!(matches!(client.structured(), Err(ClientError::Refused(reply_type::ERR_UNSUP))));
    let mut client = client.go(b"").unwrap();
    assert_eq!(client.flags() & 0x80, 0);
    assert_eq!(client.read(8, 100).unwrap(), pattern(8, 100));
}

#[test]
fn a_list_of_many_exports_is_whole() {
    let names: Vec<String> = (0..300).map(|number| format!("export-{number:03}")).collect();
    let server = TestServer::of(names.iter().map(|name| memory(name, 1 << 20)).collect());
    let mut client = server.negotiation();
    for _ in 0..3 {
        let mut replies = client.ask(option::LIST, &[]).unwrap();
        assert_eq!(replies.pop().map(|last| (last.kind, last.data)), Some((reply_type::ACK, Vec::new())));
        let listed: Vec<_> = replies.iter().map(|reply| (reply.kind, reply.data.clone())).collect();
        let entry = |name: &String| [&10_u32.to_be_bytes()[..], name.as_bytes()].concat();
        let expected: Vec<_> = names.iter().map(|name| (reply_type::SERVER, entry(name))).collect();
        assert_eq!(listed, expected);
    }
    assert!(client.go(b"export-299").unwrap().read(0, 512).is_ok());
}

/// `INFO` promises what `GO` then gives, byte for byte.
#[test]
fn info_and_go_agree() {
    let server = TestServer::disk(ServerConfig::default());
    let wanted = [info::EXPORT, info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 77, u16::MAX];
    for name in [&b"disk"[..], b""] {
        for wanted in [&wanted[..], &[]] {
            let mut client = server.negotiation();
            client.structured().unwrap();
            let told = client.ask(option::INFO, &info_data(name, wanted)).unwrap();
            let given = client.ask(option::GO, &info_data(name, wanted)).unwrap();
            assert_eq!(told, given);
            assert_eq!(told.len(), if wanted.is_empty() { 2 } else { 5 });
            assert!(client.enter(&given).unwrap().read(0, 512).is_ok());
        }
    }
}

#[test]
fn the_default_export_tells_its_name_and_sizes() {
    let server = TestServer::of(vec![memory("first", 1 << 20), memory("second", 2 << 20)]);
    let mut client = server.negotiation();
    let told = client.ask(option::INFO, &info_data(b"", &[info::NAME, info::BLOCK_SIZE])).unwrap();
    let told: Vec<_> = told.into_iter().map(|reply| reply.data).collect();
    assert_eq!(told[0][..10], [&[0, 0][..], &(1_u64 << 20).to_be_bytes()].concat());
    assert_eq!(told[1], b"\0\x01first");
    let sizes = [1_u32, 4096, 32 << 20].map(u32::to_be_bytes).concat();
    assert_eq!(told[2], [&[0, 3][..], &sizes].concat());
    assert_eq!(client.go(b"second").unwrap().size(), 2 << 20);
}

/// What a client sends behind its last option, in the same segment, belongs to transmission.
#[test]
fn requests_right_behind_the_last_option_are_served() {
    let server = TestServer::disk(ServerConfig::default());
    let mut requests = request(0, command::READ, 1, 65_536, 512);
    requests.extend(request(0, command::WRITE, 2, 0, 9000));
    requests.extend([7; 9000]);
    requests.extend(request(0, command::READ, 3, 0, 9000));
    for cut in [0, 1, 27, 28, 28 + 28 + 100, requests.len()] {
        let mut negotiation = server.negotiation();
        let go = option_message(option::GO, &info_data(b"", &[]));
        negotiation.wire().send(&[&go, &requests[..cut]].concat()).unwrap();
        let replies = negotiation.replies(option::GO).unwrap();
        let mut client = negotiation.enter(&replies).unwrap();
        client.wire().send(&requests[cut..]).unwrap();
        for (command, cookie, offset, length) in
            [(command::READ, 1, 65_536, 512), (command::WRITE, 2, 0, 9000), (command::READ, 3, 0, 9000)]
        {
            client.expect(command, cookie, offset, length);
        }
        let mut replies: Vec<_> = (0..3).map(|_| client.reply().unwrap()).collect();
        replies.sort_by_key(|reply| reply.cookie);
        assert_eq!(replies[0].result, Ok(pattern(65_536, 512)));
        assert_eq!(replies[1].result, Ok(Vec::new()));
        // Write and read were in flight together: each byte is the old one or the new one.
        let seen = replies[2].result.clone().unwrap();
        assert!(
            seen.iter().zip(pattern(0, 9000)).all(|(&byte, old)| byte == 7 || byte == old),
            "cut at {cut}"
        );
        client.leave().unwrap();
    }
}

#[test]
fn everything_byte_by_byte() {
    let server = TestServer::disk(ServerConfig::default());
    for mut wire in [server.wire(), server.tcp()] {
        wire.receive(18).unwrap();
        let mut handshake = 3_u32.to_be_bytes().to_vec();
        handshake.extend(option_message(option::STRUCTURED_REPLY, &[]));
        handshake.extend(option_message(option::GO, &info_data(b"disk", &[])));
        wire.send_bytewise(&handshake).unwrap();
        // Two ACKs without data, and INFO_EXPORT between them.
        let replies = wire.receive(20 + 20 + 12 + 20).unwrap();
        assert_eq!(replies[20 + 12..20 + 20], [0, 0, 0, 3, 0, 0, 0, 12]);
        wire.send_bytewise(&[&request(0, command::WRITE, 9, 4096, 100)[..], &[5; 100]].concat()).unwrap();
        assert_eq!(
            wire.receive(16).unwrap(),
            [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &9_u64.to_be_bytes()].concat()
        );
        wire.send_bytewise(&request(0, command::READ, 10, 4096, 100)).unwrap();
        assert_eq!(wire.receive(20 + 8 + 100).unwrap()[28..], [5; 100]);
        wire.send_bytewise(&request(0, command::DISC, 0, 0, 0)).unwrap();
        assert!(wire.receive_to_end().unwrap().is_empty());
    }
}
