//! What sparse writes after a snapshot cost, before and after they are packed.

use std::collections::BTreeMap;

use blockd::control::{Answer, Control, SnapshotName, StoreStatus};
use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, Payload};

use crate::world::World;

const BLOCK: usize = 4096;
const WRITES: usize = 1000;
/// Bytes of the volume: the writes hit one cluster in five.
const SIZE: u64 = 256 << 20;

fn command(world: &mut World, command: Control) -> Answer {
    let token = world.command(command);
    world.settle();
    let answers = world.take_answers();
    let answer = answers.into_iter().find(|(found, _)| *found == token).expect("an answer").1;
    answer.expect("success")
}

fn snapshot(world: &mut World, name: &str) {
    let names = vec![SnapshotName { volume: "v".to_owned(), snapshot: name.to_owned() }];
    command(world, Control::CreateSnapshots { names });
}

fn status(world: &mut World) -> StoreStatus {
    match command(world, Control::Status) {
        Answer::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

fn write(world: &mut World, export: ExportIndex, block: u64, value: u8) {
    let mut buf = world.buffers.take(BLOCK);
    buf.fill(value);
    let write = Command::Write { buf, fua: false };
    world.start(export, 0, block * BLOCK as u64, BLOCK as u32, write);
    world.settle();
    assert!(world.take_replies().pop().is_some_and(|reply| reply.outcome.is_ok()), "a write succeeds");
}

fn read(world: &mut World, name: &str, block: u64) -> u8 {
    let (export, ..) = world.find_export(name).expect("it is served");
    let buf = world.buffers.take(BLOCK);
    world.start(export, 0, block * BLOCK as u64, BLOCK as u32, Command::Read { buf, holes: false });
    world.settle();
    match world.take_replies().pop().expect("a reply").outcome.expect("success") {
        Payload::Data(buf) => buf[0],
        other => panic!("{other:?}"),
    }
}

/// Lets so much time pass that the background work comes to rest.
fn rest(world: &mut World) {
    for _ in 0..100 {
        world.tick(1000);
        world.settle();
    }
}

#[test]
fn sparse_writes_after_a_snapshot_cost_less_than_twice_their_size() {
    let mut world = World::with_files(1, [2048, 2048]);
    command(&mut world, Control::CreateVolume { name: "v".to_owned(), size: SIZE });
    snapshot(&mut world, "before");
    let (export, ..) = world.find_export("v").expect("it is served");
    let mut written = BTreeMap::new();
    for at in 0..WRITES {
        let (block, value) = (world.rng.u64(..SIZE / BLOCK as u64), at as u8 | 1);
        write(&mut world, export, block, value);
        written.insert(block, value);
    }
    snapshot(&mut world, "after");
    let data = (written.len() * BLOCK) as u64;
    assert!(status(&mut world).used_bytes > 10 * data, "sparse writes take whole clusters");
    rest(&mut world);
    let used = status(&mut world).used_bytes;
    assert!(used < 2 * data, "{used} bytes are in use for {data}");
    for reopened in [false, true] {
        if reopened {
            world.power_cut();
        }
        for (&block, &value) in written.iter().step_by(7) {
            assert_eq!((read(&mut world, "v", block), read(&mut world, "v@after", block)), (value, value));
        }
    }
}
