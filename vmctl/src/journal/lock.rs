//! Who may touch a data directory: whoever holds the lock on its file `lock`.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The file's name in the data directory.
const LOCK_FILE: &str = "lock";

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("{0} is in use: another agent holds its lock")]
    Held(PathBuf),
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
    /// Takes the lock of a data directory, or says who has it; never waits.
    ///
    /// # Errors
    /// `Held`, `Io`.
    pub fn take(data: &Path) -> Result<Self, LockError> {
        let file = open(&data.join(LOCK_FILE)).map_err(|error| LockError::Io(data.to_owned(), error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(LockError::Held(data.to_owned())),
            Err(error) => Err(LockError::Io(data.to_owned(), error.into())),
        }
    }
}

/// The file is never removed: a lock on a file that lost its name would keep nobody out.
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
        let held = DataLock::take(data.path()).unwrap();
        let error = DataLock::take(data.path()).unwrap_err();
        assert!(matches!(error, LockError::Held(_)) && error.to_string().contains("in use"));
        drop(held);
        DataLock::take(data.path()).unwrap();
        assert!(matches!(DataLock::take(Path::new("/nonexistent")), Err(LockError::Io(..))));
    }
}
