//! Hashes new snapshots while nobody waits for it, one after the other, oldest first. In between it removes the tree
//! caches of volumes that are gone.
//!
//! What it hashes is pinned. It lets go when layers are to be reclaimed, and goes on later with what it has kept: a large
//! snapshot takes hours at this pace, and so long no space would be given back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::compute::{hash, recorded_root};
use super::reader::ClosedReader;
use super::{Submit, meta_error, with_pin};
use crate::catalog::format::keys::catalog_range;
use crate::catalog::format::{Record, SnapshotRecord};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::control::{ControlError, ErrorKind, SnapshotName};
use crate::units::{SnapshotId, VolumeId};

/// The lowest priority that a thread may have.
const NICE_MAX: i32 = 19;

/// How the hasher passes the time. Must return soon once it is to stop.
pub trait Waits {
    /// Between two pieces of work, of a mebibyte of data or a run of zeroes.
    fn between_pieces(&self);
    /// Until there may be a new snapshot.
    fn for_work(&self);
    /// Until whatever the hasher was in the way of has begun.
    fn for_others(&self);
    /// Space of deleted snapshots cannot be given back while layers are pinned: the hasher lets go of its own.
    fn is_in_the_way(&self) -> bool;
}

/// Sleeps. Whoever makes a snapshot or stops the hasher unparks its thread.
#[derive(Clone, Debug)]
pub struct Sleeps {
    /// After each mebibyte: 10 ms limit the hasher to 100 MiB/s.
    pub between_pieces: Duration,
    /// Without being woken.
    pub for_work: Duration,
    /// Told by the store.
    pub in_the_way: Arc<AtomicBool>,
}

impl Default for Sleeps {
    fn default() -> Self {
        let in_the_way = Arc::default();
        Self { between_pieces: Duration::from_millis(10), for_work: Duration::from_secs(60), in_the_way }
    }
}

impl Waits for Sleeps {
    fn between_pieces(&self) {
        thread::sleep(self.between_pieces);
    }

    fn for_work(&self) {
        thread::park_timeout(self.for_work);
    }

    fn for_others(&self) {
        thread::park_timeout(Duration::from_secs(1));
    }

    fn is_in_the_way(&self) -> bool {
        self.in_the_way.load(Ordering::Relaxed)
    }
}

/// Hashes all snapshots that have no hash, and those that will come, until `stop` is set. The thread that calls it
/// gets the lowest priority.
pub fn run_hasher(reader: &ClosedReader, submit: &Submit<'_>, stop: &AtomicBool, waits: &dyn Waits) {
    // Of this thread alone: Linux takes "this process" so.
    if let Err(error) = rustix::process::setpriority_process(None, NICE_MAX) {
        tracing::debug!(%error, "the hasher runs at normal priority");
    }
    let mut hasher = Hasher::new(reader);
    hasher.tidy();
    while !stop.load(Ordering::Relaxed) {
        match hasher.hash_next(submit, stop, waits) {
            Ok(true) => {}
            Ok(false) if waits.is_in_the_way() => waits.for_others(),
            Ok(false) => {
                hasher.tidy();
                waits.for_work();
            }
            Err(error) => {
                tracing::warn!(%error, "a snapshot was not hashed");
                waits.for_work();
            }
        }
    }
}

/// Finds snapshots without a hash.
#[derive(Debug)]
pub struct Hasher {
    reader: ClosedReader,
    /// Not tried again before the next start: their data cannot be read.
    failed: BTreeSet<SnapshotId>,
}

impl Hasher {
    /// One that has not failed yet.
    pub fn new(reader: &ClosedReader) -> Self {
        Self { reader: reader.in_background(), failed: BTreeSet::new() }
    }

    /// Hashes one snapshot; `false` if there is none that could be hashed now.
    ///
    /// # Errors
    /// Why it was not. If it cannot be read, it is left alone from now on.
    pub fn hash_next(
        &mut self,
        submit: &Submit<'_>,
        stop: &AtomicBool,
        waits: &dyn Waits,
    ) -> Result<bool, ControlError> {
        for (id, name) in self.unhashed().map_err(meta_error)? {
            let mut go_on = |_, _| {
                waits.between_pieces();
                !stop.load(Ordering::Relaxed) && !waits.is_in_the_way()
            };
            let hashed = with_pin(submit, &name, |pinned| hash(&self.reader, pinned, submit, &mut go_on));
            match hashed.map_err(|error| (error.kind, error)) {
                Ok(_) => return Ok(true),
                // Its layers are being merged, or it is gone.
                Err((ErrorKind::Busy | ErrorKind::NotFound, _)) => {}
                Err((ErrorKind::Stopping, _)) => return Ok(false),
                Err((kind, error)) => {
                    if matches!(kind, ErrorKind::Io | ErrorKind::Damaged) {
                        self.failed.insert(id);
                    }
                    return Err(error);
                }
            }
        }
        Ok(false)
    }

    /// Removes the tree caches of volumes that are gone.
    fn tidy(&self) {
        let Some(trees) = &self.reader.trees else { return };
        let volumes = names(&*self.reader.meta).map_err(|error| io::Error::other(error.to_string()));
        let removed = volumes.and_then(|(volumes, _)| trees.remove_others(&volumes.into_keys().collect()));
        if let Err(error) = removed {
            tracing::warn!(%error, "tree caches that nobody uses any more stay");
        }
    }

    /// Snapshots without a hash that nobody else is about to hash, oldest first: what they share with later ones is hashed by then.
    fn unhashed(&self) -> Result<Vec<(SnapshotId, SnapshotName)>, MetaError> {
        let meta = &*self.reader.meta;
        let (volumes, snapshots) = names(meta)?;
        let mut unhashed = Vec::new();
        for (id, record) in snapshots {
            let Some(volume) = volumes.get(&record.volume) else { continue };
            // Who wants it hashes it, and records what it finds.
            let wanted = self.reader.trees.as_ref().is_some_and(|trees| trees.is_wanted(record.volume));
            if !wanted
                && !self.failed.contains(&id)
                && recorded_root(meta, record.layer, record.size)?.is_none()
            {
                unhashed.push((id, SnapshotName { volume: volume.clone(), snapshot: record.name }));
            }
        }
        Ok(unhashed)
    }
}

/// The names of volumes, and all snapshots.
type Names = (BTreeMap<VolumeId, String>, BTreeMap<SnapshotId, SnapshotRecord>);

fn names(meta: &dyn MetaStore) -> Result<Names, MetaError> {
    let (mut volumes, mut snapshots) = (BTreeMap::new(), BTreeMap::new());
    let range = catalog_range();
    meta.scan(&range.start, &range.end, &mut |key, value| {
        match Record::decode(key, value)? {
            Record::Volume(id, record) => drop(volumes.insert(id, record.name)),
            Record::Snapshot(id, record) => drop(snapshots.insert(id, record)),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((volumes, snapshots))
}
