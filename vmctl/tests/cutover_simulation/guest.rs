//! The guest: it writes numbers, one after the other, and knows which ones were answered.

use vmctl::cutover::event::DestinationQemu;
use vmctl::cutover::ids::MoveId;

use crate::chance::{MS, Micros};
use crate::twins::{Alone, Blockd, Content, Qemus};

/// How long a write of a frozen volume is held.
const HELD_MAX: Micros = 2000 * MS;

/// A move's two QEMUs, and the memory of the guest in each.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) id: MoveId,
    /// Host of S.
    pub(crate) from: usize,
    pub(crate) qemus: Qemus,
    /// What the guest of each believes was written and answered.
    pub(crate) memory_s: Content,
    pub(crate) memory_t: Content,
    /// Since when a write of S is held.
    pub(crate) held: Option<Micros>,
    /// The connection between the two is the one of this migration.
    pub(crate) stream: bool,
}

impl Pair {
    pub(crate) fn new(id: MoveId, from: usize, memory: Content) -> Self {
        Self { id, from, qemus: Qemus::new(), memory_s: memory, memory_t: 0, held: None, stream: true }
    }

    /// A write of whoever runs. Answered: whether something was written.
    pub(crate) fn write(&mut self, now: Micros, blockds: &mut [Blockd; 2], acked: &mut Content) -> bool {
        let mut wrote = false;
        if self.qemus.s_runs() {
            let blockd = &mut blockds[self.from];
            if blockd.accepts() {
                self.held = None;
                put(blockd, &mut self.memory_s, acked);
                wrote = true;
            } else if !blockd.primary || now - *self.held.get_or_insert(now) > HELD_MAX {
                // Refused: werror=stop. It is written again when the guest goes on.
                self.held = None;
                if self.qemus.may(Alone::SIoError, self.stream, false) {
                    self.qemus.happens(Alone::SIoError);
                }
            }
        }
        if self.qemus.t == DestinationQemu::Running {
            let blockd = &mut blockds[1 - self.from];
            assert!(blockd.accepts(), "a guest runs at the destination, whose blockd refuses its writes");
            if std::mem::take(&mut self.qemus.cold) {
                self.memory_t = blockd.content;
            }
            put(blockd, &mut self.memory_t, acked);
            wrote = true;
        }
        wrote
    }
}

fn put(blockd: &mut Blockd, memory: &mut Content, acked: &mut Content) {
    assert_eq!(blockd.content, *acked, "the disk has not what was answered");
    assert_eq!(*memory, *acked, "the guest's memory is older than its disk");
    blockd.content += 1;
    *memory += 1;
    *acked += 1;
}
