//! The hash of a snapshot: what is recorded is used, what is missing is computed and kept.
//!
//! If the tree of an earlier snapshot below is at hand, only what has changed since is looked at, else everything that
//! shows data. Values are gathered first, and go into the tree many at a time: whoever stops in between has spoilt no
//! tree, and finds the values recorded when it goes on.

use std::io;

use super::batch::{Batch, Bytes};
use super::changes::{Changed, Changes, Content};
use super::earlier::{self, Earlier};
use super::reader::ClosedReader;
use super::trees::{Before, Hashes, Lease, Trouble, Update};
use super::{Submit, meta_error, stopped};
use crate::catalog::format::keys::root_key;
use crate::catalog::format::{Record, RootRecord};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::control::{Control, ControlError, ErrorKind, Pinned};
use crate::hash::pages::Shape;
use crate::hash::{Value, cluster_value};
use crate::units::{CLUSTER_BYTES, ClusterIndex, LayerId};

/// Hashes that are kept with one command.
const KEPT_MAX: usize = if cfg!(test) { 5 } else { 4096 };
/// Values that go into the tree at once: of 16 GiB, in 10 MiB of memory.
const VALUES_MAX: usize = if cfg!(test) { 7 } else { 1 << 18 };

/// BLAKE3 of a pinned snapshot's whole content, as `b3sum` says of the raw image. `progress` gets the bytes done and
/// the bytes in all; `false` ends it. Of two that hash snapshots of one volume, one waits for the other, and goes on from
/// its tree; a reader that yields does not begin, or ends, where somebody else wants a hash.
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
    let _wanted = if reader.yields { None } else { reader.want(pinned)? };
    let (lease, earlier) = find_tree(reader, pinned, progress)?;
    // Whoever had the file may have hashed the same.
    if let Some(root) = recorded_root(&*reader.meta, top, pinned.size).map_err(meta_error)? {
        return Ok(root);
    }
    let mut hashing = Hashing::new(reader, pinned, submit, progress);
    if hashing.shape.clusters() == 1 {
        let hash = hashing.only_cluster()?;
        return hashing.finish(top, hash);
    }
    let (root, in_file) = hashing.root(earlier, lease.as_ref())?;
    let tail = hashing.tail;
    let hash = hashing.finish(top, root)?;
    // Only now is there a recorded root that the tree can be held against.
    if in_file && let Some(Err(error)) = lease.map(|lease| lease.finish(top, pinned.size, tail)) {
        not_written(&error);
    }
    Ok(hash)
}

/// The tree to begin with, if there is one; it is waited for.
fn find_tree(
    reader: &ClosedReader,
    pinned: &Pinned,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(Option<Lease>, Option<Earlier>), ControlError> {
    let mut is_stopped = false;
    let mut go_on = || {
        is_stopped = reader.has_to_yield(pinned) || !progress(0, pinned.size);
        !is_stopped
    };
    let found = earlier::find(reader, pinned, &mut go_on).map_err(meta_error)?;
    if is_stopped { Err(stopped()) } else { Ok(found) }
}

fn not_written(error: &io::Error) {
    tracing::warn!(%error, "the tree cache cannot be written: the next hash is made from the start");
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

/// Why a run ended.
enum End {
    Trouble(Trouble),
    Error(ControlError),
}

impl From<Trouble> for End {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Stopped => Self::Error(stopped()),
            trouble => Self::Trouble(trouble),
        }
    }
}

impl From<ControlError> for End {
    fn from(error: ControlError) -> Self {
        Self::Error(error)
    }
}

struct Hashing<'a> {
    reader: &'a ClosedReader,
    pinned: &'a Pinned,
    submit: &'a Submit<'a>,
    progress: &'a mut dyn FnMut(u64, u64) -> bool,
    shape: Shape,
    /// That are to be recorded.
    kept: Vec<(LayerId, ClusterIndex, Value)>,
    /// That are to go into the tree.
    values: Vec<(u64, Value)>,
    /// The value of the last cluster up to the volume's end, if that cuts it short and it is known already.
    tail: Option<Value>,
}

impl<'a> Hashing<'a> {
    fn new(
        reader: &'a ClosedReader,
        pinned: &'a Pinned,
        submit: &'a Submit<'a>,
        progress: &'a mut dyn FnMut(u64, u64) -> bool,
    ) -> Self {
        let (shape, kept, values) = (Shape::of(pinned.size), Vec::new(), Vec::new());
        Self { reader, pinned, submit, progress, shape, kept, values, tail: None }
    }

    /// The hash of a volume that is no tree.
    fn only_cluster(&mut self) -> Result<Value, ControlError> {
        let changed = self.cluster(ClusterIndex(0))?;
        let content = self.read(&changed)?;
        self.keep(&changed, cluster_value(changed.index, &content))?;
        let size = usize::try_from(self.pinned.size).expect("at most a cluster");
        Ok(*blake3::hash(&content[..size]).as_bytes())
    }

    /// The root, and whether the file holds its tree: by way of the tree that is at hand, or else from the start.
    fn root(
        &mut self,
        earlier: Option<Earlier>,
        lease: Option<&Lease>,
    ) -> Result<(Value, bool), ControlError> {
        let mut end = self.run(earlier, lease);
        if let Err(End::Trouble(trouble)) = &end {
            tracing::warn!(error = %trouble, "a tree cache is damaged: the hash is made from the start");
            // What was computed is not computed again.
            self.submit_kept(Vec::new())?;
            self.values.clear();
            end = self.run(None, lease);
        }
        end.map_err(|end| match end {
            End::Error(error) => error,
            End::Trouble(trouble) => unreachable!("nothing is read from the start: {trouble}"),
        })
    }

    fn run(&mut self, earlier: Option<Earlier>, lease: Option<&Lease>) -> Result<(Value, bool), End> {
        let (from, tree) = earlier.map_or((None, Before::nothing()), |earlier| {
            self.tail = earlier.tail.filter(|_| earlier.pinned.size == self.pinned.size);
            (Some(earlier.pinned), earlier.tree)
        });
        if from.is_none() {
            self.tail = None;
        }
        // What held the end and does not any more has another value, changed or not.
        let old_end =
            from.as_ref().map(|from| Shape::of(from.size).whole).filter(|&at| at < self.shape.whole);
        let mut old_end = old_end.map(|cluster| ClusterIndex::of(cluster * CLUSTER_BYTES));
        let hashes = Hashes { zeroes: &self.reader.zeroes, threads: self.reader.threads };
        let update = Update::new(tree, self.shape, lease.map(Lease::file), hashes);
        let mut filling = Filling {
            update,
            lease,
            anew: from.is_none(),
            begun: false,
            batch: Batch::new(self.reader.threads),
        };
        let changes = Changes::new(self.reader, from.as_ref(), self.pinned, ClusterIndex(0))?;
        for changed in changes.values_before(self.shape.whole) {
            let changed = changed?;
            if let Some(end) = old_end.take_if(|end| *end <= changed.index)
                && end < changed.index
            {
                self.push(self.cluster(end)?, &mut filling)?;
            }
            self.push(changed, &mut filling)?;
        }
        if let Some(end) = old_end {
            self.push(self.cluster(end)?, &mut filling)?;
        }
        self.drain(&mut filling)?;
        self.fill(&mut filling)?;
        self.find_tail()?;
        let Self { progress, pinned, tail, .. } = self;
        Ok(filling.update.finish(*tail, &mut step(*progress, pinned.size))?)
    }

    /// A cluster, changed or not.
    fn cluster(&self, index: ClusterIndex) -> Result<Changed, ControlError> {
        let next = Changes::new(self.reader, None, self.pinned, index)?.next().transpose()?;
        Ok(next.filter(|changed| changed.index == index).unwrap_or_else(|| Changed::zeroes(index)))
    }

    fn read(&self, changed: &Changed) -> Result<Content, ControlError> {
        let content = self.reader.read_clusters(&[changed]).pop().expect("one for each");
        content.map_err(|error| unreadable(changed, &error))
    }

    fn push(&mut self, changed: Changed, filling: &mut Filling<'_>) -> Result<(), End> {
        let wanted = changed.recorded.is_none() || u64::from(changed.index.0) >= self.shape.whole;
        let read = wanted && changed.shows_data();
        let done = changed.index.start();
        if filling.batch.push(changed, read) {
            self.drain(filling)?;
            // Later the file is being changed: it is soon done, and would be spoilt.
            let yields = !filling.begun && self.reader.has_to_yield(self.pinned);
            if yields || !(self.progress)(done, self.pinned.size) {
                return Err(End::Error(stopped()));
            }
        }
        if self.values.len() >= VALUES_MAX { self.fill(filling) } else { Ok(()) }
    }

    fn drain(&mut self, filling: &mut Filling<'_>) -> Result<(), ControlError> {
        let anew = filling.anew;
        filling.batch.drain(self.reader, &mut |changed, bytes| self.add(changed, bytes, anew))
    }

    fn add(&mut self, changed: &Changed, bytes: Bytes<'_>, anew: bool) -> Result<(), ControlError> {
        let bytes = bytes.transpose().map_err(|error| unreadable(changed, &error))?;
        let cluster = u64::from(changed.index.0);
        if cluster >= self.shape.whole {
            self.tail = self.shape.tail().map(|length| match bytes {
                Some(read) => cluster_value(changed.index, &read.bytes[..length]),
                None => cluster_value(changed.index, &vec![0; length]),
            });
        }
        let value = match (changed.recorded, bytes) {
            (Some(value), _) => value,
            (None, Some(read)) => read.value,
            // Without a tree before everything else is zeroes already.
            (None, None) if anew => return Ok(()),
            (None, None) => self.reader.zeroes.cluster(changed.index),
        };
        if cluster < self.shape.whole {
            self.values.push((cluster, value));
        }
        self.keep(changed, value)
    }

    /// Values into the tree.
    fn fill(&mut self, filling: &mut Filling<'_>) -> Result<(), End> {
        if !filling.begun {
            filling.begin();
        }
        let mut step = step(self.progress, self.pinned.size);
        for (cluster, value) in self.values.drain(..) {
            filling.update.set(cluster, value, &mut step)?;
        }
        Ok(())
    }

    /// The last cluster's value, if it was not among what has changed.
    fn find_tail(&mut self) -> Result<(), ControlError> {
        if let (Some(length), None) = (self.shape.tail(), self.tail) {
            let changed = self.cluster(ClusterIndex::of(self.shape.whole * CLUSTER_BYTES))?;
            self.tail = Some(cluster_value(changed.index, &self.read(&changed)?[..length]));
        }
        Ok(())
    }

    fn keep(&mut self, changed: &Changed, value: Value) -> Result<(), ControlError> {
        self.kept.extend(changed.kept(value));
        if self.kept.len() == KEPT_MAX { self.submit_kept(Vec::new()) } else { Ok(()) }
    }

    fn submit_kept(&mut self, roots: Vec<(LayerId, RootRecord)>) -> Result<(), ControlError> {
        let hashes = std::mem::take(&mut self.kept);
        (self.submit)(Control::KeepHashes { pin: self.pinned.pin, hashes, roots }).map(drop)
    }

    fn finish(mut self, top: LayerId, hash: Value) -> Result<Value, ControlError> {
        self.submit_kept(vec![(top, RootRecord { size: self.pinned.size, hash })])?;
        (self.progress)(self.pinned.size, self.pinned.size);
        Ok(hash)
    }
}

/// A tree that values go into, and the clusters that are to give some.
struct Filling<'a> {
    update: Update<'a>,
    lease: Option<&'a Lease>,
    /// There was none before.
    anew: bool,
    /// The file's header says that it is being changed.
    begun: bool,
    batch: Batch,
}

impl Filling<'_> {
    fn begin(&mut self) {
        self.begun = true;
        if let Some(Err(error)) = self.lease.map(|lease| lease.begin(self.anew)) {
            not_written(&error);
            self.update.keep_nothing();
        }
    }
}

fn unreadable(changed: &Changed, error: &io::Error) -> ControlError {
    let text = format!("bytes at {} cannot be read: {error}", changed.index.start());
    ControlError::new(ErrorKind::Io, text)
}

/// Tells how far zeroes were hashed.
fn step(progress: &mut dyn FnMut(u64, u64) -> bool, size: u64) -> impl FnMut(u64) -> bool {
    move |cluster| progress((cluster * CLUSTER_BYTES).min(size), size)
}
