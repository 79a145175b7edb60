//! What an agent knows of its VMs, on disk.
//!
//! ```text
//! DATA/vms/NAME.json    {"version":1,"record":{…}}; replaced as a whole
//! DATA/lock             held by the one agent of this directory
//! ```
//!
//! Files are written beside their names, synced, renamed, and the directory is synced: a crash leaves the old or the new
//! one. A damaged file is reported and left alone: nothing writes to it until a person has taken it away.

mod files;
mod record;

pub use files::{FileError, Files, Found};
pub(crate) use files::{read_file, write_file};
pub use local_api::lock::{DataLock, LockError};
pub use record::{Adopted, LastEnd, Record, Run};
