//! What `Changes` hands out, against the images.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicU64;

use super::*;
use crate::catalog::meta::Visit;
use crate::hash::cluster_value;

fn changes_of(world: &World, from: Option<u32>, to: u32, starting_at: u32) -> Vec<Changed> {
    let from = from.map(|from| world.pinned(from));
    let (reader, to) = (world.reader(), world.pinned(to));
    let changes = Changes::new(&reader, from.as_ref(), &to, ClusterIndex(starting_at)).unwrap();
    changes.with_before().collect::<Result<_, _>>().unwrap()
}

/// The blocks of extents, cluster by cluster: those with data, those without.
fn masks(extents: &[DiffExtent]) -> BTreeMap<u32, (Mask, Mask)> {
    let mut masks = BTreeMap::<_, (Mask, Mask)>::new();
    for extent in extents {
        for at in extent.offset / BLOCK_BYTES..(extent.offset + extent.length).div_ceil(BLOCK_BYTES) {
            let (data, zero) = masks.entry(u32::try_from(at / 16).unwrap()).or_default();
            let mask = if extent.kind == ExtentKind::Data { data } else { zero };
            mask.0 |= 1 << (at % 16);
        }
    }
    masks
}

/// 64 KiB of an image, zeroes after its end.
fn content_of(image: &[u8], index: ClusterIndex) -> Vec<u8> {
    let start = image.len().min(usize::try_from(index.start()).unwrap());
    let end = image.len().min(start + CLUSTER_BYTES as usize);
    let mut content = image[start..end].to_vec();
    content.resize(CLUSTER_BYTES as usize, 0);
    content
}

/// The value that is recorded where a cluster's belongs.
fn recorded(world: &World, to: u32, index: ClusterIndex) -> Option<[u8; 32]> {
    let owner = world.chain(to).into_iter().find(|id| world.layers[id].records.contains_key(&index.0))?;
    let key = hash_key(LayerId(owner), index);
    match Record::decode(&key, &world.meta.get(&key).unwrap()?).unwrap() {
        Record::Hash(_, _, value) => Some(value),
        _ => unreachable!(),
    }
}

fn check_changed(world: &World, from: Option<u32>, to: u32, changes: &[Changed]) {
    let reader = world.reader();
    let image = &world.layers[&to].image;
    let before = from.map_or(&[][..], |from| &world.layers[&from].image);
    let all: Vec<_> = changes.iter().collect();
    let contents = reader.read_clusters(&all).into_iter().zip(reader.read_before(&all));
    for (changed, (content, old)) in changes.iter().zip(contents) {
        let expected = content_of(image, changed.index);
        assert!(*content.unwrap() == expected, "{from:?} to {to}, {changed:?}");
        let (old, expected_old) = (old.unwrap(), content_of(before, changed.index));
        let blocks = old.chunks(BLOCK_BYTES as usize).zip(expected_old.chunks(BLOCK_BYTES as usize));
        for (block, (old, expected)) in (0..).zip(blocks) {
            let wanted = changed.data.has(block);
            assert!(if wanted { old == expected } else { old.iter().all(|&byte| byte == 0) }, "{changed:?}");
        }
        let recorded = recorded(world, to, changed.index).filter(|_| changed.shows_data());
        assert_eq!(changed.recorded, recorded);
        let value = cluster_value(changed.index, &expected);
        assert!(changed.recorded.is_none_or(|recorded| recorded == value));
        match changed.kept(value) {
            Some((layer, index, _)) => {
                let holds = |id: &u32| world.layers[id].records.contains_key(&index.0);
                assert_eq!(world.chain(to).into_iter().find(holds), Some(layer.0));
            }
            None => assert!(changed.recorded.is_some() || expected.iter().all(|&byte| byte == 0)),
        }
    }
}

fn check_changes(world: &World, from: Option<u32>, to: u32) {
    let changes = changes_of(world, from, to, 0);
    let found: BTreeMap<_, _> =
        changes.iter().map(|changed| (changed.index.0, (changed.data, changed.zero))).collect();
    assert_eq!(found, masks(&expected_diff(world, from, to)), "{from:?} to {to}");
    check_changed(world, from, to, &changes);
    let clusters = u32::try_from(cluster_count(world.layers[&to].image.len() as u64)).unwrap();
    for start in 0..=clusters {
        let later = changes_of(world, from, to, start);
        let expected = changes.iter().filter(|changed| changed.index.0 >= start);
        assert!(later.iter().map(|changed| changed.index).eq(expected.map(|changed| changed.index)));
    }
}

#[test]
fn changes_are_those_of_the_images() {
    for seed in 0..SEEDS / 3 {
        let mut world = World::new(seed, 6);
        let mut more = true;
        while more {
            check_hashes(&mut world);
            forget_some(&mut world);
            for &to in world.layers.keys() {
                check_changes(&world, None, to);
                world.layers.keys().for_each(|&from| check_changes(&world, Some(from), to));
            }
            more = world.merge_one();
        }
    }
}

/// Counts the records that are looked at.
struct Counted(Arc<MemoryMeta>, AtomicU64);

impl MetaStore for Counted {
    fn write(&self, batch: &[Change]) -> Result<(), MetaError> {
        self.0.write(batch)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError> {
        self.0.scan(from, to, &mut |key, value| {
            self.1.fetch_add(1, Ordering::Relaxed);
            let next = visit(key, value)?;
            Ok::<ControlFlow<()>, _>(next)
        })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError> {
        self.0.get(key)
    }
}

/// A scan of what was there before would make each sync of a large volume a matter of minutes.
#[test]
fn changes_cost_what_has_changed() {
    const BELOW: u32 = 20_000;
    let meta = Arc::new(MemoryMeta::new());
    let part = |data| MapRecord { cluster: Some(PoolCluster(1)), data, ..MapRecord::default() };
    let below = (0..BELOW).map(|at| Change::Map(LayerId(1), ClusterIndex(at), Some(part(Mask::ALL))));
    meta.write(&below.collect::<Vec<_>>()).unwrap();
    let changed: Vec<_> = (0..50).map(|at| ClusterIndex(at * BELOW / 50)).collect();
    let above = changed.iter().map(|&at| Change::Map(LayerId(2), at, Some(part(Mask(1)))));
    meta.write(&above.collect::<Vec<_>>()).unwrap();
    let pinned = |layers: &[u32]| {
        let chain = layers.iter().copied().map(LayerId).collect();
        Pinned { pin: 1, chain, size: u64::from(BELOW) * CLUSTER_BYTES }
    };
    for start in [0, BELOW / 2] {
        let counted = Arc::new(Counted(meta.clone(), AtomicU64::new(0)));
        let reader = ClosedReader::new(counted.clone(), Vec::new());
        let (from, to) = (pinned(&[1]), pinned(&[2, 1]));
        let changes = Changes::new(&reader, Some(&from), &to, ClusterIndex(start)).unwrap().with_before();
        let expected = changed.iter().filter(|at| at.0 >= start).count() as u64;
        assert_eq!(changes.map(Result::unwrap).count() as u64, expected);
        let looked_at = counted.1.load(Ordering::Relaxed);
        assert!(looked_at <= 6 * expected + 20, "{looked_at} records for {expected} clusters");
    }
}
