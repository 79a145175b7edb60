//! The mark: the number of the last commit that anybody was told of, kept outside RocksDB.
//!
//! RocksDB drops a damaged tail of its log in silence, and an older copy of its files opens as if it were the newest.
//! Both lose commits that were promised. The mark is how we notice: recovery that ends below it is refused.
//!
//! Two slots, written alternately, so that a torn write leaves the other.

use std::fs::File;
use std::io::{ErrorKind, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::{Errno, ReadWriteFlags, pwritev2};

use crate::catalog::format::FORMAT_VERSION;

/// The file's name in the data directory.
pub const MARK_FILE: &str = "mark";

const SLOT_BYTES: usize = 4096;
const MAGIC: &[u8; 8] = b"BLKDMARK";
/// The checksum covers what lies before it.
const CRC_OFFSET: usize = 40;

/// Why the mark cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// The file could not be read or written.
    #[error("mark: {0}")]
    Io(String),
    /// Neither slot is valid: what was promised is unknown.
    #[error("MARK_DAMAGED: no valid slot: {0}")]
    Damaged(String),
    /// Written by a later program.
    #[error("FORMAT_NEWER: mark of version {found}, this program knows {FORMAT_VERSION}")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// The mark of another store.
    #[error("MARK_MISMATCH: the mark is of store {found}, the metadata of {expected}")]
    Mismatch {
        /// In the mark.
        found: String,
        /// In the metadata.
        expected: String,
    },
}

fn io_error(what: &str, error: impl std::fmt::Display) -> MarkError {
    MarkError::Io(format!("{what}: {error}"))
}

/// What one slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Zeroes: never written.
    Empty,
    /// Torn or damaged.
    Damaged,
    /// Of a later program.
    Newer(u32),
    /// A commit of a store.
    Valid {
        /// Of the store.
        identity: [u8; 16],
        /// Its number.
        commit: u64,
    },
}

impl Slot {
    fn encode(identity: [u8; 16], commit: u64) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&identity);
        bytes[32..40].copy_from_slice(&commit.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; SLOT_BYTES]) -> Self {
        if bytes.iter().all(|byte| *byte == 0) {
            return Self::Empty;
        }
        let [crc, version] = [CRC_OFFSET, 8]
            .map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        if &bytes[..8] != MAGIC || crc != crc32c::crc32c(&bytes[..CRC_OFFSET]) {
            return Self::Damaged;
        }
        if version != FORMAT_VERSION {
            return Self::Newer(version);
        }
        let (mut identity, mut commit) = ([0; 16], [0; 8]);
        identity.copy_from_slice(&bytes[16..32]);
        commit.copy_from_slice(&bytes[32..40]);
        Self::Valid { identity, commit: u64::from_le_bytes(commit) }
    }
}

/// Both slots, as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slots(pub [Slot; 2]);

impl Slots {
    /// Reads the mark of a data directory.
    ///
    /// # Errors
    /// `Damaged`: there is no such file. `Io`.
    pub fn read(data: &Path) -> Result<Self, MarkError> {
        let file = File::open(data.join(MARK_FILE)).map_err(|error| match error.kind() {
            ErrorKind::NotFound => MarkError::Damaged("there is no file `mark`".into()),
            _ => io_error("open", error),
        })?;
        Self::read_from(&file)
    }

    fn read_from(file: &File) -> Result<Self, MarkError> {
        let mut slots = [Slot::Empty; 2];
        for (slot, offset) in slots.iter_mut().zip([0, SLOT_BYTES as u64]) {
            let mut bytes = [0; SLOT_BYTES];
            *slot = match file.read_exact_at(&mut bytes, offset) {
                Ok(()) => Slot::decode(&bytes),
                // Cut short: by damage, for the file is made whole before its name is.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => Slot::Damaged,
                Err(error) => return Err(io_error("read", error)),
            };
        }
        Ok(Self(slots))
    }

    /// The identity and the commit that the slots say together.
    ///
    /// # Errors
    /// `Damaged`: no slot is valid, or they are of two stores. `Newer`.
    pub fn newest(&self) -> Result<([u8; 16], u64), MarkError> {
        let mut newest = None;
        for slot in self.0 {
            match slot {
                Slot::Newer(found) => return Err(MarkError::Newer { found }),
                Slot::Valid { identity, commit } => {
                    let (held, largest) = newest.unwrap_or((identity, commit));
                    if held != identity {
                        return Err(MarkError::Damaged("the slots are of two stores".into()));
                    }
                    newest = Some((identity, commit.max(largest)));
                }
                Slot::Empty | Slot::Damaged => {}
            }
        }
        newest.ok_or_else(|| MarkError::Damaged(format!("slots are {:?} and {:?}", self.0[0], self.0[1])))
    }
}

/// The mark of a store, open for writing.
#[derive(Debug)]
pub struct Mark {
    file: File,
    identity: [u8; 16],
    commit: u64,
}

impl Mark {
    /// Makes the mark of a new store, at commit 0. It is durable, its name too, when this returns.
    ///
    /// # Errors
    /// `Io`, also if there is a mark.
    pub fn create(data: &Path, identity: [u8; 16]) -> Result<Self, MarkError> {
        let path: PathBuf = data.join(MARK_FILE);
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(|error| io_error("create", error))?;
        file.set_len(2 * SLOT_BYTES as u64).map_err(|error| io_error("create", error))?;
        let mark = Self { file, identity, commit: 0 };
        mark.write(0)?;
        // The size is not data: RWF_DSYNC need not have made it durable in every file system.
        mark.file.sync_all().map_err(|error| io_error("sync", error))?;
        let directory = File::open(data).and_then(|directory| directory.sync_all());
        directory.map_err(|error| io_error("sync the directory", error))?;
        Ok(mark)
    }

    /// Opens the mark of a store.
    ///
    /// # Errors
    /// `Damaged`, `Newer`, `Mismatch`, `Io`.
    pub fn open(data: &Path, identity: [u8; 16]) -> Result<Self, MarkError> {
        let file = File::options().read(true).write(true).open(data.join(MARK_FILE));
        let file = file.map_err(|error| match error.kind() {
            ErrorKind::NotFound => MarkError::Damaged("there is no file `mark`".into()),
            _ => io_error("open", error),
        })?;
        let (found, commit) = Slots::read_from(&file)?.newest()?;
        check_identity(found, identity)?;
        Ok(Self { file, identity, commit })
    }

    /// The last commit that it holds.
    pub fn commit(&self) -> u64 {
        self.commit
    }

    /// Makes a commit the last one; durable when this returns. The mark never moves back: an older number changes
    /// nothing.
    ///
    /// # Errors
    /// `Io`: whether the mark holds the commit is unknown.
    pub fn advance(&mut self, commit: u64) -> Result<(), MarkError> {
        if commit <= self.commit {
            return Ok(());
        }
        // By an even step, after a slot was damaged, the write would go into the only valid slot: torn, it would
        // leave none. The number between is as true, and goes into the other.
        if (commit - self.commit).is_multiple_of(2) {
            self.write(commit - 1)?;
            self.commit = commit - 1;
        }
        self.write(commit)?;
        self.commit = commit;
        Ok(())
    }

    /// Writes both slots anew, whatever they held. Repair of a damaged slot only: a crash between the two writes may
    /// leave no valid slot if the one that was valid goes first.
    ///
    /// # Errors
    /// `Io`.
    pub fn rewrite(data: &Path, identity: [u8; 16], commit: u64) -> Result<(), MarkError> {
        let file =
            File::options().write(true).create(true).truncate(false).mode(0o600).open(data.join(MARK_FILE));
        let file = file.map_err(|error| io_error("open", error))?;
        file.set_len(2 * SLOT_BYTES as u64).map_err(|error| io_error("resize", error))?;
        let mark = Self { file, identity, commit };
        mark.write(commit.saturating_sub(1))?;
        mark.write(commit)?;
        mark.file.sync_all().map_err(|error| io_error("sync", error))
    }

    /// A mark of which every write fails.
    #[cfg(test)]
    pub(crate) fn read_only_for_tests(data: &Path, identity: [u8; 16]) -> Self {
        Self { file: File::open(data.join(MARK_FILE)).unwrap(), identity, commit: 0 }
    }

    fn write(&self, commit: u64) -> Result<(), MarkError> {
        let bytes = Slot::encode(self.identity, commit);
        let offset = commit % 2 * SLOT_BYTES as u64;
        let written = loop {
            match pwritev2(&self.file, &[IoSlice::new(&bytes)], offset, ReadWriteFlags::DSYNC) {
                Err(Errno::INTR) => {}
                result => break result.map_err(|error| io_error("write", error))?,
            }
        };
        // A torn slot is no mark. Trying again would tear it again: the medium is full or broken.
        if written != SLOT_BYTES {
            return Err(MarkError::Io(format!("write: {written} bytes of {SLOT_BYTES} were written")));
        }
        Ok(())
    }
}

/// Whether the mark is this store's.
///
/// # Errors
/// `Mismatch`, with both.
pub fn check_identity(found: [u8; 16], expected: [u8; 16]) -> Result<(), MarkError> {
    if found == expected {
        return Ok(());
    }
    let text = |identity| format!("{:032x}", u128::from_be_bytes(identity));
    Err(MarkError::Mismatch { found: text(found), expected: text(expected) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: [u8; 16] = *b"0123456789abcdef";

    fn store() -> (tempfile::TempDir, Mark) {
        let data = tempfile::tempdir().unwrap();
        let mark = Mark::create(data.path(), IDENTITY).unwrap();
        (data, mark)
    }

    fn bytes(data: &Path) -> Vec<u8> {
        std::fs::read(data.join(MARK_FILE)).unwrap()
    }

    fn damage(data: &Path, slot: usize) {
        let mut all = bytes(data);
        all[slot * SLOT_BYTES + 33] ^= 4;
        std::fs::write(data.join(MARK_FILE), all).unwrap();
    }

    #[test]
    fn the_bytes_are_as_drawn() {
        let (data, mut mark) = store();
        mark.advance(1).unwrap();
        mark.advance(0x0102).unwrap();
        let all = bytes(data.path());
        assert_eq!(all.len(), 8192);
        let expected = b"BLKDMARK\x01\0\0\0\0\0\0\x000123456789abcdef\x02\x01\0\0\0\0\0\0";
        assert_eq!(&all[..40], expected);
        assert_eq!(all[40..44], crc32c::crc32c(expected).to_le_bytes());
        assert!(all[44..4096].iter().all(|byte| *byte == 0));
        assert_eq!(all[4096 + 32..4096 + 34], [1, 0]);
    }

    #[test]
    fn the_larger_valid_slot_counts() {
        let (data, mut mark) = store();
        for commit in 1..=7 {
            mark.advance(commit).unwrap();
            assert_eq!(Mark::open(data.path(), IDENTITY).unwrap().commit(), commit);
        }
        damage(data.path(), 1);
        assert_eq!(Mark::open(data.path(), IDENTITY).unwrap().commit(), 6);
        damage(data.path(), 0);
        let error = Mark::open(data.path(), IDENTITY).unwrap_err().to_string();
        assert!(error.starts_with("MARK_DAMAGED: "), "{error}");
    }

    #[test]
    fn it_never_moves_back() {
        let (data, mut mark) = store();
        mark.advance(5).unwrap();
        mark.advance(4).unwrap();
        mark.advance(5).unwrap();
        assert_eq!(mark.commit(), 5);
        assert_eq!(Mark::open(data.path(), IDENTITY).unwrap().commit(), 5);
    }

    /// The slot that an even step would overwrite is the only valid one: the other gets a valid number first.
    #[test]
    fn an_even_step_leaves_two_valid_slots() {
        let (data, mut mark) = store();
        for commit in 1..=5 {
            mark.advance(commit).unwrap();
        }
        damage(data.path(), 1);
        let mut mark = Mark::open(data.path(), IDENTITY).unwrap();
        assert_eq!(mark.commit(), 4);
        mark.advance(6).unwrap();
        damage(data.path(), 0);
        assert_eq!(Mark::open(data.path(), IDENTITY).unwrap().commit(), 5);
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let (data, _mark) = store();
        let good = bytes(data.path());
        for bit in 0..44 * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(data.path().join(MARK_FILE), bad).unwrap();
            assert!(matches!(Mark::open(data.path(), IDENTITY), Err(MarkError::Damaged(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_cut_or_missing_file_is_damage() {
        let (data, mut mark) = store();
        mark.advance(1).unwrap();
        mark.file.set_len(5000).unwrap();
        assert_eq!(Mark::open(data.path(), IDENTITY).unwrap().commit(), 0);
        mark.file.set_len(100).unwrap();
        assert!(matches!(Mark::open(data.path(), IDENTITY), Err(MarkError::Damaged(_))));
        std::fs::remove_file(data.path().join(MARK_FILE)).unwrap();
        assert!(matches!(Mark::open(data.path(), IDENTITY), Err(MarkError::Damaged(_))));
    }

    #[test]
    fn another_stores_mark_and_a_later_format_are_named() {
        let (data, mark) = store();
        let error = Mark::open(data.path(), [1; 16]).unwrap_err().to_string();
        assert!(error.starts_with("MARK_MISMATCH: "), "{error}");
        let mut slot = Slot::encode(IDENTITY, 0);
        slot[8] = 2;
        let crc = crc32c::crc32c(&slot[..40]);
        slot[40..44].copy_from_slice(&crc.to_le_bytes());
        mark.file.write_all_at(&slot, 0).unwrap();
        assert_eq!(Mark::open(data.path(), IDENTITY).unwrap_err(), MarkError::Newer { found: 2 });
    }

    #[test]
    fn creating_twice_is_refused() {
        let (data, _mark) = store();
        assert!(matches!(Mark::create(data.path(), IDENTITY), Err(MarkError::Io(_))));
    }
}
