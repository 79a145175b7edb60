//! Commands that replication gives, and what they are answered.
//!
//! The head of a replica is where the next snapshot is put together: no client sees it. A session first says what it
//! brings (`Receive`), writes it (`Apply`), makes its progress durable (`Confirm`), closes it (`Stage`), compares its
//! root, and shows it (`Publish`). All but the first name the attempt by its token: what a session that was given up
//! still sends changes nothing.

use crate::catalog::format::{Point, ReceivingRecord, Role};
use crate::control::SnapshotName;
use crate::units::{HostId, Lineage, SnapshotUid};

/// Names one attempt to bring a snapshot.
pub type ReceiveToken = [u8; 16];

/// What a session brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incoming {
    /// Whose content it is.
    pub lineage: Lineage,
    /// Who brings it.
    pub peer: HostId,
    /// The volume's name here, if it does not exist yet.
    pub volume: String,
    /// The snapshot.
    pub uid: SnapshotUid,
    /// When it was taken; its epoch is the volume's.
    pub point: Point,
    /// What it is called where it was taken.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970, UTC, when it was taken.
    pub created_ms: u64,
    /// A snapshot of this store, of whichever volume, that the differences are against; `None`: zeroes.
    pub base: Option<SnapshotUid>,
    /// For this attempt, if it is a new one. Random.
    pub token: ReceiveToken,
}

/// What is written to a replica's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patch {
    /// Bytes of data.
    Data {
        /// From the start of the volume.
        offset: u64,
        /// Not empty.
        bytes: Vec<u8>,
    },
    /// Zeroes.
    Zero {
        /// From the start of the volume.
        offset: u64,
        /// Bytes; not 0.
        length: u64,
    },
}

impl Patch {
    /// The bytes that it changes; `None`: it ends past all numbers.
    pub fn range(&self) -> Option<std::ops::Range<u64>> {
        let (offset, length) = match self {
            Self::Data { offset, bytes } => (*offset, bytes.len() as u64),
            Self::Zero { offset, length } => (*offset, *length),
        };
        Some(offset..offset.checked_add(length)?)
    }
}

/// The snapshot that what was mirrored has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which.
    pub uid: SnapshotUid,
    /// When it was taken.
    pub point: Point,
    /// What it is called where it was taken.
    pub name: String,
    /// Bytes: those of the attempt.
    pub size: u64,
    /// Milliseconds since 1970, UTC, when it was taken.
    pub created_ms: u64,
}

/// A command of replication.
#[derive(Clone, Debug)]
pub enum Replication {
    /// Answer: `Identities`, of all volumes, or of one by name.
    Identify {
        /// Of that volume only.
        volume: Option<String>,
    },
    /// Answer: `Identities`, of the volume of that lineage, if there is one; without its ancestors.
    Find {
        /// Which.
        lineage: Lineage,
    },
    /// Answer: `Located`, in the order in which they were asked for: those of the snapshots that there are here, as far
    /// as that host may know of them: it has sent them, or has what was sent from here.
    Locate {
        /// Which are wanted.
        uids: Vec<SnapshotUid>,
        /// Who wants to know.
        peer: HostId,
    },
    /// Begins an attempt, or goes on with one for the same snapshot over the same base. Answer: `Receiving`, when it is
    /// durable.
    Receive(Incoming),
    /// As `Receive`, of what changes at the source and is no snapshot yet: the uid names the attempt.
    ReceiveMirrored(Incoming),
    /// What was mirrored so far is that snapshot, and complete. Answer: `Done`, when that and all that was applied is durable.
    Mark {
        /// Of which volume.
        lineage: Lineage,
        /// Of the attempt.
        token: ReceiveToken,
        /// Which.
        mark: Mark,
    },
    /// Answer: `Done`, when all is written and read back as such; not when it is durable.
    Apply {
        /// Of which volume.
        lineage: Lineage,
        /// Of the attempt.
        token: ReceiveToken,
        /// Do not overlap.
        patches: Vec<Patch>,
    },
    /// Clusters before the cursor are complete. Answer: `Done`, when that and all that was applied is durable.
    Confirm {
        /// Of which volume.
        lineage: Lineage,
        /// Of the attempt.
        token: ReceiveToken,
        /// The first cluster that may not be complete.
        cursor: u64,
    },
    /// All has come: a cut, of which nobody is shown anything yet. Answer: `Done`, when it is durable.
    Stage {
        /// Of which volume.
        lineage: Lineage,
        /// Of the attempt.
        token: ReceiveToken,
    },
    /// As `Pin`, of what was staged.
    PinStaged {
        /// Of which volume.
        lineage: Lineage,
        /// Of the attempt.
        token: ReceiveToken,
    },
    /// What was staged is right: all of it is shown from now on, at one instant. Answer: `Done`, when it is durable.
    Publish {
        /// Volumes, and the attempts.
        staged: Vec<(Lineage, ReceiveToken)>,
    },
    /// What has come is thrown away. Answer: `Done`.
    Abandon {
        /// Of which volume.
        lineage: Lineage,
        /// Of the attempt.
        token: ReceiveToken,
    },
    /// A replica becomes a volume that clients write to, in a new epoch. What was on its way is thrown away.
    Promote {
        /// The volume's name.
        volume: String,
    },
    /// A volume becomes a replica of what another host has of it. Refused while clients are connected. What only this
    /// host has of it is moved aside when the first snapshot comes.
    Demote {
        /// The volume's name.
        volume: String,
        /// Who may send.
        peer: HostId,
    },
}

/// A volume, as other hosts know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeIdentity {
    /// Its name here.
    pub name: String,
    /// Shared with its replicas.
    pub lineage: Lineage,
    /// Counts promotions.
    pub epoch: u64,
    /// Who may write.
    pub role: Role,
    /// The host that may send snapshots; of a replica.
    pub peer: Option<HostId>,
    /// Bytes.
    pub size: u64,
    /// The newest snapshot that came and was found right; of a replica.
    pub published: Option<SnapshotName>,
    /// Of that, also when it is gone.
    pub point: Point,
    /// It holds what clients of this host have written to it before it was demoted, and has been sent nothing since.
    pub diverged: bool,
    /// What is on its way.
    pub receiving: Option<ReceivingRecord>,
    /// The base of what is on its way.
    pub receiving_base: Option<SnapshotUid>,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<SnapshotIdentity>,
    /// Snapshots of other volumes that it descends from, nearest first.
    pub ancestors: Vec<(SnapshotUid, SnapshotName)>,
}

/// A snapshot, as other hosts know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotIdentity {
    /// Its name here.
    pub name: String,
    /// The same everywhere.
    pub uid: SnapshotUid,
    /// When it was taken.
    pub point: Point,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970, UTC, when it was taken.
    pub created_ms: u64,
}
