//! What a killed process leaves behind is found; what the power, another store or damage left is not used.

use super::*;
use crate::catalog::format::MapRecord;
use crate::units::{ClusterIndex, LayerId, Mask};

const ORIGIN: Origin = Origin { identity: [7; 16], boot: [8; 16] };

fn change(at: u32) -> Change {
    Change::Map(LayerId(1), ClusterIndex(at), Some(MapRecord { zero: Mask::ALL, ..MapRecord::default() }))
}

fn open(directory: &Path) -> RecentFiles {
    RecentFiles::open(directory, ORIGIN).unwrap()
}

/// Appends, and is killed.
fn leave(directory: &Path, steps: &[(u64, u32)]) {
    let mut log = open(directory);
    for &(commit, at) in steps {
        log.append(commit, &[change(at)]).unwrap();
    }
    std::mem::forget(log);
}

fn found(directory: &Path, last: u64) -> Vec<Change> {
    let log = open(directory);
    let Recovered { changes, abandoned } = log.recover(last).unwrap();
    assert!(!abandoned);
    std::mem::forget(log);
    changes
}

fn file(directory: &Path, half: u8) -> PathBuf {
    directory.join(format!("recent-07070707070707070707070707070707.{half}"))
}

#[test]
fn the_next_process_finds_what_was_left() {
    let data = tempfile::tempdir().unwrap();
    leave(data.path(), &[(5, 1), (5, 2), (6, 3), (6, 4)]);
    assert_eq!(found(data.path(), 4), [1, 2, 3, 4].map(change));
    assert_eq!(found(data.path(), 5), [3, 4].map(change), "commit 5 was durable");
    assert_eq!(found(data.path(), 6), []);
}

#[test]
fn a_durable_commit_is_forgotten() {
    let data = tempfile::tempdir().unwrap();
    let mut log = open(data.path());
    log.append(5, &[change(1)]).unwrap();
    log.append(6, &[change(2)]).unwrap();
    log.forget(5);
    assert_eq!(std::fs::metadata(file(data.path(), 1)).unwrap().len(), 0);
    log.append(7, &[change(3)]).unwrap();
    assert_eq!(log.recover(5).unwrap().changes, [2, 3].map(change));
    log.forget(7);
    drop(log);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0, "nothing is left of an orderly end");
}

#[test]
fn what_is_abandoned_is_not_found() {
    let data = tempfile::tempdir().unwrap();
    let mut log = open(data.path());
    log.append(5, &[change(1)]).unwrap();
    log.append(6, &[change(2)]).unwrap();
    log.abandon();
    drop(log);
    let mut log = open(data.path());
    let nothing = Recovered { changes: Vec::new(), abandoned: true };
    assert_eq!(log.recover(4).unwrap(), nothing, "the next process is told");
    log.clear().unwrap();
    assert_eq!(log.recover(4).unwrap(), Recovered::default());
}

#[test]
fn another_boot_or_store_leaves_nothing() {
    let data = tempfile::tempdir().unwrap();
    leave(data.path(), &[(5, 1)]);
    let log = RecentFiles::open(data.path(), Origin { boot: [9; 16], ..ORIGIN }).unwrap();
    assert_eq!(log.recover(4).unwrap(), Recovered::default());
    std::mem::forget(log);
    let bytes = std::fs::read(file(data.path(), 1)).unwrap();
    assert_eq!(frames::read(&bytes, Origin { identity: [9; 16], ..ORIGIN }), Err("it is of another store"));
}

/// The last frame may be cut off anywhere: its changes were told to nobody.
#[test]
fn a_frame_that_is_not_whole_is_not_used() {
    let data = tempfile::tempdir().unwrap();
    leave(data.path(), &[(5, 1), (5, 2)]);
    let path = file(data.path(), 1);
    let bytes = std::fs::read(&path).unwrap();
    let one = frames::read(&bytes, ORIGIN).unwrap().unwrap();
    assert_eq!((one.changes.len(), one.torn), (2, false));
    let mut lengths = Vec::new();
    for end in 0..bytes.len() {
        std::fs::write(&path, &bytes[..end]).unwrap();
        let changes = found(data.path(), 4);
        assert!(changes.is_empty() || changes == [change(1)], "{end}: {changes:?}");
        lengths.push(changes.len());
    }
    assert!(lengths.is_sorted() && lengths.contains(&1));
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let changes = open(data.path()).recover(4).unwrap_or_default().changes;
        assert!(changes.is_empty() || changes == [change(1)], "byte {at}: {changes:?}");
    }
}

#[test]
fn a_gap_is_refused() {
    let data = tempfile::tempdir().unwrap();
    leave(data.path(), &[(6, 3)]);
    assert_eq!(open(data.path()).recover(4).unwrap_err().kind(), io::ErrorKind::InvalidData);
    let data = tempfile::tempdir().unwrap();
    leave(data.path(), &[(5, 1), (5, 2), (6, 3)]);
    let path = file(data.path(), 1);
    let length = std::fs::metadata(&path).unwrap().len();
    File::options().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    assert!(open(data.path()).recover(4).is_err(), "the second part was written, so the first was whole");
}

#[test]
fn a_log_has_a_limit() {
    let data = tempfile::tempdir().unwrap();
    let mut log = open(data.path());
    log.append(5, &[change(1)]).unwrap();
    log.halves[1].bytes = FILE_BYTES_MAX;
    assert_eq!(log.append(5, &[change(2)]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
}

#[test]
fn a_directory_of_others_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let data = tempfile::tempdir().unwrap();
    let own = data.path().join("own/and/deep");
    assert_eq!(directory(Some(&own)).unwrap(), own);
    assert_eq!(std::fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
    std::fs::set_permissions(&own, PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(directory(Some(&own)).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    let link = data.path().join("link");
    std::os::unix::fs::symlink(data.path(), &link).unwrap();
    assert!(directory(Some(&link)).is_err());
    let origin = Origin::of([1; 16]).unwrap();
    assert_eq!(Origin::of([1; 16]).unwrap(), origin, "one boot has one number");
}
