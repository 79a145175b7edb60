//! The tree of an earlier snapshot, if one is at hand that the hash of a later one can be made from.

use super::compute::recorded_root;
use super::reader::ClosedReader;
use super::trees::{Before, Header, Lease};
use crate::catalog::format::Record;
use crate::catalog::format::keys::layer_key;
use crate::catalog::meta::{MetaError, MetaStore};
use crate::control::Pinned;
use crate::hash::Value;
use crate::hash::pages::Shape;
use crate::units::{LayerId, VolumeId};

/// A snapshot below the one that is to be hashed, and its tree.
pub(super) struct Earlier {
    /// Its layers are among the other's: pinned with it.
    pub(super) pinned: Pinned,
    pub(super) tail: Option<Value>,
    pub(super) tree: Before,
}

/// The file of the snapshot's volume, and what is in it of use; waited for, as long as `go_on` says so, while somebody
/// uses it: without it the hash is made from the start. The tree is not kept where the file's is of a later snapshot,
/// whose next one will want it.
pub(super) fn find(
    reader: &ClosedReader,
    pinned: &Pinned,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<(Option<Lease>, Option<Earlier>), MetaError> {
    let (meta, top) = (&*reader.meta, pinned.chain[0]);
    let Some(trees) = &reader.trees else { return Ok((None, None)) };
    let Some(volume) = volume_of(meta, top)? else { return Ok((None, None)) };
    let Some(lease) = trees.lease(volume, go_on) else { return Ok((None, None)) };
    let Some(header) = lease.header() else { return Ok((Some(lease), None)) };
    let Some(place) = pinned.chain.iter().position(|&layer| layer == header.layer) else {
        let later = header.layer > top && volume_of(meta, header.layer)?.is_some();
        return Ok((Some(lease).filter(|_| !later), None));
    };
    let chain = pinned.chain[place..].to_vec();
    let earlier = Pinned { pin: pinned.pin, chain, size: header.size };
    let tree = tree_of(meta, &lease, header)?.filter(|_| header.size <= pinned.size);
    let earlier = tree.map(|tree| Earlier { pinned: earlier, tail: header.tail, tree });
    Ok((Some(lease), earlier))
}

/// The volume that has written a layer, if there is such a layer.
pub(super) fn volume_of(meta: &dyn MetaStore, layer: LayerId) -> Result<Option<VolumeId>, MetaError> {
    let key = layer_key(layer);
    let Some(value) = meta.get(&key)? else { return Ok(None) };
    match Record::decode(&key, &value)? {
        Record::Layer(_, record) => Ok(Some(record.volume)),
        _ => Ok(None),
    }
}

/// What the file holds, if it makes the root that is recorded.
fn tree_of(meta: &dyn MetaStore, lease: &Lease, header: Header) -> Result<Option<Before>, MetaError> {
    let shape = Shape::of(header.size);
    let Some(root) = recorded_root(meta, header.layer, header.size)? else { return Ok(None) };
    if shape.clusters() < 2 {
        return Ok(None);
    }
    match Before::read(lease.file(), shape, header.tail, root) {
        Ok(Some(tree)) => return Ok(Some(tree)),
        Ok(None) => tracing::warn!(layer = %header.layer, "a tree cache does not make the recorded root"),
        Err(error) => tracing::warn!(%error, "a tree cache cannot be read"),
    }
    Ok(None)
}
