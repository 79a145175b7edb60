//! What has happened in some cases.

use std::collections::BTreeMap;

use blockd::units::LayerId;

use super::Case;
use crate::world::packed_records;

/// What has happened in some cases: a model that never does a thing proves nothing of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    counts: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        self.count_many(what, 1);
    }

    pub(super) fn count_many(&mut self, what: &'static str, times: u64) {
        *self.counts.entry(what).or_default() += times;
    }

    pub(crate) fn assert_everything_happened(&self) {
        for what in [
            "read",
            "write",
            "zero",
            "trim",
            "flush",
            "fua",
            "power cut",
            "kill",
            "kill after a failure",
            "reopen",
            "no space",
            "read error",
            "sync failed",
            "batch failed",
            "create",
            "delete volume",
            "snapshot",
            "group cut",
            "delete snapshot",
            "clone",
            "rollback",
            "grow",
            "rename",
            "hold",
            "pin",
            "snapshot checked",
            "unaligned",
            "all space back",
            "frame",
            "frame found",
            "frame unfinished",
            "write held",
            "checkpoint used",
            "checkpoint out of date",
            "connection",
            "packed",
            "packed record changed hands",
            "packed layer merged",
        ] {
            assert!(self.counts.get(what).is_some_and(|&count| count > 0), "never happened: {what}");
        }
    }
}

impl Case {
    /// Counts what has become of packed records since the last look; the records are checked by it.
    pub(super) fn look_at_packed(&mut self) {
        let (loaded, found) = packed_records(&self.world.meta.snapshot());
        if !found.is_empty() {
            self.seen.count("packed");
        }
        let is_gone = |layer: &LayerId| !loaded.layers.contains_key(layer);
        for before in std::mem::take(&mut self.packed).iter().filter(|before| is_gone(&before.layer)) {
            if found.iter().any(|now| (now.at, now.place) == (before.at, before.place)) {
                self.seen.count("packed record changed hands");
            }
            if self.children.get(&before.layer).is_some_and(|child| !is_gone(child)) {
                self.seen.count("packed layer merged");
            }
        }
        let parents = loaded.layers.iter().filter_map(|(&layer, record)| Some((record.parent?, layer)));
        (self.children, self.packed) = (parents.collect(), found);
    }
}
