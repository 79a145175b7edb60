//! Bit-rot in closed layers, at a replica and at its source: found, and repaired with what the other host has.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;

use crate::hosts::json;
use crate::place::Place;
use crate::tools::noise;

const SIZE: usize = 8 << 20;
const BLOCK: usize = 4096;
const CLUSTER: usize = 16 * BLOCK;
/// Bytes that are written at the beginning.
const WRITTEN: usize = 64 * BLOCK;

/// A host that is found at the same port after a restart.
fn place(name: &str) -> Place {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut place = Place::new();
    place.arguments = ["--pool-size", "64M", "--name", name, "--peer-listen", &free.to_string()]
        .map(str::to_owned)
        .to_vec();
    place
}

fn write(place: &Place, at: usize, bytes: &[u8]) {
    let mut client = place.client("web");
    client.write(at as u64, bytes).unwrap();
    client.flush().unwrap();
    client.leave().unwrap();
}

/// What the first snapshot has at a block.
fn block(number: usize) -> Vec<u8> {
    noise(1, WRITTEN)[number * BLOCK..][..BLOCK].to_vec()
}

/// Two hosts that know each other, not running; both have two snapshots of `web`, and A has written more since.
fn hosts() -> (Place, Place) {
    let (a, b) = (place("A"), place("B"));
    let (running_a, running_b) = (a.serve(), b.serve());
    a.ok(&format!("host pair {}", b.ok("host pair --new").trim()));
    a.ok(&format!("volume create web --size {SIZE}"));
    write(&a, 0, &noise(1, WRITTEN));
    a.ok("sync web --to B");
    write(&a, WRITTEN, &noise(2, CLUSTER));
    a.ok("sync web --to B");
    write(&a, SIZE - BLOCK, &noise(3, BLOCK));
    running_a.stop();
    running_b.stop();
    (a, b)
}

fn pool(place: &Place) -> Vec<u8> {
    fs::read(place.data().join("pool-0")).unwrap()
}

/// Flips a bit of a block, wherever it lies in the pool; where.
fn rot(place: &Place, content: &[u8]) -> usize {
    let all = pool(place);
    let blocks: Vec<usize> =
        (0..all.len()).step_by(BLOCK).filter(|at| all[*at..*at + BLOCK] == *content).collect();
    let [at] = blocks[..] else { panic!("the block lies at {blocks:?}") };
    let file = File::options().write(true).open(place.data().join("pool-0")).unwrap();
    file.write_all_at(&[content[77] ^ 8], (at + 77) as u64).unwrap();
    at
}

/// Its snapshots, oldest first: `web@…`.
fn snapshots(place: &Place) -> Vec<String> {
    let listed = place.ok("snapshot list web -o jsonl");
    let name = |line: &str| format!("web@{}", json(line)["name"].as_str().unwrap());
    listed.lines().map(name).collect()
}

fn assert_whole(a: &Place, b: &Place) {
    let mut expected = vec![0; SIZE];
    expected[..WRITTEN].copy_from_slice(&noise(1, WRITTEN));
    let names = snapshots(a);
    assert_eq!((names.len(), &names), (2, &snapshots(b)));
    for name in &names {
        assert!(a.content(name) == expected && b.content(name) == expected, "{name}");
        expected[WRITTEN..WRITTEN + CLUSTER].copy_from_slice(&noise(2, CLUSTER));
    }
    let newest = names.last().unwrap();
    let root = blake3::hash(&b.content(newest)).to_hex();
    assert!(b.ok("replica verify web").ends_with(&format!("  root {root}\n")));
    for place in [a, b] {
        assert!(place.ok("scrub").ends_with("2 snapshots ok\n"));
    }
}

#[test]
fn a_damaged_replica_is_repaired_from_its_source() {
    let (a, b) = hosts();
    // Two blocks of one cluster, and one of another; and one of the second snapshot's own.
    for number in [5, 7, 33] {
        rot(&b, &block(number));
    }
    rot(&b, &noise(2, CLUSTER)[..BLOCK]);
    let (running_a, running_b) = (a.serve(), b.serve());
    let (code, stdout, _) = b.ctl("scrub");
    assert_eq!(code, 8, "{stdout}");
    for damage in ["65536 bytes at 0\n", "65536 bytes at 131072\n", "65536 bytes at 262144\n"] {
        assert!(stdout.contains(&format!("  damaged: {damage}")), "{stdout}");
    }
    let (code, stdout, stderr) = b.ctl("replica verify web");
    assert!(code == 8 && stdout.contains("DAMAGED") && !stdout.contains("root"), "{stdout}{stderr}");
    assert!(stderr.contains("next:  blockctl replica verify NAME --repair"), "{stderr}");
    let said = b.ok("scrub --repair");
    assert!(said.contains("  repaired: 128 KiB from A\n"), "{said}");
    assert!(said.ends_with("2 snapshots ok, 192 KiB repaired\n"), "{said}");
    assert!(b.ok("events").contains("snapshot_repaired"), "it is told");
    assert_whole(&a, &b);
    running_b.stop();
    b.assert_sound();
    // It was made durable, and is in the file; also through the other command.
    rot(&b, &block(5));
    let running_b = b.serve();
    let said = json(&b.ok("replica verify web --repair=A -o json"));
    let facts = (&said["verdict"], &said["repair"]["repaired_bytes"], &said["repair"]["from"][0]);
    assert_eq!(facts, (&"sound".into(), &(CLUSTER as u64).into(), &"A".into()));
    assert_whole(&a, &b);
    running_a.stop();
    running_b.stop();
}

#[test]
fn a_damaged_source_is_repaired_from_its_replica() {
    let (a, b) = hosts();
    let at = rot(&a, &block(9));
    let (running_a, running_b) = (a.serve(), b.serve());
    assert_eq!(a.ctl("scrub").0, 8);
    assert_ne!(a.client("web").read(9 * BLOCK as u64, BLOCK as u32).unwrap(), block(9));
    let said = a.ok("scrub web --repair");
    assert!(said.contains("  repaired: 64 KiB from B\n"), "{said}");
    assert_eq!(a.client("web").read(9 * BLOCK as u64, BLOCK as u32).unwrap(), block(9));
    assert_eq!(pool(&a)[at..at + BLOCK], block(9));
    assert_whole(&a, &b);
    // What was written since the last snapshot has no hash, and was not touched.
    assert_eq!(a.client("web").read((SIZE - BLOCK) as u64, BLOCK as u32).unwrap(), noise(3, BLOCK));
    running_a.stop();
    running_b.stop();
    a.assert_sound();
}

#[test]
fn what_is_damaged_on_both_sides_is_said_and_left_alone() {
    let (a, b) = hosts();
    rot(&a, &block(5));
    rot(&b, &block(5));
    // Another cluster is sound at A.
    let repairable = rot(&b, &block(40));
    let before = pool(&b);
    let (running_a, running_b) = (a.serve(), b.serve());
    let (code, stdout, _) = b.ctl("scrub --repair");
    assert_eq!(code, 8, "{stdout}");
    let why = "NOT REPAIRED: 65536 bytes at 0: A: it is damaged there, too\n";
    assert!(stdout.contains(why) && stdout.contains("  repaired: 64 KiB from A\n"), "{stdout}");
    let (code, stdout, _) = b.ctl("replica verify web --repair");
    assert!(code == 8 && stdout.contains(why), "{code} {stdout}");
    let (code, stdout, _) = a.ctl("scrub --repair=B -o jsonl");
    assert_eq!(code, 8, "{stdout}");
    let line = stdout.lines().find(|line| line.contains("failed")).unwrap();
    assert_eq!(json(line)["repair"]["failed"][0]["reason"], "B: it is damaged there, too");
    // Nobody, nobody who is trusted, nobody who answers.
    assert!(b.not_ok("scrub --repair=C", 3).contains("there is no paired host C"));
    running_a.stop();
    let (code, stdout, _) = b.ctl("scrub --repair");
    assert!(code == 8 && stdout.contains("NOT REPAIRED: 65536 bytes at 0: A: "), "{code} {stdout}");
    b.ok("host trust A --revoke");
    assert_eq!(b.ctl("scrub --repair=A").0, 5);
    let (code, stdout, _) = b.ctl("scrub --repair");
    assert!(code == 8 && stdout.contains("no paired host is known to have it"), "{code} {stdout}");
    running_b.stop();
    let mut expected = before;
    expected[repairable..repairable + BLOCK].copy_from_slice(&block(40));
    assert!(pool(&b) == expected, "something else was written");
}
