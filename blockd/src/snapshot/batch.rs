//! Clusters in order, with the bytes of those that are wanted, and their values: read and hashed by several threads.

use std::io;
use std::thread;

use super::changes::Changed;
use super::reader::{CLUSTER, ClosedReader};
use crate::control::ControlError;
use crate::hash::{Value, cluster_value};

/// Clusters that a thread reads at a time: 1 MiB.
pub(super) const READ_CLUSTERS: usize = if cfg!(test) { 3 } else { 16 };
/// Clusters, read or not, that wait for each other.
const BATCH_CLUSTERS: usize = if cfg!(test) { 5 } else { 1024 };
/// Threads that read at once, at most: more wait for the disk, and take the processors from guests.
const THREADS_MAX: usize = 4;

/// A cluster that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hashed<'a> {
    /// 64 KiB.
    pub(super) bytes: &'a [u8],
    /// Of these.
    pub(super) value: Value,
}

/// A cluster's content, if it was wanted and could be read.
pub(super) type Bytes<'a> = Option<Result<Hashed<'a>, io::Error>>;

/// Clusters in order, some of which are to be read, all of these at once.
pub(super) struct Batch {
    clusters: Vec<(Changed, bool)>,
    reads: usize,
    buffer: Vec<u8>,
}

impl Batch {
    /// One that so many threads work at.
    pub(super) fn new(threads: usize) -> Self {
        let pieces = threads.clamp(1, THREADS_MAX);
        Self { clusters: Vec::new(), reads: 0, buffer: vec![0; pieces * READ_CLUSTERS * CLUSTER] }
    }

    /// Adds a cluster; tells whether the batch is full now.
    pub(super) fn push(&mut self, cluster: Changed, read: bool) -> bool {
        self.reads += usize::from(read);
        self.clusters.push((cluster, read));
        self.reads * CLUSTER == self.buffer.len() || self.clusters.len() == BATCH_CLUSTERS
    }

    /// Reads, shows all clusters in order, and is empty again.
    pub(super) fn drain(
        &mut self,
        reader: &ClosedReader,
        visit: &mut dyn FnMut(&Changed, Bytes<'_>) -> Result<(), ControlError>,
    ) -> Result<(), ControlError> {
        let wanted: Vec<&Changed> =
            self.clusters.iter().filter(|(_, read)| *read).map(|(cluster, _)| cluster).collect();
        let results = read_all(reader, &wanted, &mut self.buffer);
        let mut contents = results.into_iter().zip(self.buffer.chunks(CLUSTER));
        for (cluster, read) in &self.clusters {
            let content = if *read { contents.next() } else { None };
            visit(cluster, content.map(|(result, bytes)| result.map(|value| Hashed { bytes, value })))?;
        }
        self.clusters.clear();
        self.reads = 0;
        Ok(())
    }
}

/// The values of what was read, or why it was not; a thread for each piece, the caller's is one of them.
fn read_all(reader: &ClosedReader, wanted: &[&Changed], buffer: &mut [u8]) -> Vec<io::Result<Value>> {
    let pieces = wanted.chunks(READ_CLUSTERS).zip(buffer.chunks_mut(READ_CLUSTERS * CLUSTER));
    let mut pieces = pieces.map(|(wanted, buffer)| move || read_piece(reader, wanted, buffer));
    let Some(mut first) = pieces.next() else { return Vec::new() };
    thread::scope(|scope| {
        let others: Vec<_> = pieces.map(|piece| scope.spawn(piece)).collect();
        let mut results = first();
        for other in others {
            results.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    })
}

fn read_piece(reader: &ClosedReader, wanted: &[&Changed], buffer: &mut [u8]) -> Vec<io::Result<Value>> {
    let sources: Vec<_> = wanted.iter().map(|cluster| &cluster.sources).collect();
    let results = reader.read(&sources, buffer);
    let clusters = wanted.iter().zip(buffer.chunks(CLUSTER));
    let value = |(result, (cluster, bytes)): (io::Result<()>, (&&Changed, &[u8]))| {
        result.map(|()| cluster_value(cluster.index, bytes))
    };
    results.into_iter().zip(clusters).map(value).collect()
}
