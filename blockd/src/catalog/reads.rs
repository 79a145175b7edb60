//! What the reading operations of [`super::meta::MetaOp`] do, the same for the worker and its simulated twin.

use std::ops::{ControlFlow, Range};

use crate::catalog::format::keys::{map_range_from, map_range_within};
use crate::catalog::format::{MapRecord, decode_map};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::units::{ClusterIndex, LayerId, Mask};

/// The next records of a layer, at most `limit`.
///
/// # Errors
/// A record cannot be read or is damaged.
pub(crate) fn scan_layer(
    store: &dyn MetaStore,
    layer: LayerId,
    from: ClusterIndex,
    limit: usize,
) -> Result<Vec<(ClusterIndex, MapRecord)>, MetaError> {
    let range = map_range_from(layer, from);
    let mut records = Vec::new();
    if limit == 0 {
        return Ok(records);
    }
    store.scan(&range.start, &range.end, &mut |key, value| {
        let (_, cluster, record) = decode_map(key, value)?;
        records.push((cluster, record));
        let full = records.len() == limit;
        Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(records)
}

/// The blocks that any of these layers says anything about, read layer by layer. Memory: two bytes a cluster.
///
/// # Errors
/// A record cannot be read or is damaged.
pub(crate) fn touched(
    store: &dyn MetaStore,
    layers: &[LayerId],
    clusters: &Range<u64>,
) -> Result<Vec<(ClusterIndex, Mask)>, MetaError> {
    let place = |cluster: ClusterIndex| usize::try_from(u64::from(cluster.0) - clusters.start).ok();
    let count = usize::try_from(clusters.end.saturating_sub(clusters.start)).unwrap_or(0);
    let mut masks = vec![Mask::NONE; count];
    for &layer in layers {
        let range = map_range_within(layer, clusters);
        store.scan(&range.start, &range.end, &mut |key, value| {
            let (_, cluster, MapRecord { data, zero, .. }) = decode_map(key, value)?;
            if let Some(mask) = place(cluster).and_then(|place| masks.get_mut(place)) {
                *mask = mask.with(data).with(zero);
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    let index = |at: u64| u32::try_from(at).ok().map(ClusterIndex);
    let found = clusters.clone().zip(masks).filter(|(_, mask)| !mask.is_empty());
    Ok(found.filter_map(|(at, mask)| Some((index(at)?, mask))).collect())
}
