//! The lock of a store's directory: the daemon's, or one offline tool's.

use std::path::Path;

pub use local_api::lock::{DataLock, LOCK_FILE, LockError};

/// Takes the lock of a data directory, or says who has it; never waits.
///
/// # Errors
/// `Held`, `Io`.
pub fn take(data: &Path) -> Result<DataLock, LockError> {
    DataLock::take(data, "the daemon or another offline tool")
}
