//! Layers that nobody names are merged: what must not go wrong meanwhile.

use blockd::control::{Answer, Control};

use crate::directed::{
    BLOCK, CLUSTER, command, create, export, fill_pool, read_block, snapshot, snapshot_name, some_steps,
    status, write,
};
use crate::world::World;

/// Records of the layer that is merged.
const RECORDS: u64 = 6;
/// Operations that merging them takes, about.
const STEPS: usize = 40;
const SEEDS: u64 = 12;
const OLDER: u8 = 1;
const NEWER: u8 = 2;

/// Records of a layer that takes several steps to merge.
const MANY: u64 = 900;

/// A snapshot `s` shows blocks of two layers in the same clusters. The older layer is being merged into the newer one,
/// and so many operations of that have ended.
fn begin_merging(seed: u64, steps: usize) -> World {
    let mut world = World::new(seed);
    create(&mut world, "w", 256 * CLUSTER);
    let volume = create(&mut world, "v", RECORDS * CLUSTER);
    for (blocks, value, name) in [(2, OLDER, "merged"), (1, NEWER, "s")] {
        for record in 0..RECORDS {
            write(&mut world, volume, record * CLUSTER, blocks * BLOCK, value).expect("a write succeeds");
        }
        snapshot(&mut world, "v", name);
    }
    world.command(Control::DeleteSnapshot { name: snapshot_name("v", "merged") });
    some_steps(&mut world, steps);
    world
}

/// A map that is read while its layers are merged may show blocks that were copied where they lay before, in clusters
/// that are free by then.
#[test]
fn layers_are_not_merged_while_a_map_is_loaded() {
    for (seed, steps) in (0..SEEDS).flat_map(|seed| (0..STEPS).map(move |steps| (seed, steps))) {
        let mut world = begin_merging(seed, steps);
        let view = export(&world, "v@s");
        world.connect(view);
        // The disk is the faster one, so that the map comes late.
        while world.disk_step() || world.meta_step() {}
        assert_eq!(status(&mut world).layers_to_reclaim, 0, "the layer was merged when the map was there");
        fill_pool(&mut world, "w");
        for record in 0..RECORDS {
            let block = record * CLUSTER / BLOCK;
            let found = (read_block(&mut world, "v@s", block), read_block(&mut world, "v@s", block + 1));
            assert_eq!(found, (NEWER, OLDER), "seed {seed}, looked at after {steps} operations");
        }
    }
}

/// Pins `v@s`, if that is allowed.
fn pin(world: &mut World) -> Option<u64> {
    world.command(Control::Pin { name: snapshot_name("v", "s") });
    match world.take_answers().pop() {
        Some((_, Ok(Answer::Pinned(pinned)))) => Some(pinned.pin),
        _ => None,
    }
}

/// A layer of many records is merged, and so many operations on its snapshot is pinned. If that was refused, it is tried
/// until it is allowed: how many layers were left to merge then.
fn left_when_pinned(steps: usize) -> Option<u64> {
    let mut world = World::with_files(1, [2000, 2000]);
    let volume = create(&mut world, "v", MANY * CLUSTER);
    for record in 0..MANY {
        write(&mut world, volume, record * CLUSTER, BLOCK, OLDER).expect("a write succeeds");
    }
    snapshot(&mut world, "v", "merged");
    write(&mut world, volume, 0, BLOCK, NEWER).expect("a write succeeds");
    snapshot(&mut world, "v", "s");
    world.command(Control::DeleteSnapshot { name: snapshot_name("v", "merged") });
    some_steps(&mut world, steps);
    if pin(&mut world).is_some() {
        return None;
    }
    let granted = (0..4 * MANY).find_map(|_| {
        some_steps(&mut world, 1);
        pin(&mut world)
    });
    let pin = granted.expect("a pin that is tried again is granted");
    let left = status(&mut world).layers_to_reclaim;
    command(&mut world, Control::Unpin { pin });
    world.tick(1000);
    world.settle();
    assert_eq!(status(&mut world).layers_to_reclaim, 0, "the merge was forgotten");
    assert_eq!(
        (read_block(&mut world, "v@s", 0), read_block(&mut world, "v@s", CLUSTER / BLOCK)),
        (NEWER, OLDER)
    );
    Some(left)
}

/// A large layer took minutes to merge, and nobody could pin a snapshot over it before all of it was merged: a move's last
/// round waited for that with its guest stopped.
#[test]
fn a_merge_lets_a_pin_in_between_two_steps() {
    let left: Vec<u64> = (0..STEPS).filter_map(left_when_pinned).collect();
    assert!(left.iter().filter(|&&left| left > 0).count() > 3, "pinned when the merge had ended: {left:?}");
}
