//! Orders of events that went wrong once, and that random cases meet too seldom to be relied on.

use blockd::control::{Answer, Control, ControlError};
use fixtures::sim::Fault;
use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, Payload};
use nbd_server::wire::Errno;

use crate::directed::{
    self, create, delete_snapshot, read_block, request, rest, snapshot, snapshot_name, some_steps, status,
    write_block,
};
use crate::world::{World, records_of};

const BLOCK: u32 = directed::BLOCK as u32;
const CLUSTER: u32 = directed::CLUSTER as u32;
const FIRST: u8 = 1;
const SECOND: u8 = 2;

fn write(world: &mut World, export: ExportIndex, id: u32, offset: u32, length: u32, value: u8) {
    let mut buf = world.buffers.take(length as usize);
    buf.fill(value);
    world.start(export, id, u64::from(offset), length, Command::Write { buf, fua: false });
}

fn is_answered(world: &mut World, id: u32) -> bool {
    world.take_replies().iter().any(|reply| reply.id.index == id)
}

/// Two writes to blocks of a cluster that the map does not know there: the second, of two clusters, reaches the medium
/// with one half before the first does, and ends later. Whether that came about, and what is read after a zeroing
/// in between.
fn zero_between(seed: u64) -> Option<u8> {
    let mut world = World::new(seed);
    let export = create(&mut world, "v", 2 * u64::from(CLUSTER));
    // So that the two clusters do not lie side by side, and the second write has two parts.
    write(&mut world, export, 0, CLUSTER, BLOCK, FIRST);
    world.settle();
    world.take_replies();
    write(&mut world, export, 1, 0, BLOCK, FIRST);
    write(&mut world, export, 2, 0, 2 * CLUSTER, SECOND);
    while !world.take_replies().iter().any(|reply| reply.id.index == 1) {
        world.disk_step().then_some(())?;
    }
    let zero = Command::WriteZeroes { fua: false, no_hole: false, fast: false };
    world.start(export, 3, 0, BLOCK, zero);
    assert!(is_answered(&mut world, 3), "a zeroing waits for nothing");
    world.settle();
    let second_was_last = is_answered(&mut world, 2);
    let buf = world.buffers.take(BLOCK as usize);
    world.start(export, 4, 0, BLOCK, Command::Read { buf, holes: false });
    world.settle();
    let reply = world.take_replies().pop().expect("a reply");
    match reply.outcome.expect("no fault is set") {
        Payload::Data(buf) => second_was_last.then(|| buf[0]),
        other => panic!("{other:?}"),
    }
}

/// The first write was answered before the zeroing began: its data are gone for good.
#[test]
fn a_zeroing_overtakes_a_write_that_ends_after_it() {
    let found: Vec<u8> = (0..64).filter_map(zero_between).collect();
    assert!(found.len() > 5, "the order came about only {} times", found.len());
    assert!(!found.contains(&FIRST), "zeroed data came back");
}

/// Packed records cannot become an open layer's as they are, and there was no cluster for their blocks: their layer was
/// put aside until there might be one, and not looked at again.
#[test]
fn a_layer_that_waited_for_clusters_is_merged_when_there_are_some() {
    const RECORDS: u64 = 16;
    let cluster = u64::from(CLUSTER);
    let mut world = World::new(1);
    let volume = create(&mut world, "v", 256 * cluster);
    for record in 0..RECORDS {
        write_block(&mut world, volume, record * cluster / directed::BLOCK, FIRST);
    }
    snapshot(&mut world, "v", "s");
    rest(&mut world);
    let mut end = RECORDS;
    while directed::write(&mut world, volume, end * cluster, cluster, SECOND).is_ok() {
        end += 1;
    }
    delete_snapshot(&mut world, "v", "s");
    rest(&mut world);
    assert_eq!(status(&mut world).layers_to_reclaim, 1, "the full pool has no cluster for its blocks");
    let filled = (end - RECORDS) * cluster;
    request(&mut world, volume, RECORDS * cluster, filled, Command::Trim { fua: true }).expect("a trim");
    rest(&mut world);
    assert_eq!(status(&mut world).layers_to_reclaim, 0, "the layer was forgotten");
    for record in 0..RECORDS {
        assert_eq!(read_block(&mut world, "v", record * cluster / directed::BLOCK), FIRST);
    }
}

/// A layer is merged, a sync of another volume fails after so many operations, and a snapshot over the layer is pinned
/// after so many more, if that is allowed. Whether its layers' records stayed as they were.
fn pin_after_failed_sync(seed: u64, before: usize, after: usize) -> Option<bool> {
    let mut world = World::new(seed);
    let volume = create(&mut world, "v", 4 * u64::from(CLUSTER));
    let other = create(&mut world, "w", u64::from(CLUSTER));
    for (block, name) in [(0, "merged"), (16, "pinned")] {
        write_block(&mut world, volume, block, FIRST);
        snapshot(&mut world, "v", name);
    }
    world.command(Control::DeleteSnapshot { name: snapshot_name("v", "merged") });
    some_steps(&mut world, before);
    world.inject(Fault::SyncError);
    let mut buf = world.buffers.take(BLOCK as usize);
    buf.fill(SECOND);
    world.start(other, 0, 0, BLOCK, Command::Write { buf, fua: true });
    some_steps(&mut world, after);
    world.take_answers();
    world.command(Control::Pin { name: snapshot_name("v", "pinned") });
    let Some((_, Ok(Answer::Pinned(pinned)))) = world.take_answers().pop() else { return None };
    let records = records_of(&world.meta.snapshot(), &pinned.chain);
    world.settle();
    Some(records == records_of(&world.meta.snapshot(), &pinned.chain))
}

/// The merge was given up with the sync, but what it had done was still to be committed.
#[test]
fn a_pin_after_a_failed_sync_keeps_the_records_as_they_are() {
    let orders = (0..8).flat_map(|seed| (0..12).flat_map(move |a| (0..12).map(move |b| (seed, a, b))));
    let kept: Vec<bool> = orders.filter_map(|(seed, a, b)| pin_after_failed_sync(seed, a, b)).collect();
    assert!(kept.len() > 100, "the snapshot could be pinned only {} times", kept.len());
    assert!(kept.iter().all(|&kept| kept), "records have changed under a pin");
}

/// A sync of one pool file fails while another's is under way. Whether it was that way round, and whether the recent log
/// was given up.
fn a_sync_fails_before_another_ends(seed: u64) -> Option<bool> {
    let mut world = World::new(seed);
    let clusters = 50;
    world.command(Control::CreateVolume { name: "v".to_owned(), size: clusters * u64::from(CLUSTER) });
    world.settle();
    let (export, ..) = world.find_export("v").expect("it was made");
    for cluster in 0..clusters as u32 {
        write(&mut world, export, cluster, cluster * CLUSTER, BLOCK, FIRST);
    }
    world.settle();
    world.take_replies();
    world.inject(Fault::SyncError);
    world.start(export, 0, 0, 0, Command::Flush);
    while world.disk.syncs_failed() == 0 {
        world.disk_step().then_some(())?;
    }
    (world.disk.pending() > 0).then(|| world.recent.is_abandoned())
}

/// Killed then, the daemon would leave records behind whose data may be on no medium.
#[test]
fn the_recent_log_is_given_up_with_the_first_sync_that_fails() {
    let found: Vec<bool> = (0..16).filter_map(a_sync_fails_before_another_ends).collect();
    assert!(found.len() > 3, "the order came about only {} times", found.len());
    assert!(!found.contains(&false), "it was believed while the other sync lasted");
}

/// The idle hasher pinned snapshots for hours, and a layer below of a deleted one kept its space so long.
#[test]
fn the_store_says_when_a_pin_keeps_space() {
    let mut world = World::new(1);
    let v = create(&mut world, "v", u64::from(CLUSTER));
    for (block, name) in [(0, "a"), (1, "b")] {
        write_block(&mut world, v, block, FIRST);
        snapshot(&mut world, "v", name);
    }
    let Answer::Pinned(pinned) =
        directed::command(&mut world, Control::Pin { name: snapshot_name("v", "b") })
    else {
        panic!("no pin")
    };
    rest(&mut world);
    assert!(!world.store.waits_for_pins(), "nothing was deleted");
    delete_snapshot(&mut world, "v", "a");
    rest(&mut world);
    assert!(world.store.waits_for_pins() && status(&mut world).layers_to_reclaim == 1);
    directed::command(&mut world, Control::Unpin { pin: pinned.pin });
    rest(&mut world);
    assert!(!world.store.waits_for_pins() && status(&mut world).layers_to_reclaim == 0);
}

/// A snapshot is deleted, and so many steps later its volume.
fn delete_after(steps: usize) -> Result<Answer, ControlError> {
    let mut world = World::new(1);
    let v = create(&mut world, "v", 8 * u64::from(CLUSTER));
    for (name, first) in [("a", 0), ("b", 1)] {
        for block in 0..32 {
            write_block(&mut world, v, 4 * block + first, FIRST);
        }
        if name == "a" {
            snapshot(&mut world, "v", name);
        }
    }
    world.command(Control::DeleteSnapshot { name: snapshot_name("v", "a") });
    for _ in 0..steps {
        world.tick(0);
        some_steps(&mut world, 1);
    }
    world.take_answers();
    let token = world.command(Control::DeleteVolume { name: "v".to_owned() });
    rest(&mut world);
    world.take_answers().into_iter().find(|(found, _)| *found == token).expect("an answer").1
}

/// It was refused while records were moved into the volume, for its "0 clients".
#[test]
fn a_volume_is_deleted_while_a_layer_is_merged_into_it() {
    for steps in 0..60 {
        let answer = delete_after(steps);
        assert!(answer.is_ok(), "after {steps} steps: {answer:?}");
    }
}

/// A client is told of the volume's size at its door, a rollback makes the volume smaller, and the client enters: what it asks for beyond
/// the end was looked up past the map, and ended the daemon.
#[test]
fn what_a_rollback_has_cut_off_is_refused() {
    let mut world = World::new(41);
    create(&mut world, "v", u64::from(CLUSTER));
    let door = world.find_door("v:1").expect("a volume has a door from the start");
    snapshot(&mut world, "v", "small");
    directed::command(
        &mut world,
        Control::ResizeVolume { name: "v".to_owned(), size: 4 * u64::from(CLUSTER) },
    );
    directed::command(&mut world, Control::Rollback { name: snapshot_name("v", "small") });
    world.connect(door);
    let ask =
        |world: &mut World, command| request(world, door, u64::from(3 * CLUSTER), u64::from(BLOCK), command);
    let buf = world.buffers.take(BLOCK as usize);
    assert_eq!(ask(&mut world, Command::Read { buf, holes: false }).map(drop), Err(Errno::Inval));
    let buf = world.buffers.take(BLOCK as usize);
    assert_eq!(ask(&mut world, Command::Write { buf, fua: false }).map(drop), Err(Errno::Inval));
    write_block(&mut world, door, 0, FIRST);
    assert_eq!(read_block(&mut world, "v", 0), FIRST);
}
