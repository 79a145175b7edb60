//! Reads a snapshot and compares it with its recorded hashes. Changes nothing.

use super::batch::{Batch, Bytes};
use super::changes::{Changed, Changes};
use super::reader::ClosedReader;
use super::stopped;
use crate::control::{ControlError, Pinned};
use crate::hash::cluster_value;
use crate::service::{DamagedExtent, VerifyReport};
use crate::units::{CLUSTER_BYTES, ClusterIndex};

/// Reads every cluster of a pinned snapshot that shows data, and compares it with its recorded hash. What cannot be
/// read is damaged, and reading goes on. `progress` gets the bytes done and the bytes in all; `false` ends it.
///
/// # Errors
/// The metadata cannot be read: `Io`, `Damaged`. `Stopping` if `progress` said so.
pub fn verify(
    reader: &ClosedReader,
    pinned: &Pinned,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<VerifyReport, ControlError> {
    let (mut batch, mut report) = (Batch::new(), VerifyReport::default());
    let mut check = |cluster: &Changed, bytes: Bytes<'_>| {
        check(cluster, bytes, pinned.size, &mut report);
        Ok(())
    };
    for cluster in Changes::new(reader, None, pinned, ClusterIndex(0))? {
        let cluster = cluster?;
        let (read, done) = (cluster.shows_data(), cluster.index.start());
        if batch.push(cluster, read) {
            batch.drain(reader, &mut check)?;
            if !progress(done, pinned.size) {
                return Err(stopped());
            }
        }
    }
    batch.drain(reader, &mut check)?;
    progress(pinned.size, pinned.size);
    Ok(report)
}

/// Enters a cluster into the report, if it was read.
fn check(cluster: &Changed, bytes: Bytes<'_>, size: u64, report: &mut VerifyReport) {
    let Some(bytes) = bytes else { return };
    let offset = cluster.index.start();
    let extent = DamagedExtent { offset, length: CLUSTER_BYTES.min(size - offset) };
    match (bytes, cluster.recorded) {
        (Ok(_), None) => report.unhashed_bytes += extent.length,
        (Ok(bytes), Some(value)) => {
            report.checked_bytes += extent.length;
            if cluster_value(cluster.index, bytes) != value {
                add_damaged(report, extent);
            }
        }
        (Err(error), _) => {
            tracing::warn!(offset, %error, "a cluster of a closed layer cannot be read");
            add_damaged(report, extent);
        }
    }
}

/// Joins extents that follow each other.
fn add_damaged(report: &mut VerifyReport, extent: DamagedExtent) {
    match report.damaged.last_mut() {
        Some(last) if last.offset + last.length == extent.offset => last.length += extent.length,
        _ => report.damaged.push(extent),
    }
}
