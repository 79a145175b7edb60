//! The two agents: their machines hear what happens, and what these want is done.

use vmctl::cutover::event::{
    DestinationAction, DestinationEntry, DestinationEvent, DestinationOutcome, DestinationQemu,
    DestinationQemuOp, Note, SourceAction, SourceEntry, SourceEvent, SourceOutcome, SourceQemu,
};
use vmctl::cutover::ids::MoveId;

use super::{End, Event, Machine, Sim};
use crate::blockds::Blockds;
use crate::chance::MS;

impl<B: Blockds> Sim<B> {
    pub(super) fn source(&mut self, host: usize, agent: u32, id: MoveId, event: SourceEvent) {
        if self.agents[host].incarnation != agent {
            return;
        }
        if let Some(Machine::Source(source)) = self.agents[host].open.get_mut(&id) {
            let was_aborting = source.state_name() == "aborting";
            let actions = source.on(event);
            if was_aborting && source.is_committed() {
                self.seen.count("released after all");
            }
            self.source_does(host, id, actions);
        }
    }

    pub(super) fn destination(&mut self, host: usize, agent: u32, id: MoveId, event: DestinationEvent) {
        if self.agents[host].incarnation != agent {
            return;
        }
        if let Some(Machine::Destination(destination)) = self.agents[host].open.get_mut(&id) {
            let actions = destination.on(event);
            self.destination_does(host, id, actions);
        }
    }

    pub(super) fn source_does(&mut self, host: usize, id: MoveId, actions: Vec<SourceAction>) {
        let agent = self.agents[host].incarnation;
        for action in actions {
            if self.verbose {
                println!("          {host} source: {action:?}");
            }
            match action {
                SourceAction::Send(message) => self.send(host, id, message),
                SourceAction::Blockd(op) => self.ask_blockd(host, id, op),
                SourceAction::Qemu(op) => self.source_qemu(host, id, op),
                SourceAction::Journal(SourceEntry::Ended(outcome)) => {
                    self.agents[host].ended.insert(id, End::Source(outcome));
                }
                SourceAction::Ready => {
                    let after = self.rng.u64(0..200 * MS);
                    self.at(after, Event::Begin(host, agent, id));
                }
                SourceAction::Finished(outcome) => {
                    self.agents[host].open.remove(&id);
                    self.source_ended(host, id, &outcome);
                }
                SourceAction::Note(Note::Contradiction(text)) => panic!("{text}"),
                SourceAction::Journal(SourceEntry::Started(_))
                | SourceAction::Mark(_)
                | SourceAction::Note(_) => {}
            }
        }
    }

    pub(super) fn source_ended(&mut self, host: usize, id: MoveId, outcome: &SourceOutcome) {
        match outcome {
            SourceOutcome::Moved(_) => self.seen.count("moved"),
            SourceOutcome::Aborted { guest, .. } => {
                self.seen.count("aborted");
                self.supervise(host, id, *guest);
            }
        }
        self.at(20 * MS, Event::NextMove);
    }

    /// What an agent does with a guest of its own after a move: one that has died is started again, from the disk; one that an
    /// error stopped, which was on its way when the volume was thawed, goes on.
    pub(super) fn supervise(&mut self, host: usize, id: MoveId, guest: SourceQemu) {
        self.blockds.verify(host, self.acked);
        let pair = self.pairs.get_mut(&id).expect("a pair for each move");
        if guest.is_dead() || pair.qemus.s.is_dead() {
            pair.memory_s = self.acked;
        } else {
            let stopped = !matches!(pair.qemus.s, SourceQemu::Running | SourceQemu::Paused);
            assert!(!stopped, "an aborted move ends with S {:?}", pair.qemus.s);
        }
        pair.qemus.s = SourceQemu::Running;
    }

    pub(super) fn destination_does(&mut self, host: usize, id: MoveId, actions: Vec<DestinationAction>) {
        for action in actions {
            if self.verbose {
                println!("          {host} destination: {action:?}");
            }
            match action {
                DestinationAction::Send(message) => self.send(host, id, message),
                DestinationAction::Blockd(op) => self.ask_blockd(host, id, op),
                DestinationAction::Qemu(op) => self.destination_qemu(host, id, op),
                DestinationAction::Journal(DestinationEntry::Ended(outcome)) => {
                    self.agents[host].ended.insert(id, End::Destination(outcome));
                }
                DestinationAction::Finished(outcome) => {
                    self.agents[host].open.remove(&id);
                    if let DestinationOutcome::Here { cold, .. } = outcome {
                        self.is_here(host, id, cold);
                    }
                }
                DestinationAction::Note(Note::Contradiction(text)) => panic!("{text}"),
                DestinationAction::Note(Note::RanUnowned) => panic!("T ran without owning the volumes"),
                DestinationAction::Journal(DestinationEntry::Preparing(_))
                | DestinationAction::Mark(_)
                | DestinationAction::Note(_) => {}
            }
        }
    }

    fn is_here(&mut self, host: usize, id: MoveId, cold: bool) {
        if cold {
            self.seen.count("started cold");
        }
        // It has crashed after it had said that it runs.
        let qemus = &mut self.pairs.get_mut(&id).expect("a pair for each move").qemus;
        if qemus.t == DestinationQemu::Gone {
            qemus.t_does(DestinationQemuOp::StartCold);
        }
        self.owner = host;
        self.at(20 * MS, Event::NextMove);
    }
}
