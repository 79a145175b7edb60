//! The crash rigs on the daemon, in short; and what they have found. The long runs are `crash` (package fixtures).

use std::path::PathBuf;
use std::time::Duration;

use fixtures::crash::{Blockd, CrashError, Plan, Summary, Volume, run_kills, run_power};
use fixtures::lossy_fs::{LossyFs, Options};
use tempfile::TempDir;

use crate::place::Place;
use crate::tools::may_cut_power;

/// Whether `blockctl snapshot hash` answers: then hashes are compared, besides all content.
const HASHES: bool = true;

const MIB: u64 = 1 << 20;

fn blockd(cache: &str) -> Blockd {
    Blockd {
        blockd: PathBuf::from(env!("CARGO_BIN_EXE_blockd")),
        blockctl: PathBuf::from(env!("CARGO_BIN_EXE_blockctl")),
        cache: cache.to_owned(),
        volumes: Volume::all(&["v", "w"], 4 * MIB),
        hashes: HASHES,
        keeps_recent: true,
    }
}

fn plan(rounds: u32, seed: u64) -> Plan {
    let lossy = Options { tear_sectors: true, sync_max: Duration::from_millis(2) };
    Plan { rounds, seed, connections: 3, load_max: Duration::from_millis(250), lossy }
}

fn summary(result: Result<Summary, CrashError>) -> Summary {
    let summary = result.unwrap_or_else(|error| panic!("{error}"));
    eprintln!("{summary:?}");
    summary
}

fn kills(cache: &str, rounds: u32, seed: u64) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let found = summary(run_kills(&blockd(cache), dir.path(), &plan(rounds, seed), &mut |_| {}));
    assert!(found.kills == rounds && (rounds < 20 || found.snapshots_checked > 0), "{found:?}");
    assert!(found.counts.changes_answered > u64::from(rounds) * 10, "{found:?}");
}

fn power(cache: &str, rounds: u32, seed: u64) {
    if !may_cut_power() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let found = summary(run_power(&blockd(cache), dir.path(), &plan(rounds, seed), &mut |_| {}));
    assert!(found.cuts > 0 && found.survivors.pages_lost > 0, "{found:?}");
}

/// Without its log in memory a killed daemon forgets what it has answered, and the rig notices.
#[test]
fn a_daemon_that_keeps_nothing_is_caught() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let forgetful = Blockd { keeps_recent: false, ..blockd("writeback") };
    match run_kills(&forgetful, dir.path(), &plan(20, 104), &mut |_| {}) {
        Err(CrashError::Broken { rule: "D4", .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_daemon_survives_kills() {
    kills("writeback", 50, 101);
}

#[test]
fn the_daemon_survives_kills_with_direct_io() {
    kills("direct", 6, 102);
}

#[test]
fn the_daemon_survives_power_cuts() {
    power("writeback", 20, 103);
}

#[test]
fn the_daemon_survives_power_cuts_with_direct_io() {
    power("direct", 5, 104);
}

/// A write was answered, the daemon killed; its client came back and asked for a FLUSH. There was nothing to flush, as
/// the new daemon saw it; the write was in the page cache only, and went with the power.
#[test]
fn a_flush_covers_what_was_answered_before_a_kill() {
    if !may_cut_power() {
        return;
    }
    for seed in 1..=3 {
        let mount = tempfile::tempdir().unwrap();
        let fs = LossyFs::mount(mount.path(), Options::default()).unwrap();
        let mut place = Place::at(&mount.path().join("data"));
        place.arguments = vec!["--pool-size".to_owned(), "64M".to_owned()];
        let daemon = place.serve();
        place.ok("volume create web --size 4M");
        let mut client = place.client("web");
        client.write(0, &vec![1; 4 << 20]).unwrap();
        client.flush().unwrap();
        // In place, so that nothing but the pool's file knows of it.
        client.write(0, &vec![2; 4 << 20]).unwrap();
        daemon.kill();
        let daemon = place.serve();
        let mut client = place.client("web");
        assert_eq!(client.read(0, 4096).unwrap(), [2; 4096]);
        client.flush().unwrap();
        fs.freeze();
        daemon.kill();
        fs.power_on(seed);
        let daemon = place.serve();
        assert!(place.content("web").iter().all(|&byte| byte == 2), "seed {seed}: an older block came back");
        daemon.kill();
    }
}

/// The ring of a killed daemon holds the pool for some milliseconds more, and its successor gave up.
#[test]
fn a_daemon_starts_at_once_after_a_kill() {
    let place = Place::new();
    let daemon = place.serve();
    place.ok("volume create web --size 64M");
    let mut daemon = Some(daemon);
    for round in 1..=5 {
        let mut client = place.client("web");
        for at in 0..32 {
            client.submit_write(0, at << 20, &vec![round; 1 << 20]).unwrap();
        }
        daemon.take().unwrap().kill();
        daemon = Some(place.serve());
    }
}
