//! Snapshots, clones and rollbacks: whose content is whose.

use crate::place::Place;
use crate::tools::assert_same;

const BLOCK: usize = 4096;

#[test]
fn a_clone_and_its_origin_do_not_see_each_other() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 2M");
    let mut origin = place.client("web");
    origin.write(0, &[1; 256 << 10]).unwrap();
    place.ok("snapshot create web@a");
    place.ok("clone web@a copy");
    let mut copy = place.client("copy");
    assert_eq!(copy.read(0, 256 << 10).unwrap(), vec![1; 256 << 10]);
    copy.write(4096, &[2; 4096]).unwrap();
    origin.write(8192, &[3; 4096]).unwrap();
    let blocks = |tags: [u8; 4]| tags.map(|tag| [tag; BLOCK]).concat();
    let check = |place: &Place| {
        for (export, tags) in [("web", [1, 1, 3, 1]), ("copy", [1, 2, 1, 1]), ("web@a", [1; 4])] {
            assert_same(&place.content(export)[..4 * BLOCK], &blocks(tags), export);
        }
    };
    check(&place);
    // The chain below the clone outlives the snapshot's name.
    place.not_ok("volume delete web --yes", 4);
    copy.flush().unwrap();
    origin.flush().unwrap();
    daemon.kill();
    let _daemon = place.serve();
    check(&place);
}

#[test]
fn a_rollback_brings_the_content_back() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 1M");
    let mut client = place.client("web");
    for (tag, name) in [(1, "a"), (2, "b"), (3, "")] {
        client.write(u64::from(tag) * 8192, &[tag; BLOCK]).unwrap();
        client.write(0, &[tag; BLOCK]).unwrap();
        if !name.is_empty() {
            place.ok(&format!("snapshot create web@{name}"));
        }
    }
    client.leave().unwrap();
    let (first, second) = (place.content("web@a"), place.content("web@b"));
    assert!(first[0] == 1 && second[0] == 2 && first != second);
    place.ok("snapshot rollback web@a --yes");
    assert_same(&place.content("web"), &first, "rolled back");
    assert_same(&place.content("web@b"), &second, "a later snapshot stays");
    place.client("web").write(0, &[7; BLOCK]).unwrap();
    assert_same(&place.content("web@a"), &first, "the snapshot after a write");
    daemon.stop();
    let _daemon = place.serve();
    assert_eq!(place.content("web")[0], 7);
    assert_same(&place.content("web")[BLOCK..], &first[BLOCK..], "the rest of it");
}

/// Each step writes one block and takes a snapshot; then some are deleted, so that layers are merged.
#[test]
fn three_hundred_snapshots_in_a_row() {
    const SNAPSHOTS: usize = 300;
    const BLOCKS: usize = 64;
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 256K");
    let mut rng = fastrand::Rng::with_seed(3);
    let mut client = place.client("web");
    let mut model = vec![0u8; BLOCKS * BLOCK];
    let mut taken = Vec::new();
    for number in 0..SNAPSHOTS {
        let (at, tag) = (rng.usize(0..BLOCKS) * BLOCK, rng.u8(1..));
        client.write(at as u64, &[tag; BLOCK]).unwrap();
        model[at..at + BLOCK].fill(tag);
        let name = format!("web@s{number}");
        place.ok(&format!("snapshot create {name}"));
        taken.push((name, model.clone()));
    }
    client.leave().unwrap();
    let check = |taken: &[(String, Vec<u8>)]| {
        taken.iter().for_each(|(name, expected)| assert_same(&place.content(name), expected, name));
    };
    check(&taken);
    rng.shuffle(&mut taken);
    for (name, _) in taken.drain(..100) {
        place.ok(&format!("snapshot delete {name}"));
    }
    check(&taken);
    daemon.kill();
    place.assert_sound();
    let _daemon = place.serve();
    check(&taken);
    assert_same(&place.content("web"), &model, "the volume");
}
