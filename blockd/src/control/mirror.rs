//! Commands of write mirroring, and what they are answered (docs/replication.md, "Mirroring").
//!
//! A volume that is mirrored answers a client's change when the other host has it, too. Whoever carries the changes there
//! takes them in batches, says when they are written, and names the mirror that he means: what one that has ended is
//! told changes nothing.

use crate::control::SnapshotName;
use crate::units::{ClusterIndex, SnapshotUid};

/// Names one mirror of this daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MirrorId(pub u64);

/// A command of mirroring.
#[derive(Clone, Debug)]
pub enum Mirror {
    /// Mirrors a volume from now on, to a host that has the snapshot: the volume's newest. Answer: `Mirroring`.
    Begin {
        /// The volume's name.
        volume: String,
        /// Which snapshot.
        base: SnapshotUid,
    },
    /// What is to be sent next. Answer: `Mirrored`, when there is something.
    Take {
        /// Of which mirror.
        id: MirrorId,
    },
    /// The other host has a batch. Answer: `Done`.
    Written {
        /// Of which mirror.
        id: MirrorId,
        /// Which.
        batch: u64,
    },
    /// A snapshot of each volume, cut where the mirrors have everything that is in it and nothing else. They take no
    /// batches until they are told to `GoOn`. Answer: `Done`, when it is durable.
    Cut {
        /// One of each volume, all of them mirrored and in sync.
        names: Vec<SnapshotName>,
    },
    /// The other host shows the snapshot. Answer: `Done`.
    GoOn {
        /// Which mirror.
        id: MirrorId,
    },
    /// Who waits is answered; the volume is as others are. Answer: `Done`.
    End {
        /// Which mirror.
        id: MirrorId,
    },
}

/// Answer to `Begin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirroring {
    /// Names it.
    pub id: MirrorId,
    /// Clusters that differ from the base already.
    pub backlog: u64,
}

/// Blocks of one cluster, side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRun {
    /// Which cluster.
    pub cluster: ClusterIndex,
    /// The first block in it.
    pub first: u8,
    /// What they hold.
    pub content: MirrorContent,
}

/// See [`MirrorRun`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorContent {
    /// Whole blocks; the last one of a volume is filled up with zeroes.
    Data(Vec<u8>),
    /// So many blocks of zeroes.
    Zero(u32),
}

/// Answer to `Take`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mirrored {
    /// To be written, in whatever order.
    Batch {
        /// Names it; counts.
        batch: u64,
        /// In order of their places; no place twice.
        runs: Vec<MirrorRun>,
        /// Clusters that differed from the base when the mirror began and have not been taken.
        backlog: u64,
    },
    /// All that was taken so far, and no more, is the snapshot.
    Cut {
        /// Which.
        name: SnapshotName,
        /// The volume is frozen: it is the last one.
        last: bool,
    },
}
