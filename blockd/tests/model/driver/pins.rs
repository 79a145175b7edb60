//! Pinned snapshots: the records of their layers stay as they are.

use blockd::catalog::memory::RawRecord;
use blockd::control::{Control, Pinned};

use super::{Asked, Case};
use crate::world::records_of;

const PINS_MAX: usize = 3;

/// What a pin has found, and must find until its end.
pub(super) struct Pin {
    pinned: Pinned,
    records: Vec<RawRecord>,
}

impl Case {
    /// A snapshot is pinned, or is not any more.
    pub(super) fn pin_or_unpin(&mut self) {
        if self.pins.len() == PINS_MAX || (self.world.rng.bool() && !self.pins.is_empty()) {
            self.check_pins();
            let at = self.world.rng.usize(..self.pins.len());
            let pin = self.pins.swap_remove(at).pinned.pin;
            self.put(Asked::Other, Control::Unpin { pin });
        } else if let Some(name) = self.some_snapshot() {
            self.put(Asked::Other, Control::Pin { name: Self::control_name(&name) });
        }
    }

    /// Nothing has happened since it was answered.
    pub(super) fn pinned(&mut self, pinned: Pinned) {
        self.seen.count("pin");
        let records = records_of(&self.world.meta.snapshot(), &pinned.chain);
        self.pins.push(Pin { pinned, records });
    }

    pub(super) fn check_pins(&self) {
        for Pin { pinned, records } in &self.pins {
            let found = records_of(&self.world.meta.snapshot(), &pinned.chain);
            assert!(found == *records, "records of layers {:?} have changed under a pin", pinned.chain);
        }
    }
}
