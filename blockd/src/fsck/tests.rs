//! A store on disk, one thing wrong with it at a time.

use std::os::unix::fs::FileExt;

use super::*;
use crate::catalog::format::{
    Change, FORMAT_VERSION, LayerRecord, MapRecord, PoolFileRecord, StoreRecord, VolumeRecord,
};
use crate::catalog::load::PoolUse;
use crate::catalog::mark::MARK_FILE;
use crate::checkpoint::Saved;
use crate::intents::{self, Base, INTENTS_OFFSET};
use crate::map::FlatMap;
use crate::store::superblock::Superblock;
use crate::units::{ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId};

const IDENTITY: [u8; 16] = [4; 16];

fn pool_file() -> PoolFileRecord {
    PoolFileRecord { first: PoolCluster(0), clusters: 100, path: "pool-0".into() }
}

fn map(layer: u32, at: u32, cluster: u32) -> Change {
    let record =
        MapRecord { cluster: Some(PoolCluster(cluster)), data: Mask(0x0101), ..MapRecord::default() };
    Change::Map(LayerId(layer), ClusterIndex(at), Some(record))
}

fn sound() -> Vec<Change> {
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: IDENTITY,
        next_volume: VolumeId(2),
        next_layer: LayerId(4),
        next_snapshot: SnapshotId(1),
        created_ms: 1,
    };
    let volume = VolumeRecord { name: "vm".into(), size: 1 << 30, head: LayerId(2), created_ms: 1 };
    let layer = |parent| LayerRecord { parent, volume: VolumeId(1) };
    vec![
        Change::Store(store),
        Change::Commit(1),
        Change::Volume(VolumeId(1), Some(volume)),
        Change::Layer(LayerId(1), Some(layer(None))),
        Change::Layer(LayerId(2), Some(layer(Some(LayerId(1))))),
        Change::Layer(LayerId(3), Some(layer(None))),
        Change::PoolFile(0, pool_file()),
        map(1, 0, 1),
        map(2, 0, 2),
    ]
}

/// A store whose metadata were also changed in that way.
pub(crate) fn store(changes: &[Change]) -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    let rocks = RocksMeta::open(&data.path().join(META_DIRECTORY), true).unwrap().with_reserve(0);
    rocks.write(&sound()).unwrap();
    rocks.write(changes).unwrap();
    let mut mark = Mark::create(data.path(), IDENTITY).unwrap();
    mark.advance(1).unwrap();
    let mut pool = Superblock::of(IDENTITY, 0, &pool_file()).encode().to_vec();
    pool.resize(100 * 65536, 0);
    std::fs::write(data.path().join("pool-0"), pool).unwrap();
    data
}

fn check(data: &Path) -> FsckReport {
    fsck(data, FsckOptions::default()).unwrap()
}

/// Expects exactly that one error.
#[track_caller]
fn assert_only(data: &Path, expected: &str) -> Problem {
    let report = check(data);
    assert!(!report.is_clean());
    let [problem] = &report.problems[..] else { panic!("{report}") };
    assert!(problem.what.contains(expected), "{expected}: {report}");
    assert!(!problem.repair.is_empty());
    problem.clone()
}

#[test]
fn a_sound_store_is_clean_and_counted() {
    let data = store(&[]);
    let report = check(data.path());
    assert!(report.is_clean() && report.problems.is_empty(), "{report}");
    assert_eq!((report.commit, report.mark), (Some(1), Some(1)));
    let counts = report.counts;
    assert_eq!((counts.volumes, counts.layers, counts.map_records, counts.used_clusters), (1, 3, 2, 3));
    assert_eq!(report.layers_to_reclaim, [3]);
    assert!(report.to_string().ends_with("clean"));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["counts"]["pool_clusters"], 100);
}

#[test]
fn a_store_in_use_is_not_touched() {
    let data = store(&[]);
    let _held = crate::lock::take(data.path()).unwrap();
    let error = fsck(data.path(), FsckOptions { repair: true }).unwrap_err();
    assert!(matches!(error, FsckError::Lock(LockError::Held(..))), "{error}");
}

#[test]
fn a_directory_that_is_no_store_is_left_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    assert!(matches!(fsck(data.path(), FsckOptions::default()), Err(FsckError::Io(_))));
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0);
}

#[test]
fn every_bad_record_is_named_not_only_the_first() {
    let data = store(&[map(1, 5, 100), map(1, 6, 0), map(2, 7, 1), map(2, 8, 1)]);
    let report = check(data.path());
    let text = report.to_string();
    for expected in [
        "layer 1, cluster 5: pool cluster 100 does not exist",
        "layer 1, cluster 6: pool cluster 0 is a superblock",
        "layer 2, cluster 7: pool cluster 1 belongs to another",
        "layer 2, cluster 8: pool cluster 1 belongs to another",
        "pool cluster 1 is named by layer 1 at 0, layer 2 at 7, layer 2 at 8",
        "5 errors",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn contradictions_in_the_catalog_are_found() {
    let data = store(&[Change::Layer(
        LayerId(9),
        Some(LayerRecord { parent: Some(LayerId(8)), volume: VolumeId(1) }),
    )]);
    let report = check(data.path()).to_string();
    assert!(report.contains("layer 9's parent 8 does not exist"), "{report}");
    assert!(report.contains("the next layer's number is 4") && report.ends_with("2 errors"), "{report}");
    let data = store(&[Change::Hash(LayerId(2), ClusterIndex(1), Some([0; 32]))]);
    assert_only(data.path(), "1 hashes of layer 2, which does not exist or is a head");
    let data = store(&[Change::Journal(5, vec![])]);
    assert_only(data.path(), "journal of commit 5");
}

#[test]
fn a_commit_below_the_mark_is_a_rollback_and_not_repaired() {
    let data = store(&[map(8, 0, 50)]);
    Mark::open(data.path(), IDENTITY).unwrap().advance(3).unwrap();
    let report = fsck(data.path(), FsckOptions { repair: true }).unwrap();
    assert!(report.to_string().contains("META_ROLLBACK: "), "{report}");
    assert!(report.repaired.is_empty() && report.errors == 2);
}

#[test]
fn pool_files_are_compared_with_the_catalog() {
    let data = store(&[]);
    let pool = data.path().join("pool-0");
    let good = std::fs::read(&pool).unwrap();
    std::fs::write(&pool, &good[..2 * 65536 + 8 * 4096]).unwrap();
    assert_only(data.path(), "but data up to 167936");
    let mut bad = good.clone();
    bad[33] ^= 1;
    std::fs::write(&pool, &bad).unwrap();
    assert_only(data.path(), "POOL_MISMATCH: no valid superblock: wrong checksum (pool file 0, pool-0)");
    std::fs::remove_file(&pool).unwrap();
    assert_only(data.path(), "POOL_MISMATCH: pool file 0 (pool-0): No such file");
}

#[test]
fn metadata_that_do_not_open_are_a_problem_not_a_failure() {
    let data = store(&[]);
    std::fs::write(data.path().join(META_DIRECTORY).join("CURRENT"), "MANIFEST-000099\n").unwrap();
    let report = check(data.path());
    assert!(!report.is_clean() && report.commit.is_none(), "{report}");
    assert!(report.problems[0].what.contains("RocksDB: "), "{report}");
}

#[test]
fn a_mark_of_another_store_is_an_error() {
    let data = store(&[]);
    std::fs::remove_file(data.path().join(MARK_FILE)).unwrap();
    Mark::create(data.path(), [5; 16]).unwrap();
    assert!(!assert_only(data.path(), "MARK_MISMATCH: ").repairable);
}

fn repair(data: &Path) -> FsckReport {
    let report = fsck(data, FsckOptions { repair: true }).unwrap();
    assert!(!report.repaired.is_empty(), "{report}");
    check(data)
}

#[test]
fn a_damaged_slot_is_a_note_and_repaired_when_asked() {
    let data = store(&[]);
    let path = data.path().join(MARK_FILE);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[3] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let report = check(data.path());
    assert!(report.is_clean() && report.notes == 1 && report.repaired.is_empty(), "{report}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "not asked to repair");
    let repaired = repair(data.path());
    assert!(repaired.problems.is_empty() && repaired.mark == Some(1), "{repaired}");
}

#[test]
fn a_mark_without_valid_slots_is_written_anew_when_asked() {
    let data = store(&[]);
    std::fs::write(data.path().join(MARK_FILE), vec![1; 8192]).unwrap();
    assert!(assert_only(data.path(), "MARK_DAMAGED: ").repairable);
    let repaired = repair(data.path());
    assert!(repaired.problems.is_empty() && repaired.mark == Some(1), "{repaired}");
    std::fs::remove_file(data.path().join(MARK_FILE)).unwrap();
    assert!(repair(data.path()).is_clean());
}

#[test]
fn map_records_of_missing_layers_are_deleted_when_asked() {
    let leaked: Vec<_> = (0..5000).map(|at| map(9, at, 10 + at % 3)).chain([map(7, 1, 3)]).collect();
    let data = store(&leaked);
    let report = check(data.path()).to_string();
    assert!(report.contains("5000 map records of layer 9, which does not exist"), "{report}");
    assert!(report.contains("1 map records of layer 7"), "{report}");
    let repaired = repair(data.path());
    assert!(repaired.is_clean(), "{repaired}");
    assert_eq!(repaired.counts.map_records, 2);
    assert_eq!((repaired.commit, repaired.mark), (Some(4), Some(4)));
}

/// Puts a frame into the intent log that gives up cluster 0 of the head.
fn log_intent(data: &Path, commit: u64, number: u32) {
    let changes = [Change::Map(LayerId(2), ClusterIndex(0), None)];
    let mut bytes = Vec::new();
    intents::push(&mut bytes, Base { identity: IDENTITY, commit }, number, &[], &changes);
    let pool = std::fs::File::options().write(true).open(data.join("pool-0")).unwrap();
    pool.write_all_at(&bytes, INTENTS_OFFSET + u64::from(number) * bytes.len() as u64).unwrap();
}

#[test]
fn commits_in_the_intent_log_are_a_note_and_no_repair_buries_them() {
    let data = store(&[map(9, 0, 10)]);
    log_intent(data.path(), 1, 0);
    let report = fsck(data.path(), FsckOptions { repair: true }).unwrap().to_string();
    assert!(report.contains("1 commits are in the intent log only"), "{report}");
    assert!(report.contains("no map records were deleted"), "{report}");
    assert_eq!(check(data.path()).commit, Some(1));
}

#[test]
fn a_damaged_intent_log_is_an_error() {
    let data = store(&[]);
    log_intent(data.path(), 1, 1);
    assert!(!assert_only(data.path(), "INTENTS_DAMAGED: ").repairable);
}

/// Its map records are all that is left of the layer: deleted, its data could not even be searched for.
#[test]
fn map_records_are_not_deleted_because_their_layers_record_was_lost() {
    let data = store(&[Change::Layer(LayerId(1), None)]);
    let report = fsck(data.path(), FsckOptions { repair: true }).unwrap();
    assert!(report.to_string().contains("1 map records of layer 1"), "{report}");
    assert!(report.to_string().contains("nothing was repaired"), "{report}");
    assert!(report.repaired.is_empty());
    assert_eq!(check(data.path()).counts.map_records, 2);
}

#[test]
fn more_problems_than_are_described_are_counted() {
    let bad: Vec<_> = (10..3000).map(|at| map(1, at, 200)).collect();
    let report = check(store(&bad).path());
    assert_eq!((report.problems.len(), report.errors), (PROBLEMS_MAX, 2990));
    assert!(report.to_string().contains("and 1990 more"));
}

/// Writes a checkpoint of the sound store, with these pool clusters in use besides its superblock.
fn write_checkpoint(data: &Path, commit: u64, used: [u32; 2], head: &FlatMap) {
    let bits = used.iter().fold(1, |bits, cluster| bits | 1 << cluster);
    let in_use = PoolUse { used: vec![bits, 0], ..PoolUse::default() };
    let maps = vec![(VolumeId(1), LayerId(2), head)];
    let saved = Saved { identity: IDENTITY, commit, pool_clusters: 100, in_use, maps };
    crate::checkpoint::file::save(data, &saved).unwrap();
}

fn head_map(data: &Path) -> FlatMap {
    let rocks = RocksMeta::open_read_only(&data.join(META_DIRECTORY)).unwrap();
    crate::map::load(&rocks, &[LayerId(2), LayerId(1)], (1 << 30) / 65536).unwrap()
}

#[test]
fn a_checkpoint_that_would_be_used_must_say_what_the_records_say() {
    let data = store(&[]);
    let head = head_map(data.path());
    write_checkpoint(data.path(), 1, [1, 2], &head);
    assert!(check(data.path()).problems.is_empty());
    write_checkpoint(data.path(), 1, [1, 3], &head);
    let problem = assert_only(data.path(), "on 2 clusters of the pool, pool cluster 2 the first of them");
    assert!(problem.repairable && problem.what.starts_with("CHECKPOINT_DIFFERS: "));
    let other = FlatMap::new(head.clusters());
    write_checkpoint(data.path(), 1, [1, 2], &other);
    assert_only(data.path(), "on volume 1, first at its cluster 0");
    let report = fsck(data.path(), FsckOptions { repair: true }).unwrap();
    assert_eq!(report.repaired, ["the checkpoint was removed"]);
    assert!(check(data.path()).problems.is_empty());
}

#[test]
fn a_checkpoint_that_will_not_be_used_is_a_note() {
    let data = store(&[]);
    write_checkpoint(data.path(), 7, [1, 3], &head_map(data.path()));
    let report = check(data.path());
    assert!(report.is_clean());
    assert!(report.problems[0].what.ends_with("it is of commit 7, the store is at 1"), "{report}");
}
