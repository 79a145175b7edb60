//! The guest's writes, as its QEMU asks for them.

use cutover_sim::blockds::{Content, Written};
use nbd_server::export::RequestId;
use vmctl::cutover::ids::Epoch;

use crate::ledger::{BLOCK, Tag, block_of};
use crate::stores::Stores;

/// Blocks of a write, at most.
const BLOCKS_MAX: usize = 3;
/// Steps of the store between two looks of the guest at its write, at most.
const STEPS_MAX: usize = 48;

/// A write that has no answer yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) epoch: Epoch,
    number: Content,
    first: usize,
    count: usize,
    tag: Tag,
    fua: bool,
    /// `None`: the connection is gone, it is asked for again.
    pub(crate) request: Option<RequestId>,
}

impl Pending {
    fn blocks(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.count
    }
}

impl Stores {
    pub(crate) fn guest_writes(&mut self, host: usize, epoch: Epoch, number: Content) -> Written {
        self.writer = host;
        let mut pending = match self.pending[host].take() {
            Some(pending) => {
                assert_eq!((pending.epoch, pending.number), (epoch, number), "two guests at one host");
                pending
            }
            None => self.next_write(epoch, number),
        };
        let Some(request) = pending.request.or_else(|| self.ask_for(host, &pending)) else {
            return Written::Refused;
        };
        pending.request = Some(request);
        self.pending[host] = Some(pending);
        self.look_after(host, request)
    }

    fn next_write(&mut self, epoch: Epoch, number: Content) -> Pending {
        let count = self.rng.usize(1..=BLOCKS_MAX);
        let first = self.rng.usize(..=self.ledger.blocks() - count);
        let tag = self.ledger.begin(first, count);
        Pending { epoch, number, first, count, tag, fua: self.rng.u8(..4) == 0, request: None }
    }

    /// `None`: there is no such door any more, and QEMU does not get in.
    fn ask_for(&mut self, host: usize, pending: &Pending) -> Option<RequestId> {
        let door = self.door(host, pending.epoch)?;
        let bytes = block_of(pending.tag).repeat(pending.count);
        let at = (pending.first * BLOCK) as u64;
        Some(self.hosts[host].begin_write(door, at, &bytes, pending.fua))
    }

    /// The store goes on for a while.
    fn look_after(&mut self, host: usize, request: RequestId) -> Written {
        for _ in 0..self.rng.usize(1..=STEPS_MAX) {
            if let Some(outcome) = self.hosts[host].reply(request) {
                let pending = self.pending[host].take().expect("it was asked for");
                if outcome.is_err() {
                    return Written::Refused;
                }
                self.ledger.answered(pending.first, pending.count, pending.tag, pending.fua);
                if pending.fua {
                    self.seen.count("writes that were durable at once");
                }
                return Written::Done;
            }
            if self.rng.u32(..1000) < self.kills_per_mille / 4 {
                let before = self.hosts[host].power_cuts;
                let power = self.rng.bool();
                self.hosts[host].crash(power);
                self.seen.count("blockd died in a write");
                self.started_again(host, before);
                break;
            }
            if !self.hosts[host].step() {
                break;
            }
        }
        Written::Waits
    }

    /// Holds what a host shows against what it may.
    pub(crate) fn hold_against(&mut self, host: usize, content: &[u8]) {
        let ghosts = self.ghosts[host].iter().flat_map(Pending::blocks);
        let own = self.pending[host].iter().flat_map(Pending::blocks);
        let in_doubt: Vec<usize> = ghosts.chain(own).collect();
        // Only now: one that was done while the content was read may be in it or not.
        let hosts = &mut self.hosts;
        self.ghosts[host]
            .retain(|ghost| ghost.request.is_some_and(|request| hosts[host].reply(request).is_none()));
        if self.ledger.hold_against(content, &in_doubt) > 0 {
            self.seen.count("writes without an answer that are there");
        }
    }
}
