//! Damage that is mended, in random trees of layers; and roots that are made of what is read.

use super::*;
use crate::hash::cluster_value;
use crate::service::Verdict;

/// Flips a byte in some blocks of clusters whose value is recorded; how many of them show in that layer.
fn damage(world: &mut World, id: u32) -> usize {
    let (chain, image) = (world.chain(id), world.layers[&id].image.len() as u64);
    let clusters = u32::try_from(cluster_count(image)).unwrap();
    let mut count = 0;
    for cluster in 0..clusters {
        for block in 0..16 {
            // What lies behind the volume's end is no part of its root.
            let whole = ClusterIndex(cluster).start() + u64::from(block + 1) * BLOCK_BYTES <= image;
            let shown = whole && world.shows_data(&chain, cluster, block);
            if shown && world.rng.u8(..6) == 0 {
                let (_, record) = world.deciding(&chain, cluster, block).unwrap();
                let (file, at) = world.place(&record, block);
                let at = at + world.rng.u64(..BLOCK_BYTES);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << world.rng.u8(..8)], at).unwrap();
                count += 1;
            }
        }
    }
    count
}

fn pool(world: &World) -> Vec<Vec<u8>> {
    let read = |(path, ..): (std::path::PathBuf, _, _)| {
        let mut bytes = Vec::new();
        File::open(path).unwrap().take(8 << 20).read_to_end(&mut bytes).unwrap();
        bytes
    };
    world.pool_files().map(read).into()
}

fn found(world: &World, id: u32) -> VerifyReport {
    verify(&world.reader(), &world.pinned(id), &mut |_, _| true).unwrap()
}

/// What a cluster of a layer holds.
fn content(world: &World, id: u32, index: ClusterIndex) -> Vec<u8> {
    let image = &world.layers[&id].image;
    let start = usize::try_from(index.start()).unwrap();
    let mut content = image[start..image.len().min(start + CLUSTER_BYTES as usize)].to_vec();
    content.resize(CLUSTER_BYTES as usize, 0);
    content
}

#[test]
fn what_is_mended_is_as_it_was_and_nothing_else_is_written() {
    let mut mended = 0;
    // Each cluster costs a sync.
    for seed in 0..SEEDS / 4 {
        let mut world = World::new(seed, 8);
        check_hashes(&mut world);
        let (sound, ids) = (pool(&world), world.layers.keys().copied().collect::<Vec<_>>());
        for id in ids {
            if damage(&mut world, id) == 0 {
                continue;
            }
            let (reader, pinned) = (world.reader(), world.pinned(id));
            let damaged = (mended < 10).then(|| pool(&world));
            let report = found(&world, id);
            let wanted = recorded_values(&reader, &pinned, &report.damaged, usize::MAX).unwrap();
            assert_eq!(recorded_values(&reader, &pinned, &report.damaged, 1).unwrap(), wanted[..1]);
            for &(index, value) in &wanted {
                let right = content(&world, id, index);
                assert_eq!(value, Some(cluster_value(index, &right)));
                let mut wrong = right.clone();
                wrong[world.rng.usize(..CLUSTER_BYTES as usize)] ^= 4;
                for wrong in [&wrong[..], &right[1..], &[]] {
                    assert_eq!(mend(&reader, &pinned, index, wrong).unwrap_err().kind, ErrorKind::Damaged);
                }
                if let Some(damaged) = damaged.as_ref().filter(|_| index == wanted[0].0) {
                    assert!(pool(&world) == *damaged, "wrong bytes were written");
                }
                mend(&reader, &pinned, index, &right).unwrap();
                mended += 1;
            }
            assert!(found(&world, id).damaged.is_empty());
        }
        assert!(pool(&world) == sound, "seed {seed}: something else was written");
    }
    assert!(mended > 50, "{mended} clusters");
}

#[test]
fn what_has_no_recorded_hash_is_not_mended() {
    let mut world = World::new(5, 4);
    let id = *world.layers.keys().last().unwrap();
    let index =
        (0..).map(ClusterIndex).find(|index| (0..16).any(|b| world.shows_data(&world.chain(id), index.0, b)));
    let index = index.unwrap();
    let right = content(&world, id, index);
    let (reader, pinned) = (world.reader(), world.pinned(id));
    assert!(mend(&reader, &pinned, index, &right).unwrap_err().message.contains("no hash is recorded"));
    check_hashes(&mut world);
    mend(&reader, &pinned, index, &right).unwrap();
}

#[test]
fn a_root_is_made_of_what_is_read() {
    let mut lied = 0;
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 8);
        check_hashes(&mut world);
        let ids: Vec<u32> = world.layers.keys().copied().collect();
        let recomputed =
            |world: &World, id: u32| recompute(&world.reader(), &world.pinned(id), &mut |_, _| true).unwrap();
        for &id in &ids {
            let root = Some(*blake3::hash(&world.layers[&id].image).as_bytes());
            let found = recomputed(&world, id);
            assert_eq!(
                (found.verdict(), found.root, found.recorded),
                (Verdict::Sound, root, root),
                "{seed} {id}"
            );
        }
        let id = *ids.last().unwrap();
        if damage(&mut world, id) == 0 {
            continue;
        }
        let of_damaged = recomputed(&world, id);
        assert_eq!(of_damaged.verdict(), Verdict::Damaged);
        assert_ne!(of_damaged.root, of_damaged.recorded, "made of recorded hashes");
        // Hashes that were recorded of what is damaged: these alone would say that all is well.
        world.meta.write(&[Change::Root(LayerId(id), None)]).unwrap();
        let damaged = recomputed(&world, id).report.damaged;
        let (reader, pinned) = (world.reader(), world.pinned(id));
        for (index, _) in recorded_values(&reader, &pinned, &damaged, usize::MAX).unwrap() {
            let changed = Changes::new(&reader, None, &pinned, index).unwrap().next().unwrap().unwrap();
            let value = cluster_value(index, &reader.read_clusters(&[&changed]).pop().unwrap().unwrap());
            let none = Change::Hash(chain_layer(&world, id, index), index, None);
            world.meta.write(&[none]).unwrap();
            let again = Changes::new(&reader, None, &pinned, index).unwrap().next().unwrap().unwrap();
            let (layer, cluster, value) = again.kept(value).unwrap();
            world.meta.write(&[Change::Hash(layer, cluster, Some(value))]).unwrap();
        }
        assert!(found(&world, id).damaged.is_empty());
        let unknown = recomputed(&world, id);
        assert_eq!((unknown.verdict(), unknown.recorded), (Verdict::Unknown, None));
        let image = &world.layers[&id].image;
        let record = crate::catalog::format::RootRecord {
            size: image.len() as u64,
            hash: *blake3::hash(image).as_bytes(),
        };
        world.meta.write(&[Change::Root(LayerId(id), Some(record))]).unwrap();
        let wrong = recomputed(&world, id);
        assert!(wrong.report.damaged.is_empty());
        assert_eq!(wrong.verdict(), Verdict::Damaged);
        lied += 1;
    }
    assert!(lied > 20, "{lied} layers");
}

/// The newest layer with a record of a cluster.
fn chain_layer(world: &World, id: u32, index: ClusterIndex) -> LayerId {
    let has = |id: &u32| world.layers[id].records.contains_key(&index.0);
    LayerId(world.chain(id).into_iter().find(has).unwrap())
}
