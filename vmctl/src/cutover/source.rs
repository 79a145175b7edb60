//! The side that has the guest, and decides: a state machine without I/O.
//!
//! ```text
//!  Preparing ─Prepared─► Prepared ─Begin─► Armed ─PreSwitchover─► Freezing ─frozen─► Switching ─all three─► Releasing
//!      │                    │                │                       │                  │                    │    │
//!      └────────────────────┴────────────────┴───── any failure ─────┴──────────────────┴────────────────────┘    │ X
//!                                                       ▼                                                         ▼
//!  Recovering ──── record not Released ────────────► Aborting ───── the answer is Released ─────────────────► Committing
//!      │                                                │ the answer is Aborted                                   │ Running
//!      │                                                ▼                                                         ▼
//!      │                                            Returning ─ guest is back, or dead ─► Aborted (end)        Quitting ─► Moved (end)
//!      └──── record Released ──► Committing
//! ```
//!
//! Two facts are final, and only blockd's record makes them: *Released* and *Aborted*. In whatever state one of them is
//! learned, the machine goes to `Committing` or to `Returning`. Nothing else leads there: not QEMU, not the other agent, not
//! time. Before the fact is known the guest is not resumed, and the destination is told neither to run nor to discard.
//!
//! Events that a state does not name change nothing in it.

mod answers;
mod qemu;

use std::sync::Arc;

use super::asked::Asked;
use super::event::{
    BlockdOp, Mark, Note, Reason, SourceAction, SourceEntry, SourceEvent, SourceOutcome, SourceQemu,
    SourceQemuOp,
};
use super::ids::{ForPeople, Text};
use super::message::{Message, Outcome};
use super::record::{Commit, FinalSnapshot, Setup};

type Actions = Vec<SourceAction>;

/// What is true of a move, as the source knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    /// After a restart: the record was asked for.
    Recovering,
    /// `Prepare` was said. The guest runs.
    Preparing,
    /// The destination is ready; bulk and rounds. The guest runs.
    Prepared,
    /// QEMU may stop the guest at any time.
    Armed,
    /// The guest is stopped; blockd is asked to hold writes.
    Freezing,
    /// Final delta, and the rest of the memory, at the same time.
    Switching(Switch),
    /// All is there; blockd is asked for the commit record.
    Releasing(Vec<FinalSnapshot>),
    /// blockd is asked for the abort record; it may answer that the commit record is there.
    Aborting(ForPeople<Reason>),
    /// The abort record is there: the guest goes on here.
    Returning(ForPeople<Reason>),
    /// The commit record is there (X): the guest goes on there. What was released may have to be asked for.
    Committing(Option<Commit>),
    /// The guest runs there: QEMU ends here.
    Quitting(Commit),
    /// See the outcome; `told`: the destination knows.
    Ended { outcome: SourceOutcome, told: bool },
}

/// What has to be there before the release.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Switch {
    /// Published at the destination.
    shipped: Option<Vec<FinalSnapshot>>,
    /// Our QEMU says that it has sent everything, and will not resume by itself any more.
    completed: bool,
    /// The destination says that its QEMU has everything.
    loaded: bool,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// Shared: the model has millions of copies.
    setup: Arc<Setup>,
    state: State,
    asked: Asked,
    /// What QEMU said last.
    qemu: Option<SourceQemu>,
    /// The link is down, or the destination has no QEMU any more: ours may wait for it forever.
    link_down: bool,
    peer_gone: bool,
}

impl Source {
    /// A new move.
    pub fn start(setup: Setup) -> (Self, Vec<SourceAction>) {
        let entry = SourceEntry::Started(setup.clone());
        let source = Self::new(setup, State::Preparing);
        let prepare = source.prepare();
        (source, vec![SourceAction::Journal(entry), prepare])
    }

    /// A move whose journal has `Started` and no `Ended`, after a restart. Any number of times.
    pub fn recover(setup: Setup) -> (Self, Vec<SourceAction>) {
        let mut source = Self::new(setup, State::Recovering);
        let mut out = Vec::new();
        source.ask(BlockdOp::Query, &mut out);
        out.push(SourceAction::Qemu(SourceQemuOp::Query));
        (source, out)
    }

    fn new(setup: Setup, state: State) -> Self {
        Self {
            setup: Arc::new(setup),
            state,
            asked: Asked::default(),
            qemu: None,
            link_down: false,
            peer_gone: false,
        }
    }

    /// The move.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Whether the commit record is known to be there.
    pub fn is_committed(&self) -> bool {
        match &self.state {
            State::Committing(_) | State::Quitting(_) => true,
            State::Ended { outcome, .. } => matches!(outcome, SourceOutcome::Moved(_)),
            _ => false,
        }
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&SourceOutcome> {
        match &self.state {
            State::Ended { outcome, .. } => Some(outcome),
            _ => None,
        }
    }

    /// The name of the state, for people.
    pub fn state_name(&self) -> &'static str {
        match &self.state {
            State::Recovering => "recovering",
            State::Preparing => "preparing",
            State::Prepared => "prepared",
            State::Armed => "armed",
            State::Freezing => "freezing",
            State::Switching(_) => "switching",
            State::Releasing(_) => "releasing",
            State::Aborting(_) => "aborting",
            State::Returning(_) => "returning",
            State::Committing(_) => "committing",
            State::Quitting(_) => "quitting",
            State::Ended { .. } => "ended",
        }
    }

    /// Takes what happened; says what is to be done, in this order.
    pub fn on(&mut self, event: SourceEvent) -> Vec<SourceAction> {
        let mut out = Vec::new();
        match event {
            SourceEvent::Message(id, message) if id == self.setup.id => self.message(message, &mut out),
            // Of another move: whoever has that one answers.
            SourceEvent::Message(..) => {}
            SourceEvent::Blockd(kind, answer) => {
                if self.asked.answered(kind) {
                    self.answer(kind, answer, &mut out);
                }
            }
            SourceEvent::Qemu(report) => self.report(report, &mut out),
            SourceEvent::Begin => {
                if self.state == State::Prepared {
                    self.state = State::Armed;
                }
            }
            SourceEvent::Abort(text) => self.wish(text, &mut out),
            SourceEvent::LinkDown => self.link_down(&mut out),
            SourceEvent::LinkUp => {
                self.link_down = false;
                self.again(&mut out);
            }
            SourceEvent::Poke => self.again(&mut out),
        }
        out
    }

    fn message(&mut self, message: Message, out: &mut Actions) {
        match message {
            Message::Prepared {} => {
                if self.state == State::Preparing {
                    self.state = State::Prepared;
                    out.push(SourceAction::Ready);
                }
            }
            Message::Loaded {} => {
                if let State::Switching(switch) = &mut self.state
                    && !switch.loaded
                {
                    switch.loaded = true;
                    out.push(SourceAction::Mark(Mark::Loaded));
                    self.release_if_all(out);
                }
            }
            Message::Refused { reason } => self.peer_fails(Reason::Refused(reason), out),
            Message::Failed { reason } => self.peer_fails(Reason::Failed(reason), out),
            Message::Discarded {} => self.discarded(out),
            Message::Running {} => self.runs_there(out),
            Message::Query {} => out.push(SourceAction::Send(Message::Outcome { outcome: self.stands() })),
            // What a source says itself.
            Message::Prepare { .. }
            | Message::Commit { .. }
            | Message::Abort {}
            | Message::Outcome { .. } => {}
        }
    }

    /// What may be said of the move: as long as nothing is final, nothing.
    fn stands(&self) -> Outcome {
        match &self.state {
            State::Committing(Some(commit)) | State::Quitting(commit) => {
                Outcome::Released { commit: commit.clone() }
            }
            State::Ended { outcome: SourceOutcome::Moved(commit), .. } => {
                Outcome::Released { commit: commit.clone() }
            }
            State::Returning(_) | State::Ended { outcome: SourceOutcome::Aborted { .. }, .. } => {
                Outcome::Aborted {}
            }
            _ => Outcome::Moving {},
        }
    }

    fn peer_fails(&mut self, reason: Reason, out: &mut Actions) {
        self.peer_gone = !self.is_committed();
        match (&self.state, reason) {
            (State::Committing(_) | State::Quitting(_), Reason::Failed(text) | Reason::Refused(text)) => {
                out.push(SourceAction::Note(Note::PeerFails(text)));
            }
            // Ours may wait for the one that is gone.
            (State::Returning(_), _) => self.bring_back(out),
            (_, reason) => self.fail(reason, out),
        }
    }

    fn discarded(&mut self, out: &mut Actions) {
        self.peer_gone = !self.is_committed();
        match &mut self.state {
            State::Returning(_) => self.bring_back(out),
            State::Ended { told, .. } => *told = true,
            State::Committing(_) | State::Quitting(_) => {
                let text = "the destination has discarded what the source has released";
                out.push(SourceAction::Note(Note::Contradiction(Text::new(text))));
            }
            // Nobody told it to, but without it nothing can come of the move.
            _ => self.fail(Reason::Failed(Text::new("the destination has discarded the move")), out),
        }
    }

    fn runs_there(&mut self, out: &mut Actions) {
        if let State::Committing(Some(commit)) = &self.state {
            self.state = State::Quitting(commit.clone());
            out.push(SourceAction::Mark(Mark::PeerRunning));
            out.push(SourceAction::Qemu(SourceQemuOp::Quit));
        }
    }

    fn end(&mut self, outcome: SourceOutcome, told: bool, out: &mut Actions) {
        self.state = State::Ended { outcome: outcome.clone(), told };
        out.push(SourceAction::Journal(SourceEntry::Ended(outcome.clone())));
        out.push(SourceAction::Finished(outcome));
    }

    /// A failure: before the commit record it leads back, by way of blockd; after it, nowhere.
    fn fail(&mut self, reason: Reason, out: &mut Actions) {
        match &self.state {
            State::Recovering
            | State::Preparing
            | State::Prepared
            | State::Armed
            | State::Freezing
            | State::Switching(_)
            | State::Releasing(_) => {
                self.state = State::Aborting(ForPeople(reason));
                self.ask(BlockdOp::Abort, out);
            }
            State::Aborting(_)
            | State::Returning(_)
            | State::Committing(_)
            | State::Quitting(_)
            | State::Ended { .. } => {}
        }
    }

    fn wish(&mut self, text: Text, out: &mut Actions) {
        if self.is_committed() {
            out.push(SourceAction::Note(Note::Committed));
        }
        self.fail(Reason::Asked(text), out);
    }

    fn link_down(&mut self, out: &mut Actions) {
        self.link_down = true;
        match &self.state {
            State::Freezing | State::Switching(_) | State::Releasing(_) => self.fail(Reason::Link, out),
            State::Returning(_) => self.bring_back(out),
            // The guest runs: the driver may find the link again.
            _ => {}
        }
    }

    fn prepare(&self) -> SourceAction {
        SourceAction::Send(Message::Prepare { plan: self.setup.plan.clone() })
    }

    /// Says and asks again what was not answered; never decides.
    fn again(&mut self, out: &mut Actions) {
        match &self.state {
            State::Recovering => self.ask(BlockdOp::Query, out),
            State::Preparing => out.push(self.prepare()),
            State::Prepared => {}
            State::Armed => out.push(SourceAction::Qemu(SourceQemuOp::Query)),
            State::Freezing => self.ask(BlockdOp::Freeze, out),
            State::Switching(switch) => {
                let (shipped, completed) = (switch.shipped.is_some(), switch.completed);
                if !completed {
                    if self.qemu == Some(SourceQemu::PreSwitchover) {
                        out.push(SourceAction::Qemu(SourceQemuOp::Continue));
                    }
                    out.push(SourceAction::Qemu(SourceQemuOp::Query));
                }
                if !shipped {
                    self.ask(BlockdOp::Ship, out);
                }
            }
            State::Releasing(snapshots) => self.ask(BlockdOp::Release(snapshots.clone()), out),
            State::Aborting(_) => self.ask(BlockdOp::Abort, out),
            State::Returning(_) => {
                out.push(SourceAction::Qemu(SourceQemuOp::Query));
                out.push(SourceAction::Send(Message::Abort {}));
            }
            State::Committing(Some(commit)) => {
                out.push(SourceAction::Send(Message::Commit { commit: commit.clone() }));
            }
            State::Committing(None) => self.ask(BlockdOp::Query, out),
            State::Quitting(_) => {
                out.push(SourceAction::Qemu(SourceQemuOp::Quit));
                out.push(SourceAction::Qemu(SourceQemuOp::Query));
            }
            State::Ended { outcome: SourceOutcome::Aborted { .. }, told: false } => {
                out.push(SourceAction::Send(Message::Abort {}));
            }
            State::Ended { .. } => {}
        }
    }

    fn ask(&mut self, op: BlockdOp, out: &mut Actions) {
        if self.asked.ask(&op) {
            out.push(SourceAction::Blockd(op));
        }
    }
}
