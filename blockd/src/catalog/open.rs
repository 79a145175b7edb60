//! How a daemon comes to its metadata: the order in which they are made, and in which they are believed.

use std::path::Path;

use crate::catalog::format::Change;
use crate::catalog::load::{LoadError, Loaded, load};
use crate::catalog::mark::{Mark, Slots, check_identity};
use crate::catalog::meta::MetaStore;
use crate::catalog::rocks::{META_DIRECTORY, RocksMeta};

/// The metadata of a store that may be served.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub meta: RocksMeta,
    /// Its mark, at the store's last commit.
    pub mark: Mark,
    /// Its catalog.
    pub loaded: Loaded,
}

/// Makes the metadata of a new store, `reserve_bytes` of whose file system are kept free for them: RocksDB with its first batch, commit 1, then the mark. The mark comes last: it
/// makes the names of both durable, and a store whose making was cut short has none and is refused.
///
/// # Errors
/// `Meta`, `Mark`; also if there are any already.
pub fn create(
    data: &Path,
    identity: [u8; 16],
    first: &[Change],
    reserve_bytes: u64,
) -> Result<Opened, LoadError> {
    let meta = RocksMeta::open(&data.join(META_DIRECTORY), true)?.with_reserve(reserve_bytes);
    meta.write(first)?;
    let mut mark = Mark::create(data, identity)?;
    mark.advance(1)?;
    let loaded = load(&meta, mark.commit())?;
    check_identity(identity, loaded.store.identity)?;
    Ok(Opened { meta, mark, loaded })
}

/// A store that was looked at and found sound, for reading only.
#[derive(Debug)]
pub struct Seen {
    identity: [u8; 16],
    /// Its catalog.
    pub loaded: Loaded,
}

/// Looks at the metadata of a store, or refuses them; every file stays as it was.
///
/// RocksDB opened for writing throws away the part of its log that it did not replay; after that nobody could mend
/// what was refused. So all checks are made on a store that is opened for reading only, and made again on what is
/// then opened for writing: it must be the same. Once each: RocksDB replays its log every time.
///
/// # Errors
/// The first reason not to serve the store.
pub fn look(data: &Path) -> Result<Seen, LoadError> {
    let (identity, mark) = Slots::read(data)?.newest()?;
    let loaded = load(&RocksMeta::open_read_only(&data.join(META_DIRECTORY))?, mark)?;
    check_identity(identity, loaded.store.identity)?;
    Ok(Seen { identity, loaded })
}

/// Opens the metadata of a store that was looked at, quietly: see [`RocksMeta::open_quiet`].
///
/// # Errors
/// The first reason not to serve the store.
pub fn open(data: &Path, seen: &Seen, reserve_bytes: u64) -> Result<Opened, LoadError> {
    let meta = RocksMeta::open_quiet(&data.join(META_DIRECTORY))?.with_reserve(reserve_bytes);
    let loaded = load(&meta, seen.loaded.commit)?;
    let mut mark = Mark::open(data, seen.identity)?;
    // A commit that nobody was told of. It is durable now, if it was not before: recovery has written out what it
    // replayed.
    mark.advance(loaded.commit)?;
    Ok(Opened { meta, mark, loaded })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;
    use crate::catalog::format::{FORMAT_VERSION, StoreRecord};
    use crate::units::{LayerId, SnapshotId, VolumeId};

    const IDENTITY: [u8; 16] = [8; 16];

    fn first() -> Vec<Change> {
        let store = StoreRecord {
            version: FORMAT_VERSION,
            identity: IDENTITY,
            next_volume: VolumeId(1),
            next_layer: LayerId(1),
            next_snapshot: SnapshotId(1),
            created_ms: 1,
        };
        vec![Change::Store(store), Change::Commit(1)]
    }

    fn store() -> (tempfile::TempDir, Opened) {
        let data = tempfile::tempdir().unwrap();
        let opened = create(data.path(), IDENTITY, &first(), 0).unwrap();
        (data, opened)
    }

    fn open(data: &Path) -> Result<Opened, LoadError> {
        super::open(data, &look(data)?, 0)
    }

    fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files.extend(self::files(&path));
            } else {
                files.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
        files
    }

    #[test]
    fn a_store_opens_as_it_was_made() {
        let (data, created) = store();
        let loaded = created.loaded.clone();
        drop(created);
        let opened = open(data.path()).unwrap();
        assert_eq!((opened.loaded, opened.mark.commit()), (loaded, 1));
    }

    #[test]
    fn the_mark_is_brought_up_to_a_commit_that_nobody_was_told_of() {
        let (data, created) = store();
        created.meta.write(&[Change::Commit(2)]).unwrap();
        drop(created);
        assert_eq!(open(data.path()).unwrap().mark.commit(), 2);
        assert_eq!(Slots::read(data.path()).unwrap().newest(), Ok((IDENTITY, 2)));
    }

    /// With damage in the middle of its log, RocksDB would throw the rest away and write a file of what it kept.
    #[test]
    fn a_store_that_is_refused_stays_as_it_was_found() {
        let (data, mut created) = store();
        for commit in 2..=5 {
            created.meta.write(&[Change::Commit(commit)]).unwrap();
            created.mark.advance(commit).unwrap();
        }
        drop(created);
        let (log, mut bytes) =
            files(data.path()).into_iter().find(|(path, _)| path.extension().is_some()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(log, bytes).unwrap();
        let before = files(data.path());
        let error = open(data.path()).unwrap_err().to_string();
        assert!(error.starts_with("META_ROLLBACK: "), "{error}");
        assert!(files(data.path()) == before);
    }

    #[test]
    fn another_stores_mark_is_refused() {
        let (data, created) = store();
        drop(created);
        let (other, _) = store();
        std::fs::remove_file(data.path().join("mark")).unwrap();
        Mark::create(data.path(), [1; 16]).unwrap();
        let error = open(data.path()).unwrap_err().to_string();
        assert!(error.starts_with("MARK_MISMATCH: "), "{error}");
        assert!(create(other.path(), IDENTITY, &first(), 0).is_err(), "there is a store already");
    }

    #[test]
    fn a_store_whose_making_was_cut_short_is_refused() {
        let (data, created) = store();
        drop(created);
        std::fs::remove_file(data.path().join("mark")).unwrap();
        assert!(open(data.path()).unwrap_err().to_string().starts_with("MARK_DAMAGED: "));
    }
}
