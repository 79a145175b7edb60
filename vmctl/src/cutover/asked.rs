//! What was asked of blockd and not answered.

use super::event::{BlockdKind, BlockdOp};

/// One operation of each kind is under way, at most: asking again before the answer would only make blockd's queue longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Asked(u8);

impl Asked {
    /// Notes that `op` is asked; `false`: one of its kind is under way.
    pub(super) fn ask(&mut self, op: &BlockdOp) -> bool {
        let bit = bit(op.kind());
        let new = self.0 & bit == 0;
        self.0 |= bit;
        new
    }

    /// Notes the answer; `false`: nobody asked.
    pub(super) fn answered(&mut self, kind: BlockdKind) -> bool {
        let was = self.0 & bit(kind) != 0;
        self.0 &= !bit(kind);
        was
    }
}

fn bit(kind: BlockdKind) -> u8 {
    match kind {
        BlockdKind::Query => 1,
        BlockdKind::Freeze => 2,
        BlockdKind::Ship => 4,
        BlockdKind::Release => 8,
        BlockdKind::Abort => 16,
        BlockdKind::Expect => 32,
        BlockdKind::Own => 64,
    }
}
