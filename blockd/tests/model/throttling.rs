//! Background work beside clients: it leaves them time, and comes to its end all the same.

use blockd::control::Control;
use nbd_server::disk::ExportIndex;
use nbd_server::export::Command;

use crate::directed::{
    BLOCK, CLUSTER, create, export, read_block, snapshot, snapshot_name, some_steps, write, write_block,
};
use crate::world::{World, load, packed_records};

/// Records of a layer that takes four steps to merge, or to pack.
const RECORDS: u64 = 900;
/// Pool files with a lot of room, and with hardly any.
const LARGE: [u32; 2] = [2000, 2000];
const TIGHT: [u32; 2] = [500, 440];
/// No step takes longer here, with the longest rest after it.
const STEP_AND_REST: u64 = 1200;
const LIMIT: u64 = 20_000;
/// A client reads for so long before anything is done beside it.
const BEFORE: u64 = 500;
const VALUE: u8 = 7;

/// Time passes, a millisecond in which two operations may end; a client may begin a read.
fn pass(world: &mut World, client: Option<ExportIndex>) {
    if let Some(export) = client {
        let buf = world.buffers.take(BLOCK as usize);
        world.start(export, 0, 0, BLOCK as u32, Command::Read { buf, holes: false });
    }
    some_steps(world, 2);
    world.tick(1);
    world.take_replies();
}

/// Milliseconds until something is so.
fn time_until(world: &mut World, client: Option<ExportIndex>, is_so: impl Fn(&World) -> bool) -> u64 {
    let mut looks = (1..=LIMIT).step_by(5);
    let is_so = looks.find(|_| {
        (0..5).for_each(|_| pass(world, client));
        is_so(world)
    });
    is_so.expect("background work comes to its end")
}

/// Only the volume's open layer is left, and the snapshot's below it.
fn is_merged(world: &World) -> bool {
    load(&world.meta.snapshot()).0.layers.len() == 2
}

/// A volume `v` with two layers, the older one of many records; its snapshot is being deleted beside a client, if
/// there is one.
fn begin_merging(files: [u32; 2], client: bool) -> (World, Option<ExportIndex>) {
    let mut world = World::with_files(1, files);
    let volume = create(&mut world, "v", RECORDS * CLUSTER);
    for record in 0..RECORDS {
        write(&mut world, volume, record * CLUSTER, 8 * BLOCK, VALUE).expect("a write succeeds");
    }
    snapshot(&mut world, "v", "merged");
    write_block(&mut world, volume, 0, VALUE + 1);
    snapshot(&mut world, "v", "s");
    let client = client.then_some(volume);
    (0..BEFORE).for_each(|_| pass(&mut world, client));
    world.command(Control::DeleteSnapshot { name: snapshot_name("v", "merged") });
    (world, client)
}

fn merge_time(files: [u32; 2], client: bool) -> u64 {
    let (mut world, client) = begin_merging(files, client);
    let time = time_until(&mut world, client, is_merged);
    world.settle();
    let found = (read_block(&mut world, "v@s", 0), read_block(&mut world, "v@s", CLUSTER / BLOCK));
    assert_eq!(found, (VALUE + 1, VALUE));
    time
}

#[test]
fn a_merge_beside_a_client_takes_its_time_and_comes_to_its_end() {
    let (alone, beside) = (merge_time(LARGE, false), merge_time(LARGE, true));
    assert!(beside > 3 * alone, "{alone} ms without a client, {beside} beside one");
    assert!(beside < 5 * STEP_AND_REST, "{beside} ms beside a client");
}

#[test]
fn a_merge_does_not_rest_while_clusters_are_short() {
    let (large, tight) = (merge_time(LARGE, true), merge_time(TIGHT, true));
    assert!(tight < large / 4, "{large} ms in a large pool, {tight} in a tight one");
}

/// Who connected while a layer was merged waited until all of it was.
#[test]
fn a_map_is_loaded_while_a_merge_rests() {
    let (mut world, client) = begin_merging(LARGE, true);
    (0..50).for_each(|_| pass(&mut world, client));
    let view = export(&world, "v@s");
    world.connect(view);
    let buf = world.buffers.take(BLOCK as usize);
    world.start(view, 1, CLUSTER, BLOCK as u32, Command::Read { buf, holes: false });
    let is_answered = |world: &mut World| {
        some_steps(world, 2);
        world.tick(1);
        world.take_replies().iter().any(|reply| reply.id.index == 1)
    };
    (0..STEP_AND_REST).find(|_| is_answered(&mut world)).expect("the map is loaded after a step");
    assert!(!is_merged(&world), "the layer was merged when the map was there");
    time_until(&mut world, client, is_merged);
}

/// Milliseconds until a layer of many sparse records is packed.
fn pack_time(client: bool) -> u64 {
    let mut world = World::with_files(1, LARGE);
    let volume = create(&mut world, "v", RECORDS * CLUSTER);
    for record in 0..RECORDS {
        write_block(&mut world, volume, record * CLUSTER / BLOCK, VALUE);
    }
    snapshot(&mut world, "v", "s");
    let client = client.then_some(volume);
    let is_packed = |world: &World| packed_records(&world.meta.snapshot()).1.len() as u64 == RECORDS;
    time_until(&mut world, client, is_packed)
}

#[test]
fn packing_beside_a_client_rests_after_each_step() {
    let (alone, beside) = (pack_time(false), pack_time(true));
    assert!(beside > alone + 1000, "{alone} ms without a client, {beside} beside one");
}
