//! What blockd's answers mean to the cutover. Without I/O: the simulation with blockd's own store has them, too.

use crate::blockd::MoveInfo;
use crate::cutover::event::BlockdKind;
use crate::cutover::ids::{Epoch, Name};
use crate::cutover::record::{FinalSnapshot, Record};
use crate::error::Kind;

/// Whether an error of blockd's API leaves open what was done; else it was refused.
pub fn is_unavailable(asked: BlockdKind, error: Kind) -> bool {
    let unreachable = matches!(error, Kind::Unreachable | Kind::Timeout | Kind::Stopping | Kind::Overloaded);
    // The link to the other host is blockd's matter: it has answered.
    unreachable && asked != BlockdKind::Ship
}

/// Whether an abort was refused because one of the volumes is not there: nothing of the move is recorded then, and nothing
/// can begin while that is so. Asked again it would be refused for ever, and the move would never end.
pub fn is_nothing_to_abort(asked: BlockdKind, error: Kind) -> bool {
    asked == BlockdKind::Abort && error == Kind::NotFound
}

/// What blockd tells of a move; `None`: of what it tells nothing can be understood.
pub fn record_of(moved: &MoveInfo) -> Option<Record> {
    let snapshots = moved.volumes.iter().filter_map(|volume| {
        Some(FinalSnapshot {
            volume: Name::new(&volume.name).ok()?,
            uid: volume.uid.as_deref()?.parse().ok()?,
            root: volume.root.as_deref()?.parse().ok()?,
        })
    });
    let epoch = moved.volumes.iter().map(|volume| volume.volume_epoch).max()?;
    Some(Record { stage: moved.stage, epoch: Epoch(epoch), snapshots: snapshots.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else the agent that has lost a volume would ask for the abort for ever, and hold the VM.
    #[test]
    fn an_abort_without_the_volume_has_nothing_to_do() {
        assert!(is_nothing_to_abort(BlockdKind::Abort, Kind::NotFound));
        for (asked, error) in [
            (BlockdKind::Abort, Kind::Refused),
            (BlockdKind::Abort, Kind::Unreachable),
            (BlockdKind::Freeze, Kind::NotFound),
            (BlockdKind::Release, Kind::NotFound),
            (BlockdKind::Own, Kind::NotFound),
        ] {
            assert!(!is_nothing_to_abort(asked, error), "{asked:?} {error:?}");
        }
    }

    #[test]
    fn an_error_of_the_way_decides_nothing_but_that_of_a_ship() {
        assert!(is_unavailable(BlockdKind::Release, Kind::Timeout));
        assert!(is_unavailable(BlockdKind::Abort, Kind::Unreachable));
        assert!(!is_unavailable(BlockdKind::Ship, Kind::Unreachable));
        assert!(!is_unavailable(BlockdKind::Release, Kind::Refused));
    }
}
