//! Moves of volumes between hosts: who may write (docs/migration.md, "What blockd records").

use serde::{Deserialize, Serialize};

use super::decode::{Fault, Reader};
use crate::units::{HostId, MoveId, SnapshotId, SnapshotUid};

/// Key `16`: the last move of a volume. It stays when the move has ended, so that whoever asks later learns how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoveRecord {
    /// Which.
    pub id: MoveId,
    /// The other host.
    pub peer: HostId,
    /// How far it has come on this host.
    pub stage: Stage,
    /// In which the volume is released, or is going to be owned.
    pub epoch: u64,
    /// Snapshots from this number on were taken since it was frozen; 0 at the destination.
    pub since: SnapshotId,
    /// What changed hands; of `Released` and `Owned`.
    pub handover: Option<Handover>,
}

/// How far a move has come.
///
/// ```text
///  source:       Frozen ──release──► Released        destination:  Expected ──own──► Owned
///                   └─────abort────► Aborted                           └────abort──► Aborted
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Source: writes are held for a short time, then refused.
    Frozen,
    /// Source: the volume is the other host's. **The commit record of a move; final.**
    Released,
    /// Destination: clients may connect and read; their writes are refused.
    Expected,
    /// Destination: the volume is this host's. Final.
    Owned,
    /// Either: as if there had been no move. Final.
    Aborted,
}

/// The content that a volume changed hands with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The snapshot, the same on both hosts.
    pub uid: SnapshotUid,
    /// BLAKE3 of its content, as `b3sum` of the raw image says.
    pub root: [u8; 32],
}

const STAGES: [Stage; 5] = [Stage::Frozen, Stage::Released, Stage::Expected, Stage::Owned, Stage::Aborted];

impl MoveRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = self.id.0.to_vec();
        value.extend(self.peer.0);
        let stage = STAGES.iter().position(|stage| *stage == self.stage).expect("all stages are there");
        value.push(u8::try_from(stage).expect("few"));
        value.extend(self.epoch.to_be_bytes());
        value.extend(self.since.0.to_be_bytes());
        value.push(u8::from(self.handover.is_some()));
        if let Some(Handover { uid, root }) = &self.handover {
            value.extend(uid.0);
            value.extend(root);
        }
        value
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self, Fault> {
        let mut value = Reader(value);
        let (id, peer) = (MoveId(value.take()?), HostId(value.take()?));
        let [stage] = value.take()?;
        let stage = *STAGES.get(usize::from(stage)).ok_or("has a stage that there is not")?;
        let (epoch, since) = (value.u64()?, SnapshotId(value.u32()?));
        let handover = match value.take()? {
            [0] => None,
            [1] => Some(Handover { uid: SnapshotUid(value.take()?), root: value.take()? }),
            _ => return Err("has a flag that is neither 0 nor 1"),
        };
        if handover.is_some() != matches!(stage, Stage::Released | Stage::Owned) {
            return Err("has changed hands, or has not, against its stage");
        }
        value.end(Self { id, peer, stage, epoch, since, handover })
    }
}
