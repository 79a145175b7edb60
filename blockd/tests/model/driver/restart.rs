//! Power cuts, kills and stops, and what is found after them.

use super::{Asked, Case};
use crate::reference::{Disk, NEVER, cells};

impl Case {
    pub(super) fn crash(&mut self) {
        self.check_pins();
        self.pins.clear();
        self.faults = self.faults_hit();
        if self.fate.bool() {
            self.kept = self.world.kill();
            self.seen.count(if self.kept { "kill" } else { "kill after a failure" });
            trace!(self, "killed");
        } else {
            self.seen.count("power cut");
            trace!(self, "power cut");
            self.world.power_cut();
            self.kept = false;
        }
        self.faults -= self.world.disk.faults_hit();
        self.look_at_packed();
        self.found_again();
    }

    /// A clean stop and start.
    pub(super) fn reopen(&mut self) {
        self.settle();
        self.seen.count("reopen");
        self.world.stop();
        self.world.settle();
        self.collect();
        self.crash();
    }

    /// What is there after a crash: commands that were not answered may have had their effect or not.
    fn found_again(&mut self) {
        let now = self.now();
        self.pending.clear();
        self.connected.clear();
        self.failed.clear();
        let doubtful = std::mem::take(&mut self.doubtful);
        for asked in doubtful.into_iter().chain(std::mem::take(&mut self.asked).into_values()) {
            self.find_out(asked, now);
        }
        let volumes: Vec<String> = self.reference.volumes.keys().cloned().collect();
        for name in volumes {
            self.check_volume(&name);
        }
        let names: Vec<_> = self.reference.snapshots.keys().cloned().collect();
        for name in names {
            let text = format!("{}@{}", name.0, name.1);
            assert!(self.world.find_export(&text).is_some(), "snapshot {text} is lost");
        }
        let known = self.reference.volumes.len() + self.reference.snapshots.len();
        assert_eq!(self.world.store.exports().count(), known, "something exists that nobody has made");
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.world.find_export(name).is_some()
    }

    fn find_out(&mut self, asked: Asked, now: u64) {
        let text = |name: &(String, String)| format!("{}@{}", name.0, name.1);
        let had_effect = match &asked {
            Asked::Create { name, .. } => self.exists(name),
            Asked::Grow { name, size } => {
                self.world.find_export(name).is_some_and(|(_, found, _)| found == *size)
            }
            Asked::Rename { to, .. } | Asked::Clone { to, .. } => self.exists(to),
            Asked::DeleteVolume { name } => !self.exists(name),
            Asked::Cut { names, .. } => {
                let found = names.iter().filter(|name| self.exists(&name.to_string())).count();
                assert!(found == 0 || found == names.len(), "half a cut was found");
                found > 0
            }
            Asked::DeleteSnapshot { name } => !self.exists(&text(name)),
            Asked::Rollback { name } => return self.find_out_rollback(&name.clone(), now),
            Asked::Other => false,
        };
        if had_effect {
            let time = if matches!(asked, Asked::Cut { .. }) { NEVER } else { now };
            self.apply(asked, time);
        }
    }

    /// A volume that may have been rolled back: told by what it holds.
    fn find_out_rollback(&mut self, name: &(String, String), now: u64) {
        let Some(content) = self.reference.snapshots.get(name).and_then(|s| s.content.clone()) else {
            return;
        };
        let Some((_, size, _)) = self.world.find_export(&name.0) else { return };
        if cells(size) == content.len() && self.read_volume(&name.0) == content {
            self.reference.volumes.insert(name.0.clone(), Disk::known(content, now));
        }
    }
}
