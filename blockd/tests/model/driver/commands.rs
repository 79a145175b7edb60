//! Commands, as they are drawn.

use blockd::control::{Control, SnapshotName};

use super::{Asked, Case, KIB};
use crate::reference::CELL_BYTES;

/// Volumes that may exist at once.
const VOLUMES_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 6;

impl Case {
    pub(super) fn ask(&mut self) {
        match self.world.rng.u32(..28) {
            0..2 => self.create(),
            2..4 => self.grow(),
            4 => self.rename(),
            5..7 => self.delete_volume(),
            7..14 => self.cut(),
            14..20 => self.delete_snapshot(),
            20..22 => self.rollback(),
            22..25 => self.clone_snapshot(),
            25 => self.hold(),
            _ => self.pin_or_unpin(),
        }
    }

    pub(super) fn put(&mut self, asked: Asked, command: Control) {
        trace!(self, "{command:?}");
        let token = self.world.command(command);
        self.asked.insert(token, asked);
    }

    pub(super) fn create(&mut self) {
        if self.reference.volumes.len() + self.asked.len() >= VOLUMES_MAX {
            return;
        }
        let name = self.new_name("v");
        let size = self.world.rng.u64(1..=1024) * CELL_BYTES;
        self.put(Asked::Create { name: name.clone(), size }, Control::CreateVolume { name, size });
    }

    fn grow(&mut self) {
        let Some(name) = self.some_volume() else { return };
        let size = self.reference.volumes[&name].cells.len() as u64 * CELL_BYTES;
        let size = (size + self.world.rng.u64(0..200) * CELL_BYTES).min(700 * KIB).max(size);
        self.put(Asked::Grow { name: name.clone(), size }, Control::ResizeVolume { name, size });
    }

    fn rename(&mut self) {
        let Some(from) = self.idle_volume() else { return };
        let to = self.new_name("v");
        self.put(Asked::Rename { from: from.clone(), to: to.clone() }, Control::RenameVolume { from, to });
    }

    fn delete_volume(&mut self) {
        let Some(name) = self.idle_volume() else { return };
        self.put(Asked::DeleteVolume { name: name.clone() }, Control::DeleteVolume { name });
    }

    fn cut(&mut self) {
        let existing = self.reference.snapshots.len();
        if existing >= SNAPSHOTS_MAX {
            return;
        }
        let volumes = self.reference.volumes.keys().filter(|name| !self.is_changing(name));
        let mut volumes: Vec<String> = volumes.cloned().collect();
        self.world.rng.shuffle(&mut volumes);
        volumes.truncate(self.world.rng.usize(1..3));
        if volumes.is_empty() {
            return;
        }
        if volumes.len() > 1 {
            self.seen.count("group cut");
        }
        let snapshot = self.new_name("s");
        let names: Vec<SnapshotName> =
            volumes.into_iter().map(|volume| SnapshotName { volume, snapshot: snapshot.clone() }).collect();
        let requested = self.now();
        self.put(Asked::Cut { names: names.clone(), requested }, Control::CreateSnapshots { names });
    }

    pub(super) fn control_name(name: &(String, String)) -> SnapshotName {
        SnapshotName { volume: name.0.clone(), snapshot: name.1.clone() }
    }

    fn delete_snapshot(&mut self) {
        let Some(name) = self.some_snapshot() else { return };
        if self.busy(&format!("{}@{}", name.0, name.1)) {
            return;
        }
        let control = Control::DeleteSnapshot { name: Self::control_name(&name) };
        self.put(Asked::DeleteSnapshot { name }, control);
    }

    fn rollback(&mut self) {
        let Some(name) = self.known_snapshot() else { return };
        if self.busy(&name.0) || !self.asked.is_empty() {
            return;
        }
        let control = Control::Rollback { name: Self::control_name(&name) };
        self.put(Asked::Rollback { name }, control);
    }

    fn clone_snapshot(&mut self) {
        if self.reference.volumes.len() + self.asked.len() >= VOLUMES_MAX {
            return;
        }
        let Some(from) = self.known_snapshot() else { return };
        let to = self.new_name("c");
        let control = Control::Clone { from: Self::control_name(&from), to: to.clone() };
        self.put(Asked::Clone { from, to }, control);
    }

    fn hold(&mut self) {
        let Some(name) = self.some_snapshot() else { return };
        self.seen.count("hold");
        let name = Self::control_name(&name);
        let reason = "test".to_owned();
        let control = if self.world.rng.bool() {
            Control::Hold { name, reason }
        } else {
            Control::Release { name, reason }
        };
        self.put(Asked::Other, control);
    }
}
