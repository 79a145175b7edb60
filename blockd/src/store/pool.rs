//! Where the pool's clusters lie, and which of them are free.
//!
//! ```text
//!  free ──take──► in use ──free_later──► freed ──commit durable──► quarantined ──operations ended──► free
//!    ▲                                                                                                 │
//!    └───── give_back (never named by a record) ◄──────────────────────────────────────────────────────┘
//! ```
//!
//! Clusters are taken below a *limit* up to which the files' space is allocated; the limit moves in steps, ahead
//! of need. So freed clusters, which were written before, are used again before new ones (a first write into
//! space that was allocated but never written costs a journal entry), and a full file system is noticed when
//! the limit cannot move, not when a write that was accepted cannot be written back.
//!
//! **Packed clusters** are shared by records, of which each has some of the blocks. A record's blocks are freed as a
//! cluster is, in as many steps; the cluster is free when none of its blocks is in use. Single blocks are not used
//! again.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use nbd_server::disk::FileId;

use crate::catalog::format::MapRecord;
use crate::catalog::load::PoolUse;
use crate::units::{CLUSTER_BLOCKS, CLUSTER_BYTES, Mask, PoolCluster};

/// How far the limit moves at a time, clusters: 64 MiB.
pub const EXTEND_CLUSTERS: u32 = 1024;
/// It does not move by less, if the file does not end there: 1 MiB.
pub const EXTEND_CLUSTERS_MIN: u32 = 16;

/// A part of a file whose space is being allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Index in the pool's list of files.
    pub file: usize,
    /// Clusters of the file.
    pub clusters: Range<u32>,
}

impl Extension {
    /// How many.
    pub fn bytes(&self) -> u64 {
        self.clusters.len() as u64 * CLUSTER_BYTES
    }
}

/// One file of the pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolFile {
    /// What disk operations call it.
    pub file: FileId,
    /// Its superblock's number in the pool.
    pub first: PoolCluster,
    /// Clusters, the superblock's included.
    pub clusters: u32,
    /// Clusters at its beginning whose space is allocated already.
    pub allocated: u32,
}

impl PoolFile {
    fn range(&self) -> Range<u32> {
        self.first.0..self.first.0 + self.clusters
    }
}

/// A place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index in the pool's list of files.
    pub file: usize,
    /// Bytes.
    pub offset: u64,
}

/// A bitmap of clusters in use, of one word each 64.
#[derive(Clone, Debug, Default)]
pub struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// The clusters of a word each 64, lowest bit first.
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// Whether a cluster is in use.
    pub fn has(&self, cluster: u32) -> bool {
        self.words[cluster as usize / 64] >> (cluster % 64) & 1 == 1
    }

    /// Marks a cluster; tells whether it was marked before.
    pub fn set(&mut self, cluster: u32) -> bool {
        let (word, bit) = (&mut self.words[cluster as usize / 64], 1 << (cluster % 64));
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    fn clear(&mut self, cluster: u32) {
        self.words[cluster as usize / 64] &= !(1 << (cluster % 64));
    }

    /// The first unmarked cluster of a range.
    fn first_free(&self, range: Range<u32>) -> Option<u32> {
        let mut at = range.start;
        while at < range.end {
            let word = !self.words[at as usize / 64] >> (at % 64);
            if word != 0 {
                let found = at + word.trailing_zeros();
                return (found < range.end).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Clusters marked.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// What a record has of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where.
    pub cluster: PoolCluster,
    /// Of a packed cluster: which blocks.
    pub blocks: Option<Mask>,
}

impl Part {
    /// What this record has, if anything.
    pub fn of(record: &MapRecord) -> Option<Self> {
        Some(Self { cluster: record.cluster?, blocks: record.packed_blocks() })
    }
}

/// Clusters that wait until every operation has ended that began before they were freed.
struct Quarantined {
    /// The last era in which such an operation can have begun.
    era: u64,
    clusters: Vec<Part>,
}

/// See the module.
pub struct Pool {
    files: Vec<PoolFile>,
    used: Bitmap,
    /// The blocks in use of clusters with packed records.
    packed: HashMap<PoolCluster, Mask>,
    /// By file: clusters at its beginning that may be taken.
    limits: Vec<u32>,
    /// Clusters in use, superblocks included.
    used_count: u64,
    /// Free clusters below the limits.
    free: u64,
    /// Where the last one was taken.
    next: u32,
    /// Freed since the last commit began.
    freed: Vec<Part>,
    /// Freed in the commit under way.
    freeing: Vec<Part>,
    quarantine: VecDeque<Quarantined>,
    /// Operations in flight by the era in which they began, oldest era first.
    eras: VecDeque<u32>,
    /// The era of `eras`' first.
    oldest_era: u64,
    /// See [`Self::has_lost_clusters`].
    lost: bool,
    /// A file's space cannot be extended now.
    pub full: bool,
}

impl Pool {
    /// A pool of these files and of what records name in them; superblocks are marked here.
    pub fn new(files: Vec<PoolFile>, in_use: PoolUse) -> Self {
        let PoolUse { used, packed } = in_use;
        let mut used = Bitmap::from_words(used);
        let mut limits = Vec::new();
        let mut next = 0;
        for file in &files {
            used.set(file.first.0);
            let highest = file.range().rev().find(|&cluster| used.has(cluster)).expect("the superblock");
            let limit = (highest + 1 - file.first.0).max(file.allocated).min(file.clusters);
            limits.push(limit);
            next = file.first.0;
        }
        let mut pool = Self {
            files,
            used,
            packed,
            limits,
            used_count: 0,
            free: 0,
            next,
            freed: Vec::new(),
            freeing: Vec::new(),
            quarantine: VecDeque::new(),
            eras: VecDeque::from([0]),
            oldest_era: 0,
            lost: false,
            full: false,
        };
        pool.used_count = pool.used.count();
        pool.free = (0..pool.files.len()).map(|file| pool.free_in(file, 0..pool.limits[file])).sum();
        pool
    }

    fn free_in(&self, file: usize, clusters: Range<u32>) -> u64 {
        let first = self.files[file].first.0;
        clusters.filter(|&at| !self.used.has(first + at)).count() as u64
    }

    /// Its files.
    pub fn files(&self) -> &[PoolFile] {
        &self.files
    }

    /// Clusters that it could hold, superblocks left out.
    pub fn capacity(&self) -> u64 {
        self.files.iter().map(|file| u64::from(file.clusters) - 1).sum()
    }

    /// Clusters in use or waiting to be free, superblocks left out.
    pub fn used(&self) -> u64 {
        self.used_count - self.files.len() as u64
    }

    /// Clusters that wait to be free; of packed ones as many as their blocks make.
    pub fn pending_free(&self) -> u64 {
        let quarantined = self.quarantine.iter().flat_map(|group| &group.clusters);
        let blocks = self.freed.iter().chain(&self.freeing).chain(quarantined).map(|freed| {
            let blocks = freed.blocks.map_or(CLUSTER_BLOCKS, Mask::count);
            u64::from(blocks)
        });
        blocks.sum::<u64>().div_ceil(u64::from(CLUSTER_BLOCKS))
    }

    /// What records name once everything that was changed is committed: in use, and not waiting to be free.
    pub fn in_use(&self) -> PoolUse {
        let (mut used, mut packed) = (self.used.clone(), self.packed.clone());
        let quarantined = self.quarantine.iter().flat_map(|group| &group.clusters);
        for Part { cluster, blocks } in self.freed.iter().chain(&self.freeing).chain(quarantined) {
            let left = blocks.and_then(|blocks| Some(packed.get(cluster)?.without(blocks)));
            match left.filter(|left| !left.is_empty()) {
                Some(left) => drop(packed.insert(*cluster, left)),
                None => {
                    packed.remove(cluster);
                    used.clear(cluster.0);
                }
            }
        }
        PoolUse { used: used.words, packed }
    }

    /// Clusters that can be taken at once.
    pub fn free_now(&self) -> u64 {
        self.free
    }

    /// Where a block of a pool cluster lies.
    ///
    /// # Panics
    /// When the pool has no such cluster: records were checked when they were loaded.
    pub fn place(&self, cluster: PoolCluster, block: u32) -> Place {
        let file = self.files.partition_point(|file| file.first <= cluster) - 1;
        let inside = cluster.0 - self.files[file].first.0;
        assert!(inside < self.files[file].clusters, "pool cluster {cluster} lies in no file");
        let offset = u64::from(inside) * CLUSTER_BYTES + u64::from(block) * crate::units::BLOCK_BYTES;
        Place { file, offset }
    }

    /// Takes a free cluster, the next one after the last where possible.
    pub fn take(&mut self) -> Option<PoolCluster> {
        if self.free == 0 {
            return None;
        }
        let found = self.find(self.next..u32::MAX).or_else(|| self.find(0..self.next))?;
        self.used.set(found);
        (self.free, self.used_count) = (self.free - 1, self.used_count + 1);
        self.next = found + 1;
        Some(PoolCluster(found))
    }

    /// The first free cluster below the limits within a range.
    fn find(&self, range: Range<u32>) -> Option<u32> {
        self.files.iter().zip(&self.limits).find_map(|(file, &limit)| {
            let (start, end) = (file.first.0.max(range.start), (file.first.0 + limit).min(range.end));
            (start < end).then(|| self.used.first_free(start..end)).flatten()
        })
    }

    /// Returns a cluster that no record, written or to be written, has ever named since it was taken. The caller
    /// knows that no operation on it is in flight.
    pub fn give_back(&mut self, cluster: PoolCluster) {
        debug_assert!(self.used.has(cluster.0));
        self.used.clear(cluster.0);
        (self.free, self.used_count) = (self.free + 1, self.used_count - 1);
    }

    /// A cluster that no record will name once the next commit is durable.
    pub fn free_later(&mut self, cluster: PoolCluster) {
        self.free_part_later(Part { cluster, blocks: None });
    }

    /// What no record will name once the next commit is durable.
    pub fn free_part_later(&mut self, part: Part) {
        let held = part.blocks.is_none_or(|blocks| self.packed_blocks(part.cluster).contains(blocks));
        debug_assert!(held && self.used.has(part.cluster.0), "{part:?} freed twice");
        self.freed.push(part);
    }

    /// A packed record is about to name blocks of a cluster that was taken for it and its like.
    pub fn use_blocks(&mut self, cluster: PoolCluster, blocks: Mask) {
        let held = self.packed.entry(cluster).or_default();
        debug_assert!(held.and(blocks).is_empty(), "blocks of {cluster} are used twice");
        *held = held.with(blocks);
    }

    /// The blocks of a packed cluster that are in use.
    pub fn packed_blocks(&self, cluster: PoolCluster) -> Mask {
        self.packed.get(&cluster).copied().unwrap_or_default()
    }

    /// Whether a commit would free something.
    pub fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// A commit begins: what was freed so far becomes free with it.
    pub fn begin_commit(&mut self) {
        debug_assert!(self.freeing.is_empty());
        self.freeing = std::mem::take(&mut self.freed);
    }

    /// The commit is durable: its freed clusters wait for the operations that are in flight.
    pub fn commit_durable(&mut self) {
        let clusters = std::mem::take(&mut self.freeing);
        if !clusters.is_empty() {
            let era = self.oldest_era + self.eras.len() as u64 - 1;
            self.quarantine.push_back(Quarantined { era, clusters });
            self.eras.push_back(0);
        }
        self.release();
    }

    /// The commit that has begun does not come: what it would free is freed with the next.
    pub fn put_off_commit(&mut self) {
        self.freed.append(&mut self.freeing);
    }

    /// The commit has failed: records that name its freed clusters, and those freed since, may be the ones that
    /// are found when the store is opened again. None of them is used before that.
    pub fn commit_failed(&mut self) {
        self.lost |= !self.freeing.is_empty() || !self.freed.is_empty();
        self.freeing.clear();
        self.freed.clear();
    }

    /// Whether clusters count as used here that no record may name: only the records can tell then.
    pub fn has_lost_clusters(&self) -> bool {
        self.lost
    }

    /// An operation on pool clusters begins; to be given to [`Self::operation_ended`].
    pub fn operation_began(&mut self) -> u64 {
        let last = self.eras.len() - 1;
        self.eras[last] += 1;
        self.oldest_era + last as u64
    }

    /// An operation has ended.
    pub fn operation_ended(&mut self, era: u64) {
        let at = usize::try_from(era - self.oldest_era).expect("few eras");
        self.eras[at] -= 1;
        if at == 0 && self.eras[0] == 0 {
            self.release();
        }
    }

    fn release(&mut self) {
        while self.eras.len() > 1 && self.eras[0] == 0 {
            self.eras.pop_front();
            self.oldest_era += 1;
        }
        while self.quarantine.front().is_some_and(|group| group.era < self.oldest_era) {
            let group = self.quarantine.pop_front().expect("looked at");
            for freed in group.clusters {
                self.end_use(freed);
            }
        }
    }

    fn end_use(&mut self, freed: Part) {
        let Part { cluster, blocks } = freed;
        if let Some(blocks) = blocks {
            let left = self.packed_blocks(cluster).without(blocks);
            if !left.is_empty() {
                self.packed.insert(cluster, left);
                return;
            }
            self.packed.remove(&cluster);
        }
        self.give_back(cluster);
    }

    /// What to allocate next so that clusters can be taken, if there is need, and room for so many bytes.
    pub fn wants_extension(&self, room: u64) -> Option<Extension> {
        if self.free >= u64::from(EXTEND_CLUSTERS) / 2 {
            return None;
        }
        let file = (0..self.files.len()).find(|&file| self.limits[file] < self.files[file].clusters)?;
        let (from, end) = (self.limits[file], self.files[file].clusters);
        let most = u32::try_from(room / CLUSTER_BYTES).unwrap_or(u32::MAX).min(EXTEND_CLUSTERS);
        let clusters = from..end.min(from + most);
        let enough =
            clusters.len() as u32 >= EXTEND_CLUSTERS_MIN || (clusters.end == end && !clusters.is_empty());
        enough.then_some(Extension { file, clusters })
    }

    /// Space was allocated: clusters up to `end` of that file can be taken.
    pub fn extended(&mut self, file: usize, end: u32) {
        self.free += self.free_in(file, self.limits[file]..end);
        self.limits[file] = end;
        self.full = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing(clusters: u32) -> PoolUse {
        PoolUse { used: vec![0; clusters.div_ceil(64) as usize], ..PoolUse::default() }
    }

    fn pool(clusters: u32) -> Pool {
        let file = PoolFile { file: FileId(0), first: PoolCluster(0), clusters, allocated: clusters };
        Pool::new(vec![file], nothing(clusters))
    }

    #[test]
    fn a_freed_cluster_waits_for_its_commit_and_for_operations_before_it() {
        let mut pool = pool(2);
        let only = pool.take().unwrap();
        assert_eq!((only, pool.take()), (PoolCluster(1), None));
        let reading = pool.operation_began();
        pool.free_later(only);
        assert_eq!(pool.take(), None, "not before the commit");
        pool.begin_commit();
        let later = pool.operation_began();
        pool.commit_durable();
        assert_eq!(pool.take(), None, "a read may still be on its way");
        pool.operation_ended(reading);
        assert_eq!(pool.take(), None);
        pool.operation_ended(later);
        assert_eq!(pool.take(), Some(only));
    }

    #[test]
    fn operations_that_begin_later_hold_nothing_up() {
        let mut pool = pool(2);
        let only = pool.take().unwrap();
        pool.free_later(only);
        pool.begin_commit();
        let before = pool.operation_began();
        pool.commit_durable();
        let after = pool.operation_began();
        pool.operation_ended(before);
        assert_eq!(pool.take(), Some(only));
        pool.operation_ended(after);
    }

    #[test]
    fn clusters_are_found_across_files_and_limits() {
        let file = |id, first, allocated| PoolFile {
            file: FileId(id),
            first: PoolCluster(first),
            clusters: 100,
            allocated,
        };
        let mut used = nothing(200);
        used.used[1] = 1 << (102 - 64);
        let mut pool = Pool::new(vec![file(0, 0, 3), file(1, 100, 0)], used);
        let mut taken: Vec<u32> = std::iter::from_fn(|| pool.take()).map(|cluster| cluster.0).collect();
        taken.sort_unstable();
        assert_eq!(taken, [1, 2, 101]);
        assert_eq!(pool.wants_extension(u64::MAX), Some(Extension { file: 0, clusters: 3..100 }));
        let little = Extension { file: 0, clusters: 3..23 };
        assert_eq!(pool.wants_extension(20 * CLUSTER_BYTES + 1), Some(little));
        assert_eq!(pool.wants_extension(15 * CLUSTER_BYTES), None);
        pool.extended(0, 100);
        assert_eq!(pool.take(), Some(PoolCluster(3)));
        assert_eq!(pool.place(PoolCluster(101), 2), Place { file: 1, offset: 65_536 + 8192 });
    }

    #[test]
    fn a_packed_cluster_is_free_when_none_of_its_blocks_is_in_use() {
        let mut pool = pool(2);
        let only = pool.take().unwrap();
        let blocks = |blocks| Part { cluster: only, blocks: Some(Mask(blocks)) };
        pool.use_blocks(only, Mask(0b0011));
        pool.use_blocks(only, Mask(0b1100));
        pool.free_part_later(blocks(0b0011));
        assert_eq!(pool.pending_free(), 1);
        pool.begin_commit();
        pool.free_part_later(blocks(0b1100));
        pool.commit_durable();
        assert_eq!((pool.take(), pool.packed_blocks(only)), (None, Mask(0b1100)));
        pool.begin_commit();
        pool.commit_durable();
        assert_eq!((pool.pending_free(), pool.take()), (0, Some(only)));
        assert_eq!(pool.packed_blocks(only), Mask::NONE);
    }

    #[test]
    fn what_a_failed_commit_would_have_freed_of_a_packed_cluster_keeps_it() {
        let mut pool = pool(2);
        let only = pool.take().unwrap();
        let blocks = |blocks| Part { cluster: only, blocks: Some(Mask(blocks)) };
        pool.use_blocks(only, Mask(0b11));
        pool.free_part_later(blocks(0b01));
        pool.begin_commit();
        pool.commit_failed();
        pool.free_part_later(blocks(0b10));
        pool.begin_commit();
        pool.commit_durable();
        assert_eq!((pool.take(), pool.packed_blocks(only)), (None, Mask(0b01)));
    }
}
