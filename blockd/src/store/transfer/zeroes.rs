//! Zeroes and trims: changes of the map, and of the edges that are not whole blocks.

use std::ops::Range;

use nbd_server::disk::ExportIndex;
use nbd_server::export::Io;

use super::super::Store;
use super::{Job, Task, clusters, whole_blocks};
use crate::units::{BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex};

impl Store {
    pub(super) fn begin_zero(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &self.jobs[key];
        let Task::Zero { keep, .. } = job.task else { unreachable!("a zeroing") };
        let (export, range) = (job.export, job.range.clone());
        let size = self.disk(export).size;
        let end = if range.end == size { size.next_multiple_of(BLOCK_BYTES) } else { range.end };
        let middle = range.start.next_multiple_of(BLOCK_BYTES)..end / BLOCK_BYTES * BLOCK_BYTES;
        if middle.start < middle.end && !self.zero_blocks(export, &middle, keep) {
            self.extend_pool(io);
            return self.starve(key);
        }
        self.jobs[key].pending += 1;
        for edge in edges(&(range.start..end)) {
            self.zero_edge(key, edge, io);
        }
        self.part_ended(key, None, io);
        // While it waited for clusters it kept others from beginning; its parts stand behind those.
        self.admit(export, io);
    }

    /// Writes under way, of which the map has not learned, come before a zeroing that is about to happen: the map must
    /// not learn of those blocks any more. (What lies there when the write ends need not even be its own data: a
    /// write that was answered before the zeroing began may have reached the medium later.)
    fn overtake_writes(&mut self, export: ExportIndex, range: &Range<u64>) {
        for (_, job) in self.jobs.iter_mut().filter(|(_, job)| job.export == export) {
            let Task::Write { targets, .. } = &mut job.task else { continue };
            for target in targets.iter_mut().filter(|target| target.grows) {
                let start = target.cluster.start();
                let zeroed = range.start.max(start)..range.end.min(start + CLUSTER_BYTES);
                if zeroed.start < zeroed.end
                    && let Some((_, blocks)) = clusters(&zeroed).next()
                {
                    target.learned = target.learned.without(blocks);
                }
            }
        }
    }

    /// Whether there are clusters for every cluster of a range that has none of its own.
    fn can_reserve(&self, export: ExportIndex, range: &Range<u64>) -> bool {
        let disk = self.disk(export);
        let missing =
            clusters(range).filter(|&(cluster, _)| disk.own_place(cluster).is_none()).count() as u64;
        missing <= self.pool.free_now()
    }

    /// Makes whole blocks zero. False: not now, for there are no clusters to keep for them.
    fn zero_blocks(&mut self, export: ExportIndex, range: &Range<u64>, keep: bool) -> bool {
        if keep && !self.can_reserve(export, range) {
            return false;
        }
        self.recent.touch(export);
        if !self.disk(export).growing.is_empty() {
            self.overtake_writes(export, range);
        }
        let disk = self.served[export.0 as usize].as_mut().expect("a job's export exists");
        if keep {
            for (cluster, blocks) in clusters(range) {
                let reserve = disk.own_place(cluster).or_else(|| self.pool.take());
                let unused = disk.zero(cluster, blocks, reserve, true);
                debug_assert!(unused.is_none());
                if let Some(growing) = disk.growing.get_mut(&cluster) {
                    (growing.installed, growing.named) = (true, true);
                }
            }
            return true;
        }
        let first = range.start / CLUSTER_BYTES;
        let mapped: Vec<ClusterIndex> =
            disk.map().mapped_from(first).take_while(|cluster| cluster.start() < range.end).collect();
        for cluster in mapped {
            let part = range.start.max(cluster.start())..range.end.min(cluster.start() + CLUSTER_BYTES);
            let (_, blocks) = clusters(&part).next().expect("a part of the range");
            // What the durable records of a volume that has failed name stays theirs.
            if let Some(unused) = disk.zero(cluster, blocks, None, false)
                && !disk.failed
            {
                self.pool.free_later(unused);
            }
        }
        true
    }

    /// Zeroes bytes inside a block, if there is anything to zero.
    fn zero_edge(&mut self, parent: usize, edge: Range<u64>, io: &mut Io<'_>) {
        let export = self.jobs[parent].export;
        let (cluster, blocks) = clusters(&whole_blocks(&edge)).next().expect("a block");
        if self.disk(export).map().get(cluster).visible().and(blocks).is_empty()
            && !self.disk(export).growing.contains_key(&cluster)
        {
            return;
        }
        self.jobs[parent].pending += 1;
        let job = Job::around(export, None, edge, None, false);
        self.add_job(Job { parent: Some(parent), ..job }, io);
    }
}

/// The parts of a range that are not whole blocks: at most one at each end.
fn edges(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { start, end } = *range;
    let (first, last) = (start.next_multiple_of(BLOCK_BYTES), end / BLOCK_BYTES * BLOCK_BYTES);
    let parts = if first > last { [start..end, end..end] } else { [start..first, last..end] };
    parts.into_iter().filter(|part| part.start < part.end)
}
