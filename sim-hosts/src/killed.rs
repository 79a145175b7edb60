//! What a crash leaves to the next process: the intent log on the disk, and the recent log, as it is in memory.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use blockd::catalog::format::Change;
use blockd::catalog::memory::MemoryMeta;
use blockd::catalog::meta::MetaStore;
use blockd::intents::{Base, INTENTS_BYTES, INTENTS_OFFSET, Recovered};
use blockd::store::RecentLog;
use blockd::units::{BLOCK_BYTES, CLUSTER_BYTES, PoolCluster};
use fixtures::sim::SimDisk;
use nbd_server::disk::FileId;

#[derive(Default)]
struct Kept {
    /// By the commit that makes them durable.
    changes: Vec<(u64, Change)>,
    abandoned: bool,
    /// The next append fails.
    full: bool,
}

/// Clones are the same log: one for the store, one for the simulator.
#[derive(Clone, Default)]
pub struct SimRecent {
    kept: Rc<RefCell<Kept>>,
}

impl SimRecent {
    /// The next append fails.
    pub fn fill_up(&self) {
        self.kept.borrow_mut().full = true;
    }

    /// The store has given it up.
    pub fn is_abandoned(&self) -> bool {
        self.kept.borrow().abandoned
    }

    /// Makes durable what was left after the power has not gone, as a start does: first what the intent log holds.
    pub fn replay(&self, meta: &MemoryMeta, intents: Vec<Change>) {
        let (last, kept) = (meta.commit(), self.kept.borrow());
        let left = kept.changes.iter().filter(|(commit, _)| *commit > last && !kept.abandoned);
        begin(meta, intents.into_iter().chain(left.map(|(_, change)| change.clone())).collect());
    }
}

/// What the intent log of a disk holds, by the product's own reading.
///
/// # Panics
/// When it is damaged: no crash does that.
pub fn read_intents(disk: &SimDisk, meta: &MemoryMeta) -> Recovered {
    let loaded = blockd::catalog::load::load(meta, meta.mark()).expect("a sound catalog");
    let base = Base { identity: loaded.store.identity, commit: loaded.commit };
    let area = disk.read_file(FileId(0), INTENTS_OFFSET..INTENTS_OFFSET + INTENTS_BYTES as u64);
    let block = |cluster: PoolCluster, block: u32| {
        let files = (0..).zip(loaded.files.values());
        let (file, record) = files.take_while(|(_, record)| record.first <= cluster).last()?;
        let start = u64::from(cluster.0 - record.first.0) * CLUSTER_BYTES + u64::from(block) * BLOCK_BYTES;
        Some(disk.read_file(FileId(file), start..start + BLOCK_BYTES))
    };
    blockd::intents::recover(&area, base, block).expect("a sound intent log")
}

/// Makes the first commit of a start.
pub fn begin(meta: &MemoryMeta, mut batch: Vec<Change>) {
    let first = meta.commit() + blockd::recent::COMMITS_AHEAD;
    batch.push(Change::Commit(first));
    meta.write(&batch).expect("memory");
    meta.set_mark(first);
}

impl RecentLog for SimRecent {
    fn append(&mut self, commit: u64, changes: &[Change]) -> io::Result<u64> {
        let mut kept = self.kept.borrow_mut();
        if std::mem::take(&mut kept.full) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let sections = [commit, commit.wrapping_sub(1)];
        assert!(kept.changes.iter().all(|(found, _)| sections.contains(found)), "a third commit is kept for");
        kept.changes.extend(changes.iter().map(|change| (commit, change.clone())));
        Ok(kept.changes.len() as u64)
    }

    fn forget(&mut self, commit: u64) {
        self.kept.borrow_mut().changes.retain(|(found, _)| *found > commit);
    }

    fn abandon(&mut self) {
        let mut kept = self.kept.borrow_mut();
        kept.abandoned = true;
        kept.changes.clear();
    }
}
