//! The recent log as files: what a killed daemon leaves to the next one (docs/on-disk-format.md, "The recent log").
//!
//! Two files in a directory in memory, one for the commit under way and one for the next. Each begins with a header,
//! which tells the commit, the store and the boot; frames follow, each with a length and a checksum. Writing them is
//! a copy to the page cache: a killed process leaves them behind, the power takes them along. Should they lie on a
//! medium after all, the boot in their header is another one after the power has gone, and they are not used.
//!
//! What this does not do: decide what belongs into the log, and when. That is [`crate::store`]'s.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::catalog::format::Change;
use crate::store::RecentLog;

mod frames;

use frames::{ABANDONED, Header, Kept};

/// The log is for the commit under way and for the next: so many numbers may be ahead of the last durable one.
pub const COMMITS_AHEAD: u64 = 2;
/// Bytes that the log may hold for one commit: many more than a disk can fall behind by.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Where the log is without a word of the user's, for root. Not where the sockets are: others must get in there.
const RUN_DIRECTORY: &str = "/run/blockd-recent";
/// Where memory can be had as a file system by everybody.
const SHARED_MEMORY: &str = "/dev/shm";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Whose log it is: the store's, of this boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The store's identity.
    pub identity: [u8; 16],
    /// The system's, since it was started.
    pub boot: [u8; 16],
}

impl Origin {
    /// Of a store, here and now.
    ///
    /// # Errors
    /// The system does not tell one boot from the next.
    pub fn of(identity: [u8; 16]) -> io::Result<Self> {
        let text = fs::read_to_string(BOOT_ID)?;
        let digits = text.trim().replace('-', "");
        let boot = u128::from_str_radix(&digits, 16).map_err(|_| io::Error::other("no boot id"))?;
        Ok(Self { identity, boot: boot.to_be_bytes() })
    }
}

/// The directory of the log: the one that was asked for, or else one in memory. Made if it is not there.
///
/// # Errors
/// There is none that only we can write to.
pub fn directory(asked: Option<&Path>) -> io::Result<PathBuf> {
    let directory = asked.map_or_else(default_directory, |path| Ok(path.to_owned()))?;
    match DirBuilder::new().recursive(asked.is_some()).mode(0o700).create(&directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = fs::symlink_metadata(&directory)?;
    let own = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
    if !own || found.mode() & 0o022 != 0 {
        let text = format!("{} is no directory that only we can write to", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(directory)
}

fn default_directory() -> io::Result<PathBuf> {
    let user = rustix::process::geteuid();
    if user.is_root() && is_in_memory(Path::new("/run")) {
        return Ok(RUN_DIRECTORY.into());
    }
    if is_in_memory(Path::new(SHARED_MEMORY)) {
        return Ok(Path::new(SHARED_MEMORY).join(format!("blockd-{}", user.as_raw())));
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "no file system in memory was found"))
}

fn is_in_memory(path: &Path) -> bool {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    // The field's type differs by architecture; magic numbers have 32 bits.
    rustix::fs::statfs(path).is_ok_and(|found| [TMPFS, RAMFS].contains(&(found.f_type as u32)))
}

/// What the last process has left behind.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// What comes after the last commit, in order.
    pub changes: Vec<Change>,
    /// It had given the log up: a sync may have failed, and the page cache may show what is on no medium.
    pub abandoned: bool,
}

/// One of the two files.
#[derive(Debug)]
struct Half {
    path: PathBuf,
    file: File,
    /// The commit that it is for, and what checksums begin with; `None`: it is of no use.
    section: Option<(u64, u32)>,
    bytes: u64,
}

impl Half {
    fn open(path: PathBuf) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(&path)?;
        Ok(Self { path, file, section: None, bytes: 0 })
    }

    fn clear(&mut self) -> io::Result<()> {
        (self.section, self.bytes) = (None, 0);
        self.file.set_len(0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct RecentFiles {
    halves: [Half; 2],
    origin: Origin,
    /// Empty between calls: kept for its memory.
    buffer: Vec<u8>,
}

impl RecentFiles {
    /// The log of a store, in a directory that only we can write to. What it holds stays until it is written to.
    ///
    /// # Errors
    /// The files cannot be made.
    pub fn open(directory: &Path, origin: Origin) -> io::Result<Self> {
        let name = u128::from_be_bytes(origin.identity);
        let half = |half: u8| Half::open(directory.join(format!("recent-{name:032x}.{half}")));
        Ok(Self { halves: [half(0)?, half(1)?], origin, buffer: Vec::new() })
    }

    /// One of its files, with the number at the end left out.
    pub fn place(&self) -> PathBuf {
        self.halves[0].path.with_extension("")
    }

    /// What the last process has left behind, which comes after commit `last`.
    ///
    /// # Errors
    /// The files cannot be read, or what they say cannot be true.
    pub fn recover(&self, last: u64) -> io::Result<Recovered> {
        let mut kept = Vec::new();
        for half in &self.halves {
            match frames::read(&read_whole(&half.file)?, self.origin) {
                Ok(Some(found)) if found.commit == ABANDONED => {
                    return Ok(Recovered { abandoned: true, ..Recovered::default() });
                }
                Ok(Some(found)) if found.commit > last => kept.push(found),
                Ok(_) => {}
                Err(why) => tracing::info!(file = %half.path.display(), why, "a recent log is not used"),
            }
        }
        kept.sort_by_key(|found| found.commit);
        Ok(Recovered { changes: join(kept, last)?, abandoned: false })
    }

    /// Forgets all of it: what was recovered is durable.
    ///
    /// # Errors
    /// It may still be there.
    pub fn clear(&mut self) -> io::Result<()> {
        self.halves.iter_mut().try_for_each(Half::clear)
    }
}

/// A gap, or a part that is cut off with another behind it, was not left by a killed process.
fn join(kept: Vec<Kept>, last: u64) -> io::Result<Vec<Change>> {
    let mut changes = Vec::new();
    let count = kept.len();
    for (place, found) in kept.into_iter().enumerate() {
        let torn = found.torn && place + 1 < count;
        if found.commit != last + 1 + place as u64 || torn {
            let text = format!("the recent log for commit {} does not follow commit {last}", found.commit);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        changes.extend(found.changes);
    }
    Ok(changes)
}

fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a recent log is longer than one can be"));
    }
    let mut bytes = vec![0; usize::try_from(length).expect("fits memory")];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

impl RecentLog for RecentFiles {
    fn append(&mut self, commit: u64, changes: &[Change]) -> io::Result<u64> {
        let half = &mut self.halves[usize::from(commit % 2 == 1)];
        self.buffer.clear();
        let section = half.section.filter(|&(found, _)| found == commit);
        let (_, crc) = match section {
            Some(section) => section,
            None => {
                half.clear()?;
                let header = Header { commit, origin: self.origin }.encode();
                self.buffer.extend(header);
                *half.section.insert((commit, frames::crc_of(&header)))
            }
        };
        frames::push(&mut self.buffer, crc, changes);
        let end = half.bytes + self.buffer.len() as u64;
        if end > FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a recent log has become too long"));
        }
        half.file.write_all_at(&self.buffer, half.bytes)?;
        half.bytes = end;
        Ok(end)
    }

    fn forget(&mut self, commit: u64) {
        for half in &mut self.halves {
            if half.section.is_some_and(|(found, _)| found <= commit)
                && let Err(error) = half.clear()
            {
                // Its commit number says that it is out of date.
                tracing::debug!(%error, "a part of the recent log stays");
            }
        }
    }

    fn abandon(&mut self) {
        let header = Header { commit: ABANDONED, origin: self.origin }.encode();
        for half in &mut self.halves {
            if let Err(error) = half.clear().and_then(|()| half.file.write_all_at(&header, 0)) {
                tracing::error!(%error, file = %half.path.display(), "a recent log could not be given up");
            }
            // It stays for the next process to see.
            half.section = Some((ABANDONED, frames::crc_of(&header)));
        }
    }
}

/// A stop with everything committed leaves no files; one that has not finished leaves them to the next process.
impl Drop for RecentFiles {
    fn drop(&mut self) {
        if self.halves.iter().any(|half| half.section.is_some()) {
            return;
        }
        for half in &self.halves {
            if let Err(error) = fs::remove_file(&half.path) {
                tracing::debug!(%error, "an empty file stays");
            }
        }
    }
}

#[cfg(test)]
mod tests;
