//! Batches: the data of some clusters, as they travel (docs/replication.md, "Batches").
//!
//! ```text
//!  encoding u8 · payload bytes u32 · runs u16 · run … · payload, as it is or compressed
//! ```
//!
//! A run of data carries a hash of what it writes *and where*: data that are right for another place are wrong here. Of
//! a whole cluster it is the cluster's own value in the tree, which both sides need anyway.
//!
//! What comes from outside is judged in this order: the runs (in order, apart, inside the volume and the frame's
//! clusters), the length of the payload, the payload itself into a buffer of exactly that length, the hashes. Nothing of a
//! batch is used before all of it was found right.

use std::borrow::Cow;
use std::sync::LazyLock;

use blake3::Hasher;

use super::wire::{Code, PAYLOAD_BYTES_MAX, Refusal};
use crate::control::replication::Patch;
use crate::decompress::{Decompress, DecompressError};
use crate::hash::{Value, cluster_value};
use crate::units::{BLOCK_BYTES, CLUSTER_BLOCKS, CLUSTER_BYTES, ClusterIndex};

/// Bytes that one batch writes: data, before compression, and what is copied. So much memory it takes at the target.
pub const DATA_BYTES_MAX: usize = 1 << 20;
/// Blocks that one batch makes zero, as many as one request of a guest could: 4 GiB. More would keep the store from guests.
pub const ZERO_BLOCKS_MAX: u64 = 1 << 20;
/// Runs of one batch.
pub const RUNS_MAX: usize = 1024;
/// Clusters that are read at once, and packed one after the other.
pub const GROUP_CLUSTERS: usize = 16;
/// Runs that so many clusters may become; zeroes before them are one more.
const GROUP_RUNS_MAX: usize = GROUP_CLUSTERS * CLUSTER_BLOCKS as usize + 1;
/// Blocks of so many clusters.
const GROUP_BLOCKS: u64 = GROUP_CLUSTERS as u64 * CLUSTER_BLOCKS as u64;
/// Before the runs.
const HEAD_BYTES: usize = 7;
/// Longest description of a run.
const RUN_BYTES_MAX: usize = 44;
// What is full still fits a frame, with its cursors; compressed data are smaller.
const _: () = assert!(16 + HEAD_BYTES + RUNS_MAX * RUN_BYTES_MAX + DATA_BYTES_MAX <= PAYLOAD_BYTES_MAX);
/// Where compression saved nothing, it is tried again after so many batches.
const TRY_AGAIN_BATCHES: u32 = 15;
/// The fastest that still finds what is easy to find.
const ZSTD_LEVEL: i32 = 1;

mod encoding {
    pub(super) const RAW: u8 = 0;
    pub(super) const ZSTD: u8 = 1;
}

mod run {
    pub(super) const DATA: u8 = 0;
    pub(super) const ZERO: u8 = 1;
    pub(super) const COPY: u8 = 2;
}

const BLOCK: usize = BLOCK_BYTES as usize;
const CLUSTER: usize = CLUSTER_BYTES as usize;

/// The hash that a run carries: of blocks from `first` on, in a cluster.
pub fn run_hash(cluster: ClusterIndex, first: u32, bytes: &[u8]) -> Value {
    static KEYED: LazyLock<Hasher> =
        LazyLock::new(|| Hasher::new_derive_key("blockd 2026 run of a sync batch"));
    if bytes.len() == CLUSTER {
        return cluster_value(cluster, bytes);
    }
    let mut hasher = KEYED.clone();
    hasher.update(&cluster.0.to_be_bytes()).update(&first.to_be_bytes()).update(bytes);
    *hasher.finalize().as_bytes()
}

/// Content that the target has already, in a snapshot that came from the same source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyRun {
    /// The cluster that becomes a copy.
    pub cluster: ClusterIndex,
    /// The snapshot's place among the candidates of the offer.
    pub candidate: u16,
    /// The cluster there.
    pub from: ClusterIndex,
    /// The value of the content at its new place.
    pub value: Value,
}

/// What a batch does.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Data and zeroes, in order.
    pub patches: Vec<Patch>,
    /// What is to be copied.
    pub copies: Vec<CopyRun>,
    /// Values of clusters that it replaces as a whole.
    pub values: Vec<(ClusterIndex, Value)>,
}

/// What a batch may touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first cluster.
    pub from: u64,
    /// The first one after.
    pub to: u64,
    /// Bytes of the volume.
    pub size: u64,
    /// Candidates of the offer.
    pub candidates: usize,
}

/// Makes batches; remembers whether compression pays.
#[derive(Debug)]
pub struct Packer {
    runs: Vec<u8>,
    count: usize,
    data: Vec<u8>,
    copies: usize,
    zero_blocks: u64,
    zstd: bool,
    /// Batches that are sent as they are before compression is tried again.
    skip: u32,
}

impl Packer {
    /// One that compresses, if the other side can take it.
    pub fn new(zstd: bool) -> Self {
        Self { runs: Vec::new(), count: 0, data: Vec::new(), copies: 0, zero_blocks: 0, zstd, skip: 0 }
    }

    /// Nothing was added since the last batch.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of data so far, and of what is copied.
    pub fn data_bytes(&self) -> usize {
        self.data.len() + self.copies * CLUSTER
    }

    /// Bytes of data that are sent.
    pub fn payload_bytes(&self) -> usize {
        self.data.len()
    }

    /// Bytes of the batch, if it is not compressed.
    pub fn plain_bytes(&self) -> usize {
        HEAD_BYTES + self.runs.len() + self.data.len()
    }

    /// Whether a whole cluster more, or the runs of a group, may not fit. `zeroes`: blocks that are yet to be added.
    pub fn is_full(&self, zeroes: u64) -> bool {
        let zeroes = self.zero_blocks + zeroes + GROUP_BLOCKS;
        let written = self.data_bytes() + CLUSTER;
        written > DATA_BYTES_MAX || self.count + GROUP_RUNS_MAX > RUNS_MAX || zeroes > ZERO_BLOCKS_MAX
    }

    fn begin_run(&mut self, cluster: ClusterIndex, kind: u8, first: u8) {
        assert!(self.count < RUNS_MAX, "a batch is full");
        self.count += 1;
        self.runs.extend(cluster.0.to_be_bytes());
        self.runs.extend([kind, first]);
    }

    /// Blocks of a cluster, from `first` on. The last one of the volume is filled up with zeroes.
    ///
    /// # Panics
    /// When the batch is full, or the bytes are not whole blocks of the cluster.
    pub fn data(&mut self, cluster: ClusterIndex, first: u8, bytes: &[u8], hash: Value) {
        assert!(self.data_bytes() + bytes.len() <= DATA_BYTES_MAX, "a batch is full");
        let count = u8::try_from(bytes.len() / BLOCK).expect("blocks of one cluster");
        assert!(bytes.len().is_multiple_of(BLOCK) && u32::from(first + count) <= CLUSTER_BLOCKS);
        self.begin_run(cluster, run::DATA, first);
        self.runs.push(count);
        self.runs.extend(hash);
        self.data.extend_from_slice(bytes);
    }

    /// Blocks that become zero, from `first` of a cluster on.
    ///
    /// # Panics
    /// When the batch is full.
    pub fn zero(&mut self, cluster: ClusterIndex, first: u8, blocks: u64) {
        self.zero_blocks += blocks;
        assert!(self.zero_blocks <= ZERO_BLOCKS_MAX, "a batch is full");
        self.begin_run(cluster, run::ZERO, first);
        self.runs.extend(blocks.to_be_bytes());
    }

    /// A cluster that the target has.
    ///
    /// # Panics
    /// When the batch is full.
    pub fn copy(&mut self, copy: &CopyRun) {
        self.copies += 1;
        assert!(self.data_bytes() <= DATA_BYTES_MAX, "a batch is full");
        self.begin_run(copy.cluster, run::COPY, 0);
        self.runs.extend(copy.candidate.to_be_bytes());
        self.runs.extend(copy.from.0.to_be_bytes());
        self.runs.extend(copy.value);
    }

    /// The batch; the next one is empty.
    pub fn finish(&mut self) -> Vec<u8> {
        let compressed = self.compress();
        let (encoding, payload) = match &compressed {
            Some(compressed) => (encoding::ZSTD, &compressed[..]),
            None => (encoding::RAW, &self.data[..]),
        };
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.runs.len() + payload.len());
        bytes.push(encoding);
        bytes.extend(u32::try_from(self.data.len()).expect("at most a megabyte").to_be_bytes());
        bytes.extend(u16::try_from(self.count).expect("limited").to_be_bytes());
        bytes.extend_from_slice(&self.runs);
        bytes.extend_from_slice(payload);
        self.runs.clear();
        self.data.clear();
        (self.count, self.copies, self.zero_blocks) = (0, 0, 0);
        bytes
    }

    /// If that makes it smaller by a sixteenth at least.
    fn compress(&mut self) -> Option<Vec<u8>> {
        if !self.zstd || self.data.is_empty() {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let compressed = zstd::bulk::compress(&self.data, ZSTD_LEVEL).ok()?;
        let pays = compressed.len() <= self.data.len() - self.data.len() / 16;
        if !pays {
            self.skip = TRY_AGAIN_BATCHES;
        }
        pays.then_some(compressed)
    }
}

fn manifest(text: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadManifest, text)
}

fn bad_data(text: impl Into<String>) -> Refusal {
    Refusal::new(Code::BadData, text)
}

/// Judges a batch, and takes it apart.
///
/// # Errors
/// `BadManifest`: runs that cannot be. `BadData`: data that are not what their runs say. `Failed`: this host could not
/// decompress them.
pub fn decode(batch: &[u8], bounds: &Bounds, decompress: &dyn Decompress) -> Result<Batch, Refusal> {
    let mut reader = Runs { rest: batch, bounds, next_block: bounds.from * u64::from(CLUSTER_BLOCKS) };
    let [encoding] = reader.take()?;
    let length = u32::from_be_bytes(reader.take()?) as usize;
    let count = usize::from(u16::from_be_bytes(reader.take()?));
    if length > DATA_BYTES_MAX || count > RUNS_MAX || count == 0 {
        return Err(manifest(format!("a batch of {length} bytes in {count} runs")));
    }
    let runs = (0..count).map(|_| reader.run()).collect::<Result<Vec<_>, _>>()?;
    let described: usize = runs.iter().map(Run::data_bytes).sum();
    if described != length {
        return Err(manifest(format!("runs of {described} bytes with data of {length}")));
    }
    let copied = runs.iter().filter(|run| matches!(run, Run::Copy(_))).count() * CLUSTER;
    if length + copied > DATA_BYTES_MAX {
        return Err(manifest(format!("a batch that writes {} bytes", length + copied)));
    }
    let zeroes = runs.iter().map(Run::zero_blocks).fold(0, u64::saturating_add);
    if zeroes > ZERO_BLOCKS_MAX {
        return Err(manifest(format!("a batch of {zeroes} blocks of zeroes")));
    }
    let data = payload(encoding, reader.rest, length, decompress)?;
    assemble(runs, &data, bounds.size)
}

/// Exactly so many bytes. What comes of decompression is believed no more than what came raw: the hashes are still to come.
fn payload<'a>(
    encoding: u8,
    stored: &'a [u8],
    length: usize,
    decompress: &dyn Decompress,
) -> Result<Cow<'a, [u8]>, Refusal> {
    match encoding {
        encoding::RAW if stored.len() == length => Ok(Cow::Borrowed(stored)),
        encoding::RAW => Err(manifest(format!("{} bytes where {length} are announced", stored.len()))),
        encoding::ZSTD => match decompress.decompress(stored, length) {
            Ok(data) if data.len() == length => Ok(Cow::Owned(data)),
            Ok(data) => Err(bad_data(format!("{} bytes where {length} are announced", data.len()))),
            Err(DecompressError::Bad(why)) => Err(bad_data(why)),
            Err(DecompressError::Local(why)) => Err(Refusal::new(Code::Failed, why)),
        },
        unknown => Err(manifest(format!("the unknown encoding {unknown}"))),
    }
}

enum Run {
    Data { cluster: ClusterIndex, first: u32, blocks: u64, hash: Value },
    Zero { start: u64, blocks: u64 },
    Copy(CopyRun),
}

impl Run {
    fn data_bytes(&self) -> usize {
        match self {
            Self::Data { blocks, .. } => usize::try_from(*blocks).expect("at most a cluster's") * BLOCK,
            Self::Zero { .. } | Self::Copy(_) => 0,
        }
    }

    /// The first block of data.
    fn data_start(&self) -> Option<u64> {
        match self {
            Self::Data { cluster, first, .. } => {
                Some(u64::from(cluster.0) * u64::from(CLUSTER_BLOCKS) + u64::from(*first))
            }
            Self::Zero { .. } | Self::Copy(_) => None,
        }
    }

    /// The block after the last one of data.
    fn data_end(&self) -> Option<u64> {
        self.data_start().map(|start| start + (self.data_bytes() / BLOCK) as u64)
    }

    fn zero_blocks(&self) -> u64 {
        match self {
            Self::Zero { blocks, .. } => *blocks,
            Self::Data { .. } | Self::Copy(_) => 0,
        }
    }
}

/// What of a batch is not judged yet.
struct Runs<'a> {
    rest: &'a [u8],
    bounds: &'a Bounds,
    /// Runs are in order and apart: the next one begins here or later.
    next_block: u64,
}

impl Runs<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| manifest("a batch is cut short"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn run(&mut self) -> Result<Run, Refusal> {
        let cluster = ClusterIndex(u32::from_be_bytes(self.take()?));
        let [kind, first] = self.take()?;
        let first = u32::from(first);
        let start = u64::from(cluster.0) * u64::from(CLUSTER_BLOCKS) + u64::from(first);
        let (run, blocks) = match kind {
            run::DATA => {
                let [count] = self.take()?;
                let (blocks, hash) = (u64::from(count), self.take()?);
                if u64::from(first) + blocks > u64::from(CLUSTER_BLOCKS) {
                    return Err(manifest("a run of data leaves its cluster"));
                }
                (Run::Data { cluster, first, blocks, hash }, blocks)
            }
            run::ZERO => {
                let blocks = u64::from_be_bytes(self.take()?);
                (Run::Zero { start, blocks }, blocks)
            }
            run::COPY => {
                let candidate = u16::from_be_bytes(self.take()?);
                let from = ClusterIndex(u32::from_be_bytes(self.take()?));
                let copy = CopyRun { cluster, candidate, from, value: self.take()? };
                if first != 0 || usize::from(candidate) >= self.bounds.candidates {
                    return Err(manifest("a copy of something that was not offered"));
                }
                (Run::Copy(copy), self.blocks_of(cluster))
            }
            unknown => return Err(manifest(format!("a run of the unknown kind {unknown}"))),
        };
        self.place(start, first, blocks)?;
        Ok(run)
    }

    /// Of a cluster: fewer at the volume's end.
    fn blocks_of(&self, cluster: ClusterIndex) -> u64 {
        let start = u64::from(cluster.0) * u64::from(CLUSTER_BLOCKS);
        u64::from(CLUSTER_BLOCKS).min(self.bounds.size.div_ceil(BLOCK_BYTES).saturating_sub(start))
    }

    fn place(&mut self, start: u64, first: u32, blocks: u64) -> Result<(), Refusal> {
        let in_volume = self.bounds.size.div_ceil(BLOCK_BYTES);
        let last = (self.bounds.to.saturating_mul(u64::from(CLUSTER_BLOCKS))).min(in_volume);
        let end = start.checked_add(blocks).filter(|&end| end <= last);
        match end {
            Some(end) if blocks > 0 && first < CLUSTER_BLOCKS && start >= self.next_block => {
                self.next_block = end;
                Ok(())
            }
            _ => Err(manifest(format!(
                "a run of {blocks} blocks at {start}, expected between {} and {last}",
                self.next_block
            ))),
        }
    }
}

fn assemble(runs: Vec<Run>, mut data: &[u8], size: u64) -> Result<Batch, Refusal> {
    let mut batch = Batch::default();
    for at in 0..runs.len() {
        match runs[at] {
            Run::Data { cluster, first, blocks, hash } => {
                let joined = if begins_patch(&runs, at) { joined_bytes(&runs[at..]) } else { 0 };
                let (bytes, rest) = data.split_at(usize::try_from(blocks).expect("few") * BLOCK);
                data = rest;
                add_data(&mut batch, (cluster, first, hash), bytes, joined, size)?;
            }
            Run::Zero { start, blocks } => {
                let offset = start * BLOCK_BYTES;
                let length = (blocks * BLOCK_BYTES).min(size - offset);
                batch.patches.push(Patch::Zero { offset, length });
            }
            Run::Copy(copy) => batch.copies.push(copy),
        }
    }
    Ok(batch)
}

/// Whether a run of data does not follow right after another one.
fn begins_patch(runs: &[Run], at: usize) -> bool {
    at == 0 || runs[at - 1].data_end().is_none_or(|end| runs[at].data_start() != Some(end))
}

/// Bytes of runs of data, from the first one on, that lie side by side.
fn joined_bytes(runs: &[Run]) -> usize {
    let joined =
        runs.iter().zip(1..).take_while(|(_, next)| *next == runs.len() || !begins_patch(runs, *next));
    let count = joined.count();
    runs.iter().take(count + 1).map(Run::data_bytes).sum()
}

/// `joined`: bytes of the write that begins here, if one does.
fn add_data(
    batch: &mut Batch,
    (cluster, first, hash): (ClusterIndex, u32, Value),
    bytes: &[u8],
    joined: usize,
    size: u64,
) -> Result<(), Refusal> {
    if run_hash(cluster, first, bytes) != hash {
        return Err(bad_data(format!("the data of cluster {cluster} are not what their hash says")));
    }
    if bytes.len() == CLUSTER {
        batch.values.push((cluster, hash));
    }
    let offset = cluster.start() + u64::from(first) * BLOCK_BYTES;
    let length = usize::try_from((size - offset).min(bytes.len() as u64)).expect("no more than there is");
    if bytes[length..].iter().any(|&byte| byte != 0) {
        return Err(manifest("data after the volume's end"));
    }
    match batch.patches.last_mut() {
        // One write for what lies side by side.
        Some(Patch::Data { offset: start, bytes: all }) if *start + all.len() as u64 == offset => {
            all.extend_from_slice(&bytes[..length]);
        }
        _ => {
            let mut all = Vec::with_capacity(joined.max(length));
            all.extend_from_slice(&bytes[..length]);
            batch.patches.push(Patch::Data { offset, bytes: all });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
