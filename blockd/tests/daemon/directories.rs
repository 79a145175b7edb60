//! Data directories that are not ours, not whole, not now, or not for this program.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::Duration;

use blockd::catalog::format::{Change, METADATA_VERSION, StoreRecord};
use blockd::catalog::load::load;
use blockd::catalog::meta::MetaStore;
use blockd::catalog::rocks::RocksMeta;
use fixtures::process::ChildGuard;

use crate::place::Place;
use crate::tools::{Unmount, may_mount, run, tool};

#[test]
fn a_second_daemon_is_refused_and_the_first_unharmed() {
    let first = Place::new();
    let _daemon = first.serve();
    first.ok("volume create web --size 1M");
    let mut client = first.client("web");
    client.write(0, &[1; 4096]).unwrap();
    let second = Place::at(first.data());
    let (code, log) = second.refused();
    assert!(code == 4 && log.contains("in use"), "{code} {log}");
    for words in [&["fsck"][..], &["fsck", "--repair"], &["inspect"], &["inspect", "mark"]] {
        let (code, _, stderr) = first.offline(words);
        assert!(code == 4 && stderr.contains("in use"), "{words:?}: {code} {stderr}");
    }
    client.flush().unwrap();
    assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    assert!(first.ok("status").contains("health ok"));
}

#[test]
fn a_later_format_is_refused() {
    let place = Place::new();
    drop(place.serve());
    let meta = RocksMeta::open(&place.data().join("meta"), false).unwrap().with_reserve(0);
    let loaded = load(&meta, 1).unwrap();
    let later = StoreRecord { version: METADATA_VERSION + 1, ..loaded.store };
    meta.write(&[Change::Store(later), Change::Commit(loaded.commit + 1)]).unwrap();
    drop(meta);
    let (code, log) = place.refused();
    assert!(code == 8 && log.contains("FORMAT_NEWER: metadata of version 5, this program knows 4"), "{log}");
}

#[test]
fn a_link_in_place_of_the_store_is_refused() {
    let place = Place::new();
    fs::create_dir(place.path("elsewhere")).unwrap();
    symlink(place.path("elsewhere"), place.data()).unwrap();
    let (code, log) = place.refused();
    assert!(code == 2 && log.contains("is a symbolic link"), "{code} {log}");
    assert_eq!(fs::read_dir(place.path("elsewhere")).unwrap().count(), 0);
    fs::remove_file(place.data()).unwrap();
    drop(place.serve());
    let pool = place.data().join("pool-0");
    fs::rename(&pool, place.path("pool")).unwrap();
    symlink(place.path("pool"), &pool).unwrap();
    let (code, log) = place.refused();
    assert!(code == 2 && log.contains("is a symbolic link"), "{code} {log}");
}

#[test]
fn somebody_elses_directory_is_left_alone() {
    let place = Place::new();
    fs::create_dir(place.data()).unwrap();
    fs::write(place.data().join("letters.txt"), "dear").unwrap();
    let (code, log) = place.refused();
    assert!(code == 5 && log.contains("letters.txt"), "{code} {log}");
    // Nor is it ours because a making was begun beside it.
    File::create(place.data().join("creating")).unwrap();
    assert_eq!(place.refused().0, 5);
    assert_eq!(fs::read_to_string(place.data().join("letters.txt")).unwrap(), "dear");
    assert!(!place.data().join("meta").exists() && !place.data().join("pool-0").exists());
}

#[test]
fn a_store_whose_making_was_cut_short_is_made_again() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create left --size 1M");
    daemon.kill();
    File::create(place.data().join("creating")).unwrap();
    fs::remove_file(place.data().join("mark")).unwrap();
    File::options().write(true).open(place.data().join("pool-0")).unwrap().set_len(70_000).unwrap();
    let daemon = place.serve();
    assert!(!place.data().join("creating").exists());
    assert!(!place.ok("volume list").contains("left"));
    place.ok("volume create web --size 1M");
    daemon.stop();
    place.assert_sound();
}

/// Kills at moments all over the making of a store.
#[test]
fn a_making_that_is_killed_is_finished_by_the_next_start() {
    let mut rng = fastrand::Rng::with_seed(9);
    for _ in 0..10 {
        let place = Place::new();
        let mut child = ChildGuard::spawn(&mut place.command()).unwrap();
        std::thread::sleep(Duration::from_millis(rng.u64(0..120)));
        child.kill().unwrap();
        let daemon = place.serve();
        place.ok("volume create web --size 1M");
        daemon.kill();
        place.assert_sound();
    }
}

#[test]
fn a_pool_file_that_is_away_or_takes_no_writes_harms_nothing() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 1M");
    let mut client = place.client("web");
    client.write(0, &[1; 4096]).unwrap();
    client.flush().unwrap();
    client.leave().unwrap();
    daemon.stop();
    let pool = place.data().join("pool-0");
    fs::rename(&pool, place.path("away")).unwrap();
    let (code, log) = place.refused();
    assert!(code == 8 && log.contains("POOL_MISMATCH: ") && log.contains("pool-0"), "{code} {log}");
    assert!(!pool.exists(), "it must not be made anew");
    fs::rename(place.path("away"), &pool).unwrap();
    if may_mount() {
        run(tool("mount").arg("--bind").arg(&pool).arg(&pool));
        let mounted = Unmount(&pool);
        run(tool("mount").args(["-o", "remount,bind,ro"]).arg(&pool));
        let (code, log) = place.refused();
        assert!(code != 0 && log.contains("Read-only file system"), "{code} {log}");
        drop(mounted);
    }
    let _daemon = place.serve();
    assert_eq!(place.client("web").read(0, 4096).unwrap(), [1; 4096]);
}
