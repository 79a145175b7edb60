//! What happens next, and to whom.

use blockd::catalog::memory::MetaFault;
use fixtures::sim::Fault;

use super::{Asked, Case};

impl Case {
    pub(super) fn step(&mut self) {
        match self.world.rng.u32(..100) {
            0..31 => self.request(),
            31..33 => self.world.tick(1000),
            33 => self.check_snapshot(),
            34..64 => {
                self.world.disk_step();
            }
            64..80 => {
                self.world.meta_step();
            }
            80..92 => self.ask(),
            92 => self.world.tick(6000),
            93 => {
                self.settle();
                self.check_all_snapshots();
            }
            94 => {
                self.check_snapshot();
                self.connection();
            }
            95 => self.crash(),
            96..97 if self.world.rng.u8(..4) == 0 => self.reopen(),
            96..100 if self.with_faults => self.fault(),
            _ => self.connection(),
        }
    }

    /// Little else than requests, and what becomes of them.
    pub(super) fn hot_step(&mut self) {
        match self.world.rng.u32(..100) {
            0..45 => self.request(),
            45..75 => {
                self.world.disk_step();
            }
            75..88 => {
                self.world.meta_step();
            }
            88..90 => self.ask(),
            90 => self.world.tick(6000),
            91..94 => self.crash(),
            94..97 if self.with_faults => self.fault(),
            _ => {
                self.world.disk_step();
            }
        }
    }

    /// A client comes, whose map stays in memory, or one goes.
    fn connection(&mut self) {
        if self.world.rng.u8(..5) < 2 && !self.connected.is_empty() {
            let at = self.world.rng.usize(..self.connected.len());
            self.world.disconnect(self.connected.swap_remove(at));
            return;
        }
        let name = match self.world.rng.u8(..3) {
            0 => self.some_volume(),
            _ => self.some_snapshot().map(|(volume, snapshot)| format!("{volume}@{snapshot}")),
        };
        if let Some((export, ..)) = name.and_then(|name| self.world.find_export(&name)) {
            self.seen.count("connection");
            self.world.connect(export);
            self.connected.push(export);
        }
    }

    fn fault(&mut self) {
        match self.world.rng.u32(..20) {
            0..4 => self.world.inject(Fault::ReadError),
            4..8 => self.world.inject(Fault::WriteError),
            8..12 => self.world.inject(Fault::Short),
            12 => self.world.inject(Fault::NoSpace),
            13..16 => self.world.inject(Fault::SyncError),
            16 => self.world.meta.inject(MetaFault::Io),
            17 => self.world.meta.inject(MetaFault::NoSpace),
            18 if self.fate.bool() => self.world.recent.fill_up(),
            18 => self.world.meta.inject(MetaFault::ReadIo),
            _ => self.world.disk.fill_up_to(0),
        }
    }

    /// Some volume that no command is about to take away or to change under its name.
    pub(super) fn some_volume(&mut self) -> Option<String> {
        let names = self.reference.volumes.keys().filter(|name| !self.is_changing(name));
        let names: Vec<String> = names.cloned().collect();
        self.world.rng.choice(names)
    }

    pub(super) fn is_changing(&self, volume: &str) -> bool {
        self.asked.values().chain(&self.doubtful).any(|asked| match asked {
            Asked::Rename { from: name, .. } | Asked::DeleteVolume { name } => name == volume,
            Asked::Rollback { name } => name.0 == volume,
            _ => false,
        })
    }

    /// A volume that nothing is under way with, neither requests nor commands.
    pub(super) fn idle_volume(&mut self) -> Option<String> {
        let name = self.some_volume()?;
        (!self.busy(&name) && self.asked.is_empty()).then_some(name)
    }

    pub(super) fn some_snapshot(&mut self) -> Option<(String, String)> {
        let deleting = |name: &(String, String)| {
            let asked = self.asked.values().chain(&self.doubtful);
            asked
                .into_iter()
                .any(|asked| matches!(asked, Asked::DeleteSnapshot { name: other } if other == name))
        };
        let names = self.reference.snapshots.keys();
        let names: Vec<_> =
            names.filter(|name| !self.is_changing(&name.0) && !deleting(name)).cloned().collect();
        self.world.rng.choice(names)
    }

    /// A snapshot whose content is known.
    pub(super) fn known_snapshot(&mut self) -> Option<(String, String)> {
        let name = self.some_snapshot()?;
        self.reference.snapshots[&name].content.is_some().then_some(name)
    }

    pub(super) fn busy(&self, volume: &str) -> bool {
        self.pending.values().any(|pending| pending.volume == volume)
    }

    pub(super) fn new_name(&mut self, prefix: &str) -> String {
        self.next_name += 1;
        format!("{prefix}{}", self.next_name)
    }
}
