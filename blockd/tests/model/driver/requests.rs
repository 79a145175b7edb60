//! Requests: drawn, and their replies held against the reference.

use std::ops::Range;

use nbd_server::export::{Command, Reply};
use nbd_server::wire::Errno;

use super::contents::{content, fill, stamps};
use super::{Asked, Case, KIB, Kind, Pending};
use crate::reference::{CELL_BYTES, NEVER, cells};

impl Case {
    /// One of a few blocks, again and again: written at once, made zero, flushed.
    fn hot_request(&mut self, volume: String) {
        const BLOCKS: u64 = 6;
        let first = self.world.rng.u64(..BLOCKS);
        let length = self.world.rng.u64(1..=(BLOCKS - first).min(3)) * 4096;
        let (offset, size) = (first * 4096, self.reference.volumes[&volume].cells.len() as u64 * CELL_BYTES);
        if offset + length > size {
            return;
        }
        let (range, bytes) = (cells(offset)..cells(offset + length), length as u32);
        let fua = self.world.rng.u8(..8) == 0;
        match self.world.rng.u32(..20) {
            0..11 => {
                let stamp = self.time + 1;
                let mut buf = self.world.buffers.take(length as usize);
                fill(&mut buf, stamp);
                let command = Command::Write { buf, fua };
                self.issue(volume, Kind::Write { stamp, fua }, range, offset, bytes, command);
            }
            11..14 => {
                let kind = Kind::Write { stamp: 0, fua };
                self.issue(volume, kind, range, offset, bytes, Command::Trim { fua });
            }
            _ => self.issue(volume, Kind::Flush, 0..0, 0, 0, Command::Flush),
        }
    }

    pub(super) fn request(&mut self) {
        let Some(volume) = self.some_volume() else { return };
        if self.hot {
            return self.hot_request(volume);
        }
        let size = self.reference.volumes[&volume].cells.len() as u64 * CELL_BYTES;
        let aligned = self.world.rng.u8(..4) != 0;
        let unit = if aligned { 4096 } else { CELL_BYTES };
        let offset = self.world.rng.u64(..size.div_ceil(unit)) * unit;
        let most = match self.world.rng.u8(..8) {
            0 => 300 * KIB,
            1..4 => 16 * KIB,
            _ => 4 * KIB,
        };
        let length = (self.world.rng.u64(1..=most / unit) * unit).min(size - offset);
        if !aligned {
            self.seen.count("unaligned");
        }
        let range = cells(offset)..cells(offset + length);
        let length = u32::try_from(length).expect("a small volume");
        let fua = self.world.rng.u8(..8) == 0;
        if fua {
            self.seen.count("fua");
        }
        let write = |stamp| Kind::Write { stamp, fua };
        match self.world.rng.u32(..20) {
            0..6 => {
                let buf = self.world.buffers.take(length as usize);
                let holes = self.world.rng.bool();
                self.issue(volume, Kind::Read, range, offset, length, Command::Read { buf, holes });
            }
            6..14 => {
                let stamp = self.time + 1;
                let mut buf = self.world.buffers.take(length as usize);
                fill(&mut buf, stamp);
                self.issue(volume, write(stamp), range, offset, length, Command::Write { buf, fua });
            }
            14..16 => self.issue(volume, write(0), range, offset, length, Command::Trim { fua }),
            16..18 => {
                let no_hole = self.world.rng.u8(..3) == 0;
                let command = Command::WriteZeroes { fua, no_hole, fast: false };
                self.issue(volume, write(0), range, offset, length, command);
            }
            _ => self.issue(volume, Kind::Flush, 0..0, 0, 0, Command::Flush),
        }
    }

    fn issue(
        &mut self,
        volume: String,
        kind: Kind,
        cells: Range<usize>,
        offset: u64,
        length: u32,
        command: Command,
    ) {
        let (export, _, _) = self.world.find_export(&volume).expect("the volume is served");
        let issued = self.now();
        if let Kind::Write { stamp, .. } = kind {
            self.reference.volumes.get_mut(&volume).expect("it exists").issue(cells.clone(), stamp, issued);
        }
        self.seen.count(match (&kind, &command) {
            (Kind::Flush, _) => "flush",
            (Kind::Read, _) => "read",
            (_, Command::Trim { .. }) => "trim",
            (_, Command::WriteZeroes { .. }) => "zero",
            _ => "write",
        });
        let id = self.next_id;
        self.next_id += 1;
        trace!(self, "{id}: {volume} {offset}+{length} {command:?}");
        self.pending.insert(id, Pending { volume, kind, cells, issued });
        self.world.start(export, id, offset, length, command);
    }

    pub(super) fn reply(&mut self, reply: Reply) {
        let pending = self.pending.remove(&reply.id.index).expect("one reply to each request");
        let now = self.now();
        let ok = reply.outcome.is_ok();
        trace!(self, "{}: {} replied {:?}", reply.id.index, pending.volume, reply.outcome);
        if let Err(error) = &reply.outcome {
            self.excuse(*error, &pending);
        }
        match pending.kind {
            Kind::Read => {
                let Ok(payload) = reply.outcome else { return };
                self.check_read(&pending, &stamps(&content(payload)), now);
            }
            Kind::Write { fua, .. } => {
                let failed = self.failed.contains(&pending.volume);
                assert!(!(ok && fua && failed), "FUA answered after a failed sync");
                if let Some(disk) = self.reference.volumes.get_mut(&pending.volume) {
                    disk.end(pending.cells, pending.issued, now, ok, fua);
                }
            }
            Kind::Flush if ok => {
                assert!(!self.failed.contains(&pending.volume), "FLUSH answered after a failed sync");
                let horizon = self.horizon();
                if let Some(disk) = self.reference.volumes.get_mut(&pending.volume) {
                    disk.flushed(pending.issued, now, horizon);
                }
            }
            Kind::Flush => self.failed.push(pending.volume),
            Kind::Check { name } => {
                let Ok(payload) = reply.outcome else { return };
                self.snapshot_read(&name, &stamps(&content(payload)));
            }
        }
    }

    /// A read has returned what its cells had between its start and its end.
    fn check_read(&self, read: &Pending, found: &[u64], now: u64) {
        let volume = &read.volume;
        let Some(disk) = self.reference.volumes.get(volume) else { return };
        assert_eq!(found.len(), read.cells.len(), "length of a read");
        for (at, stamp) in read.cells.clone().zip(found) {
            let allowed = disk.cells[at].readable(read.issued, now);
            assert!(allowed.contains(stamp), "{volume}, cell {at}: {stamp}, not one of {allowed:?}");
        }
    }

    /// Before that, nothing is under way that could still see old values.
    fn horizon(&self) -> u64 {
        let requests = self.pending.values().map(|pending| pending.issued);
        let cuts = self.asked.values().map(|asked| match asked {
            Asked::Cut { requested, .. } => *requested,
            _ => NEVER,
        });
        requests.chain(cuts).min().unwrap_or(self.time)
    }

    /// An error needs a cause.
    fn excuse(&mut self, error: Errno, pending: &Pending) {
        match error {
            Errno::NoSpace => self.seen.count("no space"),
            Errno::Io if matches!(pending.kind, Kind::Read | Kind::Check { .. }) => {
                self.seen.count("read error");
                assert!(self.faults_hit() > 0, "a read fails without cause");
            }
            Errno::Io => {
                if matches!(pending.kind, Kind::Flush) {
                    self.seen.count("sync failed");
                }
                assert!(self.faults_hit() > 0, "an error without cause");
            }
            other => panic!("{other:?} to a legal request"),
        }
    }
}
