//! What a killed process leaves to the next one: the recent log, as it is in memory.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use blockd::catalog::format::Change;
use blockd::catalog::memory::MemoryMeta;
use blockd::catalog::meta::MetaStore;
use blockd::store::RecentLog;

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

    /// Makes durable what was left, as a start does.
    pub fn replay(&self, meta: &MemoryMeta) {
        let (last, kept) = (meta.commit(), self.kept.borrow());
        let left = kept.changes.iter().filter(|(commit, _)| *commit > last && !kept.abandoned);
        let mut batch: Vec<Change> = left.map(|(_, change)| change.clone()).collect();
        let first = last + blockd::recent::COMMITS_AHEAD;
        batch.push(Change::Commit(first));
        meta.write(&batch).expect("memory");
        meta.set_mark(first);
    }
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
