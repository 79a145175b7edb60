//! Whether a VM can come to this host: what the source asks before anything is done, and what is answered.

use serde::{Deserialize, Serialize};

use super::record::Options;
use crate::cutover::ids::{Digest, MoveId};
use crate::error::{Error, Kind};
use crate::qmp::Version;
use crate::vm::accel::Accel;
use crate::vm::definition::Definition;
use crate::vm::name::VmName;

/// What one agent asks another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Question {
    /// Can this VM come to you? If so, be ready for its move. Answer: [`Judgement`].
    Judge(Box<Offer>),
    /// Bring the VM back: `vmctl rollback`. Answer: the move's id.
    Return {
        /// Which.
        vm: VmName,
        /// As the move that brings it back may be.
        options: Options,
    },
}

/// A VM that wants to come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Offer {
    /// The move; missing: it is only looked whether it could be done.
    pub(super) id: Option<MoveId>,
    /// What it is.
    pub(super) definition: Definition,
    /// Its volumes, as the source has them.
    pub(super) volumes: Vec<VolumeFacts>,
    /// The QEMU that it runs in.
    pub(super) qemu: Version,
    /// What runs its processors.
    pub(super) accel: Accel,
    /// What the move may do.
    pub(super) options: Options,
}

/// A volume, as its host has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VolumeFacts {
    pub(super) name: String,
    /// Bytes.
    pub(super) size: u64,
    pub(super) epoch: u64,
    /// `primary` or `replica`.
    pub(super) role: String,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub what: String,
    /// Whether it is as it must be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    pub(super) fn good(what: &str, found: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: true, found: found.into(), fix: None }
    }

    pub(super) fn bad(what: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { what: what.to_owned(), ok: false, found: found.into(), fix: Some(fix.into()) }
    }
}

/// What a host says of a VM that wants to come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Judgement {
    /// What was looked at.
    pub(super) checks: Vec<Check>,
    /// The QEMU that it would run in.
    pub(super) qemu: Version,
}

/// The first thing that forbids it.
pub(super) fn refusal(vm: &VmName, host: &str, checks: &[Check]) -> Result<(), Error> {
    let Some(check) = checks.iter().find(|check| !check.ok) else { return Ok(()) };
    let message = format!("{vm} cannot go to {host}: {}: {}", check.what, check.found);
    Err(Error::one_line(Kind::Refused, message).with_next(check.fix.clone().unwrap_or_default()))
}

/// What both sides must mean by a VM.
pub(super) fn digest(definition: &Definition) -> Result<Digest, Error> {
    let text = serde_json::to_vec(definition).map_err(|error| Error::one_line(Kind::Io, error))?;
    Ok(Digest(*blake3::hash(&text).as_bytes()))
}

/// Bytes of memory that are free on this host, or can be made so.
pub(super) fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
