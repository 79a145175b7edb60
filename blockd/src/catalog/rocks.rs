//! The metadata store in RocksDB.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DBRecoveryMode, Error, ErrorKind, InfoLogger, LogLevel,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use crate::catalog::format::keys::KeyRange;
use crate::catalog::format::{Change, RawSink};
use crate::catalog::meta::{MetaError, MetaStore, Visit};

mod manifest;

/// RocksDB's directory in the data directory.
pub const META_DIRECTORY: &str = "meta";

const MEMTABLE_BYTES: usize = 32 << 20;
const CACHE_BYTES: usize = 64 << 20;
/// Of RocksDB's tables. Their index, an entry a block, is in memory all the time. A store of 1 TiB has 141.3 MiB
/// resident with 4 KiB, 140.1 with 16, and 141.4 with 64, for blocks are held whole while they are read.
const BLOCK_BYTES: usize = 16 << 10;
const MANIFEST_BYTES_MAX: usize = 4 << 20;
const OPEN_FILES_MAX: i32 = 256;
const BACKGROUND_JOBS_MAX: i32 = 2;
/// RocksDB's own log: so many files of so many bytes.
const INFO_LOGS_MAX: usize = 2;
const INFO_LOG_BYTES_MAX: usize = 1 << 20;

/// Bytes of the file system that are kept for metadata: what a flush of a full memtable, the next log and the manifest
/// may need at once. With less free, no batch is taken: RocksDB that runs full itself is broken until it is opened anew.
/// On a small file system the store keeps less; see [`ballast`](crate::catalog::ballast) for how it is shared out.
pub const RESERVE_BYTES: u64 = 96 << 20;

/// The metadata store of a data directory.
pub struct RocksMeta {
    db: DB,
    directory: PathBuf,
    reserve_bytes: u64,
    /// The first write error. It is reported to every later write: RocksDB may recover by itself and go on, without
    /// the batch that failed but with one that follows it.
    failed: Mutex<Option<MetaError>>,
}

impl std::fmt::Debug for RocksMeta {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksMeta").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl RocksMeta {
    /// Opens the metadata in a directory, or makes them there.
    ///
    /// Recovery throws away what it does not replay: check the mark with [`Self::open_read_only`] first, so that a
    /// store that is refused stays as it was found.
    ///
    /// # Errors
    /// `Damaged`, also if there are none, or some are missing, and `create` is false; `Io`, also if there are and it is
    /// true.
    pub fn open(directory: &Path, create: bool) -> Result<Self, MetaError> {
        Self::open_with(options(), directory, create)
    }

    /// As [`Self::open`], for a store that will be read as a whole before it is served: until [`Self::begin_merging`]
    /// RocksDB merges no files. What a crash interrupted would take the processors, and the disk, from the reading.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn open_quiet(directory: &Path) -> Result<Self, MetaError> {
        let mut options = options();
        options.set_disable_auto_compactions(true);
        Self::open_with(options, directory, false)
    }

    /// RocksDB merges files from now on, if it was opened quietly.
    pub fn begin_merging(&self) {
        // It fails where there is no room to note the option in a file; it is in force all the same.
        if let Err(error) = self.db.set_options(&[("disable_auto_compactions", "false")]) {
            tracing::warn!(%error, "RocksDB's options are not written down");
        }
    }

    fn open_with(mut options: Options, directory: &Path, create: bool) -> Result<Self, MetaError> {
        manifest::check(directory)?;
        // Without `create` a lost CURRENT is an error. With it, RocksDB would begin an empty store in its place.
        options.create_if_missing(create);
        options.set_error_if_exists(create);
        options.set_keep_log_file_num(INFO_LOGS_MAX);
        options.set_max_log_file_size(INFO_LOG_BYTES_MAX);
        Ok(Self::of(DB::open(&options, directory).map_err(open_error)?, directory))
    }

    /// Opens the metadata without writing a byte: RocksDB replays its log in memory. Every write is refused.
    ///
    /// # Errors
    /// `Damaged`, also if there are none; `Io`.
    pub fn open_read_only(directory: &Path) -> Result<Self, MetaError> {
        manifest::check(directory)?;
        let mut options = options();
        // RocksDB would put its log beside the data even now.
        options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |_, text: &str| {
            tracing::debug!(target: "rocksdb", "{}", text.trim_end());
        }));
        let db = DB::open_for_read_only(&options, directory, false).map_err(open_error)?;
        Ok(Self::of(db, directory))
    }

    fn of(db: DB, directory: &Path) -> Self {
        let directory = directory.to_owned();
        Self { db, directory, reserve_bytes: RESERVE_BYTES, failed: Mutex::new(None) }
    }

    /// Takes batches while the file system has so many bytes free, instead of [`RESERVE_BYTES`].
    #[must_use]
    pub fn with_reserve(mut self, bytes: u64) -> Self {
        self.reserve_bytes = bytes;
        self
    }

    /// Writes the memtable out, so that the next start has no log to replay.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn flush(&self) -> Result<(), MetaError> {
        self.db.flush().map_err(meta_error)
    }

    /// Writes the memtable out and merges all files, so that deleted records take no space.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn compact(&self) -> Result<(), MetaError> {
        self.flush()?;
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        Ok(())
    }

    /// Refuses a batch for which there may be no room, before RocksDB has seen it. Only so is "nothing of it will
    /// be seen" true: a batch whose sync finds no space is in the log already, and may be replayed.
    fn check_room(&self, bytes: usize) -> Result<(), MetaError> {
        let space = rustix::fs::statvfs(&self.directory).map_err(|error| MetaError::Io(error.to_string()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let needed = self.reserve_bytes.saturating_add(2 * bytes as u64);
        if free < needed { Err(MetaError::NoSpace) } else { Ok(()) }
    }

    fn write_synced(&self, batch: WriteBatch) -> Result<(), MetaError> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = &*failed {
            return Err(error.clone());
        }
        self.check_room(batch.size_in_bytes())?;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(|error| failed.insert(meta_error(error)).clone())
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::None);
    options.set_paranoid_checks(true);
    options.set_write_buffer_size(MEMTABLE_BYTES);
    options.set_max_background_jobs(BACKGROUND_JOBS_MAX);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_manifest_file_size(MANIFEST_BYTES_MAX);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    recovery_options(&mut options);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    table.set_block_size(BLOCK_BYTES);
    options.set_block_based_table_factory(&table);
    options
}

/// How the log is written and replayed.
///
/// A log that was used before is used again: its blocks are allocated, so that a sync writes data and no metadata of
/// the file system. Where the new records end, old ones follow. Replay must therefore take "what comes next is not
/// valid" for the end of the log, which is also what a torn tail looks like that was never synced. Only
/// `PointInTime` does: up to the first record that is not valid, and nothing after it, of no log. The stricter
/// `TolerateCorruptedTailRecords` cannot tell old records from damage and turns the reuse off (RocksDB,
/// `SanitizeOptions`); it would make each sync dearer, and still take a torn last record for the end.
///
/// The price: damage in the middle of the log ends the replay there, in silence. The mark finds that.
fn recovery_options(options: &mut Options) {
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_recycle_log_file_num(2);
    // A whole log that is missing, with one that follows it, would be replayed over: a hole, which the mark, being
    // of the last commit, cannot see.
    options.set_track_and_verify_wals_in_manifest(true);
}

fn meta_error(error: Error) -> MetaError {
    match error.kind() {
        ErrorKind::Corruption => MetaError::Damaged(format!("RocksDB: {error}")),
        // Its "no space" too: see `check_room`.
        _ => MetaError::Io(format!("RocksDB: {error}")),
    }
}

/// RocksDB calls a file that it misses an I/O error; to us its files are one, and damaged without it.
fn open_error(error: Error) -> MetaError {
    let misses = error.kind() == ErrorKind::IOError && error.as_ref().contains("No such file");
    if misses { MetaError::Damaged(format!("RocksDB: {error}")) } else { meta_error(error) }
}

/// A batch in RocksDB's form.
struct Sink(WriteBatch);

impl RawSink for Sink {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.put(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.delete(key);
    }

    fn delete_range(&mut self, range: KeyRange) {
        self.0.delete_range(range.start, range.end);
    }
}

fn read_options() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_verify_checksums(true);
    options
}

impl MetaStore for RocksMeta {
    fn write(&self, batch: &[Change]) -> Result<(), MetaError> {
        let mut sink = Sink(WriteBatch::default());
        for change in batch {
            change.encode(&mut sink);
        }
        self.write_synced(sink.0)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError> {
        if from >= to {
            return Ok(());
        }
        let mut options = read_options();
        options.set_iterate_upper_bound(to);
        // A scan of millions of records would push the catalog out.
        options.fill_cache(false);
        let mut records = self.db.raw_iterator_opt(options);
        records.seek(from);
        while let Some((key, value)) = records.item() {
            if visit(key, value)?.is_break() {
                return Ok(());
            }
            records.next();
        }
        // An iterator that meets damage ends as one that has seen everything; only its status tells them apart.
        records.status().map_err(meta_error)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.db.get_opt(key, &read_options()).map_err(meta_error)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::catalog::format::MapRecord;
    use crate::catalog::format::keys::{COMMIT_KEY, every_range, map_range_from};
    use crate::catalog::memory::{MemoryMeta, collect};
    use crate::units::{ClusterIndex, LayerId, PoolCluster};

    fn random_change(rng: &mut fastrand::Rng) -> Change {
        let (layer, cluster) = (LayerId(rng.u32(1..4)), ClusterIndex(rng.u32(..6)));
        let map = MapRecord { cluster: Some(PoolCluster(rng.u32(..100))), ..MapRecord::default() };
        match rng.u8(..10) {
            0 => Change::DropHashes(layer),
            1 => Change::TrimJournal(rng.u64(..50)),
            2 => Change::Journal(rng.u64(..50), vec![(layer, cluster)]),
            3 | 4 => Change::Hash(layer, cluster, Some([rng.u8(..); 32])),
            5 | 6 => Change::Map(layer, cluster, None),
            _ => Change::Map(layer, cluster, Some(map)),
        }
    }

    /// The twin in memory is only worth something if it does what RocksDB does.
    #[test]
    fn rocksdb_and_its_twin_hold_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(META_DIRECTORY);
        let (twin, mut rng) = (MemoryMeta::new(), fastrand::Rng::with_seed(5));
        let mut rocks = RocksMeta::open(&path, true).unwrap().with_reserve(0);
        for commit in 1..=200 {
            let mut batch: Vec<_> = (0..rng.usize(..6)).map(|_| random_change(&mut rng)).collect();
            batch.push(Change::Commit(commit));
            twin.write(&batch).unwrap();
            rocks.write(&batch).unwrap();
            match rng.u8(..20) {
                0 => rocks.compact().unwrap(),
                1 => {
                    drop(rocks);
                    let read_only = RocksMeta::open_read_only(&path).unwrap();
                    assert_eq!(collect(&read_only, &every_range()).unwrap(), twin.records());
                    assert!(matches!(read_only.write(&batch), Err(MetaError::Io(_))));
                    drop(read_only);
                    rocks = RocksMeta::open(&path, false).unwrap().with_reserve(0);
                }
                _ => {}
            }
            assert_eq!(collect(&rocks, &every_range()).unwrap(), twin.records());
            let part = map_range_from(LayerId(rng.u32(1..4)), ClusterIndex(rng.u32(..6)));
            assert_eq!(collect(&rocks, &part).unwrap(), collect(&twin, &part).unwrap());
            assert_eq!(rocks.get(&COMMIT_KEY).unwrap(), twin.get(&COMMIT_KEY).unwrap());
        }
    }

    #[test]
    fn reading_only_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(META_DIRECTORY);
        let rocks = RocksMeta::open(&path, true).unwrap().with_reserve(0);
        rocks.write(&[Change::Commit(1)]).unwrap();
        drop(rocks);
        let listing = || {
            let entry = |entry: std::io::Result<std::fs::DirEntry>| {
                let entry = entry.unwrap();
                (entry.file_name(), std::fs::read(entry.path()).unwrap())
            };
            std::fs::read_dir(&path).unwrap().map(entry).collect::<std::collections::BTreeMap<_, _>>()
        };
        let before = listing();
        let rocks = RocksMeta::open_read_only(&path).unwrap();
        assert_eq!(collect(&rocks, &every_range()).unwrap().len(), 1);
        drop(rocks);
        assert!(before == listing());
    }

    #[test]
    fn nothing_is_made_or_replaced_by_mistake() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(META_DIRECTORY);
        assert!(RocksMeta::open(&path, false).is_err());
        assert!(RocksMeta::open_read_only(&path).is_err());
        drop(RocksMeta::open(&path, true).unwrap());
        assert!(RocksMeta::open(&path, true).is_err());
        std::fs::remove_file(path.join("CURRENT")).unwrap();
        assert!(RocksMeta::open(&path, false).is_err());
    }

    #[test]
    fn a_batch_without_room_is_refused_before_rocksdb_sees_it() {
        let directory = tempfile::tempdir().unwrap();
        let rocks = RocksMeta::open(&directory.path().join(META_DIRECTORY), true).unwrap();
        let full = rocks.with_reserve(u64::MAX);
        assert_eq!(full.write(&[Change::Commit(1)]), Err(MetaError::NoSpace));
        let rocks = full.with_reserve(0);
        assert_eq!(rocks.get(&COMMIT_KEY).unwrap(), None);
        rocks.write(&[Change::Commit(1)]).unwrap();
    }

    #[test]
    fn a_store_that_was_opened_quietly_merges_files_when_it_may() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(META_DIRECTORY);
        drop(RocksMeta::open(&path, true).unwrap());
        let rocks = RocksMeta::open_quiet(&path).unwrap().with_reserve(0);
        let files = || rocks.db.property_int_value("rocksdb.num-files-at-level0").unwrap().unwrap();
        for commit in 1..=6 {
            rocks.write(&[Change::Commit(commit)]).unwrap();
            rocks.flush().unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        assert_eq!(files(), 6);
        rocks.begin_merging();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while files() == 6 {
            assert!(std::time::Instant::now() < deadline, "nothing is merged");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[test]
    fn a_scan_ends_when_its_visitor_has_enough() {
        let directory = tempfile::tempdir().unwrap();
        let rocks = RocksMeta::open(&directory.path().join(META_DIRECTORY), true).unwrap().with_reserve(0);
        rocks.write(&[Change::Commit(1), Change::Journal(1, vec![]), Change::Journal(2, vec![])]).unwrap();
        let mut seen = 0;
        let all = every_range();
        let mut two = |_: &[u8], _: &[u8]| {
            seen += 1;
            Ok(if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        };
        rocks.scan(&all.start, &all.end, &mut two).unwrap();
        assert_eq!(seen, 2);
        let failure = MetaError::Damaged("said the visitor".into());
        assert_eq!(rocks.scan(&all.start, &all.end, &mut |_, _| Err(failure.clone())), Err(failure));
        assert_eq!(rocks.scan(&all.end, &all.start, &mut |_, _| unreachable!()), Ok(()));
    }
}
