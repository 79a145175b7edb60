//! The hash of a snapshot: what is recorded is used, what is missing is computed and kept.

use super::contents::{Batch, Bytes, Cluster, Contents};
use super::reader::ClosedReader;
use super::{Submit, meta_error, stopped};
use crate::catalog::format::keys::root_key;
use crate::catalog::format::{Record, RootRecord};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::control::{Control, ControlError, ErrorKind, Pinned};
use crate::hash::{Tree, Value, cluster_value};
use crate::units::{CLUSTER_BYTES, ClusterIndex, LayerId};

/// Hashes that are kept with one command.
const KEPT_MAX: usize = if cfg!(test) { 5 } else { 4096 };

/// BLAKE3 of a pinned snapshot's whole content, as `b3sum` says of the raw image. `progress` gets the bytes done and
/// the bytes in all; `false` ends it.
///
/// # Errors
/// `Io`, `Damaged`; `Stopping` if `progress` said so; what `submit` says when hashes are to be kept.
pub fn hash(
    reader: &ClosedReader,
    pinned: &Pinned,
    submit: &Submit<'_>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Value, ControlError> {
    let top = *pinned.chain.first().expect("a snapshot has a layer");
    if let Some(root) = recorded_root(&*reader.meta, top, pinned.size).map_err(meta_error)? {
        return Ok(root);
    }
    let mut contents = Contents::new(reader, pinned)?;
    let (mut batch, mut hashing) = (Batch::new(), Hashing::new(reader, pinned, submit, progress));
    while let Some(cluster) = contents.next()? {
        let read = hashing.wants(&cluster);
        if batch.push(cluster, read) {
            batch.drain(reader, &mut |cluster, bytes| hashing.add(cluster, bytes))?;
            hashing.report()?;
        }
    }
    batch.drain(reader, &mut |cluster, bytes| hashing.add(cluster, bytes))?;
    hashing.finish(top)
}

/// The root that is recorded of a layer, if it is of that size.
///
/// # Errors
/// `Io`, `Damaged`.
pub fn recorded_root(meta: &dyn MetaStore, layer: LayerId, size: u64) -> Result<Option<Value>, MetaError> {
    let key = root_key(layer);
    let Some(value) = meta.get(&key)? else { return Ok(None) };
    match Record::decode(&key, &value)? {
        Record::Root(_, root) if root.size == size => Ok(Some(root.hash)),
        _ => Ok(None),
    }
}

struct Hashing<'a> {
    reader: &'a ClosedReader,
    pinned: &'a Pinned,
    submit: &'a Submit<'a>,
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
    tree: Tree,
    kept: Vec<(LayerId, ClusterIndex, Value)>,
}

impl<'a> Hashing<'a> {
    fn new(
        reader: &'a ClosedReader,
        pinned: &'a Pinned,
        submit: &'a Submit<'a>,
        progress: &'a mut dyn FnMut(u64, u64) -> bool,
    ) -> Self {
        Self { reader, pinned, submit, progress, tree: Tree::new(pinned.size), kept: Vec::new() }
    }

    /// Whether a cluster must be read.
    fn wants(&self, cluster: &Cluster) -> bool {
        let needed = cluster.recorded.is_none() || self.tree.wants_content(u64::from(cluster.index.0));
        needed && !cluster.sources.is_empty()
    }

    fn add(&mut self, cluster: &Cluster, bytes: Bytes<'_>) -> Result<(), ControlError> {
        if cluster.sources.is_empty() {
            return Ok(());
        }
        self.add_zeroes(u64::from(cluster.index.0))?;
        let Some(bytes) = bytes else {
            self.tree.push(cluster.recorded.expect("read, or recorded"));
            return Ok(());
        };
        let bytes = bytes.map_err(|error| {
            let text = format!("bytes at {} cannot be read: {error}", cluster.index.start());
            ControlError::new(ErrorKind::Io, text)
        })?;
        let value = cluster.recorded.unwrap_or_else(|| cluster_value(cluster.index, bytes));
        if self.tree.wants_content(u64::from(cluster.index.0)) {
            self.tree.push_content(bytes);
        } else {
            self.tree.push(value);
        }
        if cluster.recorded.is_none() {
            self.keep(cluster, value)?;
        }
        Ok(())
    }

    /// What lies between here and there has no data.
    fn add_zeroes(&mut self, to: u64) -> Result<(), ControlError> {
        let (size, progress) = (self.pinned.size, &mut *self.progress);
        let mut step = |clusters: u64| progress((clusters * CLUSTER_BYTES).min(size), size);
        let done = self.tree.push_zeroes(to, &self.reader.zeroes, self.reader.threads, &mut step);
        if done { Ok(()) } else { Err(stopped()) }
    }

    fn report(&mut self) -> Result<(), ControlError> {
        let (done, size) = (self.tree.next() * CLUSTER_BYTES, self.pinned.size);
        if (self.progress)(done.min(size), size) { Ok(()) } else { Err(stopped()) }
    }

    fn keep(&mut self, cluster: &Cluster, value: Value) -> Result<(), ControlError> {
        self.kept.push((cluster.layer, cluster.index, value));
        if self.kept.len() == KEPT_MAX { self.submit_kept(Vec::new()) } else { Ok(()) }
    }

    fn submit_kept(&mut self, roots: Vec<(LayerId, RootRecord)>) -> Result<(), ControlError> {
        let hashes = std::mem::take(&mut self.kept);
        (self.submit)(Control::KeepHashes { pin: self.pinned.pin, hashes, roots }).map(drop)
    }

    fn finish(mut self, top: LayerId) -> Result<Value, ControlError> {
        self.add_zeroes(self.tree.total())?;
        let tree = std::mem::replace(&mut self.tree, Tree::new(self.pinned.size));
        let hash = tree.finish();
        self.submit_kept(vec![(top, RootRecord { size: self.pinned.size, hash })])?;
        (self.progress)(self.pinned.size, self.pinned.size);
        Ok(hash)
    }
}
