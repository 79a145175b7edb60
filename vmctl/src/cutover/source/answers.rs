//! What blockd answers: the only thing that decides.

use super::super::event::{
    Answer, BlockdKind, BlockdOp, Mark, Note, Reason, SourceAction, SourceOutcome, SourceQemuOp,
};
use super::super::ids::{ForPeople, Text};
use super::super::message::Message;
use super::super::record::{Commit, FinalSnapshot, Record, Stage};
use super::{Actions, Source, State, Switch};

impl Source {
    pub(super) fn answer(&mut self, kind: BlockdKind, answer: Answer, out: &mut Actions) {
        match (kind, answer) {
            // Asked again with the next poke.
            (_, Answer::Unavailable) => {}
            (BlockdKind::Release, Answer::Done) => self.released(None, out),
            (BlockdKind::Abort, Answer::Done) => self.aborted(out),
            (BlockdKind::Freeze, Answer::Done) => self.frozen(out),
            (BlockdKind::Ship, Answer::Shipped(snapshots)) => self.shipped(snapshots, out),
            (_, Answer::Record(record)) => self.recorded(record, None, out),
            (_, Answer::Refused(record, text)) => self.recorded(record, Some((kind, text)), out),
            (_, Answer::Done | Answer::Shipped(_)) => {}
        }
    }

    /// What the record says; `refused`: instead of doing what was asked.
    pub(super) fn recorded(
        &mut self,
        record: Record,
        refused: Option<(BlockdKind, Text)>,
        out: &mut Actions,
    ) {
        match record.stage {
            Stage::Released => {
                let commit = Commit { epoch: record.epoch, snapshots: record.snapshots };
                self.released(self.setup.plan.fits(&commit.snapshots).then_some(commit), out);
            }
            Stage::Aborted => self.aborted(out),
            Stage::Absent | Stage::Frozen | Stage::Expected | Stage::Owned => match (&self.state, refused) {
                (State::Recovering, _) => self.fail(Reason::Restarted, out),
                // What is refused now was asked before things changed.
                (State::Aborting(_) | State::Returning(_), Some((kind, text))) => {
                    if kind == BlockdKind::Abort {
                        out.push(SourceAction::Note(Note::BlockdRefuses(kind, text)));
                    }
                }
                (_, Some((_, text))) => self.fail(Reason::Blockd(text), out),
                (_, None) => {}
            },
        }
    }

    pub(super) fn frozen(&mut self, out: &mut Actions) {
        if self.state == State::Freezing {
            self.state = State::Switching(Switch::default());
            out.push(SourceAction::Mark(Mark::Frozen));
            out.push(SourceAction::Qemu(SourceQemuOp::Continue));
            self.ask(BlockdOp::Ship, out);
        }
    }

    pub(super) fn shipped(&mut self, snapshots: Vec<FinalSnapshot>, out: &mut Actions) {
        let fits = self.setup.plan.fits(&snapshots);
        let State::Switching(switch) = &mut self.state else { return };
        if !fits {
            let text = Text::new("blockd has shipped other volumes than the plan has");
            return self.fail(Reason::Blockd(text), out);
        }
        switch.shipped = Some(snapshots);
        out.push(SourceAction::Mark(Mark::Published));
        self.release_if_all(out);
    }

    pub(super) fn release_if_all(&mut self, out: &mut Actions) {
        if let State::Switching(Switch { shipped: Some(snapshots), completed: true, loaded: true }) =
            &self.state
        {
            let snapshots = snapshots.clone();
            self.state = State::Releasing(snapshots.clone());
            self.ask(BlockdOp::Release(snapshots), out);
        }
    }

    /// The commit record is there. `commit`: as the record has it, where it was read.
    pub(super) fn released(&mut self, commit: Option<Commit>, out: &mut Actions) {
        let known = match &self.state {
            State::Committing(None) => false,
            State::Committing(Some(_)) | State::Quitting(_) => return,
            State::Returning(_) | State::Ended { .. } => {
                let text = "blockd says Released of a move that it has aborted";
                return out.push(SourceAction::Note(Note::Contradiction(Text::new(text))));
            }
            _ => true,
        };
        let own = match &self.state {
            State::Releasing(snapshots) => {
                Some(Commit { epoch: self.setup.plan.epoch, snapshots: snapshots.clone() })
            }
            _ => None,
        };
        if known {
            out.push(SourceAction::Mark(Mark::Released));
        }
        self.state = State::Committing(commit.or(own));
        (self.qemu, self.peer_gone) = (None, false);
        self.again(out);
    }

    /// The abort record is there.
    pub(super) fn aborted(&mut self, out: &mut Actions) {
        let reason = match &self.state {
            State::Returning(_) | State::Ended { outcome: SourceOutcome::Aborted { .. }, .. } => return,
            State::Committing(_) | State::Quitting(_) | State::Ended { .. } => {
                let text = "blockd says Aborted of a move that it has released";
                return out.push(SourceAction::Note(Note::Contradiction(Text::new(text))));
            }
            State::Aborting(reason) => reason.0.clone(),
            State::Recovering => Reason::Restarted,
            _ => Reason::Elsewhere,
        };
        self.state = State::Returning(ForPeople(reason));
        out.push(SourceAction::Mark(Mark::Aborted));
        // The guest first: it is what somebody waits for. How QEMU is now is asked for; what it said before may be old.
        self.qemu = None;
        out.push(SourceAction::Qemu(SourceQemuOp::Query));
        out.push(SourceAction::Send(Message::Abort {}));
    }
}
