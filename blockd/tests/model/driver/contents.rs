//! What volumes and snapshots read as.

use blockd::store::Subject;
use nbd_server::export::{Command, Extent, Payload};
use nbd_server::reactor::buffer::Buf;

use super::{Case, Kind, Pending};
use crate::reference::{CELL_BYTES, Disk};

pub(super) fn fill(buf: &mut Buf, stamp: u64) {
    for chunk in buf.chunks_exact_mut(8) {
        chunk.copy_from_slice(&stamp.to_le_bytes());
    }
}

/// The stamps of whole cells.
pub(super) fn stamps(bytes: &[u8]) -> Vec<u64> {
    let cell = |cell: &[u8]| {
        let stamp = u64::from_le_bytes(cell[..8].try_into().expect("8 bytes"));
        assert!(cell.chunks_exact(8).all(|c| c == &cell[..8]), "a cell is torn");
        stamp
    };
    bytes.chunks_exact(CELL_BYTES as usize).map(cell).collect()
}

pub(super) fn content(payload: Payload) -> Vec<u8> {
    match payload {
        Payload::None | Payload::Status(_) => Vec::new(),
        Payload::Data(buf) => buf.to_vec(),
        Payload::Extents(extents) => {
            let mut bytes = Vec::new();
            for extent in extents {
                match extent {
                    Extent::Data(buf) => bytes.extend_from_slice(&buf),
                    Extent::Hole(length) => bytes.resize(bytes.len() + length as usize, 0),
                }
            }
            bytes
        }
    }
}

impl Case {
    /// Starts a read of a whole snapshot.
    pub(super) fn check_snapshot(&mut self) {
        let Some(name) = self.some_snapshot() else { return };
        self.read_snapshot(&name);
    }

    pub(super) fn read_snapshot(&mut self, name: &(String, String)) {
        let text = format!("{}@{}", name.0, name.1);
        let (export, size, subject) =
            self.world.find_export(&text).expect("an acknowledged snapshot is served");
        assert!(matches!(subject, Subject::Snapshot(_)));
        let length = u32::try_from(size).expect("a small volume");
        let buf = self.world.buffers.take(length as usize);
        let id = self.next_id;
        self.next_id += 1;
        let issued = self.now();
        let kind = Kind::Check { name: name.clone() };
        let pending = Pending { volume: text, kind, cells: 0..0, issued };
        self.pending.insert(id, pending);
        self.world.start(export, id, 0, length, Command::Read { buf, holes: true });
    }

    /// Reads every snapshot, those whose maps clients keep in memory among them.
    pub(super) fn check_all_snapshots(&mut self) {
        let names: Vec<_> = self.reference.snapshots.keys().cloned().collect();
        for name in names {
            // A deletion that failed may have had its effect.
            if self.exists(&format!("{}@{}", name.0, name.1)) {
                self.read_snapshot(&name);
            }
        }
        self.settle();
    }

    pub(super) fn snapshot_read(&mut self, name: &(String, String), found: &[u64]) {
        let Some(snapshot) = self.reference.snapshots.get_mut(name) else { return };
        let latest = snapshot.check(&format!("{}@{}", name.0, name.1), found);
        self.seen.count("snapshot checked");
        let cut = snapshot.cut;
        for (name, other) in self.reference.snapshots.iter().filter(|(_, other)| other.cut == cut) {
            other.check_causality(&format!("{}@{}", name.0, name.1), latest);
        }
    }

    pub(super) fn read_volume(&mut self, name: &str) -> Vec<u64> {
        let (export, size, _) =
            self.world.find_export(name).unwrap_or_else(|| panic!("volume {name} is lost"));
        let length = u32::try_from(size).expect("a small volume");
        let buf = self.world.buffers.take(length as usize);
        self.world.start(export, u32::MAX, 0, length, Command::Read { buf, holes: true });
        self.world.settle();
        let mut replies = self.world.take_replies();
        let reply = replies.pop().expect("a reply");
        assert!(replies.is_empty());
        stamps(&content(reply.outcome.expect("no fault is set")))
    }

    /// After a crash: every cell holds what it may, and that is what it holds from now on.
    pub(super) fn check_volume(&mut self, name: &str) {
        let found = self.read_volume(name);
        let now = self.now();
        let disk = &self.reference.volumes[name];
        assert_eq!(found.len(), disk.cells.len(), "size of {name}");
        for (at, (cell, stamp)) in disk.cells.iter().zip(&found).enumerate() {
            let allowed = if self.kept { cell.left_behind() } else { cell.survivors() };
            assert!(
                allowed.contains(stamp),
                "{name} after a crash, cell {at}: {stamp}, not one of {allowed:?}"
            );
        }
        self.reference.volumes.insert(name.to_owned(), Disk::known(found, now));
    }
}
