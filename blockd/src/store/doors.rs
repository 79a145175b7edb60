//! Doors: exports that are a volume in one epoch only, found under `NAME:EPOCH`.
//!
//! A client that comes through a door cannot write in another epoch than the one that it asked for, whatever happens in
//! between: not when the volume has gone to another host, not when it has come back, and not when the client, or this
//! daemon, has lost the connection and connects again. So a virtual machine that should have ended, and has not, harms
//! nobody (C1). A door is there from before its epoch, when clients are made ready, until nobody uses it any more.

use std::collections::BTreeMap;

use nbd_server::disk::ExportIndex;
use nbd_server::export::{Command, ExportInfo};
use nbd_server::wire::Errno;

use super::Store;
use super::served::{Served, Subject};
use crate::catalog::format::Stage;
use crate::units::{LayerId, VolumeId};

/// By volume and epoch, where each is served. Older ones are forgotten: they lead nowhere.
pub(super) type Doors = BTreeMap<(VolumeId, u64), ExportIndex>;

/// What becomes of a request.
pub(super) enum Admitted {
    /// It is for that export.
    To(ExportIndex),
    /// It has nothing to do, and has done it.
    NothingToDo,
}

impl Store {
    /// The door of the epoch that a volume is in, if clients of this host write to it.
    pub(super) fn open_door(&mut self, volume: VolumeId) {
        if !self.catalog.is_replica(volume) {
            let door = self.make_door(volume, self.catalog.epoch(volume));
            self.disk_mut(door).published = true;
            self.version += 1;
        }
    }

    /// A door of an epoch; older ones lead nowhere from now on. It is found once it is published.
    pub(super) fn make_door(&mut self, volume: VolumeId, epoch: u64) -> ExportIndex {
        if let Some(&door) = self.doors.get(&(volume, epoch)) {
            return door;
        }
        let mut door = Served::new(Subject::Door(volume, epoch), String::new(), 0, LayerId(0), false);
        door.hidden = true;
        let door = self.serve(door);
        let older: Vec<_> = self.doors.range((volume, 0)..(volume, epoch)).map(|(key, _)| *key).collect();
        // That of the epoch before is in use until this one's begins.
        for key in older.into_iter().filter(|(_, other)| other + 1 < epoch) {
            self.forget_door(key);
        }
        self.doors.insert((volume, epoch), door);
        door
    }

    /// Nobody finds a way to the volume any more.
    pub(super) fn close_doors(&mut self, volume: VolumeId) {
        let all: Vec<_> = self.doors.range((volume, 0)..=(volume, u64::MAX)).map(|(key, _)| *key).collect();
        for key in all {
            self.forget_door(key);
        }
    }

    fn forget_door(&mut self, key: (VolumeId, u64)) {
        let Some(door) = self.doors.remove(&key) else { return };
        self.version += 1;
        self.drop_idle_door(door);
    }

    /// A door that leads nowhere is kept as long as somebody stands in it.
    pub(super) fn drop_idle_door(&mut self, export: ExportIndex) {
        let Some(disk) = self.find_disk(export) else { return };
        let Subject::Door(volume, epoch) = disk.subject else { return };
        if disk.clients == 0 && self.doors.get(&(volume, epoch)) != Some(&export) {
            self.unserve(export);
        }
    }

    /// What is behind a door; an export that is none is behind itself.
    pub(super) fn behind(&self, export: ExportIndex) -> ExportIndex {
        match self.served.get(export.0 as usize).and_then(Option::as_ref).map(|disk| disk.subject) {
            Some(Subject::Door(volume, _)) => {
                self.catalog.volume_exports.get(&volume).copied().unwrap_or(export)
            }
            _ => export,
        }
    }

    /// Where a request goes.
    ///
    /// # Errors
    /// What it is answered: deleted between the handshake and now, another host's since, or not this host's yet.
    pub(super) fn admitted(&self, export: ExportIndex, command: &Command) -> Result<Admitted, Errno> {
        let disk = self.served.get(export.0 as usize).and_then(Option::as_ref).ok_or(Errno::Shutdown)?;
        let target = match disk.subject {
            Subject::Door(volume, epoch) => match self.through_door(volume, epoch, command)? {
                Admitted::To(target) => target,
                nothing => return Ok(nothing),
            },
            _ if disk.hidden => return Err(Errno::Shutdown),
            _ => export,
        };
        let changes = !matches!(
            command,
            Command::Read { .. } | Command::Flush | Command::Cache | Command::BlockStatus { .. }
        );
        if changes && self.disk(target).frozen_until.is_some_and(|until| self.now >= until) {
            return Err(Errno::Perm);
        }
        Ok(Admitted::To(target))
    }

    fn through_door(&self, volume: VolumeId, epoch: u64, command: &Command) -> Result<Admitted, Errno> {
        let &head = self.catalog.volume_exports.get(&volume).ok_or(Errno::Shutdown)?;
        let disk = self.disk(head);
        let is_now = !self.catalog.is_replica(volume) && self.catalog.epoch(volume) == epoch;
        if is_now && !disk.hidden && disk.published {
            return Ok(Admitted::To(head));
        }
        let of_move = self.catalog.moves.get(&volume).filter(|record| record.epoch == epoch);
        if of_move.is_none_or(|record| !matches!(record.stage, Stage::Expected | Stage::Owned)) {
            return Err(Errno::Shutdown);
        }
        // The machine that is being made ready may look at its disk, and has written nothing that could be flushed.
        let shown = disk.shows.and_then(|id| self.catalog.snapshot_exports.get(&id));
        match (command, shown) {
            (Command::Read { .. } | Command::BlockStatus { .. }, Some(&shown)) => Ok(Admitted::To(shown)),
            (Command::Flush | Command::Cache, _) => Ok(Admitted::NothingToDo),
            _ => Err(Errno::Perm),
        }
    }

    /// Clients of an export, those that came through the doors that lead to it among them.
    pub(super) fn clients(&self, export: ExportIndex) -> u64 {
        let disk = self.disk(export);
        let doors = match disk.subject {
            Subject::Volume(volume) => self.doors.range((volume, 0)..=(volume, u64::MAX)),
            _ => return u64::from(disk.clients),
        };
        let through = doors.map(|(_, &door)| u64::from(self.disk(door).clients));
        u64::from(disk.clients) + through.sum::<u64>()
    }

    /// The doors that can be found.
    pub fn doors(&self) -> impl Iterator<Item = (ExportIndex, ExportInfo)> {
        self.doors.iter().filter(|(_, door)| self.disk(**door).published).map(|(&(volume, epoch), &door)| {
            let record = &self.catalog.volumes[&volume];
            let name = format!("{}:{epoch}", record.name);
            (door, ExportInfo { fast_zero: true, ..ExportInfo::new(&name, record.size) })
        })
    }
}
