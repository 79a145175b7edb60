//! Tree caches: for each volume, the values above the clusters of the snapshot that was hashed last, in a file.
//!
//! With them the hash of the next snapshot costs what has changed: the values on the way from each changed cluster to
//! the root. Without them all recorded values are read and merged, one for each cluster that any snapshot has.
//!
//! **Nothing in the file is believed.** It is not synced, and is written in place: after a crash any page may be old,
//! new or empty, each by itself whole. But whatever is read leads to the root that is *recorded*, durably, in the
//! metadata: values at the volume's end make that root, or nothing here is used; a page below is used only if its values
//! make the value above. A wrong value that passes would be a collision of BLAKE3. So there are no checksums of pages, no
//! generations and no order of writes to be kept. What is found wrong costs time: the hash is made from
//! the start, and the file with it.
//!
//! The header's word on whose tree it is, and that it is not being changed, only saves the attempt.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::hash::Value;
use crate::hash::pages::HEADER_BYTES;
use crate::units::{LayerId, VolumeId};

mod before;
mod header;
#[cfg(test)]
mod tests;
mod update;

pub(super) use before::Before;
pub(super) use header::Header;
pub(super) use update::{Hashes, Trouble, Update};

/// The directory of the files, in the data directory.
pub const TREES_DIRECTORY: &str = "hashes";
/// How the files' names end; before it is the volume's number.
const SUFFIX: &str = ".tree";

/// How long is waited for a file before whoever waits is asked whether to go on.
const WAIT: Duration = Duration::from_millis(50);

/// The tree caches of a store.
#[derive(Debug)]
pub struct Trees {
    directory: PathBuf,
    identity: [u8; 16],
    users: Mutex<Users>,
    /// A file is free again.
    freed: Condvar,
}

#[derive(Debug, Default)]
struct Users {
    /// Volumes whose file somebody uses.
    leased: BTreeSet<VolumeId>,
    /// Volumes of which somebody waits for a hash, or will, and how many do.
    wanted: BTreeMap<VolumeId, usize>,
}

impl Trees {
    /// Those in the data directory of the store with that identity. Makes nothing yet.
    pub fn new(data: &Path, identity: [u8; 16]) -> Self {
        let directory = data.join(TREES_DIRECTORY);
        Self { directory, identity, users: Mutex::default(), freed: Condvar::new() }
    }

    /// No code panics with the lock held.
    fn lock(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a hash of the volume is waited for, or will be: whoever makes one that nobody waits for lets go.
    pub(super) fn want(self: &Arc<Self>, volume: VolumeId) -> Wanted {
        *self.lock().wanted.entry(volume).or_default() += 1;
        Wanted { trees: Arc::clone(self), volume }
    }

    /// Whether somebody has said so.
    pub(super) fn is_wanted(&self, volume: VolumeId) -> bool {
        self.lock().wanted.contains_key(&volume)
    }

    /// The file of a volume, for one at a time. Waits while another has it, and asks now and then whether to go on;
    /// `None` if not, or if the file cannot be had.
    pub(super) fn lease(
        self: &Arc<Self>,
        volume: VolumeId,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Option<Lease> {
        let mut users = self.lock();
        while !users.leased.insert(volume) {
            users = self.freed.wait_timeout(users, WAIT).unwrap_or_else(PoisonError::into_inner).0;
            if users.leased.contains(&volume) {
                drop(users);
                if !go_on() {
                    return None;
                }
                users = self.lock();
            }
        }
        drop(users);
        // Gives it back in any case.
        let leased = Leased { trees: Arc::clone(self), volume };
        match self.open(volume) {
            Ok(file) => Some(Lease { file, leased }),
            Err(error) => {
                tracing::warn!(%volume, %error, "no tree cache: the hash is made of all recorded values");
                None
            }
        }
    }

    fn open(&self, volume: VolumeId) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.directory.join(format!("{volume}{SUFFIX}"));
        // What was put in its place is not followed, and not written to.
        let no_link = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(no_link);
        options.open(path)
    }

    /// Removes the files of volumes that are no more; all of them, without volumes.
    ///
    /// # Errors
    /// The directory cannot be read, or a file not be removed.
    pub fn remove_others(&self, volumes: &BTreeSet<VolumeId>) -> io::Result<()> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) else { continue };
            if number.parse().is_ok_and(|number| !volumes.contains(&VolumeId(number))) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Somebody uses the volume's file.
#[derive(Debug)]
struct Leased {
    trees: Arc<Trees>,
    volume: VolumeId,
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.trees.lock().leased.remove(&self.volume);
        self.trees.freed.notify_all();
    }
}

/// A hash of the volume is wanted.
#[derive(Debug)]
pub struct Wanted {
    trees: Arc<Trees>,
    volume: VolumeId,
}

impl Drop for Wanted {
    fn drop(&mut self) {
        let mut users = self.trees.lock();
        let count = users.wanted.get_mut(&self.volume).map(|count| {
            *count -= 1;
            *count
        });
        if count == Some(0) {
            users.wanted.remove(&self.volume);
        }
    }
}

/// A volume's file, for us alone.
#[derive(Debug)]
pub(super) struct Lease {
    file: File,
    leased: Leased,
}

impl Lease {
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The header, if it is one of this store and the tree was whole when it was written.
    pub(super) fn header(&self) -> Option<Header> {
        let mut bytes = [0; header::BYTES];
        self.file.read_exact_at(&mut bytes, 0).ok()?;
        Header::decode(&bytes, self.leased.trees.identity)
    }

    /// From now on it is nobody's tree: it is being changed, or made anew.
    pub(super) fn begin(&self, anew: bool) -> io::Result<()> {
        if anew {
            self.file.set_len(0)?;
            self.file.set_len(HEADER_BYTES)?;
        }
        self.file.write_all_at(&[0; header::BYTES], 0)
    }

    /// It is the tree of that snapshot.
    pub(super) fn finish(&self, layer: LayerId, size: u64, tail: Option<Value>) -> io::Result<()> {
        let header = Header { layer, size, tail };
        self.file.write_all_at(&header.encode(self.leased.trees.identity), 0)
    }
}
