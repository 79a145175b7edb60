//! Values that are legal as such, and often fit each other.

use proptest::collection::vec;
use proptest::prelude::*;
use vmctl::cutover::event::{Answer, BlockdKind};
use vmctl::cutover::ids::{Digest, Epoch, MoveId, Name, Root, SnapshotUid, TEXT_BYTES_MAX, Text};
use vmctl::cutover::message::{Message, Outcome};
use vmctl::cutover::record::{Commit, FinalSnapshot, Plan, Record, Stage};

pub(crate) const ID: MoveId = MoveId([1; 16]);

pub(crate) fn plan() -> Plan {
    Plan { vm: name(), digest: Digest([0; 32]), volumes: vec![name()], epoch: Epoch(1) }
}

fn name() -> Name {
    Name::new("v").expect("a name")
}

pub(crate) fn id() -> impl Strategy<Value = MoveId> {
    prop_oneof![9 => Just(ID), 1 => any::<[u8; 16]>().prop_map(MoveId)]
}

fn epoch() -> impl Strategy<Value = Epoch> {
    prop_oneof![8 => Just(Epoch(1)), 1 => Just(Epoch(u64::MAX)), 1 => any::<u64>().prop_map(Epoch)]
}

fn any_name() -> impl Strategy<Value = Name> {
    prop_oneof![8 => Just(name()), 1 => "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,254}".prop_map(|text| Name::new(&text).expect("a name"))]
}

pub(crate) fn snapshots() -> impl Strategy<Value = Vec<FinalSnapshot>> {
    let one = (any_name(), 0..3_u8, 0..3_u8).prop_map(|(volume, uid, root)| FinalSnapshot {
        volume,
        uid: SnapshotUid([uid; 16]),
        root: Root([root; 32]),
    });
    vec(one, 1..3).prop_map(|mut all| {
        all.sort_by(|a, b| a.volume.cmp(&b.volume));
        all.dedup_by(|a, b| a.volume == b.volume);
        all
    })
}

fn commit() -> impl Strategy<Value = Commit> {
    (epoch(), snapshots()).prop_map(|(epoch, snapshots)| Commit { epoch, snapshots })
}

fn text() -> impl Strategy<Value = Text> {
    prop_oneof![".{0,16}", Just("ä".repeat(TEXT_BYTES_MAX))].prop_map(|text| Text::new(&text))
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let volumes = vec(any_name(), 1..4).prop_map(|mut all| {
        all.sort();
        all.dedup();
        all
    });
    (any_name(), any::<[u8; 32]>(), volumes, epoch()).prop_map(|(vm, digest, volumes, epoch)| Plan {
        vm,
        digest: Digest(digest),
        volumes,
        epoch,
    })
}

pub(crate) fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        any_plan().prop_map(|plan| Message::Prepare { plan }),
        commit().prop_map(|commit| Message::Commit { commit }),
        commit().prop_map(|commit| Message::Outcome { outcome: Outcome::Released { commit } }),
        Just(Message::Outcome { outcome: Outcome::Moving {} }),
        Just(Message::Outcome { outcome: Outcome::Aborted {} }),
        Just(Message::Outcome { outcome: Outcome::Unknown {} }),
        Just(Message::Abort {}),
        Just(Message::Prepared {}),
        Just(Message::Loaded {}),
        Just(Message::Running {}),
        Just(Message::Query {}),
        Just(Message::Discarded {}),
        text().prop_map(|reason| Message::Refused { reason }),
        text().prop_map(|reason| Message::Failed { reason }),
    ]
}

fn stage() -> impl Strategy<Value = Stage> {
    use Stage::{Aborted, Absent, Expected, Frozen, Owned, Released};
    proptest::sample::select(vec![Absent, Frozen, Released, Expected, Owned, Aborted])
}

fn record() -> impl Strategy<Value = Record> {
    let snapshots = prop_oneof![Just(Vec::new()), snapshots()];
    (stage(), epoch(), snapshots).prop_map(|(stage, epoch, snapshots)| Record { stage, epoch, snapshots })
}

pub(crate) fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        6 => Just(Answer::Done),
        2 => snapshots().prop_map(Answer::Shipped),
        2 => record().prop_map(Answer::Record),
        1 => (record(), text()).prop_map(|(record, text)| Answer::Refused(record, text)),
        1 => Just(Answer::Unavailable),
    ]
}

pub(crate) fn kind() -> impl Strategy<Value = BlockdKind> {
    use BlockdKind::{Abort, Expect, Freeze, Own, Query, Release, Ship};
    proptest::sample::select(vec![Query, Freeze, Ship, Release, Abort, Expect, Own])
}

/// The final fact that an answer says, if it says one.
pub(crate) fn fact(kind: BlockdKind, answer: &Answer) -> Option<Stage> {
    match (kind, answer) {
        (BlockdKind::Release, Answer::Done) => Some(Stage::Released),
        (BlockdKind::Abort, Answer::Done) => Some(Stage::Aborted),
        (BlockdKind::Own, Answer::Done) => Some(Stage::Owned),
        (_, Answer::Record(record) | Answer::Refused(record, _)) => Some(record.stage),
        _ => None,
    }
}
