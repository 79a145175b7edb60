//! What volumes and snapshots are to other hosts (docs/replication.md, "What the store keeps").

use serde::{Deserialize, Serialize};

use super::decode::{Fault, Reader};
use super::encode::text;
use crate::units::{HostId, Lineage, SnapshotId, SnapshotUid};

/// Who may write to a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// This host's clients.
    #[default]
    Primary,
    /// Nobody: it follows another host.
    Replica,
}

/// When a snapshot was taken, among all of its lineage: a replica never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Of the volume where it was taken.
    pub epoch: u64,
    /// The snapshot's number on the host where it was taken.
    pub sequence: u64,
}

/// Key `14`: what a volume is to other hosts. A volume without one has never been a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    /// Shared with the volume at the other host.
    pub lineage: Lineage,
    /// Counts promotions.
    pub epoch: u64,
    /// Who may write.
    pub role: Role,
    /// The only host that may send snapshots.
    pub peer: HostId,
    /// It was written to here, by nobody else: the first snapshot that comes moves that aside.
    pub diverged: bool,
    /// The newest snapshot that came and was found right.
    pub published: Option<SnapshotId>,
    /// Of that snapshot, also when it is gone.
    pub point: Point,
    /// What is on its way.
    pub receiving: Option<ReceivingRecord>,
}

/// A snapshot that is on its way. The volume's head holds what has come of it, over the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivingRecord {
    /// Which.
    pub uid: SnapshotUid,
    /// Random: names this attempt.
    pub token: [u8; 16],
    /// When it was taken.
    pub point: Point,
    /// What the head began as; `None`: zeroes.
    pub base: Option<SnapshotId>,
    /// Bytes of the volume then.
    pub size: u64,
    /// Milliseconds since 1970, UTC, at the host where it was taken.
    pub created_ms: u64,
    /// What it will be called.
    pub name: String,
    /// Clusters before this one are complete and durable.
    pub cursor: u64,
    /// All has come: this snapshot holds it, unseen until its root was compared.
    pub staged: Option<SnapshotId>,
}

/// Key `15`: a snapshot that came from another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginRecord {
    /// Its identity there, and here.
    pub uid: SnapshotUid,
    /// When it was taken.
    pub point: Point,
}

fn number(snapshot: Option<SnapshotId>) -> [u8; 4] {
    snapshot.map_or(0, |id| id.0).to_be_bytes()
}

impl Point {
    fn encode(self, value: &mut Vec<u8>) {
        value.extend(self.epoch.to_be_bytes());
        value.extend(self.sequence.to_be_bytes());
    }
}

impl LinkRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = self.lineage.0.to_vec();
        value.extend(self.epoch.to_be_bytes());
        value.push(u8::from(self.role == Role::Replica));
        value.extend(self.peer.0);
        value.push(u8::from(self.diverged));
        value.extend(number(self.published));
        self.point.encode(&mut value);
        value.push(u8::from(self.receiving.is_some()));
        if let Some(receiving) = &self.receiving {
            receiving.encode(&mut value);
        }
        value
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self, Fault> {
        let mut value = Reader(value);
        let record = Self {
            lineage: Lineage(value.take()?),
            epoch: value.u64()?,
            role: if value.flag()? { Role::Replica } else { Role::Primary },
            peer: HostId(value.take()?),
            diverged: value.flag()?,
            published: value.snapshot_number()?,
            point: value.point()?,
            receiving: if value.flag()? { Some(ReceivingRecord::decode(&mut value)?) } else { None },
        };
        value.end(record)
    }
}

impl ReceivingRecord {
    fn encode(&self, value: &mut Vec<u8>) {
        value.extend(self.uid.0);
        value.extend(self.token);
        self.point.encode(value);
        value.extend(number(self.base));
        value.extend(self.size.to_be_bytes());
        value.extend(self.created_ms.to_be_bytes());
        value.extend(self.cursor.to_be_bytes());
        value.extend(number(self.staged));
        text(value, &self.name);
    }

    fn decode(value: &mut Reader<'_>) -> Result<Self, Fault> {
        Ok(Self {
            uid: SnapshotUid(value.take()?),
            token: value.take()?,
            point: value.point()?,
            base: value.snapshot_number()?,
            size: value.u64()?,
            created_ms: value.u64()?,
            cursor: value.u64()?,
            staged: value.snapshot_number()?,
            name: value.text()?,
        })
    }
}

impl OriginRecord {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut value = self.uid.0.to_vec();
        self.point.encode(&mut value);
        value
    }

    pub(super) fn decode(value: &[u8]) -> Result<Self, Fault> {
        let mut value = Reader(value);
        let record = Self { uid: SnapshotUid(value.take()?), point: value.point()? };
        value.end(record)
    }
}

impl Reader<'_> {
    fn flag(&mut self) -> Result<bool, Fault> {
        match self.take()? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => Err("has a flag that is neither 0 nor 1"),
        }
    }

    fn snapshot_number(&mut self) -> Result<Option<SnapshotId>, Fault> {
        let number = self.u32()?;
        Ok((number != 0).then_some(SnapshotId(number)))
    }

    fn point(&mut self) -> Result<Point, Fault> {
        Ok(Point { epoch: self.u64()?, sequence: self.u64()? })
    }
}
