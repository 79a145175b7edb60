//! Reads: runs of the pool that hold a range, and what lies around a write that is not whole.

use std::ops::Range;

use nbd_server::disk::{DiskOp, DiskOpKind, ExportIndex};
use nbd_server::export::{Io, Payload};
use nbd_server::reactor::buffer::Buf;
use smallvec::SmallVec;

use super::super::Store;
use super::{Piece, Pieces, Run, Task, clusters, push_run, source, whole_blocks};
use crate::units::BLOCK_BYTES;

impl Store {
    /// The runs that a range of whole blocks is read from.
    fn runs(&self, export: ExportIndex, range: &Range<u64>) -> SmallVec<[Run; 4]> {
        let map = self.disk(export).map();
        let mut runs = SmallVec::new();
        for (cluster, blocks) in clusters(range) {
            let entry = map.get(cluster);
            for block in (0..crate::units::CLUSTER_BLOCKS).filter(|&block| blocks.has(block)) {
                let place = source(&entry, block).map(|(cluster, block)| {
                    let place = self.pool.place(cluster, block);
                    (place.file, place.offset)
                });
                push_run(&mut runs, place, BLOCK_BYTES as usize);
            }
        }
        runs
    }

    /// Reads runs into a buffer, which is split where they are more than one.
    fn read_runs(&mut self, key: usize, runs: &[Run], mut buf: Buf, holes: bool, io: &mut Io<'_>) -> Pieces {
        let mut pieces = Pieces::new();
        for (part, run) in runs.iter().enumerate() {
            let mut piece = if part + 1 == runs.len() {
                std::mem::replace(&mut buf, io.pool().take(0))
            } else {
                buf.split_to(run.bytes)
            };
            pieces.push(match run.place {
                Some((file, offset)) => {
                    let kind = DiskOpKind::Read { offset, done: 0, buf: piece };
                    self.submit_part(key, part, file, kind, io);
                    Piece::Pending
                }
                None if holes => Piece::Hole(u32::try_from(run.bytes).expect("no longer than a request")),
                None => {
                    piece.fill(0);
                    Piece::Data(piece)
                }
            });
        }
        pieces
    }

    pub(in super::super) fn submit_part(
        &mut self,
        key: usize,
        part: usize,
        file: usize,
        kind: DiskOpKind,
        io: &mut Io<'_>,
    ) {
        let tag = (key as u64) << 32 | part as u64;
        self.jobs[key].pending += 1;
        io.submit(DiskOp { tag, file: self.pool.files()[file].file, kind });
    }

    pub(super) fn begin_read(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let (export, range) = (job.export, job.range.clone());
        let Task::Read { buf, holes, .. } = &mut job.task else { unreachable!("a read") };
        let (buf, holes) = (buf.take().expect("reads begin once"), *holes);
        let runs = self.runs(export, &range);
        let read = self.read_runs(key, &runs, buf, holes, io);
        if let Task::Read { pieces, .. } = &mut self.jobs[key].task {
            *pieces = read;
        }
        if self.jobs[key].pending == 0 {
            self.parts_ended(key, io);
        }
    }

    pub(super) fn read_around(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &self.jobs[key];
        let (export, range) = (job.export, whole_blocks(&job.range));
        let runs = self.runs(export, &range);
        let buf = io.pool().take(usize::try_from(range.end - range.start).expect("fits memory"));
        let read = self.read_runs(key, &runs, buf, false, io);
        if let Task::ReadAround { pieces, .. } | Task::Around { pieces, .. } = &mut self.jobs[key].task {
            *pieces = read;
        }
        if self.jobs[key].pending == 0 {
            self.parts_ended(key, io);
        }
    }

    pub(super) fn read_ahead(&mut self, key: usize, io: &mut Io<'_>) {
        /// More pieces than that are not worth the advice.
        const RUNS_MAX: usize = 64;
        let job = &self.jobs[key];
        let (export, range) = (job.export, whole_blocks(&job.range));
        let runs = self.runs(export, &range);
        let data = runs.iter().filter_map(|run| run.place.map(|place| (place, run.bytes)));
        for (part, ((file, offset), bytes)) in data.take(RUNS_MAX).enumerate() {
            self.submit_part(key, part, file, DiskOpKind::WillNeed { offset, length: bytes as u64 }, io);
        }
        if self.jobs[key].pending == 0 {
            self.end_job(key, Ok(Payload::None), io);
        }
    }
}
