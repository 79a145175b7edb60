//! What an expected cut will have to sync is written before it comes.

use nbd_server::disk::ExportIndex;
use nbd_server::export::Command;

use crate::directed::{BLOCK, create, snapshot, some_steps, write_block};
use crate::world::World;

/// From one snapshot to the next, milliseconds.
const INTERVAL: u64 = 1000;

/// A volume whose client writes a block every millisecond and never flushes.
struct Writer {
    world: World,
    volume: ExportIndex,
}

impl Writer {
    fn new() -> Self {
        let mut world = World::new(1);
        let volume = create(&mut world, "v", 1 << 20);
        Self { world, volume }
    }

    fn snapshot(&mut self, name: &str) {
        snapshot(&mut self.world, "v", name);
    }

    /// Returns how often the disk was told meanwhile to begin writing.
    fn write_for(&mut self, milliseconds: u64) -> u64 {
        let before = self.world.disk.early_writes();
        for at in 0..milliseconds {
            write_block(&mut self.world, self.volume, at % 7, 1);
            self.world.tick(1);
            some_steps(&mut self.world, 2);
        }
        self.world.disk.early_writes() - before
    }
}

#[test]
fn what_an_expected_snapshot_will_sync_is_written_before_it_comes() {
    let mut writer = Writer::new();
    writer.snapshot("first");
    assert_eq!(writer.write_for(INTERVAL), 0, "nobody has taken a second one");
    writer.snapshot("second");
    assert_eq!(writer.write_for(INTERVAL - 260), 0, "the next one is far away");
    assert!(writer.write_for(250) > 0, "it comes any moment");
    writer.snapshot("third");
    assert_eq!(writer.write_for(INTERVAL / 2), 0, "it has come");
    assert!(writer.write_for(INTERVAL) > 0, "the next one is late");
    assert_eq!(writer.write_for(10 * INTERVAL), 0, "it does not come");
}

#[test]
fn a_disk_that_does_not_keep_up_is_not_asked_for_more() {
    let mut writer = Writer::new();
    writer.snapshot("first");
    writer.write_for(INTERVAL);
    writer.snapshot("second");
    writer.write_for(INTERVAL - 260);
    let Writer { world, volume } = &mut writer;
    for block in 0..200 {
        let buf = world.buffers.take(BLOCK as usize);
        let write = Command::Write { buf, fua: false };
        world.start(*volume, block, u64::from(block) * BLOCK, BLOCK as u32, write);
        world.tick(1);
    }
    assert!(world.disk.pending() > 200, "a pass is under way");
    assert!(world.disk.pending() <= 202, "one alone");
    world.settle();
    assert_eq!(world.take_replies().len(), 200);
}

#[test]
fn nothing_is_written_early_where_nothing_was_written() {
    let mut writer = Writer::new();
    for name in ["first", "second"] {
        writer.snapshot(name);
        (0..INTERVAL).for_each(|_| writer.world.tick(1));
    }
    writer.world.settle();
    assert_eq!(writer.world.disk.early_writes(), 0);
}
