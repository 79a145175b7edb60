//! An engine without a store: names and sizes in memory, hashes and extents made up.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use blockd::catalog::format::Role;
use blockd::control::replication::Replication;
use blockd::control::{
    Answer, Control, ControlError, Counters, ErrorKind, Health, Pinned, SnapshotInfo, SnapshotName,
    StoreStatus, VolumeInfo,
};
use blockd::service::{DamagedExtent, DiffExtent, Engine, ExtentKind, Recomputed, VerifyReport};
use blockd::units::LayerId;
use tokio::sync::oneshot;

/// Extents that the snapshot `many` differs in.
pub(crate) const MANY_EXTENTS: u64 = 100_000;

#[derive(Default)]
pub(crate) struct TestEngine(Mutex<State>);

#[derive(Default)]
struct State {
    volumes: BTreeMap<String, VolumeInfo>,
    snapshots: Vec<SnapshotInfo>,
    sequence: u64,
}

fn error<T>(kind: ErrorKind, message: impl Into<String>) -> Result<T, ControlError> {
    Err(ControlError::new(kind, message))
}

impl TestEngine {
    pub(crate) fn with_volumes(count: u64) -> Self {
        let engine = Self::default();
        for number in 0..count {
            engine.apply(Control::CreateVolume { name: format!("v{number:05}"), size: 1 << 30 }).unwrap();
        }
        engine
    }

    /// Pretends that clients are connected to a volume.
    pub(crate) fn connect_clients(&self, volume: &str, clients: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.volumes.get_mut(volume).unwrap().clients = clients;
    }

    fn apply(&self, command: Control) -> Result<Answer, ControlError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).apply(command)
    }

    fn check_snapshot(&self, name: &SnapshotName) -> Result<(), ControlError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).snapshot(name).map(drop)
    }
}

impl State {
    fn volume(&mut self, name: &str) -> Result<&mut VolumeInfo, ControlError> {
        let missing = || ControlError::new(ErrorKind::NotFound, format!("there is no volume {name}"));
        self.volumes.get_mut(name).ok_or_else(missing)
    }

    fn idle(&mut self, name: &str) -> Result<&mut VolumeInfo, ControlError> {
        let volume = self.volume(name)?;
        if volume.clients > 0 {
            return error(ErrorKind::Busy, format!("{name} has clients"));
        }
        Ok(volume)
    }

    fn snapshot(&mut self, name: &SnapshotName) -> Result<&mut SnapshotInfo, ControlError> {
        let missing = || ControlError::new(ErrorKind::NotFound, format!("there is no snapshot {name}"));
        let mut all = self.snapshots.iter_mut();
        all.find(|info| info.volume == name.volume && info.name == name.snapshot).ok_or_else(missing)
    }

    fn create(&mut self, name: String, size: u64, origin: Option<String>) -> Result<Answer, ControlError> {
        if self.volumes.contains_key(&name) {
            return error(ErrorKind::Exists, format!("there is a volume {name} already"));
        }
        if !size.is_multiple_of(512) || size == 0 {
            return error(ErrorKind::BadValue, format!("{size} is no multiple of 512"));
        }
        let info = VolumeInfo {
            name: name.clone(),
            size,
            mapped_bytes: Some(0),
            own_bytes: None,
            snapshots: 0,
            clients: 0,
            origin,
            created_ms: 1_795_183_410_000,
            health: Health::Ok,
            role: Role::Primary,
            epoch: 1,
        };
        self.volumes.insert(name, info);
        Ok(Answer::Done)
    }

    fn cut(&mut self, names: Vec<SnapshotName>) -> Result<Answer, ControlError> {
        for name in names {
            if self.snapshot(&name).is_ok() {
                return error(ErrorKind::Exists, format!("there is a snapshot {name} already"));
            }
            let volume = self.volume(&name.volume)?;
            volume.snapshots += 1;
            let size = volume.size;
            self.sequence += 1;
            self.snapshots.push(SnapshotInfo {
                volume: name.volume,
                name: name.snapshot,
                sequence: self.sequence,
                size,
                created_ms: 1_795_183_410_000,
                holds: Vec::new(),
                clones: Vec::new(),
                clients: 0,
                uid: String::new(),
            });
        }
        Ok(Answer::Done)
    }

    fn delete_snapshot(&mut self, name: &SnapshotName) -> Result<Answer, ControlError> {
        if !self.snapshot(name)?.holds.is_empty() {
            return error(ErrorKind::Refused, format!("{name} is held"));
        }
        self.snapshots.retain(|info| info.volume != name.volume || info.name != name.snapshot);
        self.volume(&name.volume)?.snapshots -= 1;
        Ok(Answer::Done)
    }

    fn delete_volume(&mut self, name: &str) -> Result<Answer, ControlError> {
        if self.idle(name)?.snapshots > 0 {
            return error(ErrorKind::Refused, format!("{name} has snapshots"));
        }
        self.volumes.remove(name);
        Ok(Answer::Done)
    }

    fn status(&self) -> StoreStatus {
        StoreStatus {
            pool_bytes: 100 << 30,
            used_bytes: 10 << 30,
            pending_free_bytes: 0,
            commit: self.sequence,
            uncommitted: 0,
            layers_to_reclaim: 0,
            volumes: self.volumes.len() as u64,
            snapshots: self.snapshots.len() as u64,
            clients: self.volumes.values().map(|volume| volume.clients).sum(),
            counters: Counters { reads: 3, read_bytes: 12_288, ..Counters::default() },
            recent_log: true,
            health: Health::Ok,
        }
    }

    fn apply(&mut self, command: Control) -> Result<Answer, ControlError> {
        match command {
            Control::Move(_) | Control::Mirror(_) => {
                return error(ErrorKind::Refused, "this store moves nothing");
            }
            Control::CreateVolume { name, size } => return self.create(name, size, None),
            Control::ResizeVolume { name, size } => {
                let volume = self.volume(&name)?;
                if size < volume.size {
                    return error(ErrorKind::BadValue, "volumes only grow");
                }
                volume.size = size;
            }
            Control::RenameVolume { from, to } => {
                let mut volume = self.idle(&from)?.clone();
                volume.name.clone_from(&to);
                self.volumes.remove(&from);
                self.volumes.insert(to, volume);
            }
            Control::DeleteVolume { name } => return self.delete_volume(&name),
            Control::CreateSnapshots { names } => return self.cut(names),
            Control::DeleteSnapshot { name } => return self.delete_snapshot(&name),
            Control::Rollback { name } => {
                self.snapshot(&name)?;
                self.idle(&name.volume)?;
            }
            Control::Clone { from, to } => {
                let size = self.snapshot(&from)?.size;
                return self.create(to, size, Some(from.to_string()));
            }
            Control::Hold { name, reason } => self.snapshot(&name)?.holds.push(reason),
            Control::Release { name, reason } => self.snapshot(&name)?.holds.retain(|held| *held != reason),
            Control::ListVolumes => return Ok(Answer::Volumes(self.volumes.values().cloned().collect())),
            Control::ListSnapshots { volume } => {
                if let Some(volume) = &volume {
                    self.volume(volume)?;
                }
                let wanted = |info: &&SnapshotInfo| volume.as_ref().is_none_or(|name| info.volume == *name);
                return Ok(Answer::Snapshots(self.snapshots.iter().filter(wanted).cloned().collect()));
            }
            Control::Status => return Ok(Answer::Status(Box::new(self.status()))),
            Control::Pin { name } => {
                let size = self.snapshot(&name)?.size;
                return Ok(Answer::Pinned(Pinned { pin: 7, chain: vec![LayerId(3), LayerId(1)], size }));
            }
            Control::Unpin { pin: 7 } | Control::KeepHashes { .. } => {}
            Control::Replication(Replication::Identify { volume: None }) => {
                return Ok(Answer::Identities(Vec::new()));
            }
            Control::Replication(_) => return error(ErrorKind::Refused, "this engine keeps no replicas"),
            Control::Unpin { .. } => return error(ErrorKind::NotFound, "there is no such pin"),
        }
        Ok(Answer::Done)
    }
}

impl Engine for TestEngine {
    fn submit(&self, command: Control, answer: oneshot::Sender<Result<Answer, ControlError>>) {
        // A client that has left does not want the answer.
        drop(answer.send(self.apply(command)));
    }

    fn diff(
        &self,
        from: Option<&SnapshotName>,
        to: &SnapshotName,
        visit: &mut dyn FnMut(DiffExtent) -> bool,
    ) -> Result<(), ControlError> {
        self.check_snapshot(to)?;
        if from.is_some_and(|from| from.volume != to.volume) {
            return error(ErrorKind::BadValue, "they are snapshots of two volumes");
        }
        let count = if to.snapshot == "many" { MANY_EXTENTS } else { 2 };
        for number in 0..count {
            let kind = if number % 2 == 0 { ExtentKind::Data } else { ExtentKind::Zero };
            if !visit(DiffExtent { offset: number * 8192, length: 4096, kind }) {
                break;
            }
        }
        Ok(())
    }

    fn hash(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<[u8; 32], ControlError> {
        self.check_snapshot(name)?;
        progress(0, 100);
        progress(100, 100);
        Ok([0xa7; 32])
    }

    fn verify(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<VerifyReport, ControlError> {
        self.check_snapshot(name)?;
        progress(100, 100);
        let damaged = match name.snapshot.as_str() {
            "bad" => vec![DamagedExtent { offset: 65_536, length: 4096 }],
            "worse" => return error(ErrorKind::Io, "the medium failed"),
            _ => Vec::new(),
        };
        Ok(VerifyReport { checked_bytes: 1 << 20, unhashed_bytes: 0, damaged })
    }

    fn recompute(
        &self,
        name: &SnapshotName,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Recomputed, ControlError> {
        let root = Some([0xa7; 32]);
        Ok(Recomputed { report: self.verify(name, progress)?, root, recorded: root })
    }
}
