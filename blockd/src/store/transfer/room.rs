//! Jobs that wait for room, and pool files that grow.

use nbd_server::disk::{DiskOp, DiskOpKind, ZeroMode};
use nbd_server::export::Io;
use nbd_server::wire::Errno;

use super::super::pool::Extension;
use super::super::{DIRTY_RECORDS_LIMIT, Store};
use super::{TAG_EXTEND, Task};
use crate::units::CLUSTER_BYTES;

impl Store {
    /// A job waits for clusters. It touches none meanwhile: what was freed waits for all operations that began before,
    /// and would wait for this one, which waits for it.
    pub(super) fn starve(&mut self, key: usize) {
        if let Some(era) = self.jobs[key].era.take() {
            self.pool.operation_ended(era);
        }
        self.starved.push_back(key);
    }

    /// Jobs that wait for clusters go on, or fail when there will be none.
    pub(in super::super) fn feed_starved(&mut self, io: &mut Io<'_>) {
        while let Some(key) = self.starved.pop_front() {
            let others = self.starved.len();
            self.jobs[key].era = Some(self.pool.operation_began());
            if matches!(self.jobs[key].task, Task::Zero { .. }) {
                self.begin_zero(key, io);
            } else {
                self.begin_write(key, io);
            }
            if self.starved.len() > others && self.starved.back() == Some(&key) {
                // In order of arrival: the others wait behind it.
                self.starved.pop_back();
                self.starved.push_front(key);
                break;
            }
        }
        if self.starved.is_empty() || self.may_get_clusters(io) {
            return;
        }
        while let Some(key) = self.starved.pop_front() {
            self.end_job(key, Err(Errno::NoSpace), io);
        }
    }

    /// Whether there is hope for more free clusters; asks for what brings them.
    fn may_get_clusters(&mut self, io: &mut Io<'_>) -> bool {
        self.extend_pool(io);
        let dirty = self.served.iter().flatten().any(|disk| disk.dirty.len() >= DIRTY_RECORDS_LIMIT);
        if self.pool.has_freed() || dirty {
            self.commits.want_batch();
        }
        // It rests no longer now that somebody waits, and may be about to free what was deleted long ago.
        self.continue_reclaim(io);
        // What packing has taken it gives back, or frees more for it.
        let working = self.pack.has_taken() || self.reclaim.is_busy();
        let waiting = self.pool.pending_free() > 0 || dirty || working;
        self.extending.is_some() || (waiting && !self.commits.meta_failed)
    }

    /// Has more of the pool's space allocated, if few clusters are left.
    pub(in super::super) fn extend_pool(&mut self, io: &mut Io<'_>) {
        if self.extending.is_some() || self.pool.full {
            return;
        }
        let Some(extension) = self.pool.wants_extension(self.room) else { return };
        let (offset, length) = (u64::from(extension.clusters.start) * CLUSTER_BYTES, extension.bytes());
        let kind = DiskOpKind::Zero { offset, length, mode: ZeroMode::KeepAllocated };
        io.submit(DiskOp { tag: TAG_EXTEND, file: self.pool.files()[extension.file].file, kind });
        self.room -= length;
        self.extending = Some(extension);
    }

    pub(in super::super) fn extended(&mut self, result: Result<usize, Errno>, _io: &mut Io<'_>) {
        let Some(Extension { file, clusters }) = self.extending.take() else { return };
        match result {
            // Without a way to allocate ahead the space comes with the writes.
            Ok(_) | Err(Errno::NotSup) => self.pool.extended(file, clusters.end),
            Err(error) => {
                tracing::warn!(?error, "the pool cannot grow further");
                self.pool.full = true;
            }
        }
    }
}
