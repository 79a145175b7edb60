//! What the machines ask of their blockds.

use vmctl::cutover::event::{Answer, BlockdOp};
use vmctl::cutover::ids::MoveId;

use super::{Event, Sim};
use crate::blockds::Blockds;
use crate::chance::{MS, Micros, S};

/// What was asked for may be done so late, when nobody waits for it any more.
const SLOW_MAX: Micros = 4 * S;

impl<B: Blockds> Sim<B> {
    pub(super) fn ask_blockd(&mut self, host: usize, id: MoveId, op: BlockdOp) {
        let (agent, blockd) = (self.agents[host].incarnation, self.blockds.starts(host));
        let slow = if op == BlockdOp::Ship { 50 * MS } else { 5 * MS };
        let slow = if self.rng.f64() < self.chance.slow { SLOW_MAX } else { slow };
        let after = self.rng.u64(0..=slow);
        self.at(after, Event::Do(host, agent, blockd, id, op));
    }

    pub(super) fn blockd_does(&mut self, host: usize, agent: u32, start: u64, id: MoveId, op: &BlockdOp) {
        let kind = op.kind();
        // It was restarted since: before it had done it, and nobody did.
        let answer = if start != self.blockds.starts(host) {
            Answer::Unavailable
        } else if *op == BlockdOp::Ship {
            self.blockds.ship(host, id, self.link)
        } else {
            let answer = self.blockds.apply(host, id, op);
            // It was done, and the answer is lost in one of many cases.
            if self.rng.f64() < self.chance.loss / 4.0 { Answer::Unavailable } else { answer }
        };
        let after = self.soon();
        self.at(after, Event::Answered(host, agent, id, kind, answer));
        self.power_may_be_gone();
    }
}
