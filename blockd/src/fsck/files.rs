//! The pool files: their superblocks, and that they are long enough for what is said to be in them.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::maps::Ends;
use super::report::{FsckReport, beyond_repair, load_problem};
use crate::catalog::format::PoolFileRecord;
use crate::catalog::load::{LoadError, Loaded};
use crate::store::superblock::{SUPERBLOCK_BYTES, Superblock};

/// Checks all files of the pool.
pub(super) fn check(data: &Path, loaded: &Loaded, ends: &Ends, report: &mut FsckReport) {
    for (index, record) in &loaded.files {
        let expected = Superblock::of(loaded.store.identity, *index, record);
        let needed = ends.get(index).copied().unwrap_or(0);
        match read(data, record) {
            Ok((superblock, length)) => {
                if let Err(error) = expected.check(&superblock) {
                    report.add(beyond_repair(format!("{error} (pool file {index}, {})", record.path)));
                }
                if length < needed {
                    report.add(beyond_repair(format!(
                        "pool file {index} ({}) has {length} bytes, but data up to {needed}",
                        record.path
                    )));
                }
            }
            Err(error) => {
                let text = format!("pool file {index} ({}): {error}", record.path);
                report.add(load_problem(&LoadError::Pool(text)));
            }
        }
    }
}

/// The first block and the length of a file or block device.
pub(crate) fn read(data: &Path, record: &PoolFileRecord) -> io::Result<(Vec<u8>, u64)> {
    // An absolute path replaces the directory.
    let mut file = File::open(data.join(&record.path))?;
    let mut superblock = Vec::with_capacity(SUPERBLOCK_BYTES);
    Read::by_ref(&mut file).take(SUPERBLOCK_BYTES as u64).read_to_end(&mut superblock)?;
    // A block device has no length in its metadata, but an end.
    let length = file.seek(SeekFrom::End(0))?;
    Ok((superblock, length))
}
