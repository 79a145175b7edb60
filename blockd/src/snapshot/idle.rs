//! Hashes new snapshots while nobody waits for it, one after the other, oldest first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
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
pub trait Waits: Sync {
    /// Between two pieces of work, of a mebibyte of data or a run of zeroes.
    fn between_pieces(&self);
    /// Until there may be a new snapshot.
    fn for_work(&self);
}

/// Sleeps. Whoever makes a snapshot or stops the hasher unparks its thread.
#[derive(Clone, Copy, Debug)]
pub struct Sleeps {
    /// After each mebibyte: 10 ms limit the hasher to 100 MiB/s.
    pub between_pieces: Duration,
    /// Without being woken.
    pub for_work: Duration,
}

impl Default for Sleeps {
    fn default() -> Self {
        Self { between_pieces: Duration::from_millis(10), for_work: Duration::from_secs(60) }
    }
}

impl Waits for Sleeps {
    fn between_pieces(&self) {
        thread::sleep(self.between_pieces);
    }

    fn for_work(&self) {
        thread::park_timeout(self.for_work);
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
    while !stop.load(Ordering::Relaxed) {
        match hasher.hash_next(submit, stop, waits) {
            Ok(true) => {}
            Ok(false) => waits.for_work(),
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
        Self { reader: reader.on_one_thread(), failed: BTreeSet::new() }
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
                !stop.load(Ordering::Relaxed)
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

    /// Snapshots without a hash, oldest first: what they share with later ones is hashed by then.
    fn unhashed(&self) -> Result<Vec<(SnapshotId, SnapshotName)>, MetaError> {
        let meta = &*self.reader.meta;
        let (volumes, snapshots) = names(meta)?;
        let mut unhashed = Vec::new();
        for (id, record) in snapshots {
            let Some(volume) = volumes.get(&record.volume) else { continue };
            if !self.failed.contains(&id) && recorded_root(meta, record.layer, record.size)?.is_none() {
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
