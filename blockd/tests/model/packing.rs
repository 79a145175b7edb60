//! What sparse writes after a snapshot cost, before and after they are packed.

use std::collections::BTreeMap;

use crate::directed::{BLOCK, create, read_block, rest, snapshot, status, write_block};
use crate::world::World;

const WRITES: usize = 1000;
/// Bytes of the volume: the writes hit one cluster in five.
const SIZE: u64 = 256 << 20;

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
