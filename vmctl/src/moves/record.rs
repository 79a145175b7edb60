//! A move, as it is kept and shown: the journal of each side.

use serde::{Deserialize, Serialize};

use crate::cutover::event::{DestinationOutcome, Mark, SourceOutcome};
use crate::cutover::ids::MoveId;
use crate::cutover::record::Setup;
use crate::error::{Error, Kind};
use crate::vm::definition::Definition;
use crate::vm::name::VmName;

/// Rounds of one move that are kept.
pub const ROUNDS_MAX: usize = 64;
/// Notes of one move that are kept.
pub const NOTES_MAX: usize = 64;

/// Which side of a move this host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The VM goes from here.
    Source,
    /// It comes here.
    Destination,
}

/// How far a move is, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Whether it can be done at all.
    Check,
    /// The other host gets ready.
    Prepare,
    /// The first copy of the disks, or what an older replica lacks.
    Bulk,
    /// Differences of the disks, and the memory, while the guest runs.
    Rounds,
    /// Whether the guest may be stopped.
    Gate,
    /// The guest is stopped: the last difference, the rest of the memory.
    Switch,
    /// The commit record, and what follows from it.
    Release,
    /// What the move has made and nobody needs is taken away.
    Cleanup,
}

impl Phase {
    /// As the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Prepare => "prepare",
            Self::Bulk => "bulk",
            Self::Rounds => "rounds",
            Self::Gate => "gate",
            Self::Switch => "switch",
            Self::Release => "release",
            Self::Cleanup => "cleanup",
        }
    }
}

/// How the disks are brought while the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Differences, again and again; where they do not get small, as `Mirror`, if the other host is near.
    #[default]
    Auto,
    /// Differences, again and again.
    Rounds,
    /// What the guest writes is at the other host before the guest is answered: it cannot write faster than the link.
    Mirror,
}

/// What a move may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Longest silence, in milliseconds: above it the move does not switch over.
    pub silence_ms: Option<u64>,
    /// How the disks are brought.
    pub strategy: Strategy,
    /// Bytes a second that memory may take.
    pub bandwidth: Option<u64>,
    /// Memory is sent while the guest runs even where its processors are translated (TCG).
    pub live: bool,
    /// The guest is slowed down when it dirties its memory faster than it can be sent.
    pub auto_converge: bool,
    /// Connections that pages of memory are spread over, besides the one of the migration (QEMU's multifd).
    pub multifd: Option<u8>,
    /// Milliseconds for which the volumes stay where the VM came from, once it has moved. `None`: until somebody deletes them.
    pub keep_source_ms: Option<u64>,
    /// When the guest may be stopped.
    pub when: When,
}

/// When a guest is stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// As soon as its disks are nearly equal.
    #[default]
    Now,
    /// When it changes less than it usually does.
    Quiet,
}

/// Most connections for pages of memory.
pub const MULTIFD_MAX: u8 = 16;

impl Options {
    /// Whether they can be kept.
    ///
    /// # Errors
    /// `bad_value`.
    pub fn check(&self) -> Result<(), Error> {
        if self.multifd.is_none_or(|channels| (1..=MULTIFD_MAX).contains(&channels)) {
            return Ok(());
        }
        Err(Error::one_line(Kind::BadValue, format!("multifd takes 1 to {MULTIFD_MAX} connections")))
    }
}

/// One difference that was brought while the guest ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Bytes that differed.
    pub bytes_changed: u64,
    /// Bytes that crossed the link.
    pub bytes_sent: u64,
    /// Milliseconds.
    pub ms: f64,
}

/// Writes that went to both hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mirrored {
    /// When the other host had all that the guest was answered: milliseconds since the move began.
    pub in_sync_ms: f64,
    /// How long that took.
    pub took_ms: f64,
    /// Bytes that crossed the link until then.
    pub bytes_sent: u64,
}

/// What is expected of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Forecast {
    /// Milliseconds of silence: disk or memory, whichever takes longer, and what is fixed, corrected; and until it is heard.
    pub silence_ms: f64,
    /// The last difference of the disks among them.
    pub disk_ms: f64,
    /// The rest of the memory and the devices, once QEMU stops the guest.
    pub memory_ms: f64,
    /// The memory that is still to be sent now, while the guest runs.
    pub rest_ms: f64,
    /// Records, and starting to run.
    pub fixed_ms: f64,
    /// Until a guest that runs again can be heard. No part of the silence that agents measure.
    pub wake_ms: f64,
    /// What earlier moves to that host took, by what was foreseen of them.
    pub correction: f64,
    /// The guest stands still while its memory is sent.
    pub stops_first: bool,
    /// How fast disk and memory change, against what the link has carried; from 1 on a move does not converge.
    pub pressure: f64,
    /// Bytes of disk that are still to be sent, and of memory.
    pub disk_bytes: u64,
    /// See `disk_bytes`.
    pub memory_bytes: u64,
}

impl Default for Forecast {
    fn default() -> Self {
        Self {
            silence_ms: 0.0,
            disk_ms: 0.0,
            memory_ms: 0.0,
            rest_ms: 0.0,
            fixed_ms: 0.0,
            wake_ms: 0.0,
            correction: 1.0,
            stops_first: false,
            pressure: 0.0,
            disk_bytes: 0,
            memory_bytes: 0,
        }
    }
}

/// An instant, in milliseconds since the move began on this host.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instant {
    /// What happened.
    pub mark: Mark,
    /// When.
    pub ms: f64,
}

/// What came of it, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Numbers {
    /// Disk differences before the guest was stopped; the first one is the bulk.
    pub rounds: Vec<Round>,
    /// The last one, while it was.
    pub last_round: Option<Round>,
    /// What was mirrored, if anything was.
    pub mirror: Option<Mirrored>,
    /// Bytes of memory that were sent.
    pub memory_bytes: u64,
    /// Of them, through connections of multifd.
    pub multifd_bytes: u64,
    /// Bytes of the guest's memory.
    pub memory_total: u64,
    /// Passes over the memory.
    pub memory_passes: u64,
    /// What was expected when the guest was stopped.
    pub forecast: Option<Forecast>,
    /// From the guest's stop here until word came that it runs there: milliseconds.
    pub silence_ms: Option<f64>,
    /// What QEMU says the silence was; it stops counting before the guest runs.
    pub qemu_downtime_ms: Option<u64>,
    /// Of everything.
    pub total_ms: Option<f64>,
    /// When what happened.
    pub instants: Vec<Instant>,
}

/// A move, on one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoveRecord {
    /// The same on both hosts.
    pub id: MoveId,
    /// Which one this is.
    pub side: Side,
    /// The VM.
    pub vm: VmName,
    /// The other host.
    pub host: String,
    /// What the VM is.
    pub definition: Definition,
    /// What the move may do.
    pub options: Options,
    /// When it began, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ended here.
    pub ended_ms: Option<u64>,
    /// How far it is, or was.
    pub phase: Phase,
    /// The cutover has begun: from then on its machine decides. `None`: nothing is to be undone but what is in the ledger.
    pub setup: Option<Setup>,
    /// How the cutover ended at the source.
    pub source_end: Option<SourceOutcome>,
    /// How it ended at the destination.
    pub destination_end: Option<DestinationOutcome>,
    /// Why it failed before the cutover began.
    pub failure: Option<Error>,
    /// The ledger: the VM's record was made by the move, here.
    pub made_vm: bool,
    /// When the volumes that it left here are deleted, in milliseconds since 1970. `None`: they stay, or are gone.
    #[serde(default)]
    pub former_until_ms: Option<u64>,
    /// What a person should know, oldest first.
    pub notes: Vec<String>,
    /// In numbers.
    pub numbers: Numbers,
}

impl MoveRecord {
    /// One that begins.
    pub fn new(
        id: MoveId,
        side: Side,
        host: &str,
        definition: Definition,
        options: Options,
        now_ms: u64,
    ) -> Self {
        Self {
            id,
            side,
            vm: definition.name.clone(),
            host: host.to_owned(),
            definition,
            options,
            started_ms: now_ms,
            ended_ms: None,
            phase: Phase::Check,
            setup: None,
            source_end: None,
            destination_end: None,
            failure: None,
            made_vm: false,
            former_until_ms: None,
            notes: Vec::new(),
            numbers: Numbers::default(),
        }
    }

    /// Whether there may be something to undo.
    pub fn has_begun(&self) -> bool {
        self.has_ended() || self.side == Side::Destination || self.setup.is_some()
    }

    /// Whether there is nothing left to do here.
    pub fn has_ended(&self) -> bool {
        self.ended_ms.is_some()
    }

    /// Whether the VM has changed hosts.
    pub fn has_moved(&self) -> bool {
        matches!(self.source_end, Some(SourceOutcome::Moved(_)))
            || matches!(self.destination_end, Some(DestinationOutcome::Here { .. }))
    }

    /// Adds what a person should know; the oldest goes when there are too many.
    pub fn note(&mut self, text: String) {
        if self.notes.last() == Some(&text) {
            return;
        }
        if self.notes.len() == NOTES_MAX {
            self.notes.remove(0);
        }
        self.notes.push(text);
    }
}
