//! What the API shows, version 1. Fields are added, never changed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::cutover::ids::MoveId;
use crate::journal::{Adopted, LastEnd};
use crate::moves::Check;
use crate::moves::record::{MoveRecord, Numbers, Options};
use crate::qmp::Version;
use crate::qmp::types::RunState;
use crate::vm::accel::Accel;
use crate::vm::definition::Definition;
use crate::vm::name::VmName;

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmState {
    /// It has no QEMU, and that was wanted.
    Stopped,
    /// Its QEMU is being started.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's processors stand still.
    Paused,
    /// A disk failed or refused a write, and the guest was stopped instead of being told.
    IoError,
    /// The guest has powered off; its QEMU is about to end.
    Shutdown,
    /// The guest's kernel panicked.
    Panicked,
    /// It waits for a guest from another host.
    Inmigrate,
    /// Its guest has gone to another host.
    Postmigrate,
    /// It has no QEMU any more, and nobody wanted that.
    Crashed,
    /// Its QEMU is there and does not answer.
    Unreachable,
    /// Its record is damaged.
    Damaged,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl VmState {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::IoError => "io-error",
            Self::Shutdown => "shutdown",
            Self::Panicked => "panicked",
            Self::Inmigrate => "inmigrate",
            Self::Postmigrate => "postmigrate",
            Self::Crashed => "crashed",
            Self::Unreachable => "unreachable",
            Self::Damaged => "damaged",
            Self::Unknown => "unknown",
        }
    }

    /// What QEMU's word means for us.
    pub fn of(state: RunState) -> Self {
        match state {
            RunState::Running | RunState::Suspended => Self::Running,
            RunState::IoError => Self::IoError,
            RunState::Shutdown => Self::Shutdown,
            RunState::GuestPanicked => Self::Panicked,
            RunState::Inmigrate => Self::Inmigrate,
            RunState::Postmigrate => Self::Postmigrate,
            RunState::Debug
            | RunState::InternalError
            | RunState::Paused
            | RunState::Prelaunch
            | RunState::FinishMigrate
            | RunState::RestoreVm
            | RunState::SaveVm
            | RunState::Watchdog
            | RunState::Colo
            | RunState::Unknown => Self::Paused,
        }
    }
}

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// Its name.
    pub name: VmName,
    /// What it does.
    pub state: VmState,
    /// Why, if there is something to say.
    pub reason: Option<String>,
    /// What it is; null if its record is damaged.
    pub definition: Option<Definition>,
    /// Its QEMU, if there is one.
    pub process: Option<ProcessView>,
    /// It was started by somebody else.
    pub adopted: Option<Adopted>,
    /// Who else decides about it now.
    pub held_by: Option<String>,
    /// How it last ended.
    pub last_end: Option<LastEnd>,
}

/// A QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessView {
    /// Its process id.
    pub pid: i32,
    /// Its version.
    pub qemu: Version,
    /// What runs the processors.
    pub accel: Accel,
    /// Its monitor; the agent is its client.
    pub qmp: PathBuf,
    /// When it was started, in milliseconds since 1970.
    pub started_ms: u64,
}

/// `GET /v1/vms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmList {
    /// By name.
    pub vms: Vec<VmView>,
}

/// `POST /v1/vms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DefineVm {
    /// The VM.
    pub definition: Definition,
    /// Whether it may take the place of a stopped one of that name.
    #[serde(default)]
    pub replace: bool,
}

/// `POST /v1/vms/{name}/start`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartVm {
    /// The processors stand still until somebody says `cont`.
    #[serde(default)]
    pub paused: bool,
}

/// `POST /v1/vms/{name}/stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// How long the guest has to power off; milliseconds, at most an hour.
    pub timeout_ms: u64,
    /// What then: its QEMU is ended, or it goes on.
    #[serde(default)]
    pub force: bool,
}

/// `POST /v1/adopt`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdoptVm {
    /// Its monitor; absolute.
    pub qmp: PathBuf,
    /// What to call it; missing: what it calls itself.
    #[serde(default)]
    pub name: Option<VmName>,
}

/// `GET /v1/vms/{name}/console`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Console {
    /// The guest's serial line; one client at a time.
    pub socket: PathBuf,
    /// What it has written so far.
    pub log: PathBuf,
}

/// `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The agent's version.
    pub version: String,
    /// When it started, in milliseconds since 1970.
    pub started_ms: u64,
    /// VMs.
    pub vms: usize,
    /// Those whose guests run.
    pub running: usize,
    /// QEMU's version, or why there is none.
    pub qemu: String,
    /// What blockd says of itself, or why it does not.
    pub blockd: String,
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

/// The answer to a command that changes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Always true; failures are errors.
    pub done: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_spelled_in_one_way() {
        let state = |name: &str| serde_json::from_str::<VmState>(&format!("\"{name}\"")).unwrap();
        for known in [VmState::IoError, VmState::Stopped, VmState::Crashed, VmState::Unreachable] {
            assert_eq!(state(known.name()), known);
        }
        assert_eq!(state("levitating"), VmState::Unknown);
    }
}

/// `POST /v1/vms/{name}/migrate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The other host.
    pub to: String,
    /// What the move may do.
    #[serde(default)]
    pub options: Options,
}

/// `POST /v1/vms/{name}/rollback`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rollback {
    /// What the move may do.
    pub options: Options,
}

/// A move has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Which.
    pub id: MoveId,
    /// The host that does it, if it is another one.
    pub on: Option<String>,
}

/// What a move would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovePlan {
    /// What was looked at.
    pub checks: Vec<Check>,
    /// What the last move of that VM to that host was like, if there was one.
    pub last: Option<Numbers>,
    /// Bytes of its volumes.
    pub disk_bytes: u64,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// All its volumes have replicas there: only what differs is sent.
    pub replicas: bool,
}

/// `GET /v1/moves`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MoveList {
    /// Oldest first.
    pub moves: Vec<MoveRecord>,
}

/// What of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MovesQuery {
    /// Of one VM.
    pub vm: Option<VmName>,
}

/// `POST /v1/recover`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecoverAnswer {
    /// Moves that blockd knew and nobody else: given up.
    pub given_up: Vec<MoveId>,
    /// Those that are still being finished or undone.
    pub moves: Vec<MoveRecord>,
}
