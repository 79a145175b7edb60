//! One state of everything: two agents that run the real machines, two blockds, two QEMUs, all that was ever said.

use std::sync::RwLock;

use cutover_sim::qemus::Qemus;
use cutover_sim::twins::{Blockd, setup, ship};
use vmctl::cutover::destination::Destination;
use vmctl::cutover::event::{
    Answer, BlockdKind, BlockdOp, DestinationAction, DestinationEntry, DestinationEvent, DestinationOutcome,
    DestinationQemu, DestinationQemuOp, Reason, SourceAction, SourceEntry, SourceEvent, SourceOutcome,
    SourceQemu, SourceQemuOp,
};
use vmctl::cutover::ids::{Epoch, MoveId};
use vmctl::cutover::known;
use vmctl::cutover::message::{Message, Outcome};
use vmctl::cutover::record::{Setup, Stage};
use vmctl::cutover::source::Source;

pub(crate) const ID: MoveId = MoveId([1; 16]);
/// A move that was there before, of which a message is still on its way.
pub(crate) const OLD: MoveId = MoveId([9; 16]);

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    A,
    B,
}

/// An operation that was asked of a blockd.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Call {
    pub(crate) op: BlockdOp,
    /// Done, and how it is answered; the answer has not come yet.
    pub(crate) answer: Option<Answer>,
}

/// What one agent runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Agent<M, O> {
    /// Nothing yet.
    Idle,
    /// The machine.
    Moves(M),
    /// The journal has the end.
    Ended(O),
}

/// A set of messages: those that were ever said to one side. Each may be delivered at any time, any number of times, or never:
/// a network that loses, repeats and reorders without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Said(u64);

const UNPOISONED: &str = "nobody panics with it";
static MESSAGES: RwLock<Vec<Message>> = RwLock::new(Vec::new());

impl Said {
    pub(crate) fn insert(&mut self, message: Message) {
        let known = MESSAGES.read().expect(UNPOISONED).iter().position(|other| *other == message);
        let place = known.unwrap_or_else(|| {
            let mut messages = MESSAGES.write().expect(UNPOISONED);
            messages.iter().position(|other| *other == message).unwrap_or_else(|| {
                messages.push(message);
                messages.len() - 1
            })
        });
        assert!(place < 64, "more kinds of messages than bits");
        self.0 |= 1 << place;
    }

    pub(crate) fn remove(&mut self, place: u32) {
        self.0 &= !(1 << place);
    }

    pub(crate) fn clear(&mut self) {
        self.0 = 0;
    }

    pub(crate) fn places(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |place| self.0 & (1 << place) != 0)
    }

    pub(crate) fn get(place: u32) -> Message {
        MESSAGES.read().expect(UNPOISONED)[place as usize].clone()
    }
}

/// What may still go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    pub(crate) crashes: u8,
    pub(crate) cuts: u8,
    /// Wishes to go back.
    pub(crate) wishes: u8,
    /// Ends of the guest by itself.
    pub(crate) deaths: u8,
    pub(crate) writes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) a: Agent<Source, SourceOutcome>,
    pub(crate) b: Agent<Destination, DestinationOutcome>,
    pub(crate) calls_a: Vec<Call>,
    pub(crate) calls_b: Vec<Call>,
    /// Asked by an agent that has crashed since: may be done at any time.
    pub(crate) orphans_a: Vec<BlockdOp>,
    pub(crate) orphans_b: Vec<BlockdOp>,
    pub(crate) blockd_a: Blockd,
    pub(crate) blockd_b: Blockd,
    pub(crate) qemus: Qemus,
    pub(crate) to_a: Said,
    pub(crate) to_b: Said,
    pub(crate) link: bool,
    /// The migration's connection: it does not come back with the link.
    pub(crate) stream: bool,
    pub(crate) budget: Budget,
    /// A QEMU has crashed, or its guest has died.
    pub(crate) guest_hurt: bool,
    /// A rule was broken by what an agent asked for.
    pub(crate) broken: Option<&'static str>,
}

impl World {
    pub(crate) fn new(budget: Budget) -> Self {
        let (source, actions) = Source::start(setup(1, Epoch(1)));
        let mut world = Self {
            a: Agent::Moves(source),
            b: Agent::Idle,
            calls_a: Vec::new(),
            calls_b: Vec::new(),
            orphans_a: Vec::new(),
            orphans_b: Vec::new(),
            blockd_a: Blockd::new(true),
            blockd_b: Blockd::new(false),
            qemus: Qemus::new(),
            to_a: Said::default(),
            to_b: Said::default(),
            link: true,
            stream: true,
            budget,
            guest_hurt: false,
            broken: None,
        };
        world.a_does(actions, None);
        world
    }

    pub(crate) fn stage_a(&self) -> Stage {
        self.blockd_a.stage(ID)
    }

    pub(crate) fn stage_b(&self) -> Stage {
        self.blockd_b.stage(ID)
    }

    fn rule(&mut self, holds: bool, text: &'static str) {
        if !holds && self.broken.is_none() {
            self.broken = Some(text);
        }
    }

    /// An event at A. `crash`: the agent crashes after so many of the actions. Returns how many actions there were.
    pub(crate) fn on_a(&mut self, event: SourceEvent, crash: Option<usize>) -> usize {
        match &mut self.a {
            Agent::Moves(source) => {
                let actions = source.on(event);
                let count = actions.len();
                self.a_does(actions, crash);
                count
            }
            Agent::Ended(outcome) => {
                if let SourceEvent::Message(ID, message) = event
                    && let Some(answer) = known::source_answer(&message, Some(outcome), None)
                {
                    self.to_b.insert(answer);
                }
                0
            }
            Agent::Idle => 0,
        }
    }

    fn a_does(&mut self, actions: Vec<SourceAction>, crash: Option<usize>) {
        let count = crash.unwrap_or(actions.len());
        for action in actions.into_iter().take(count) {
            match action {
                SourceAction::Send(message) => self.a_says(message),
                SourceAction::Blockd(op) => self.calls_a.push(Call { op, answer: None }),
                SourceAction::Qemu(op) => self.a_asks_qemu(op),
                SourceAction::Journal(SourceEntry::Ended(outcome)) => {
                    self.a = Agent::Ended(without_reason(outcome));
                }
                SourceAction::Journal(SourceEntry::Started(_))
                | SourceAction::Ready
                | SourceAction::Mark(_)
                | SourceAction::Note(_)
                | SourceAction::Finished(_) => {}
            }
        }
        if crash.is_some() {
            self.crash_a();
        }
    }

    fn a_says(&mut self, message: Message) {
        let stage = self.stage_a();
        match &message {
            Message::Commit { .. } | Message::Outcome { outcome: Outcome::Released { .. } } => {
                self.rule(stage == Stage::Released, "said Released before the record");
            }
            Message::Abort {} | Message::Outcome { outcome: Outcome::Aborted {} | Outcome::Unknown {} } => {
                self.rule(stage == Stage::Aborted, "said Aborted before the record");
            }
            // It changes nothing there, in whatever state; so it need not be kept.
            Message::Outcome { outcome: Outcome::Moving {} } => {
                if let Agent::Moves(destination) = &self.b {
                    let mut after = destination.clone();
                    let actions = after.on(DestinationEvent::Message(ID, message));
                    assert!(actions.is_empty() && after == *destination, "Moving is not without effect");
                }
                return;
            }
            _ => {}
        }
        self.to_b.insert(message);
    }

    fn a_asks_qemu(&mut self, op: SourceQemuOp) {
        let stage = self.stage_a();
        match op {
            SourceQemuOp::Resume => self.rule(stage == Stage::Aborted, "S resumed before Aborted"),
            SourceQemuOp::Yank => self.rule(stage == Stage::Aborted, "S yanked before Aborted"),
            SourceQemuOp::Cancel => {
                self.rule(
                    matches!(stage, Stage::Aborted | Stage::Absent),
                    "migration cancelled before Aborted",
                );
                let waits = self.qemus.s != SourceQemu::Device;
                self.rule(waits, "migration cancelled after Continue");
            }
            SourceQemuOp::Quit => {
                let there = self.stage_b() == Stage::Owned;
                self.rule(
                    stage == Stage::Released && there,
                    "S ended before the guest was at the destination",
                );
            }
            SourceQemuOp::Continue | SourceQemuOp::Query => {}
        }
        self.qemus.s_does(op);
    }

    /// A restart of agent A: what it asked stays asked, nobody waits for the answers.
    pub(crate) fn crash_a(&mut self) {
        orphan(&mut self.calls_a, &mut self.orphans_a);
        if let Agent::Moves(source) = &self.a {
            let (source, actions) = Source::recover(source.setup().clone());
            self.a = Agent::Moves(source);
            self.a_does(actions, None);
        }
    }

    /// An event at B.
    pub(crate) fn on_b(&mut self, event: DestinationEvent, crash: Option<usize>) -> usize {
        match (&mut self.b, event) {
            (Agent::Moves(destination), event) => {
                let actions = destination.on(event);
                let count = actions.len();
                self.b_does(actions, crash);
                count
            }
            (Agent::Idle, DestinationEvent::Message(id, Message::Prepare { plan })) => {
                let (destination, actions) = Destination::start(Setup { id, plan });
                let count = actions.len();
                // Without the first entry nothing is known after a crash.
                if crash != Some(0) {
                    self.b = Agent::Moves(destination);
                    self.b_does(actions, crash);
                }
                count
            }
            (b, DestinationEvent::Message(ID, message)) => {
                let ended = if let Agent::Ended(outcome) = b { Some(&*outcome) } else { None };
                if let Some(answer) = known::destination_answer(&message, ended) {
                    self.to_a.insert(answer);
                }
                0
            }
            _ => 0,
        }
    }

    fn b_does(&mut self, actions: Vec<DestinationAction>, crash: Option<usize>) {
        let count = crash.unwrap_or(actions.len());
        for action in actions.into_iter().take(count) {
            match action {
                DestinationAction::Send(message) => self.b_says(message),
                DestinationAction::Blockd(op) => self.calls_b.push(Call { op, answer: None }),
                DestinationAction::Qemu(op) => self.b_asks_qemu(op),
                DestinationAction::Journal(DestinationEntry::Ended(outcome)) => {
                    self.b = Agent::Ended(outcome);
                }
                DestinationAction::Journal(DestinationEntry::Preparing(_))
                | DestinationAction::Mark(_)
                | DestinationAction::Note(_)
                | DestinationAction::Finished(_) => {}
            }
        }
        if crash.is_some() {
            self.crash_b();
        }
    }

    fn b_says(&mut self, message: Message) {
        if matches!(message, Message::Running {}) {
            let waits = matches!(self.qemus.t, DestinationQemu::Incoming | DestinationQemu::Loaded);
            let here = self.stage_b() == Stage::Owned && !waits;
            self.rule(here, "said Running before the guest ran");
        }
        self.to_a.insert(message);
    }

    fn b_asks_qemu(&mut self, op: DestinationQemuOp) {
        if matches!(op, DestinationQemuOp::Cont | DestinationQemuOp::StartCold) {
            let owned = self.stage_b() == Stage::Owned;
            self.rule(owned, "T continued before Owned");
        }
        if op == DestinationQemuOp::Kill {
            let given = self.stage_b() == Stage::Owned && self.qemus.t == DestinationQemu::Running;
            self.rule(!given, "T killed while it owns the volumes and runs");
        }
        self.qemus.t_does(op);
    }

    /// A restart of agent B.
    pub(crate) fn crash_b(&mut self) {
        orphan(&mut self.calls_b, &mut self.orphans_b);
        if let Agent::Moves(destination) = &self.b {
            let (destination, actions) = Destination::recover(destination.setup().clone());
            self.b = Agent::Moves(destination);
            self.b_does(actions, None);
        }
    }

    /// blockd does what was asked; the answer is on its way. `false`: it cannot now.
    pub(crate) fn apply(&mut self, side: Side, place: usize) -> bool {
        let calls = if side == Side::A { &self.calls_a } else { &self.calls_b };
        let op = calls[place].op.clone();
        let Some(answer) = self.answer(side, &op) else { return false };
        let calls = if side == Side::A { &mut self.calls_a } else { &mut self.calls_b };
        calls[place].answer = Some(answer);
        true
    }

    pub(crate) fn apply_orphan(&mut self, side: Side, place: usize) {
        let orphans = if side == Side::A { &mut self.orphans_a } else { &mut self.orphans_b };
        let op = orphans.remove(place);
        // Nobody waits for the answer.
        let _unheard = self.answer(side, &op);
    }

    fn answer(&mut self, side: Side, op: &BlockdOp) -> Option<Answer> {
        let owned = self.stage_b() == Stage::Owned;
        let answer = match (side, op) {
            (Side::A, BlockdOp::Ship) if !self.link => return None,
            (Side::A, BlockdOp::Ship) => ship(ID, &self.blockd_a, &mut self.blockd_b),
            (Side::A, op) => self.blockd_a.apply(ID, op),
            (Side::B, op) => self.blockd_b.apply(ID, op),
        };
        if !owned && self.stage_b() == Stage::Owned {
            let (a, b) = (&self.blockd_a, &self.blockd_b);
            let (same, grows) = (a.content == b.content, b.epoch > a.epoch);
            self.rule(same, "the destination owns another content than the source had");
            self.rule(grows, "the epoch did not grow");
        }
        Some(answer)
    }

    /// The answer comes; `Unavailable` where there is none.
    pub(crate) fn take_call(&mut self, side: Side, place: usize) -> (BlockdKind, Answer) {
        let calls = if side == Side::A { &mut self.calls_a } else { &mut self.calls_b };
        let call = calls.remove(place);
        (call.op.kind(), call.answer.unwrap_or(Answer::Unavailable))
    }

    /// A restart of blockd: what was asked may have been done, which was a step before; no answer comes.
    pub(crate) fn crash_blockd(&mut self, side: Side) {
        let calls = std::mem::take(if side == Side::A { &mut self.calls_a } else { &mut self.calls_b });
        if side == Side::A {
            self.orphans_a.clear();
        } else {
            self.orphans_b.clear();
        }
        for call in calls {
            match side {
                Side::A => {
                    self.on_a(SourceEvent::Blockd(call.op.kind(), Answer::Unavailable), None);
                }
                Side::B => {
                    self.on_b(DestinationEvent::Blockd(call.op.kind(), Answer::Unavailable), None);
                }
            }
        }
    }

    pub(crate) fn begin(&mut self) {
        self.on_a(SourceEvent::Begin, None);
        if self.link && self.stream {
            self.qemus.migrate();
        }
    }

    pub(crate) fn source_is(&self, name: &str) -> bool {
        matches!(&self.a, Agent::Moves(source) if source.state_name() == name)
    }
}

/// Why it was aborted only people read: worlds that differ in it alone are the same.
fn without_reason(outcome: SourceOutcome) -> SourceOutcome {
    match outcome {
        SourceOutcome::Aborted { guest, .. } => SourceOutcome::Aborted { reason: Reason::Restarted, guest },
        moved @ SourceOutcome::Moved(_) => moved,
    }
}

fn orphan(calls: &mut Vec<Call>, orphans: &mut Vec<BlockdOp>) {
    for call in calls.drain(..) {
        if call.answer.is_none() && call.op != BlockdOp::Query && !orphans.contains(&call.op) {
            orphans.push(call.op);
        }
    }
}
