//! `BLOCK_STATUS`: row X10, and what is told of memory and files.

use std::fs::File;
use std::os::unix::fs::FileExt;

use fixtures::nbd::client::Client;
use fixtures::nbd::codec::{command, errno, flag};
use nbd_server::export::ExportInfo;
use nbd_server::image::{CacheMode, ImageOptions, open_image};
use nbd_server::server::ServerConfig;
use nbd_server::status::STATUS_EXTENTS_MAX;

use crate::exports::{memory, memory_with, pattern};
use crate::harness::TestServer;

const MIB: u64 = 1 << 20;
const HOLE: u64 = 3;

/// A client that has chosen the allocation.
fn client(server: &TestServer) -> Client {
    let mut negotiation = server.negotiation();
    negotiation.structured().expect("structured replies");
    assert_eq!(negotiation.choose_contexts(b"", &["base:allocation"]).expect("a choice").len(), 1);
    negotiation.go(b"").expect("the export")
}

/// Length and flags of the extents that one question finds.
fn ask(client: &mut Client, flags: u16, offset: u64, length: u32) -> Vec<(u64, u64)> {
    let mut told = client.block_status(flags, offset, length).expect("status");
    assert_eq!(told.len(), 1);
    told.remove(0).extents
}

/// All of them, neighbours joined, however many questions it takes.
fn map(client: &mut Client) -> Vec<(u64, u64)> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < client.size() {
        let length = u32::try_from(client.size() - at).unwrap_or(1 << 31);
        for (bytes, flags) in ask(client, 0, at, length) {
            at += bytes;
            match all.last_mut() {
                Some((last, same)) if *same == flags => *last += bytes,
                _ => all.push((bytes, flags)),
            }
        }
    }
    all
}

#[test]
fn x10_bad_questions() {
    let server = TestServer::of(vec![memory("disk", MIB)]);
    let mut client = client(&server);
    client.write(0, &pattern(0, 4096)).unwrap();
    for (flags, offset, length) in [
        (0, 0, 0),
        (flag::REQ_ONE, 0, 0),
        (0, MIB, 1),
        (0, MIB - 1, 2),
        (0, 0, u32::MAX),
        (0, u64::MAX, 1),
        (0, u64::MAX - 4095, 4096),
        (flag::DF, 0, 4096),
        (flag::NO_HOLE, 0, 4096),
        (32, 0, 4096),
    ] {
        let answer = client.call(flags, command::BLOCK_STATUS, offset, length).unwrap();
        assert_eq!(answer, Err(errno::EINVAL), "flags {flags}, {offset}+{length}");
    }
    assert_eq!(ask(&mut client, flag::FUA, 0, 65_536), [(65_536, 0)], "FUA is fine everywhere");
    assert_eq!(client.read(0, 4096).unwrap(), pattern(0, 4096), "in step");
    server.assert_healthy();
}

#[test]
fn x10_a_question_about_four_gigabytes() {
    let server = TestServer::of(vec![memory("large", 8 << 30)]);
    let mut client = client(&server);
    // Fewer bytes may be told of than were asked about.
    assert_eq!(ask(&mut client, 0, 4096, u32::MAX), [((4 << 30) - 65_536, HOLE)]);
    client.write(6 << 30, &[1]).unwrap();
    assert_eq!(map(&mut client), [(6 << 30, HOLE), (65_536, 0), ((2 << 30) - 65_536, HOLE)]);
}

/// A disk with more extents than a reply may have: answers end early, and go on where they ended.
#[test]
fn x10_more_extents_than_a_reply_may_have() {
    let extents = STATUS_EXTENTS_MAX as u64 + 1000;
    let server = TestServer::of(vec![memory("striped", extents * 65_536)]);
    let mut client = client(&server);
    for number in (0..extents).step_by(2) {
        client.write(number * 65_536, &[1]).unwrap();
    }
    let first = ask(&mut client, 0, 0, u32::try_from(extents * 65_536).unwrap());
    assert_eq!(first.len(), STATUS_EXTENTS_MAX);
    let expected: Vec<_> =
        (0..extents).map(|number| (65_536, if number.is_multiple_of(2) { 0 } else { HOLE })).collect();
    assert_eq!(map(&mut client), expected);
    server.assert_healthy();
}

#[test]
fn one_extent_is_cut_at_the_end_of_the_question() {
    let server = TestServer::of(vec![memory("disk", MIB)]);
    let mut client = client(&server);
    client.write(131_072, &[1]).unwrap();
    for (offset, length, expected) in [
        (0, 1 << 20, (131_072, HOLE)),
        (131_072, 8, (8, 0)),
        (131_071, 4096, (1, HOLE)),
        (131_073, 100_000, (65_535, 0)),
        (MIB - 1, 1, (1, HOLE)),
    ] {
        let length = length.min(u32::try_from(MIB - offset).unwrap());
        assert_eq!(ask(&mut client, flag::REQ_ONE, offset, length), [expected], "{offset}+{length}");
    }
}

/// Extents are multiples of the smallest block where there is one.
#[test]
fn extents_keep_to_the_block_size() {
    let info = ExportInfo { block_minimum: 512, tells_allocation: true, ..ExportInfo::new("blocks", MIB) };
    let server = TestServer::of(vec![memory_with(info)]);
    let mut client = client(&server);
    client.write(65_536, &[1; 512]).unwrap();
    let told = ask(&mut client, 0, 512, 131_072);
    assert_eq!(told, [(65_024, HOLE), (65_536, 0), (512, HOLE)]);
    assert_eq!(client.call(0, command::BLOCK_STATUS, 1, 512).unwrap(), Err(errno::EINVAL));
}

#[test]
fn what_is_written_trimmed_and_zeroed_is_told_at_once() {
    let server = TestServer::of(vec![memory("disk", MIB)]);
    let mut client = client(&server);
    assert_eq!(map(&mut client), [(MIB, HOLE)]);
    client.write(65_536, &[7; 131_072]).unwrap();
    assert_eq!(map(&mut client), [(65_536, HOLE), (131_072, 0), (MIB - 196_608, HOLE)]);
    assert!(client.call(0, command::TRIM, 65_536, 65_536).unwrap().is_ok());
    assert_eq!(map(&mut client), [(131_072, HOLE), (65_536, 0), (MIB - 196_608, HOLE)]);
    assert!(client.call(flag::NO_HOLE, command::WRITE_ZEROES, 0, 1 << 20).unwrap().is_ok());
    assert_eq!(map(&mut client), [(MIB, 0)], "kept allocated");
    assert!(client.call(0, command::WRITE_ZEROES, 0, 1 << 20).unwrap().is_ok());
    assert_eq!(map(&mut client), [(MIB, HOLE)]);
}

/// A file that begins with a hole, has data in three places and ends with a hole.
fn sparse(dir: &std::path::Path, cache: CacheMode) -> nbd_server::image::Image {
    let path = dir.join("sparse.img");
    let file = File::create(&path).expect("a file");
    for at in [MIB, 3 * MIB, 5 * MIB] {
        file.write_all_at(&pattern(at, MIB as usize), at).expect("room");
    }
    file.set_len(8 * MIB).expect("room");
    file.sync_all().expect("a sync");
    let options = ImageOptions { path, name: "sparse".into(), read_only: false, cache, rotational: false };
    open_image(&options).expect("our own file")
}

#[test]
fn holes_of_a_file() {
    let server = TestServer::start(ServerConfig::default(), |dir| vec![sparse(dir, CacheMode::Writeback)]);
    let mut client = client(&server);
    let data = |at: u64| (MIB, if at.is_multiple_of(2) { HOLE } else { 0 });
    let expected: Vec<_> = (0..6).map(data).chain([(2 * MIB, HOLE)]).collect();
    assert_eq!(map(&mut client), expected);
    assert_eq!(ask(&mut client, 0, MIB + 100, 1000), [(1000, 0)]);
    assert_eq!(ask(&mut client, 0, MIB - 100, 1000), [(100, HOLE), (900, 0)]);
    assert_eq!(ask(&mut client, 0, 7 * MIB, 1 << 20), [(MIB, HOLE)], "up to the end");
    client.write(7 * MIB, &[1; 4096]).unwrap();
    assert_eq!(ask(&mut client, flag::REQ_ONE, 7 * MIB, 4096), [(4096, 0)], "what was answered is told");
    assert!(client.call(0, command::TRIM, 3 * MIB, 1 << 20).unwrap().is_ok());
    assert_eq!(ask(&mut client, flag::REQ_ONE, 2 * MIB, 3 << 20), [(3 * MIB, HOLE)]);
    assert_eq!(client.read(5 * MIB, 4096).unwrap(), pattern(5 * MIB, 4096));
}

/// A file's map takes few questions to the file system each: a reply may end early.
#[test]
fn a_file_with_very_many_holes() {
    let server = TestServer::start(ServerConfig::default(), |dir| {
        let path = dir.join("comb.img");
        let file = File::create(&path).unwrap();
        (0..500_u64).for_each(|at| file.write_all_at(&[1; 4096], at * 65_536).unwrap());
        file.set_len(500 * 65_536).unwrap();
        let options = ImageOptions {
            path,
            name: "comb".into(),
            read_only: true,
            cache: CacheMode::Writeback,
            rotational: false,
        };
        vec![open_image(&options).unwrap()]
    });
    let mut client = client(&server);
    let tooth = [(4096, 0), (61_440, HOLE)];
    assert_eq!(map(&mut client), tooth.repeat(500));
}
