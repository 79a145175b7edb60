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
use crate::units::CLUSTER_BYTES;

/// A leaf's clusters, as a power of two.
pub(super) const LEAF_LEVEL: u32 = 10;
/// Clusters of a leaf: 64 MiB.
pub const LEAF_CLUSTERS: u64 = 1 << LEAF_LEVEL;
/// Leaves that are remembered: of the first 16 TiB that are asked for, in some 12 MiB of memory.
const LEAVES_MAX: usize = 1 << 18;

/// What is hashed at a time. Stays in the processor's cache.
pub(super) static ZEROES: [u8; CLUSTER_BYTES as usize] = [0; CLUSTER_BYTES as usize];

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

    /// The values of leaves of zeroes, a thread for each that is not remembered: ask for few at a time.
    pub(super) fn leaves(&self, leaves: Range<u64>) -> Vec<Value> {
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

/// The value of `1 << level` clusters of zeroes, of which `cluster` is the first.
pub(super) fn zero_subtree(cluster: u64, level: u32) -> Value {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(cluster * CLUSTER_BYTES);
    for _ in 0..1u64 << level {
        hasher.update(&ZEROES);
    }
    hasher.finalize_non_root()
}
