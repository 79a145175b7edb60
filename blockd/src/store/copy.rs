//! Blocks are copied from clusters of closed layers into one cluster: by merges, and by packing.
//!
//! All of them are read, then all are written, in as few pieces as they lie in. Who copies says what comes of it.

use nbd_server::disk::DiskOpKind;
use nbd_server::export::Io;
use nbd_server::reactor::buffer::Buf;

use super::Store;
use super::transfer::Task;
use crate::catalog::format::MapRecord;
use crate::map::Source;
use crate::units::{BLOCK_BYTES, Mask, PoolCluster};

/// Blocks that lie side by side where they are and where they go.
struct Run {
    from: PoolCluster,
    /// The first one's place in that cluster.
    at: u32,
    /// Its place in the cluster that they go to.
    to: u32,
    blocks: u32,
    /// What was read.
    buf: Option<Buf>,
}

/// What is copied into one cluster.
pub(super) struct Copying {
    pub(super) to: PoolCluster,
    runs: Vec<Run>,
    /// Everything was read.
    writing: bool,
}

impl Copying {
    pub(super) fn new(to: PoolCluster) -> Self {
        Self { to, runs: Vec::new(), writing: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Blocks of a record go to their own places.
    pub(super) fn add_in_place(&mut self, record: &MapRecord, blocks: Mask) {
        let Some(source) = Source::of(record) else { return };
        for run in blocks.runs() {
            let (at, blocks) = (source.place(run.start), run.end - run.start);
            self.runs.push(Run { from: source.cluster, at, to: run.start, blocks, buf: None });
        }
    }

    /// All blocks of a record go side by side, from block `first` on.
    pub(super) fn add_packed(&mut self, record: &MapRecord, first: u32) {
        let Some(source) = Source::of(record) else { return };
        let mut to = first;
        for run in record.data.runs() {
            let (at, blocks) = (source.place(run.start), run.end - run.start);
            self.runs.push(Run { from: source.cluster, at, to, blocks, buf: None });
            to += blocks;
        }
    }

    pub(super) fn keep(&mut self, part: usize, buf: Buf) {
        self.runs[part].buf = Some(buf);
    }

    /// What was read, joined where it goes side by side: where each piece goes, and the piece.
    fn take_pieces(&mut self, io: &Io<'_>) -> Vec<(u32, Buf)> {
        self.runs.sort_unstable_by_key(|run| run.to);
        let goes_on = |a: &Run, b: &Run| a.to + a.blocks == b.to;
        self.runs.chunk_by_mut(goes_on).map(|runs| (runs[0].to, join(runs, io))).collect()
    }
}

fn bytes(blocks: u32) -> usize {
    blocks as usize * BLOCK_BYTES as usize
}

/// The runs' data in one buffer.
fn join(runs: &mut [Run], io: &Io<'_>) -> Buf {
    let mut data = runs.iter_mut().map(|run| run.buf.take().expect("every run was read"));
    if data.len() == 1 {
        return data.next().expect("one run");
    }
    let data: Vec<Buf> = data.collect();
    let mut all = io.pool().take(data.iter().map(|part| part.len()).sum());
    let mut at = 0;
    for part in data {
        all[at..at + part.len()].copy_from_slice(&part);
        at += part.len();
    }
    all
}

impl Store {
    fn copying(&mut self, key: usize) -> &mut Copying {
        match &mut self.jobs[key].task {
            Task::Merge(merge) => &mut merge.copying,
            Task::Pack(copying) => copying,
            _ => unreachable!("a job that copies"),
        }
    }

    /// Whether a job has written what it copies, or is about to.
    pub(super) fn is_writing(&mut self, key: usize) -> bool {
        self.copying(key).writing
    }

    /// Reads what is to be copied.
    pub(super) fn read_copied(&mut self, key: usize, io: &mut Io<'_>) {
        for part in 0..self.copying(key).runs.len() {
            let run = &self.copying(key).runs[part];
            let (from, at, blocks) = (run.from, run.at, run.blocks);
            let place = self.pool.place(from, at);
            let kind = DiskOpKind::Read { offset: place.offset, done: 0, buf: io.pool().take(bytes(blocks)) };
            self.submit_part(key, part, place.file, kind, io);
        }
    }

    /// Everything was read: writes it.
    pub(super) fn write_copied(&mut self, key: usize, io: &mut Io<'_>) {
        let copying = self.copying(key);
        copying.writing = true;
        let (to, pieces) = (copying.to, copying.take_pieces(io));
        let export = self.jobs[key].export;
        self.disk_mut(export).unsynced = true;
        for (part, (block, buf)) in pieces.into_iter().enumerate() {
            let place = self.pool.place(to, block);
            self.commits.wrote(place.file);
            self.foresight.wrote(place.file, &(place.offset..place.offset + buf.len() as u64));
            let kind = DiskOpKind::Write { offset: place.offset, done: 0, buf };
            self.submit_part(key, part, place.file, kind, io);
        }
    }
}
