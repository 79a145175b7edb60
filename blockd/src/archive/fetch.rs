//! Reads a snapshot out of an archive.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::catalog::{Archive, REQUESTS_MAX};
use super::index::{Index, Place};
use super::manifest::read_page;
use super::pack;
use super::page::{LEAF_CLUSTERS, Level, PLACES, Page, share};
use super::root::Root;
use super::storage::{pack_name, page_name, root_name};
use super::verify::Damage;
use super::{ArchiveError, Digest, hex};
use crate::units::cluster_count;

/// Pieces that wait for their receiver: room for the channel of [`fetch`].
pub const FETCH_CLUSTERS_WAITING_MAX: usize = 32;
/// Chunks and bytes of a pack that are asked for at once, at most.
const RUN_CHUNKS_MAX: usize = 128;
const RUN_BYTES_MAX: u32 = 8 << 20;
/// Bytes of no use that are read rather than to ask twice.
const GAP_BYTES_MAX: u32 = 64 << 10;

/// What [`fetch`] finds.
#[derive(Debug)]
pub enum Piece {
    /// Clusters with this content, 64 KiB; in no order, but for what `Done` says.
    Data {
        /// Which.
        clusters: Vec<u32>,
        /// What they hold.
        content: Vec<u8>,
    },
    /// All clusters before this one were told. What was not told of them is zero.
    Done {
        /// The first that was not told.
        end: u64,
    },
    /// Something is not what it should be; clusters are missing.
    Damaged(Damage),
}

/// Sends all clusters with data of a snapshot, each checked. Damage is told as a piece, and the rest goes on.
///
/// # Errors
/// The storage failed, or the receiver went away.
pub async fn fetch(
    archive: &Archive,
    index: &Index,
    root: &Root,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), ArchiveError> {
    let visit = async |leaf: Leaf| match leaf {
        Leaf::Page { number, page } => {
            fetch_leaf(archive, index, number, &page, pieces).await?;
            send(pieces, Piece::Done { end: (number + 1) * LEAF_CLUSTERS }).await
        }
        Leaf::Damaged(damage) => send(pieces, Piece::Damaged(damage)).await,
    };
    each_leaf(archive, root, visit).await?;
    send(pieces, Piece::Done { end: cluster_count(root.size) }).await
}

async fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) -> Result<(), ArchiveError> {
    let stopped = |_| ArchiveError::Stopped("the receiver went away".to_owned());
    pieces.send(piece).await.map_err(stopped)
}

/// What [`each_leaf`] finds.
pub(super) enum Leaf {
    /// A leaf page with its number.
    Page { number: u64, page: Page },
    /// A page that cannot be used.
    Damaged(Damage),
}

/// Visits all leaf pages of a snapshot, in order.
pub(super) async fn each_leaf(
    archive: &Archive,
    root: &Root,
    mut visit: impl AsyncFnMut(Leaf) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let clusters = cluster_count(root.size);
    let leaves = clusters.div_ceil(LEAF_CLUSTERS);
    let mut found = 0;
    let mut damaged = false;
    for (high, digest) in root.inner.iter().enumerate() {
        let (Some(digest), high) = (digest, high as u64) else { continue };
        let inner =
            read_page(&archive.storage, *digest, Level::Inner, share(leaves, PLACES as u64, high)).await;
        let inner = match inner {
            Ok(inner) => inner,
            Err(error) => {
                damaged = true;
                visit(Leaf::Damaged(Damage::of_missing(page_name(digest), error)?)).await?;
                continue;
            }
        };
        for (low, digest) in inner.iter() {
            let number = high * PLACES as u64 + low as u64;
            let places = share(clusters, LEAF_CLUSTERS, number);
            let leaf = match read_page(&archive.storage, digest, Level::Leaf, places).await {
                Ok(page) => {
                    found += page.iter().count() as u64;
                    Leaf::Page { number, page }
                }
                Err(error) => {
                    damaged = true;
                    Leaf::Damaged(Damage::of_missing(page_name(&digest), error)?)
                }
            };
            visit(leaf).await?;
        }
    }
    if damaged || found == root.clusters {
        return Ok(());
    }
    let why = format!("its pages tell of {found} clusters with data, it says {}", root.clusters);
    visit(Leaf::Damaged(Damage { object: root_name(&root.name), why })).await
}

/// Chunks of one pack that are read with one request.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    pack: u32,
    start: u32,
    end: u32,
    places: Vec<Place>,
}

/// Gathers what lies close together.
fn runs(mut places: Vec<Place>) -> Vec<Run> {
    places.sort_unstable_by_key(|place| (place.pack, place.offset));
    let mut runs: Vec<Run> = Vec::new();
    for place in places {
        let end = place.offset + place.entry.stored;
        match runs.last_mut() {
            Some(run)
                if run.pack == place.pack
                    && place.offset - run.end <= GAP_BYTES_MAX
                    && end - run.start <= RUN_BYTES_MAX
                    && run.places.len() < RUN_CHUNKS_MAX =>
            {
                run.end = end;
                run.places.push(place);
            }
            _ => runs.push(Run { pack: place.pack, start: place.offset, end, places: vec![place] }),
        }
    }
    runs
}

async fn fetch_leaf(
    archive: &Archive,
    index: &Index,
    number: u64,
    page: &Page,
    pieces: &mpsc::Sender<Piece>,
) -> Result<(), ArchiveError> {
    let mut wanted: HashMap<Digest, Vec<u32>> = HashMap::new();
    for (place, hash) in page.iter() {
        let cluster = number * LEAF_CLUSTERS + place as u64;
        wanted.entry(hash).or_default().push(u32::try_from(cluster).expect("a cluster of a volume"));
    }
    let mut places = Vec::new();
    for hash in wanted.keys() {
        match index.find(hash) {
            Some(place) => places.push(place),
            None => send(pieces, Piece::Damaged(missing(hash))).await?,
        }
    }
    let reading = stream::iter(runs(places)).map(|run| read_run(archive, index, run));
    let mut reading = reading.buffer_unordered(REQUESTS_MAX);
    while let Some(chunks) = reading.next().await {
        for (hash, content) in chunks? {
            let piece = match content {
                Ok(content) => Piece::Data { clusters: wanted.remove(&hash).unwrap_or_default(), content },
                Err(damage) => Piece::Damaged(damage),
            };
            send(pieces, piece).await?;
        }
    }
    Ok(())
}

/// A chunk that is nowhere.
pub(super) fn missing(hash: &Digest) -> Damage {
    Damage { object: format!("chunk {}", hex(hash)), why: "it is in no pack".to_owned() }
}

type Chunk = (Digest, Result<Vec<u8>, Damage>);

/// Reads and checks the chunks of a run; storage that failed is an error, all else damage.
async fn read_run(archive: &Archive, index: &Index, run: Run) -> Result<Vec<Chunk>, ArchiveError> {
    let object = pack_name(&index.pack(run.pack));
    let length = u64::from(run.end - run.start);
    let bytes = match archive.storage.get_part(&object, u64::from(run.start), length).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let damage = Damage::of_missing(object, error)?;
            return Ok(run.places.iter().map(|place| (place.entry.hash, Err(damage.clone()))).collect());
        }
    };
    let decoding = spawn_blocking(move || {
        let decode = |place: Place| {
            let from = (place.offset - run.start) as usize;
            let content = pack::decode(&place.entry, &bytes[from..from + place.entry.stored as usize]);
            (place.entry.hash, content.map_err(|why| Damage { object: object.clone(), why }))
        };
        run.places.into_iter().map(decode).collect()
    });
    Ok(decoding.await?)
}

#[cfg(test)]
mod tests {
    use super::super::pack::{Encoding, Entry};
    use super::*;

    fn place(pack: u32, offset: u32, stored: u32) -> Place {
        Place { pack, offset, entry: Entry { hash: [0; 32], stored, encoding: Encoding::Zstd } }
    }

    #[test]
    fn what_lies_close_together_is_read_at_once() {
        let near = runs(vec![place(0, 100, 50), place(0, 12, 88), place(0, 150 + GAP_BYTES_MAX, 10)]);
        assert_eq!((near.len(), near[0].start, near[0].end), (1, 12, 160 + GAP_BYTES_MAX));
        assert_eq!(runs(vec![place(0, 12, 8), place(1, 20, 8)]).len(), 2);
        assert_eq!(runs(vec![place(0, 12, 8), place(0, 21 + GAP_BYTES_MAX, 8)]).len(), 2);
        let many: Vec<Place> = (0..300).map(|number| place(0, 12 + number * 10, 10)).collect();
        assert_eq!(runs(many).iter().map(|run| run.places.len()).collect::<Vec<_>>(), [128, 128, 44]);
        let large: Vec<Place> = (0..256).map(|number| place(0, 12 + number * 65_536, 65_536)).collect();
        assert!(runs(large).iter().all(|run| run.end - run.start <= RUN_BYTES_MAX));
    }
}
