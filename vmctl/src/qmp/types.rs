//! What QEMU says, as far as we need it; unknown fields are let through, for every version adds some.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::text::shown;

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Version {
    /// 7 of 7.2.22.
    pub major: u32,
    /// 2 of 7.2.22.
    pub minor: u32,
    /// 22 of 7.2.22.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl Version {
    /// Whether it is that version or a later one.
    pub fn is_at_least(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

#[derive(Deserialize)]
pub(super) struct GreetingLine {
    #[serde(rename = "QMP")]
    pub(super) qmp: GreetingBody,
}

#[derive(Deserialize)]
pub(super) struct GreetingBody {
    pub(super) version: VersionInfo,
    #[serde(default)]
    pub(super) capabilities: Vec<String>,
}

/// `query-version`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct VersionInfo {
    /// The numbers.
    pub qemu: Version,
    /// The packager's words, as they came.
    #[serde(default)]
    pub package: String,
}

/// Something that QEMU tells by itself.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    /// Its name, as in `STOP`.
    #[serde(rename = "event")]
    pub name: String,
    /// What belongs to it; null if nothing does.
    #[serde(default)]
    pub data: Value,
    /// When, by QEMU's clock.
    pub timestamp: Timestamp,
}

/// QEMU's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Timestamp {
    /// Since 1970, UTC; -1: unknown.
    pub seconds: i64,
    /// Below a million; -1: unknown.
    pub microseconds: i64,
}

impl Timestamp {
    /// Microseconds since 1970; `None` if QEMU does not know.
    pub fn as_micros(self) -> Option<u64> {
        let micros = self.seconds.checked_mul(1_000_000)?.checked_add(self.microseconds)?;
        if self.seconds < 0 || self.microseconds < 0 { None } else { u64::try_from(micros).ok() }
    }
}

impl Event {
    /// A text among its data, escaped.
    pub fn text(&self, key: &str) -> Option<String> {
        self.data.get(key).and_then(Value::as_str).map(shown)
    }

    /// The status in a MIGRATION event.
    pub fn migration_status(&self) -> Option<&str> {
        (self.name == "MIGRATION").then(|| self.data.get("status").and_then(Value::as_str))?
    }
}

/// What the virtual machine as a whole does: QEMU's RunState.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// A debugger stopped it.
    Debug,
    /// It waits for an incoming migration.
    Inmigrate,
    /// It stopped on an error inside QEMU.
    InternalError,
    /// A disk failed, and the guest was stopped instead of being told.
    IoError,
    /// Stopped by `stop`, or loaded and not continued.
    Paused,
    /// Its migration has completed.
    Postmigrate,
    /// Started with -S.
    Prelaunch,
    /// Stopped at the end of its migration.
    FinishMigrate,
    /// A snapshot is being loaded.
    RestoreVm,
    /// The guest's processors run.
    Running,
    /// A snapshot is being saved.
    SaveVm,
    /// The guest has powered off (QEMU runs with -no-shutdown).
    Shutdown,
    /// The guest sleeps.
    Suspended,
    /// A watchdog stopped it.
    Watchdog,
    /// The guest's kernel panicked.
    GuestPanicked,
    /// Two QEMUs in lockstep.
    Colo,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// `query-status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct StatusInfo {
    /// What it does.
    pub status: RunState,
    /// Whether the guest's processors run.
    pub running: bool,
}

/// `query-kvm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct KvmInfo {
    /// It is used.
    pub enabled: bool,
    /// QEMU knows of it.
    pub present: bool,
}

/// One of `query-machines`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MachineInfo {
    /// Its name, versioned: `pc-q35-7.2`.
    pub name: String,
    /// A shorter name that means this one in this version of QEMU.
    #[serde(default)]
    pub alias: Option<String>,
}

/// One of `query-migrate-capabilities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationCapability {
    /// Its name, as in `return-path`.
    pub capability: String,
    /// Whether it is on.
    pub state: bool,
}

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// None was asked for.
    None,
    /// Connecting.
    Setup,
    /// Being cancelled.
    Cancelling,
    /// Cancelled.
    Cancelled,
    /// Memory is on its way.
    Active,
    /// Post-copy.
    PostcopyActive,
    /// Post-copy, connection lost.
    PostcopyPaused,
    /// Post-copy, being recovered.
    PostcopyRecover,
    /// All is sent, and with return-path loaded.
    Completed,
    /// It failed.
    Failed,
    /// The guest is stopped, and QEMU waits for `migrate-continue`.
    PreSwitchover,
    /// Device state is on its way.
    Device,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

/// `query-migrate`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct MigrationInfo {
    /// Missing: none was asked for.
    pub status: Option<MigrationStatus>,
    /// Memory.
    pub ram: Option<MigrationRam>,
    /// Milliseconds since its start.
    #[serde(rename = "total-time")]
    pub total_time_ms: Option<u64>,
    /// Milliseconds for which QEMU says the guest was stopped.
    #[serde(rename = "downtime")]
    pub downtime_ms: Option<u64>,
    /// Milliseconds that stopping is expected to take.
    #[serde(rename = "expected-downtime")]
    pub expected_downtime_ms: Option<u64>,
    /// Why it failed, as it came: escape it before it is shown.
    #[serde(rename = "error-desc")]
    pub error: Option<String>,
}

/// Memory of a migration; bytes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct MigrationRam {
    /// Sent so far.
    pub transferred: u64,
    /// Still to be sent.
    pub remaining: u64,
    /// The guest's memory.
    pub total: u64,
    /// Pages the guest dirties a second.
    #[serde(rename = "dirty-pages-rate", default)]
    pub dirty_pages_rate: u64,
    /// Bytes of a page.
    #[serde(rename = "page-size", default)]
    pub page_size: u64,
    /// Of what was sent, through connections of multifd.
    #[serde(rename = "multifd-bytes", default)]
    pub multifd_bytes: u64,
    /// Passes over the memory.
    #[serde(rename = "dirty-sync-count", default)]
    pub passes: u64,
    /// Megabits a second.
    #[serde(default)]
    pub mbps: f64,
}

/// `query-dirty-rate`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct DirtyRate {
    /// `unstarted`, `measuring` or `measured`.
    pub status: String,
    /// MiB a second, once measured.
    #[serde(rename = "dirty-rate")]
    pub mib_per_second: Option<i64>,
}

/// One of `query-blockstats`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockStats {
    /// Its counters.
    pub stats: BlockCounters,
}

/// What a disk has done since QEMU was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockCounters {
    /// Bytes.
    #[serde(rename = "wr_bytes")]
    pub written: u64,
}

/// One of `query-named-block-nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockNode {
    /// Its name.
    #[serde(rename = "node-name")]
    pub name: Option<String>,
    /// Its driver: `nbd`, `raw` …
    #[serde(rename = "drv")]
    pub driver: String,
    /// What is opened, in QEMU's words; `json:{…}` if it has no shorter form.
    #[serde(default)]
    pub file: String,
    /// Whether it takes no writes.
    #[serde(rename = "ro", default)]
    pub read_only: bool,
}

/// One of `query-block`: what a guest's device is backed by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BlockDevice {
    /// The backend's old-style name; often empty.
    #[serde(default)]
    pub device: String,
    /// The guest's device, as a QOM path.
    pub qdev: Option<String>,
    /// `ok`, `failed`, `nospace`; missing unless errors stop the guest.
    #[serde(rename = "io-status")]
    pub io_status: Option<String>,
    /// What is in it.
    pub inserted: Option<BlockNode>,
}

/// A property of a QOM object.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Its type: `child<virtio-blk-pci>` …
    #[serde(rename = "type")]
    pub kind: String,
}

/// `query-memory-size-summary`; bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct MemorySize {
    /// What it was started with.
    #[serde(rename = "base-memory")]
    pub base: u64,
    /// Plugged in later.
    #[serde(rename = "plugged-memory", default)]
    pub plugged: u64,
}

/// Parameters of a migration; only those that are to be changed.
pub type MigrationParameters = BTreeMap<String, Value>;
