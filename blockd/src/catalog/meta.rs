//! The metadata store as the engine sees it.
//!
//! Two faces. [`MetaStore`] is the store itself: blocking, called by worker threads and offline tools, with RocksDB
//! and a twin in memory behind it. [`MetaPort`] is how the reactor reaches it: one typed operation in, one
//! completion out, never blocking; a worker thread or the simulator stands behind it.

use std::ops::{ControlFlow, Range};

use crate::catalog::format::{Change, MapRecord};
use crate::map::FlatMap;
use crate::units::{ClusterIndex, LayerId, Mask};

/// Why a metadata operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The store could not be read or written.
    #[error("metadata: {0}")]
    Io(String),
    /// There is no room for the batch; nothing of it was written.
    #[error("metadata: no space left")]
    NoSpace,
    /// A record is not what its checksum, or the format, says it must be.
    #[error("META_DAMAGED: {0}")]
    Damaged(String),
}

/// Changes that become durable together or not at all.
pub type Batch = Vec<Change>;

/// Is shown records, key and value, and says whether it wants more.
pub type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, MetaError> + 'a;

/// An ordered map of records, written in atomic, synced batches.
pub trait MetaStore: Send + Sync {
    /// Applies a batch; it is durable when this returns.
    ///
    /// # Errors
    /// Nothing of the batch will be seen, now or after a crash, if the error is `NoSpace`; with any other it may
    /// or may not be.
    fn write(&self, batch: &[Change]) -> Result<(), MetaError>;

    /// Visits the records with `from <= key < to` in order.
    ///
    /// # Errors
    /// A record cannot be read or is damaged.
    fn scan(&self, from: &[u8], to: &[u8], visit: &mut Visit<'_>) -> Result<(), MetaError>;

    /// One record.
    ///
    /// # Errors
    /// See [`Self::scan`].
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MetaError>;
}

/// What the reactor asks of the metadata.
#[derive(Debug)]
pub enum MetaOp {
    /// Make a batch durable, then the mark with its commit number.
    Commit {
        /// Its number.
        commit: u64,
        /// `Change::Commit(commit)` among them.
        batch: Batch,
    },
    /// Flatten a chain of layers, newest first, into a map of so many clusters.
    LoadMap {
        /// Newest first, without gaps, to the oldest.
        chain: Vec<LayerId>,
        /// Clusters of the volume.
        clusters: u64,
    },
    /// The next records of a layer.
    Scan {
        /// Which.
        layer: LayerId,
        /// Where to begin.
        from: ClusterIndex,
        /// At most so many.
        limit: usize,
    },
    /// Which blocks layers say anything about, of some clusters.
    Touched {
        /// In this order.
        layers: Vec<LayerId>,
        /// As numbers of clusters.
        clusters: Range<u64>,
    },
}

/// What came of it, in the order of [`MetaOp`].
#[derive(Debug)]
pub enum MetaAnswer {
    /// The batch and the mark are durable.
    Committed,
    /// The map.
    Map(Box<FlatMap>),
    /// Records in order; fewer than the limit: there are no more.
    Records(Vec<(ClusterIndex, MapRecord)>),
    /// Clusters in order, and what of each is touched.
    Touched(Vec<(ClusterIndex, Mask)>),
}

/// The end of one metadata operation.
#[derive(Debug)]
pub struct MetaDone {
    /// As submitted.
    pub tag: u64,
    /// What came of it.
    pub result: Result<MetaAnswer, MetaError>,
}

/// How the reactor reaches the metadata.
pub trait MetaPort {
    /// Takes an operation. Its completion arrives later, never inside this call. Operations may complete in any
    /// order, but whatever reads sees every `Commit` that had completed before it was submitted.
    fn submit(&mut self, tag: u64, op: MetaOp);
}
