//! Which blocks the other host does not have, and who waits for that.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;

use smallvec::SmallVec;

use super::super::transfer::{clusters, whole_blocks};
use crate::units::{ClusterIndex, Mask};

/// A cluster with changes that the other host does not have.
#[derive(Default)]
struct Dirty {
    /// Changed, and not on their way.
    blocks: Mask,
    /// Changes among them that are parked.
    waiting: SmallVec<[usize; 2]>,
    on_way: bool,
    /// Parked changes of what is on its way.
    carried: SmallVec<[usize; 2]>,
}

/// A change whose client waits.
struct Parked {
    /// Clusters of it that the other host does not have.
    clusters: usize,
    /// To be made durable before it is answered.
    fua: bool,
}

/// See the module. A cluster is in one of `backlog` and `dirty`; one that is dirty is on its way, or in the queue, or both
/// in a sense: changed since it went.
#[derive(Default)]
pub(super) struct Ledger {
    /// What differed from the base when the mirror began.
    backlog: BTreeMap<ClusterIndex, Mask>,
    dirty: HashMap<ClusterIndex, Dirty>,
    /// Dirty clusters that are not on their way, in order of arrival, each once.
    queue: VecDeque<ClusterIndex>,
    /// By the job's key.
    parked: HashMap<usize, Parked>,
}

impl Ledger {
    pub(super) fn new(backlog: BTreeMap<ClusterIndex, Mask>) -> Self {
        Self { backlog, ..Self::default() }
    }

    /// Clusters of the backlog that nobody has taken.
    pub(super) fn backlog(&self) -> u64 {
        self.backlog.len() as u64
    }

    /// Nothing that it knows of is missing at the other host.
    pub(super) fn is_clean(&self) -> bool {
        self.backlog.is_empty() && self.dirty.is_empty()
    }

    /// Whether a client waits.
    pub(super) fn is_waited_for(&self) -> bool {
        !self.parked.is_empty()
    }

    /// A change of a range has ended here.
    pub(super) fn park(&mut self, key: usize, range: &Range<u64>, fua: bool) {
        let mut count = 0;
        for (cluster, blocks) in clusters(&whole_blocks(range)) {
            let known = self.dirty.contains_key(&cluster);
            let dirty = self.dirty.entry(cluster).or_default();
            dirty.blocks = dirty.blocks.with(blocks);
            dirty.waiting.push(key);
            if !known {
                let older = self.backlog.remove(&cluster).unwrap_or(Mask::NONE);
                dirty.blocks = dirty.blocks.with(older);
            }
            if !dirty.on_way && dirty.waiting.len() == 1 {
                self.queue.push_back(cluster);
            }
            count += 1;
        }
        self.parked.insert(key, Parked { clusters: count, fua });
    }

    /// Some clusters, and their blocks, go on their way: what clients wait for and what they do not, by turns, so that
    /// neither keeps the other back. In order of their places.
    pub(super) fn take(&mut self, limit: usize) -> Vec<(ClusterIndex, Mask)> {
        let mut taken = Vec::new();
        while taken.len() < limit {
            let before = taken.len();
            taken.extend(self.take_waited_for());
            if taken.len() < limit {
                taken.extend(self.take_backlog());
            }
            if taken.len() == before {
                break;
            }
        }
        taken.sort_unstable_by_key(|(cluster, _)| *cluster);
        taken
    }

    fn take_waited_for(&mut self) -> Option<(ClusterIndex, Mask)> {
        let cluster = self.queue.pop_front()?;
        let dirty = self.dirty.get_mut(&cluster).expect("what is queued is dirty");
        dirty.on_way = true;
        dirty.carried = std::mem::take(&mut dirty.waiting);
        Some((cluster, std::mem::replace(&mut dirty.blocks, Mask::NONE)))
    }

    fn take_backlog(&mut self) -> Option<(ClusterIndex, Mask)> {
        let (cluster, blocks) = self.backlog.pop_first()?;
        self.dirty.insert(cluster, Dirty { on_way: true, ..Dirty::default() });
        Some((cluster, blocks))
    }

    /// The other host has what was taken of these. Returns the changes that nobody need wait for any more, and whether
    /// each is to be made durable.
    pub(super) fn written(&mut self, clusters: &[ClusterIndex]) -> Vec<(usize, bool)> {
        let mut answered = Vec::new();
        for cluster in clusters {
            let dirty = self.dirty.get_mut(cluster).expect("what is on its way is dirty");
            dirty.on_way = false;
            for key in std::mem::take(&mut dirty.carried) {
                let parked = self.parked.get_mut(&key).expect("a parked change");
                parked.clusters -= 1;
                if parked.clusters == 0 {
                    answered.push((key, parked.fua));
                    self.parked.remove(&key);
                }
            }
            if dirty.blocks.is_empty() {
                self.dirty.remove(cluster);
            } else {
                self.queue.push_back(*cluster);
            }
        }
        answered
    }

    /// It ends: who waits, in order of arrival as far as that is known.
    pub(super) fn end(&mut self) -> Vec<(usize, bool)> {
        let mut parked: Vec<_> = self.parked.drain().map(|(key, parked)| (key, parked.fua)).collect();
        parked.sort_unstable();
        parked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BLOCK_BYTES, CLUSTER_BYTES};

    fn block(cluster: u64, block: u64) -> Range<u64> {
        let start = cluster * CLUSTER_BYTES + block * BLOCK_BYTES;
        start..start + BLOCK_BYTES
    }

    fn cluster(index: u32) -> ClusterIndex {
        ClusterIndex(index)
    }

    #[test]
    fn a_change_is_answered_when_all_its_clusters_are_there() {
        let mut ledger = Ledger::default();
        ledger.park(7, &(0..2 * CLUSTER_BYTES), true);
        assert_eq!(ledger.take(1), [(cluster(0), Mask::ALL)]);
        assert_eq!(ledger.take(9), [(cluster(1), Mask::ALL)]);
        assert!(ledger.written(&[cluster(1)]).is_empty());
        assert_eq!(ledger.written(&[cluster(0)]), [(7, true)]);
        assert!(ledger.is_clean() && !ledger.is_waited_for());
    }

    /// What was changed after it was read is not there yet.
    #[test]
    fn a_change_during_the_way_waits_for_the_next_one() {
        let mut ledger = Ledger::default();
        ledger.park(1, &block(3, 0), false);
        let first = ledger.take(9);
        ledger.park(2, &block(3, 0), false);
        assert!(ledger.take(9).is_empty(), "a cluster is on its way once at a time");
        assert_eq!(ledger.written(&[first[0].0]), [(1, false)]);
        assert!(!ledger.is_clean());
        assert_eq!(ledger.take(9), [(cluster(3), Mask::of(0..1))]);
        assert_eq!(ledger.written(&[cluster(3)]), [(2, false)]);
        assert!(ledger.is_clean());
    }

    #[test]
    fn the_backlog_gets_its_turn_and_goes_with_what_is_changed_of_it() {
        let backlog = (0..4).map(|index| (cluster(index), Mask::of(0..2))).collect();
        let mut ledger = Ledger::new(backlog);
        for (key, index) in [(1, 8), (2, 9), (3, 3)] {
            ledger.park(key, &block(index, 5), false);
        }
        assert_eq!(ledger.backlog(), 3, "what is changed of the backlog is no backlog any more");
        let taken = ledger.take(4);
        assert_eq!(taken.iter().map(|(cluster, _)| cluster.0).collect::<Vec<_>>(), [0, 1, 8, 9]);
        assert_eq!(ledger.take(4)[1], (cluster(3), Mask::of(0..2).with(Mask::of(5..6))));
        assert_eq!(ledger.backlog(), 0);
        assert_eq!(ledger.written(&[cluster(0), cluster(8), cluster(9)]), [(1, false), (2, false)]);
        assert_eq!(ledger.end(), [(3, false)]);
    }
}
