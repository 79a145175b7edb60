//! Reads what a source sends: differences become batches, clusters become values. Blocking; without a network.
//!
//! ```text
//!  Changes ─► clusters, up to 1 MiB at once ─► value ─► blocks that differ ─► Packer ─► batch
//! ```
//!
//! What is read is pinned by whoever calls. A value that had to be computed is kept for the root, which then costs no
//! second reading.

use std::collections::VecDeque;
use std::iter::Peekable;

use super::batch::{CopyRun, DATA_BYTES_MAX, GROUP_CLUSTERS, Packer, run_hash};
use super::source::{Plan, Read};
use super::wire::{Mode, VALUES_MAX, Values, Wanted};
use crate::control::{ControlError, ErrorKind, Pinned};
use crate::hash::{Value, cluster_value};
use crate::snapshot::{Changed, Changes, ClosedReader};
use crate::units::{BLOCK_BYTES, CLUSTER_BLOCKS, CLUSTER_BYTES, ClusterIndex, LayerId, Mask, cluster_count};

const BLOCK: usize = BLOCK_BYTES as usize;
static ZEROES: [u8; BLOCK] = [0; BLOCK];

/// A value that was computed, and where it belongs.
pub type Kept = (LayerId, ClusterIndex, Value);

/// A snapshot that the target has, and that is only copied from.
pub struct Twin {
    /// Its place among the candidates.
    pub place: u16,
    /// Its layers.
    pub pinned: Pinned,
}

/// What is left of a twin's clusters.
struct TwinClusters {
    place: u16,
    clusters: Peekable<Changes>,
}

/// Something that the target wants of what was compared.
enum Selected {
    Data(Changed),
    Zeroes(ClusterIndex),
}

/// What was read so far, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Of blocks that may differ from the base.
    pub looked_at: u64,
    /// That were written again as they were.
    pub unchanged: u64,
    /// Of data, before compression.
    pub data: u64,
    /// Of zeroes, which are only told.
    pub zero: u64,
    /// That the target has.
    pub copied: u64,
    /// That compression has saved.
    pub compressed: u64,
    /// Of those looked at, what another session has read.
    pub shared: u64,
}

impl ReadStats {
    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            looked_at: with(self.looked_at, other.looked_at),
            unchanged: with(self.unchanged, other.unchanged),
            data: with(self.data, other.data),
            zero: with(self.zero, other.zero),
            copied: with(self.copied, other.copied),
            compressed: with(self.compressed, other.compressed),
            shared: with(self.shared, other.shared),
        }
    }

    /// Both.
    pub fn and(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    /// What has been read since.
    pub fn since(self, before: Self) -> Self {
        self.each(before, |now, before| now - before)
    }
}

/// See the module.
pub struct Reading {
    reader: ClosedReader,
    to: Pinned,
    mode: Mode,
    /// There is a base whose content the target has.
    has_base: bool,
    changes: Changes,
    twins: Vec<TwinClusters>,
    packer: Packer,
    batch_bytes: usize,
    /// Zeroes that follow each other: the first block, and how many.
    zeroes: Option<(u64, u64)>,
    kept: Vec<Kept>,
    /// The first cluster that was not compared.
    compared: u64,
    /// Clusters with data of what was compared last, in order.
    chunk: Vec<Changed>,
    selected: VecDeque<Selected>,
    /// A cluster that was looked at and did not fit.
    ahead: Option<Changed>,
    stats: ReadStats,
}

impl Reading {
    /// Reads a pinned snapshot as planned; `from` is the plan's base. Batches have at most `batch_bytes` of data, a cluster
    /// at least.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn open(
        reader: &ClosedReader,
        plan: &Plan,
        to: Pinned,
        from: Option<&Pinned>,
        twins: Vec<Twin>,
        batch_bytes: usize,
    ) -> Result<Self, ControlError> {
        let start = first_cluster(plan.from);
        let changes = Changes::new(reader, from, &to, start)?;
        let changes = if from.is_some() { changes.with_before() } else { changes };
        let twin = |twin: Twin| {
            let clusters = Changes::new(reader, None, &twin.pinned, start)?.peekable();
            Ok(TwinClusters { place: twin.place, clusters })
        };
        Ok(Self {
            reader: reader.clone(),
            to,
            mode: plan.mode,
            has_base: from.is_some(),
            changes,
            twins: twins.into_iter().map(twin).collect::<Result<_, ControlError>>()?,
            packer: Packer::new(plan.zstd),
            batch_bytes: batch_bytes.clamp(CLUSTER_BYTES as usize, DATA_BYTES_MAX),
            zeroes: None,
            kept: Vec::new(),
            compared: plan.from,
            chunk: Vec::new(),
            selected: VecDeque::new(),
            ahead: None,
            stats: ReadStats::default(),
        })
    }

    /// What was read so far.
    pub fn stats(&self) -> ReadStats {
        self.stats
    }

    /// Values that were computed since the last call.
    pub fn take_kept(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.kept)
    }

    /// The next batch; `None`: there is nothing more, of what was selected where values are compared.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn batch(&mut self) -> Result<Option<Read>, ControlError> {
        let mut cursor = 0;
        while !self.is_full() {
            let last = match self.mode {
                Mode::Changes => self.add_changes()?,
                Mode::Compare => self.add_selected()?,
                Mode::Mirror => unreachable!("a mirror reads what changes, not a snapshot"),
            };
            let Some(last) = last else { break };
            cursor = u64::from(last.0) + 1;
        }
        self.flush_zeroes();
        if self.packer.is_empty() {
            return Ok(None);
        }
        let data_bytes = self.packer.data_bytes();
        let (payload, plain) = (self.packer.payload_bytes(), self.packer.plain_bytes());
        let batch = self.packer.finish();
        self.stats.data += payload as u64;
        self.stats.compressed += plain.saturating_sub(batch.len()) as u64;
        Ok(Some(Read { cursor, data_bytes, batch }))
    }

    fn is_full(&self) -> bool {
        let zeroes = self.zeroes.map_or(0, |(_, blocks)| blocks);
        self.packer.is_full(zeroes) || self.packer.data_bytes() + CLUSTER_BYTES as usize > self.batch_bytes
    }

    /// How many more clusters fit, whatever is in them.
    fn room(&self) -> usize {
        let bytes = self.batch_bytes.saturating_sub(self.packer.data_bytes());
        (bytes / CLUSTER_BYTES as usize).clamp(1, GROUP_CLUSTERS)
    }

    fn next_changed(&mut self) -> Result<Option<Changed>, ControlError> {
        match self.ahead.take() {
            Some(changed) => Ok(Some(changed)),
            None => self.changes.next().transpose(),
        }
    }

    /// Some clusters of the differences; the last of them, if there were any.
    fn add_changes(&mut self) -> Result<Option<ClusterIndex>, ControlError> {
        let mut group = Vec::new();
        for _ in 0..self.room() {
            group.extend(self.next_changed()?);
        }
        let clusters: Vec<&Changed> = group.iter().collect();
        let contents = self.reader.read_clusters(&clusters);
        let before = if self.has_base { self.reader.read_before(&clusters) } else { Vec::new() };
        let mut before = before.into_iter();
        for (at, content) in contents.into_iter().enumerate() {
            let content = content.map_err(|error| unreadable(&group[at], &error))?;
            let old = before.next().transpose().map_err(|error| unreadable(&group[at], &error))?;
            self.add_cluster(&group[at], &content, old.as_deref())?;
        }
        Ok(group.last().map(|changed| changed.index))
    }

    /// One cluster of what was selected.
    fn add_selected(&mut self) -> Result<Option<ClusterIndex>, ControlError> {
        match self.selected.pop_front() {
            None => Ok(None),
            Some(Selected::Zeroes(index)) => {
                self.zero(u64::from(index.0) * u64::from(CLUSTER_BLOCKS), u64::from(self.blocks_of(index)));
                Ok(Some(index))
            }
            Some(Selected::Data(changed)) => {
                let content = self.content(&changed)?;
                // Whatever the target has there is not known: every block is sent.
                let all = Mask::of(0..self.blocks_of(changed.index));
                let mut whole = changed;
                (whole.data, whole.zero) = (all, Mask::NONE);
                self.add_cluster(&whole, &content, None)?;
                Ok(Some(whole.index))
            }
        }
    }

    fn content(&self, changed: &Changed) -> Result<crate::snapshot::Content, ControlError> {
        let content = self.reader.read_clusters(&[changed]).pop().expect("one was asked for");
        content.map_err(|error| unreadable(changed, &error))
    }

    /// Blocks of a cluster: fewer at the volume's end.
    fn blocks_of(&self, index: ClusterIndex) -> u32 {
        let blocks = (self.to.size - index.start()).div_ceil(BLOCK_BYTES);
        u32::try_from(blocks).unwrap_or(u32::MAX).min(CLUSTER_BLOCKS)
    }

    /// The value of a cluster that was read; kept, if it was not known.
    fn value(&mut self, changed: &Changed, content: &[u8]) -> Value {
        if let Some(recorded) = changed.recorded {
            return recorded;
        }
        let value = cluster_value(changed.index, content);
        self.kept.extend(changed.kept(value));
        value
    }

    /// What of a cluster is to be sent. `before`: what the blocks held that changed.
    fn add_cluster(
        &mut self,
        changed: &Changed,
        content: &[u8],
        before: Option<&[u8]>,
    ) -> Result<(), ControlError> {
        let value = self.value(changed, content);
        let (mut data, mut zero) = (Mask::NONE, changed.zero);
        self.stats.looked_at += u64::from(changed.data.with(changed.zero).count()) * BLOCK_BYTES;
        for block in (0..CLUSTER_BLOCKS).filter(|&block| changed.data.has(block)) {
            let at = block as usize * BLOCK..(block as usize + 1) * BLOCK;
            let (bytes, only) = (&content[at.clone()], Mask::of(block..block + 1));
            if before.is_some_and(|before| &before[at] == bytes) {
                self.stats.unchanged += BLOCK_BYTES;
                continue;
            }
            if *bytes == ZEROES {
                zero = zero.with(only);
            } else {
                data = data.with(only);
            }
        }
        // Over nothing, zeroes need not be told.
        if !self.has_base && self.mode == Mode::Changes {
            zero = Mask::NONE;
        }
        if !data.is_empty() && !self.has_base && self.add_copy(changed.index, value)? {
            self.stats.copied += CLUSTER_BYTES;
            return Ok(());
        }
        self.add_runs(changed.index, content, data, zero, value);
        Ok(())
    }

    fn add_runs(&mut self, index: ClusterIndex, content: &[u8], data: Mask, zero: Mask, value: Value) {
        let first_block = u64::from(index.0) * u64::from(CLUSTER_BLOCKS);
        let mut block = 0;
        while block < CLUSTER_BLOCKS {
            let mask = if data.has(block) { data } else { zero };
            if !mask.has(block) {
                block += 1;
                continue;
            }
            let end = mask.run(block).0;
            if data.has(block) {
                self.flush_zeroes();
                let bytes = &content[block as usize * BLOCK..end as usize * BLOCK];
                let whole = bytes.len() == CLUSTER_BYTES as usize;
                let hash = if whole { value } else { run_hash(index, block, bytes) };
                self.packer.data(index, u8::try_from(block).expect("at most 15"), bytes, hash);
            } else {
                self.zero(first_block + u64::from(block), u64::from(end - block));
            }
            block = end;
        }
    }

    /// Adds zeroes to those that came just before, if they follow them.
    fn zero(&mut self, start: u64, blocks: u64) {
        match &mut self.zeroes {
            Some((first, count)) if *first + *count == start => *count += blocks,
            _ => {
                self.flush_zeroes();
                self.zeroes = Some((start, blocks));
            }
        }
    }

    fn flush_zeroes(&mut self) {
        let Some((start, blocks)) = self.zeroes.take() else { return };
        self.stats.zero += blocks * BLOCK_BYTES;
        let per_cluster = u64::from(CLUSTER_BLOCKS);
        let first = u8::try_from(start % per_cluster).expect("at most 15");
        self.packer.zero(first_cluster(start / per_cluster), first, blocks);
    }

    /// Has the target copy a cluster, if it has the same one in the same place of something else.
    fn add_copy(&mut self, index: ClusterIndex, value: Value) -> Result<bool, ControlError> {
        for at in 0..self.twins.len() {
            if self.twins[at].value(index)? != Some(value) {
                continue;
            }
            let candidate = self.twins[at].place;
            self.flush_zeroes();
            self.packer.copy(&CopyRun { cluster: index, candidate, from: index, value });
            return Ok(true);
        }
        Ok(false)
    }

    /// The values of the next clusters; `None` after the last one.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn values(&mut self) -> Result<Option<Values>, ControlError> {
        let total = cluster_count(self.to.size);
        let (first, end) = (self.compared, total.min(self.compared + VALUES_MAX as u64));
        if first == end {
            return Ok(None);
        }
        self.chunk.clear();
        let mut values = vec![None; usize::try_from(end - first).expect("few")];
        while let Some(changed) = self.next_changed()? {
            if u64::from(changed.index.0) >= end {
                self.ahead = Some(changed);
                break;
            }
            let content = if changed.recorded.is_none() { Some(self.content(&changed)?) } else { None };
            let value = self.value(&changed, content.as_deref().unwrap_or_default());
            let place = usize::try_from(u64::from(changed.index.0) - first).expect("few");
            values[place] = Some(value);
            self.chunk.push(changed);
        }
        self.compared = end;
        Ok(Some(Values { first, values }))
    }

    /// From now on batches are of those of the last values that differ.
    pub fn select(&mut self, wanted: &Wanted) {
        let mut chunk = std::mem::take(&mut self.chunk).into_iter().peekable();
        for (at, _) in (wanted.first..).zip(&wanted.differs).filter(|(_, differs)| **differs) {
            let index = first_cluster(at);
            while chunk.next_if(|changed| changed.index < index).is_some() {}
            let data = chunk.next_if(|changed| changed.index == index);
            self.selected.push_back(data.map_or(Selected::Zeroes(index), Selected::Data));
        }
    }
}

impl TwinClusters {
    /// The recorded value of a cluster. Clusters are asked for in order.
    fn value(&mut self, index: ClusterIndex) -> Result<Option<Value>, ControlError> {
        let before =
            |next: &Result<Changed, ControlError>| next.as_ref().is_ok_and(|next| next.index < index);
        while self.clusters.next_if(before).is_some() {}
        match self.clusters.peek() {
            Some(Ok(next)) if next.index == index => Ok(next.recorded),
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(None),
        }
    }
}

fn first_cluster(index: u64) -> ClusterIndex {
    ClusterIndex(u32::try_from(index).unwrap_or(u32::MAX))
}

fn unreadable(changed: &Changed, error: &std::io::Error) -> ControlError {
    let text = format!("bytes at {} cannot be read: {error}", changed.index.start());
    ControlError::new(ErrorKind::Io, text)
}
