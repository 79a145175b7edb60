//! Clusters in order, with the bytes of those that are wanted.

use std::io;

use super::changes::Changed;
use super::reader::{CLUSTER, ClosedReader};
use crate::control::ControlError;

/// Clusters that are read at a time: 1 MiB.
pub(super) const READ_CLUSTERS: usize = if cfg!(test) { 3 } else { 16 };
/// Clusters, read or not, that wait for each other.
const BATCH_CLUSTERS: usize = if cfg!(test) { 5 } else { 1024 };

/// Bytes of a cluster, if they were wanted and could be read.
pub(super) type Bytes<'a> = Option<Result<&'a [u8], io::Error>>;

/// Clusters in order, some of which are to be read, all of these at once.
pub(super) struct Batch {
    clusters: Vec<(Changed, bool)>,
    reads: usize,
    buffer: Vec<u8>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { clusters: Vec::new(), reads: 0, buffer: vec![0; READ_CLUSTERS * CLUSTER] }
    }

    /// Adds a cluster; tells whether the batch is full now.
    pub(super) fn push(&mut self, cluster: Changed, read: bool) -> bool {
        self.reads += usize::from(read);
        self.clusters.push((cluster, read));
        self.reads == READ_CLUSTERS || self.clusters.len() == BATCH_CLUSTERS
    }

    /// Reads, shows all clusters in order, and is empty again.
    pub(super) fn drain(
        &mut self,
        reader: &ClosedReader,
        visit: &mut dyn FnMut(&Changed, Bytes<'_>) -> Result<(), ControlError>,
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
