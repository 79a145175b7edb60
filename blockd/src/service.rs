//! The daemon's inside as the API sees it: an engine that takes commands, the events it tells of, and where its
//! exports are reached.
//!
//! What deliberately does not live here: HTTP and JSON (`api`), and the engine itself (`store`, `volume`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::control::{Answer, Control, ControlError, ErrorKind, SnapshotName};
use crate::events::Events;
use crate::jobs::desk::Jobs;
use crate::nbd_door::NbdDoor;
use crate::peer::LazyPeers;
use crate::snapshot::ClosedReader;
use crate::sync::mirroring::Mirrors;

/// What the store can be asked for. Implemented by the store; the API's tests have one in memory.
///
/// The blocking calls run on threads of their own, several at once. A callback that answers `false` asks to
/// stop soon: nobody waits for the result any more, whatever it is.
pub trait Engine: Send + Sync {
    /// Hands a command over; the answer comes through the channel.
    fn submit(&self, command: Control, answer: oneshot::Sender<Result<Answer, ControlError>>);

    /// What reads its closed layers; `None`: it has none that could be replicated.
    fn closed_reader(&self) -> Option<ClosedReader> {
        None
    }

    /// Blocking: the extents that may differ between two snapshots (without `from`: everything that has data in `to`),
    /// in order, exact to 4 KiB. Neither needs to descend from the other: what either has changed since their last
    /// common layer is told.
    ///
    /// # Errors
    /// `NotFound`; `Damaged`, `Io`.
    fn diff(
        &self,
        from: Option<&SnapshotName>,
        to: &SnapshotName,
        visit: &mut dyn FnMut(DiffExtent) -> bool,
    ) -> Result<(), ControlError>;

    /// Blocking: BLAKE3 of the whole content; computed where missing, remembered. `progress` gets the bytes done
    /// and the bytes in all, at least every second.
    ///
    /// # Errors
    /// `NotFound`, `Damaged`, `Io`.
    fn hash(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<[u8; 32], ControlError>;

    /// Blocking: reads everything and compares with the recorded hashes.
    ///
    /// # Errors
    /// `NotFound`, `Io`. Damage is no error but the report.
    fn verify(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<VerifyReport, ControlError>;

    /// Blocking: as [`Self::verify`], and makes the root of what was read.
    ///
    /// # Errors
    /// `NotFound`, `Io`. Damage is no error but the report.
    fn recompute(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Recomputed, ControlError>;
}

/// What repairs damaged snapshots with the help of other hosts.
pub trait Repairer: Send + Sync {
    /// Blocking, on a thread of a tokio runtime: writes what other hosts have of damaged clusters, where it is what the
    /// recorded hash says; asks `from`, or those that are known to have the snapshot. `go_on` gets the bytes repaired
    /// so far; `false` ends it.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Stopping`. What could not be repaired is no error but in the report.
    fn repair(
        &self,
        name: &SnapshotName,
        damaged: &[DamagedExtent],
        from: Option<&str>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<RepairReport, ControlError>;
}

/// A run of blocks that differ between two snapshots, as the later one shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffExtent {
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes; cut at the volume's end.
    pub length: u64,
    /// What it shows now.
    pub kind: ExtentKind,
}

/// What an extent shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtentKind {
    /// Something that was written.
    Data,
    /// Zeroes that take no space.
    Zero,
}

/// What reading a snapshot and comparing it with its hashes found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Bytes whose hash was recorded, and which were read and compared.
    pub checked_bytes: u64,
    /// Bytes of data that had no recorded hash yet: nothing can be said about them.
    pub unhashed_bytes: u64,
    /// What is not what was written, in order; empty if all is well.
    pub damaged: Vec<DamagedExtent>,
}

/// What was found where recorded hashes were not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recomputed {
    /// As of a verification.
    pub report: VerifyReport,
    /// BLAKE3 of what was read; `None`: not all could be read.
    pub root: Option<[u8; 32]>,
    /// The root that is recorded, as it was compared when the snapshot came.
    pub recorded: Option<[u8; 32]>,
}

impl Recomputed {
    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        match self.recorded {
            _ if !self.report.damaged.is_empty() || self.root.is_none() => Verdict::Damaged,
            Some(recorded) if self.root != Some(recorded) => Verdict::Damaged,
            Some(_) => Verdict::Sound,
            None => Verdict::Unknown,
        }
    }
}

/// What a verification comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The root is the recorded one.
    Sound,
    /// It is not, or some of it cannot be read.
    Damaged,
    /// Nothing was found wrong, and no root is recorded to compare with.
    Unknown,
}

/// What came of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepairReport {
    /// Bytes that are right again, durably.
    pub repaired_bytes: u64,
    /// The hosts that they came from.
    pub from: Vec<String>,
    /// What is still damaged, in order.
    pub failed: Vec<Unrepaired>,
}

/// A run of bytes that could not be repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unrepaired {
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Why not, for people: of each host that was asked.
    pub reason: String,
}

/// A run of bytes that is not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedExtent {
    /// Bytes from the start of the volume.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Where NBD clients find the exports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NbdAddresses {
    /// Path of the Unix socket.
    pub unix: Option<String>,
    /// `ADDR:PORT`.
    pub tcp: Option<String>,
    /// There TLS is spoken.
    pub tls: bool,
}

impl NbdAddresses {
    /// How to open an export, as an NBD URI; names need no escaping, `@` is legal in a path.
    pub fn uri(&self, export: &str) -> Option<String> {
        match (&self.unix, &self.tcp) {
            (Some(path), _) => Some(format!("nbd+unix:///{export}?socket={}", escape(path))),
            (None, Some(address)) if self.tls => Some(format!("nbds://{address}/{export}")),
            (None, Some(address)) => Some(format!("nbd://{address}/{export}")),
            (None, None) => None,
        }
    }
}

/// A path as a query's value: what could end it or mean something else is written as `%XX`.
fn escape(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~:".contains(&byte);
    path.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The handle that the API holds.
#[derive(Clone)]
pub struct Service {
    engine: Arc<dyn Engine>,
    /// What happened lately; the engine may hold a clone and tell of its own.
    pub events: Events,
    /// Where exports are reached.
    pub nbd: Arc<NbdAddresses>,
    /// Where jobs are asked for; without, the daemon has none.
    pub jobs: Option<Jobs>,
    /// This host's name.
    pub host: Arc<str>,
    /// The other hosts, where there can be any.
    pub peers: Option<LazyPeers>,
    /// What repairs snapshots with their help.
    pub repairer: Option<Arc<dyn Repairer>>,
    /// What mirrors volumes to them.
    pub mirrors: Option<Arc<dyn Mirrors>>,
    /// Where NBD clients come in over TCP.
    pub door: NbdDoor,
}

impl Service {
    /// A handle to an engine.
    pub fn new(engine: Arc<dyn Engine>, events: Events, nbd: NbdAddresses) -> Self {
        let host = Arc::from("");
        Self {
            engine,
            events,
            nbd: Arc::new(nbd),
            jobs: None,
            host,
            peers: None,
            repairer: None,
            mirrors: None,
            door: NbdDoor::in_clear(),
        }
    }

    /// The same, with jobs, on a host of that name.
    #[must_use]
    pub fn with_jobs(self, jobs: Jobs, host: &str) -> Self {
        Self { jobs: Some(jobs), host: Arc::from(host), ..self }
    }

    /// The same, among other hosts.
    #[must_use]
    pub fn with_peers(self, peers: LazyPeers) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// The same, with a door for NBD clients over TCP.
    #[must_use]
    pub fn with_door(self, door: NbdDoor) -> Self {
        Self { door, ..self }
    }

    /// The same, with somebody who mirrors volumes.
    #[must_use]
    pub fn with_mirrors(self, mirrors: Arc<dyn Mirrors>) -> Self {
        Self { mirrors: Some(mirrors), ..self }
    }

    /// The same, with somebody who repairs snapshots.
    #[must_use]
    pub fn with_repairer(self, repairer: Arc<dyn Repairer>) -> Self {
        Self { repairer: Some(repairer), ..self }
    }

    /// Hands a command over and waits for its answer.
    ///
    /// # Errors
    /// The engine's; `Stopping` when it went away without an answer.
    pub async fn call(&self, command: Control) -> Result<Answer, ControlError> {
        let (sender, receiver) = oneshot::channel();
        self.engine.submit(command, sender);
        let gone = |_| ControlError::new(ErrorKind::Stopping, "the daemon is stopping");
        receiver.await.map_err(gone)?
    }

    /// The engine, for its blocking calls.
    pub fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine)
    }
}
