//! Random trees of layers against their images.

mod changes;
mod mend;
mod trees;
mod world;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use fastrand::Rng;

use super::compute::recorded_root;
use super::*;
use crate::catalog::format::keys::{hash_key, hash_range, map_key};
use crate::catalog::format::{Change, MapRecord, Record};
use crate::catalog::memory::{MemoryMeta, collect};
use crate::catalog::meta::MetaStore;
use crate::service::{DamagedExtent, DiffExtent, ExtentKind, VerifyReport};
use crate::units::{BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, cluster_count};
use world::World;

const SEEDS: u64 = 60;

fn hash_of(world: &World, id: u32) -> [u8; 32] {
    let submit = |command| world.submit(command);
    hash(&world.reader(), &world.pinned(id), &submit, &mut |_, _| true).unwrap()
}

fn check_hashes(world: &mut World) {
    let mut ids: Vec<_> = world.layers.keys().copied().collect();
    world.rng.shuffle(&mut ids);
    for id in ids {
        let expected = *blake3::hash(&world.layers[&id].image).as_bytes();
        assert_eq!(hash_of(world, id), expected, "layer {id}");
        let size = world.layers[&id].image.len() as u64;
        assert_eq!(recorded_root(&*world.meta, LayerId(id), size), Ok(Some(expected)));
    }
}

/// Forgets all roots, and some clusters' hashes.
fn forget_some(world: &mut World) {
    let mut changes = Vec::new();
    for &id in world.layers.keys() {
        changes.push(Change::Root(LayerId(id), None));
        for (key, value) in collect(&*world.meta, &hash_range(LayerId(id))).unwrap() {
            let Record::Hash(layer, cluster, _) = Record::decode(&key, &value).unwrap() else {
                unreachable!()
            };
            if world.rng.u8(..3) == 0 {
                changes.push(Change::Hash(layer, cluster, None));
            }
        }
    }
    world.meta.write(&changes).unwrap();
}

#[test]
fn hashes_are_those_of_the_images() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 8);
        check_hashes(&mut world);
        forget_some(&mut world);
        check_hashes(&mut world);
        while world.merge_one() {
            forget_some(&mut world);
            check_hashes(&mut world);
        }
    }
}

/// The whole clusters of a layer as a snapshot of their own, if there are several and no record lies beyond.
fn whole_clusters(world: &World, id: u32) -> Option<Pinned> {
    let clusters = world.layers[&id].image.len() as u64 / CLUSTER_BYTES;
    let chain = world.chain(id);
    let is_inside = |id: &u32| world.layers[id].records.keys().all(|&cluster| u64::from(cluster) < clusters);
    let size = clusters * CLUSTER_BYTES;
    (clusters > 1 && chain.iter().all(is_inside)).then(|| Pinned { size, ..world.pinned(id) })
}

/// What is recorded must be used, or an hour's work is done again. A root of another size must not.
#[test]
fn what_is_recorded_is_not_read_again() {
    let mut tried = 0;
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 6);
        check_hashes(&mut world);
        let blind = ClosedReader::new(world.meta.clone(), Vec::new());
        for &id in world.layers.keys() {
            let Some(pinned) = whole_clusters(&world, id) else { continue };
            world.meta.write(&[Change::Root(LayerId(id), None)]).unwrap();
            let submit = |command| world.submit(command);
            let image = &world.layers[&id].image[..usize::try_from(pinned.size).unwrap()];
            let hashed = hash(&blind, &pinned, &submit, &mut |_, _| true);
            assert_eq!(hashed, Ok(*blake3::hash(image).as_bytes()));
            tried += 1;
        }
        check_hashes(&mut world);
    }
    assert!(tried > 20, "{tried} layers");
}

/// Bytes in memory in a file's place: what a simulated disk is to us.
struct InMemory(Vec<u8>);

impl PoolRead for InMemory {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let bytes = self.0.get(start..start + buffer.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

#[test]
fn the_pool_need_not_be_files() {
    let world = World::new(3, 8);
    let handles = world.pool_files().into_iter().map(|(path, first, clusters)| {
        let mut bytes = Vec::new();
        File::open(path).unwrap().take(16 << 20).read_to_end(&mut bytes).unwrap();
        PoolHandle { file: Arc::new(InMemory(bytes)), first, clusters }
    });
    let reader = ClosedReader::new(world.meta.clone(), handles.collect());
    for (&id, layer) in &world.layers {
        let submit = |command| world.submit(command);
        let hashed = hash(&reader, &world.pinned(id), &submit, &mut |_, _| true);
        assert_eq!(hashed, Ok(*blake3::hash(&layer.image).as_bytes()));
    }
}

fn diff_of(world: &World, from: Option<u32>, to: u32) -> Vec<DiffExtent> {
    let mut extents = Vec::new();
    let from = from.map(|from| world.pinned(from));
    diff(&world.reader(), from.as_ref(), &world.pinned(to), &mut |extent| {
        extents.push(extent);
        true
    })
    .unwrap();
    extents
}

/// The same, block by block.
fn expected_diff(world: &World, from: Option<u32>, to: u32) -> Vec<DiffExtent> {
    let from_chain = from.map_or_else(Vec::new, |from| world.chain(from));
    let (to_chain, to_size) = (world.chain(to), world.layers[&to].image.len() as u64);
    let from_size = from.map_or(0, |from| world.layers[&from].image.len() as u64);
    let either = from_chain.iter().chain(&to_chain);
    let one: Vec<_> = either.filter(|id| from_chain.contains(id) != to_chain.contains(id)).collect();
    let mut extents: Vec<DiffExtent> = Vec::new();
    for at in 0..to_size.div_ceil(BLOCK_BYTES) {
        let (cluster, block, offset) =
            (u32::try_from(at / 16).unwrap(), u32::try_from(at % 16).unwrap(), at * BLOCK_BYTES);
        let is_touched = one.iter().any(|id| {
            let record = world.layers[*id].records.get(&cluster);
            record.is_some_and(|record| record.data.with(record.zero).has(block))
        });
        let data = world.shows_data(&to_chain, cluster, block);
        let (kind, end) = match data {
            true => (ExtentKind::Data, to_size),
            false => (ExtentKind::Zero, to_size.min(from_size)),
        };
        if !is_touched || offset >= end {
            continue;
        }
        let length = BLOCK_BYTES.min(end - offset);
        match extents.last_mut() {
            Some(last) if last.kind == kind && last.offset + last.length == offset => last.length += length,
            _ => extents.push(DiffExtent { offset, length, kind }),
        }
    }
    extents
}

fn check_diff(world: &World, from: Option<u32>, to: u32) {
    let extents = diff_of(world, from, to);
    assert_eq!(extents, expected_diff(world, from, to), "{from:?} to {to}");
    let image = &world.layers[&to].image;
    let mut made = from.map_or_else(Vec::new, |from| world.layers[&from].image.clone());
    made.resize(image.len(), 0);
    for DiffExtent { offset, length, kind } in extents {
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + length).unwrap();
        match kind {
            ExtentKind::Data => made[range.clone()].copy_from_slice(&image[range]),
            ExtentKind::Zero => made[range].fill(0),
        }
    }
    assert!(made == *image, "{from:?} to {to}");
}

fn check_diffs(world: &World) {
    for &to in world.layers.keys() {
        check_diff(world, None, to);
        for &from in world.layers.keys() {
            check_diff(world, Some(from), to);
        }
    }
}

#[test]
fn a_diff_makes_one_snapshot_of_another() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 7);
        check_diffs(&world);
        while world.merge_one() {
            check_diffs(&world);
        }
    }
}

#[test]
fn a_diff_stops_when_told() {
    let world = World::new(1, 6);
    let to = *world.layers.keys().last().unwrap();
    assert!(diff_of(&world, None, to).len() > 1);
    let mut seen = 0;
    let mut first = |_| {
        seen += 1;
        false
    };
    diff(&world.reader(), None, &world.pinned(to), &mut first).unwrap();
    assert_eq!(seen, 1);
}

/// Only layers of one side are read: the others may be damaged.
#[test]
fn a_diff_reads_nothing_below_the_common_ancestor() {
    let world = World::new(5, 9);
    for (&id, layer) in &world.layers {
        let Some(parent) = layer.parent else { continue };
        let expected = diff_of(&world, Some(parent), id);
        let copy = World::new(5, 9);
        for common in copy.chain(parent) {
            copy.meta.put_raw(&map_key(LayerId(common), ClusterIndex(0)), b"no record");
        }
        assert_eq!(diff_of(&copy, Some(parent), id), expected);
    }
}

fn verify_of(world: &World, id: u32) -> VerifyReport {
    verify(&world.reader(), &world.pinned(id), &mut |_, _| true).unwrap()
}

/// The clusters that show data for which something holds, joined.
fn clusters_where(world: &World, id: u32, holds: &dyn Fn(u32) -> bool) -> Vec<DamagedExtent> {
    let size = world.layers[&id].image.len() as u64;
    let mut extents: Vec<DamagedExtent> = Vec::new();
    for cluster in (0..u32::try_from(cluster_count(size)).unwrap()).filter(|&cluster| holds(cluster)) {
        let offset = ClusterIndex(cluster).start();
        let length = CLUSTER_BYTES.min(size - offset);
        match extents.last_mut() {
            Some(last) if last.offset + last.length == offset => last.length += length,
            _ => extents.push(DamagedExtent { offset, length }),
        }
    }
    extents
}

fn data_bytes(world: &World, id: u32) -> u64 {
    let chain = world.chain(id);
    let shows = |cluster| (0..16).any(|block| world.shows_data(&chain, cluster, block));
    clusters_where(world, id, &shows).iter().map(|extent| extent.length).sum()
}

/// Some data block that lies in the pool: cluster, layer, block.
fn some_block(world: &World, rng: &mut Rng) -> Option<(u32, u32, u32)> {
    let mut blocks = Vec::new();
    for (&id, layer) in &world.layers {
        for (&cluster, record) in &layer.records {
            blocks.extend((0..16).filter(|&block| record.data.has(block)).map(|block| (cluster, id, block)));
        }
    }
    rng.choice(blocks)
}

#[test]
fn a_flipped_bit_is_found_wherever_it_shows() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 6);
        let mut rng = Rng::with_seed(seed);
        for &id in world.layers.keys() {
            let report = verify_of(&world, id);
            let unhashed = VerifyReport { unhashed_bytes: data_bytes(&world, id), ..VerifyReport::default() };
            assert_eq!(report, unhashed);
        }
        check_hashes(&mut world);
        let Some((cluster, owner, block)) = some_block(&world, &mut rng) else { continue };
        let (file, offset) = world.place(&world.layers[&owner].records[&cluster], block);
        let (offset, mut byte) = (offset + rng.u64(..BLOCK_BYTES), [0]);
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << rng.u8(..8)], offset).unwrap();
        for &id in world.layers.keys() {
            let chain = world.chain(id);
            let shown = world.deciding(&chain, cluster, block).is_some_and(|(from, _)| from == owner);
            let report = verify_of(&world, id);
            assert_eq!(report.damaged, clusters_where(&world, id, &|at| shown && at == cluster));
            assert_eq!((report.checked_bytes, report.unhashed_bytes), (data_bytes(&world, id), 0));
        }
    }
}

#[test]
fn what_cannot_be_read_is_damaged_and_the_rest_is_read() {
    let mut damaged = 0;
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 6);
        check_hashes(&mut world);
        let Some((lost, owner, _)) = some_block(&world, &mut Rng::with_seed(seed)) else { continue };
        let (file, length) = world.file(world.layers[&owner].records[&lost].cluster.unwrap());
        let second = world.layers[&owner].records[&lost].cluster.unwrap().0 >= 24;
        file.set_len(length).unwrap();
        for &id in world.layers.keys() {
            let chain = world.chain(id);
            let is_lost = |cluster: u32| {
                (0..16).any(|block| {
                    world
                        .deciding(&chain, cluster, block)
                        .filter(|(_, record)| record.data.has(block))
                        .is_some_and(|(_, record)| {
                            let pool = record.cluster.unwrap();
                            (pool.0 >= 24) == second && world.file(pool).1 >= length
                        })
                })
            };
            let expected = clusters_where(&world, id, &is_lost);
            damaged += expected.len();
            let report = verify_of(&world, id);
            assert_eq!(report.damaged, expected);
            let lost_bytes: u64 = expected.iter().map(|extent| extent.length).sum();
            assert_eq!(report.checked_bytes + lost_bytes, data_bytes(&world, id));
        }
    }
    assert!(damaged > 0);
}

/// Counts what it is asked, and ends the hasher when there is no work.
struct NoWait<'a>(&'a AtomicBool);

/// In the way from the first piece on, until it was told to let others go on so many times.
struct InTheWay<'a> {
    stop: &'a AtomicBool,
    pinned: &'a dyn Fn() -> bool,
    left: AtomicU32,
}

impl Waits for InTheWay<'_> {
    fn between_pieces(&self) {}

    fn for_work(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn for_others(&self) {
        assert!(!(self.pinned)(), "it waits for others with a pin in its hand");
        self.left.fetch_sub(1, Ordering::Relaxed);
    }

    fn is_in_the_way(&self) -> bool {
        self.left.load(Ordering::Relaxed) > 0
    }
}

impl Waits for NoWait<'_> {
    fn between_pieces(&self) {}

    fn for_work(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn for_others(&self) {}

    fn is_in_the_way(&self) -> bool {
        false
    }
}

#[test]
fn the_hasher_hashes_every_snapshot() {
    let world = World::new(11, 8);
    world.name_all();
    let stop = AtomicBool::new(false);
    let submit = |command| world.submit(command);
    run_hasher(&world.reader(), &submit, &stop, &NoWait(&stop));
    for (&id, layer) in &world.layers {
        let root = recorded_root(&*world.meta, LayerId(id), layer.image.len() as u64).unwrap();
        assert_eq!(root, Some(*blake3::hash(&layer.image).as_bytes()));
    }
    assert!(!world.is_pinned());
}

/// A layer of a deleted snapshot waits for the pin: the hasher gives it back, and hashes everything all the same.
#[test]
fn the_hasher_lets_others_go_on() {
    let world = World::new(11, 8);
    world.name_all();
    let stop = AtomicBool::new(false);
    let submit = |command| world.submit(command);
    let pinned = || world.is_pinned();
    let waits = InTheWay { stop: &stop, pinned: &pinned, left: AtomicU32::new(3) };
    run_hasher(&world.reader(), &submit, &stop, &waits);
    assert!(!waits.is_in_the_way(), "it never let go");
    for (&id, layer) in &world.layers {
        assert!(recorded_root(&*world.meta, LayerId(id), layer.image.len() as u64).unwrap().is_some());
    }
}

#[test]
fn the_hasher_leaves_alone_what_it_cannot_read() {
    let world = World::new(11, 8);
    world.name_all();
    let (stop, submit) = (AtomicBool::new(false), |command| world.submit(command));
    let blind = ClosedReader::new(world.meta.clone(), Vec::new());
    let (mut hasher, mut failures) = (Hasher::new(&blind), 0);
    loop {
        match hasher.hash_next(&submit, &stop, &NoWait(&stop)) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::Io);
                failures += 1;
            }
        }
        assert!(!world.is_pinned());
    }
    assert!((1..=8).contains(&failures));
}

#[test]
fn hashing_and_verifying_stop_when_told() {
    let mut world = World::new(4, 6);
    let id = *world.layers.keys().last().unwrap();
    let submit = |command| world.submit(command);
    let stopped = hash(&world.reader(), &world.pinned(id), &submit, &mut |_, _| false);
    assert_eq!(stopped.unwrap_err().kind, ErrorKind::Stopping);
    check_hashes(&mut world);
    let name = SnapshotName { volume: "v".into(), snapshot: id.to_string() };
    let submit = |command| world.submit(command);
    let failed: Result<(), _> = with_pin(&submit, &name, |_| Err(super::stopped()));
    assert_eq!(failed.unwrap_err().kind, ErrorKind::Stopping);
    assert!(!world.is_pinned());
}

/// Not a check but a measurement: `cargo test --release -p blockd speed_of -- --ignored --nocapture`. With the small
/// batches of tests.
#[test]
#[ignore = "a measurement"]
fn speed_of_snapshots() {
    const CLUSTERS: u32 = 16_384;
    let (directory, meta) = (tempfile::tempdir().unwrap(), Arc::new(MemoryMeta::new()));
    let path = directory.path().join("pool");
    let mut content = vec![0; CLUSTER_BYTES as usize * 64];
    let mut pool = File::create(&path).unwrap();
    let mut rng = Rng::with_seed(1);
    for _ in 0..=CLUSTERS / 64 {
        rng.fill(&mut content);
        pool.write_all(&content).unwrap();
    }
    let record = |at| MapRecord {
        cluster: Some(PoolCluster(at + 1)),
        data: Mask::ALL,
        zero: Mask::NONE,
        packed: None,
    };
    let records = (0..CLUSTERS).map(|at| Change::Map(LayerId(1), ClusterIndex(at), Some(record(at))));
    meta.write(&records.collect::<Vec<_>>()).unwrap();
    let file = Arc::new(File::open(&path).unwrap());
    let files = vec![PoolHandle { file, first: PoolCluster(0), clusters: CLUSTERS + 64 }];
    let reader = ClosedReader::new(meta.clone(), files);
    let pinned = Pinned { pin: 1, chain: vec![LayerId(1)], size: CLUSTER_BYTES * u64::from(CLUSTERS) };
    let submit = |command| {
        let Control::KeepHashes { hashes, .. } = command else { unreachable!() };
        let hashes = hashes.into_iter().map(|(layer, at, hash)| Change::Hash(layer, at, Some(hash)));
        meta.write(&hashes.collect::<Vec<_>>()).unwrap();
        Ok(Answer::Done)
    };
    for what in ["nothing", "all"] {
        let begun = Instant::now();
        hash(&reader, &pinned, &submit, &mut |_, _| true).unwrap();
        println!("hash of 1 GiB in the page cache, {what} recorded: {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    assert_eq!(verify(&reader, &pinned, &mut |_, _| true).unwrap().checked_bytes, pinned.size);
    println!("verify of 1 GiB in the page cache: {:?}", begun.elapsed());
    let begun = Instant::now();
    diff(&reader, None, &pinned, &mut |_| true).unwrap();
    println!("diff over {CLUSTERS} records: {:?}", begun.elapsed());
}
