//! Replicas at the store: what is shown when, what a crash leaves, what is refused.

use blockd::catalog::format::Role;
use blockd::control::replication::{Incoming, Patch, Replication, VolumeIdentity};
use blockd::control::{Answer, Control, ControlError, ErrorKind};
use blockd::units::{HostId, Lineage, SnapshotUid};
use nbd_server::wire::Errno;

use crate::directed::{
    BLOCK, CLUSTER, command, create, delete_snapshot, export, read_block, rest, snapshot, snapshot_name,
    some_steps, write_block,
};
use crate::world::World;

const LINEAGE: Lineage = Lineage([7; 16]);
const PEER: HostId = HostId([8; 16]);
const SIZE: u64 = 4 * CLUSTER + BLOCK;

fn incoming(number: u8, base: Option<u8>) -> Incoming {
    Incoming {
        lineage: LINEAGE,
        peer: PEER,
        volume: "r".to_owned(),
        uid: SnapshotUid([number; 16]),
        point: blockd::catalog::format::Point { epoch: 1, sequence: u64::from(number) },
        name: format!("s{number}"),
        size: SIZE,
        created_ms: 1000 + u64::from(number),
        base: base.map(|base| SnapshotUid([base; 16])),
        token: [number; 16],
    }
}

fn ask(world: &mut World, asked: Replication) -> Result<Answer, ControlError> {
    let token = world.command(Control::Replication(asked));
    world.settle();
    let answers = world.take_answers();
    answers.into_iter().find(|(found, _)| *found == token).expect("an answer").1
}

fn apply(world: &mut World, number: u8, block: u64, value: u8) {
    let bytes = vec![value; BLOCK as usize];
    let patches = vec![Patch::Data { offset: block * BLOCK, bytes }];
    ask(world, Replication::Apply { lineage: LINEAGE, token: [number; 16], patches }).expect("it is applied");
}

fn stage(world: &mut World, number: u8) {
    ask(world, Replication::Stage { lineage: LINEAGE, token: [number; 16] }).expect("it is staged");
}

fn publish(world: &mut World, number: u8) {
    let staged = vec![(LINEAGE, [number; 16])];
    ask(world, Replication::Publish { staged }).expect("it is published");
}

/// A whole snapshot comes, of one block.
fn bring(world: &mut World, number: u8, base: Option<u8>, block: u64, value: u8) {
    ask(world, Replication::Receive(incoming(number, base))).expect("it may come");
    apply(world, number, block, value);
    stage(world, number);
    publish(world, number);
}

fn identity(world: &mut World, name: &str) -> VolumeIdentity {
    let Ok(Answer::Identities(mut all)) = ask(world, Replication::Identify { volume: Some(name.to_owned()) })
    else {
        panic!("no identity of {name}")
    };
    all.pop().expect("one")
}

fn kind(answer: Result<Answer, ControlError>) -> ErrorKind {
    answer.expect_err("it is refused").kind
}

#[test]
fn a_replica_shows_what_was_published_and_nothing_else() {
    let mut world = World::new(1);
    bring(&mut world, 1, None, 0, 0x11);
    assert_eq!(read_block(&mut world, "r@s1", 0), 0x11);
    ask(&mut world, Replication::Receive(incoming(2, Some(1)))).unwrap();
    apply(&mut world, 2, 1, 0x22);
    assert!(world.find_export("r").is_none(), "a replica's head is not served");
    stage(&mut world, 2);
    assert!(world.find_export("r@s2").is_none(), "staged, and not compared yet");
    let shown = |world: &World| world.store.replicas().map(|(at, info)| (info.name, at)).collect::<Vec<_>>();
    let first = export(&world, "r@s1");
    assert_eq!(shown(&world), [("r".to_owned(), first)]);
    let Ok(Answer::Snapshots(listed)) =
        Ok::<_, ()>(command(&mut world, Control::ListSnapshots { volume: None }))
    else {
        panic!()
    };
    assert_eq!(listed.len(), 1);
    // Nobody builds on it either: its number is no secret to who knows another of this store's.
    create(&mut world, "own", SIZE);
    snapshot(&mut world, "own", "s");
    let own = identity(&mut world, "own").snapshots[0].uid.0;
    let named = |number: u8| SnapshotUid([&own[..12], &[0, 0, 0, number]].concat().try_into().expect("16"));
    let uids = (0..20).map(named).collect();
    let Ok(Answer::Located(found)) = ask(&mut world, Replication::Locate { uids, peer: PEER }) else {
        panic!()
    };
    assert_eq!(found, []);
    publish(&mut world, 2);
    assert_eq!(shown(&world), [("r".to_owned(), export(&world, "r@s2"))]);
    let found = [0, 1, 2].map(|block| read_block(&mut world, "r@s2", block));
    assert_eq!((found, read_block(&mut world, "r@s1", 1)), ([0x11, 0x22, 0], 0));
    let identity = identity(&mut world, "r");
    assert_eq!((identity.role, identity.published), (Role::Replica, Some(snapshot_name("r", "s2"))));
    assert_eq!(identity.snapshots.iter().map(|s| s.uid.0[0]).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(identity.snapshots[1].created_ms, 1002, "it keeps the time when it was taken");
}

/// Somebody who learned of the export before it became a replica.
#[test]
fn the_head_of_a_replica_takes_no_requests() {
    let mut world = World::new(2);
    let volume = create(&mut world, "v", SIZE);
    write_block(&mut world, volume, 0, 1);
    command(&mut world, Control::Replication(Replication::Demote { volume: "v".to_owned(), peer: PEER }));
    world.connect(volume);
    let result = crate::directed::write(&mut world, volume, 0, BLOCK, 2);
    assert_eq!(result, Err(Errno::Shutdown));
}

/// After every number of steps the power goes: what is shown is one of the two, and what was answered holds.
#[test]
fn a_crash_at_any_instant_leaves_one_complete_snapshot() {
    for steps in 0..60 {
        let mut world = World::new(3 + steps as u64);
        bring(&mut world, 1, None, 0, 0x11);
        ask(&mut world, Replication::Receive(incoming(2, Some(1)))).unwrap();
        apply(&mut world, 2, 0, 0x22);
        let token = [2; 16];
        let asked = [
            Replication::Confirm { lineage: LINEAGE, token, cursor: 5 },
            Replication::Stage { lineage: LINEAGE, token },
        ];
        for command in asked {
            world.command(Control::Replication(command));
            some_steps(&mut world, steps % 20);
        }
        if steps >= 20 {
            world.settle();
            world.command(Control::Replication(Replication::Publish { staged: vec![(LINEAGE, token)] }));
            some_steps(&mut world, steps % 20);
        }
        let answered = world.take_answers();
        let failed = answered.iter().filter(|(_, answer)| answer.is_err()).count();
        assert_eq!(failed, 0, "{answered:?}");
        if steps % 2 == 0 {
            world.power_cut();
        } else {
            world.kill();
        }
        let published = world.find_export("r@s2").is_some();
        assert!(published || answered.len() < 3 || steps < 20, "an answered publication is gone: {steps}");
        assert_eq!(read_block(&mut world, "r@s1", 0), 0x11);
        if published {
            assert_eq!(read_block(&mut world, "r@s2", 0), 0x22);
        } else {
            resume(&mut world);
        }
    }
}

/// Goes on where the crash has left off.
fn resume(world: &mut World) {
    let Ok(Answer::Receiving(record)) = ask(world, Replication::Receive(incoming(2, Some(1)))) else {
        panic!("it goes on")
    };
    assert!(record.cursor == 0 || record.cursor == 5, "{}", record.cursor);
    if record.cursor == 0 && record.staged.is_none() {
        apply(world, 2, 0, 0x22);
    }
    stage(world, 2);
    publish(world, 2);
    assert_eq!((read_block(world, "r@s2", 0), read_block(world, "r@s1", 0)), (0x22, 0x11));
}

#[test]
fn what_is_older_or_of_somebody_else_is_refused() {
    let mut world = World::new(4);
    bring(&mut world, 5, None, 0, 1);
    let with = |change: &dyn Fn(&mut Incoming)| {
        let mut asked = incoming(6, Some(5));
        change(&mut asked);
        Replication::Receive(asked)
    };
    let cases: [(Replication, ErrorKind); 6] = [
        (with(&|i| i.point.sequence = 5), ErrorKind::Stale),
        (with(&|i| i.point.epoch = 0), ErrorKind::Stale),
        (with(&|i| i.peer = HostId([9; 16])), ErrorKind::Refused),
        (with(&|i| i.base = Some(SnapshotUid([99; 16]))), ErrorKind::NotFound),
        (with(&|i| i.size = SIZE - 512), ErrorKind::BadValue),
        (with(&|i| i.name = "../x".to_owned()), ErrorKind::BadName),
    ];
    for (asked, expected) in cases {
        assert_eq!(kind(ask(&mut world, asked.clone())), expected, "{asked:?}");
    }
    let volume = create(&mut world, "own", SIZE);
    let lineage = identity(&mut world, "own").lineage;
    assert_eq!(kind(ask(&mut world, with(&|i| i.lineage = lineage))), ErrorKind::Refused);
    assert_eq!(kind(ask(&mut world, with(&|i| i.lineage = Lineage([1; 16])))), ErrorKind::Exists);
    write_block(&mut world, volume, 0, 1);
    assert_eq!(read_block(&mut world, "r@s5", 0), 1);
}

/// A host that names its snapshot as another host's would have been taken for it: the other's next difference had no base.
#[test]
fn nobody_takes_the_name_of_another_hosts_snapshot() {
    let mut world = World::new(13);
    bring(&mut world, 1, None, 0, 0x11);
    let (other, lineage) = (HostId([9; 16]), Lineage([9; 16]));
    let liar = Incoming { peer: other, lineage, volume: "liar".to_owned(), ..incoming(1, None) };
    ask(&mut world, Replication::Receive(liar)).unwrap();
    ask(&mut world, Replication::Stage { lineage, token: [1; 16] }).unwrap();
    ask(&mut world, Replication::Publish { staged: vec![(lineage, [1; 16])] }).unwrap();
    let uids = vec![SnapshotUid([1; 16])];
    let located = |world: &mut World, peer| match ask(world, Replication::Locate { uids: uids.clone(), peer })
    {
        Ok(Answer::Located(found)) => found.into_iter().map(|(_, name)| name.to_string()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(located(&mut world, PEER), ["r@s1"]);
    assert_eq!(located(&mut world, other), ["liar@s1"]);
    assert_eq!(located(&mut world, HostId([3; 16])), Vec::<String>::new());
    delete_snapshot(&mut world, "liar", "s1");
    assert_eq!(located(&mut world, PEER), ["r@s1"]);
    bring(&mut world, 2, Some(1), 1, 0x22);
    assert_eq!([0, 1].map(|block| read_block(&mut world, "r@s2", block)), [0x11, 0x22]);
}

#[test]
fn a_session_that_was_taken_over_changes_nothing() {
    let mut world = World::new(5);
    ask(&mut world, Replication::Receive(incoming(1, None))).unwrap();
    let token = [1; 16];
    let later = Incoming { token: [42; 16], ..incoming(1, None) };
    ask(&mut world, Replication::Receive(later)).unwrap();
    let patches = vec![Patch::Zero { offset: 0, length: 4096 }];
    let stale = [
        Replication::Apply { lineage: LINEAGE, token, patches },
        Replication::Confirm { lineage: LINEAGE, token, cursor: 1 },
        Replication::Stage { lineage: LINEAGE, token },
        Replication::PinStaged { lineage: LINEAGE, token },
        Replication::Publish { staged: vec![(LINEAGE, token)] },
        Replication::Abandon { lineage: LINEAGE, token },
    ];
    for asked in stale {
        assert_eq!(kind(ask(&mut world, asked.clone())), ErrorKind::Stale, "{asked:?}");
    }
}

#[test]
fn patches_outside_of_the_volume_are_refused() {
    let mut world = World::new(6);
    ask(&mut world, Replication::Receive(incoming(1, None))).unwrap();
    let zero = |offset, length| vec![Patch::Zero { offset, length }];
    let data = |offset, length| vec![Patch::Data { offset, bytes: vec![1; length] }];
    let cases = [
        zero(SIZE, 1),
        zero(0, SIZE + 1),
        zero(0, 0),
        zero(u64::MAX, 2),
        data(SIZE - 1, 2),
        data(0, 0),
        vec![],
    ];
    for patches in cases {
        let asked = Replication::Apply { lineage: LINEAGE, token: [1; 16], patches: patches.clone() };
        assert_eq!(kind(ask(&mut world, asked)), ErrorKind::BadValue, "{patches:?}");
    }
}

/// What was sent for one snapshot must not show in another that is sent instead.
#[test]
fn another_snapshot_begins_with_its_base() {
    let mut world = World::new(7);
    bring(&mut world, 1, None, 0, 0x11);
    for given_up in [true, false] {
        ask(&mut world, Replication::Receive(incoming(2, Some(1)))).unwrap();
        apply(&mut world, 2, 1, 0x22);
        stage(&mut world, 2);
        if given_up {
            ask(&mut world, Replication::Abandon { lineage: LINEAGE, token: [2; 16] }).unwrap();
        }
    }
    ask(&mut world, Replication::Receive(incoming(3, Some(1)))).unwrap();
    apply(&mut world, 3, 2, 0x33);
    stage(&mut world, 3);
    publish(&mut world, 3);
    assert_eq!([0, 1, 2].map(|block| read_block(&mut world, "r@s3", block)), [0x11, 0, 0x33]);
    rest(&mut world);
    assert_eq!(crate::directed::status(&mut world).layers_to_reclaim, 0);
}

#[test]
fn a_base_is_kept_while_something_builds_on_it() {
    let mut world = World::new(8);
    bring(&mut world, 1, None, 0, 0x11);
    bring(&mut world, 2, Some(1), 1, 0x22);
    let delete = |snapshot| Control::DeleteSnapshot { name: snapshot_name("r", snapshot) };
    let refused = |world: &mut World, command| {
        let token = world.command(command);
        world.settle();
        let answers = world.take_answers();
        kind(answers.into_iter().find(|(found, _)| *found == token).expect("an answer").1)
    };
    assert_eq!(refused(&mut world, delete("s2")), ErrorKind::Refused, "the newest");
    ask(&mut world, Replication::Receive(incoming(3, Some(1)))).unwrap();
    assert_eq!(refused(&mut world, delete("s1")), ErrorKind::Busy, "a base");
    apply(&mut world, 3, 2, 0x33);
    stage(&mut world, 3);
    publish(&mut world, 3);
    delete_snapshot(&mut world, "r", "s1");
    assert_eq!([0, 1, 2].map(|block| read_block(&mut world, "r@s3", block)), [0x11, 0, 0x33]);
    for command in [
        Control::ResizeVolume { name: "r".into(), size: 2 * SIZE },
        Control::Rollback { name: snapshot_name("r", "s3") },
        Control::CreateSnapshots { names: vec![snapshot_name("r", "mine")] },
    ] {
        assert_eq!(refused(&mut world, command.clone()), ErrorKind::Refused, "{command:?}");
    }
}

/// A replica of a clone builds on the replica of what it was cloned from.
#[test]
fn a_base_may_be_another_volumes() {
    let mut world = World::new(9);
    bring(&mut world, 1, None, 0, 0x11);
    let clone = |asked: Incoming| Incoming { lineage: Lineage([3; 16]), volume: "c".to_owned(), ..asked };
    ask(&mut world, Replication::Receive(clone(incoming(2, Some(1))))).unwrap();
    let (lineage, token) = (Lineage([3; 16]), [2; 16]);
    let patches = vec![Patch::Data { offset: BLOCK, bytes: vec![0x22; 512] }];
    ask(&mut world, Replication::Apply { lineage, token, patches }).unwrap();
    ask(&mut world, Replication::Stage { lineage, token }).unwrap();
    ask(&mut world, Replication::Publish { staged: vec![(lineage, token)] }).unwrap();
    assert_eq!([0, 1, 2].map(|block| read_block(&mut world, "c@s2", block)), [0x11, 0x22, 0]);
}

#[test]
fn a_promoted_replica_is_written_to_and_takes_no_more() {
    let mut world = World::new(10);
    bring(&mut world, 1, None, 0, 0x11);
    ask(&mut world, Replication::Receive(incoming(2, Some(1)))).unwrap();
    apply(&mut world, 2, 0, 0x22);
    command(&mut world, Control::Replication(Replication::Promote { volume: "r".to_owned() }));
    let volume = export(&world, "r");
    assert_eq!(read_block(&mut world, "r", 0), 0x11, "what was on its way is gone");
    write_block(&mut world, volume, 1, 0x99);
    assert_eq!(kind(ask(&mut world, Replication::Receive(incoming(2, Some(1))))), ErrorKind::Refused);
    assert_eq!(identity(&mut world, "r").epoch, 2);
    world.power_cut();
    assert_eq!(identity(&mut world, "r").role, Role::Primary);
    assert_eq!(read_block(&mut world, "r", 0), 0x11);
}

/// An old primary follows the new one from the snapshot that both have; what it wrote alone is kept.
#[test]
fn what_an_old_primary_wrote_alone_is_kept_aside() {
    let mut world = World::new(11);
    let volume = create(&mut world, "v", SIZE);
    write_block(&mut world, volume, 0, 0x11);
    snapshot(&mut world, "v", "common");
    write_block(&mut world, volume, 1, 0x22);
    snapshot(&mut world, "v", "mine");
    write_block(&mut world, volume, 2, 0x33);
    let before = identity(&mut world, "v");
    let base = before.snapshots[0].uid;
    command(&mut world, Control::Replication(Replication::Demote { volume: "v".to_owned(), peer: PEER }));
    world.kill();
    assert!(world.find_export("v").is_none());
    let mut asked = Incoming { lineage: before.lineage, base: Some(base), ..incoming(200, None) };
    assert_eq!(
        kind(ask(&mut world, Replication::Receive(asked.clone()))),
        ErrorKind::Stale,
        "of the same epoch"
    );
    asked.point.epoch = 2;
    ask(&mut world, Replication::Receive(asked)).unwrap();
    let (lineage, token) = (before.lineage, [200; 16]);
    let patches = vec![Patch::Data { offset: 3 * BLOCK, bytes: vec![0x44; BLOCK as usize] }];
    ask(&mut world, Replication::Apply { lineage, token, patches }).unwrap();
    ask(&mut world, Replication::Stage { lineage, token }).unwrap();
    ask(&mut world, Replication::Publish { staged: vec![(lineage, token)] }).unwrap();
    let blocks = |world: &mut World, name: &str| [0, 1, 2, 3].map(|block| read_block(world, name, block));
    assert_eq!(blocks(&mut world, "v@s200"), [0x11, 0, 0, 0x44]);
    assert_eq!(blocks(&mut world, "v@common"), [0x11, 0, 0, 0]);
    let aside = "v-diverged-1";
    assert_eq!(blocks(&mut world, aside), [0x11, 0x22, 0x33, 0]);
    assert_eq!(blocks(&mut world, "v-diverged-1@mine"), [0x11, 0x22, 0, 0]);
    world.power_cut();
    assert_eq!(blocks(&mut world, aside), [0x11, 0x22, 0x33, 0]);
    assert_eq!(identity(&mut world, aside).role, Role::Primary);
}

#[test]
fn several_volumes_are_published_at_one_instant() {
    for steps in 0..25 {
        let mut world = World::new(100 + steps as u64);
        let lineages = [Lineage([1; 16]), Lineage([2; 16])];
        for (lineage, volume) in lineages.into_iter().zip(["a", "b"]) {
            let asked = Incoming { lineage, volume: volume.to_owned(), ..incoming(lineage.0[0], None) };
            ask(&mut world, Replication::Receive(asked)).unwrap();
            ask(&mut world, Replication::Stage { lineage, token: lineage.0 }).unwrap();
        }
        let staged = lineages.map(|lineage| (lineage, lineage.0)).to_vec();
        world.command(Control::Replication(Replication::Publish { staged }));
        some_steps(&mut world, steps);
        world.power_cut();
        let shown = ["a@s1", "b@s2"].map(|name| world.find_export(name).is_some());
        assert_eq!(shown[0], shown[1], "after {steps} operations");
    }
}

#[test]
fn a_replica_can_be_deleted() {
    let mut world = World::new(12);
    bring(&mut world, 1, None, 0, 0x11);
    ask(&mut world, Replication::Receive(incoming(2, Some(1)))).unwrap();
    apply(&mut world, 2, 0, 0x22);
    stage(&mut world, 2);
    ask(&mut world, Replication::Abandon { lineage: LINEAGE, token: [2; 16] }).unwrap();
    delete_snapshot(&mut world, "r", "s1");
    command(&mut world, Control::DeleteVolume { name: "r".into() });
    rest(&mut world);
    assert_eq!(crate::directed::status(&mut world).used_bytes, fresh_bytes());
    world.power_cut();
    bring(&mut world, 1, None, 0, 0x11);
}

fn fresh_bytes() -> u64 {
    crate::directed::status(&mut World::new(12)).used_bytes
}
