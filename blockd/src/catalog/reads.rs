//! What the reading operations of [`super::meta::MetaOp`] do, the same for the worker and its simulated twin.

use std::ops::ControlFlow;

use crate::catalog::format::keys::map_range_from;
use crate::catalog::format::{MapRecord, decode_map};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::units::{ClusterIndex, LayerId};

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
