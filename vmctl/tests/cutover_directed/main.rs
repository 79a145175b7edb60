//! The cutover's good way action by action, and what model and simulation do not look at: marks, notes, answers without a
//! machine.

use cutover_sim::twins::{setup, snapshot};
use vmctl::cutover::destination::Destination;
use vmctl::cutover::event::{
    Answer, BlockdKind, BlockdOp, DestinationAction, DestinationEntry, DestinationEvent, DestinationOutcome,
    DestinationQemu, DestinationQemuOp, Mark, Note, Reason, SourceAction, SourceEntry, SourceEvent,
    SourceOutcome, SourceQemu, SourceQemuOp,
};
use vmctl::cutover::ids::{Epoch, MoveId, Text};
use vmctl::cutover::known::{destination_answer, source_answer};
use vmctl::cutover::message::{Message, Outcome};
use vmctl::cutover::record::{Commit, Record, Stage};
use vmctl::cutover::source::Source;

const ID: MoveId = MoveId([1; 16]);

fn commit() -> Commit {
    Commit { epoch: Epoch(1), snapshots: snapshot(7) }
}

fn says(message: Message) -> SourceEvent {
    SourceEvent::Message(ID, message)
}

fn done(kind: BlockdKind) -> SourceEvent {
    SourceEvent::Blockd(kind, Answer::Done)
}

/// The events of the good way, and what they cause.
fn good_way() -> Vec<(SourceEvent, Vec<SourceAction>)> {
    use SourceAction::{Blockd, Finished, Journal, Qemu, Ready, Send};
    let mark = SourceAction::Mark;
    let shipped = SourceEvent::Blockd(BlockdKind::Ship, Answer::Shipped(snapshot(7)));
    let moved = SourceOutcome::Moved(commit());
    vec![
        (says(Message::Prepared {}), vec![Ready]),
        (SourceEvent::Begin, vec![]),
        (
            SourceEvent::Qemu(SourceQemu::PreSwitchover),
            vec![mark(Mark::GuestStopped), Blockd(BlockdOp::Freeze)],
        ),
        (
            done(BlockdKind::Freeze),
            vec![mark(Mark::Frozen), Qemu(SourceQemuOp::Continue), Blockd(BlockdOp::Ship)],
        ),
        (says(Message::Loaded {}), vec![mark(Mark::Loaded)]),
        (shipped, vec![mark(Mark::Published)]),
        (
            SourceEvent::Qemu(SourceQemu::Completed),
            vec![mark(Mark::Completed), Blockd(BlockdOp::Release(snapshot(7)))],
        ),
        (done(BlockdKind::Release), vec![mark(Mark::Released), Send(Message::Commit { commit: commit() })]),
        (says(Message::Running {}), vec![mark(Mark::PeerRunning), Qemu(SourceQemuOp::Quit)]),
        (
            SourceEvent::Qemu(SourceQemu::Gone),
            vec![Journal(SourceEntry::Ended(moved.clone())), Finished(moved)],
        ),
    ]
}

#[test]
fn the_source_on_the_good_way() {
    let (mut source, first) = Source::start(setup(1, Epoch(1)));
    let started = SourceAction::Journal(SourceEntry::Started(setup(1, Epoch(1))));
    let prepare = SourceAction::Send(Message::Prepare { plan: setup(1, Epoch(1)).plan });
    assert_eq!(first, [started, prepare]);
    for (event, actions) in good_way() {
        assert_eq!(source.on(event.clone()), actions, "{event:?}");
    }
}

#[test]
fn the_destination_on_the_good_way() {
    use DestinationAction::{Blockd, Finished, Journal, Qemu, Send};
    let (mut destination, first) = Destination::start(setup(1, Epoch(1)));
    let preparing = Journal(DestinationEntry::Preparing(setup(1, Epoch(1))));
    assert_eq!(first, [preparing, Blockd(BlockdOp::Expect)]);
    let mark = DestinationAction::Mark;
    let own = BlockdOp::Own { epoch: Epoch(2), snapshots: snapshot(7) };
    let here = DestinationOutcome::Here { epoch: Epoch(2), cold: false, ended: false };
    let way = [
        (DestinationEvent::Blockd(BlockdKind::Expect, Answer::Done), vec![Qemu(DestinationQemuOp::Start)]),
        (DestinationEvent::Qemu(DestinationQemu::Incoming), vec![Send(Message::Prepared {})]),
        (DestinationEvent::Qemu(DestinationQemu::Loaded), vec![mark(Mark::Loaded), Send(Message::Loaded {})]),
        (
            DestinationEvent::Message(ID, Message::Commit { commit: commit() }),
            vec![mark(Mark::Committed), Blockd(own)],
        ),
        (
            DestinationEvent::Blockd(BlockdKind::Own, Answer::Done),
            vec![mark(Mark::Owned), Qemu(DestinationQemuOp::Cont)],
        ),
        (
            DestinationEvent::Qemu(DestinationQemu::Running),
            vec![
                mark(Mark::Resumed),
                Journal(DestinationEntry::Ended(here)),
                Send(Message::Running {}),
                Finished(here),
            ],
        ),
    ];
    for (event, actions) in way {
        assert_eq!(destination.on(event.clone()), actions, "{event:?}");
    }
}

/// In every state before the release, a guest that ends, or a wish, leads to an abort and nowhere else.
#[test]
fn a_dead_guest_is_not_moved() {
    let ends = [SourceQemu::Shutdown, SourceQemu::Panicked, SourceQemu::Gone];
    for (steps, end) in (0..=6).flat_map(|steps| ends.map(|end| (steps, end))) {
        let (mut source, _) = Source::start(setup(1, Epoch(1)));
        for (event, _) in good_way().into_iter().take(steps) {
            source.on(event);
        }
        let name = source.state_name();
        let actions = source.on(SourceEvent::Qemu(end));
        assert_eq!(actions, [SourceAction::Blockd(BlockdOp::Abort)], "{end:?} while {name}");
        source.on(done(BlockdKind::Abort));
        let outcome = SourceOutcome::Aborted { reason: Reason::Qemu(end), guest: end };
        assert!(source.on(SourceEvent::Qemu(end)).contains(&SourceAction::Finished(outcome)));
    }
}

/// What S has sent whole is not lost with it.
#[test]
fn a_source_qemu_that_is_gone_after_it_has_completed_is_not_missed() {
    let (mut source, _) = Source::start(setup(1, Epoch(1)));
    for (event, _) in good_way().into_iter().take(7) {
        source.on(event);
    }
    assert_eq!(source.on(SourceEvent::Qemu(SourceQemu::Gone)), []);
    source.on(done(BlockdKind::Release));
    assert!(source.is_committed());
    assert_eq!(source.on(SourceEvent::Abort(Text::new("too late"))), [SourceAction::Note(Note::Committed)]);
}

/// The crash hid our own commit: the record says so.
#[test]
fn an_abort_that_comes_after_the_release_goes_forward() {
    let (mut source, _) = Source::recover(setup(1, Epoch(1)));
    let frozen = Record { stage: Stage::Frozen, epoch: Epoch(1), snapshots: Vec::new() };
    source.on(SourceEvent::Blockd(BlockdKind::Query, Answer::Record(frozen)));
    assert_eq!(source.state_name(), "aborting");
    let released = Record { stage: Stage::Released, epoch: Epoch(1), snapshots: snapshot(7) };
    let refused = Answer::Refused(released, Text::new("released"));
    let actions = source.on(SourceEvent::Blockd(BlockdKind::Abort, refused));
    assert!(actions.contains(&SourceAction::Send(Message::Commit { commit: commit() })));
}

/// Where T died before it was told to run, the guest starts from the volumes; there, for they are there.
#[test]
fn a_qemu_that_died_after_the_release_is_started_from_the_volumes() {
    let (mut destination, _) = Destination::recover(setup(1, Epoch(1)));
    destination.on(DestinationEvent::Message(ID, Message::Commit { commit: commit() }));
    destination.on(DestinationEvent::Qemu(DestinationQemu::Gone));
    let actions = destination.on(DestinationEvent::Blockd(BlockdKind::Own, Answer::Done));
    assert!(actions.contains(&DestinationAction::Qemu(DestinationQemuOp::StartCold)));
    let here = DestinationOutcome::Here { epoch: Epoch(2), cold: true, ended: false };
    let actions = destination.on(DestinationEvent::Qemu(DestinationQemu::Running));
    assert!(actions.contains(&DestinationAction::Finished(here)));
}

#[test]
fn without_a_machine_the_journal_answers() {
    let query = Message::Query {};
    let outcome =
        |ended: Option<&SourceOutcome>, record: Option<&Record>| match source_answer(&query, ended, record) {
            Some(Message::Outcome { outcome }) => outcome,
            other => panic!("{other:?}"),
        };
    let record = |stage| Record { stage, epoch: Epoch(1), snapshots: snapshot(7) };
    let aborted = SourceOutcome::Aborted { reason: Reason::Link, guest: SourceQemu::Running };
    assert_eq!(outcome(Some(&aborted), None), Outcome::Aborted {});
    let moved = SourceOutcome::Moved(commit());
    assert_eq!(outcome(Some(&moved), None), Outcome::Released { commit: commit() });
    assert_eq!(outcome(None, None), Outcome::Moving {});
    assert_eq!(outcome(None, Some(&record(Stage::Released))), Outcome::Released { commit: commit() });
    assert_eq!(outcome(None, Some(&record(Stage::Frozen))), Outcome::Moving {});
    assert_eq!(outcome(None, Some(&record(Stage::Absent))), Outcome::Unknown {});
    assert_eq!(source_answer(&Message::Loaded {}, Some(&moved), None), None);
    let here = DestinationOutcome::Here { epoch: Epoch(2), cold: false, ended: false };
    let said = Message::Commit { commit: commit() };
    assert_eq!(destination_answer(&said, Some(&here)), Some(Message::Running {}));
    assert_eq!(destination_answer(&said, None), None);
    assert_eq!(destination_answer(&Message::Abort {}, None), Some(Message::Discarded {}));
}

/// QEMU waits in `device` without a limit for a peer that it cannot hear: the guest must not wait with it until the link is back.
#[test]
fn a_qemu_that_waits_for_a_lost_peer_is_torn_loose() {
    let (mut source, _) = Source::start(setup(1, Epoch(1)));
    for (event, _) in good_way().into_iter().take(4) {
        source.on(event);
    }
    assert_eq!(source.on(SourceEvent::LinkDown), [SourceAction::Blockd(BlockdOp::Abort)]);
    let actions = source.on(done(BlockdKind::Abort));
    assert!(actions.contains(&SourceAction::Qemu(SourceQemuOp::Query)));
    let actions = source.on(SourceEvent::Qemu(SourceQemu::Device));
    assert_eq!(actions, [SourceAction::Qemu(SourceQemuOp::Yank)]);
}
