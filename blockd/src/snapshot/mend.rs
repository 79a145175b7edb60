//! Damaged clusters of closed layers are made again what they were, in place.
//!
//! What is written was compared with the recorded value before, so each block that is written is right by itself: a crash
//! or a failure in between leaves some blocks right and the others as they were, and the same once more does no harm.
//! The snapshot is pinned: its layers keep their clusters, and nobody else writes to these.

use std::collections::BTreeSet;
use std::io;

use super::changes::{Changed, Changes};
use super::reader::{CLUSTER, ClosedReader};
use crate::control::{ControlError, ErrorKind, Pinned};
use crate::hash::{Value, cluster_value};
use crate::service::DamagedExtent;
use crate::units::{BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex, Mask};

/// Clusters that were found damaged, and what they must be: the recorded value, if there is one. At most `most`.
///
/// # Errors
/// `Io`, `Damaged`.
pub fn recorded_values(
    reader: &ClosedReader,
    pinned: &Pinned,
    damaged: &[DamagedExtent],
    most: usize,
) -> Result<Vec<(ClusterIndex, Option<Value>)>, ControlError> {
    let mut found = Vec::new();
    for extent in damaged {
        let end = extent.offset + extent.length;
        for changed in Changes::new(reader, None, pinned, ClusterIndex::of(extent.offset))? {
            let changed = changed?;
            if changed.index.start() >= end || found.len() == most {
                break;
            }
            found.push((changed.index, changed.recorded));
        }
    }
    Ok(found)
}

/// Writes what a cluster of a pinned snapshot must hold, where it is not what is there, durably; reads it again.
///
/// # Errors
/// `Damaged`: `right` is not what the recorded value says, or does not fit the records, and nothing was written; or what
/// is read again is still wrong. `Io`: it cannot be written.
pub fn mend(
    reader: &ClosedReader,
    pinned: &Pinned,
    index: ClusterIndex,
    right: &[u8],
) -> Result<(), ControlError> {
    let mut changes = Changes::new(reader, None, pinned, index)?;
    let changed = changes.next().transpose()?.filter(|changed| changed.index == index);
    let changed = changed.ok_or_else(|| damaged(index, "no layer has a record of it any more"))?;
    check(&changed, right)?;
    write(reader, &changed, right).map_err(|error| {
        let text = format!("bytes at {} cannot be written: {error}", index.start());
        ControlError::new(ErrorKind::Io, text)
    })?;
    let again = reader.read_clusters(&[&changed]).pop().expect("one was asked for");
    let again = again.map_err(|error| damaged(index, &format!("written, and cannot be read: {error}")))?;
    if *again != *right {
        return Err(damaged(index, "written, and something else is read"));
    }
    Ok(())
}

fn damaged(index: ClusterIndex, why: &str) -> ControlError {
    ControlError::new(ErrorKind::Damaged, format!("bytes at {}: {why}", index.start()))
}

/// Nothing that is not right may be written, whoever brings it.
fn check(changed: &Changed, right: &[u8]) -> Result<(), ControlError> {
    let Some(value) = changed.recorded else {
        return Err(damaged(changed.index, "no hash is recorded"));
    };
    if right.len() != CLUSTER || cluster_value(changed.index, right) != value {
        return Err(damaged(changed.index, "what is to be written is not what its hash says"));
    }
    let shown = changed.sources.iter().fold(Mask::NONE, |mask, source| mask.with(source.shown));
    let is_zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
    let mut hidden = (0..).zip(right.chunks(BLOCK)).filter(|(at, _)| !shown.has(*at));
    if !hidden.all(|(_, block)| is_zero(block)) {
        return Err(damaged(changed.index, "the records say zeroes where there were data"));
    }
    Ok(())
}

const BLOCK: usize = BLOCK_BYTES as usize;

/// Writes the blocks that differ, or cannot be read, each to its place.
fn write(reader: &ClosedReader, changed: &Changed, right: &[u8]) -> io::Result<()> {
    let mut touched = BTreeSet::new();
    for place in reader.places(&changed.sources)? {
        let right = &right[place.at..place.at + BLOCK];
        let file = reader.file(place.file);
        let mut found = [0; BLOCK];
        if file.fill(&mut found, place.offset).is_ok() && found == *right {
            continue;
        }
        file.write(right, place.offset)?;
        touched.insert((place.file, place.offset - place.offset % CLUSTER_BYTES));
    }
    for (file, offset) in touched {
        reader.file(file).settle(offset, CLUSTER_BYTES)?;
    }
    Ok(())
}
