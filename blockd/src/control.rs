//! What can be asked of a running store: one typed command in, one answer out.
//!
//! Commands reach the store on its reactor's thread, through a queue and a waker; whoever asked waits for the
//! answer. Every answer to a command that changes something is given when the change is durable.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::catalog::format::{ReceivingRecord, Role, RootRecord};
use crate::units::{ClusterIndex, LayerId, SnapshotUid};

pub mod mirror;
pub mod moves;
pub mod replication;

use mirror::{Mirror, Mirrored, Mirroring};
use moves::{Move, MovedVolume};
use replication::{Replication, VolumeIdentity};

/// `VOLUME@SNAPSHOT`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotName {
    /// The volume's name.
    pub volume: String,
    /// The snapshot's name within it.
    pub snapshot: String,
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

/// Longest name of a volume or snapshot, bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Whether a volume or snapshot may be called that.
pub fn is_valid_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(legal) && !name.starts_with(['.', '-'])
}

impl FromStr for SnapshotName {
    type Err = ControlError;

    fn from_str(text: &str) -> Result<Self, ControlError> {
        let bad = || ControlError::new(ErrorKind::BadName, format!("{text:?} is not VOLUME@SNAPSHOT"));
        let (volume, snapshot) = text.split_once('@').ok_or_else(bad)?;
        if !is_valid_name(volume) || !is_valid_name(snapshot) {
            return Err(bad());
        }
        Ok(Self { volume: volume.to_owned(), snapshot: snapshot.to_owned() })
    }
}

/// A command.
#[derive(Clone, Debug)]
pub enum Control {
    /// A thin volume of zeroes; size in bytes, a multiple of 512. Answer: `Done`.
    CreateVolume {
        /// Must be free.
        name: String,
        /// Bytes.
        size: u64,
    },
    /// Grow. Clients that are connected see the old size until they reconnect.
    ResizeVolume {
        /// Which.
        name: String,
        /// Bytes; not less than now.
        size: u64,
    },
    /// Refused while clients are connected.
    RenameVolume {
        /// The name now.
        from: String,
        /// The name then.
        to: String,
    },
    /// Refused while clients are connected, or while it has snapshots. Space is given back in the background.
    DeleteVolume {
        /// Which.
        name: String,
    },
    /// One cut through all the volumes named.
    CreateSnapshots {
        /// At most one for each volume.
        names: Vec<SnapshotName>,
    },
    /// Refused while it is held or its export has clients. Space is given back in the background.
    DeleteSnapshot {
        /// Which.
        name: SnapshotName,
    },
    /// The volume becomes what the snapshot holds; what was written since is gone. Later snapshots stay. Refused
    /// while clients are connected to the volume.
    Rollback {
        /// Which.
        name: SnapshotName,
    },
    /// A new volume that begins as the snapshot.
    Clone {
        /// Which.
        from: SnapshotName,
        /// The new volume's name.
        to: String,
    },
    /// Adds a reason not to delete the snapshot. Adding it twice is no error.
    Hold {
        /// Which.
        name: SnapshotName,
        /// The reason; a name.
        reason: String,
    },
    /// Takes a reason away.
    Release {
        /// Which.
        name: SnapshotName,
        /// The reason.
        reason: String,
    },
    /// Answer: `Volumes`.
    ListVolumes,
    /// Answer: `Snapshots`, oldest first; of one volume or of all.
    ListSnapshots {
        /// Of which volume.
        volume: Option<String>,
    },
    /// Answer: `Status`.
    Status,
    /// Keeps the layers of a snapshot from being merged, packed or dropped until `Unpin`. Answer: `Pinned`.
    Pin {
        /// Which.
        name: SnapshotName,
    },
    /// Answer: `Done`.
    Unpin {
        /// From `Pinned`.
        pin: u64,
    },
    /// Keeps hashes that were computed of closed layers, while these are pinned. Answer: `Done`, when they are durable.
    KeepHashes {
        /// From `Pinned`.
        pin: u64,
        /// Of clusters.
        hashes: Vec<(LayerId, ClusterIndex, [u8; 32])>,
        /// Of whole layers.
        roots: Vec<(LayerId, RootRecord)>,
    },
    /// See [`Replication`].
    Replication(Replication),
    /// See [`Move`].
    Move(Move),
    /// See [`mirror`].
    Mirror(Mirror),
}

/// An answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// The change is durable.
    Done,
    /// To `ListVolumes`, by name.
    Volumes(Vec<VolumeInfo>),
    /// To `ListSnapshots`.
    Snapshots(Vec<SnapshotInfo>),
    /// To `Status`.
    Status(Box<StoreStatus>),
    /// To `Pin` and `PinStaged`.
    Pinned(Pinned),
    /// To `Identify`, by name.
    Identities(Vec<VolumeIdentity>),
    /// To `Locate`.
    Located(Vec<(SnapshotUid, SnapshotName)>),
    /// To `Receive`.
    Receiving(Box<ReceivingRecord>),
    /// To `Show` and `List` of moves.
    Moved(Vec<MovedVolume>),
    /// To `Begin` of mirrors.
    Mirroring(Mirroring),
    /// To `Take`.
    Mirrored(Mirrored),
}

/// A snapshot whose layers stay as they are until it is unpinned.
#[derive(Clone, Debug)]
pub struct Pinned {
    /// For `Unpin`.
    pub pin: u64,
    /// Its layers, newest first, down to the one without a parent.
    pub chain: Vec<LayerId>,
    /// Bytes.
    pub size: u64,
}

/// A volume, for people and scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name, and its export's.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of data that it shows, its snapshots' share included; `None` until its map was loaded.
    pub mapped_bytes: Option<u64>,
    /// Bytes of the pool that its head layer owns; freed if it were deleted. `None` until its map was loaded.
    pub own_bytes: Option<u64>,
    /// Snapshots that it has.
    pub snapshots: u64,
    /// Clients connected.
    pub clients: u64,
    /// The snapshot that it was cloned from or rolled back to and still shares data with, if that exists.
    pub origin: Option<String>,
    /// Milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// See [`Health`].
    pub health: Health,
    /// Who may write to it.
    #[serde(default)]
    pub role: Role,
    /// Counts changes of who may write; the first one is 1.
    #[serde(default)]
    pub epoch: u64,
}

/// Whether a volume can be trusted with writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// A sync has failed: nothing written since the last good FLUSH is promised, FLUSH and FUA fail until the
    /// daemon was restarted.
    SyncFailed,
    /// Its map cannot be read; nothing is served.
    Damaged,
}

/// A snapshot, for people and scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// The volume's name.
    pub volume: String,
    /// Its own.
    pub name: String,
    /// Its place among all snapshots: later ones have greater numbers.
    pub sequence: u64,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// Reasons not to delete it.
    pub holds: Vec<String>,
    /// Volumes that were cloned from it and still share data with it.
    pub clones: Vec<String>,
    /// Clients of its read-only export.
    pub clients: u64,
    /// What it is on every host: 32 hexadecimal digits.
    #[serde(default)]
    pub uid: String,
}

/// The store as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Bytes that the pool may hold.
    pub pool_bytes: u64,
    /// Bytes in use, by whatever.
    pub used_bytes: u64,
    /// Bytes freed that wait for a commit or for reads under way.
    pub pending_free_bytes: u64,
    /// The last durable commit.
    pub commit: u64,
    /// Map records that wait for the next commit.
    pub uncommitted: u64,
    /// Layers of deleted snapshots and volumes that are still to be merged or dropped.
    pub layers_to_reclaim: u64,
    /// Volumes.
    pub volumes: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Clients connected.
    pub clients: u64,
    /// Counters since the start, of all volumes.
    pub counters: Counters,
    /// What is answered and not flushed survives a killed daemon: its successor finds the recent log.
    pub recent_log: bool,
    /// The worst of all volumes'.
    pub health: Health,
}

/// What was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    pub zeroes: u64,
    pub flushes: u64,
    pub commits: u64,
    pub syncs: u64,
    pub errors: u64,
}

/// A refusal or failure; the text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ControlError {
    /// What kind, for programs.
    pub kind: ErrorKind,
    /// What and why, one line.
    pub message: String,
}

impl ControlError {
    /// An error of that kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Kinds of errors; stable, scripts see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A name that is none.
    BadName,
    /// A size or another number that cannot be.
    BadValue,
    /// There is no such volume or snapshot.
    NotFound,
    /// The name is taken.
    Exists,
    /// Clients are connected, or another operation holds it.
    Busy,
    /// A hold, a snapshot or a clone forbids it.
    Refused,
    /// The pool or the metadata has no room.
    NoSpace,
    /// The medium failed.
    Io,
    /// What is stored is not what was written.
    Damaged,
    /// The daemon is stopping.
    Stopping,
    /// What another host sends is older than what is here, or its epoch is.
    Stale,
}
