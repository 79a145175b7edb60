//! The goals: the rows of the table that a comparison answers, in its order.
//!
//! A goal is what a reader looks for; a target is one bound that belongs to it. Targets of replication and of moves
//! belong to no row here.

use serde::{Serialize, Serializer};

/// A row of the table of goals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// 4 KiB random reads, many in flight.
    RandomReads,
    /// 4 KiB random writes, many in flight.
    RandomWrites,
    /// 4 KiB, one at a time.
    OneAtATime,
    /// Several connections of one client.
    Connections,
    /// What one disk of QEMU can ask.
    OneDisk,
    /// Large sequential requests.
    Sequential,
    /// Past the page cache.
    Direct,
    /// FLUSH after each write, and by several clients.
    Flush,
    /// First writes after a snapshot.
    FirstWrites,
    /// Reads below many snapshots.
    DeepReads,
    /// Snapshots under load.
    SnapshotCalls,
    /// Deletion of a snapshot under load.
    Deletion,
    /// Bytes that snapshots take.
    Space,
    /// Time until a large store serves.
    StartUp,
    /// Memory of a large store.
    Memory,
}

impl Goal {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 15] = [
        Self::RandomReads,
        Self::RandomWrites,
        Self::OneAtATime,
        Self::Connections,
        Self::OneDisk,
        Self::Sequential,
        Self::Direct,
        Self::Flush,
        Self::FirstWrites,
        Self::DeepReads,
        Self::SnapshotCalls,
        Self::Deletion,
        Self::Space,
        Self::StartUp,
        Self::Memory,
    ];

    /// The row's first column.
    pub fn title(self) -> &'static str {
        match self {
            Self::RandomReads => "4k random read, depth 64, cached",
            Self::RandomWrites => "4k random write, depth 64, cached",
            Self::OneAtATime => "4k at depth 1, read and write",
            Self::Connections => "4 connections x depth 16",
            Self::OneDisk => "16 in flight on one connection",
            Self::Sequential => "256k and 1m sequential",
            Self::Direct => "direct class",
            Self::Flush => "FLUSH: fsync=1 at depth 1; 4 jobs with fsync=32",
            Self::FirstWrites => "first 4k writes after a snapshot",
            Self::DeepReads => "reads after 0, 1, 8, 32, 128 snapshots, 1 % rewritten between",
            Self::SnapshotCalls => "snapshot every 5 s under load",
            Self::Deletion => "snapshot deleted in the middle under load",
            Self::Space => "space",
            Self::StartUp => "start-up",
            Self::Memory => "memory",
        }
    }
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.title())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_unique() {
        for goal in Goal::ALL {
            let same = Goal::ALL.iter().filter(|other| other.title() == goal.title());
            assert_eq!(same.count(), 1, "{}", goal.title());
        }
    }
}
