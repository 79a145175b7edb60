//! Reads a snapshot and compares it with its recorded hashes, and its root with the recorded one. Changes nothing.

use std::io;

use super::batch::{Batch, Bytes, Hashed};
use super::changes::{Changed, Changes};
use super::reader::ClosedReader;
use super::{meta_error, recorded_root, stopped};
use crate::control::{ControlError, Pinned};
use crate::hash::{Sequence, Value};
use crate::service::{DamagedExtent, Recomputed, VerifyReport};
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
    let mut report = VerifyReport::default();
    read_all(reader, pinned, progress, &mut |cluster, bytes| {
        check(cluster, &bytes, pinned.size, &mut report);
    })?;
    Ok(report)
}

/// Reads all of a pinned snapshot and makes its root of what was read, recorded hashes or not; and compares with what is
/// recorded. `progress` as for [`verify`].
///
/// # Errors
/// As [`verify`].
pub fn recompute(
    reader: &ClosedReader,
    pinned: &Pinned,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Recomputed, ControlError> {
    let mut report = VerifyReport::default();
    let mut sequence = Some(Sequence::new(pinned.size, reader.threads));
    read_all(reader, pinned, progress, &mut |cluster, bytes| {
        let value = check(cluster, &bytes, pinned.size, &mut report);
        match (&mut sequence, bytes, value) {
            (Some(sequence), Ok(read), Some(value)) => {
                let index = u64::from(cluster.index.0);
                if sequence.wants_content(index) {
                    sequence.content(index, read.bytes, &reader.zeroes);
                } else {
                    sequence.value(index, value, &reader.zeroes);
                }
            }
            _ => sequence = None,
        }
    })?;
    let top = *pinned.chain.first().expect("a snapshot has a layer");
    let recorded = recorded_root(&*reader.meta, top, pinned.size).map_err(meta_error)?;
    Ok(Recomputed { report, root: sequence.map(|sequence| sequence.finish(&reader.zeroes)), recorded })
}

/// A cluster's content, or why it cannot be read.
type Read<'a> = Result<Hashed<'a>, io::Error>;

fn read_all(
    reader: &ClosedReader,
    pinned: &Pinned,
    progress: &mut dyn FnMut(u64, u64) -> bool,
    visit: &mut dyn FnMut(&Changed, Read<'_>),
) -> Result<(), ControlError> {
    let mut batch = Batch::new(reader.threads);
    let mut check = |cluster: &Changed, bytes: Bytes<'_>| {
        if let Some(bytes) = bytes {
            visit(cluster, bytes);
        }
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
    Ok(())
}

/// Enters a cluster that was read into the report; its value, if it could be read.
fn check(cluster: &Changed, bytes: &Read<'_>, size: u64, report: &mut VerifyReport) -> Option<Value> {
    let offset = cluster.index.start();
    let extent = DamagedExtent { offset, length: CLUSTER_BYTES.min(size - offset) };
    let value = match bytes {
        Ok(read) => read.value,
        Err(error) => {
            tracing::warn!(offset, %error, "a cluster of a closed layer cannot be read");
            add_damaged(report, extent);
            return None;
        }
    };
    match cluster.recorded {
        None => report.unhashed_bytes += extent.length,
        Some(recorded) => {
            report.checked_bytes += extent.length;
            if recorded != value {
                add_damaged(report, extent);
            }
        }
    }
    Some(value)
}

/// Joins extents that follow each other.
fn add_damaged(report: &mut VerifyReport, extent: DamagedExtent) {
    match report.damaged.last_mut() {
        Some(last) if last.offset + last.length == extent.offset => last.length += extent.length,
        _ => report.damaged.push(extent),
    }
}
