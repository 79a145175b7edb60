//! The source, and a world that says anything in any order.

use proptest::collection::vec;
use proptest::prelude::*;
use vmctl::cutover::event::{
    Answer, BlockdKind, SourceAction, SourceEntry, SourceEvent, SourceQemu, SourceQemuOp,
};
use vmctl::cutover::ids::Text;
use vmctl::cutover::message::{Message, Outcome};
use vmctl::cutover::record::{Setup, Stage};
use vmctl::cutover::source::Source;

use crate::config;
use crate::words::{ID, answer, fact, id, kind, message, plan};

#[derive(Clone, Debug)]
enum Step {
    Event(SourceEvent),
    /// What was asked first is answered.
    Answer(Answer),
    /// As it should be, and what then comes in the good case.
    Good,
    Restart,
}

fn report() -> impl Strategy<Value = SourceQemu> {
    use SourceQemu::{Completed, Device, Gone, Panicked, Paused, PreSwitchover, Precopy, Running, Shutdown};
    let all = [Running, Precopy, PreSwitchover, Device, Completed, Paused, Shutdown, Panicked, Gone];
    proptest::sample::select(all.to_vec())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (id(), message()).prop_map(|(id, message)| Step::Event(SourceEvent::Message(id, message))),
        4 => (kind(), answer()).prop_map(|(kind, answer)| Step::Event(SourceEvent::Blockd(kind, answer))),
        20 => answer().prop_map(Step::Answer),
        40 => Just(Step::Good),
        15 => report().prop_map(|report| Step::Event(SourceEvent::Qemu(report))),
        8 => Just(Step::Event(SourceEvent::Begin)),
        1 => Just(Step::Event(SourceEvent::Abort(Text::new("wish")))),
        4 => Just(Step::Event(SourceEvent::LinkUp)),
        1 => Just(Step::Event(SourceEvent::LinkDown)),
        10 => Just(Step::Event(SourceEvent::Poke)),
        1 => Just(Step::Restart),
    ]
}

struct World {
    source: Source,
    asked: Vec<BlockdKind>,
    released: bool,
    aborted: bool,
    ends: usize,
}

impl World {
    fn take(&mut self, event: SourceEvent) {
        if let SourceEvent::Blockd(kind, answer) = &event
            && let Some(place) = self.asked.iter().position(|asked| asked == kind)
        {
            self.asked.remove(place);
            self.learn(*kind, answer);
        }
        let actions = self.source.on(event);
        self.judge(actions);
    }

    fn learn(&mut self, kind: BlockdKind, answer: &Answer) {
        match fact(kind, answer) {
            Some(Stage::Released) => self.released = true,
            Some(Stage::Aborted) => self.aborted = true,
            _ => {}
        }
    }

    fn judge(&mut self, actions: Vec<SourceAction>) {
        for action in actions {
            match action {
                SourceAction::Blockd(op) => {
                    assert!(!self.asked.contains(&op.kind()), "{:?} is under way", op.kind());
                    self.asked.push(op.kind());
                }
                SourceAction::Qemu(SourceQemuOp::Resume | SourceQemuOp::Yank) => assert!(self.aborted),
                SourceAction::Qemu(SourceQemuOp::Quit) => assert!(self.released),
                SourceAction::Send(
                    Message::Commit { .. } | Message::Outcome { outcome: Outcome::Released { .. } },
                ) => assert!(self.released),
                SourceAction::Send(
                    Message::Abort {}
                    | Message::Outcome { outcome: Outcome::Aborted {} | Outcome::Unknown {} },
                ) => assert!(self.aborted),
                SourceAction::Journal(SourceEntry::Ended(_)) => self.ends += 1,
                _ => {}
            }
        }
        assert!(self.ends <= 1, "it ends once");
    }

    /// What an honest world would say next.
    fn good(&mut self) {
        let Some(&kind) = self.asked.first() else {
            let event = match self.source.state_name() {
                "preparing" => SourceEvent::Message(ID, Message::Prepared {}),
                "prepared" => SourceEvent::Begin,
                "armed" => SourceEvent::Qemu(SourceQemu::PreSwitchover),
                "switching" => SourceEvent::Message(ID, Message::Loaded {}),
                "committing" => SourceEvent::Message(ID, Message::Running {}),
                "quitting" => SourceEvent::Qemu(SourceQemu::Gone),
                _ => SourceEvent::Poke,
            };
            return self.take(event);
        };
        let answer = match kind {
            BlockdKind::Ship => {
                self.take(SourceEvent::Qemu(SourceQemu::Completed));
                let snapshot = vmctl::cutover::record::FinalSnapshot {
                    volume: plan().volumes[0].clone(),
                    uid: vmctl::cutover::ids::SnapshotUid([0; 16]),
                    root: vmctl::cutover::ids::Root([0; 32]),
                };
                Answer::Shipped(vec![snapshot])
            }
            _ => Answer::Done,
        };
        self.take(SourceEvent::Blockd(kind, answer));
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_final_without_the_record(steps in vec(step(), 0..80)) {
        let (source, actions) = Source::start(Setup { id: ID, plan: plan() });
        let mut world = World { source, asked: Vec::new(), released: false, aborted: false, ends: 0 };
        world.judge(actions);
        for step in steps {
            match step {
                Step::Event(event) => world.take(event),
                Step::Answer(answer) => {
                    if let Some(&kind) = world.asked.first() {
                        world.take(SourceEvent::Blockd(kind, answer));
                    }
                }
                Step::Good => world.good(),
                Step::Restart if world.source.outcome().is_none() => {
                    let (source, actions) = Source::recover(world.source.setup().clone());
                    (world.source, world.asked) = (source, Vec::new());
                    world.judge(actions);
                }
                Step::Restart => {}
            }
        }
    }
}
