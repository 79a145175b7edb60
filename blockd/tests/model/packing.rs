//! Sparse records of closed layers are packed: what that is worth, and what must not go wrong meanwhile.

use std::collections::BTreeMap;

use nbd_server::export::Command;

use crate::directed::{
    BLOCK, CLUSTER, create, export, fill_pool, read_block, request, rest, snapshot, some_steps, status,
    write_block,
};
use crate::world::{World, packed_records};

const WRITES: usize = 1000;
/// Bytes of the volume: the writes hit one cluster in five.
const SIZE: u64 = 256 << 20;
/// Records of the layer that is packed: they fill one cluster and a half.
const SPARSE: u64 = 24;
/// Operations that packing them takes, at least.
const STEPS: usize = 32;
const SEEDS: u64 = 16;

#[test]
fn sparse_writes_after_a_snapshot_cost_less_than_twice_their_size() {
    let mut world = World::with_files(1, [2048, 2048]);
    let volume = create(&mut world, "v", SIZE);
    snapshot(&mut world, "v", "before");
    let mut written = BTreeMap::new();
    for at in 0..WRITES {
        let (block, value) = (world.rng.u64(..SIZE / BLOCK), at as u8 | 1);
        write_block(&mut world, volume, block, value);
        written.insert(block, value);
    }
    snapshot(&mut world, "v", "after");
    let data = written.len() as u64 * BLOCK;
    assert!(status(&mut world).used_bytes > 10 * data, "sparse writes take whole clusters");
    rest(&mut world);
    let used = status(&mut world).used_bytes;
    assert!(used < 2 * data, "{used} bytes are in use for {data}");
    for reopened in [false, true] {
        if reopened {
            world.power_cut();
        }
        for (&block, &value) in written.iter().step_by(7) {
            let found = (read_block(&mut world, "v", block), read_block(&mut world, "v@after", block));
            assert_eq!(found, (value, value));
        }
    }
}

fn sparse_block(record: u64) -> u64 {
    record * CLUSTER / BLOCK
}

fn sparse_value(record: u64) -> u8 {
    u8::try_from(record).expect("few records") + 1
}

/// A volume `v` with a snapshot `s` whose records are all sparse, and a volume `w`. Nothing is dirty; packing has
/// begun, and so many operations of it have ended.
fn begin_packing(seed: u64, steps: usize) -> World {
    let mut world = World::new(seed);
    // The next commit that nobody asks for is seconds away.
    world.tick(1);
    create(&mut world, "w", SIZE);
    let volume = create(&mut world, "v", SIZE);
    for record in 0..SPARSE {
        write_block(&mut world, volume, sparse_block(record), sparse_value(record));
    }
    snapshot(&mut world, "v", "s");
    world.tick(1000);
    some_steps(&mut world, steps);
    world
}

fn is_packed(world: &World) -> bool {
    !packed_records(&world.meta.snapshot()).1.is_empty()
}

fn check_sparse(world: &mut World, context: &str) {
    for record in 0..SPARSE {
        let found = read_block(world, "v@s", sparse_block(record));
        assert_eq!(found, sparse_value(record), "record {record}, {context}");
    }
}

/// A map that is read while its records are replaced may show the old ones, and clusters that are free by then.
#[test]
fn records_are_not_replaced_while_a_map_is_loaded() {
    let mut put_off = 0;
    for (seed, steps) in (0..SEEDS).flat_map(|seed| (0..STEPS).map(move |steps| (seed, steps))) {
        let mut world = begin_packing(seed, steps);
        let view = export(&world, "v@s");
        world.connect(view);
        world.settle();
        put_off += u32::from(!is_packed(&world));
        fill_pool(&mut world, "w");
        check_sparse(&mut world, &format!("seed {seed}, looked at after {steps} operations"));
    }
    assert!(put_off > 0, "packing never had to wait for the map");
}

/// What was copied before a sync failed may be lost, whatever later syncs say.
#[test]
fn copies_made_before_a_failed_sync_are_not_used() {
    let mut voided = 0;
    for (seed, steps) in (0..SEEDS).flat_map(|seed| (0..STEPS).map(move |steps| (seed, steps))) {
        let mut world = begin_packing(seed, steps);
        let other = export(&world, "w");
        let mut buf = world.buffers.take(BLOCK as usize);
        buf.fill(1);
        world.inject(fixtures::sim::Fault::SyncError);
        // Or that of the copies fails, which is made again.
        let failed = request(&mut world, other, 0, BLOCK, Command::Write { buf, fua: true }).is_err();
        voided += u32::from(failed && !is_packed(&world));
        world.power_cut();
        check_sparse(&mut world, &format!("seed {seed}, a sync failed after {steps} operations"));
    }
    assert!(voided > 0, "no sync failed while blocks were copied");
}
