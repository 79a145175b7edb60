//! What a move is about, and what blockd's records say of it.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::ids::{Digest, Epoch, MoveId, Name, Root, SnapshotUid};

/// Volumes of a VM, at most.
pub const VOLUMES_MAX: usize = 32;

/// What both sides agree on before anything happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The VM.
    pub vm: Name,
    /// Of its definition.
    pub digest: Digest,
    /// Its volumes; 1 to [`VOLUMES_MAX`].
    #[serde(deserialize_with = "some_volumes")]
    pub volumes: Vec<Name>,
    /// In which the source owns them. All are at the same one: they move together.
    pub epoch: Epoch,
}

/// A move, as the source's journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The move.
    pub id: MoveId,
    /// What is moved.
    pub plan: Plan,
}

/// The last snapshot of a volume at the source: what the destination has to show when it takes the volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FinalSnapshot {
    /// The volume.
    pub volume: Name,
    /// The snapshot.
    pub uid: SnapshotUid,
    /// Of its content.
    pub root: Root,
}

/// What the commit record says: the source has given the volumes away.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    /// The source's last epoch; the destination owns the next one.
    pub epoch: Epoch,
    /// One for each volume.
    #[serde(deserialize_with = "some_snapshots")]
    pub snapshots: Vec<FinalSnapshot>,
}

impl Plan {
    /// Whether `snapshots` are one of each volume of the plan.
    pub fn fits(&self, snapshots: &[FinalSnapshot]) -> bool {
        snapshots.len() == self.volumes.len()
            && self.volumes.iter().all(|volume| snapshots.iter().any(|snapshot| snapshot.volume == *volume))
    }
}

/// How far a move is, as blockd has it durably. A later stage is never followed by an earlier one of the same move, and
/// `Released`, `Owned` and `Aborted` are the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The record does not know the move (or another one came after it, which only begins when this one has ended).
    Absent,
    /// Source: writes are held, then refused; snapshots can be cut.
    Frozen,
    /// Source: THE COMMIT RECORD. The volumes are the destination's.
    Released,
    /// Destination: a replica whose export is open, and refuses writes.
    Expected,
    /// Destination: it takes writes, in the next epoch.
    Owned,
    /// Either: the move is undone. Later operations of this move are refused.
    Aborted,
}

/// What a blockd says of a move.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// How far it is.
    pub stage: Stage,
    /// Of the volumes, now. Several are given as the highest one.
    pub epoch: Epoch,
    /// `Released`, `Owned`: what was named. Else nothing.
    pub snapshots: Vec<FinalSnapshot>,
}

fn some_volumes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Name>, D::Error> {
    some(Vec::deserialize(deserializer)?, |volume| volume)
}

fn some_snapshots<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<FinalSnapshot>, D::Error> {
    some(Vec::deserialize(deserializer)?, |snapshot: &FinalSnapshot| &snapshot.volume)
}

/// One at least, [`VOLUMES_MAX`] at most, each volume once.
fn some<T, E: de::Error>(values: Vec<T>, volume: impl Fn(&T) -> &Name) -> Result<Vec<T>, E> {
    if values.is_empty() || values.len() > VOLUMES_MAX {
        return Err(E::custom(format_args!("{} volumes, 1 to {VOLUMES_MAX} expected", values.len())));
    }
    for (place, value) in values.iter().enumerate() {
        if values[..place].iter().any(|other| volume(other) == volume(value)) {
            return Err(E::custom(format_args!("volume {} named twice", volume(value))));
        }
    }
    Ok(values)
}
