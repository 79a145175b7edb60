//! Checks snapshots of an archive, down to the last chunk if asked.

use std::collections::BTreeMap;
use std::thread::available_parallelism;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::catalog::Archive;
use super::fetch::{FETCH_CLUSTERS_WAITING_MAX, Leaf, Piece, each_leaf, fetch, missing};
use super::index::Index;
use super::root::Root;
use super::storage::root_name;
use super::{ArchiveError, Digest, hex};
use crate::hash::{Sequence, Value, Zeroes, cluster_value};
use crate::units::ClusterIndex;

/// Damaged objects that are told of a snapshot, at most; where there are more, the snapshot is lost anyway.
const DAMAGE_MAX: usize = 1000;

/// An object that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name in the archive.
    pub object: String,
    /// What is wrong.
    pub why: String,
}

impl Damage {
    /// Damage is what an error tells of; or the error is of another kind.
    pub(super) fn of(error: ArchiveError) -> Result<Self, ArchiveError> {
        match error {
            ArchiveError::Damaged { object, why } => Ok(Self { object, why }),
            error => Err(error),
        }
    }

    /// The same; and that an object is not there, which it should be.
    pub(super) fn of_missing(object: String, error: ArchiveError) -> Result<Self, ArchiveError> {
        match error {
            ArchiveError::NotFound(_) => Ok(Self { object, why: "it is missing".to_owned() }),
            error => Self::of(error),
        }
    }
}

/// What was found in one snapshot.
#[derive(Debug, Default)]
pub struct VerifySummary {
    /// Clusters with data that are where they should be; with `read_data`, that hold what they should.
    pub clusters: u64,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

impl VerifySummary {
    fn note(&mut self, damage: Damage) {
        if self.damage.len() < DAMAGE_MAX && !self.damage.contains(&damage) {
            self.damage.push(damage);
        }
    }
}

/// Checks a snapshot: all of its pages, and that each chunk lies in a pack of the right length. With `read_data` every
/// chunk is read and checked, and the image as a whole. `progress` gets the clusters done, now and then.
///
/// # Errors
/// The storage failed. Damage is no error.
pub async fn verify(
    archive: &Archive,
    index: &Index,
    root: &Root,
    read_data: bool,
    progress: impl FnMut(u64) + Send + 'static,
) -> Result<VerifySummary, ArchiveError> {
    if read_data {
        return verify_data(archive, index, root, progress).await;
    }
    let (mut summary, mut progress) = (VerifySummary::default(), progress);
    let visit = async |leaf: Leaf| {
        match leaf {
            Leaf::Damaged(damage) => summary.note(damage),
            Leaf::Page { page, .. } => {
                for (_, hash) in page.iter() {
                    match index.find(&hash) {
                        Some(_) => summary.clusters += 1,
                        None => summary.note(missing(&hash)),
                    }
                }
            }
        }
        progress(summary.clusters);
        Ok(())
    };
    each_leaf(archive, root, visit).await?;
    Ok(summary)
}

async fn verify_data(
    archive: &Archive,
    index: &Index,
    root: &Root,
    progress: impl FnMut(u64) + Send + 'static,
) -> Result<VerifySummary, ArchiveError> {
    let (sender, pieces) = mpsc::channel(FETCH_CLUSTERS_WAITING_MAX);
    let size = root.size;
    let hashing = spawn_blocking(move || hash_pieces(size, pieces, progress));
    let fetched = fetch(archive, index, root, &sender).await;
    drop(sender);
    let (mut summary, hash) = hashing.await?;
    fetched?;
    if let Some(hash) = hash.filter(|hash| summary.damage.is_empty() && *hash != root.hash) {
        let why = format!("the image has BLAKE3 {}, expected {}", hex(&hash), hex(&root.hash));
        summary.note(Damage { object: root_name(&root.name), why });
    }
    Ok(summary)
}

/// What is known of a cluster until its turn comes.
enum Known {
    Value(Value),
    Content(Vec<u8>),
}

/// Runs on a thread of its own: the hash of the image, unless something is missing.
fn hash_pieces(
    size: u64,
    mut pieces: mpsc::Receiver<Piece>,
    mut progress: impl FnMut(u64),
) -> (VerifySummary, Option<Digest>) {
    let threads = available_parallelism().map_or(1, usize::from);
    let (mut summary, mut tree, zeroes) =
        (VerifySummary::default(), Sequence::new(size, threads), Zeroes::new());
    let mut known = BTreeMap::new();
    while let Some(piece) = pieces.blocking_recv() {
        match piece {
            Piece::Damaged(damage) => summary.note(damage),
            Piece::Data { clusters, content } => {
                summary.clusters += clusters.len() as u64;
                for cluster in clusters {
                    known.insert(u64::from(cluster), look_at(&tree, cluster, &content));
                }
            }
            Piece::Done { .. } => {
                add_known(&mut tree, &zeroes, &mut known);
                progress(summary.clusters);
            }
        }
    }
    let whole = summary.damage.is_empty();
    (summary, whole.then(|| tree.finish(&zeroes)))
}

fn look_at(tree: &Sequence, cluster: u32, content: &[u8]) -> Known {
    if tree.wants_content(u64::from(cluster)) {
        return Known::Content(content.to_vec());
    }
    Known::Value(cluster_value(ClusterIndex(cluster), content))
}

fn add_known(tree: &mut Sequence, zeroes: &Zeroes, known: &mut BTreeMap<u64, Known>) {
    while let Some((cluster, what)) = known.pop_first() {
        match what {
            Known::Value(value) => tree.value(cluster, value, zeroes),
            Known::Content(content) => tree.content(cluster, &content, zeroes),
        }
    }
}
