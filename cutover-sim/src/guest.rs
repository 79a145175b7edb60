//! The guest: it writes numbers, one after the other, and knows which ones were answered.

use vmctl::cutover::event::DestinationQemu;
use vmctl::cutover::ids::{Epoch, MoveId};

use crate::blockds::{Blockds, Content, Written};
use crate::qemus::{Alone, Qemus};

/// A move's two QEMUs, and the memory of the guest in each.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) id: MoveId,
    /// Host of S.
    pub(crate) from: usize,
    /// That S writes in; T writes in the next one.
    pub(crate) epoch: Epoch,
    pub(crate) qemus: Qemus,
    /// What the guest of each believes was written and answered.
    pub(crate) memory_s: Content,
    pub(crate) memory_t: Content,
    /// The connection between the two is the one of this migration.
    pub(crate) stream: bool,
}

impl Pair {
    pub(crate) fn new(id: MoveId, from: usize, epoch: Epoch, memory: Content) -> Self {
        Self { id, from, epoch, qemus: Qemus::new(), memory_s: memory, memory_t: 0, stream: true }
    }

    pub(crate) fn to(&self) -> usize {
        1 - self.from
    }

    pub(crate) fn next_epoch(&self) -> Epoch {
        self.epoch.next().expect("few moves")
    }

    pub(crate) fn t_runs(&self) -> bool {
        self.qemus.t == DestinationQemu::Running
    }

    /// A write of whoever runs, and what has come of it.
    pub(crate) fn write(&mut self, blockds: &mut impl Blockds, acked: &mut Content) -> Option<Written> {
        if self.qemus.s_runs() {
            let written = blockds.write(self.from, self.epoch, self.memory_s + 1);
            match written {
                Written::Done => count(&mut self.memory_s, acked),
                // werror=stop. It is written again when the guest goes on.
                Written::Refused if self.qemus.may(Alone::SIoError, self.stream, false) => {
                    self.qemus.happens(Alone::SIoError);
                }
                Written::Waits | Written::Refused => {}
            }
            return Some(written);
        }
        if !self.t_runs() {
            return None;
        }
        if std::mem::take(&mut self.qemus.cold) {
            self.memory_t = *acked;
        }
        let written = blockds.write(self.to(), self.next_epoch(), self.memory_t + 1);
        match written {
            Written::Done => count(&mut self.memory_t, acked),
            Written::Waits => {}
            Written::Refused => panic!("a guest runs at the destination, whose blockd refuses its writes"),
        }
        Some(written)
    }
}

fn count(memory: &mut Content, acked: &mut Content) {
    assert_eq!(*memory, *acked, "the guest's memory is older than its disk");
    *memory += 1;
    *acked += 1;
}
