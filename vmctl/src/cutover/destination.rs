//! The side that the guest comes to: a state machine without I/O. It decides nothing: it waits for the source's word.
//!
//! ```text
//!  Expecting ─expected─► Starting ─Incoming─► Waiting ─Commit, Outcome Released─► Owning ─owned─► Resuming ─runs─► Here (end)
//!      │                    │                  │   ▲                                               ▲
//!      │ blockd refuses     │ QEMU gone        │   │ record Absent, Expected                       │ record Owned
//!      │                    │                  │ Recovering ───────────────────────────────────────┘
//!      └────────────────────┴──────────────────┤   │
//!            Abort, Outcome Aborted, Unknown   ▼   ▼ the same; record Aborted
//!                                          Discarding ─aborted─► Killing ─QEMU gone─► Discarded (end)
//! ```
//!
//! In `Waiting` QEMU may have died: the source is told (`Failed`), and its word is waited for all the same: the commit record
//! may be there already, and then the volumes are ours and nobody else's.
//!
//! Before it ever said `Prepared`, and only then, it may give up by itself: the source cannot have released.
//!
//! Events that a state does not name change nothing in it.

use std::sync::Arc;

use super::asked::Asked;
use super::event::{
    Answer, BlockdKind, BlockdOp, DestinationAction, DestinationEntry, DestinationEvent, DestinationOutcome,
    DestinationQemu, DestinationQemuOp, Mark, Note,
};
use super::ids::{Epoch, Text};
use super::message::{Message, Outcome};
use super::record::{Commit, Record, Setup, Stage};

type Actions = Vec<DestinationAction>;

/// What is true of a move, as the destination knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    /// After a restart: the record was asked for.
    Recovering,
    /// blockd is asked to be ready.
    Expecting,
    /// QEMU is being started.
    Starting,
    /// `Prepared` was said; the source decides.
    Waiting,
    /// The source has released; blockd is asked for the volumes.
    Owning(Commit),
    /// The volumes are ours: the guest is brought to run. `cold`: from the volumes alone.
    Resuming { epoch: Epoch, cold: bool },
    /// blockd is asked to undo.
    Discarding,
    /// QEMU is being ended.
    Killing,
    /// See the outcome.
    Ended(DestinationOutcome),
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Shared: the model has millions of copies.
    setup: Arc<Setup>,
    state: State,
    asked: Asked,
    /// What QEMU said last.
    qemu: Option<DestinationQemu>,
    /// Why it is refused, until that is said.
    refusal: Option<Text>,
}

impl Destination {
    /// A new move, after the driver has judged the plan of a `Prepare` whose move is not known here.
    pub fn start(setup: Setup) -> (Self, Vec<DestinationAction>) {
        let mut destination = Self::new(setup, State::Expecting);
        let entry = DestinationEntry::Preparing(Setup::clone(&destination.setup));
        let mut out = vec![DestinationAction::Journal(entry)];
        destination.ask(BlockdOp::Expect, &mut out);
        (destination, out)
    }

    /// A move whose journal has `Preparing` and no `Ended`, after a restart. Any number of times.
    pub fn recover(setup: Setup) -> (Self, Vec<DestinationAction>) {
        let mut destination = Self::new(setup, State::Recovering);
        let mut out = Vec::new();
        destination.ask(BlockdOp::Query, &mut out);
        out.push(DestinationAction::Qemu(DestinationQemuOp::Query));
        out.push(DestinationAction::Send(Message::Query {}));
        (destination, out)
    }

    fn new(setup: Setup, state: State) -> Self {
        Self { setup: Arc::new(setup), state, asked: Asked::default(), qemu: None, refusal: None }
    }

    /// The move.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<DestinationOutcome> {
        match self.state {
            State::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// The name of the state, for people.
    pub fn state_name(&self) -> &'static str {
        match &self.state {
            State::Recovering => "recovering",
            State::Expecting => "expecting",
            State::Starting => "starting",
            State::Waiting => "waiting",
            State::Owning(_) => "owning",
            State::Resuming { .. } => "resuming",
            State::Discarding => "discarding",
            State::Killing => "killing",
            State::Ended(_) => "ended",
        }
    }

    /// Takes what happened; says what is to be done, in this order.
    pub fn on(&mut self, event: DestinationEvent) -> Vec<DestinationAction> {
        let mut out = Vec::new();
        match event {
            DestinationEvent::Message(id, message) if id == self.setup.id => self.message(message, &mut out),
            // Of another move: whoever has that one answers.
            DestinationEvent::Message(..) => {}
            DestinationEvent::Blockd(kind, answer) => {
                if self.asked.answered(kind) {
                    self.answer(kind, answer, &mut out);
                }
            }
            DestinationEvent::Qemu(report) => self.report(report, &mut out),
            DestinationEvent::LinkUp | DestinationEvent::Poke => self.again(&mut out),
            // QEMU is kept: only the source knows what holds.
            DestinationEvent::LinkDown => {}
        }
        out
    }

    fn message(&mut self, message: Message, out: &mut Actions) {
        match message {
            Message::Prepare { .. } => match self.state {
                State::Waiting => self.say_how_it_is(out),
                State::Ended(_) => self.say_the_end(out),
                _ => {}
            },
            Message::Commit { commit } | Message::Outcome { outcome: Outcome::Released { commit } } => {
                self.committed(commit, out);
            }
            Message::Abort {} | Message::Outcome { outcome: Outcome::Aborted {} | Outcome::Unknown {} } => {
                self.undone(out);
            }
            Message::Outcome { outcome: Outcome::Moving {} } => {}
            // What a destination says itself.
            Message::Prepared {}
            | Message::Refused { .. }
            | Message::Loaded {}
            | Message::Failed { .. }
            | Message::Running {}
            | Message::Query {}
            | Message::Discarded {} => {}
        }
    }

    fn committed(&mut self, commit: Commit, out: &mut Actions) {
        match &self.state {
            State::Waiting | State::Recovering => self.own(commit, out),
            State::Ended(_) => self.say_the_end(out),
            // Before `Prepared` was said nothing can be released; later it is known already, or contradicts the record.
            _ => {}
        }
    }

    fn own(&mut self, commit: Commit, out: &mut Actions) {
        let plan = &self.setup.plan;
        let is_last = commit.epoch.next().is_none();
        if is_last || commit.epoch != plan.epoch || !plan.fits(&commit.snapshots) {
            let reason = Text::new("what was released is not what was planned");
            return out.push(DestinationAction::Send(Message::Failed { reason }));
        }
        self.state = State::Owning(commit);
        out.push(DestinationAction::Mark(Mark::Committed));
        self.again(out);
    }

    fn undone(&mut self, out: &mut Actions) {
        match self.state {
            State::Recovering | State::Expecting | State::Starting | State::Waiting => self.discard(out),
            State::Ended(_) => self.say_the_end(out),
            State::Owning(_) | State::Resuming { .. } | State::Discarding | State::Killing => {}
        }
    }

    /// By blockd first: should the volumes be ours against all expectation, its record says so, and QEMU lives.
    fn discard(&mut self, out: &mut Actions) {
        self.state = State::Discarding;
        self.ask(BlockdOp::Abort, out);
    }

    fn refuse(&mut self, reason: Text, out: &mut Actions) {
        self.refusal = Some(reason);
        self.discard(out);
    }

    fn answer(&mut self, kind: BlockdKind, answer: Answer, out: &mut Actions) {
        match (kind, answer) {
            // Asked again with the next poke.
            (_, Answer::Unavailable) => {}
            (BlockdKind::Expect, Answer::Done) => {
                if self.state == State::Expecting {
                    self.state = State::Starting;
                    out.push(DestinationAction::Qemu(DestinationQemuOp::Start));
                }
            }
            (BlockdKind::Own, Answer::Done) => {
                if let State::Owning(commit) = &self.state
                    && let Some(epoch) = commit.epoch.next()
                {
                    self.owned(epoch, out);
                }
            }
            (BlockdKind::Abort, Answer::Done) => self.aborted(out),
            (_, Answer::Record(record)) => self.recorded(&record, None, out),
            (_, Answer::Refused(record, text)) => self.recorded(&record, Some((kind, text)), out),
            (_, Answer::Done | Answer::Shipped(_)) => {}
        }
    }

    /// What the record says; `refused`: instead of doing what was asked.
    fn recorded(&mut self, record: &Record, refused: Option<(BlockdKind, Text)>, out: &mut Actions) {
        match (record.stage, &self.state, refused) {
            (Stage::Owned, _, _) => self.owned(record.epoch, out),
            (Stage::Aborted, State::Owning(_), _) => {
                let text = "the source has released what is aborted here";
                out.push(DestinationAction::Note(Note::Contradiction(Text::new(text))));
            }
            (Stage::Aborted, State::Recovering | State::Discarding, _) => self.aborted(out),
            (_, State::Expecting, Some((_, text))) => self.refuse(text, out),
            (_, State::Recovering, None) => {
                self.state = State::Waiting;
                self.say_how_it_is(out);
                out.push(DestinationAction::Send(Message::Query {}));
            }
            (_, State::Owning(_) | State::Discarding, Some((kind, text))) => {
                out.push(DestinationAction::Note(Note::BlockdRefuses(kind, text)));
            }
            _ => {}
        }
    }

    fn owned(&mut self, epoch: Epoch, out: &mut Actions) {
        if matches!(self.state, State::Resuming { .. } | State::Killing | State::Ended(_)) {
            return;
        }
        self.state = State::Resuming { epoch, cold: false };
        out.push(DestinationAction::Mark(Mark::Owned));
        match self.qemu {
            Some(_) => self.resume(out),
            None => out.push(DestinationAction::Qemu(DestinationQemuOp::Query)),
        }
    }

    fn aborted(&mut self, out: &mut Actions) {
        if matches!(self.state, State::Discarding | State::Recovering) {
            self.state = State::Killing;
            out.push(DestinationAction::Qemu(DestinationQemuOp::Kill));
            out.push(DestinationAction::Qemu(DestinationQemuOp::Query));
        }
    }

    fn report(&mut self, report: DestinationQemu, out: &mut Actions) {
        let before = self.qemu.replace(report);
        match self.state {
            State::Starting => self.starting(report, out),
            // Only where the record is known: after a restart it may be ours, and run rightly.
            State::Waiting if report == DestinationQemu::Running => {
                out.push(DestinationAction::Note(Note::RanUnowned));
                out.push(DestinationAction::Qemu(DestinationQemuOp::Kill));
            }
            State::Waiting if before != Some(report) => {
                if report == DestinationQemu::Loaded {
                    out.push(DestinationAction::Mark(Mark::Loaded));
                }
                self.say_how_it_is(out);
            }
            State::Resuming { .. } => self.resume(out),
            State::Killing if report == DestinationQemu::Gone => self.discarded(out),
            _ => {}
        }
    }

    fn starting(&mut self, report: DestinationQemu, out: &mut Actions) {
        match report {
            DestinationQemu::Incoming => {
                self.state = State::Waiting;
                self.say_how_it_is(out);
            }
            DestinationQemu::Gone => self.refuse(Text::new("QEMU does not start at the destination"), out),
            _ => {}
        }
    }

    /// Brings QEMU to run the guest, from wherever it is.
    fn resume(&mut self, out: &mut Actions) {
        let State::Resuming { epoch, cold } = &mut self.state else { return };
        let op = match self.qemu {
            None => DestinationQemuOp::Query,
            Some(DestinationQemu::Loaded | DestinationQemu::Paused) => DestinationQemuOp::Cont,
            // One that has died, or waits for memory that never comes, is replaced.
            Some(DestinationQemu::Gone) => {
                *cold = true;
                DestinationQemuOp::StartCold
            }
            Some(DestinationQemu::Incoming) => DestinationQemuOp::Kill,
            Some(report) => {
                let ended = report != DestinationQemu::Running;
                let outcome = DestinationOutcome::Here { epoch: *epoch, cold: *cold, ended };
                out.push(DestinationAction::Mark(Mark::Resumed));
                return self.end(outcome, out);
            }
        };
        out.push(DestinationAction::Qemu(op));
    }

    fn discarded(&mut self, out: &mut Actions) {
        self.end(DestinationOutcome::Discarded, out);
    }

    fn end(&mut self, outcome: DestinationOutcome, out: &mut Actions) {
        self.state = State::Ended(outcome);
        out.push(DestinationAction::Journal(DestinationEntry::Ended(outcome)));
        self.say_the_end(out);
        out.push(DestinationAction::Finished(outcome));
    }

    fn say_the_end(&self, out: &mut Actions) {
        let message = match (&self.state, &self.refusal) {
            (State::Ended(DestinationOutcome::Here { .. }), _) => Message::Running {},
            (State::Ended(DestinationOutcome::Discarded), Some(reason)) => {
                Message::Refused { reason: reason.clone() }
            }
            (State::Ended(DestinationOutcome::Discarded), None) => Message::Discarded {},
            _ => return,
        };
        out.push(DestinationAction::Send(message));
    }

    fn say_how_it_is(&self, out: &mut Actions) {
        let message = match self.qemu {
            Some(DestinationQemu::Incoming) => Message::Prepared {},
            Some(DestinationQemu::Loaded) => Message::Loaded {},
            Some(_) => Message::Failed {
                reason: Text::new("QEMU has ended at the destination before the guest came"),
            },
            None => return,
        };
        out.push(DestinationAction::Send(message));
    }

    /// Says and asks again what was not answered; never decides.
    fn again(&mut self, out: &mut Actions) {
        match &self.state {
            State::Recovering => {
                self.ask(BlockdOp::Query, out);
                out.push(DestinationAction::Qemu(DestinationQemuOp::Query));
                out.push(DestinationAction::Send(Message::Query {}));
            }
            State::Expecting => self.ask(BlockdOp::Expect, out),
            State::Starting | State::Resuming { .. } => {
                out.push(DestinationAction::Qemu(DestinationQemuOp::Query));
            }
            State::Waiting => {
                out.push(DestinationAction::Qemu(DestinationQemuOp::Query));
                self.say_how_it_is(out);
                out.push(DestinationAction::Send(Message::Query {}));
            }
            State::Owning(commit) => {
                if let Some(epoch) = commit.epoch.next() {
                    let snapshots = commit.snapshots.clone();
                    self.ask(BlockdOp::Own { epoch, snapshots }, out);
                }
            }
            State::Discarding => self.ask(BlockdOp::Abort, out),
            State::Killing => {
                out.push(DestinationAction::Qemu(DestinationQemuOp::Kill));
                out.push(DestinationAction::Qemu(DestinationQemuOp::Query));
            }
            State::Ended(_) => {}
        }
    }

    fn ask(&mut self, op: BlockdOp, out: &mut Actions) {
        if self.asked.ask(&op) {
            out.push(DestinationAction::Blockd(op));
        }
    }
}
