//! However many threads read, they find what one finds that reads everything in order, faults included.

use super::*;
use crate::catalog::format::{
    Change, FORMAT_VERSION, LayerRecord, PoolFileRecord, StoreRecord, VolumeRecord,
};
use crate::catalog::load::load;
use crate::catalog::memory::MemoryMeta;
use crate::units::{CLUSTER_BYTES, Mask, PoolCluster, SnapshotId};

const POOL_CLUSTERS: u32 = 4096;
/// Of each volume; the last stretch is a short one.
const CLUSTERS: u64 = 5 * STRETCH_CLUSTERS + 100;
const THREADS: [usize; 4] = [1, 2, 3, 7];

/// Heads and parents: two volumes on their own, one of a single layer, and two clones of the first one's snapshot.
const LAYERS: [(u32, u32, u32); 9] =
    [(1, 0, 1), (3, 1, 1), (4, 3, 1), (5, 0, 2), (8, 5, 2), (9, 0, 3), (12, 1, 4), (13, 3, 5), (19, 0, 6)];

fn catalog() -> Vec<Change> {
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: [7; 16],
        next_volume: VolumeId(7),
        next_layer: LayerId(20),
        next_snapshot: SnapshotId(1),
        created_ms: 0,
    };
    let file = |first, clusters, path: &str| PoolFileRecord { first, clusters, path: path.into() };
    let volume = |(volume, head)| {
        let record = VolumeRecord {
            name: format!("v{volume}"),
            size: CLUSTERS * CLUSTER_BYTES,
            head: LayerId(head),
            created_ms: 0,
        };
        Change::Volume(VolumeId(volume), Some(record))
    };
    let layer = |(layer, parent, volume): (u32, u32, u32)| {
        let parent = (parent != 0).then_some(LayerId(parent));
        Change::Layer(LayerId(layer), Some(LayerRecord { parent, volume: VolumeId(volume) }))
    };
    let mut changes = vec![
        Change::Store(store),
        Change::Commit(1),
        Change::PoolFile(0, file(PoolCluster(0), 1000, "pool-0")),
        Change::PoolFile(1, file(PoolCluster(1000), POOL_CLUSTERS - 1000, "pool-1")),
    ];
    changes.extend([(1, 4), (2, 8), (3, 9), (4, 12), (5, 13)].map(volume));
    changes.extend(LAYERS.map(layer));
    changes
}

/// Gives pool clusters out, each once, except for the blocks of packed ones.
struct Pool {
    free: Vec<u32>,
    packed: Option<(u32, u32)>,
}

impl Pool {
    fn new(rng: &mut fastrand::Rng) -> Self {
        let mut free: Vec<_> = (1..POOL_CLUSTERS).filter(|cluster| *cluster != 1000).collect();
        rng.shuffle(&mut free);
        Self { free, packed: None }
    }

    fn record(&mut self, is_head: bool, rng: &mut fastrand::Rng) -> MapRecord {
        let (data, zero) = (Mask(rng.u16(1..)), Mask(rng.u16(..)));
        match rng.u8(..4) {
            0 => MapRecord { zero, ..MapRecord::default() },
            1 if !is_head => self.packed(data),
            2 => MapRecord { cluster: self.whole(), data, zero: zero.without(data), packed: None },
            _ => MapRecord { cluster: self.whole(), data: Mask::ALL, ..MapRecord::default() },
        }
    }

    fn whole(&mut self) -> Option<PoolCluster> {
        Some(PoolCluster(self.free.pop().expect("more clusters than records")))
    }

    fn packed(&mut self, data: Mask) -> MapRecord {
        let fits = self.packed.filter(|(_, at)| at + data.count() <= 16);
        let (cluster, at) = fits.unwrap_or_else(|| (self.whole().expect("is some").0, 0));
        self.packed = Some((cluster, at + data.count()));
        MapRecord {
            cluster: Some(PoolCluster(cluster)),
            data,
            zero: Mask::NONE,
            packed: Some(u8::try_from(at).expect("below 16")),
        }
    }
}

fn random_store(rng: &mut fastrand::Rng) -> MemoryMeta {
    let store = MemoryMeta::new();
    store.write(&catalog()).unwrap();
    let heads = [4, 8, 9, 12, 13];
    let mut pool = Pool::new(rng);
    for (layer, ..) in LAYERS {
        for _ in 0..rng.u32(..80) {
            // Few places, so that layers meet, on both sides of the borders between stretches.
            let stretch = rng.u64(..6) * STRETCH_CLUSTERS;
            let cluster = (stretch + rng.u64(..6)).saturating_sub(3);
            let cluster = ClusterIndex(u32::try_from(cluster).unwrap());
            let record = pool.record(heads.contains(&layer), rng);
            store.write(&[Change::Map(LayerId(layer), cluster, Some(record))]).unwrap();
        }
    }
    store
}

fn chain(loaded: &Loaded, head: LayerId) -> Vec<LayerId> {
    std::iter::successors(Some(head), |layer| loaded.layers[layer].parent).collect()
}

#[track_caller]
fn assert_same(found: &FlatMap, expected: &FlatMap) {
    assert_eq!(found.first_difference(expected), None);
    assert_eq!(found.visible_blocks(), expected.visible_blocks());
    assert_eq!(found.head_clusters(), expected.head_clusters());
    assert_eq!(found.side_rows(), expected.side_rows());
    assert_eq!(found.pair_rows(), expected.pair_rows());
}

#[test]
fn any_number_of_threads_finds_what_one_finds_in_order() {
    for seed in 0..8 {
        let store = random_store(&mut fastrand::Rng::with_seed(seed));
        let loaded = load(&store, 1).unwrap();
        let in_use = scan_pool_use(&store, &loaded, &mut |_, _, _| ()).unwrap();
        for threads in THREADS {
            let read = checkpoint(&store, &loaded, threads).unwrap();
            assert!(read.in_use == in_use, "seed {seed}, {threads} threads");
            let volumes: Vec<_> = read.maps.iter().map(|map| (map.volume.0, map.head.0)).collect();
            assert_eq!(volumes, [(1, 4), (2, 8), (3, 9)], "clones share layers with the first volume");
            for saved in &read.maps {
                let expected = map::load(&store, &chain(&loaded, saved.head), CLUSTERS).unwrap();
                assert_same(&saved.map, &expected);
            }
        }
    }
}

#[test]
fn a_map_alone_is_the_same_for_any_number_of_threads() {
    for seed in 0..8 {
        let store = random_store(&mut fastrand::Rng::with_seed(seed));
        let loaded = load(&store, 1).unwrap();
        for head in [4, 8, 9, 12, 13] {
            let chain = chain(&loaded, LayerId(head));
            let expected = map::load(&store, &chain, CLUSTERS).unwrap();
            for threads in THREADS {
                assert_same(&load_map(&store, &chain, CLUSTERS, threads).unwrap(), &expected);
            }
        }
    }
}

/// Bits flip, records fail their checksums, or name what they cannot: what is named is what one thread would name.
#[test]
fn any_number_of_threads_names_the_first_fault() {
    let mut refused = 0;
    for seed in 0..100 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let store = random_store(&mut rng);
        for _ in 0..rng.u8(1..4) {
            damage(&store, &mut rng);
        }
        let Ok(loaded) = load(&store, 1) else { continue };
        let expected = scan_pool_use(&store, &loaded, &mut |_, _, _| ());
        refused += usize::from(expected.is_err());
        for threads in THREADS {
            let found = checkpoint(&store, &loaded, threads).map(|read| read.in_use);
            assert!(found == expected, "seed {seed}, {threads} threads: {found:?}");
            let chain = chain(&loaded, LayerId(4));
            let expected = map::load(&store, &chain, CLUSTERS).map(|_| ());
            assert_eq!(load_map(&store, &chain, CLUSTERS, threads).map(|_| ()), expected, "seed {seed}");
        }
    }
    assert!(refused > 50, "{refused} of 100 were refused");
}

fn damage(store: &MemoryMeta, rng: &mut fastrand::Rng) {
    let layer = LayerId(rng.u32(1..22));
    let cluster = ClusterIndex(rng.u32(..2_000_000));
    let pool = PoolCluster(if rng.bool() { rng.u32(..POOL_CLUSTERS + 3) } else { 1000 });
    let record = MapRecord { cluster: Some(pool), data: Mask(1), ..MapRecord::default() };
    match rng.u8(..4) {
        0 => drop(store.flip_bit(rng)),
        1 => drop(store.fail_checksum(rng)),
        // A key that is too short or too long, in a layer or between two.
        2 => {
            let key = [0x20, 0, 0, 0, rng.u8(..22), 0, 0, 0, 0, 0];
            store.put_raw(&key[..*rng.choice(&[3, 5, 7, 10]).expect("not empty")], &[0; 9]);
        }
        _ => store.write(&[Change::Map(layer, cluster, Some(record))]).unwrap(),
    }
}

#[test]
fn a_record_beyond_its_volume_costs_the_map_and_not_the_start() {
    let store = random_store(&mut fastrand::Rng::with_seed(1));
    let beyond = ClusterIndex(u32::try_from(CLUSTERS).unwrap());
    let zero = MapRecord { zero: Mask(1), ..MapRecord::default() };
    store.write(&[Change::Map(LayerId(1), beyond, Some(zero))]).unwrap();
    let loaded = load(&store, 1).unwrap();
    for threads in THREADS {
        let read = checkpoint(&store, &loaded, threads).unwrap();
        assert_eq!(read.maps.iter().map(|map| map.volume.0).collect::<Vec<_>>(), [2, 3]);
        let error = load_map(&store, &chain(&loaded, LayerId(4)), CLUSTERS, threads).unwrap_err();
        assert!(error.to_string().contains("layer 1 maps cluster"), "{error}");
    }
}

#[test]
fn maps_are_made_for_so_many_clusters_and_all_records_are_read_all_the_same() {
    let store = random_store(&mut fastrand::Rng::with_seed(2));
    let loaded = load(&store, 1).unwrap();
    let in_use = scan_pool_use(&store, &loaded, &mut |_, _, _| ()).unwrap();
    for (most, expected) in [(0, 0), (CLUSTERS - 1, 0), (CLUSTERS, 1), (2 * CLUSTERS, 2), (u64::MAX, 3)] {
        let read = Plan::new(&loaded, most).read(&store, 2).unwrap();
        assert_eq!(read.maps.len(), expected);
        assert!(read.in_use == in_use);
    }
}

#[test]
fn stretches_are_whole_pages_and_cover_every_cluster() {
    for clusters in [0, 1, STRETCH_CLUSTERS, STRETCH_CLUSTERS + 1, CLUSTERS, (1 << 31) + 7, CLUSTERS_END] {
        let stretches = stretches(clusters);
        assert!(stretches.len() as u64 <= STRETCHES_MAX, "{clusters}");
        assert_eq!(stretches[0].start, 0);
        assert!(stretches.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert!(stretches.iter().all(|stretch| stretch.start.is_multiple_of(STRETCH_CLUSTERS)));
        assert_eq!(stretches.last().unwrap().end, CLUSTERS_END);
    }
}

#[test]
fn a_piece_that_fails_ends_the_work() {
    let done = AtomicUsize::new(0);
    let work = |_: &mut (), at: usize| {
        done.fetch_add(1, Ordering::Relaxed);
        at != 10
    };
    assert!(spread(1, 1000, || (), work).is_none());
    assert_eq!(done.load(Ordering::Relaxed), 11);
    assert!(spread(4, 1000, || (), work).is_none());
    assert_eq!(
        spread(
            4,
            10,
            || 0,
            |sum, at| {
                *sum += at;
                true
            }
        )
        .unwrap()
        .iter()
        .sum::<usize>(),
        45
    );
}
