//! What becomes of disk operations, parts and jobs that have ended.

use nbd_server::disk::{DiskDone, DiskOpKind, Progress, transfer_progress};
use nbd_server::export::{Extent, Io, Payload};
use nbd_server::reactor::buffer::Buf;
use nbd_server::wire::Errno;
use smallvec::SmallVec;

use super::super::commit::Waiter;
use super::super::reclaim::Merge;
use super::super::{DIRTY_RECORDS_MAX, Store};
use super::{Piece, Pieces, Task, whole_blocks};
use crate::units::BLOCK_BYTES;

impl Store {
    /// A disk operation of a job has ended.
    pub(in super::super) fn transfer_done(&mut self, done: DiskDone, io: &mut Io<'_>) {
        let (key, part) = ((done.op.tag >> 32) as usize, done.op.tag as u32 as usize);
        if matches!(done.op.kind, DiskOpKind::WillNeed { .. }) {
            // Advice that could not be followed is no error of the request.
            return self.part_ended(key, None, io);
        }
        let read = matches!(done.op.kind, DiskOpKind::Read { .. });
        match transfer_progress(done) {
            Progress::Continue(op) => io.submit(op),
            Progress::Failed(error, _) => self.part_ended(key, Some(error), io),
            Progress::Complete(buf) => {
                if read {
                    self.keep_piece(key, part, buf);
                }
                self.part_ended(key, None, io);
            }
        }
    }

    fn keep_piece(&mut self, key: usize, part: usize, buf: Buf) {
        match &mut self.jobs[key].task {
            Task::Read { pieces, .. } | Task::ReadAround { pieces, .. } | Task::Around { pieces, .. } => {
                pieces[part] = Piece::Data(buf);
            }
            Task::Merge(Merge { copying, .. }) | Task::Pack(copying) => copying.keep(part, buf),
            Task::Write { .. } | Task::Zero { .. } | Task::Cache | Task::Status(_) => {
                unreachable!("these do not read")
            }
        }
    }

    pub(super) fn part_ended(&mut self, key: usize, error: Option<Errno>, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        job.error = job.error.or(error);
        job.pending -= 1;
        if job.pending == 0 {
            self.parts_ended(key, io);
        }
    }

    /// Everything that a job has started has ended: its next stage, or its end.
    pub(super) fn parts_ended(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        match (&mut job.task, job.error) {
            (Task::Write { .. }, _) => self.write_ended(key, io),
            (Task::Merge(_), _) => self.merge_parts_ended(key, io),
            (Task::Pack(_), _) => self.pack_parts_ended(key, io),
            (_, Some(error)) => self.end_job(key, Err(error), io),
            (Task::Read { pieces, .. }, None) => {
                let payload = payload(std::mem::take(pieces));
                self.end_job(key, Ok(payload), io);
            }
            (Task::ReadAround { .. }, None) => self.read_around_ended(key, io),
            (Task::Around { .. }, None) => self.change_around(key, io),
            (&mut Task::Zero { fua, .. }, None) => self.end_change(key, fua, io),
            (Task::Cache, None) => self.end_job(key, Ok(Payload::None), io),
            (Task::Status(_), None) => unreachable!("a question has no parts"),
        }
    }

    fn read_around_ended(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let skip = (job.range.start % BLOCK_BYTES) as usize;
        let Task::ReadAround { user, pieces } = &mut job.task else { unreachable!("a read") };
        let blocks = gather(std::mem::take(pieces), io);
        let mut user = std::mem::replace(user, io.pool().take(0));
        let length = user.len();
        user.copy_from_slice(&blocks[skip..skip + length]);
        self.end_job(key, Ok(Payload::Data(user)), io);
    }

    /// The blocks around have been read: change the bytes and write them.
    fn change_around(&mut self, key: usize, io: &mut Io<'_>) {
        let job = &mut self.jobs[key];
        let outer = whole_blocks(&job.range);
        let skip = (job.range.start - outer.start) as usize;
        let length = (job.range.end - job.range.start) as usize;
        let Task::Around { payload, fua, pieces } = &mut job.task else { unreachable!("a change") };
        let mut blocks = gather(std::mem::take(pieces), io);
        match payload.take() {
            Some(payload) => blocks[skip..skip + length].copy_from_slice(&payload),
            None => blocks[skip..skip + length].fill(0),
        }
        let fua = *fua;
        job.task = Task::Write { buf: Some(blocks), at: outer.start, fua, targets: SmallVec::new() };
        self.begin_write(key, io);
    }

    /// A change is on the medium, and in the map: have it mirrored, if that is wanted, before it is answered.
    pub(super) fn end_change(&mut self, key: usize, fua: bool, io: &mut Io<'_>) {
        let export = self.jobs[key].export;
        if self.disk(export).dirty.len() >= DIRTY_RECORDS_MAX {
            self.commits.want_batch();
        }
        if !self.park(key, fua, io) {
            self.end_mirrored_change(key, fua, io);
        }
    }

    /// A change is wherever it has to be: answer, or make it durable first.
    pub(in super::super) fn end_mirrored_change(&mut self, key: usize, fua: bool, io: &mut Io<'_>) {
        let export = self.jobs[key].export;
        let job = &mut self.jobs[key];
        match job.client.filter(|_| fua) {
            Some(id) => {
                job.client = None;
                self.end_job(key, Ok(Payload::None), io);
                self.make_durable(Waiter::Request { id, export }, io);
            }
            None => self.end_job(key, Ok(Payload::None), io),
        }
    }

    /// The end of a job: whoever waits for it goes on.
    pub(in super::super) fn end_job(&mut self, key: usize, outcome: Result<Payload, Errno>, io: &mut Io<'_>) {
        let job = self.jobs.remove(key);
        if let Some(era) = job.era {
            self.pool.operation_ended(era);
        }
        self.counters.errors += u64::from(outcome.is_err());
        let error = outcome.as_ref().err().copied();
        let read = match job.client {
            Some(id) => {
                self.throttle.request_left();
                io.reply(id, outcome);
                None
            }
            None => job.mirroring.map(|batch| (batch, outcome)),
        };
        let disk = self.disk_mut(job.export);
        disk.jobs -= 1;
        disk.merges -= u32::from(job.is_merge());
        disk.changing -= u32::from(job.changes() && job.active);
        disk.exclusive -= u32::from(job.exclusive && job.active);
        let waiting = !disk.waiting.is_empty() && job.changes();
        disk.drop_idle_view();
        if let Some(parent) = job.parent {
            self.part_ended(parent, error, io);
        }
        if let Some(applying) = job.applying {
            self.applied(applying, error, io);
        }
        if let Some((batch, outcome)) = read {
            self.mirror_read(job.export, batch, job.range.start, outcome);
        }
        if waiting {
            self.admit(job.export, io);
        }
    }
}

fn payload(mut pieces: Pieces) -> Payload {
    if let [Piece::Data(_)] = pieces[..]
        && let Some(Piece::Data(buf)) = pieces.pop()
    {
        return Payload::Data(buf);
    }
    let extent = |piece| match piece {
        Piece::Data(buf) => Extent::Data(buf),
        Piece::Hole(bytes) => Extent::Hole(bytes),
        Piece::Pending => unreachable!("every part has ended"),
    };
    Payload::Extents(pieces.into_iter().map(extent).collect())
}

/// The pieces of a read, side by side in one buffer.
fn gather(mut pieces: Pieces, io: &Io<'_>) -> Buf {
    if let [Piece::Data(_)] = pieces[..]
        && let Some(Piece::Data(buf)) = pieces.pop()
    {
        return buf;
    }
    let parts = pieces.iter().map(|piece| match piece {
        Piece::Data(buf) => &buf[..],
        Piece::Hole(_) | Piece::Pending => unreachable!("read without holes, to the end"),
    });
    let mut all = io.pool().take(parts.clone().map(<[u8]>::len).sum());
    let mut at = 0;
    for part in parts {
        all[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    all
}
