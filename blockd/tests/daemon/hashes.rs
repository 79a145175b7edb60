//! Hashes of snapshots, with and without the tree caches of the data directory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use fixtures::process::{ProcessError, wait_until};

use crate::place::Place;

/// 64 pages of the tree, and an end in the middle of a cluster.
const SIZE: u64 = (128 << 20) + 512;

/// Writes a little and makes a snapshot; its hash must be that of its content, by whom ever it was made.
fn check_next(place: &Place, number: u8) {
    let mut client = place.client("web");
    for at in [u64::from(number) * 4096, 70 << 20, SIZE - 512] {
        client.write(at, &[number; 512]).unwrap();
    }
    client.leave().unwrap();
    let name = format!("web@{number}");
    place.ok(&format!("snapshot create {name}"));
    let expected = blake3::hash(&place.content(&name)).to_hex();
    assert_eq!(place.ok(&format!("snapshot hash {name}")), format!("{expected}  {name}\n"));
}

#[test]
fn hashes_are_right_whatever_becomes_of_the_trees() {
    let mut place = Place::new();
    let tree = place.data().join("hashes/1.tree");
    let daemon = place.serve();
    place.ok(&format!("volume create web --size {SIZE}"));
    (1..4).for_each(|number| check_next(&place, number));
    assert!(tree.exists());
    daemon.kill();
    File::options().write(true).open(&tree).unwrap().write_all_at(&[1; 9], 9 << 10).unwrap();
    let daemon = place.serve();
    check_next(&place, 4);
    place.ok("volume resize web --size 256M");
    check_next(&place, 5);
    daemon.stop();
    place.arguments.push("--hash-cache=false".to_owned());
    let daemon = place.serve();
    assert!(!tree.exists(), "what is turned off takes no room");
    check_next(&place, 6);
    assert!(!tree.exists());
    daemon.stop();
    place.arguments.pop();
    let daemon = place.serve();
    check_next(&place, 7);
    assert!(tree.exists());
    (1..8).for_each(|number| drop(place.ok(&format!("snapshot delete web@{number}"))));
    place.ok("volume delete web --yes");
    daemon.stop();
    let _daemon = place.serve();
    let gone = wait_until("the removal of the tree", Duration::from_secs(20), || {
        Ok::<_, ProcessError>((!tree.exists()).then_some(()))
    });
    gone.unwrap();
}
