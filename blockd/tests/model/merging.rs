//! Layers that nobody names are merged: what must not go wrong meanwhile.

use blockd::control::Control;

use crate::directed::{
    BLOCK, CLUSTER, create, export, fill_pool, read_block, snapshot, snapshot_name, some_steps, status, write,
};
use crate::world::World;

/// Records of the layer that is merged.
const RECORDS: u64 = 6;
/// Operations that merging them takes, about.
const STEPS: usize = 40;
const SEEDS: u64 = 12;
const OLDER: u8 = 1;
const NEWER: u8 = 2;

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
