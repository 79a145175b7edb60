//! One VM, as it is kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::qmp::Version;
use crate::vm::accel::Accel;
use crate::vm::definition::Definition;
use crate::vm::process::ProcessId;

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What it is; resolved.
    pub definition: Definition,
    /// Its QEMU. Written before QEMU is started, and again when its process is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// It was started by somebody else: what is known of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopted: Option<Adopted>,
    /// How it last ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<LastEnd>,
    /// Who else decides about it now, as in a move's id: the agent does nothing to it by itself, and refuses to start,
    /// stop or delete it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
}

/// A QEMU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its process; `None` while it is being started. Then the pid file tells, if it got that far.
    pub process: Option<ProcessId>,
    /// Its monitor.
    pub qmp: PathBuf,
    /// Its version.
    pub qemu: Version,
    /// What runs the processors.
    pub accel: Accel,
    /// It was started to take a VM in.
    pub incoming: bool,
    /// When, in milliseconds since 1970.
    pub started_ms: u64,
}

/// What is known of a VM that somebody else started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adopted {
    /// What its monitor cannot tell, so that the definition may lack it.
    pub unknown: Vec<String>,
    /// What makes it unfit for a move.
    pub unfit: Vec<String>,
}

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastEnd {
    /// Nobody wanted it to.
    pub crashed: bool,
    /// Why, for people.
    pub reason: String,
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
}

impl Record {
    /// A VM that was never started.
    pub fn new(definition: Definition) -> Self {
        Self { definition, run: None, adopted: None, last_end: None, held_by: None }
    }
}
