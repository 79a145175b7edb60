//! Bad requests: rows X1-X11, X14 and X15 (X12 and X13, which need limits, are in `limits`).

use fixtures::nbd::client::Client;
use fixtures::nbd::codec::{command, errno, flag, request};
use nbd_server::export::ExportInfo;
use nbd_server::server::ServerConfig;

use crate::exports::{file, gate, memory, memory_with, pattern};
use crate::harness::{DISK_BYTES, TestServer};

const MAX_PAYLOAD: u32 = 32 << 20;
/// Commands that this server knows and that take a range without payload.
const PLAIN: [u16; 4] = [command::READ, command::TRIM, command::CACHE, command::WRITE_ZEROES];
const BLOCK_STATUS: u16 = 7;

/// What the protocol wants for a range past the end.
fn past_the_end(command: u16) -> u32 {
    match command {
        command::WRITE | command::WRITE_ZEROES => errno::ENOSPC,
        _ => errno::EINVAL,
    }
}

/// Nothing was changed and the connection is in step.
#[track_caller]
fn assert_in_step(client: &mut Client, what: &str) {
    let data = client.read(4096, 4096).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(data == pattern(4096, 4096), "{what}: other bytes");
}

#[test]
fn x1_a_bad_request_magic_closes() {
    let server = TestServer::disk(ServerConfig::default());
    for bit in 0..32 {
        let mut bytes = request(0, command::WRITE, 1, 4096, 4096);
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes.resize(28 + 4096, 0);
        let mut bad = server.client();
        bad.wire().send(&bytes).unwrap();
        server.assert_closes(bad.wire());
    }
}

#[test]
fn x2_ranges_that_overflow() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.client();
    for offset in [u64::MAX, u64::MAX - 1, u64::MAX - 4095, 1 << 63, i64::MAX as u64, u64::MAX - (1 << 32)] {
        for length in [1, 4096, MAX_PAYLOAD] {
            for command in PLAIN {
                let answer = client.call(0, command, offset, length).unwrap();
                assert_eq!(answer, Err(past_the_end(command)), "command {command} at {offset}+{length}");
            }
        }
        let answer = client.call_write(0, offset, &[0xEE; 4096]).unwrap();
        assert_eq!(answer, Err(errno::ENOSPC), "write at {offset}");
        for command in [command::TRIM, command::CACHE, command::WRITE_ZEROES] {
            assert_eq!(client.call(0, command, offset, u32::MAX).unwrap(), Err(past_the_end(command)));
        }
    }
    assert_in_step(&mut client, "after overflows");
    server.assert_healthy();
}

#[test]
fn x3_ranges_past_the_end() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.client();
    for (offset, length) in
        [(DISK_BYTES, 1), (DISK_BYTES - 1, 2), (DISK_BYTES - 4096, 4097), (DISK_BYTES + 1, 1)]
    {
        for command in PLAIN {
            let answer = client.call(0, command, offset, length).unwrap();
            assert_eq!(answer, Err(past_the_end(command)), "command {command} at {offset}+{length}");
        }
        let answer = client.call_write(0, offset, &vec![0xEE; length as usize]).unwrap();
        assert_eq!(answer, Err(errno::ENOSPC), "write at {offset}+{length}");
    }
    assert_eq!(client.read(DISK_BYTES - 8192, 8192).unwrap(), pattern(DISK_BYTES - 8192, 8192), "untouched");
    assert!(client.write(DISK_BYTES - 1, &[1]).is_ok(), "the last byte belongs to the disk");
    assert_eq!(std::fs::metadata(server.dir().join("disk.img")).unwrap().len(), DISK_BYTES);
    server.assert_healthy();
}

#[test]
fn x4_requests_below_the_block_size() {
    let info = ExportInfo { block_minimum: 512, fast_zero: true, ..ExportInfo::new("blocks", 1 << 20) };
    let server = TestServer::of(vec![memory_with(info)]);
    let mut client = server.client();
    client.write(0, &pattern(0, 1 << 20)).unwrap();
    for (offset, length) in [(1, 512), (512, 1), (0, 513), (256, 256), (511, 1), (0, 511)] {
        for command in PLAIN {
            let answer = client.call(0, command, offset, length).unwrap();
            assert_eq!(answer, Err(errno::EINVAL), "command {command} at {offset}+{length}");
        }
        let answer = client.call_write(0, offset, &vec![0xEE; length as usize]).unwrap();
        assert_eq!(answer, Err(errno::EINVAL), "write at {offset}+{length}");
    }
    assert_eq!(client.read(512, 1024).unwrap(), pattern(512, 1024), "aligned ones are fine");
    assert_eq!(client.read(0, 1 << 20).unwrap(), pattern(0, 1 << 20), "untouched");
    server.assert_healthy();
}

#[test]
fn x5_reads_beyond_the_maximum() {
    let server = TestServer::of(vec![memory("large", 8 << 30)]);
    for mut client in [server.client(), server.simple_client()] {
        for length in [MAX_PAYLOAD + 1, 64 << 20, 1 << 31, u32::MAX] {
            for offset in [0, 4096, 1 << 32] {
                assert_eq!(client.call(0, command::READ, offset, length).unwrap(), Err(errno::EINVAL));
            }
        }
        assert_eq!(client.read(0, MAX_PAYLOAD).unwrap().len(), MAX_PAYLOAD as usize, "the maximum is fine");
    }
    server.assert_healthy();
}

#[test]
fn x6_writes_beyond_the_maximum_are_drained() {
    let server = TestServer::of(vec![memory("large", 128 << 20)]);
    let mut client = server.client();
    client.write(0, &pattern(0, 8192)).unwrap();
    let payload = vec![0xEE; 64 << 20];
    for length in [MAX_PAYLOAD as usize + 1, 33 << 20, 64 << 20] {
        assert_eq!(
            client.call_write(0, 0, &payload[..length]).unwrap(),
            Err(errno::EINVAL),
            "{length} bytes"
        );
        assert_in_step(&mut client, "behind the payload");
    }
    server.assert_healthy();
}

#[test]
fn x6_writes_beyond_all_measure_close_unread() {
    let server = TestServer::of(vec![memory("large", 8 << 30)]);
    for length in [(64 << 20) + 1, 1 << 31, u32::MAX] {
        let mut bad = server.client();
        bad.wire().send(&request(0, command::WRITE, 1, 0, length)).unwrap();
        server.assert_closes(bad.wire());
    }
}

/// A refused write's payload is read past, whatever it was refused for; a header hidden in it is data.
#[test]
fn x6_a_refused_write_leaves_the_stream_in_step() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.client();
    let trap = request(0, command::DISC, 0, 0, 0);
    for bytes in [1, 28, 4096, 100_000, 1 << 20] {
        let payload: Vec<u8> = trap.iter().copied().cycle().take(bytes).collect();
        assert_eq!(client.call_write(0, DISK_BYTES, &payload).unwrap(), Err(errno::ENOSPC));
        assert_eq!(client.call_write(flag::DF, 0, &payload).unwrap(), Err(errno::EINVAL));
        assert_in_step(&mut client, "behind the payload");
    }
}

#[test]
fn x7_requests_for_nothing_succeed() {
    let server = TestServer::disk(ServerConfig::default());
    for mut client in [server.client(), server.simple_client()] {
        for offset in [0, 1, DISK_BYTES] {
            for command in PLAIN {
                assert_eq!(client.call(0, command, offset, 0).unwrap(), Ok(Vec::new()), "command {command}");
                assert_eq!(client.call(flag::FUA, command, offset, 0).unwrap(), Ok(Vec::new()));
            }
            assert_eq!(client.call_write(0, offset, &[]).unwrap(), Ok(Vec::new()));
        }
        assert_eq!(client.call(0, command::FLUSH, 0, 0).unwrap(), Ok(Vec::new()));
        for command in PLAIN {
            let answer = client.call(0, command, DISK_BYTES + 1, 0).unwrap();
            assert!(answer.is_ok() || answer == Err(past_the_end(command)), "past the end: {answer:?}");
        }
        assert_in_step(&mut client, "after requests for nothing");
    }
    server.assert_healthy();
}

#[test]
fn x8_unknown_commands() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.client();
    for command in [8, 9, 100, 0x7fff, u16::MAX] {
        for (offset, length) in [(0, 0), (0, 4096), (u64::MAX, u32::MAX)] {
            assert_eq!(
                client.call(0, command, offset, length).unwrap(),
                Err(errno::EINVAL),
                "command {command}"
            );
        }
    }
    assert_in_step(&mut client, "after unknown commands");
    server.assert_healthy();
}

/// Which flags a command may carry besides FUA, with structured replies and fast zeroes offered.
fn allowed_flags(command: u16) -> u16 {
    match command {
        command::READ => flag::DF,
        command::WRITE_ZEROES => flag::NO_HOLE | flag::FAST_ZERO,
        _ => 0,
    }
}

#[test]
fn x8_unknown_and_misplaced_flags() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.client();
    for bit in 1..16 {
        let flags = 1 << bit;
        for command in [command::READ, command::FLUSH, command::TRIM, command::CACHE, command::WRITE_ZEROES] {
            if allowed_flags(command) & flags == 0 {
                let length = if command == command::FLUSH { 0 } else { 4096 };
                let answer = client.call(flags | flag::FUA, command, 4096, length).unwrap();
                assert_eq!(answer, Err(errno::EINVAL), "flag {bit} on command {command}");
            }
        }
        assert_eq!(client.call_write(flags, 4096, &[0xEE; 4096]).unwrap(), Err(errno::EINVAL), "flag {bit}");
    }
    assert_in_step(&mut client, "after bad flags");
    server.assert_healthy();
}

#[test]
fn x8_fua_is_accepted_on_every_command() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.client();
    for command in PLAIN {
        assert!(client.call(flag::FUA, command, 1 << 20, 4096).unwrap().is_ok(), "command {command}");
    }
    assert!(client.call(flag::FUA, command::FLUSH, 0, 0).unwrap().is_ok());
    assert!(client.call_write(flag::FUA, 1 << 20, &[1; 100]).unwrap().is_ok());
    assert_in_step(&mut client, "after FUA");
}

#[test]
fn x9_a_read_only_export_refuses_changes() {
    let server =
        TestServer::start(ServerConfig::default(), |dir| vec![file(dir, "disk", DISK_BYTES as usize, true)]);
    let mut client = server.client();
    assert_eq!(client.flags() & 0b10_0110_0010, 0b10, "READ_ONLY without TRIM and WRITE_ZEROES");
    for (offset, length) in [(0, 4096), (1, 1), (DISK_BYTES, 4096)] {
        for command in [command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(client.call(0, command, offset, length).unwrap(), Err(errno::EPERM));
        }
        let answer = client.call_write(flag::FUA, offset, &vec![0xEE; length as usize]).unwrap();
        assert_eq!(answer, Err(errno::EPERM));
    }
    assert!(client.flush().is_ok());
    assert!(client.call(0, command::CACHE, 0, 4096).unwrap().is_ok());
    assert_eq!(client.read(0, 1 << 20).unwrap(), pattern(0, 1 << 20));
    assert!(std::fs::read(server.dir().join("disk.img")).unwrap() == pattern(0, DISK_BYTES as usize));
    server.assert_healthy();
}

#[test]
fn x10_block_status_without_contexts() {
    let server = TestServer::disk(ServerConfig::default());
    for mut client in [server.client(), server.simple_client()] {
        for length in [0, 1, 4096, u32::MAX] {
            for flags in [0, 8] {
                assert_eq!(client.call(flags, BLOCK_STATUS, 0, length).unwrap(), Err(errno::EINVAL));
            }
        }
        assert_in_step(&mut client, "after BLOCK_STATUS");
    }
    server.assert_healthy();
}

/// The gate holds both until they are certainly in flight together.
#[test]
fn x11_one_cookie_twice_in_flight() {
    let (image, _) = gate("gate", 1 << 20);
    let server = TestServer::of(vec![image]);
    let mut client = server.client();
    for _ in 0..2 {
        client.expect(command::READ, 42, 4096, 512);
        client.wire().send(&request(0, command::READ, 42, 4096, 512)).unwrap();
    }
    let open = client.submit(0, command::CACHE, 0, 4096).unwrap();
    for _ in 0..3 {
        let reply = client.reply().unwrap();
        let expected = if reply.cookie == open { Vec::new() } else { pattern(4096, 512) };
        assert_eq!(reply.result, Ok(expected));
    }
    assert_eq!(client.unanswered(), 0);
    client.leave().unwrap();
}

#[test]
fn x11_one_cookie_on_many_commands() {
    let server = TestServer::disk(ServerConfig::default());
    let mut client = server.simple_client();
    let mut bytes = Vec::new();
    for _ in 0..100 {
        client.expect(command::FLUSH, 7, 0, 0);
        bytes.extend(request(0, command::FLUSH, 7, 0, 0));
    }
    client.wire().send(&bytes).unwrap();
    for _ in 0..100 {
        assert_eq!(client.reply_to(7).unwrap().result, Ok(Vec::new()));
    }
    client.leave().unwrap();
    server.assert_healthy();
}

#[test]
fn x14_data_after_goodbye_are_ignored() {
    let server = TestServer::disk(ServerConfig::default());
    let mut bad = server.client();
    let (cookie, mut bytes) = bad.prepare(0, command::READ, 4096, 512);
    bytes.extend(request(0, command::DISC, 0, 0, 0));
    bytes.extend(request(0, command::WRITE, 9, 4096, 4096));
    bytes.extend([0xEE; 4096]);
    bytes.extend(request(0, command::READ, 10, 0, 4096));
    bad.wire().send(&bytes).unwrap();
    assert_eq!(bad.reply_to(cookie).unwrap().result, Ok(pattern(4096, 512)), "what came before is finished");
    server.assert_closes(bad.wire());
}

/// What is in flight at a goodbye is answered before the close.
#[test]
fn x14_goodbye_waits_for_what_is_in_flight() {
    let (image, journal) = gate("gate", 1 << 20);
    let server = TestServer::of(vec![image]);
    let mut leaving = server.client();
    let (cookie, mut bytes) = leaving.prepare(0, command::READ, 8192, 512);
    bytes.extend(request(0, command::DISC, 0, 0, 0));
    leaving.wire().send(&bytes).unwrap();
    crate::harness::eventually("the read", || crate::exports::entries(&journal).len() == 1);
    let mut other = server.client();
    assert!(other.call(0, command::CACHE, 0, 512).unwrap().is_ok());
    assert_eq!(leaving.reply_to(cookie).unwrap().result, Ok(pattern(8192, 512)));
    assert!(leaving.wire().receive_to_end().unwrap().is_empty());
}

#[test]
fn x15_flags_that_were_not_offered() {
    let server = TestServer::of(vec![memory_with(ExportInfo::new("plain", 1 << 20))]);
    let mut client = server.simple_client();
    assert_eq!(client.flags() & 0x880, 0, "neither DF nor FAST_ZERO");
    assert_eq!(client.call(flag::DF, command::READ, 0, 512).unwrap(), Err(errno::EINVAL));
    let zeroes = command::WRITE_ZEROES;
    assert_eq!(client.call(flag::FAST_ZERO, zeroes, 0, 512).unwrap(), Err(errno::EINVAL));
    assert_eq!(client.call(flag::FAST_ZERO | flag::NO_HOLE, zeroes, 0, 512).unwrap(), Err(errno::EINVAL));
    assert!(client.call(flag::NO_HOLE, zeroes, 0, 512).unwrap().is_ok(), "comes with WRITE_ZEROES");
    assert!(server.client().call(flag::DF, command::READ, 0, 512).unwrap().is_ok(), "offered to this one");
    server.assert_healthy();
}
