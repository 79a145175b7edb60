//! Recovery: reads the catalog, and refuses a store that is not what was promised.
//!
//! [`load`] and [`scan_pool_use`] stop at the first problem; fsck uses the same checks and collects them all. There
//! is one place that knows what a sound store is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::catalog::format::keys::{self, KeyRange, STORE_KEY, key_text};
use crate::catalog::format::{
    FORMAT_VERSION, LayerRecord, LinkRecord, METADATA_VERSION, MoveRecord, OriginRecord, PoolFileRecord,
    Record, RootRecord, SnapshotRecord, StoreRecord, VolumeRecord, decode_version,
};
use crate::catalog::mark::MarkError;
use crate::catalog::meta::{MetaError, MetaStore};
use crate::units::{ClusterIndex, LayerId, SnapshotId, VolumeId};

mod check;
mod pool_use;
#[cfg(test)]
mod tests;

pub use pool_use::{MapFault, PoolCheck, PoolUse, scan_pool_use};

/// Why a store is not served. The text begins with a code that stays the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// Written by a later program.
    #[error("FORMAT_NEWER: metadata of version {found}, this program knows {METADATA_VERSION}")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Commits that were promised are gone.
    #[error("META_ROLLBACK: the metadata end with commit {commit}, but commit {mark} was promised")]
    Rollback {
        /// The last that is there.
        commit: u64,
        /// The last that anybody was told of.
        mark: u64,
    },
    /// A record that contradicts the format or another record.
    #[error("META_DAMAGED: {0}")]
    Damaged(String),
    /// The pool files that the catalog knows cannot be a pool.
    #[error("POOL_MISMATCH: {0}")]
    Pool(String),
    /// See [`MarkError`].
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// See [`MetaError`].
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// Everything but what there is millions of: map records and hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Identity and next numbers.
    pub store: StoreRecord,
    /// The last batch.
    pub commit: u64,
    /// By number.
    pub volumes: BTreeMap<VolumeId, VolumeRecord>,
    /// By number: oldest first.
    pub snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
    /// By number.
    pub layers: BTreeMap<LayerId, LayerRecord>,
    /// By index.
    pub files: BTreeMap<u16, PoolFileRecord>,
    /// What volumes are to other hosts.
    pub links: BTreeMap<VolumeId, LinkRecord>,
    /// Snapshots that came from other hosts.
    pub origins: BTreeMap<SnapshotId, OriginRecord>,
    /// The last move of each volume that was moved, or is.
    pub moves: BTreeMap<VolumeId, MoveRecord>,
    /// Hashes of layers.
    pub roots: BTreeMap<LayerId, RootRecord>,
    /// What commits changed, oldest first.
    pub journal: BTreeMap<u64, Vec<(LayerId, ClusterIndex)>>,
}

impl Loaded {
    /// Layers that no volume, snapshot or layer refers to: what a merge or deletion under way has still to drop.
    pub fn layers_to_reclaim(&self) -> BTreeSet<LayerId> {
        let heads = self.volumes.values().map(|volume| volume.head);
        let named = self.snapshots.values().map(|snapshot| snapshot.layer);
        let parents = self.layers.values().filter_map(|layer| layer.parent);
        let referred: BTreeSet<_> = heads.chain(named).chain(parents).collect();
        self.layers.keys().copied().filter(|layer| !referred.contains(layer)).collect()
    }

    /// Clusters of all pool files.
    pub fn pool_clusters(&self) -> u64 {
        self.files.values().map(|file| u64::from(file.clusters)).sum()
    }

    fn empty() -> Self {
        let store = StoreRecord {
            version: FORMAT_VERSION,
            identity: [0; 16],
            next_volume: VolumeId(u32::MAX),
            next_layer: LayerId(u32::MAX),
            next_snapshot: SnapshotId(u32::MAX),
            created_ms: 0,
        };
        Self {
            store,
            commit: 0,
            volumes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            layers: BTreeMap::new(),
            files: BTreeMap::new(),
            links: BTreeMap::new(),
            origins: BTreeMap::new(),
            moves: BTreeMap::new(),
            roots: BTreeMap::new(),
            journal: BTreeMap::new(),
        }
    }
}

/// Reads and checks the catalog of a store whose mark is known.
///
/// # Errors
/// The first reason not to serve the store.
pub fn load(store: &dyn MetaStore, mark: u64) -> Result<Loaded, LoadError> {
    let (loaded, problems) = survey(store, mark)?;
    problems.into_iter().next().map_or(Ok(loaded), Err)
}

/// As [`load`], but goes on after a problem: what could be read, and all that is wrong with it. Where the store's
/// own record is missing, one without identity stands in for it.
///
/// # Errors
/// `Newer`: nothing more can be said. `Meta`: the store could not be read to its end.
pub fn survey(store: &dyn MetaStore, mark: u64) -> Result<(Loaded, Vec<LoadError>), LoadError> {
    check_version(store)?;
    let mut reading =
        Reading { loaded: Loaded::empty(), problems: Vec::new(), has_store: false, has_commit: false };
    for range in ranges() {
        store.scan(&range.start, &range.end, &mut |key, value| {
            reading.take(key, value);
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(reading.finish(mark))
}

/// What a later program wrote need not decode: its version is read first, by itself.
fn check_version(store: &dyn MetaStore) -> Result<(), LoadError> {
    let Some(value) = store.get(&STORE_KEY)? else { return Ok(()) };
    match decode_version(&STORE_KEY, &value)? {
        found if found > METADATA_VERSION => Err(LoadError::Newer { found }),
        _ => Ok(()),
    }
}

/// All keys but those of map records and clusters' hashes; keys that no record has, too.
fn ranges() -> [KeyRange; 3] {
    let (maps, hashes, all) = (keys::maps_range(), keys::hashes_range(), keys::every_range());
    [all.start..maps.start, maps.end..hashes.start, hashes.end..all.end]
}

struct Reading {
    loaded: Loaded,
    problems: Vec<LoadError>,
    has_store: bool,
    has_commit: bool,
}

impl Reading {
    fn take(&mut self, key: &[u8], value: &[u8]) {
        let loaded = &mut self.loaded;
        match Record::decode(key, value) {
            Ok(Record::Store(record)) => {
                loaded.store = record;
                self.has_store = true;
            }
            Ok(Record::Commit(commit)) => {
                loaded.commit = commit;
                self.has_commit = true;
            }
            Ok(Record::Volume(id, record)) => drop(loaded.volumes.insert(id, record)),
            Ok(Record::Snapshot(id, record)) => drop(loaded.snapshots.insert(id, record)),
            Ok(Record::Layer(id, record)) => drop(loaded.layers.insert(id, record)),
            Ok(Record::PoolFile(file, record)) => drop(loaded.files.insert(file, record)),
            Ok(Record::Link(id, record)) => drop(loaded.links.insert(id, *record)),
            Ok(Record::Origin(id, record)) => drop(loaded.origins.insert(id, record)),
            Ok(Record::Move(id, record)) => drop(loaded.moves.insert(id, *record)),
            Ok(Record::Root(id, record)) => drop(loaded.roots.insert(id, record)),
            Ok(Record::Journal(commit, changed)) => drop(loaded.journal.insert(commit, changed)),
            // Not in the ranges that are read.
            Ok(Record::Map(..) | Record::Hash(..)) => {
                self.problems.push(LoadError::Damaged(format!("record {} is out of place", key_text(key))));
            }
            Err(error) => self.problems.push(error.into()),
        }
    }

    /// A rollback is named first: what is missing is the cause of what else is wrong.
    fn finish(self, mark: u64) -> (Loaded, Vec<LoadError>) {
        let mut problems = Vec::new();
        if self.loaded.commit < mark {
            problems.push(LoadError::Rollback { commit: self.loaded.commit, mark });
        }
        for (present, what) in [(self.has_store, "store"), (self.has_commit, "commit")] {
            if !present {
                problems.push(LoadError::Damaged(format!("there is no {what} record")));
            }
        }
        problems.extend(self.problems);
        check::catalog(&self.loaded, &mut problems);
        (self.loaded, problems)
    }
}
