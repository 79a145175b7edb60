//! Answers of blockd, as far as we look at them.

use serde::Deserialize;
use serde_json::Value;

use crate::cutover::ids::MoveId;
use crate::cutover::record::Stage;
use crate::error::Error;

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// blockd's version.
    pub version: String,
    /// The store.
    pub store: StoreInfo,
}

/// The store; bytes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct StoreInfo {
    /// Its size.
    pub pool_bytes: u64,
    /// In use.
    pub used_bytes: u64,
    /// `ok`, or what is wrong.
    pub health: String,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// NBD clients now.
    pub clients: u64,
    /// `ok`, `sync_failed` or `damaged`.
    pub health: String,
    /// `primary` or `replica`.
    pub role: String,
    /// Counts changes of who may write.
    pub epoch: u64,
}

impl VolumeInfo {
    /// Whether a guest can write to it, as far as blockd tells beforehand.
    pub fn is_writable(&self) -> bool {
        self.role == "primary" && self.health == "ok"
    }
}

/// What a volume is to other hosts.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VolumeRole {
    /// Its name.
    pub name: String,
    /// `primary` or `replica`.
    pub role: String,
    /// Counts promotions.
    pub epoch: u64,
    /// Shared with the same volume on other hosts.
    pub lineage: String,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotInfo {
    /// Its volume.
    pub volume: String,
    /// Its own name.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// When it was taken, in milliseconds since 1970.
    pub created_ms: u64,
    /// Its place among all snapshots of that host: later ones have greater numbers.
    pub sequence: u64,
    /// What it is on every host: 32 hexadecimal digits.
    pub uid: String,
    /// Reasons not to delete it.
    pub holds: Vec<String>,
    /// Volumes that were cloned from it.
    pub clones: Vec<String>,
    /// Clients that read it.
    pub clients: u64,
}

/// A page of `GET /v1/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SnapshotsPage {
    /// Oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// Where the next page begins.
    pub next: Option<String>,
}

/// `GET /v1/moves`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MovesInfo {
    /// The last move of each volume.
    pub moves: Vec<MoveInfo>,
}

/// `GET /v1/moves/{id}`: what blockd's record says of a move.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MoveInfo {
    /// Which.
    pub id: MoveId,
    /// How far it has come, of all its volumes.
    pub stage: Stage,
    /// Its volumes.
    pub volumes: Vec<MovedVolume>,
}

/// A volume of a move.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MovedVolume {
    /// Its name.
    pub name: String,
    /// In which it is released, or going to be owned.
    pub epoch: u64,
    /// The snapshot that it has changed hands with.
    pub uid: Option<String>,
    /// Of its content.
    pub root: Option<String>,
    /// The epoch that it is in now.
    pub volume_epoch: u64,
}

/// A line of `POST /v1/snapshots/{name}/hash`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HashLine {
    /// How far it is.
    Progress(Value),
    /// The hash.
    End(HashEnd),
    /// It cannot be had.
    Error(Error),
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct HashEnd {
    /// BLAKE3 of the content: 64 hexadecimal digits.
    pub hash: String,
}

/// `GET /v1/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct HostsInfo {
    /// This host.
    pub own: OwnHost,
    /// The paired ones.
    pub hosts: Vec<HostInfo>,
}

/// This host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct OwnHost {
    /// Its name.
    pub name: String,
    /// Its identity, in hex.
    pub id: String,
}

/// A paired host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct HostInfo {
    /// What it is called here.
    pub name: String,
    /// Its identity, in hex.
    pub id: String,
    /// Where it is.
    pub addresses: Vec<String>,
    /// Whether it is let in.
    pub trusted: bool,
}

/// A line of `POST /v1/sync`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncLine {
    /// A run began.
    Started(Value),
    /// How far it is.
    Progress(Value),
    /// A run ended.
    Ended(JobEnded),
    /// All have.
    End(SyncEnd),
    /// It did not even begin.
    Error(Error),
}

/// How a run ended at one target.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct JobEnded {
    /// The target.
    pub to: String,
    /// What was brought there: `snapshot`, `root`, `bytes_sent` …
    pub report: Option<Value>,
    /// Why not.
    pub error: Option<Error>,
}

/// The last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct SyncEnd {
    /// Targets that were not reached.
    pub failed: u64,
}

/// Mirrored volumes.
#[derive(Clone, Debug, Deserialize)]
pub struct MirrorsInfo {
    /// By volume; one that has ended until it is begun again.
    pub mirrors: Vec<MirrorInfo>,
}

/// A mirrored volume.
#[derive(Clone, Debug, Deserialize)]
pub struct MirrorInfo {
    /// The volume.
    pub volume: String,
    /// How far it is.
    pub stage: MirrorStage,
    /// Bytes on the wire.
    pub sent_bytes: u64,
    /// Why it has ended.
    pub reason: Option<String>,
}

/// How far a mirror is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MirrorStage {
    /// The other host is being asked.
    Connecting,
    /// What had changed before is on its way.
    CatchingUp,
    /// The other host has all that was answered.
    InSync,
    /// It is over.
    Ended,
}

/// How far a host is.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct HostDistance {
    /// Microseconds there and back.
    pub round_trip_us: u64,
}
