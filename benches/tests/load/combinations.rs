//! Every kind of load on a real server: what we count is what the server has counted.

use std::time::Duration;

use benches::load::{Pattern, Times, Workload};
use nbd_server::registry::Class;

use crate::server::{DISK_BYTES, SHORT, TestServer};

const BLOCK: u32 = 4096;

fn workload(pattern: Pattern, depth: u32, connections: u32) -> Workload {
    Workload { pattern, block_bytes: BLOCK, depth, connections, flush_every: None, seed: 11 }
}

/// Reads, writes and flushes, and bytes of both, that the server has answered; no errors.
#[track_caller]
fn served(server: &TestServer, export: &str) -> [u64; 5] {
    let counts = server.counts(export);
    assert_eq!(counts.errors, 0);
    let of = |class: Class| counts.latencies[class as usize].count();
    let [read, write, flush] = [Class::Read, Class::Write, Class::Flush].map(of);
    assert_eq!(counts.requests(), read + write + flush, "nothing else was asked for");
    [read, write, flush, counts.read_bytes, counts.written_bytes]
}

/// Runs the load, and holds what it counts against what the server has counted meanwhile.
#[track_caller]
fn check(server: &TestServer, export: &str, simple: bool, workload: Workload) {
    let before = served(server, export);
    let report = server.load(&server.target(export, simple), workload, SHORT);
    let report = report.unwrap_or_else(|trouble| panic!("{workload:?}, simple: {simple}: {trouble}"));
    let after = served(server, export);
    let (ios, flushes) = (report.measurement.ios, report.measurement.flushes);
    let (reads, writes) = if workload.pattern.writes() { (0, ios) } else { (ios, 0) };
    let bytes = |requests: u64| requests * u64::from(BLOCK);
    let meanwhile: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    assert_eq!(meanwhile, [reads, writes, flushes, bytes(reads), bytes(writes)], "{workload:?}");
    assert_eq!(report.structured, !simple);
    let Workload { depth, connections, .. } = workload;
    // A flush after so many writes of a connection, and what each has written since.
    let every = workload.flush_every.map_or(0, u64::from);
    assert!(flushes * every <= ios && (flushes == 0 || every > 0), "{report}");
    assert!(every == 0 || ios <= (flushes + u64::from(connections)) * every, "{report}");
    assert!(
        ios + flushes >= u64::from(depth * connections),
        "all slots of all connections were used: {report}"
    );
    let measured = report.measurement;
    assert!(measured.p50_us <= measured.p99_us && measured.p99_us <= measured.p999_us, "{report}");
    assert!(measured.p999_us <= measured.max_us && measured.max_us / 1e6 <= report.seconds, "{report}");
}

#[test]
fn reads_of_all_kinds_are_counted_as_the_server_counts_them() {
    let server = TestServer::start();
    for simple in [false, true] {
        for pattern in [Pattern::RandRead, Pattern::Read] {
            for (depth, connections) in [(1, 1), (64, 1), (1, 3), (64, 3)] {
                check(&server, "file", simple, workload(pattern, depth, connections));
                check(&server, "holes", simple, workload(pattern, depth, connections));
            }
        }
    }
}

#[test]
fn writes_and_flushes_of_all_kinds_are_counted_as_the_server_counts_them() {
    let server = TestServer::start();
    for simple in [false, true] {
        for pattern in [Pattern::RandWrite, Pattern::Write] {
            for (depth, connections) in [(1, 1), (64, 1), (1, 3), (64, 3)] {
                for flush_every in [None, Some(1), Some(7)] {
                    let workload = Workload { flush_every, ..workload(pattern, depth, connections) };
                    check(&server, "file", simple, workload);
                }
            }
        }
    }
}

/// A block is what it was, or the noise of the load: nothing lies between or beside.
#[test]
fn what_is_written_lies_where_it_belongs() {
    let server = TestServer::start();
    let target = server.target("file", false);
    let workload = Workload { block_bytes: 24 << 10, ..workload(Pattern::RandWrite, 16, 2) };
    server.load(&target, workload, SHORT).unwrap();
    let bytes = server.bytes();
    let (old, new): (Vec<&[u8]>, Vec<&[u8]>) =
        bytes.chunks(workload.block_bytes as usize).partition(|block| block.iter().all(|&byte| byte == 0xA5));
    assert_eq!(bytes.len() as u64, DISK_BYTES);
    assert!(!new.is_empty() && new.iter().all(|block| *block == new[0]), "one noise, in whole blocks");
    let tail = DISK_BYTES as usize % workload.block_bytes as usize;
    assert_eq!(
        old.last().map(|block| block.len()),
        Some(tail),
        "the part of a block at the end is left alone"
    );
}

/// More in one send than a socket holds, and in one reply than is received at once.
#[test]
fn large_requests_go_through_in_parts() {
    let server = TestServer::start();
    for pattern in [Pattern::Read, Pattern::Write] {
        for simple in [false, true] {
            let workload = Workload { block_bytes: 1 << 20, ..workload(pattern, 8, 2) };
            let report = server.load(&server.target("file", simple), workload, SHORT).unwrap();
            assert!(report.measurement.ios >= 16, "{report}");
        }
    }
}

#[test]
fn the_warm_up_is_not_counted() {
    let server = TestServer::start();
    let times = Times { ramp: Duration::from_millis(200), ..SHORT };
    let report =
        server.load(&server.target("file", false), workload(Pattern::RandRead, 4, 1), times).unwrap();
    let [reads, ..] = served(&server, "file");
    assert!(report.measurement.ios < reads, "{} of {reads}", report.measurement.ios);
}

#[test]
fn what_the_server_does_not_have_is_told() {
    let server = TestServer::start();
    let why = |export: &str, pattern| {
        server.load(&server.target(export, false), workload(pattern, 1, 1), SHORT).unwrap_err().to_string()
    };
    assert!(why("nonsense", Pattern::Read).contains("0x80000006"), "{}", why("nonsense", Pattern::Read));
    assert!(why("locked", Pattern::Write).contains("read-only"));
    let mut nobody = server.target("", false);
    nobody.socket.set_file_name("nobody");
    let trouble = server.load(&nobody, workload(Pattern::Read, 1, 1), SHORT).unwrap_err();
    assert!(trouble.why.contains("No such file"), "{trouble}");
}
