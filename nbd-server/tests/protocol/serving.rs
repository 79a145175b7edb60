//! What good clients rely on: data, holes, order, many connections, several reactors.

use fixtures::nbd::client::Client;
use fixtures::nbd::codec::{Reply, command, flag};
use nbd_server::server::ServerConfig;

use crate::exports::{PIECE_BYTES, entries, file, gate, memory, pattern, scattered};
use crate::harness::{DISK_BYTES, TestServer};

const CHUNK: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

/// A read's whole reply.
fn read(client: &mut Client, flags: u16, offset: u64, length: u64) -> Reply {
    let cookie = client.submit(flags, command::READ, offset, length as u32).expect("the server reads");
    client.reply_to(cookie).expect("an answer")
}

#[test]
fn holes_are_told_without_df_and_filled_in_with_it() {
    let server = TestServer::of(vec![memory("sparse", 16 * MIB)]);
    let mut client = server.client();
    client.write(CHUNK, &pattern(CHUNK, CHUNK as usize)).unwrap();
    client.write(5 * CHUNK + 100, &[9; 10]).unwrap();
    let whole = read(&mut client, 0, 0, 8 * CHUNK);
    assert_eq!((whole.content_chunks, whole.holes), (5, 3), "hole, data, hole, data, hole");
    let flat = read(&mut client, flag::DF, 0, 8 * CHUNK);
    assert_eq!((flat.content_chunks, flat.holes), (1, 0), "DF: one piece");
    let simple = server.simple_client().read(0, 8 * CHUNK as u32).unwrap();
    let mut expected = vec![0; 8 * CHUNK as usize];
    expected[CHUNK as usize..2 * CHUNK as usize].copy_from_slice(&pattern(CHUNK, CHUNK as usize));
    expected[5 * CHUNK as usize + 100..][..10].fill(9);
    for data in [whole.result.unwrap(), flat.result.unwrap(), simple] {
        assert!(data == expected, "holes are zeroes");
    }
}

#[test]
fn holes_at_odd_places() {
    let server = TestServer::of(vec![memory("sparse", MIB)]);
    let mut client = server.client();
    client.write(3 * CHUNK, &pattern(3 * CHUNK, CHUNK as usize)).unwrap();
    for (offset, length, chunks) in [
        (0, 1, 1),
        (1, 4095, 1),
        (3 * CHUNK - 1, 2, 2),
        (4 * CHUNK - 1, 2, 2),
        (3 * CHUNK - 7, CHUNK + 14, 3),
        (MIB - 1, 1, 1),
    ] {
        let holes = read(&mut client, 0, offset, length);
        assert_eq!(holes.content_chunks, chunks, "{offset}+{length}");
        let flat = read(&mut client, flag::DF, offset, length);
        assert_eq!((flat.content_chunks, flat.holes), (1, 0));
        assert_eq!(holes.result, flat.result);
    }
    assert!(client.call(0, command::TRIM, 3 * CHUNK, CHUNK as u32).unwrap().is_ok());
    assert_eq!(read(&mut client, 0, 0, MIB).holes, 1, "one hole after the trim");
    assert!(client.call(flag::NO_HOLE, command::WRITE_ZEROES, 0, MIB as u32).unwrap().is_ok());
    let kept = read(&mut client, 0, 0, MIB);
    assert_eq!((kept.holes, kept.result), (0, Ok(vec![0; MIB as usize])), "NO_HOLE keeps it allocated");
}

/// What a store finds in many places is one reply in every form; with DF, and without holes, one chunk.
#[test]
fn a_read_that_was_gathered_from_pieces() {
    let server = TestServer::of(vec![scattered("scattered", 16 * MIB)]);
    let (mut client, mut simple) = (server.client(), server.simple_client());
    // The last one has more pieces than one vectored send takes.
    for length in [1, 999, 1000, 1001, 7000, 2 * MIB] {
        for flags in [0, flag::DF] {
            let reply = read(&mut client, flags, 3, length);
            assert_eq!((reply.content_chunks, reply.holes), (1, 0), "{length} bytes");
            assert!(reply.result.unwrap() == pattern(3, length as usize));
        }
        assert!(simple.read(3, length as u32).unwrap() == pattern(3, length as usize));
    }
    let mut expected = pattern(8 * MIB, 7 * PIECE_BYTES);
    for hole in [1, 4] {
        expected[hole * PIECE_BYTES..][..PIECE_BYTES].fill(0);
    }
    let length = expected.len() as u32;
    let sparse = read(&mut client, 0, 8 * MIB, u64::from(length));
    assert_eq!((sparse.content_chunks, sparse.holes), (5, 2), "neighbouring data are one chunk");
    let flat = read(&mut client, flag::DF, 8 * MIB, u64::from(length));
    assert_eq!((flat.content_chunks, flat.holes), (1, 0));
    for data in [sparse.result.unwrap(), flat.result.unwrap(), simple.read(8 * MIB, length).unwrap()] {
        assert!(data == expected);
    }
}

/// More pieces than one vectored send takes.
#[test]
fn a_read_of_very_many_pieces() {
    let server = TestServer::of(vec![memory("sparse", 32 * MIB), memory("other", MIB)]);
    let mut client = server.client();
    for chunk in (0..512).step_by(2) {
        client.write(chunk * CHUNK, &pattern(chunk * CHUNK, CHUNK as usize)).unwrap();
    }
    let cookies: Vec<u64> = (0..4).map(|_| client.submit(0, command::READ, 0, 32 << 20).unwrap()).collect();
    for cookie in cookies {
        let reply = client.reply_to(cookie).unwrap();
        assert_eq!((reply.content_chunks, reply.holes), (512, 256));
        let data = reply.result.unwrap();
        for (at, piece) in (0..).step_by(CHUNK as usize).zip(data.chunks(CHUNK as usize)) {
            let expected = if (at / CHUNK).is_multiple_of(2) {
                pattern(at, CHUNK as usize)
            } else {
                vec![0; CHUNK as usize]
            };
            assert!(piece == expected, "at {at}");
        }
    }
}

#[test]
fn reads_and_writes_of_the_maximum() {
    let server = TestServer::start(ServerConfig::default(), |dir| vec![file(dir, "disk", 40 << 20, false)]);
    let length = 32_u64 << 20;
    for mut client in [server.client(), server.simple_client()] {
        for offset in [0, 1, 8 * MIB] {
            let data = client.read(offset, length as u32).unwrap();
            assert!(data == pattern(offset, length as usize), "read at {offset}");
        }
    }
    let mut client = server.client();
    client.write(12_345, &pattern(0, length as usize)).unwrap();
    assert!(client.read(12_345, length as u32).unwrap() == pattern(0, length as usize));
    assert_eq!(client.read(0, 12_345).unwrap(), pattern(0, 12_345), "nothing before it");
}

/// More payload than one connection may hold: the server must go on as replies are read.
#[test]
fn sixteen_large_writes_and_reads_interleaved() {
    let server = TestServer::start(ServerConfig::default(), |dir| vec![file(dir, "disk", 64 << 20, false)]);
    let mut client = server.client();
    let length = 2 * MIB;
    let mut bytes = Vec::new();
    let (mut reads, mut writes) = (Vec::new(), Vec::new());
    for turn in 0..16 {
        // Reads see the first half of the disk, writes change the second.
        let (read_at, write_at) = (turn * length, (16 + turn) * length);
        let (cookie, header) = client.prepare(0, command::WRITE, write_at, length as u32);
        bytes.extend(header);
        bytes.extend(pattern(turn * 1000, length as usize));
        writes.push(cookie);
        let (cookie, header) = client.prepare(0, command::READ, read_at, length as u32);
        bytes.extend(header);
        reads.push((cookie, read_at));
    }
    let mut sender = client.wire().try_clone().unwrap();
    let sending = std::thread::spawn(move || sender.send(&bytes));
    for _ in 0..32 {
        let reply = client.reply().unwrap();
        let data = reply.result.unwrap();
        match reads.iter().find(|(cookie, _)| *cookie == reply.cookie) {
            Some(&(_, offset)) => assert!(data == pattern(offset, length as usize), "read at {offset}"),
            None => assert!(writes.contains(&reply.cookie) && data.is_empty()),
        }
    }
    sending.join().unwrap().unwrap();
    for turn in 0..16 {
        let data = client.read((16 + turn) * length, length as u32).unwrap();
        assert!(data == pattern(turn * 1000, length as usize), "write {turn}");
    }
}

#[test]
fn a_thousand_small_requests_at_once() {
    let server = TestServer::disk(ServerConfig::default());
    for mut client in [server.client(), server.simple_client()] {
        let mut bytes = Vec::new();
        for turn in 0..1000 {
            bytes.extend(client.prepare(0, command::READ, turn * 8 + 3, 17).1);
        }
        let mut sender = client.wire().try_clone().unwrap();
        let sending = std::thread::spawn(move || sender.send(&bytes));
        for _ in 0..1000 {
            let reply = client.reply().unwrap();
            assert_eq!(reply.result, Ok(pattern((reply.cookie - 1) * 8 + 3, 17)));
        }
        sending.join().unwrap().unwrap();
        client.leave().unwrap();
    }
}

/// Replies may overtake each other: each finds its own request.
#[test]
fn replies_out_of_order_carry_their_cookies() {
    let (image, _) = gate("gate", MIB);
    let server = TestServer::of(vec![image]);
    for mut client in [server.client(), server.simple_client()] {
        let sent: Vec<u64> =
            (0..100).map(|turn| client.submit(0, command::READ, turn * 512, 512).unwrap()).collect();
        client.submit(0, command::CACHE, 0, 512).unwrap();
        let replies: Vec<Reply> = (0..=100).map(|_| client.reply().unwrap()).collect();
        assert!(!replies.is_sorted_by_key(|reply| reply.cookie), "this test needs another order");
        for reply in replies {
            let at = reply.cookie - sent[0];
            let expected = if at < 100 { pattern(at * 512, 512) } else { Vec::new() };
            assert_eq!(reply.result, Ok(expected), "cookie {}", reply.cookie);
        }
        assert_eq!(client.unanswered(), 0);
    }
}

/// A flush of one connection reaches the export behind the writes of the others, which see one disk.
#[test]
fn a_flush_covers_the_writes_of_other_connections() {
    let server = TestServer::disk(ServerConfig::default());
    let (mut writer, mut flusher, mut reader) = (server.client(), server.client(), server.client());
    assert_eq!(writer.flags() & 0x100, 0x100, "CAN_MULTI_CONN is promised");
    for turn in 0..20 {
        writer.write(turn * 10_000, &[turn as u8; 10_000]).unwrap();
        flusher.flush().unwrap();
        assert_eq!(reader.read(turn * 10_000, 10_000).unwrap(), [turn as u8; 10_000]);
    }
    assert_eq!(std::fs::read(server.dir().join("disk.img")).unwrap()[190_000..200_000], [19; 10_000]);
}

#[test]
fn a_flush_reaches_the_export_after_answered_writes() {
    let (image, journal) = gate("gate", MIB);
    let server = TestServer::of(vec![image]);
    let (mut writer, mut flusher) = (server.client(), server.client());
    writer.submit_write(0, 512, &[1; 512]).unwrap();
    writer.submit(0, command::CACHE, 0, 512).unwrap();
    assert!(writer.reply().is_ok() && writer.reply().is_ok());
    let flush = flusher.submit(0, command::FLUSH, 4096, 4096).unwrap();
    crate::harness::eventually("the flush", || entries(&journal).len() == 3);
    assert_eq!(entries(&journal), ["write 512+512", "cache 0+512", "flush 0+0"]);
    assert!(writer.call(0, command::CACHE, 0, 512).unwrap().is_ok());
    assert!(flusher.reply_to(flush).unwrap().result.is_ok(), "its range is ignored");
}

#[test]
fn several_reactors_serve_their_own_exports() {
    let config = ServerConfig { reactors: 2, ..ServerConfig::default() };
    let names = ["a", "b", "c"];
    let mut server = TestServer::of_with(names.iter().map(|name| memory(name, MIB)).collect(), config);
    let mut clients: Vec<Client> = names.iter().cycle().take(12).map(|name| server.client_of(name)).collect();
    for (turn, client) in (0_u8..).zip(&mut clients) {
        client.write(u64::from(turn) * 4096, &[turn + 1; 4096]).unwrap();
    }
    for (turn, client) in (0..).zip(&mut clients) {
        let data = client.read(0, 12 * 4096).unwrap();
        for (block, data) in (0..).zip(data.chunks(4096)) {
            let own = block % 3 == turn % 3;
            assert_eq!(data, [if own { block as u8 + 1 } else { 0 }; 4096], "client {turn}, block {block}");
        }
    }
    drop(clients);
    server.begin_stop();
    let stats = server.wait_stopped().stats;
    assert_eq!((stats.connections, stats.requests, stats.abandoned), (12, 24, 0));
}

#[test]
fn more_reactors_than_exports() {
    let config = ServerConfig { reactors: 8, ..ServerConfig::default() };
    let server = TestServer::disk(config);
    server.assert_healthy();
}

#[test]
fn tcp_serves_as_unix_does() {
    let server = TestServer::disk(ServerConfig::default());
    let mut negotiation = fixtures::nbd::client::Negotiation::begin(server.tcp()).unwrap();
    negotiation.structured().unwrap();
    let mut client = negotiation.go(b"disk").unwrap();
    assert!(client.read(0, DISK_BYTES as u32).unwrap() == pattern(0, DISK_BYTES as usize));
    client.write(100, &pattern(0, 1 << 20)).unwrap();
    assert!(client.read(100, 1 << 20).unwrap() == pattern(0, 1 << 20));
    client.leave().unwrap();
}
