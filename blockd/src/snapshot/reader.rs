//! How closed layers are read outside the reactor: blocking, with files of our own.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::available_parallelism;

use super::earlier::volume_of;
use super::meta_error;
use super::records::Sources;
use super::trees::{Trees, Wanted};
use crate::catalog::meta::MetaStore;
use crate::control::{ControlError, Pinned};
use crate::hash::Zeroes;
use crate::units::{BLOCK_BYTES, CLUSTER_BYTES, Mask, PoolCluster};

/// Bytes of a cluster, as an index.
pub(super) const CLUSTER: usize = CLUSTER_BYTES as usize;

/// How a file of the pool is read, and mended: several threads at once, each where it likes.
pub trait PoolRead: Send + Sync {
    /// Fills the buffer with what begins at `offset`, bytes from the file's start.
    ///
    /// # Errors
    /// The medium's; `UnexpectedEof` if the file ends before.
    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes whole blocks of closed layers that are damaged; nothing else is ever written through it.
    ///
    /// # Errors
    /// The medium's; `Unsupported` if this file is only read.
    fn write(&self, _bytes: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes durable what was written, and has that range read from the medium from now on.
    ///
    /// # Errors
    /// As [`Self::write`].
    fn settle(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Through the page cache: a file that was opened in direct mode would want aligned buffers.
impl PoolRead for File {
    fn fill(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }

    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn settle(&self, offset: u64, length: u64) -> io::Result<()> {
        self.sync_data()?;
        Ok(rustix::fs::fadvise(self, offset, NonZeroU64::new(length), rustix::fs::Advice::DontNeed)?)
    }
}

/// A file of the pool, open for reading.
#[derive(Clone)]
pub struct PoolHandle {
    /// The file.
    pub file: Arc<dyn PoolRead>,
    /// Its superblock's number in the pool.
    pub first: PoolCluster,
    /// Clusters, the superblock's included.
    pub clusters: u32,
}

/// Reads closed layers. Cheap to clone; clones share what they remember.
///
/// Whoever reads has pinned the snapshot: neither its records nor its clusters change meanwhile.
#[derive(Clone)]
pub struct ClosedReader {
    pub(super) meta: Arc<dyn MetaStore>,
    files: Arc<[PoolHandle]>,
    pub(super) zeroes: Arc<Zeroes>,
    /// That hash zeroes at once.
    pub(super) threads: usize,
    /// Where trees are kept; nowhere without.
    pub(super) trees: Option<Arc<Trees>>,
    /// Lets go of a volume's tree when somebody else wants a hash of it.
    pub(super) yields: bool,
}

impl std::fmt::Debug for PoolHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { file: _, first, clusters } = self;
        f.debug_struct("PoolHandle").field("first", first).field("clusters", clusters).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ClosedReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClosedReader").field("files", &self.files).finish_non_exhaustive()
    }
}

impl ClosedReader {
    /// A reader of these metadata and files.
    pub fn new(meta: Arc<dyn MetaStore>, mut files: Vec<PoolHandle>) -> Self {
        files.sort_by_key(|file| file.first);
        let threads = available_parallelism().map_or(1, usize::from);
        let zeroes = Arc::new(Zeroes::new());
        Self { meta, files: files.into(), zeroes, threads, trees: None, yields: false }
    }

    /// The same; hashes are made of what these tree caches have.
    #[must_use]
    pub fn with_trees(self, trees: Trees) -> Self {
        Self { trees: Some(Arc::new(trees)), ..self }
    }

    /// The records that it goes by.
    pub fn meta(&self) -> &dyn MetaStore {
        &*self.meta
    }

    /// The same for work that nobody waits for: on one thread only, and it yields to others.
    pub(super) fn in_background(&self) -> Self {
        Self { threads: 1, yields: true, ..self.clone() }
    }

    /// Says that a hash of the snapshot's volume will be wanted, so that what is done in the background leaves the
    /// volume alone: until what comes back is dropped. `None` where there are no trees.
    ///
    /// # Errors
    /// `Io`, `Damaged`: what is recorded of the snapshot cannot be read.
    pub fn want(&self, pinned: &Pinned) -> Result<Option<Wanted>, ControlError> {
        let volume = volume_of(&*self.meta, pinned.chain[0]).map_err(meta_error)?;
        Ok(self.trees.as_ref().zip(volume).map(|(trees, volume)| trees.want(volume)))
    }

    /// Whether what is done in the background has to leave a snapshot's volume alone.
    pub(super) fn has_to_yield(&self, pinned: &Pinned) -> bool {
        let Some(trees) = self.trees.as_ref().filter(|_| self.yields) else { return false };
        // What cannot be read is found out soon enough.
        volume_of(&*self.meta, pinned.chain[0])
            .is_ok_and(|volume| volume.is_some_and(|at| trees.is_wanted(at)))
    }

    /// Reads clusters into the buffer, 64 KiB each; what shows no data is zero. What came of each.
    pub(super) fn read(&self, clusters: &[&Sources], buffer: &mut [u8]) -> Vec<io::Result<()>> {
        match self.read_all(clusters, buffer) {
            Ok(()) => clusters.iter().map(|_| Ok(())).collect(),
            // One by one, to see whose fault it is.
            Err(_) => clusters
                .iter()
                .zip(buffer.chunks_mut(CLUSTER))
                .map(|(&sources, buffer)| self.read_all(&[sources], buffer))
                .collect(),
        }
    }

    fn read_all(&self, clusters: &[&Sources], buffer: &mut [u8]) -> io::Result<()> {
        let mut segments = Vec::new();
        for (&sources, at) in clusters.iter().zip((0..).step_by(CLUSTER)) {
            let shown = sources.iter().fold(Mask::NONE, |mask, source| mask.with(source.shown));
            if shown != Mask::ALL {
                buffer[at..at + CLUSTER].fill(0);
            }
            self.add_segments(sources, at, &mut segments)?;
        }
        for segment in join(segments) {
            let place = &mut buffer[segment.at..segment.at + segment.length];
            self.files[segment.file].file.fill(place, segment.offset)?;
        }
        Ok(())
    }

    fn add_segments(&self, sources: &Sources, at: usize, segments: &mut Vec<Segment>) -> io::Result<()> {
        for source in sources {
            let (file, start) = self.locate(source.cluster)?;
            for run in source.shown.runs() {
                let offset = start + u64::from(source.place(run.start)) * BLOCK_BYTES;
                let at = at + run.start as usize * BLOCK_BYTES as usize;
                let length = run.len() * BLOCK_BYTES as usize;
                segments.push(Segment { at, file, offset, length });
            }
        }
        Ok(())
    }

    /// Where each block lies that shows.
    pub(super) fn places(&self, sources: &Sources) -> io::Result<Vec<Segment>> {
        let mut segments = Vec::new();
        self.add_segments(sources, 0, &mut segments)?;
        let block = BLOCK_BYTES as usize;
        let split = |segment: Segment| {
            (0..segment.length / block).map(move |number| Segment {
                at: segment.at + number * block,
                offset: segment.offset + number as u64 * BLOCK_BYTES,
                length: block,
                ..segment
            })
        };
        Ok(segments.into_iter().flat_map(split).collect())
    }

    /// A file of the pool, by its place.
    pub(super) fn file(&self, place: usize) -> &dyn PoolRead {
        &*self.files[place].file
    }

    /// The file of a pool cluster, and where it begins there.
    fn locate(&self, cluster: PoolCluster) -> io::Result<(usize, u64)> {
        let missing = || io::Error::other(format!("pool cluster {cluster} lies in no file"));
        let file = self.files.partition_point(|file| file.first <= cluster).checked_sub(1);
        let file = file.ok_or_else(missing)?;
        let inside = cluster.0 - self.files[file].first.0;
        if inside >= self.files[file].clusters {
            return Err(missing());
        }
        Ok((file, u64::from(inside) * CLUSTER_BYTES))
    }
}

/// One read.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    /// Where in the buffer.
    pub(super) at: usize,
    pub(super) file: usize,
    pub(super) offset: u64,
    length: usize,
}

/// Makes one read of those that follow each other in the buffer and in the file.
fn join(mut segments: Vec<Segment>) -> Vec<Segment> {
    segments.sort_unstable_by_key(|segment| segment.at);
    let mut joined: Vec<Segment> = Vec::with_capacity(segments.len());
    for next in segments {
        match joined.last_mut() {
            Some(last)
                if last.file == next.file
                    && last.at + last.length == next.at
                    && last.offset + last.length as u64 == next.offset =>
            {
                last.length += next.length;
            }
            _ => joined.push(next),
        }
    }
    joined
}
