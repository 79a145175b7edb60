//! What goes wrong.

use vmctl::cutover::destination::Destination;
use vmctl::cutover::event::{DestinationQemu, SourceQemu};
use vmctl::cutover::record::Stage;
use vmctl::cutover::source::Source;

use super::{Event, Machine, Sim};
use crate::blockds::Blockds;

impl<B: Blockds> Sim<B> {
    pub(super) fn fault(&mut self) {
        let Some(every) = self.chance.faults_every else { return };
        let host = self.rng.usize(0..2);
        match self.rng.u8(0..8) {
            0 | 1 => self.crash_agent(host),
            2 | 3 => {
                self.count_blockd_crash(host);
                self.blockds.crash(host, false);
            }
            4 if self.link => self.cut(),
            5 => {
                self.count_blockd_crash(host);
                self.blockds.crash(host, true);
                self.power_is_gone(host);
            }
            _ => self.crash_qemu(),
        }
        let after = self.rng.u64(1..=2 * every);
        self.at(after, Event::Fault);
    }

    pub(super) fn crash_agent(&mut self, host: usize) {
        self.seen.count("agent crashed");
        let agent = &mut self.agents[host];
        agent.incarnation += 1;
        let open = std::mem::take(&mut agent.open);
        for (id, machine) in open {
            match machine {
                Machine::Source(source) => {
                    let (source, actions) = Source::recover(source.setup().clone());
                    self.agents[host].open.insert(id, Machine::Source(source));
                    self.source_does(host, id, actions);
                }
                Machine::Destination(destination) => {
                    let (destination, actions) = Destination::recover(destination.setup().clone());
                    self.agents[host].open.insert(id, Machine::Destination(destination));
                    self.destination_does(host, id, actions);
                }
            }
        }
    }

    /// Of the move that is under way, if there is one.
    pub(super) fn crash_qemu(&mut self) {
        let Some((id, pair)) = self.pairs.iter_mut().next_back() else { return };
        let (id, first) = (*id, self.rng.bool());
        if self.agents.iter().all(|agent| !agent.open.contains_key(&id)) {
            return;
        }
        self.seen.count("QEMU crashed");
        let source_is_open = self.agents[pair.from].open.contains_key(&id);
        if first && source_is_open {
            pair.qemus.s = SourceQemu::Gone;
            self.blockds.close(pair.from, pair.epoch);
        } else if self.agents[pair.to()].open.contains_key(&id) {
            pair.qemus.t = DestinationQemu::Gone;
            self.blockds.close(pair.to(), pair.next_epoch());
        }
        self.s_says(id);
        self.t_says(id);
    }

    fn count_blockd_crash(&mut self, host: usize) {
        let stages: Vec<Stage> =
            self.agents[host].open.keys().map(|id| self.blockds.stage(host, *id)).collect();
        self.seen.count(match stages.first() {
            None => "blockd crashed between moves",
            Some(Stage::Frozen) => "blockd crashed while frozen",
            Some(Stage::Released | Stage::Owned) => "blockd crashed after the release",
            Some(Stage::Expected) => "blockd crashed while it expected",
            Some(Stage::Absent | Stage::Aborted) => "blockd crashed around an abort",
        });
    }

    /// Its blockd may have lost it in the middle of something.
    pub(super) fn power_may_be_gone(&mut self) {
        if let Some(host) = self.blockds.take_power_cut() {
            self.power_is_gone(host);
        }
    }

    /// With a host's power go its QEMUs and its agent. A guest that is no move's any more is started again at once.
    fn power_is_gone(&mut self, host: usize) {
        self.seen.count("power cuts");
        let mut started_again = false;
        for (id, pair) in &mut self.pairs {
            let is_open = self.agents[host].open.contains_key(id);
            if pair.from == host && is_open {
                pair.qemus.s = SourceQemu::Gone;
            } else if pair.from == host && pair.qemus.s_runs() {
                pair.memory_s = self.acked;
                started_again = true;
            } else if pair.to() == host && is_open {
                pair.qemus.t = DestinationQemu::Gone;
            } else if pair.to() == host && pair.t_runs() {
                pair.qemus.cold = true;
                started_again = true;
            }
        }
        if started_again {
            self.blockds.verify(host, self.acked);
        }
        self.crash_agent(host);
    }
}
