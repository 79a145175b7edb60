//! Who may touch a data directory: whoever holds the lock on its file `lock`, one process at a time.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The file's name in the data directory.
pub const LOCK_FILE: &str = "lock";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("{0} is in use: {1} holds its lock")]
    Held(PathBuf, &'static str),
    /// The file cannot be opened or locked.
    #[error("lock of {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// The lock, until it is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the lock of a data directory, or says that `others` have it; never waits.
    ///
    /// # Errors
    /// `Held`, `Io`.
    pub fn take(data: &Path, others: &'static str) -> Result<Self, LockError> {
        let file = open(&data.join(LOCK_FILE)).map_err(|error| LockError::Io(data.to_owned(), error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(LockError::Held(data.to_owned(), others)),
            Err(error) => Err(LockError::Io(data.to_owned(), error.into())),
        }
    }
}

/// A file that is there is opened for reading: a store on a medium that takes no writes can still be checked. It is
/// never removed: a lock on a file that lost its name would keep nobody out.
fn open(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            File::options().write(true).create(true).truncate(false).mode(0o600).open(path)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_it_at_a_time() {
        let data = tempfile::tempdir().unwrap();
        let held = DataLock::take(data.path(), "another program").unwrap();
        let error = DataLock::take(data.path(), "another program").unwrap_err();
        assert!(matches!(error, LockError::Held(..)));
        let words = format!("{} is in use: another program holds its lock", data.path().display());
        assert_eq!(error.to_string(), words);
        drop(held);
        DataLock::take(data.path(), "another program").unwrap();
        assert!(matches!(DataLock::take(Path::new("/nonexistent"), "nobody"), Err(LockError::Io(..))));
    }
}
