//! The intent log: a commit that has only map records to make durable writes them beside the data, and needs one sync
//! where RocksDB and the mark need two more (docs/on-disk-format.md, "The intent log").
//!
//! ```text
//!  fresh ──commit: frame written──► under way ──synced──► unproved ──next frame synced, or batch──► nothing to know
//!   │ CRC known                     │ commit failed: nobody was told                ▲ writes to these blocks wait
//!   └─ CRC not known: a batch, as without the log
//! ```
//!
//! **Fresh** blocks are those that no durable record names yet. Their checksums are taken when they are written: the
//! frame that names them first has them, so that a start can tell a commit that was cut short from a whole one.
//!
//! **Unproved** are the blocks of the last frame. Nothing on the medium says that its sync has ended: a start compares
//! their checksums. So they are not written again before something says so; writes to them are *held*, and have a frame
//! without records written if nothing else comes.
//!
//! RocksDB gets the records with the next batch, which comes every few seconds, when the log is full, and with whatever
//! else is to be recorded. What no frame can vouch for (blocks that were moved, or written by two writes at once) goes
//! into a batch at once.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use nbd_server::disk::{DiskDone, DiskOp, DiskOpKind, ExportIndex, Progress, transfer_progress};
use nbd_server::export::Io;
use nbd_server::reactor::buffer::Buf;
use nbd_server::wire::Errno;

use super::Store;
use super::transfer::clusters;
use crate::catalog::format::{Change, INTENTS_VERSION};
use crate::intents::{self, Base, Checked, INTENTS_BYTES, INTENTS_OFFSET};
use crate::units::{BLOCK_BYTES, CLUSTER_BLOCKS, Mask, PoolCluster};

/// Tag of writes to the log.
pub(super) const TAG_INTENT: u64 = u64::MAX - 2;

/// Clusters with fresh blocks that are watched: more than a frame has room for. The records of others go to a batch.
const FRESH_CLUSTERS_MAX: usize = 1024;

/// Blocks of a cluster that no durable record names, as far as they are written.
#[derive(Clone, Copy, Debug, Default)]
struct Fresh {
    crc: [u32; CLUSTER_BLOCKS as usize],
    /// Their checksum is that of the last write, and no other is under way.
    known: Mask,
    /// Two writes were under way at once, or one has failed: what is there is not known.
    doubtful: Mask,
    /// Writes under way.
    flying: [u8; CLUSTER_BLOCKS as usize],
}

impl Fresh {
    fn in_flight(&self) -> Mask {
        let flying = (0..CLUSTER_BLOCKS).filter(|&block| self.flying[block as usize] > 0);
        flying.fold(Mask::NONE, |mask, block| mask.with(Mask::of(block..block + 1)))
    }

    /// A commit takes what is known; what is under way stays.
    fn settle(&mut self) -> bool {
        let in_flight = self.in_flight();
        (self.known, self.doubtful) = (Mask::NONE, self.doubtful.and(in_flight));
        !in_flight.is_empty()
    }
}

/// The log itself: what was written since the last batch.
struct Log {
    base: Base,
    /// Of the next frame.
    number: u32,
    /// As they are in the file.
    bytes: Vec<u8>,
}

type Blocks = HashMap<PoolCluster, Mask>;

/// See the module.
#[derive(Default)]
pub(super) struct Intents {
    /// `None`: there is none, or it has failed.
    log: Option<Log>,
    fresh: HashMap<PoolCluster, Fresh>,
    /// A record has changed that no frame can vouch for.
    unchecked: bool,
    /// Blocks of the frame under way.
    under_way: Blocks,
    unproved: Blocks,
    /// Records of durable frames, in order: the metadata store lacks them.
    pub(super) records: Vec<Change>,
    /// Writes that wait until the blocks that they are for are proved.
    held: VecDeque<usize>,
    /// Frames made durable.
    pub(super) frames: u64,
    /// Writes that had to wait.
    pub(super) holds: u64,
}

fn each_block(blocks: Mask) -> impl Iterator<Item = usize> {
    (0..CLUSTER_BLOCKS).filter(move |&block| blocks.has(block)).map(|block| block as usize)
}

impl Intents {
    /// A write of blocks begins; `data` are theirs, one after the other. `new`: no record names the blocks.
    /// `shared`: another write to some of them is under way. Returns the blocks that [`Self::write_ended`] is to be
    /// told of.
    pub(super) fn write_begins(
        &mut self,
        place: PoolCluster,
        blocks: Mask,
        data: &[u8],
        (new, shared): (bool, bool),
    ) -> Mask {
        let room = self.fresh.len() < FRESH_CLUSTERS_MAX;
        if self.log.is_none() || !new && self.fresh.is_empty() {
            return Mask::NONE;
        }
        let fresh = match self.fresh.get_mut(&place) {
            Some(fresh) => fresh,
            None if new && room => self.fresh.entry(place).or_default(),
            None => return Mask::NONE,
        };
        let watched = fresh.known.with(fresh.doubtful).with(fresh.in_flight());
        let watched = if new { blocks } else { blocks.and(watched) };
        if shared {
            fresh.doubtful = fresh.doubtful.with(watched);
        }
        for (block, bytes) in each_block(blocks).zip(data.chunks_exact(BLOCK_BYTES as usize)) {
            if !watched.has(block as u32) {
                continue;
            }
            if fresh.flying[block] > 0 {
                fresh.doubtful = fresh.doubtful.with(Mask(1 << block));
            }
            fresh.flying[block] = fresh.flying[block].saturating_add(1);
            fresh.crc[block] = crc32c::crc32c(bytes);
        }
        fresh.known = fresh.known.without(watched);
        watched
    }

    /// A write that was watched has ended.
    pub(super) fn write_ended(&mut self, place: PoolCluster, watched: Mask, ok: bool) {
        let Some(fresh) = self.fresh.get_mut(&place) else { return };
        for block in each_block(watched) {
            fresh.flying[block] = fresh.flying[block].saturating_sub(1);
        }
        if !ok {
            fresh.doubtful = fresh.doubtful.with(watched);
        }
        let in_doubt = fresh.doubtful.with(fresh.in_flight());
        fresh.known = fresh.known.with(watched.without(in_doubt));
    }

    /// A map has learned of blocks.
    pub(super) fn learned(&mut self, place: PoolCluster, blocks: Mask) {
        let known = self.fresh.get(&place).is_some_and(|fresh| fresh.known.contains(blocks));
        self.unchecked |= !known;
    }

    /// A record has changed in a way that no frame can vouch for.
    pub(super) fn moved(&mut self) {
        self.unchecked = true;
    }

    /// A cluster is taken: what was known of it is of its former use.
    pub(super) fn taken(&mut self, place: PoolCluster) {
        self.fresh.remove(&place);
    }

    /// Whether a write to these blocks has to wait.
    fn is_unproved(&self, place: PoolCluster, blocks: Mask) -> bool {
        let names = |of: &Blocks| of.get(&place).is_some_and(|named| !named.and(blocks).is_empty());
        names(&self.unproved) || names(&self.under_way)
    }

    /// Whether the next commit may be a frame.
    pub(super) fn can_log(&self) -> bool {
        self.log.is_some() && !self.unchecked
    }

    /// Whether writes wait for a frame, or a batch.
    pub(super) fn holds_writes(&self) -> bool {
        !self.held.is_empty()
    }

    /// The blocks that records name for the first time, with their checksums; `None`: they are not known.
    fn vouch(&self, records: &[Change]) -> Option<Vec<Checked>> {
        let mut checked = Vec::new();
        for change in records {
            let Change::Map(_, _, Some(record)) = change else { continue };
            let Some(cluster) = record.cluster else { continue };
            let Some(fresh) = self.fresh.get(&cluster) else { continue };
            if !fresh.doubtful.with(fresh.in_flight()).and(record.data).is_empty() {
                return None;
            }
            let blocks = each_block(fresh.known.and(record.data));
            checked.extend(blocks.map(|at| Checked { cluster, block: at as u32, crc: fresh.crc[at] }));
        }
        Some(checked)
    }

    /// The next frame: where in the log to write, and what. `None`: there is no room for it, or no frame can vouch
    /// for the records.
    fn frame(&mut self, records: &[Change]) -> Option<Range<usize>> {
        let checked = self.vouch(records)?;
        let log = self.log.as_mut()?;
        let before = log.bytes.len();
        intents::push(&mut log.bytes, log.base, log.number, &checked, records);
        if log.bytes.len() > INTENTS_BYTES {
            log.bytes.truncate(before);
            return None;
        }
        log.number += 1;
        // A block is written whole: what lies in it already is written as it was.
        let range = before / BLOCK_BYTES as usize * BLOCK_BYTES as usize..log.bytes.len();
        for Checked { cluster, block, .. } in checked {
            let blocks = self.under_way.entry(cluster).or_default();
            *blocks = blocks.with(Mask(1 << block));
        }
        self.begin_commit();
        Some(range)
    }

    /// A commit takes the changed records as they are, in a frame or in a batch.
    pub(super) fn begin_commit(&mut self) {
        self.unchecked = false;
        self.fresh.retain(|_, fresh| fresh.settle());
    }

    /// The frame is durable, with these records, and so are those before it.
    pub(super) fn frame_durable(&mut self, records: Vec<Change>) {
        self.records.extend(records);
        self.unproved = std::mem::take(&mut self.under_way);
        self.frames += 1;
    }

    /// A batch is durable with all that the frames held: the log begins anew.
    pub(super) fn batch_durable(&mut self, commit: u64) {
        self.records.clear();
        self.unproved.clear();
        if let Some(log) = &mut self.log {
            log.base.commit = commit;
            log.number = 0;
            log.bytes.clear();
        }
    }

    /// No frame is written any more: a sync or a write has failed, and what the log holds is not known. Blocks stay
    /// unproved until a batch says what the frames before did.
    pub(super) fn fail(&mut self) {
        self.log = None;
        self.under_way.clear();
    }
}

impl Store {
    /// Has commits written to the intent log in the pool's first file, which has room for it. Comes before any event.
    pub fn log_intents(&mut self) {
        let base = Base { identity: self.catalog.store.identity, commit: self.commits.last() };
        self.intents.log = Some(Log { base, number: 0, bytes: Vec::new() });
        let changes = self.raise_version(INTENTS_VERSION).into_iter().collect::<Vec<_>>();
        if !changes.is_empty() {
            self.commit_bundle(super::commit::Bundle::new(changes, Vec::new()));
        }
    }

    /// Frames that were made durable, and writes that had to wait for one, so far.
    pub fn intent_counts(&self) -> (u64, u64) {
        (self.intents.frames, self.intents.holds)
    }

    /// Writes a frame with the records, if it can be.
    pub(super) fn log_records(&mut self, records: &[Change], io: &mut Io<'_>) -> bool {
        let Some(range) = self.intents.frame(records) else { return false };
        let log = self.intents.log.as_ref().expect("it has taken the frame");
        let bytes = &log.bytes[range.clone()];
        let mut buf: Buf = io.pool().take(bytes.len().next_multiple_of(BLOCK_BYTES as usize));
        let (written, rest) = buf.split_at_mut(bytes.len());
        written.copy_from_slice(bytes);
        rest.fill(0);
        self.commits.wrote(0);
        let kind = DiskOpKind::Write { offset: INTENTS_OFFSET + range.start as u64, done: 0, buf };
        io.submit(DiskOp { tag: TAG_INTENT, file: self.pool.files()[0].file, kind });
        true
    }

    /// The frame lies in the file: it is durable with the data.
    pub(super) fn intent_written(&mut self, done: DiskDone, io: &mut Io<'_>) {
        match transfer_progress(done) {
            Progress::Continue(op) => io.submit(op),
            Progress::Complete(_) => self.sync_files(io),
            Progress::Failed(error, _) => {
                tracing::warn!(?error, "the intent log cannot be written: commits take longer from now on");
                self.intents.fail();
                self.put_off_commit(io);
            }
        }
    }

    /// Whether a write has to wait for what its blocks held before: see the module.
    pub(super) fn must_hold(&self, export: ExportIndex, range: &Range<u64>) -> bool {
        let intents = &self.intents;
        if intents.unproved.is_empty() && intents.under_way.is_empty() {
            return false;
        }
        let disk = self.disk(export);
        clusters(range).any(|(cluster, blocks)| {
            disk.own_place(cluster).is_some_and(|place| intents.is_unproved(place, blocks))
        })
    }

    /// A write waits until a commit tells that the blocks are proved; there is none any more after a failed batch.
    pub(super) fn hold_write(&mut self, key: usize, io: &mut Io<'_>) {
        if self.commits.meta_failed {
            return self.end_job(key, Err(Errno::Io), io);
        }
        self.intents.holds += 1;
        self.intents.held.push_back(key);
        self.commits.wanted = true;
        self.start_commit(io);
    }

    /// A commit has ended: held writes try again, in order of arrival.
    pub(super) fn release_held(&mut self, io: &mut Io<'_>) {
        for key in std::mem::take(&mut self.intents.held) {
            self.begin_write(key, io);
        }
    }
}

#[cfg(test)]
mod tests;
