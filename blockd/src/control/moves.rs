//! Commands of moves: which host may write to a volume (docs/migration.md, "What blockd records").
//!
//! All volumes of a move change together, in one commit, and a command that is given twice changes nothing the second
//! time. What is answered is durable.

use crate::catalog::format::{Handover, Role, Stage};
use crate::control::SnapshotName;
use crate::units::{HostId, MoveId};

/// Volumes of one move, at most.
pub const MOVE_VOLUMES_MAX: usize = 64;

/// A command of a move.
#[derive(Clone, Debug)]
pub enum Move {
    /// Source: from now on changes are held for a short time, then refused, until the move has ended. Answer: `Done`.
    Freeze {
        /// Which move.
        id: MoveId,
        /// The host that the volumes go to.
        peer: HostId,
        /// By name.
        volumes: Vec<String>,
    },
    /// Source: the volumes are the other host's. **The commit record**: nothing brings them back but another move.
    /// Answer: `Done`.
    Release {
        /// Which move.
        id: MoveId,
        /// For each volume the snapshot that holds all that was ever answered, taken since it was frozen, and its root.
        snapshots: Vec<(SnapshotName, [u8; 32])>,
    },
    /// Destination: replicas of the source's volumes are going to be this host's. Clients may connect to `NAME:EPOCH`
    /// of the next epoch already, and read the newest snapshot; what they write is refused. Answer: `Done`.
    Expect {
        /// Which move.
        id: MoveId,
        /// The host that the volumes come from.
        peer: HostId,
        /// By name.
        volumes: Vec<String>,
    },
    /// Destination: the volumes are this host's, in the epoch expected. Whoever asks knows that the source has released
    /// them. Answer: `Done`.
    Own {
        /// Which move.
        id: MoveId,
        /// What the source has released.
        volumes: Vec<Handed>,
    },
    /// Either: the move has failed, and everything is as before. Refused once the volumes were released or owned.
    /// Answer: `Done`.
    Abort {
        /// Which move.
        id: MoveId,
        /// The other host, and the volumes that the move was to be of: if it has not begun, it never will, so that what is
        /// still on its way comes too late. Without: a move that has not begun is an error.
        of: Option<(HostId, Vec<String>)>,
    },
    /// Answer: `Moved`, when all that it tells is durable.
    Show {
        /// Which move; `None`: the last one of each volume.
        id: Option<MoveId>,
    },
}

/// A volume that was released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// Its name at the destination.
    pub volume: String,
    /// In which it will be owned.
    pub epoch: u64,
    /// Its content.
    pub handover: Handover,
}

/// A volume's last move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MovedVolume {
    /// Its name.
    pub name: String,
    /// Which move.
    pub id: MoveId,
    /// The other host.
    pub peer: HostId,
    /// How far it has come here.
    pub stage: Stage,
    /// In which it is released, or going to be owned.
    pub epoch: u64,
    /// What changed hands, if it did.
    pub handover: Option<Handover>,
    /// Who may write to it now.
    pub role: Role,
    /// The epoch that it is in now.
    pub volume_epoch: u64,
}

impl Move {
    /// The move that it is of.
    pub fn id(&self) -> Option<MoveId> {
        match self {
            Self::Freeze { id, .. }
            | Self::Release { id, .. }
            | Self::Expect { id, .. }
            | Self::Own { id, .. }
            | Self::Abort { id, .. } => Some(*id),
            Self::Show { id } => *id,
        }
    }
}
