//! Damage to RocksDB's files: whatever was flipped, cut or put back, a store opens with exactly what it held, or is
//! refused with a reason. Nothing in between: records that are silently gone are the worst that a store can do.

#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use blockd::catalog::format::keys::every_range;
use blockd::catalog::format::{
    Change, FORMAT_VERSION, LayerRecord, MapRecord, PoolFileRecord, RootRecord, StoreRecord, VolumeRecord,
};
use blockd::catalog::load::{LoadError, load, scan_pool_use};
use blockd::catalog::mark::{Mark, Slots};
use blockd::catalog::meta::{MetaError, MetaStore};
use blockd::catalog::rocks::{META_DIRECTORY, RocksMeta};
use blockd::fsck::{FsckOptions, fsck};
use blockd::store::superblock::Superblock;
use blockd::units::{CLUSTER_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId};
use fastrand::Rng;

const IDENTITY: [u8; 16] = [3; 16];

/// More than the numbers of clusters that commits name.
const POOL_CLUSTERS: u32 = 8000;

/// Of RocksDB's logs.
const LOG_BLOCK_BYTES: usize = 32 << 10;

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// A data directory with metadata in every place that RocksDB has for them.
struct Store {
    data: tempfile::TempDir,
    /// Beside the data directory, so that copies of that need not copy it.
    _pool: tempfile::TempDir,
    rocks: Option<RocksMeta>,
    mark: Mark,
    rng: Rng,
}

impl Store {
    fn create(seed: u64) -> Self {
        let data = tempfile::tempdir().unwrap();
        let rocks = RocksMeta::open(&data.path().join(META_DIRECTORY), true).unwrap().with_reserve(0);
        let mark = Mark::create(data.path(), IDENTITY).unwrap();
        let pool = tempfile::tempdir().unwrap();
        let file = pool_file(pool.path());
        let mut store = Self { data, _pool: pool, rocks: Some(rocks), mark, rng: Rng::with_seed(seed) };
        store.commit(first_batch(file));
        store
    }

    fn path(&self) -> &Path {
        self.data.path()
    }

    fn rocks(&self) -> &RocksMeta {
        self.rocks.as_ref().unwrap()
    }

    fn commit(&mut self, mut batch: Vec<Change>) {
        let commit = self.mark.commit() + 1;
        batch.push(Change::Commit(commit));
        self.rocks().write(&batch).unwrap();
        self.mark.advance(commit).unwrap();
    }

    /// Commits that change, delete and range-delete; enough records for files of several blocks.
    fn commits(&mut self, count: usize) {
        for _ in 0..count {
            let commit = self.mark.commit() + 1;
            let base = self.rng.u32(1..60) * 100;
            let map = |at: u32| {
                let data = Mask(1 << (commit % 16));
                MapRecord { cluster: Some(PoolCluster(at)), data, ..MapRecord::default() }
            };
            let mut batch: Vec<_> = (base..base + 80)
                .map(|at| Change::Map(LayerId(1), ClusterIndex(at), Some(map(at))))
                .collect();
            let gone = ClusterIndex(self.rng.u32(100..6000));
            batch.push(Change::Map(LayerId(1), gone, None));
            batch.push(Change::Journal(commit, vec![(LayerId(1), gone)]));
            if commit.is_multiple_of(7) {
                batch.push(Change::TrimJournal(commit - 3));
            }
            self.commit(batch);
        }
    }

    fn reopen(&mut self) {
        self.rocks = None;
        let rocks = RocksMeta::open(&self.path().join(META_DIRECTORY), false).unwrap();
        self.rocks = Some(rocks.with_reserve(0));
    }

    fn close(&mut self) {
        self.rocks = None;
    }
}

/// A pool file without data.
fn pool_file(directory: &Path) -> PoolFileRecord {
    let path = directory.join("pool-0");
    let record = PoolFileRecord {
        first: PoolCluster(0),
        clusters: POOL_CLUSTERS,
        path: path.to_str().unwrap().to_owned(),
    };
    std::fs::write(&path, Superblock::of(IDENTITY, 0, &record).encode()).unwrap();
    std::fs::File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(u64::from(POOL_CLUSTERS) * CLUSTER_BYTES)
        .unwrap();
    record
}

fn first_batch(file: PoolFileRecord) -> Vec<Change> {
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: IDENTITY,
        next_volume: VolumeId(2),
        next_layer: LayerId(3),
        next_snapshot: SnapshotId(1),
        created_ms: 1,
    };
    let volume = VolumeRecord { name: "vm".into(), size: 1 << 30, head: LayerId(2), created_ms: 1 };
    vec![
        Change::Store(store),
        Change::Volume(VolumeId(1), Some(volume)),
        Change::Layer(LayerId(1), Some(LayerRecord { parent: None, volume: VolumeId(1) })),
        Change::Layer(LayerId(2), Some(LayerRecord { parent: Some(LayerId(1)), volume: VolumeId(1) })),
        Change::PoolFile(0, file),
        Change::Root(LayerId(1), Some(RootRecord { size: 1, hash: [1; 32] })),
    ]
}

/// Files of several levels, deletions, a manifest with several edits, and a log that was not written out yet.
fn store_of_all_kinds(seed: u64) -> (Store, Records) {
    let mut store = Store::create(seed);
    store.commits(15);
    store.rocks().compact().unwrap();
    store.commits(10);
    store.reopen();
    store.commits(10);
    store.rocks().compact().unwrap();
    store.commits(12);
    let records = everything(store.rocks()).unwrap();
    store.close();
    (store, records)
}

fn everything(store: &dyn MetaStore) -> Result<Records, MetaError> {
    let mut records = Vec::new();
    let all = every_range();
    store.scan(&all.start, &all.end, &mut |key, value| {
        records.push((key.to_vec(), value.to_vec()));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(records)
}

/// What a daemon does before it serves.
fn recover(data: &Path, read_only: bool) -> Result<Records, LoadError> {
    let (_, mark) = Slots::read(data)?.newest()?;
    let directory = data.join(META_DIRECTORY);
    let rocks =
        if read_only { RocksMeta::open_read_only(&directory)? } else { RocksMeta::open(&directory, false)? };
    let loaded = load(&rocks, mark)?;
    scan_pool_use(&rocks, &loaded, &mut |_, _, _| ())?;
    Ok(everything(&rocks)?)
}

/// Whether the store was refused for a reason; anything but that or all its records is a failure.
#[track_caller]
fn was_refused(found: Result<Records, LoadError>, expected: &Records, what: &str) -> bool {
    match found {
        Ok(found) => {
            assert!(found == *expected, "{what}: {} records became {}", expected.len(), found.len());
            false
        }
        Err(error) => {
            let text = error.to_string();
            let named =
                ["META_DAMAGED: ", "META_ROLLBACK: ", "FORMAT_NEWER: ", "POOL_MISMATCH: ", "metadata: "];
            assert!(named.iter().any(|code| text.starts_with(code)), "{what}: {text}");
            true
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// RocksDB's files that are not empty, but for its own log.
fn files(data: &Path) -> Vec<PathBuf> {
    let directory = std::fs::read_dir(data.join(META_DIRECTORY)).unwrap();
    let mut files: Vec<_> = directory.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| {
        let log = path.file_name().unwrap().to_str().unwrap().starts_with("LOG");
        !log && path.metadata().unwrap().len() > 0
    });
    files.sort();
    files
}

/// Applies some damage to a copy of the store, and opens it, for reading and for writing. fsck must be of recovery's
/// opinion.
fn check_damage(store: &Store, expected: &Records, what: &str, damage: impl FnOnce(&Path)) -> bool {
    let scratch = tempfile::tempdir().unwrap();
    copy(store.path(), scratch.path());
    damage(scratch.path());
    let refused = was_refused(recover(scratch.path(), true), expected, &format!("{what}, read only"));
    let report = fsck(scratch.path(), FsckOptions::default()).unwrap();
    assert_eq!(report.is_clean(), !refused, "{what}: {report}");
    was_refused(recover(scratch.path(), false), expected, what) || refused
}

fn flips() -> u64 {
    std::env::var("DAMAGE_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

fn flip(path: &Path, bit: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    std::fs::write(path, bytes).unwrap();
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn a_flipped_bit_loses_nothing_in_silence() {
    let (store, expected) = store_of_all_kinds(1);
    let mut rng = Rng::with_seed(2);
    let mut refused = 0;
    for _ in 0..flips() {
        let files = files(store.path());
        let path = rng.choice(&files).unwrap();
        let bit = rng.u64(..path.metadata().unwrap().len() * 8);
        let what = format!("bit {bit} of {}", name(path));
        let damage = |data: &Path| flip(&data.join(META_DIRECTORY).join(name(path)), bit);
        refused += u64::from(check_damage(&store, &expected, &what, damage));
    }
    // The test would be of no use if the flips hit nothing.
    assert!(refused > flips() / 4, "{refused}");
}

#[test]
fn a_file_cut_short_loses_nothing_in_silence() {
    let (store, expected) = store_of_all_kinds(3);
    let mut rng = Rng::with_seed(4);
    for path in files(store.path()) {
        let length = path.metadata().unwrap().len();
        for end in [0, length - 1, rng.u64(..length), rng.u64(..length), rng.u64(..length)] {
            let what = format!("{} cut from {length} to {end} bytes", name(&path));
            let cut = |data: &Path| {
                let path = data.join(META_DIRECTORY).join(name(&path));
                std::fs::File::options().write(true).open(path).unwrap().set_len(end).unwrap();
            };
            check_damage(&store, &expected, &what, cut);
        }
    }
}

/// Each file that was written out is an edit of the manifest, and the log that held its records is deleted. An edit
/// that is lost leaves a hole in the middle, before commits that are there: the mark cannot see it.
#[test]
fn a_lost_edit_of_the_manifest_leaves_no_hole() {
    let mut store = Store::create(8);
    store.reopen();
    for _ in 0..3 {
        store.commits(4);
        store.rocks().flush().unwrap();
    }
    store.commits(4);
    let expected = everything(store.rocks()).unwrap();
    store.close();
    let manifest = files(store.path()).into_iter().find(|path| name(path).starts_with("MANIFEST")).unwrap();
    let length = manifest.metadata().unwrap().len();
    for end in (0..length).rev().step_by(3) {
        let cut = |data: &Path| {
            let path = data.join(META_DIRECTORY).join(name(&manifest));
            std::fs::File::options().write(true).open(path).unwrap().set_len(end).unwrap();
        };
        check_damage(&store, &expected, &format!("manifest cut from {length} to {end}"), cut);
    }
}

#[test]
fn a_missing_file_loses_nothing_in_silence() {
    let (store, expected) = store_of_all_kinds(5);
    for path in files(store.path()) {
        let what = format!("{} removed", name(&path));
        let remove = |data: &Path| std::fs::remove_file(data.join(META_DIRECTORY).join(name(&path))).unwrap();
        check_damage(&store, &expected, &what, remove);
    }
}

/// The type decides how RocksDB's reader goes on; in the manifest a flip once made it go on for ever.
#[test]
fn a_flipped_type_of_a_log_record_loses_nothing_in_silence() {
    let mut store = Store::create(9);
    store.commits(60);
    let expected = everything(store.rocks()).unwrap();
    store.close();
    let log = files(store.path()).into_iter().find(|path| name(path).ends_with(".log")).unwrap();
    let bytes = std::fs::read(&log).unwrap();
    assert!(bytes.len() > 3 * LOG_BLOCK_BYTES, "{}", bytes.len());
    // The first record of each block, and what follows it.
    for block in 0..bytes.len() / LOG_BLOCK_BYTES {
        let first = block * LOG_BLOCK_BYTES;
        let second = first + 11 + usize::from(u16::from_le_bytes([bytes[first + 4], bytes[first + 5]]));
        for bit in [first, second].into_iter().flat_map(|at| (at + 6) * 8..(at + 7) * 8) {
            let damage = |data: &Path| flip(&data.join(META_DIRECTORY).join(name(&log)), bit as u64);
            check_damage(&store, &expected, &format!("bit {bit} of the log"), damage);
        }
    }
}

/// The tail that a power cut leaves of a batch that nobody was told of is no reason to refuse.
#[test]
fn a_torn_tail_that_was_not_promised_opens() {
    let mut store = Store::create(6);
    store.commits(5);
    let expected = everything(store.rocks()).unwrap();
    let log = files(store.path()).into_iter().find(|path| name(path).ends_with(".log")).unwrap();
    let promised = log.metadata().unwrap().len();
    // The batch reaches the log, the mark does not.
    store.rocks().write(&[Change::Commit(store.mark.commit() + 1), Change::Journal(1, vec![])]).unwrap();
    store.close();
    let length = log.metadata().unwrap().len();
    assert!(length > promised);
    for end in promised..length {
        let scratch = tempfile::tempdir().unwrap();
        copy(store.path(), scratch.path());
        let log = scratch.path().join(META_DIRECTORY).join(name(&log));
        std::fs::File::options().write(true).open(log).unwrap().set_len(end).unwrap();
        assert_eq!(recover(scratch.path(), false).unwrap(), expected, "cut from {length} to {end}");
    }
}

#[test]
fn an_older_copy_put_back_is_refused() {
    let mut store = Store::create(7);
    store.commits(9);
    let older = tempfile::tempdir().unwrap();
    // Copied between two runs, as a restore from a backup would have it.
    store.close();
    copy(&store.path().join(META_DIRECTORY), older.path());
    store.reopen();
    store.commits(1);
    store.close();
    std::fs::remove_dir_all(store.path().join(META_DIRECTORY)).unwrap();
    copy(older.path(), &store.path().join(META_DIRECTORY));
    for read_only in [true, false] {
        let error = recover(store.path(), read_only).unwrap_err();
        assert_eq!(error, LoadError::Rollback { commit: 10, mark: 11 });
    }
}
