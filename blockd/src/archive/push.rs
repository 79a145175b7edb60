//! Adds a snapshot to an archive.
//!
//! Packs are written as they fill up, pages as they are complete, several at once. Then, each when all before has been
//! answered: the index, the last pages, and the signed root. What was written by a push that did not get that far is
//! found again by the next one: packs by their footers, pages by their names.

use tokio::task::{JoinSet, spawn_blocking};

use super::catalog::{Archive, Loaded};
use super::index::{self, INDEX_PACKS_MAX, Index, IndexedPack};
use super::key::SecretKey;
use super::manifest::{Manifest, NewPage};
use super::pack::{self, CHUNK_BYTES, PackBuilder, Stored};
use super::root::Root;
use super::storage::{Put, Storage, index_name, pack_name, page_name, root_name};
use super::{ArchiveError, Digest};
use crate::control::SnapshotName;

/// Objects on their way at once; 16 MiB each at most.
const UPLOADS_MAX: usize = 4;

/// A snapshot of the archive that the new one is based on: only what differs is told. It must not be larger.
pub type Base = Root;

/// A cluster's number and its content, filled up with zeroes to 64 KiB; nothing if all of it is zero.
pub type Cluster = (u32, Option<Vec<u8>>);

/// What a push did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PushReport {
    /// Clusters that were told, with data.
    pub clusters: u64,
    /// Those whose content the archive did not have.
    pub new_chunks: u64,
    /// Objects written.
    pub objects: u64,
    /// Bytes in them.
    pub uploaded_bytes: u64,
}

/// Objects that are being written.
#[derive(Debug)]
struct Uploads {
    storage: Storage,
    running: JoinSet<Result<(), ArchiveError>>,
    objects: u64,
    bytes: u64,
}

impl Uploads {
    async fn put(&mut self, object: String, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        while self.running.len() >= UPLOADS_MAX {
            self.wait().await?;
        }
        self.objects += 1;
        self.bytes += bytes.len() as u64;
        let storage = self.storage.clone();
        self.running.spawn(async move { storage.put(&object, bytes).await });
        Ok(())
    }

    async fn wait(&mut self) -> Result<(), ArchiveError> {
        self.running.join_next().await.map_or(Ok(()), |ended| ended?)
    }

    /// Until all is answered.
    async fn wait_for_all(&mut self) -> Result<(), ArchiveError> {
        while !self.running.is_empty() {
            self.wait().await?;
        }
        Ok(())
    }
}

/// A push under way. Dropped, it leaves objects behind that the next one uses.
pub struct Push {
    archive: Archive,
    name: SnapshotName,
    size: u64,
    index: Index,
    unindexed: Vec<IndexedPack>,
    builder: PackBuilder,
    uploads: Uploads,
    manifest: Manifest,
    clusters: u64,
    new_chunks: u64,
}

impl Push {
    /// Begins to add a snapshot of a volume of `size` bytes.
    ///
    /// # Errors
    /// There is such a snapshot already.
    ///
    /// # Panics
    /// When the base is larger.
    pub async fn begin(
        archive: &Archive,
        loaded: Loaded,
        name: SnapshotName,
        size: u64,
        base: Option<Base>,
    ) -> Result<Self, ArchiveError> {
        match archive.root(&name).await {
            Err(ArchiveError::NotFound(_)) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(ArchiveError::Refused(format!("the archive has a snapshot {name}"))),
        }
        let storage = archive.storage.clone();
        let uploads = Uploads { storage: storage.clone(), running: JoinSet::new(), objects: 0, bytes: 0 };
        Ok(Self {
            archive: archive.clone(),
            name,
            size,
            index: loaded.index,
            unindexed: loaded.unindexed,
            builder: PackBuilder::default(),
            uploads,
            manifest: Manifest::new(storage, size, base),
            clusters: 0,
            new_chunks: 0,
        })
    }

    /// Takes clusters, in order: all that differ from the base. Some hundred at a time keep the processors busy.
    ///
    /// # Errors
    /// See [`ArchiveError`]; the push cannot go on then.
    pub async fn add(&mut self, clusters: Vec<Cluster>) -> Result<(), ArchiveError> {
        let hashed = spawn_blocking(move || clusters.into_iter().map(hash).collect::<Vec<_>>()).await?;
        let mut new = Vec::new();
        for (cluster, content) in hashed {
            let page = self.manifest.set(cluster, content.as_ref().map(|(hash, _)| *hash)).await?;
            self.put_pages(page).await?;
            let Some((hash, content)) = content else { continue };
            self.clusters += 1;
            if !self.index.has(&hash) {
                self.index.comes(hash)?;
                new.push((hash, content));
            }
        }
        self.new_chunks += new.len() as u64;
        let encode = |(hash, content)| pack::encode(hash, content);
        let chunks = spawn_blocking(move || new.into_iter().map(encode).collect::<Vec<_>>()).await?;
        for chunk in chunks {
            self.store(chunk).await?;
        }
        Ok(())
    }

    async fn store(&mut self, chunk: Stored) -> Result<(), ArchiveError> {
        self.builder.add(chunk);
        if self.builder.is_full() { self.put_pack().await } else { Ok(()) }
    }

    async fn put_pack(&mut self) -> Result<(), ArchiveError> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let pack = std::mem::take(&mut self.builder).finish();
        self.uploads.put(pack_name(&pack.name), pack.bytes).await?;
        self.unindexed.push(IndexedPack { name: pack.name, entries: pack.entries });
        if self.unindexed.len() >= INDEX_PACKS_MAX { self.put_index().await } else { Ok(()) }
    }

    /// An index must not name a pack that is not there: a later push would rely on it.
    async fn put_index(&mut self) -> Result<(), ArchiveError> {
        self.uploads.wait_for_all().await?;
        for packs in std::mem::take(&mut self.unindexed).chunks(INDEX_PACKS_MAX) {
            let bytes = index::encode(packs);
            self.uploads.put(index_name(blake3::hash(&bytes).as_bytes()), bytes).await?;
        }
        self.uploads.wait_for_all().await
    }

    async fn put_pages(&mut self, pages: impl IntoIterator<Item = NewPage>) -> Result<(), ArchiveError> {
        for page in pages {
            self.uploads.put(page_name(&page.name), page.bytes).await?;
        }
        Ok(())
    }

    /// Ends it: with the answer the snapshot is in the archive. `hash` is BLAKE3 of the raw image.
    ///
    /// # Errors
    /// See [`ArchiveError`].
    pub async fn finish(
        mut self,
        created_ms: u64,
        hash: Digest,
        key: &SecretKey,
    ) -> Result<PushReport, ArchiveError> {
        self.put_pack().await?;
        self.put_index().await?;
        let storage = self.archive.storage.clone();
        let manifest = std::mem::replace(&mut self.manifest, Manifest::new(storage.clone(), self.size, None));
        let (pages, inner, clusters) = manifest.finish().await?;
        self.put_pages(pages).await?;
        self.uploads.wait_for_all().await?;
        let name = self.name.clone();
        let root = Root { name, size: self.size, created_ms, hash, clusters, inner };
        let bytes = root.encode(&self.archive.config, key);
        let (objects, length) = (self.uploads.objects + 1, bytes.len() as u64);
        if storage.put_new(&root_name(&self.name), bytes).await? == Put::Exists {
            self.check_same(&root).await?;
        }
        let uploaded_bytes = self.uploads.bytes + length;
        Ok(PushReport { clusters: self.clusters, new_chunks: self.new_chunks, objects, uploaded_bytes })
    }

    /// The root may be ours: a first try that succeeded without our learning of it.
    async fn check_same(&self, root: &Root) -> Result<(), ArchiveError> {
        if self.archive.root(&self.name).await? == *root {
            return Ok(());
        }
        Err(ArchiveError::Refused(format!("somebody else has added {} meanwhile", self.name)))
    }
}

fn hash((cluster, content): Cluster) -> (u32, Option<(Digest, Vec<u8>)>) {
    let content = content.filter(|content| content.iter().any(|&byte| byte != 0));
    let hashed = content.map(|content| {
        assert_eq!(content.len(), CHUNK_BYTES, "clusters are filled up");
        (blake3::hash(&content).into(), content)
    });
    (cluster, hashed)
}
