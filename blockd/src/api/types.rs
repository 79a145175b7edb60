//! Bodies of requests and answers, version 1.
//!
//! Field names are a contract. Later versions may add fields to answers, so clients ignore fields that they do not
//! know; the server refuses unknown fields in requests, for they would be promises that it does not keep. Numbers
//! are bytes, milliseconds or counts.

use serde::{Deserialize, Serialize};

pub use local_api::error::{ErrorAnswer, ErrorBody, Kind};

use super::connections::ConnectionInfo;
use crate::control::{ControlError, ErrorKind, SnapshotInfo, StoreStatus, VolumeInfo};
use crate::nbd_door::{NbdLimits, TemporaryExport};
use crate::service::{DiffExtent, RepairReport, Verdict, VerifyReport};

/// Items in one answer of a list, at most and if not asked for fewer.
pub const PAGE_ITEMS_MAX: usize = 1000;

/// `POST /v1/volumes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// The volume's name.
    pub name: String,
    /// Bytes, a multiple of 512.
    pub size: u64,
}

/// `POST /v1/volumes/{name}/resize`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Bytes, a multiple of 512, not less than now.
    pub size: u64,
}

/// `POST /v1/volumes/{name}/rename` and `POST /v1/snapshots/{name}/clone`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewName {
    /// The new volume's name.
    pub to: String,
}

/// `POST /v1/snapshots`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshots {
    /// `VOLUME@SNAPSHOT` each: one cut through all of them.
    pub names: Vec<String>,
}

/// `POST /v1/snapshots/{name}/hold` and `…/release`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Why it must not be deleted; a name.
    pub reason: String,
}

/// `POST /v1/scrub`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrub {
    /// Only this volume's snapshots; all if missing.
    #[serde(default)]
    pub volume: Option<String>,
    /// What is damaged is repaired with what paired hosts have of it.
    #[serde(default)]
    pub repair: bool,
    /// Only that host is asked; if missing, those that are known to have it.
    #[serde(default)]
    pub from: Option<String>,
}

/// Query of the lists: `?after=…&limit=…`, and `volume=` for snapshots.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PageQuery {
    /// From the last answer's `next`.
    pub after: Option<String>,
    /// Items at most; 1 to [`PAGE_ITEMS_MAX`].
    pub limit: Option<usize>,
    /// Of which volume (snapshots only).
    pub volume: Option<String>,
}

/// Query of `GET /v1/diff`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffQuery {
    /// The earlier snapshot; missing: nothing, so that everything allocated differs.
    pub from: Option<String>,
    /// The later snapshot.
    pub to: String,
}

/// Query of `GET /v1/events`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    /// Events after this number; 0 or missing: all that are kept.
    pub after: Option<u64>,
    /// How long to wait for one if there is none, at most 60000.
    pub wait_ms: Option<u64>,
}

/// The answer to a command that changes something: it is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always true; failures are errors.
    pub done: bool,
}

/// `GET /v1/volumes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volumes {
    /// By name.
    pub volumes: Vec<VolumeInfo>,
    /// Ask for `after=` this for more; missing on the last page.
    pub next: Option<String>,
}

/// `GET /v1/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshots {
    /// Oldest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// Ask for `after=` this for more; missing on the last page.
    pub next: Option<String>,
}

/// `GET /v1/exports`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exports {
    /// By name: each volume, then its snapshots.
    pub exports: Vec<ExportInfo>,
    /// Ask for `after=` this for more; missing on the last page.
    pub next: Option<String>,
}

/// What an NBD client can open, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportInfo {
    /// The export's name: `VOLUME` or `VOLUME@SNAPSHOT`.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Snapshots are.
    pub read_only: bool,
    /// Clients connected.
    pub clients: u64,
    /// Path of the daemon's NBD socket, if it has one.
    pub unix: Option<String>,
    /// `ADDR:PORT` of the daemon's NBD port, if it has one.
    pub tcp: Option<String>,
    /// How to open it, as an NBD URI; missing when the daemon listens nowhere that it knows of, and when its name is a
    /// secret.
    pub uri: Option<String>,
    /// It is one for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temporary: Option<TemporaryExport>,
    /// Who is connected to it; in `GET /v1/exports/{name}` only, and at most 1000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub connections: Vec<ConnectionInfo>,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's program version.
    pub version: String,
    /// Milliseconds since 1970, UTC: when the daemon started.
    pub started_ms: u64,
    /// Milliseconds since 1970, UTC: now.
    pub now_ms: u64,
    /// The store.
    pub store: StoreStatus,
    /// Bounds of NBD clients.
    #[serde(default)]
    pub nbd_limits: NbdLimits,
    /// What is wrong with the certificates for NBD over TCP; the last good ones are in use. Missing: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbd_tls_trouble: Option<String>,
}

/// `POST /v1/snapshots/{name}/pin`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinnedSnapshot {
    /// For `DELETE /v1/pins/{pin}`.
    pub pin: u64,
    /// Numbers of its layers, newest first.
    pub chain: Vec<u32>,
    /// Bytes.
    pub size: u64,
}

/// One line of a long-running answer (`application/x-ndjson`). The last line is `end` or `error`; an answer without
/// either was cut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A changed extent (diff).
    Extent(DiffExtent),
    /// How far it is (hash, verify, scrub); at most four a second.
    Progress(Progress),
    /// One snapshot was read (scrub).
    Scrubbed(Scrubbed),
    /// The last line: the result.
    End(End),
    /// The last line: it failed.
    Error(ErrorBody),
}

/// How far a long-running request is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
    /// What is being read: `VOLUME@SNAPSHOT`.
    pub name: String,
}

/// What a scrub found in one snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrubbed {
    /// `VOLUME@SNAPSHOT`.
    pub name: String,
    /// What was found; missing if it could not be read.
    pub report: Option<VerifyReport>,
    /// Why it could not be read, or not be repaired.
    pub error: Option<ErrorBody>,
    /// What came of the repair; missing if none was asked for or needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<RepairReport>,
}

impl Scrubbed {
    /// Whether all is as it was written, by now.
    pub fn is_sound(&self) -> bool {
        let repaired = self.repair.as_ref().is_some_and(|repair| repair.failed.is_empty());
        let sound = |report: &VerifyReport| report.damaged.is_empty() || repaired;
        self.error.is_none() && self.report.as_ref().is_some_and(sound)
    }
}

/// The result of a long-running request: the fields that make sense for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Extents sent (diff), or snapshots read (scrub).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes in those extents (diff).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// What was read: `VOLUME@SNAPSHOT` (verify of a replica).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// BLAKE3 of the content, 64 hexadecimal digits (hash; verify of a replica that is not damaged: of what was read).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// What was found (verify).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<VerifyReport>,
    /// Snapshots that are damaged or could not be read (scrub).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<u64>,
    /// Bytes that were repaired (scrub).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repaired_bytes: Option<u64>,
    /// What it comes to (verify of a replica).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// What came of the repair (verify of a replica); missing if none was asked for or needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<RepairReport>,
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::BadName => Self::BadName,
            ErrorKind::BadValue => Self::BadValue,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::Exists => Self::Exists,
            ErrorKind::Busy => Self::Busy,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::NoSpace => Self::NoSpace,
            ErrorKind::Io => Self::Io,
            ErrorKind::Damaged => Self::Damaged,
            ErrorKind::Stopping => Self::Stopping,
            ErrorKind::Stale => Self::Stale,
        }
    }
}

impl From<ControlError> for ErrorBody {
    fn from(error: ControlError) -> Self {
        Self::new(error.kind.into(), error.message)
    }
}

/// 32 bytes as 64 hexadecimal digits.
pub fn hex(bytes: &[u8; 32]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
