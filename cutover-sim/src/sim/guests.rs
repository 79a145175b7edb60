//! The QEMUs of a move, and the guest in them.

use vmctl::cutover::event::{DestinationQemu, DestinationQemuOp, SourceEvent, SourceQemu, SourceQemuOp};
use vmctl::cutover::ids::MoveId;
use vmctl::cutover::record::Stage;

use super::{Event, Machine, STOPPED_MAX, Sim};
use crate::blockds::{Blockds, Content, Written};
use crate::chance::{MS, Micros};
use crate::qemus::Alone;

impl<B: Blockds> Sim<B> {
    pub(super) fn source_qemu(&mut self, host: usize, id: MoveId, op: SourceQemuOp) {
        let stage = self.blockds.stage(host, id);
        match op {
            SourceQemuOp::Resume | SourceQemuOp::Yank => {
                assert_eq!(stage, Stage::Aborted, "S {op:?} before Aborted");
            }
            SourceQemuOp::Cancel => {
                assert!(matches!(stage, Stage::Aborted | Stage::Absent), "S {op:?} while {stage:?}");
            }
            SourceQemuOp::Quit => {
                assert_eq!(stage, Stage::Released, "S {op:?} before Released");
                // Absent: the guest is there, and begins its next move already.
                let there = self.blockds.stage(1 - host, id);
                assert!(there != Stage::Expected, "S {op:?} before the guest is at the destination");
            }
            SourceQemuOp::Continue | SourceQemuOp::Query => {}
        }
        let pair = self.pairs.get_mut(&id).expect("a pair for each move");
        pair.qemus.s_does(op);
        let epoch = pair.epoch;
        pair.memory_t = if op == SourceQemuOp::Continue { pair.memory_s } else { pair.memory_t };
        match op {
            SourceQemuOp::Resume => self.blockds.verify(host, self.acked),
            SourceQemuOp::Quit => self.blockds.close(host, epoch),
            _ => {}
        }
        self.s_says(id);
    }

    pub(super) fn destination_qemu(&mut self, host: usize, id: MoveId, op: DestinationQemuOp) {
        if matches!(op, DestinationQemuOp::Cont | DestinationQemuOp::StartCold) {
            assert_eq!(self.blockds.stage(host, id), Stage::Owned, "T {op:?} before Owned");
        }
        let pair = self.pairs.get_mut(&id).expect("a pair for each move");
        pair.qemus.t_does(op);
        let epoch = pair.next_epoch();
        match op {
            DestinationQemuOp::Start => self.blockds.open(host, epoch),
            // Its first instruction, or the first one since it was stopped.
            DestinationQemuOp::Cont | DestinationQemuOp::StartCold => self.blockds.verify(host, self.acked),
            DestinationQemuOp::Kill => self.blockds.close(host, epoch),
            DestinationQemuOp::Query => {}
        }
        self.t_says(id);
    }

    /// QEMU's words come later, in their order.
    pub(super) fn s_says(&mut self, id: MoveId) {
        let (host, report) = (self.pairs[&id].from, self.pairs[&id].qemus.s);
        let (after, agent) = (self.in_order(host), self.agents[host].incarnation);
        self.at(after, Event::SourceSays(host, agent, id, report));
    }

    pub(super) fn t_says(&mut self, id: MoveId) {
        let (host, report) = (1 - self.pairs[&id].from, self.pairs[&id].qemus.t);
        let (after, agent) = (self.in_order(host), self.agents[host].incarnation);
        self.at(after, Event::DestinationSays(host, agent, id, report));
    }

    pub(super) fn in_order(&mut self, host: usize) -> Micros {
        let at = (self.now + self.soon()).max(self.said[host]);
        self.said[host] = at;
        at - self.now
    }

    pub(super) fn begin(&mut self, host: usize, agent: u32, id: MoveId) {
        if self.link && self.agents[host].open.contains_key(&id) {
            self.blockds.round(host);
            self.power_may_be_gone();
        }
        self.source(host, agent, id, SourceEvent::Begin);
        if let Some(Machine::Source(source)) = self.agents[host].open.get(&id)
            && source.state_name() == "armed"
            && self.link
        {
            let pair = self.pairs.get_mut(&id).expect("a pair for each move");
            pair.qemus.migrate();
            self.s_says(id);
        }
        self.at(STOPPED_MAX, Event::Timeout(host, agent, id));
        if self.rng.f64() < self.chance.wish {
            let after = self.rng.u64(0..300 * MS);
            self.at(after, Event::Timeout(host, agent, id));
        }
    }

    pub(super) fn alone(&mut self) {
        let alone = [
            (Alone::SStops, 0.3),
            (Alone::SCompletes, 0.4),
            (Alone::TLoads, 0.4),
            (Alone::SFails, self.chance.qemu_fails * 0.4),
            (Alone::TExits, self.chance.qemu_fails * 0.4),
        ];
        for id in self.pairs.keys().copied().collect::<Vec<_>>() {
            for (alone, often) in alone {
                let pair = self.pairs.get_mut(&id).expect("just listed");
                let accepts = self.blockds.accepts(pair.from);
                // A stream that is broken, or whose other end is gone, fails sooner or later by itself.
                let broken = !pair.stream || pair.qemus.t == DestinationQemu::Gone;
                let often = if alone == Alone::SFails && broken { 0.05 } else { often };
                if !pair.qemus.may(alone, pair.stream, accepts) || self.rng.f64() >= often {
                    continue;
                }
                // QEMU waits for the guest's writes before it stops it.
                if alone == Alone::SStops && !self.blockds.is_drained(pair.from) {
                    continue;
                }
                if alone == Alone::SFails {
                    self.seen.count("S resumed alone");
                    if pair.qemus.t == DestinationQemu::Loaded {
                        self.seen.count("S did not hear that T has everything");
                    }
                }
                pair.qemus.happens(alone);
                self.s_says(id);
                self.t_says(id);
            }
        }
        self.at(2 * MS, Event::Alone);
    }

    pub(super) fn write(&mut self) {
        for pair in self.pairs.values_mut() {
            match pair.write(&mut self.blockds, &mut self.acked) {
                Some(Written::Done) => self.seen.count("writes"),
                Some(Written::Waits) => self.seen.count("writes that waited"),
                Some(Written::Refused) => self.seen.count("writes that were refused"),
                None => {}
            }
        }
        let after = self.rng.u64(B::WRITE_EVERY);
        self.at(after, Event::Write);
    }

    /// The guest's QEMU has its part in a new move; started again, should it have crashed between two.
    pub(super) fn take_guest(&mut self) -> Content {
        let mut memory = self.acked;
        for pair in self.pairs.values_mut() {
            if pair.qemus.s == SourceQemu::Running && pair.from == self.owner {
                memory = pair.memory_s;
                pair.qemus.s = SourceQemu::Gone;
            }
            if pair.qemus.t == DestinationQemu::Running && pair.from != self.owner {
                memory = if pair.qemus.cold { memory } else { pair.memory_t };
                pair.qemus.t = DestinationQemu::Gone;
            }
        }
        memory
    }
}
