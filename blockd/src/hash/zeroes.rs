//! Values of runs of zeroes.
//!
//! They depend on the place and on nothing else: all volumes of all stores share them. A terabyte of them takes
//! minutes to compute on one core, and most of a thin volume is zeroes; so they are computed in *leaves* of 64 MiB,
//! on several threads, and remembered while the process lives.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use blake3::Hasher;
use blake3::hazmat::HasherExt;

use super::Value;
use super::tree::merge;
use crate::units::{CLUSTER_BYTES, ClusterIndex};

/// A leaf's clusters, as a power of two.
const LEAF_LEVEL: u32 = 10;
/// Clusters of a leaf: 64 MiB.
pub const LEAF_CLUSTERS: u64 = 1 << LEAF_LEVEL;
/// Leaves that are remembered: of the first 16 TiB that are asked for, in some 12 MiB of memory.
const LEAVES_MAX: usize = 1 << 18;

/// What is hashed at a time. Stays in the processor's cache.
static ZEROES: [u8; CLUSTER_BYTES as usize] = [0; CLUSTER_BYTES as usize];

/// See the module.
#[derive(Debug, Default)]
pub struct Zeroes {
    leaves: Mutex<HashMap<u64, Value>>,
}

impl Zeroes {
    /// Nothing remembered yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// No code panics with the lock held.
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Value>> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value of a cluster of zeroes.
    pub(crate) fn cluster(&self, cluster: ClusterIndex) -> Value {
        zero_subtree(u64::from(cluster.0), 0)
    }

    /// The values of `count` subtrees of zeroes, of `1 << level` clusters each; the first begins with cluster `first`.
    /// `threads` compute at once, if there is that much to do. `step` is told up to which cluster it has come, and says
    /// whether to go on; if not, the answer is `None`.
    ///
    /// # Panics
    /// When no such subtree begins there.
    pub(crate) fn subtrees(
        &self,
        first: u64,
        level: u32,
        count: u64,
        threads: usize,
        step: &mut dyn FnMut(u64) -> bool,
    ) -> Option<Vec<Value>> {
        assert!(first.is_multiple_of(1 << level), "level {level} at cluster {first}");
        if level < LEAF_LEVEL {
            let values = (0..count).map(|at| zero_subtree(first + (at << level), level)).collect();
            return step(first + (count << level)).then_some(values);
        }
        let (mut values, each) = (Vec::new(), 1 << (level - LEAF_LEVEL));
        let (mut next, end) = (first >> LEAF_LEVEL, (first + (count << level)) >> LEAF_LEVEL);
        // Subtrees of the value that is in the making, the largest first.
        let mut stack = Vec::new();
        while next < end {
            let leaves = next..end.min(next + threads.max(1) as u64);
            for (leaf, value) in leaves.clone().zip(self.leaves(leaves.clone())) {
                stack.push(value);
                let done = (leaf + 1) & (each - 1);
                join(&mut stack, if done == 0 { 1 } else { done.count_ones() as usize });
                values.extend(if done == 0 { stack.pop() } else { None });
            }
            next = leaves.end;
            if !step(next << LEAF_LEVEL) {
                return None;
            }
        }
        Some(values)
    }

    /// The values of leaves of zeroes, a thread for each that is not remembered: ask for few at a time.
    fn leaves(&self, leaves: Range<u64>) -> Vec<Value> {
        let known: Vec<_> = {
            let remembered = self.lock();
            leaves.clone().map(|leaf| remembered.get(&leaf).copied()).collect()
        };
        if known.iter().all(Option::is_some) {
            return known.into_iter().flatten().collect();
        }
        let values = compute(leaves.clone().zip(known).collect());
        let mut remembered = self.lock();
        for (leaf, &value) in leaves.zip(&values) {
            if remembered.len() < LEAVES_MAX {
                remembered.insert(leaf, value);
            }
        }
        values
    }
}

/// The leaves' values, those that are missing on threads of their own but for the last.
fn compute(mut leaves: Vec<(u64, Option<Value>)>) -> Vec<Value> {
    let value = |leaf: u64| zero_subtree(leaf * LEAF_CLUSTERS, LEAF_LEVEL);
    let last = leaves.pop();
    thread::scope(|scope| {
        let compute = |(leaf, known): (u64, Option<Value>)| match known {
            Some(known) => Ok(known),
            None => Err(scope.spawn(move || value(leaf))),
        };
        let others: Vec<_> = leaves.into_iter().map(compute).collect();
        let last = last.map(|(leaf, known)| known.unwrap_or_else(|| value(leaf)));
        let ended = others.into_iter().map(|other| match other {
            Ok(known) => known,
            Err(thread) => thread.join().expect("hashing does not panic"),
        });
        ended.chain(last).collect()
    })
}

/// Merges the last ones until there are so many.
fn join(stack: &mut Vec<Value>, count: usize) {
    while stack.len() > count {
        let right = stack.pop().expect("more than some");
        let left = stack.pop().expect("two at least");
        stack.push(merge(&left, &right));
    }
}

/// The value of `1 << level` clusters of zeroes, of which `cluster` is the first.
fn zero_subtree(cluster: u64, level: u32) -> Value {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(cluster * CLUSTER_BYTES);
    for _ in 0..1u64 << level {
        hasher.update(&ZEROES);
    }
    hasher.finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::merge_all;

    #[test]
    fn subtrees_are_merged_of_what_they_are_made_of() {
        let zeroes = Zeroes::new();
        let mut go_on = |_| true;
        for (first, level, count) in
            [(0, 0, 5), (3 << 5, 5, 3), (1 << 10, 10, 3), (1 << 11, 11, 2), (0, 12, 1)]
        {
            let below = if level > 10 { 10 } else { u32::saturating_sub(level, 5) };
            let parts = zeroes.subtrees(first, below, count << (level - below), 1, &mut go_on).unwrap();
            let expected: Vec<_> = parts.chunks(1 << (level - below)).map(merge_all).collect();
            for threads in [1, 3] {
                let values = zeroes.subtrees(first, level, count, threads, &mut go_on).unwrap();
                assert_eq!(values, expected, "{first} {level} {count}");
                let values = Zeroes::new().subtrees(first, level, count, threads, &mut go_on).unwrap();
                assert_eq!(values, expected, "{first} {level} {count}");
            }
        }
    }

    #[test]
    fn a_cluster_of_zeroes_is_hashed_at_its_place() {
        let values = Zeroes::new().subtrees(7, 0, 2, 1, &mut |_| true).unwrap();
        let value = |at| crate::hash::cluster_value(crate::units::ClusterIndex(at), &ZEROES);
        assert_eq!(values, [value(7), value(8)]);
    }

    #[test]
    fn zeroes_stop_when_told() {
        let mut last = 0;
        let stopped = Zeroes::new().subtrees(0, 15, 4, 1, &mut |cluster| {
            last = cluster;
            false
        });
        assert_eq!((stopped, last), (None, LEAF_CLUSTERS));
    }
}
