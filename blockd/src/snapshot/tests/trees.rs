//! Hashes by way of tree caches: always the root of the image, whatever the files hold.

use super::*;
use crate::catalog::format::LayerRecord;
use crate::units::VolumeId;

const IDENTITY: [u8; 16] = [3; 16];

fn with_trees(world: &World) -> ClosedReader {
    world.reader().with_trees(Trees::new(world.directory(), IDENTITY))
}

fn check_hash(world: &World, reader: &ClosedReader, id: u32) {
    let submit = |command| world.submit(command);
    let hashed = hash(reader, &world.pinned(id), &submit, &mut |_, _| true);
    assert_eq!(hashed, Ok(*blake3::hash(&world.layers[&id].image).as_bytes()), "layer {id}");
}

/// Layers of other volumes: clones.
fn move_to_other_volume(world: &mut World, id: u32, volume: u32) {
    let parent = world.layers[&id].parent.map(LayerId);
    let record = LayerRecord { parent, volume: VolumeId(volume) };
    world.meta.write(&[Change::Layer(LayerId(id), Some(record))]).unwrap();
}

fn damage_some(world: &mut World) {
    let path = world.directory().join(TREES_DIRECTORY).join("1.tree");
    let Ok(file) = File::options().read(true).write(true).open(path) else { return };
    let length = file.metadata().unwrap().len();
    match world.rng.u8(..3) {
        0 => file.set_len(world.rng.u64(..=length)).unwrap(),
        _ => file.write_all_at(&[world.rng.u8(..)], world.rng.u64(..length.max(1))).unwrap(),
    }
}

/// Snapshots, rollbacks and clones (siblings), growing, deletions (merges), in any order; roots and hashes forgotten;
/// files damaged.
#[test]
fn hashes_by_way_of_trees_are_those_of_the_images() {
    for seed in 0..SEEDS {
        let mut world = World::new(seed, 3);
        let reader = with_trees(&world);
        for _ in 0..12 {
            world.add_layer();
            let newest = *world.layers.keys().last().unwrap();
            if world.rng.u8(..6) == 0 {
                move_to_other_volume(&mut world, newest, 2);
            }
            check_hash(&world, &reader, newest);
            match world.rng.u8(..8) {
                0 => drop(world.merge_one()),
                1 => forget_some(&mut world),
                2 => damage_some(&mut world),
                3 | 4 => {
                    let any = world.rng.choice(world.layers.keys().copied().collect::<Vec<_>>()).unwrap();
                    check_hash(&world, &reader, any);
                }
                _ => {}
            }
        }
        forget_some(&mut world);
        let ids: Vec<_> = world.layers.keys().copied().collect();
        ids.into_iter().for_each(|id| check_hash(&world, &reader, id));
    }
}

/// Three layers, each over the one before, of the same size; the tree is of the second.
fn three_layers(seed: u64) -> (World, ClosedReader, [u32; 3]) {
    let mut world = World::new(seed, 0);
    let ids = [1, 2, 3].map(|id| {
        world.add_child((id > 1).then(|| id - 1), 40 * CLUSTER_BYTES as usize + 512);
        id
    });
    let reader = with_trees(&world);
    check_hash(&world, &reader, 1);
    check_hash(&world, &reader, 2);
    (world, reader, ids)
}

/// What makes it worth the while: a full walk stumbles over what is recorded below.
#[test]
fn what_a_tree_has_is_not_read_again() {
    let mut tried = 0;
    for seed in 0..SEEDS {
        let (world, reader, [below, earlier, later]) = three_layers(seed);
        let is_hidden =
            |at: &u32| [earlier, later].iter().any(|id| world.layers[id].records.contains_key(at));
        let mut shown = world.layers[&below].records.iter().filter(|(_, record)| !record.data.is_empty());
        let Some((&cluster, _)) = shown.find(|(at, _)| !is_hidden(at) && **at < 40) else {
            continue;
        };
        world.meta.put_raw(&hash_key(LayerId(below), ClusterIndex(cluster)), b"no value");
        let plain = hash(&world.reader(), &world.pinned(later), &|_| Ok(Answer::Done), &mut |_, _| true);
        assert_eq!(plain.unwrap_err().kind, ErrorKind::Damaged);
        check_hash(&world, &reader, later);
        tried += 1;
    }
    assert!(tried > 10, "{tried}");
}

#[test]
fn a_tree_of_a_later_snapshot_stays() {
    let (world, reader, [first, ..]) = three_layers(1);
    check_hash(&world, &reader, 3);
    let path = world.directory().join(TREES_DIRECTORY).join("1.tree");
    let tree = std::fs::read(&path).unwrap();
    world.meta.write(&[Change::Root(LayerId(first), None)]).unwrap();
    check_hash(&world, &reader, first);
    assert!(std::fs::read(&path).unwrap() == tree);
}

/// Whoever is stopped while it reads, here at the second batch, must find the tree again.
#[test]
fn a_hash_that_is_stopped_spoils_no_tree() {
    let mut stopped = 0;
    for seed in 0..SEEDS {
        let (world, reader, [below, _, later]) = three_layers(seed);
        // Zeroes of a page that was never written may be stopped at, too, and then it is too late.
        let is_written = |(&at, record): (&u32, &MapRecord)| at < 32 && !record.data.is_empty();
        if !world.layers[&below].records.iter().any(is_written) {
            continue;
        }
        let path = world.directory().join(TREES_DIRECTORY).join("1.tree");
        let tree = std::fs::read(&path).unwrap();
        let (submit, mut calls) = (|command| world.submit(command), 0);
        let mut once = |_, _| {
            calls += 1;
            calls <= 1
        };
        // On one thread: several read more at once, and are done before.
        if let Err(error) = hash(&reader.in_background(), &world.pinned(later), &submit, &mut once) {
            assert_eq!(error.kind, ErrorKind::Stopping);
            assert!(std::fs::read(&path).unwrap() == tree);
            stopped += 1;
        }
        check_hash(&world, &reader, later);
    }
    assert!(stopped > 3, "{stopped}");
}

/// A session that wanted the root while the idle hasher had the file made it from the start: 12 s for 64 GiB of which
/// 2600 blocks had changed.
#[test]
fn who_hashes_in_the_background_lets_go_and_spoils_no_tree() {
    let mut stopped = 0;
    for seed in 0..SEEDS {
        let (world, reader, [.., later]) = three_layers(seed);
        let path = world.directory().join(TREES_DIRECTORY).join("1.tree");
        let (tree, pinned) = (std::fs::read(&path).unwrap(), world.pinned(later));
        let submit = |command| world.submit(command);
        let mut wanted = None;
        let mut want = |_, _| {
            wanted = reader.want(&pinned).unwrap();
            true
        };
        if let Err(error) = hash(&reader.in_background(), &pinned, &submit, &mut want) {
            assert_eq!(error.kind, ErrorKind::Stopping);
            assert!(std::fs::read(&path).unwrap() == tree);
            let refused = hash(&reader.in_background(), &pinned, &submit, &mut |_, _| true);
            assert_eq!(refused.unwrap_err().kind, ErrorKind::Stopping, "it is still wanted");
            stopped += 1;
        }
        drop(wanted);
        check_hash(&world, &reader, later);
    }
    assert!(stopped > 3, "{stopped}");
}

#[test]
fn a_file_is_waited_for() {
    let world = World::new(4, 0);
    let trees = &std::sync::Arc::new(Trees::new(world.directory(), IDENTITY));
    let volume = VolumeId(1);
    let lease = trees.lease(volume, &mut || true).unwrap();
    let mut asked = 0;
    let mut thrice = || {
        asked += 1;
        asked < 3
    };
    assert!(trees.lease(volume, &mut thrice).is_none());
    assert!(trees.lease(VolumeId(2), &mut || false).is_some(), "another volume's is free");
    std::thread::scope(|scope| {
        let (told, waits) = std::sync::mpsc::channel();
        let waiting = scope.spawn(move || {
            let mut go_on = || told.send(()).is_ok();
            trees.lease(volume, &mut go_on).is_some()
        });
        waits.recv().unwrap();
        drop(lease);
        while waits.recv().is_ok() {}
        assert!(waiting.join().unwrap());
    });
}

#[test]
fn a_directory_in_the_way_is_no_reason_to_fail() {
    let mut world = World::new(4, 5);
    std::fs::create_dir_all(world.directory().join(TREES_DIRECTORY).join("1.tree")).unwrap();
    let reader = with_trees(&world);
    world.add_layer();
    world.layers.keys().for_each(|&id| check_hash(&world, &reader, id));
}

#[test]
fn files_of_volumes_that_are_gone_are_removed() {
    let world = World::new(4, 0);
    let trees = Trees::new(world.directory(), IDENTITY);
    trees.remove_others(&[].into()).unwrap();
    let directory = world.directory().join(TREES_DIRECTORY);
    std::fs::create_dir(&directory).unwrap();
    for name in ["1.tree", "2.tree", "x.tree", "3"] {
        std::fs::write(directory.join(name), b"").unwrap();
    }
    trees.remove_others(&[VolumeId(2)].into()).unwrap();
    let names = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["2.tree", "3", "x.tree"]);
}
