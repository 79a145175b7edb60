//! What QEMU says: advice.

use super::super::event::{BlockdOp, Mark, Reason, SourceAction, SourceOutcome, SourceQemu, SourceQemuOp};
use super::{Actions, Source, State};

impl Source {
    pub(super) fn report(&mut self, report: SourceQemu, out: &mut Actions) {
        // Kept where it leads to something later; else it would only be old.
        if matches!(self.state, State::Switching(_) | State::Returning(_)) {
            self.qemu = Some(report);
        }
        match &mut self.state {
            State::Preparing | State::Prepared if report == SourceQemu::PreSwitchover => {
                // Too early: nothing is frozen, the guest need not wait.
                out.push(SourceAction::Qemu(SourceQemuOp::Cancel));
            }
            State::Armed if report == SourceQemu::PreSwitchover => {
                self.state = State::Freezing;
                out.push(SourceAction::Mark(Mark::GuestStopped));
                self.ask(BlockdOp::Freeze, out);
            }
            State::Preparing | State::Prepared | State::Armed if report.is_dead() => {
                self.fail(Reason::Qemu(report), out);
            }
            State::Freezing => match report {
                SourceQemu::PreSwitchover => {}
                _ => self.fail(Reason::Qemu(report), out),
            },
            State::Switching(switch) => match report {
                SourceQemu::PreSwitchover | SourceQemu::Device => {}
                SourceQemu::Completed if !switch.completed => {
                    switch.completed = true;
                    out.push(SourceAction::Mark(Mark::Completed));
                    self.release_if_all(out);
                }
                SourceQemu::Completed => {}
                // The destination has everything: nothing is lost with it.
                SourceQemu::Gone if switch.completed => {}
                _ => self.fail(Reason::Qemu(report), out),
            },
            State::Releasing(_) if !matches!(report, SourceQemu::Completed | SourceQemu::Gone) => {
                self.fail(Reason::Qemu(report), out);
            }
            State::Returning(_) => self.bring_back(out),
            State::Quitting(commit) if report == SourceQemu::Gone => {
                let outcome = SourceOutcome::Moved(commit.clone());
                self.end(outcome, true, out);
            }
            _ => {}
        }
    }

    /// Takes QEMU back to where the guest runs, from wherever it is.
    pub(super) fn bring_back(&mut self, out: &mut Actions) {
        let (State::Returning(reason), Some(report)) = (&self.state, self.qemu) else { return };
        let op = match report {
            SourceQemu::Precopy | SourceQemu::PreSwitchover => SourceQemuOp::Cancel,
            // It resumes by itself when its peer is gone; if it cannot see that, it has to be told.
            SourceQemu::Device if self.link_down || self.peer_gone => SourceQemuOp::Yank,
            SourceQemu::Device => return,
            SourceQemu::Completed | SourceQemu::Paused => SourceQemuOp::Resume,
            SourceQemu::Running | SourceQemu::Shutdown | SourceQemu::Panicked | SourceQemu::Gone => {
                let outcome = SourceOutcome::Aborted { reason: reason.0.clone(), guest: report };
                out.push(SourceAction::Mark(Mark::GuestBack));
                return self.end(outcome, false, out);
            }
        };
        out.push(SourceAction::Qemu(op));
    }
}
