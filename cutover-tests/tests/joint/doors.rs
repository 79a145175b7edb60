//! Clients' connections: exports of one epoch, and what the store answers through each of them.

use std::collections::BTreeMap;

use blockd::units::CLUSTER_BYTES;
use cutover_sim::blockds::Blockds;
use nbd_server::disk::ExportIndex;
use vmctl::cutover::ids::Epoch;

use crate::ledger::{BLOCK, Tag, block_of};
use crate::stores::{Stores, VOLUME};

/// What probes write; no write of the guest has that name.
const PROBE: Tag = Tag::MAX;
/// Steps in which a store answers what it does not hold.
const STEPS_MAX: usize = 20_000;

/// Doors of one host that a QEMU has opened, by epoch.
#[derive(Debug, Default)]
pub(crate) struct Doors(BTreeMap<u64, ExportIndex>);

impl Doors {
    /// The process is gone, and all connections with it.
    pub(crate) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Stores {
    /// The connection of the QEMU of that epoch; made, if there is none. `None`: there is no such door.
    pub(crate) fn door(&mut self, host: usize, epoch: Epoch) -> Option<ExportIndex> {
        if let Some(door) = self.doors[host].0.get(&epoch.0) {
            return Some(*door);
        }
        let door = self.hosts[host].find_door(&format!("{VOLUME}:{}", epoch.0))?;
        self.hosts[host].store.connected(door);
        self.doors[host].0.insert(epoch.0, door);
        Some(door)
    }

    /// The QEMU of that epoch has ended. What it had asked for may still be done.
    pub(crate) fn leave(&mut self, host: usize, epoch: Epoch) {
        if let Some(pending) = self.pending[host].take_if(|pending| pending.epoch == epoch) {
            self.ghosts[host].extend(pending.request.is_some().then_some(pending));
        }
        if let Some(door) = self.doors[host].0.remove(&epoch.0) {
            self.hosts[host].store.disconnected(door);
        }
    }

    /// Everything, through the door of an epoch.
    pub(crate) fn read(&mut self, host: usize, epoch: Epoch) -> Vec<u8> {
        let door = self.door(host, epoch).unwrap_or_else(|| panic!("host {host} has no door of {epoch:?}"));
        let size = self.size;
        self.hosts[host].read_export(door, size).expect("the owner can read")
    }

    /// Writes through every door that anybody could have: at most one host takes it, and only if its record says so.
    pub(crate) fn probe(&mut self) {
        for host in 0..2 {
            let own = self.accepts(host).then(|| self.epoch(host).0);
            let mut doors: Vec<(u64, ExportIndex)> =
                self.doors[host].0.iter().map(|(epoch, door)| (*epoch, *door)).collect();
            for (door, info) in self.hosts[host].store.doors() {
                let epoch = info.name.rsplit(':').next().and_then(|epoch| epoch.parse().ok());
                doors.push((epoch.expect("a door is called after its epoch"), door));
            }
            for (epoch, door) in doors {
                let taken = self.takes_write(host, door);
                assert_eq!(
                    taken,
                    own == Some(epoch),
                    "host {host}, door of {epoch}: a write was {}, the record says {:?}",
                    if taken { "taken" } else { "not taken" },
                    self.shown[host].moved
                );
            }
        }
    }

    fn takes_write(&mut self, host: usize, door: ExportIndex) -> bool {
        let at = self.size - BLOCK as u64;
        assert!(self.size.is_multiple_of(CLUSTER_BYTES));
        let host = &mut self.hosts[host];
        let request = host.begin_write(door, at, &block_of(PROBE), false);
        for _ in 0..STEPS_MAX {
            if let Some(outcome) = host.reply(request) {
                return outcome.is_ok();
            }
            if !host.step() {
                self.seen.count("probes that were held");
                return false;
            }
        }
        panic!("a store that never rests");
    }
}
