//! What snapshots hold, read outside the reactor: differences, hashes, verification.
//!
//! Everything here blocks and runs on threads of its own. It reads the metadata store and the pool's files itself;
//! what it reads is pinned, so that nothing changes meanwhile; what it wants to keep goes through the reactor.
//!
//! ```text
//!  records ─► sides (layers that one side has) ─► diff
//!                └─► changes (cluster by cluster: masks, sources, recorded hash) ─► batch, reader (bytes) ─► verify
//!                                                                                    │
//!  reactor ◄── Control::KeepHashes ◄── compute (values, trees: from them to the root) ◄┘
//! ```
//!
//! **Which hash holds.** The hash of a cluster's content at a layer is recorded at that layer if it has a map record
//! of the cluster, else at the next older one that has: the content is the same there. It stays right when older
//! layers are merged into that layer; the merged layers' own are dropped, and computed again when asked for.

mod batch;
mod changes;
mod compute;
mod diff;
mod earlier;
mod idle;
mod mend;
mod reader;
mod records;
mod sides;
#[cfg(test)]
mod tests;
mod trees;
mod verify;

pub use changes::{Changed, Changes, Content};
pub use compute::{hash, recorded_root};
pub use diff::diff;
pub use idle::{Hasher, Sleeps, Waits, run_hasher};
pub use mend::{mend, recorded_values};
pub use reader::{ClosedReader, PoolHandle, PoolRead};
pub use trees::{TREES_DIRECTORY, Trees, Wanted};
pub use verify::{recompute, verify};

use crate::catalog::meta::MetaError;
use crate::control::{Answer, Control, ControlError, ErrorKind, Pinned, SnapshotName};

/// Hands a command to the store and waits for its answer.
pub type Submit<'a> = dyn Fn(Control) -> Result<Answer, ControlError> + 'a;

/// Does something with a snapshot that is pinned meanwhile.
///
/// # Errors
/// `NotFound`; `Busy` while its layers are being merged; what `work` says.
pub fn with_pin<T>(
    submit: &Submit<'_>,
    name: &SnapshotName,
    work: impl FnOnce(&Pinned) -> Result<T, ControlError>,
) -> Result<T, ControlError> {
    let Answer::Pinned(pinned) = submit(Control::Pin { name: name.clone() })? else {
        unreachable!("the answer to `Pin` is `Pinned`");
    };
    let result = work(&pinned);
    let unpinned = submit(Control::Unpin { pin: pinned.pin });
    let value = result?;
    unpinned.map(|_| value)
}

pub(crate) fn meta_error(error: MetaError) -> ControlError {
    let kind = match error {
        MetaError::Io(_) => ErrorKind::Io,
        MetaError::NoSpace => ErrorKind::NoSpace,
        MetaError::Damaged(_) => ErrorKind::Damaged,
    };
    ControlError::new(kind, error.to_string())
}

/// Whoever asked does not wait any more.
fn stopped() -> ControlError {
    ControlError::new(ErrorKind::Stopping, "stopped before the end")
}
