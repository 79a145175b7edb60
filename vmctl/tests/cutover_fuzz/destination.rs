//! The destination, and a world that says anything in any order.

use proptest::collection::vec;
use proptest::prelude::*;
use vmctl::cutover::destination::Destination;
use vmctl::cutover::event::{
    Answer, BlockdKind, DestinationAction, DestinationEntry, DestinationEvent, DestinationQemu,
    DestinationQemuOp,
};
use vmctl::cutover::message::{Message, Outcome};
use vmctl::cutover::record::{Setup, Stage};

use crate::config;
use crate::words::{ID, answer, fact, id, kind, message, plan};

#[derive(Clone, Debug)]
enum Step {
    Event(DestinationEvent),
    /// What was asked first is answered.
    Answer(Answer),
    Restart,
}

fn report() -> impl Strategy<Value = DestinationQemu> {
    use DestinationQemu::{Gone, Incoming, Loaded, Panicked, Paused, Running, Shutdown};
    proptest::sample::select(vec![Incoming, Loaded, Running, Paused, Shutdown, Panicked, Gone])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        25 => (id(), message()).prop_map(|(id, message)| Step::Event(DestinationEvent::Message(id, message))),
        4 => (kind(), answer()).prop_map(|(kind, answer)| Step::Event(DestinationEvent::Blockd(kind, answer))),
        20 => answer().prop_map(Step::Answer),
        20 => Just(Step::Answer(Answer::Done)),
        25 => report().prop_map(|report| Step::Event(DestinationEvent::Qemu(report))),
        4 => Just(Step::Event(DestinationEvent::LinkUp)),
        4 => Just(Step::Event(DestinationEvent::LinkDown)),
        10 => Just(Step::Event(DestinationEvent::Poke)),
        2 => Just(Step::Restart),
    ]
}

struct World {
    destination: Destination,
    asked: Vec<BlockdKind>,
    /// Somebody else's word was heard: released, undone.
    released: bool,
    undone: bool,
    /// A record has said so.
    owned: bool,
    /// `Prepared`, `Loaded`, `Failed` were said: nothing is given up alone any more.
    said: bool,
    ends: usize,
}

impl World {
    fn take(&mut self, event: DestinationEvent) {
        match &event {
            DestinationEvent::Message(ID, message) => self.hear(message),
            DestinationEvent::Blockd(kind, answer) => {
                if let Some(place) = self.asked.iter().position(|asked| asked == kind) {
                    self.asked.remove(place);
                    self.owned |= fact(*kind, answer) == Some(Stage::Owned);
                    self.undone |= fact(*kind, answer) == Some(Stage::Aborted);
                }
            }
            _ => {}
        }
        let actions = self.destination.on(event);
        self.judge(actions);
    }

    fn hear(&mut self, message: &Message) {
        match message {
            Message::Commit { .. } | Message::Outcome { outcome: Outcome::Released { .. } } => {
                self.released = true;
            }
            Message::Abort {} | Message::Outcome { outcome: Outcome::Aborted {} | Outcome::Unknown {} } => {
                self.undone = true;
            }
            _ => {}
        }
    }

    fn judge(&mut self, actions: Vec<DestinationAction>) {
        for action in actions {
            match action {
                DestinationAction::Blockd(op) => {
                    let kind = op.kind();
                    assert!(!self.asked.contains(&kind), "{kind:?} is under way");
                    assert!(kind != BlockdKind::Own || self.released, "owned without the source's word");
                    let alone = !self.said;
                    assert!(kind != BlockdKind::Abort || self.undone || alone, "discarded without its word");
                    self.asked.push(kind);
                }
                DestinationAction::Qemu(DestinationQemuOp::Cont | DestinationQemuOp::StartCold) => {
                    assert!(self.owned, "the guest runs without the volumes");
                }
                DestinationAction::Send(Message::Running {}) => assert!(self.owned),
                DestinationAction::Send(
                    Message::Prepared {} | Message::Loaded {} | Message::Failed { .. },
                ) => self.said = true,
                DestinationAction::Journal(DestinationEntry::Ended(_)) => self.ends += 1,
                _ => {}
            }
        }
        assert!(self.ends <= 1, "it ends once");
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_final_without_a_word(steps in vec(step(), 0..80)) {
        let (destination, actions) = Destination::start(Setup { id: ID, plan: plan() });
        let mut world = World {
            destination,
            asked: Vec::new(),
            released: false,
            undone: false,
            owned: false,
            said: false,
            ends: 0,
        };
        world.judge(actions);
        for step in steps {
            match step {
                Step::Event(event) => world.take(event),
                Step::Answer(answer) => {
                    if let Some(&kind) = world.asked.first() {
                        world.take(DestinationEvent::Blockd(kind, answer));
                    }
                }
                Step::Restart if world.destination.outcome().is_none() => {
                    let (destination, actions) = Destination::recover(world.destination.setup().clone());
                    (world.destination, world.asked, world.said) = (destination, Vec::new(), true);
                    world.judge(actions);
                }
                Step::Restart => {}
            }
        }
    }
}
