//! What differs between two snapshots, cluster by cluster, with the content: what a sync sends and a hash takes up.
//!
//! ```text
//!  Changes ─► Changed, Changed, … ─► ClosedReader::read_clusters, up to 1 MiB at once ─► hash, compress, send
//!  (metadata: one thread, in order)  (content: any thread)
//! ```
//!
//! Nothing here borrows: the parts may run on threads of their own, and a run may end anywhere and go on later from
//! the cluster that it had come to. Both snapshots are pinned all the while.

use std::io;
use std::ops::Deref;
use std::sync::Arc;

use super::batch::READ_CLUSTERS;
use super::meta_error;
use super::reader::{CLUSTER, ClosedReader};
use super::records::{Cursor, Sources, batch_records, sources, touched};
use super::sides::Sides;
use crate::catalog::meta::MetaError;
use crate::control::{ControlError, Pinned};
use crate::hash::Value;
use crate::map::Source;
use crate::units::{ClusterIndex, LayerId, Mask};

/// A cluster in which two snapshots may differ.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Which.
    pub index: ClusterIndex,
    /// The blocks that may differ and show data in `to`.
    pub data: Mask,
    /// The blocks that may differ and show zeroes in `to`; none of them is in `data`.
    pub zero: Mask,
    /// The value of the cluster's content in `to` ([`crate::hash::cluster_value`] of all 64 KiB), if it is recorded.
    pub recorded: Option<Value>,
    /// Where that is recorded, or belongs: the newest layer of `to` with a record of the cluster.
    layer: Option<LayerId>,
    pub(super) sources: Sources,
    before: Option<Sources>,
}

impl Changed {
    /// A cluster of zeroes, of which no layer says anything.
    pub(super) fn zeroes(index: ClusterIndex) -> Self {
        let (data, zero, sources) = (Mask::NONE, Mask::ALL, Sources::new());
        Self { index, data, zero, recorded: None, layer: None, sources, before: None }
    }

    /// Whether any block of the cluster, changed or not, shows data in `to`. If none does, all 64 KiB are zeroes; their
    /// value is never recorded.
    pub fn shows_data(&self) -> bool {
        !self.sources.is_empty()
    }

    /// A value that was computed of this cluster, as `Control::KeepHashes` takes it; `None` if nothing is to be kept:
    /// it is recorded already, or it is of zeroes.
    pub fn kept(&self, value: Value) -> Option<(LayerId, ClusterIndex, Value)> {
        let layer = self.layer.filter(|_| self.shows_data() && self.recorded.is_none())?;
        Some((layer, self.index, value))
    }
}

/// The clusters in which two snapshots may differ, in order. See [`super::diff()`], whose blocks these are.
///
/// The cost is that of the layers that only one of the snapshots has, from the first cluster on; in layers below, what
/// is needed for the content of these clusters is looked up.
pub struct Changes {
    sides: Sides,
    hashes: Vec<Cursor<Value>>,
    with_before: bool,
    /// Of whole clusters before this one only the value is wanted, where it is recorded.
    values_before: u64,
}

impl Changes {
    /// From `from`, or from zeroes without it, to `to`, beginning with the first cluster at or after `starting_at`.
    /// Both are pinned.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn new(
        reader: &ClosedReader,
        from: Option<&Pinned>,
        to: &Pinned,
        starting_at: ClusterIndex,
    ) -> Result<Self, ControlError> {
        let limit = batch_records(to.chain.len());
        let hashes = to.chain.iter().map(|&layer| Cursor::new(&reader.meta, layer, limit)).collect();
        let sides = Sides::new(&reader.meta, from, to, starting_at).map_err(meta_error)?;
        Ok(Self { sides, hashes, with_before: false, values_before: 0 })
    }

    /// The same, and [`ClosedReader::read_before`] can be asked for the content in `from`. It costs look-ups.
    #[must_use]
    pub fn with_before(self) -> Self {
        Self { with_before: true, ..self }
    }

    /// The same, and clusters before `end` come without content and without masks if their value is recorded in a layer
    /// that only `to` has: layers below are not asked for them.
    pub(super) fn values_before(self, end: u64) -> Self {
        Self { values_before: end, ..self }
    }

    fn read_next(&mut self) -> Result<Option<Changed>, MetaError> {
        while let Some((index, stack)) = self.sides.next()? {
            let asked = self.sides.newest(&stack).filter(|_| u64::from(index.0) < self.values_before);
            let recorded = asked.map(|place| self.hashes[place].take(index)).transpose()?.flatten();
            if recorded.is_some() {
                return Ok(Some(Changed { recorded, ..Changed::zeroes(index) }));
            }
            let own = stack.iter().fold(Mask::NONE, |mask, (_, record)| mask.with(touched(record)));
            let (to, from) = self.sides.split(index, stack, self.with_before)?;
            let shown = sources(to.iter().map(|(_, record)| record));
            let data = shown.iter().fold(Mask::NONE, |mask, source| mask.with(source.shown)).and(own);
            let (data, zero) = self.sides.cut(index, data, own.without(data));
            if data.is_empty() && zero.is_empty() {
                continue;
            }
            let newest = to.first().map(|(place, _)| *place);
            let recorded = match newest.filter(|_| !shown.is_empty() && asked.is_none()) {
                Some(place) => self.hashes[place].take(index)?,
                None => None,
            };
            let layer = newest.map(|place| self.sides.layer(place));
            let before = self.with_before.then(|| sources(from.iter().map(|(_, record)| record)));
            return Ok(Some(Changed { index, data, zero, recorded, layer, sources: shown, before }));
        }
        Ok(None)
    }
}

/// Errors are `Io` and `Damaged`; after one there is nothing more to be had.
impl Iterator for Changes {
    type Item = Result<Changed, ControlError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_next().map_err(meta_error).transpose()
    }
}

/// 64 KiB, zeroes after the volume's end. Cheap to clone. Those of one read lie side by side: the memory of up to 16
/// is given back with the last of them.
#[derive(Clone, Debug)]
pub struct Content {
    buffer: Arc<Vec<u8>>,
    start: usize,
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.start..self.start + CLUSTER]
    }
}

impl ClosedReader {
    /// The content of clusters in `to`, what came of each; up to 1 MiB is read at once. Clusters that follow each other
    /// are best read together.
    pub fn read_clusters(&self, clusters: &[&Changed]) -> Vec<io::Result<Content>> {
        self.read_contents(clusters.iter().map(|changed| &changed.sources).collect())
    }

    /// The same of what blocks of `data` hold in `from`; the other blocks are not read, and are zeroes.
    ///
    /// # Panics
    /// When it was not asked for: see [`Changes::with_before`].
    pub fn read_before(&self, clusters: &[&Changed]) -> Vec<io::Result<Content>> {
        let before = |changed: &&'_ Changed| -> Sources {
            let all = changed.before.as_ref().expect("`with_before` has not been called");
            let wanted = all.iter().map(|source| Source { shown: source.shown.and(changed.data), ..*source });
            wanted.filter(|source| !source.shown.is_empty()).collect()
        };
        let before: Vec<_> = clusters.iter().map(before).collect();
        self.read_contents(before.iter().collect())
    }

    fn read_contents(&self, clusters: Vec<&Sources>) -> Vec<io::Result<Content>> {
        let read = |clusters: &[&Sources]| {
            let mut buffer = vec![0; clusters.len() * CLUSTER];
            let results = self.read(clusters, &mut buffer);
            let buffer = Arc::new(buffer);
            let content = |(result, start): (io::Result<()>, usize)| {
                result.map(|()| Content { buffer: Arc::clone(&buffer), start })
            };
            results.into_iter().zip((0..).step_by(CLUSTER)).map(content).collect::<Vec<_>>()
        };
        clusters.chunks(READ_CLUSTERS).flat_map(read).collect()
    }
}
