//! The objects of an archive: names, limits, and what the storage says. Nothing is read that is larger than it may be.

use std::sync::Arc;

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutPayload};

use super::{ArchiveError, Digest, hex, parse_hex};
use crate::control::{SnapshotName, is_valid_name};

/// Objects of one kind that are listed.
pub const LISTED_MAX: usize = 1 << 24;

/// Name of the object that tells which archive this is.
pub const CONFIG: &str = "config";
const PACKS: &str = "packs";
const INDEX: &str = "index";
const PAGES: &str = "pages";
const SNAPSHOTS: &str = "snapshots";

/// Name of a pack.
pub fn pack_name(digest: &Digest) -> String {
    let digits = hex(digest);
    format!("{PACKS}/{}/{digits}", &digits[..2])
}

/// Name of an index object.
pub fn index_name(digest: &Digest) -> String {
    format!("{INDEX}/{}", hex(digest))
}

/// Name of a page.
pub fn page_name(digest: &Digest) -> String {
    format!("{PAGES}/{}", hex(digest))
}

/// Name of a snapshot's root. The names' letters are harmless in any storage: no `/`, and no `.` at the beginning.
pub fn root_name(name: &SnapshotName) -> String {
    format!("{SNAPSHOTS}/{}/{}", name.volume, name.snapshot)
}

/// Where an archive lies.
#[derive(Clone, Debug)]
pub struct Storage {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

/// Whether an object was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It was.
    Done,
    /// There is one of that name already.
    Exists,
}

impl Storage {
    /// An archive below a prefix.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path) -> Self {
        Self { store, prefix }
    }

    fn path(&self, object: &str) -> Path {
        object.split('/').fold(self.prefix.clone(), Path::join)
    }

    /// Writes an object, in place of what is there under that name: with content-addressed names the same, or a damaged
    /// one.
    ///
    /// # Errors
    /// See [`ArchiveError`], here and below.
    pub async fn put(&self, object: &str, bytes: Vec<u8>) -> Result<(), ArchiveError> {
        let done = self.store.put(&self.path(object), PutPayload::from(bytes)).await;
        done.map(drop).map_err(|error| failure(object, error))
    }

    /// Writes an object unless there is one.
    pub async fn put_new(&self, object: &str, bytes: Vec<u8>) -> Result<Put, ArchiveError> {
        let payload = PutPayload::from(bytes);
        match self.store.put_opts(&self.path(object), payload, PutMode::Create.into()).await {
            Ok(_) => Ok(Put::Done),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Put::Exists)
            }
            Err(error) => Err(failure(object, error)),
        }
    }

    /// A whole object of at most `max` bytes.
    pub async fn get(&self, object: &str, max: u64) -> Result<Vec<u8>, ArchiveError> {
        let found = self.store.get(&self.path(object)).await.map_err(|error| failure(object, error))?;
        if found.meta.size > max {
            let why = format!("it has {} bytes, at most {max} make sense", found.meta.size);
            return Err(ArchiveError::damaged(object, why));
        }
        self.collect(object, found, max).await
    }

    /// A whole object whose name is its BLAKE3.
    pub async fn get_named(&self, object: &str, digest: &Digest, max: u64) -> Result<Vec<u8>, ArchiveError> {
        let bytes = self.get(object, max).await?;
        if blake3::hash(&bytes).as_bytes() == digest {
            return Ok(bytes);
        }
        Err(ArchiveError::damaged(object, "its content does not have the hash that it is named after"))
    }

    /// `length` bytes of an object.
    pub async fn get_part(&self, object: &str, offset: u64, length: u64) -> Result<Vec<u8>, ArchiveError> {
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(offset..offset + length)));
        let found = self.store.get_opts(&self.path(object), options).await;
        let found = found.map_err(|error| failure(object, error))?;
        let bytes = self.collect(object, found, length).await?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        let why = format!("it has {} bytes at {offset}, expected {length}", bytes.len());
        Err(ArchiveError::damaged(object, why))
    }

    /// Gathers what comes, however much the storage had announced.
    async fn collect(
        &self,
        object: &str,
        found: object_store::GetResult,
        max: u64,
    ) -> Result<Vec<u8>, ArchiveError> {
        let mut stream = found.into_stream();
        let mut bytes = Vec::new();
        while let Some(piece) = stream.try_next().await.map_err(|error| failure(object, error))? {
            if (bytes.len() + piece.len()) as u64 > max {
                return Err(ArchiveError::damaged(object, "the storage sends more than it said"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Names below a directory, as far as they go on, and sizes.
    async fn list(&self, directory: &str) -> Result<Vec<(String, u64)>, ArchiveError> {
        let path = self.path(directory);
        let mut objects = self.store.list(Some(&path));
        let mut found = Vec::new();
        while let Some(object) = objects.try_next().await.map_err(|error| failure(directory, error))? {
            if found.len() == LISTED_MAX {
                let text = format!("there are more than {LISTED_MAX} objects in {directory}");
                return Err(ArchiveError::TooLarge(text));
            }
            let Some(parts) = object.location.prefix_match(&path) else { continue };
            let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
            found.push((parts.join("/"), object.size));
        }
        Ok(found)
    }

    /// All packs and their sizes. What is no pack by its name is left out.
    pub async fn packs(&self) -> Result<Vec<(Digest, u64)>, ArchiveError> {
        let named = |(name, size): (String, u64)| {
            let (directory, digits) = name.split_once('/')?;
            let digest =
                parse_hex(digits).filter(|_| digits.starts_with(directory) && directory.len() == 2)?;
            Some((digest, size))
        };
        Ok(self.list(PACKS).await?.into_iter().filter_map(named).collect())
    }

    /// All index objects.
    pub async fn indexes(&self) -> Result<Vec<Digest>, ArchiveError> {
        Ok(self.list(INDEX).await?.into_iter().filter_map(|(name, _)| parse_hex(&name)).collect())
    }

    /// All snapshots, or those of one volume. What is none by its name is left out: a name is never more than a key.
    pub async fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotName>, ArchiveError> {
        let directory = volume.map_or_else(|| SNAPSHOTS.to_owned(), |volume| format!("{SNAPSHOTS}/{volume}"));
        let named = |(name, _): (String, u64)| {
            let full = volume.map_or_else(|| name.clone(), |volume| format!("{volume}/{name}"));
            let (volume, snapshot) = full.split_once('/')?;
            let valid = is_valid_name(volume) && is_valid_name(snapshot);
            valid.then(|| SnapshotName { volume: volume.to_owned(), snapshot: snapshot.to_owned() })
        };
        let mut names: Vec<_> = self.list(&directory).await?.into_iter().filter_map(named).collect();
        names.sort_unstable();
        Ok(names)
    }
}

fn failure(object: &str, source: object_store::Error) -> ArchiveError {
    match source {
        object_store::Error::NotFound { .. } => ArchiveError::NotFound(object.to_owned()),
        source => ArchiveError::Storage { object: object.to_owned(), source },
    }
}
