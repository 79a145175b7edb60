//! Changes that no commit has made durable yet, kept for the process that comes after this one
//! (docs/on-disk-format.md, "The recent log").
//!
//! **Need.** A write that is answered but not flushed may be lost with the power, and every guest reckons with that:
//! it is gone with it. A daemon that is killed is another matter. The guest goes on, connects to the next daemon and
//! sends a FLUSH there, which promises it everything that it was ever answered. The data are in the page cache; what
//! died with the process is where they lie.
//!
//! **How.** Before replies are sent, whatever changed since the last time is appended: records of open layers as they
//! are now, and bundles of the catalog. What one call appends is one step from a state that could have been committed
//! to the next. A commit covers what was appended before it began; when it is durable, that is forgotten.
//!
//! **When not.** After a failed sync or batch nothing is kept any more: whether the data are there is not known.

use std::io;

use nbd_server::disk::ExportIndex;

use super::Store;
use crate::catalog::format::Change;

/// A commit is asked for when the log holds so many bytes for it.
const COMMIT_BYTES: u64 = 32 << 20;

/// Where changes outlive the process, but need not outlive the power.
pub trait RecentLog {
    /// Adds changes that the commit of that number will make durable; all of them are found, or none. Numbers never
    /// fall, and there are two at a time: of the commit under way, and of the next. Returns the bytes kept for it.
    ///
    /// # Errors
    /// They could not be kept, and neither is what comes later.
    fn append(&mut self, commit: u64, changes: &[Change]) -> io::Result<u64>;

    /// The commit is durable: what was kept for it is of no use any more.
    fn forget(&mut self, commit: u64);

    /// Nothing of it may be used any more.
    fn abandon(&mut self);
}

/// See the module.
pub(super) struct Recent {
    log: Option<Box<dyn RecentLog>>,
    /// The commit that covers what changes now.
    commit: u64,
    /// Disks with changed records that were not appended yet; with repetitions.
    touched: Vec<ExportIndex>,
    /// Empty between calls: kept for its memory.
    changes: Vec<Change>,
}

impl Recent {
    pub(super) fn new(last_commit: u64) -> Self {
        Self { log: None, commit: last_commit + 1, touched: Vec::new(), changes: Vec::new() }
    }

    /// Records of a disk's open layer have changed.
    pub(super) fn touch(&mut self, export: ExportIndex) {
        if self.log.is_some() && self.touched.last() != Some(&export) {
            self.touched.push(export);
        }
    }

    /// A commit with the next number has begun: it covers what was appended so far.
    pub(super) fn begin_commit(&mut self) {
        self.commit += 1;
    }

    pub(super) fn commit_durable(&mut self, commit: u64) {
        if let Some(log) = &mut self.log {
            log.forget(commit);
        }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.log.is_some()
    }

    pub(super) fn abandon(&mut self, why: &str) {
        if let Some(mut log) = self.log.take() {
            tracing::error!(why, "unflushed writes would be lost with this process from now on");
            log.abandon();
        }
        self.touched = Vec::new();
    }
}

impl Store {
    /// Has changes kept for the next process. Comes before any event.
    pub fn keep_recent(&mut self, log: Box<dyn RecentLog>) {
        self.recent.log = Some(log);
    }

    /// Replies are about to be sent: what they tell of is kept first.
    pub fn before_replies(&mut self) {
        self.append_recent();
    }

    /// Appends what has changed since the last time.
    pub(super) fn append_recent(&mut self) {
        let Some(log) = &mut self.recent.log else { return };
        let changes = &mut self.recent.changes;
        for export in self.recent.touched.drain(..) {
            if let Some(Some(disk)) = self.served.get_mut(export.0 as usize)
                && !disk.failed
            {
                disk.untold(changes);
            }
        }
        self.commits.untold(changes);
        if changes.is_empty() {
            return;
        }
        let appended = log.append(self.recent.commit, changes);
        changes.clear();
        match appended {
            Ok(bytes) if bytes >= COMMIT_BYTES => self.commits.want_batch(),
            Ok(_) => {}
            Err(error) => self.recent.abandon(&format!("the recent log cannot be written: {error}")),
        }
    }
}
