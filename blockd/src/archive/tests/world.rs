//! An archive in memory, with snapshots whose content is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use tokio::sync::mpsc;

use super::super::key::SecretKey;
use super::super::pack::CHUNK_BYTES;
use super::super::storage::Storage;
use super::super::{
    Archive, ArchiveError, Cluster, Damage, FETCH_CLUSTERS_WAITING_MAX, Piece, Push, PushReport, Trust,
    VerifySummary, fetch, verify,
};
use crate::control::SnapshotName;

/// Larger images are not hashed: their roots say zero.
const IMAGE_BYTES_MAX: u64 = 128 << 20;

/// Clusters with data, each with a seed; all else is zero.
pub(super) type Disk = BTreeMap<u32, u64>;

pub(super) fn disk(clusters: impl IntoIterator<Item = u32>) -> Disk {
    clusters.into_iter().map(|cluster| (cluster, u64::from(cluster) + 1)).collect()
}

pub(super) fn content(seed: u64) -> Vec<u8> {
    let mut content = vec![0; CHUNK_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut content[..CHUNK_BYTES / 2]);
    content
}

/// The whole image. Only for small ones.
pub(super) fn image(disk: &Disk, size: u64) -> Vec<u8> {
    let mut image = vec![0; size.next_multiple_of(CHUNK_BYTES as u64) as usize];
    for (&cluster, &seed) in disk {
        image[cluster as usize * CHUNK_BYTES..][..CHUNK_BYTES].copy_from_slice(&content(seed));
    }
    image.truncate(size as usize);
    image
}

pub(super) fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

pub(super) struct World {
    pub(super) store: Arc<InMemory>,
    pub(super) key: SecretKey,
    pub(super) archive: Archive,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::with_key(SecretKey::generate().unwrap().1).await
    }

    pub(super) async fn with_key(key: SecretKey) -> Self {
        let store = Arc::new(InMemory::new());
        let archive = Archive::create(storage(&store), &key, 1).await.unwrap();
        Self { store, key, archive }
    }

    pub(super) async fn reopen(&self) -> Result<Archive, ArchiveError> {
        Archive::open(storage(&self.store), Trust::Key(self.key.public())).await
    }

    /// Pushes what differs from the base, whose content is told with it.
    pub(super) async fn push(
        &self,
        snapshot: &str,
        size: u64,
        disk: &Disk,
        base: Option<(&str, &Disk)>,
    ) -> Result<PushReport, ArchiveError> {
        let before = base.map(|(_, disk)| disk.clone()).unwrap_or_default();
        let base = match base {
            Some((base, _)) => Some(self.archive.root(&name(base)).await?),
            None => None,
        };
        let loaded = self.archive.load_index().await?;
        let mut push = Push::begin(&self.archive, loaded, name(snapshot), size, base).await?;
        for clusters in changed(&before, disk).chunks(100) {
            push.add(clusters.to_vec()).await?;
        }
        let hash = if size <= IMAGE_BYTES_MAX { blake3::hash(&image(disk, size)).into() } else { [0; 32] };
        push.finish(7, hash, &self.key).await
    }

    /// Reads all of a snapshot: its clusters, or what is wrong.
    pub(super) async fn pull(&self, snapshot: &str) -> Result<BTreeMap<u32, Vec<u8>>, Vec<Damage>> {
        let root = self.archive.root(&name(snapshot)).await.unwrap();
        let index = self.archive.load_index().await.unwrap().index;
        let (sender, mut pieces) = mpsc::channel(FETCH_CLUSTERS_WAITING_MAX);
        let fetching = async move { fetch(&self.archive, &index, &root, &sender).await.unwrap() };
        let (mut found, mut damage) = (BTreeMap::new(), Vec::new());
        let receiving = async {
            while let Some(piece) = pieces.recv().await {
                match piece {
                    Piece::Data { clusters, content } => {
                        found.extend(clusters.into_iter().map(|cluster| (cluster, content.clone())));
                    }
                    Piece::Damaged(what) => damage.push(what),
                    Piece::Done { .. } => {}
                }
            }
        };
        tokio::join!(fetching, receiving);
        if damage.is_empty() { Ok(found) } else { Err(damage) }
    }

    pub(super) async fn assert_holds(&self, snapshot: &str, disk: &Disk) {
        let found = self.pull(snapshot).await.unwrap();
        assert!(found.keys().eq(disk.keys()), "{snapshot}: {:?}", found.keys());
        for (cluster, seed) in disk {
            assert!(found[cluster] == content(*seed), "{snapshot}: cluster {cluster}");
        }
    }

    pub(super) async fn verify(&self, snapshot: &str, read_data: bool) -> VerifySummary {
        let root = self.archive.root(&name(snapshot)).await.unwrap();
        let index = self.archive.load_index().await.unwrap().index;
        verify(&self.archive, &index, &root, read_data, |_| ()).await.unwrap()
    }

    /// All objects with their content.
    pub(super) async fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let listed = self.store.list_with_delimiter(None).await.unwrap();
        let (mut directories, mut objects) = (listed.common_prefixes, listed.objects);
        while let Some(directory) = directories.pop() {
            let listed = self.store.list_with_delimiter(Some(&directory)).await.unwrap();
            directories.extend(listed.common_prefixes);
            objects.extend(listed.objects);
        }
        let mut all = BTreeMap::new();
        for object in objects {
            all.insert(object.location.to_string(), self.get(object.location.as_ref()).await);
        }
        all
    }

    pub(super) async fn get(&self, object: &str) -> Vec<u8> {
        self.store.get(&Path::from(object)).await.unwrap().bytes().await.unwrap().to_vec()
    }

    pub(super) async fn put(&self, object: &str, bytes: Vec<u8>) {
        self.store.put(&Path::from(object), PutPayload::from(bytes)).await.unwrap();
    }

    pub(super) async fn delete(&self, object: &str) {
        self.store.delete(&Path::from(object)).await.unwrap();
    }

    /// The only object in a directory.
    pub(super) async fn only(&self, directory: &str) -> String {
        let objects = self.objects().await;
        let mut found = objects.into_keys().filter(|object| object.starts_with(directory));
        let only = found.next().unwrap();
        assert_eq!(found.next(), None);
        only
    }
}

pub(super) fn storage(store: &Arc<InMemory>) -> Storage {
    Storage::new(Arc::clone(store) as Arc<dyn ObjectStore>, Path::default())
}

fn changed(before: &Disk, after: &Disk) -> Vec<Cluster> {
    let clusters: std::collections::BTreeSet<u32> = before.keys().chain(after.keys()).copied().collect();
    let differs = clusters.into_iter().filter(|cluster| before.get(cluster) != after.get(cluster));
    differs.map(|cluster| (cluster, after.get(&cluster).map(|seed| content(*seed)))).collect()
}
