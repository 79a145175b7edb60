//! Block status of volumes and snapshots: what is allocated, and what has changed since a snapshot. It must be what
//! `blockctl snapshot diff` says.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use fixtures::nbd::client::{Client, ClientError, Negotiation, Wire};
use fixtures::nbd::codec::{command, errno, flag};

use crate::place::Place;
use crate::tools::{assert_same, noise, run, tool};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const SIZE: u64 = 64 * MIB;

/// Offset and length of what is marked, neighbours joined.
type Extents = Vec<(u64, u64)>;

fn add(extents: &mut Extents, offset: u64, length: u64) {
    match extents.last_mut() {
        Some((start, bytes)) if *start + *bytes == offset => *bytes += length,
        _ => extents.push((offset, length)),
    }
}

fn negotiation(place: &Place) -> Negotiation {
    let mut negotiation = Negotiation::begin(Wire::unix(&place.socket()).unwrap()).unwrap();
    negotiation.structured().unwrap();
    negotiation
}

/// A client that has chosen one context.
fn asking(place: &Place, export: &str, context: &str) -> Client {
    let mut negotiation = negotiation(place);
    let chosen = negotiation.choose_contexts(export.as_bytes(), &[context]).unwrap();
    assert_eq!(chosen, [(1, context.to_owned())], "{export}");
    negotiation.go(export.as_bytes()).unwrap()
}

/// Everything that is said of the whole export: offset, length and flags.
fn told(client: &mut Client, flags: u16) -> Vec<(u64, u64, u64)> {
    let (mut at, mut all) = (0, Vec::new());
    while at < client.size() {
        let length = (client.size() - at).min(1 << 30);
        for (bytes, said) in client.block_status(flags, at, length as u32).unwrap().remove(0).extents {
            all.push((at, bytes, said));
            at += bytes;
        }
    }
    all
}

/// What an export says has changed since a snapshot, in both ways to ask and under both names.
fn changed(place: &Place, export: &str, since: &str) -> Extents {
    let mut answers = Vec::new();
    for context in ["x-blockd:changed:", "qemu:dirty-bitmap:"] {
        for flags in [0, flag::REQ_ONE] {
            let mut client = asking(place, export, &format!("{context}{since}"));
            let mut extents = Extents::new();
            for (offset, length, said) in told(&mut client, flags) {
                assert!(said <= 1, "{export} since {since}: flags {said}");
                if said == 1 {
                    add(&mut extents, offset, length);
                }
            }
            client.leave().unwrap();
            answers.push(extents);
        }
    }
    let first = answers.remove(0);
    assert!(answers.iter().all(|answer| *answer == first), "{export} since {since}: {first:?}, {answers:?}");
    first
}

/// What `blockctl snapshot diff` says, data and zeroes alike.
fn diff(place: &Place, from: &str, to: &str) -> Extents {
    let said: serde_json::Value =
        serde_json::from_str(&place.ok(&format!("snapshot diff {from} {to} -o json"))).unwrap();
    let mut extents = Extents::new();
    for extent in said["extents"].as_array().unwrap() {
        add(&mut extents, extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
    }
    extents
}

/// Writes, trims and zeroes here and there, small and large, in place and not.
fn change(place: &Place, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut client = place.client("web");
    for step in 0..60 {
        let blocks = if rng.u8(0..8) == 0 { rng.u64(1..200) } else { rng.u64(1..6) };
        let at = rng.u64(0..SIZE / BLOCK - blocks) * BLOCK;
        let length = (blocks * BLOCK) as u32;
        match rng.u8(0..8) {
            0 => client.call(0, command::TRIM, at, length).unwrap().map(drop).unwrap(),
            1 => client.call(0, command::WRITE_ZEROES, at, length).unwrap().map(drop).unwrap(),
            2 => client.call(flag::NO_HOLE, command::WRITE_ZEROES, at, length).unwrap().map(drop).unwrap(),
            3 => client.write(at + 100, &noise(step, length as usize - 200)).unwrap(),
            _ => client.write(at, &noise(step, length as usize)).unwrap(),
        }
    }
    client.leave().unwrap();
}

#[test]
fn what_has_changed_is_what_the_diff_says() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok(&format!("volume create web --size {SIZE}"));
    for (seed, name) in (1..).zip(["a", "b", "c", "d"]) {
        change(&place, seed);
        place.ok(&format!("snapshot create web@{name}"));
    }
    change(&place, 5);
    // The live volume first: the snapshot that it is compared with must change nothing.
    let live = ["a", "b", "c", "d"].map(|since| (since, changed(&place, "web", since)));
    place.ok("snapshot create web@now");
    for (since, before) in &live {
        let expected = diff(&place, &format!("web@{since}"), "web@now");
        assert!(!expected.is_empty());
        assert_eq!(*before, expected, "before the cut, since {since}");
        assert_eq!(changed(&place, "web", since), expected, "after the cut, since {since}");
        assert_eq!(changed(&place, "web@now", since), expected, "the snapshot, since {since}");
    }
    assert_eq!(changed(&place, "web", "now"), []);
    for (of, since) in [("b", "a"), ("d", "a"), ("a", "d"), ("c", "b")] {
        let expected = diff(&place, &format!("web@{since}"), &format!("web@{of}"));
        assert_eq!(changed(&place, &format!("web@{of}"), since), expected, "{of} since {since}");
    }
    // Layers in between are merged, into each other and into the open one: nothing else has changed.
    for name in ["b", "now", "d"] {
        place.ok(&format!("snapshot delete web@{name}"));
        for (since, before) in live.iter().filter(|(since, _)| ["a", "c"].contains(since)) {
            assert_eq!(changed(&place, "web", since), *before, "{name} is deleted, since {since}");
        }
    }
    daemon.stop();
    let _daemon = place.serve();
    assert_eq!(changed(&place, "web", "a"), live[0].1, "after a restart");
}

/// Then the snapshot lies on a branch of its own.
#[test]
fn what_has_changed_since_a_snapshot_that_was_rolled_back_over() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok(&format!("volume create web --size {SIZE}"));
    for (seed, name) in (11..).zip(["a", "b"]) {
        change(&place, seed);
        place.ok(&format!("snapshot create web@{name}"));
    }
    place.ok("snapshot rollback web@a --yes");
    assert_eq!(changed(&place, "web", "a"), []);
    change(&place, 13);
    let live = changed(&place, "web", "b");
    place.ok("snapshot create web@now");
    assert_eq!(live, diff(&place, "web@b", "web@now"));
    assert_eq!(changed(&place, "web@b", "now"), diff(&place, "web@now", "web@b"));
}

#[test]
fn a_volume_that_has_grown_shows_what_was_written_there() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    let mut small = place.client("web");
    small.write(0, &[1; 8192]).unwrap();
    small.leave().unwrap();
    place.ok("snapshot create web@a");
    place.ok("volume resize web --size 3M");
    let mut client = place.client("web");
    client.write(2 * MIB, &[2; 12_288]).unwrap();
    client.call(0, command::TRIM, 2 * MIB, 4096).unwrap().unwrap();
    client.write(4096, &[3; 4096]).unwrap();
    client.leave().unwrap();
    let expected = [(4096, 4096), (2 * MIB + 4096, 8192)];
    assert_eq!(changed(&place, "web", "a"), expected);
    place.ok("snapshot create web@b");
    assert_eq!(diff(&place, "web@a", "web@b"), expected);
}

/// Every write that was answered before is told of, whatever happens to the layers meanwhile.
#[test]
fn answered_writes_are_told_of_while_snapshots_come_and_go() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok(&format!("volume create web --size {SIZE}"));
    change(&place, 21);
    place.ok("snapshot create web@a");
    let mut writer = place.client("web");
    let mut reader = asking(&place, "web", "x-blockd:changed:a");
    let mut written = BTreeSet::new();
    let mut rng = fastrand::Rng::with_seed(22);
    std::thread::scope(|scope| {
        let keeper = scope.spawn(|| {
            for round in 0..25 {
                place.ok(&format!("snapshot create web@t{round}"));
                if round >= 2 {
                    place.ok(&format!("snapshot delete web@t{}", round - 2));
                }
            }
        });
        while !keeper.is_finished() {
            let block = rng.u64(0..SIZE / BLOCK);
            writer.write(block * BLOCK, &[7; BLOCK as usize]).unwrap();
            written.insert(block);
            let mut found = BTreeSet::new();
            for (offset, length, _) in told(&mut reader, 0).into_iter().filter(|(.., said)| *said == 1) {
                found.extend(offset / BLOCK..(offset + length) / BLOCK);
            }
            assert_eq!(found, written, "after {} writes", written.len());
        }
    });
    assert!(written.len() > 10, "{} writes", written.len());
}

/// More than may read records at once, each about several snapshots.
#[test]
fn very_many_questions_at_once_get_their_answers() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok(&format!("volume create web --size {SIZE}"));
    let names: Vec<String> = (0..8).map(|number| format!("s{number}")).collect();
    for (seed, name) in (51..).zip(&names) {
        change(&place, seed);
        place.ok(&format!("snapshot create web@{name}"));
    }
    let contexts: Vec<String> = names.iter().map(|name| format!("x-blockd:changed:{name}")).collect();
    let contexts: Vec<&str> = contexts.iter().map(String::as_str).collect();
    let mut negotiation = negotiation(&place);
    assert_eq!(negotiation.choose_contexts(b"web", &contexts).unwrap().len(), 8);
    let mut client = negotiation.go(b"web").unwrap();
    let places: Vec<u64> = (0..200).map(|number| number * 43 * BLOCK).collect();
    let mut asked = Vec::new();
    for &at in &places {
        asked.push((client.submit(0, command::BLOCK_STATUS, at, 8 << 20).unwrap(), at));
    }
    let mut answers = std::collections::BTreeMap::new();
    for _ in &places {
        let mut reply = client.reply().unwrap();
        assert_eq!(reply.result, Ok(Vec::new()));
        reply.status.sort_unstable_by_key(|told| told.context);
        answers.insert(reply.cookie, reply.status);
    }
    for (cookie, at) in asked {
        assert_eq!(client.block_status(0, at, 8 << 20).unwrap(), answers[&cookie], "at {at}");
    }
}

#[test]
fn a_snapshot_that_is_deleted_ends_the_questions_about_it() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    place.ok("snapshot create web@a");
    place.ok("snapshot create web@b");
    let mut client = asking(&place, "web", "qemu:dirty-bitmap:a");
    let mut snapshot = asking(&place, "web@b", "qemu:dirty-bitmap:a");
    client.write(4096, &[1; 4096]).unwrap();
    assert_eq!(told(&mut client, 0), [(0, 4096, 0), (4096, 4096, 1), (8192, MIB - 8192, 0)]);
    assert_eq!(told(&mut snapshot, 0), [(0, MIB, 0)]);
    place.ok("snapshot delete web@a");
    // Another one of its name is another one.
    place.ok("snapshot create web@a");
    for client in [&mut client, &mut snapshot] {
        let refused = client.block_status(0, 0, 1 << 20);
        assert!(matches!(refused, Err(ClientError::Failed(errno::EINVAL))), "{refused:?}");
        assert!(client.read(0, 4096).is_ok(), "nothing else has ended");
    }
}

#[test]
fn contexts_are_those_of_the_volumes_snapshots() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    place.ok("volume create other --size 1M");
    let always = ["base:allocation", "qemu:allocation-depth"];
    let list = |export: &str, queries: &[&str]| {
        negotiation(&place).list_contexts(export.as_bytes(), queries).unwrap()
    };
    assert_eq!(list("web", &[]), always);
    place.ok("snapshot create web@a other@z");
    place.ok("snapshot create web@b");
    let of = |name: &str| [format!("x-blockd:changed:{name}"), format!("qemu:dirty-bitmap:{name}")];
    let all = |names: &[&str]| -> Vec<String> {
        always.iter().map(ToString::to_string).chain(names.iter().flat_map(|name| of(name))).collect()
    };
    assert_eq!(list("web", &[]), all(&["a", "b"]));
    assert_eq!(list("web@a", &[]), all(&["b"]));
    assert_eq!(list("other", &[]), all(&["z"]));
    assert_eq!(list("web:1", &[]), all(&["a", "b"]), "through a door");
    assert_eq!(list("web", &["qemu:dirty-bitmap:"]), ["qemu:dirty-bitmap:a", "qemu:dirty-bitmap:b"]);
    assert_eq!(list("web", &["x-blockd:"]), ["x-blockd:changed:a", "x-blockd:changed:b"]);
    place.ok("snapshot delete web@a");
    assert_eq!(list("web", &[]), all(&["b"]));
}

#[test]
fn allocation_and_depth() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok("volume create web --size 1M");
    let mut client = place.client("web");
    client.write(0, &[1; 8192]).unwrap();
    client.write(131_072, &[1; 65_536]).unwrap();
    place.ok("snapshot create web@a");
    client.write(4096, &[2; 4096]).unwrap();
    client.call(0, command::TRIM, 131_072, 4096).unwrap().unwrap();
    client.leave().unwrap();
    let said = |context: &str, export: &str| told(&mut asking(&place, export, context), 0);
    let (data, zero, hole) = (0, 2, 3);
    let rest = |at: u64, flags: u64| (at, MIB - at, flags);
    let allocation = [
        (0, 8192, data),
        // The open layer has a cluster there.
        (8192, 57_344, zero),
        (65_536, 65_536 + 4096, hole),
        (135_168, 61_440, data),
        rest(196_608, hole),
    ];
    assert_eq!(said("base:allocation", "web"), allocation);
    let depth = [
        (0, 4096, 2),
        (4096, 4096, 1),
        (8192, 122_880, 0),
        (131_072, 4096, 1),
        (135_168, 61_440, 2),
        rest(196_608, 0),
    ];
    assert_eq!(said("qemu:allocation-depth", "web"), depth);
    let snapshot = [(0, 8192, data), (8192, 122_880, hole), (131_072, 65_536, data), rest(196_608, hole)];
    assert_eq!(said("base:allocation", "web@a"), snapshot);
}

/// `nbdinfo` reads our diffs.
#[test]
fn nbdinfo_maps_what_has_changed() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok(&format!("volume create web --size {SIZE}"));
    change(&place, 31);
    place.ok("snapshot create web@a");
    change(&place, 32);
    place.ok("snapshot create web@b");
    let expected = diff(&place, "web@a", "web@b");
    for (export, context) in
        [("web", "qemu:dirty-bitmap:a"), ("web@b", "qemu:dirty-bitmap:a"), ("web", "x-blockd:changed:a")]
    {
        let map = format!("--map={context}");
        let said = run(tool("nbdinfo").args([&map, "--json", &place.uri(export)])).stdout;
        let said: serde_json::Value = serde_json::from_str(&said).unwrap();
        let mut extents = Extents::new();
        for extent in said.as_array().unwrap().iter().filter(|extent| extent["type"] == 1) {
            add(&mut extents, extent["offset"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        }
        assert_eq!(extents, expected, "{context} of {export}");
    }
    let json = run(tool("nbdinfo").args(["--json", &place.uri("web")])).stdout;
    for context in ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:a", "x-blockd:changed:b"] {
        assert!(json.contains(&format!("\"{context}\"")), "{context} in {json}");
    }
}

/// An incremental backup as QEMU's tools make it: the bitmap says what to copy onto the backup before.
#[test]
fn an_incremental_backup_through_qemu_is_the_snapshot() {
    let place = Place::new();
    let _daemon = place.serve();
    place.ok(&format!("volume create web --size {SIZE}"));
    change(&place, 41);
    place.ok("snapshot create web@a");
    let backup = place.path("backup.raw");
    let copy = |export: &str| {
        run(tool("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &place.uri(export)]).arg(&backup));
    };
    copy("web@a");
    change(&place, 42);
    place.ok("snapshot create web@b");
    change(&place, 43);
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=web@b,x-dirty-bitmap=qemu:dirty-bitmap:a",
        place.socket().display()
    );
    let said = run(tool("qemu-img").args(["map", "--output=json", "--image-opts", &options])).stdout;
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let file = std::fs::File::options().write(true).open(&backup).unwrap();
    let (mut client, mut copied) = (place.client("web@b"), Extents::new());
    // Of such a map QEMU calls "no data" what is dirty.
    for extent in said.as_array().unwrap().iter().filter(|extent| extent["data"] == false) {
        let (start, length) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
        file.write_all_at(&client.read(start, length as u32).unwrap(), start).unwrap();
        add(&mut copied, start, length);
    }
    assert_eq!(copied, diff(&place, "web@a", "web@b"));
    assert_same(&std::fs::read(&backup).unwrap(), &place.content("web@b"), "the backup");
}
