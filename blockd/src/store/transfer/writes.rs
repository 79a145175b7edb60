//! Writes of whole blocks: where they go, and when the map learns of them.

use std::ops::Range;

use nbd_server::disk::{DiskOpKind, ExportIndex};
use nbd_server::export::Io;
use nbd_server::reactor::buffer::Buf;
use smallvec::SmallVec;

use super::super::{DIRTY_RECORDS_LIMIT, Store};
use super::{Run, Target, Task, bytes, clusters, push_run};

impl Store {
    /// Where each cluster's worth of a write goes, or how many clusters are missing.
    fn find_targets(
        &mut self,
        export: ExportIndex,
        range: &Range<u64>,
    ) -> Result<SmallVec<[Target; 4]>, u64> {
        let disk = self.served[export.0 as usize].as_mut().expect("a job's export exists");
        let mut targets = SmallVec::<[Target; 4]>::new();
        let mut missing = 0;
        for (cluster, blocks) in clusters(range) {
            if let Some(place) = disk.map().owned(cluster, blocks) {
                targets.push(Target::in_place(cluster, place, blocks));
                continue;
            }
            let place = disk.own_place(cluster);
            missing += u64::from(place.is_none());
            targets.push(Target::growing(cluster, place, blocks));
        }
        let room = disk.dirty.len() < DIRTY_RECORDS_LIMIT;
        if missing > 0 && (missing > self.pool.free_now() || !room) {
            return Err(missing);
        }
        for target in targets.iter_mut().filter(|target| target.grows) {
            if target.taken {
                target.place = self.pool.take().expect("counted before");
                self.intents.taken(target.place);
            }
            disk.begin_growing(target.cluster, target.place, target.taken);
        }
        Ok(targets)
    }

    pub(in super::super) fn begin_write(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &self.jobs[key];
        let Task::Write { at, buf: Some(buf), .. } = &job.task else { unreachable!("a write with its data") };
        let (export, range) = (job.export, *at..*at + buf.len() as u64);
        if self.must_hold(export, &range) {
            return self.hold_write(key, io);
        }
        let found = self.find_targets(export, &range);
        self.extend_pool(io);
        let Ok(mut found) = found else { return self.starve(key) };
        self.watch_targets(key, &mut found);
        let mut runs = SmallVec::<[Run; 4]>::new();
        for (target, (_, blocks)) in found.iter().zip(clusters(&range)) {
            let (end, first) = (16 - blocks.0.leading_zeros(), blocks.0.trailing_zeros());
            let place = self.pool.place(target.place, first);
            push_run(&mut runs, Some((place.file, place.offset)), bytes(end - first));
        }
        let Task::Write { buf, targets, .. } = &mut self.jobs[key].task else { unreachable!("a write") };
        *targets = found;
        let buf = buf.take().expect("looked at above");
        self.disk_mut(export).unsynced = true;
        self.write_runs(key, &runs, buf, io);
    }

    /// Has the intent log know what is written to blocks that no durable record names.
    fn watch_targets(&mut self, key: usize, targets: &mut [Target]) {
        let mut from = 0;
        for target in targets {
            let shared = target.grows && !target.taken && self.is_written_to(key, target);
            let Task::Write { buf: Some(buf), .. } = &self.jobs[key].task else {
                unreachable!("a write with its data")
            };
            let data = &buf[from..from + bytes(target.blocks.count())];
            target.watched =
                self.intents.write_begins(target.place, target.blocks, data, (target.grows, shared));
            from += data.len();
        }
    }

    /// Whether another write to some of the blocks is under way.
    fn is_written_to(&self, key: usize, target: &Target) -> bool {
        let mut others = self.jobs.iter().filter(|(other, _)| *other != key);
        others.any(|(_, job)| {
            let Task::Write { targets, .. } = &job.task else { return false };
            targets
                .iter()
                .any(|other| other.place == target.place && !other.blocks.and(target.blocks).is_empty())
        })
    }

    fn write_runs(&mut self, key: usize, runs: &[Run], mut buf: Buf, io: &mut Io<'_>) {
        for (part, run) in runs.iter().enumerate() {
            let (file, offset) = run.place.expect("writes go somewhere");
            let piece = if part + 1 == runs.len() {
                std::mem::replace(&mut buf, io.pool().take(0))
            } else {
                buf.split_to(run.bytes)
            };
            let range = offset..offset + piece.len() as u64;
            self.commits.wrote(file);
            self.foresight.wrote(file, &range);
            if let Some(applying) = self.jobs[key].applying {
                self.applying[applying].wrote(file, range);
            }
            self.submit_part(key, part, file, DiskOpKind::Write { offset, done: 0, buf: piece }, io);
        }
    }

    /// The map learns of a write that has ended.
    pub(super) fn write_ended(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let (export, error) = (job.export, job.error);
        let Task::Write { targets, fua, .. } = &mut job.task else { unreachable!("a write") };
        let (targets, fua) = (std::mem::take(targets), *fua);
        for target in targets.iter().filter(|target| !target.watched.is_empty()) {
            self.intents.write_ended(target.place, target.watched, error.is_none());
        }
        for target in targets.iter().filter(|target| target.grows) {
            if error.is_none() && !target.learned.is_empty() {
                self.learn(export, target);
            } else {
                self.forget(export, target);
            }
        }
        match error {
            Some(error) => self.end_job(key, Err(error), io),
            None => self.end_change(key, fua, io),
        }
    }

    fn learn(&mut self, export: ExportIndex, target: &Target) {
        self.recent.touch(export);
        self.intents.learned(target.place, target.learned);
        let disk = self.disk_mut(export);
        disk.install(target.cluster, target.place, target.learned);
        disk.end_growing(target.cluster, true);
    }

    /// A write has failed, or was overtaken: its blocks stay what they are. A cluster that was taken for it, and that no other write
    /// goes to, is given back.
    fn forget(&mut self, export: ExportIndex, target: &Target) {
        let disk = self.disk_mut(export);
        let failed = disk.failed;
        match disk.end_growing(target.cluster, false) {
            Some((place, false)) => self.pool.give_back(place),
            Some((place, true)) if !failed => self.pool.free_later(place),
            _ => {}
        }
    }
}
