//! The ballast: space that the data directory holds back, and gives up when a commit finds no room.
//!
//! ```text
//!  free space:  pool may grow │ 2 reserves │ commits as usual │ half a reserve │ NoSpace: the ballast goes
//! ```
//!
//! The pool stops growing by itself while commits still find room. But others write to the file system, too; when they
//! have filled it, what was accepted must still become durable, and deleting must still work. The ballast is a whole
//! reserve: without it half a reserve is left for commits, half for RocksDB's own files, even at zero.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// The file's name in the data directory.
pub const BALLAST_FILE: &str = "ballast";

/// See the module. May be missing: where the file system cannot allocate ahead, or has no room for it.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Ballast {
    /// The ballast of a data directory, allocated if there is room.
    pub fn hold(data: &Path, bytes: u64) -> Self {
        let mut ballast = Self { path: data.join(BALLAST_FILE), bytes, held: false };
        ballast.restore();
        ballast
    }

    /// Gives it up before a start that would not find the room for RocksDB's new files.
    pub fn make_room(data: &Path, bytes: u64) {
        let free = |space: rustix::fs::StatVfs| space.f_bavail.saturating_mul(space.f_frsize);
        if statvfs(data).is_ok_and(|space| free(space) < bytes / 2) {
            let mut ballast = Self { path: data.join(BALLAST_FILE), bytes, held: true };
            ballast.give_up();
        }
    }

    /// Whether it is there, to be given up.
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Allocates it again, if as much is left free besides.
    pub fn restore(&mut self) {
        if self.held || self.bytes == 0 {
            return;
        }
        self.held = self.allocate().unwrap_or_else(|error| {
            tracing::debug!(%error, "no ballast");
            false
        });
        if !self.held {
            self.remove();
        }
    }

    fn allocate(&self) -> io::Result<bool> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&self.path)?;
        let had = allocated(&file)?;
        // What is in it already costs nothing.
        let needed = self.bytes.saturating_mul(2).saturating_sub(had);
        let space = statvfs(&self.path)?;
        if space.f_bavail.saturating_mul(space.f_frsize) < needed {
            return Ok(had >= self.bytes);
        }
        fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?;
        Ok(true)
    }

    /// Gives its space up; tells whether there was any.
    pub fn give_up(&mut self) -> bool {
        if !self.held {
            return false;
        }
        self.held = false;
        tracing::warn!(bytes = self.bytes, "the file system is full: the ballast is given up for metadata");
        self.remove()
    }

    fn remove(&self) -> bool {
        match fs::remove_file(&self.path) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(%error, "the ballast cannot be removed");
                false
            }
        }
    }
}

fn allocated(file: &File) -> io::Result<u64> {
    Ok(std::os::unix::fs::MetadataExt::blocks(&file.metadata()?) * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_held_given_up_and_held_again() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join(BALLAST_FILE);
        let mut ballast = Ballast::hold(data.path(), 1 << 20);
        assert!(ballast.is_held());
        assert!(allocated(&File::open(&path).unwrap()).unwrap() >= 1 << 20);
        assert!(Ballast::hold(data.path(), 1 << 20).is_held(), "found by the next start");
        assert!(ballast.give_up());
        assert!(!path.exists() && !ballast.give_up(), "once");
        ballast.restore();
        assert!(ballast.is_held() && path.exists());
    }

    #[test]
    fn where_there_is_no_room_there_is_none() {
        let data = tempfile::tempdir().unwrap();
        let mut ballast = Ballast::hold(data.path(), u64::MAX / 4);
        assert!(!ballast.is_held() && !ballast.give_up());
        assert!(!data.path().join(BALLAST_FILE).exists());
    }
}
