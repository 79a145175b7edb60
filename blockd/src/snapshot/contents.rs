//! The flattened content of a snapshot, cluster by cluster: where it lies, what hash of it is recorded, and the bytes.

use std::io;

use super::meta_error;
use super::reader::{CLUSTER, ClosedReader};
use super::records::{Cursor, Merge, Sources, batch_records, sources};
use crate::catalog::meta::MetaError;
use crate::control::{ControlError, Pinned};
use crate::hash::Value;
use crate::units::{ClusterIndex, LayerId, cluster_count};

/// Clusters that are read at a time: 1 MiB.
pub(super) const READ_CLUSTERS: usize = if cfg!(test) { 3 } else { 16 };
/// Clusters, read or not, that wait for each other.
const BATCH_CLUSTERS: usize = if cfg!(test) { 5 } else { 1024 };

/// A cluster that a layer of the snapshot has a record of.
pub(super) struct Cluster {
    /// Which.
    pub(super) index: ClusterIndex,
    /// The newest layer that has a record of it: its hash belongs there.
    pub(super) layer: LayerId,
    /// Where it is read from; nowhere, if it shows no data.
    pub(super) sources: Sources,
    /// The hash that is recorded there.
    pub(super) recorded: Option<Value>,
}

/// The clusters of a snapshot that any layer has a record of, in order.
pub(super) struct Contents<'a> {
    pinned: &'a Pinned,
    merge: Merge,
    hashes: Vec<Cursor<Value>>,
}

impl<'a> Contents<'a> {
    pub(super) fn new(reader: &ClosedReader, pinned: &'a Pinned) -> Result<Self, ControlError> {
        let meta = &reader.meta;
        let limit = batch_records(pinned.chain.len());
        let hashes = pinned.chain.iter().map(|&layer| Cursor::new(meta, layer, limit)).collect();
        let merge = Merge::new(meta, &pinned.chain, ClusterIndex(0)).map_err(meta_error)?;
        Ok(Self { pinned, merge, hashes })
    }

    pub(super) fn next(&mut self) -> Result<Option<Cluster>, ControlError> {
        self.read_next().map_err(meta_error)
    }

    fn read_next(&mut self) -> Result<Option<Cluster>, MetaError> {
        let Some((index, stack)) = self.merge.next()? else { return Ok(None) };
        let clusters = cluster_count(self.pinned.size);
        let newest = stack[0].0;
        let layer = self.pinned.chain[newest];
        if u64::from(index.0) >= clusters {
            let text = format!("layer {layer} maps cluster {index} of a snapshot of {clusters}");
            return Err(MetaError::Damaged(text));
        }
        let sources = sources(stack.iter().map(|(_, record)| record));
        let recorded = if sources.is_empty() { None } else { self.hashes[newest].take(index)? };
        Ok(Some(Cluster { index, layer, sources, recorded }))
    }
}

/// Bytes of a cluster, if they were wanted and could be read.
pub(super) type Bytes<'a> = Option<Result<&'a [u8], io::Error>>;

/// Clusters in order, some of which are to be read, all of these at once.
pub(super) struct Batch {
    clusters: Vec<(Cluster, bool)>,
    reads: usize,
    buffer: Vec<u8>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { clusters: Vec::new(), reads: 0, buffer: vec![0; READ_CLUSTERS * CLUSTER] }
    }

    /// Adds a cluster; tells whether the batch is full now.
    pub(super) fn push(&mut self, cluster: Cluster, read: bool) -> bool {
        self.reads += usize::from(read);
        self.clusters.push((cluster, read));
        self.reads == READ_CLUSTERS || self.clusters.len() == BATCH_CLUSTERS
    }

    /// Reads, shows all clusters in order, and is empty again.
    pub(super) fn drain(
        &mut self,
        reader: &ClosedReader,
        visit: &mut dyn FnMut(&Cluster, Bytes<'_>) -> Result<(), ControlError>,
    ) -> Result<(), ControlError> {
        let wanted = self.clusters.iter().filter(|(_, read)| *read);
        let sources: Vec<_> = wanted.map(|(cluster, _)| &cluster.sources).collect();
        let results = reader.read(&sources, &mut self.buffer);
        let mut contents = results.into_iter().zip(self.buffer.chunks(CLUSTER));
        for (cluster, read) in &self.clusters {
            let content = if *read { contents.next() } else { None };
            visit(cluster, content.map(|(result, bytes)| result.map(|()| bytes)))?;
        }
        self.clusters.clear();
        self.reads = 0;
        Ok(())
    }
}
