//! A disk in memory: what is submitted has ended when it is asked for. No faults, no order but that of submission. A file is a
//! small piece of memory that repeats itself: data are moved as on a disk, but stay in the processor's caches.

use std::collections::VecDeque;

use nbd_server::disk::{Disk, DiskDone, DiskOp, DiskOpKind, ExportIndex};

/// Bytes after which it repeats itself, and of the largest transfer.
const MEMORY_BYTES: usize = 1 << 20;

/// All files of a disk.
#[derive(Debug)]
pub struct MemoryDisk {
    /// Twice as long, so that no transfer has to turn around.
    memory: Vec<u8>,
    ended: VecDeque<(ExportIndex, DiskDone)>,
}

impl Default for MemoryDisk {
    /// A disk that does not read as zeroes.
    fn default() -> Self {
        Self { memory: vec![0x5a; 2 * MEMORY_BYTES], ended: VecDeque::new() }
    }
}

impl MemoryDisk {
    fn place(&mut self, offset: u64, bytes: usize) -> &mut [u8] {
        let start = offset as usize % MEMORY_BYTES;
        &mut self.memory[start..start + bytes]
    }

    /// The next operation that has ended, in the order of submission.
    pub fn take_ended(&mut self) -> Option<(ExportIndex, DiskDone)> {
        self.ended.pop_front()
    }
}

impl Disk for MemoryDisk {
    fn submit(&mut self, export: ExportIndex, mut op: DiskOp) {
        let moved = match &mut op.kind {
            DiskOpKind::Read { offset, done, buf } => {
                let into = &mut buf[*done..];
                into.copy_from_slice(self.place(*offset + *done as u64, into.len()));
                into.len()
            }
            DiskOpKind::Write { offset, done, buf } => {
                let from = &buf[*done..];
                self.place(*offset + *done as u64, from.len()).copy_from_slice(from);
                from.len()
            }
            _ => 0,
        };
        self.ended.push_back((export, DiskDone { op, result: Ok(moved) }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nbd_server::disk::FileId;
    use nbd_server::reactor::buffer::Pool;

    #[test]
    fn what_was_written_is_read() {
        let (mut disk, pool) = (MemoryDisk::default(), Pool::new());
        let mut transfer = |write: Option<u8>| {
            let (mut buf, offset) = (pool.take(4096), 5 * MEMORY_BYTES as u64 - 100);
            buf.fill(write.unwrap_or(0));
            let kind = match write {
                Some(_) => DiskOpKind::Write { offset, done: 0, buf },
                None => DiskOpKind::Read { offset, done: 0, buf },
            };
            disk.submit(ExportIndex(3), DiskOp { tag: 9, file: FileId(0), kind });
            let (owner, done) = disk.take_ended().unwrap();
            assert_eq!((owner, done.op.tag, done.result), (ExportIndex(3), 9, Ok(4096)));
            assert!(disk.take_ended().is_none());
            done.op.kind
        };
        transfer(Some(7));
        let DiskOpKind::Read { buf, .. } = transfer(None) else { panic!("another operation") };
        assert!(buf.iter().all(|&byte| byte == 7));
    }
}
