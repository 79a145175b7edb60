//! What directed tests do: one thing after the other, each to its end.

use blockd::control::{Answer, Control, SnapshotName, StoreStatus};
use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, Payload};
use nbd_server::wire::Errno;

use crate::world::World;

pub(crate) const BLOCK: u64 = 4096;
pub(crate) const CLUSTER: u64 = 65_536;

/// A command that succeeds.
pub(crate) fn command(world: &mut World, command: Control) -> Answer {
    let token = world.command(command);
    world.settle();
    let answers = world.take_answers();
    let answer = answers.into_iter().find(|(found, _)| *found == token).expect("an answer").1;
    answer.expect("success")
}

/// A volume of so many bytes.
pub(crate) fn create(world: &mut World, name: &str, size: u64) -> ExportIndex {
    command(world, Control::CreateVolume { name: name.to_owned(), size });
    export(world, name)
}

pub(crate) fn export(world: &World, name: &str) -> ExportIndex {
    world.find_export(name).expect("it is served").0
}

pub(crate) fn snapshot_name(volume: &str, snapshot: &str) -> SnapshotName {
    SnapshotName { volume: volume.to_owned(), snapshot: snapshot.to_owned() }
}

pub(crate) fn snapshot(world: &mut World, volume: &str, snapshot: &str) {
    command(world, Control::CreateSnapshots { names: vec![snapshot_name(volume, snapshot)] });
}

pub(crate) fn delete_snapshot(world: &mut World, volume: &str, snapshot: &str) {
    command(world, Control::DeleteSnapshot { name: snapshot_name(volume, snapshot) });
}

pub(crate) fn status(world: &mut World) -> StoreStatus {
    match command(world, Control::Status) {
        Answer::Status(status) => *status,
        other => panic!("{other:?}"),
    }
}

/// A request by its end.
pub(crate) fn request(
    world: &mut World,
    export: ExportIndex,
    offset: u64,
    length: u64,
    command: Command,
) -> Result<Payload, Errno> {
    world.start(export, 0, offset, u32::try_from(length).expect("a short request"), command);
    // The reactor's, at the end of every turn.
    world.tick(0);
    world.settle();
    world.take_replies().pop().expect("a reply").outcome
}

/// So many bytes of one value.
pub(crate) fn write(
    world: &mut World,
    export: ExportIndex,
    offset: u64,
    length: u64,
    value: u8,
) -> Result<(), Errno> {
    let mut buf = world.buffers.take(usize::try_from(length).expect("a short request"));
    buf.fill(value);
    request(world, export, offset, length, Command::Write { buf, fua: false }).map(drop)
}

pub(crate) fn write_block(world: &mut World, export: ExportIndex, block: u64, value: u8) {
    write(world, export, block * BLOCK, BLOCK, value).expect("a write succeeds");
}

/// The first byte of a block.
pub(crate) fn read_block(world: &mut World, name: &str, block: u64) -> u8 {
    let export = export(world, name);
    let buf = world.buffers.take(BLOCK as usize);
    let command = Command::Read { buf, holes: false };
    match request(world, export, block * BLOCK, BLOCK, command).expect("a read succeeds") {
        Payload::Data(buf) => buf[0],
        other => panic!("{other:?}"),
    }
}

/// Writes every cluster that is free, into a volume that is large enough.
pub(crate) fn fill_pool(world: &mut World, volume: &str) {
    let volume = export(world, volume);
    for at in 0.. {
        if write(world, volume, at * CLUSTER, CLUSTER, 0xEE).is_err() {
            return;
        }
    }
}

/// Lets so many operations end, of the disk or of the metadata.
pub(crate) fn some_steps(world: &mut World, steps: usize) {
    for _ in 0..steps {
        let disk_first = world.rng.bool();
        let _ended = (disk_first && world.disk_step()) || world.meta_step() || world.disk_step();
    }
}

/// Lets so much time pass that the background work comes to rest.
pub(crate) fn rest(world: &mut World) {
    for _ in 0..100 {
        world.tick(1000);
        world.settle();
    }
}
