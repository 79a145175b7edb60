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

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    let read = |parts: &mut Vec<(usize, FlatMap)>, at: usize| {
        let mut map = FlatMap::new(clusters);
        let sound = scan(store, &layers, &stretches[at], |layer, cluster, record| {
            map.show(cluster, record, Some(&layer) == chain.first())
        });
        parts.push((at, map));
        sound
    };
    let Some(parts) = spread(threads, stretches.len(), Vec::new, read) else {
        return map::load(store, chain, clusters);
    };
    let mut parts: Vec<_> = parts.into_iter().flatten().collect();
    parts.sort_unstable_by_key(|(at, _)| *at);
    Ok(parts.into_iter().fold(FlatMap::new(clusters), |mut whole, (_, part)| {
        whole.absorb(part);
        whole
    }))
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

/// What one stretch says of a volume's map.
struct Part {
    /// Number of the piece of work: of a lower one are lower clusters.
    work: usize,
    /// Pages of this stretch alone; `None`: there are records that are not the volume's.
    map: Option<FlatMap>,
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

/// What a thread has found.
struct Found<'a> {
    check: PoolCheck<'a>,
    parts: Vec<Part>,
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
        let new = || Found { check: PoolCheck::new(self.loaded), parts: Vec::new() };
        let found = spread(threads, self.work.len(), new, |found, at| match &self.work[at] {
            Work::Gaps => self.gaps_are_empty(store),
            Work::Stretch { chain, clusters } => {
                self.read_stretch(store, found, at, &self.chains[*chain], clusters)
            }
        })?;
        self.join(found)
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

    fn read_stretch(
        &self,
        store: &dyn MetaStore,
        found: &mut Found<'_>,
        work: usize,
        chain: &Chain,
        clusters: &Range<u64>,
    ) -> bool {
        let mut map = chain.volume.map(|_| FlatMap::new(chain.clusters));
        let sound = scan(store, &chain.layers, clusters, |layer, cluster, record| {
            let open = chain.layers.last() == Some(&layer);
            if map.as_mut().is_some_and(|map| !map.show(cluster, record, open)) {
                map = None;
            }
            found.check.take(layer, record).is_ok()
        });
        if chain.volume.is_some() {
            found.parts.push(Part { work, map });
        }
        sound
    }

    /// Puts together what the threads have found. `None`: two of them have found the same cluster in use.
    fn join(&self, found: Vec<Found<'_>>) -> Option<Checkpoint> {
        let mut in_use = PoolCheck::new(self.loaded).finish();
        let mut parts = Vec::new();
        for thread in found {
            if !in_use.absorb(thread.check.finish_part()) {
                return None;
            }
            parts.extend(thread.parts);
        }
        parts.sort_unstable_by_key(|part| part.work);
        let mut maps = BTreeMap::new();
        for Part { work, map } in parts {
            let Work::Stretch { chain, .. } = &self.work[work] else { continue };
            let whole =
                maps.entry(*chain).or_insert_with(|| Some(FlatMap::new(self.chains[*chain].clusters)));
            match (whole, map) {
                (Some(whole), Some(part)) => whole.absorb(part),
                (whole, _) => *whole = None,
            }
        }
        let saved = |(chain, map): (usize, Option<FlatMap>)| self.saved(&self.chains[chain], map?);
        Some(Checkpoint { in_use, maps: maps.into_iter().filter_map(saved).collect() })
    }

    fn saved(&self, chain: &Chain, map: FlatMap) -> Option<SavedMap> {
        let head = *chain.layers.last()?;
        Some(SavedMap { volume: chain.volume?, head, map: Box::new(map) })
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
