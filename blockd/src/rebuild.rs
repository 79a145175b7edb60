//! Allocator and maps out of the map records, read by several threads: what a start without a checkpoint does, and
//! whoever needs a map that is not there.
//!
//! ```text
//!   layers of one volume, oldest first      a *stretch* of clusters of all of them is one thread's at a time
//!   layer 1   ################|################|####        its records, layer after layer, go into
//!   layer 4   ##  #     ###   |   #        #   |            - the thread's own bitmap of the pool
//!   layer 9     #      #      |  ##            |  #         - the volume's map, whose pages are of this stretch alone
//! ```
//!
//! What comes out is the same for any number of threads. Whatever is wrong, one thread reads everything once more, in
//! order: so the first fault is named, and it is named in one place.
//!
//! **Each record is read once**, for the allocator and for a map. Where volumes share layers, the first of them
//! gets its map here; the others get theirs when they are used, for there may be hundreds of them and no client.

use std::collections::BTreeSet;
use std::ops::{ControlFlow, Range};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, available_parallelism};

use crate::catalog::format::keys::{map_range, map_range_within, maps_range};
use crate::catalog::format::{MapRecord, decode_map};
use crate::catalog::load::{LoadError, Loaded, PoolCheck, scan_pool_use};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::checkpoint::{Checkpoint, SavedMap};
use crate::map::{self, FlatMap};
use crate::units::{ClusterIndex, LayerId, VolumeId, cluster_count};

/// Clusters that one thread reads at a time, 16 GiB of a volume; more if there would be too many stretches. Whole pages
/// of maps.
const STRETCH_CLUSTERS: u64 = 1 << 18;
/// Of a volume: each costs a search in each of its layers.
const STRETCHES_MAX: u64 = 32;
/// More would wait for the disk, and each has a bitmap of the pool.
const THREADS_MAX: usize = 8;
/// Maps are made of volumes with so many clusters together, 8 TiB: a GiB of memory. The others' are made when they are
/// used.
const MAPPED_CLUSTERS_MAX: u64 = 1 << 27;
/// One past the last cluster that has a number.
const CLUSTERS_END: u64 = 1 << 32;

/// Threads for a store that is not served yet: all processors.
pub fn threads_at_start() -> usize {
    available_parallelism().map_or(1, usize::from).min(THREADS_MAX)
}

/// Threads for a store that is served: one processor is left to it.
pub fn threads_while_serving() -> usize {
    threads_at_start().saturating_sub(1).max(1)
}

/// What a checkpoint of this state would say, with the maps of as many volumes as are worth it.
///
/// # Errors
/// See [`scan_pool_use`].
pub fn checkpoint(store: &dyn MetaStore, loaded: &Loaded, threads: usize) -> Result<Checkpoint, LoadError> {
    let plan = Plan::new(loaded, MAPPED_CLUSTERS_MAX);
    match plan.read(store, threads) {
        Some(read) => Ok(read),
        None => Ok(Checkpoint { in_use: scan_pool_use(store, loaded, &mut |_, _, _| {})?, maps: Vec::new() }),
    }
}

/// As [`map::load`], faster.
///
/// # Errors
/// The same.
pub fn load_map(
    store: &dyn MetaStore,
    chain: &[LayerId],
    clusters: u64,
    threads: usize,
) -> Result<FlatMap, MetaError> {
    let stretches = stretches(clusters);
    let layers: Vec<_> = chain.iter().rev().copied().collect();
    let whole = Mutex::new(FlatMap::new(clusters));
    let read = |(): &mut (), at: usize| {
        let mut part = FlatMap::new(clusters);
        let sound = scan(store, &layers, &stretches[at], |layer, cluster, record| {
            part.show(cluster, record, Some(&layer) == chain.first())
        });
        locked(&whole).absorb(part);
        sound
    };
    match spread(threads, stretches.len(), || (), read) {
        Some(_) => Ok(whole.into_inner().unwrap_or_else(PoisonError::into_inner)),
        None => map::load(store, chain, clusters),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows layers' records of some clusters, layer by layer, until one is refused. Tells whether none was, and all could
/// be read.
fn scan(
    store: &dyn MetaStore,
    layers: &[LayerId],
    clusters: &Range<u64>,
    mut take: impl FnMut(LayerId, ClusterIndex, &MapRecord) -> bool,
) -> bool {
    layers.iter().all(|&layer| {
        let range = map_range_within(layer, clusters);
        let mut sound = true;
        let read = store.scan(&range.start, &range.end, &mut |key, value| {
            let (_, cluster, record) = decode_map(key, value)?;
            sound = take(layer, cluster, &record);
            Ok(if sound { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        sound && read.is_ok()
    })
}

/// Clusters of a chain that are read at a time. The last stretch has no end: records that are not the volume's are
/// read, too.
fn stretches(clusters: u64) -> Vec<Range<u64>> {
    let clusters = clusters.max(1);
    let length = clusters.div_ceil(STRETCHES_MAX).next_multiple_of(STRETCH_CLUSTERS);
    let starts = (0..clusters).step_by(usize::try_from(length).expect("2^32 at most"));
    let end = |start: u64| if start + length < clusters { start + length } else { CLUSTERS_END };
    starts.map(|start| start..end(start)).collect()
}

/// Layers that are read together.
struct Chain {
    /// Oldest first.
    layers: Vec<LayerId>,
    /// Clusters of the volume, about.
    clusters: u64,
    /// The volume, if its map is made of them: then they are all that it has.
    volume: Option<VolumeId>,
}

/// One thread's piece of work.
enum Work {
    /// Between the layers that there are: where no record can be.
    Gaps,
    Stretch {
        /// Index.
        chain: usize,
        clusters: Range<u64>,
    },
}

/// All map records, in pieces.
struct Plan<'a> {
    loaded: &'a Loaded,
    chains: Vec<Chain>,
    work: Vec<Work>,
}

impl<'a> Plan<'a> {
    fn new(loaded: &'a Loaded, mapped_max: u64) -> Self {
        let mut chains = volume_chains(loaded, mapped_max);
        let taken: BTreeSet<_> = chains.iter().flat_map(|chain| &chain.layers).copied().collect();
        for (&layer, record) in loaded.layers.iter().filter(|(layer, _)| !taken.contains(layer)) {
            let clusters = loaded.volumes.get(&record.volume).map_or(0, |volume| cluster_count(volume.size));
            chains.push(Chain { layers: vec![layer], clusters, volume: None });
        }
        let stretches = chains.iter().enumerate().flat_map(|(chain, Chain { clusters, .. })| {
            stretches(*clusters).into_iter().map(move |clusters| Work::Stretch { chain, clusters })
        });
        let work = std::iter::once(Work::Gaps).chain(stretches).collect();
        Self { loaded, chains, work }
    }

    /// `None`: something is wrong.
    fn read(&self, store: &dyn MetaStore, threads: usize) -> Option<Checkpoint> {
        let maps: Vec<_> = self.chains.iter().map(|chain| Mutex::new(chain.new_map())).collect();
        let new = || PoolCheck::new(self.loaded);
        let checks = spread(threads, self.work.len(), new, |check, at| match &self.work[at] {
            Work::Gaps => self.gaps_are_empty(store),
            Work::Stretch { chain, clusters } => {
                self.chains[*chain].read(store, clusters, check, &maps[*chain])
            }
        })?;
        let mut in_use = PoolCheck::new(self.loaded).finish();
        // Two threads may have found the same cluster in use.
        let sound = checks.into_iter().all(|check| in_use.absorb(check.finish_part()));
        let maps = maps.into_iter().map(|map| map.into_inner().unwrap_or_else(PoisonError::into_inner));
        let saved = self.chains.iter().zip(maps).filter_map(|(chain, map)| chain.saved(map?));
        sound.then(|| Checkpoint { in_use, maps: saved.collect() })
    }

    fn gaps_are_empty(&self, store: &dyn MetaStore) -> bool {
        let all = maps_range();
        let known = self.loaded.layers.keys().map(|layer| map_range(*layer));
        let mut from = all.start;
        known.chain([all.end.clone()..all.end]).all(|layer| {
            let gap = std::mem::replace(&mut from, layer.end)..layer.start;
            let mut empty = true;
            let read = store.scan(&gap.start, &gap.end, &mut |_, _| {
                empty = false;
                Ok(ControlFlow::Break(()))
            });
            empty && read.is_ok()
        })
    }
}

impl Chain {
    fn new_map(&self) -> Option<FlatMap> {
        self.volume.map(|_| FlatMap::new(self.clusters))
    }

    /// Reads a stretch into a check of the pool and into the map. A part of the map is only kept until it is complete:
    /// many at a time would leave holes in our memory.
    fn read(
        &self,
        store: &dyn MetaStore,
        clusters: &Range<u64>,
        check: &mut PoolCheck<'_>,
        map: &Mutex<Option<FlatMap>>,
    ) -> bool {
        let mut part = self.new_map();
        let sound = scan(store, &self.layers, clusters, |layer, cluster, record| {
            let open = self.layers.last() == Some(&layer);
            if part.as_mut().is_some_and(|part| !part.show(cluster, record, open)) {
                // Not the volume's: whoever asks for the map is told.
                part = None;
            }
            check.take(layer, record).is_ok()
        });
        match (&mut *locked(map), part) {
            (Some(whole), Some(part)) => whole.absorb(part),
            (whole, _) => *whole = None,
        }
        sound
    }

    fn saved(&self, map: FlatMap) -> Option<SavedMap> {
        let head = *self.layers.last()?;
        Some(SavedMap { volume: self.volume?, head, map: Box::new(map) })
    }
}

/// Chains of volumes without a layer in common, in the order of the volumes, up to so many clusters together.
fn volume_chains(loaded: &Loaded, mapped_max: u64) -> Vec<Chain> {
    let mut taken = BTreeSet::new();
    let mut left = mapped_max;
    let mut chains = Vec::new();
    for (&volume, record) in &loaded.volumes {
        let parent = |layer: &LayerId| loaded.layers.get(layer).and_then(|layer| layer.parent);
        let mut layers: Vec<_> = std::iter::successors(Some(record.head), parent).collect();
        let clusters = cluster_count(record.size);
        if clusters > left || layers.iter().any(|layer| taken.contains(layer)) {
            continue;
        }
        left -= clusters;
        layers.reverse();
        taken.extend(layers.iter().copied());
        chains.push(Chain { layers, clusters, volume: Some(volume) });
    }
    chains
}

/// Does the pieces of work 0 to `count` on several threads, each of which has a state of its own, and gives their
/// states. `None`: a piece has failed; others may not have been done.
fn spread<S: Send>(
    threads: usize,
    count: usize,
    new: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize) -> bool + Sync,
) -> Option<Vec<S>> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut state = new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return Some(state);
            }
            if !work(&mut state, at) {
                next.store(count, Ordering::Relaxed);
                return None;
            }
        }
    };
    std::thread::scope(|scope| {
        let start = |_| Builder::new().name("maps".into()).spawn_scoped(scope, run).ok();
        // Without a thread of the system the others have more to do.
        let others: Vec<_> = (1..threads.min(count)).map_while(start).collect();
        let mut states = vec![run()];
        states.extend(
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic))),
        );
        states.into_iter().collect()
    })
}

#[cfg(test)]
mod tests;
