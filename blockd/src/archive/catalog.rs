//! An archive as a whole: whose it is, what is in it.

use std::collections::HashMap;

use futures_util::{StreamExt, stream};
use ring::rand::{SecureRandom, SystemRandom};

use super::config::{ArchiveConfig, CONFIG_BYTES};
use super::index::{self, INDEX_BYTES_MAX, Index, IndexedPack};
use super::key::{PublicKey, SecretKey};
use super::pack::{PACK_BYTES_MAX, footer_bytes, parse_footer, size_of};
use super::root::{ROOT_BYTES_MAX, Root};
use super::storage::{CONFIG, Put, Storage, index_name, pack_name, root_name};
use super::verify::Damage;
use super::{ArchiveError, Digest};
use crate::control::SnapshotName;

/// Objects that are asked for at once.
pub(super) const REQUESTS_MAX: usize = 4;

/// Whose word is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The archive must be of this key.
    Key(PublicKey),
    /// Whatever key the archive names: whoever can write to it could have put another one there.
    Archive,
}

/// An archive whose `config` was read and checked.
#[derive(Clone, Debug)]
pub struct Archive {
    pub(super) storage: Storage,
    pub(super) config: ArchiveConfig,
}

/// A snapshot of the archive, or what is wrong with it.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: SnapshotName,
    /// Its root.
    pub root: Result<Root, ArchiveError>,
}

/// The index, and what was found on the way.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Of all packs that are there, and as long as they should be.
    pub index: Index,
    /// Packs that no index object names: of a push that did not end.
    pub unindexed: Vec<IndexedPack>,
    /// Index objects and packs that are not what they should be.
    pub damage: Vec<Damage>,
}

impl Archive {
    /// Makes a new archive.
    ///
    /// # Errors
    /// There is one already, or the storage failed.
    pub async fn create(storage: Storage, key: &SecretKey, created_ms: u64) -> Result<Self, ArchiveError> {
        let mut id = [0; 16];
        let no_random = |_| ArchiveError::Refused("the system has no randomness".to_owned());
        SystemRandom::new().fill(&mut id).map_err(no_random)?;
        let config = ArchiveConfig { id, created_ms, key: key.public() };
        match storage.put_new(CONFIG, config.encode(key)).await? {
            Put::Done => Ok(Self { storage, config }),
            Put::Exists => Err(ArchiveError::Refused("there is an archive already".to_owned())),
        }
    }

    /// Opens an archive.
    ///
    /// # Errors
    /// There is none, it is damaged, or not of the key that is trusted.
    pub async fn open(storage: Storage, trust: Trust) -> Result<Self, ArchiveError> {
        let bytes = storage.get(CONFIG, CONFIG_BYTES).await?;
        let config = ArchiveConfig::parse(&bytes).map_err(|why| ArchiveError::damaged(CONFIG, why))?;
        match trust {
            Trust::Key(key) if key != config.key => {
                let (found, wanted) = (config.key.to_hex(), key.to_hex());
                Err(ArchiveError::Refused(format!("the archive is of key {found}, not {wanted}")))
            }
            _ => Ok(Self { storage, config }),
        }
    }

    /// The key that its snapshots are signed with.
    pub fn key(&self) -> PublicKey {
        self.config.key
    }

    /// A snapshot's root.
    ///
    /// # Errors
    /// There is none, or it is not what it should be.
    pub async fn root(&self, name: &SnapshotName) -> Result<Root, ArchiveError> {
        let object = root_name(name);
        let bytes = self.storage.get(&object, ROOT_BYTES_MAX).await?;
        Root::parse(&bytes, &self.config, name).map_err(|why| ArchiveError::damaged(object, why))
    }

    /// All snapshots, or one volume's, by name. Damage of one is told with it.
    ///
    /// # Errors
    /// The storage failed.
    pub async fn list(&self, volume: Option<&str>) -> Result<Vec<Listed>, ArchiveError> {
        let names = self.storage.snapshots(volume).await?;
        let roots = stream::iter(names).map(async |name| (self.root(&name).await, name));
        let mut roots = roots.buffer_unordered(REQUESTS_MAX);
        let mut listed = Vec::new();
        while let Some((root, name)) = roots.next().await {
            match root {
                Err(error @ ArchiveError::Storage { .. }) => return Err(error),
                root => listed.push(Listed { name, root }),
            }
        }
        listed.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    /// Reads the whole index. Packs that it lacks are asked themselves: without an index everything is still found.
    ///
    /// # Errors
    /// The storage failed, or there is too much.
    pub async fn load_index(&self) -> Result<Loaded, ArchiveError> {
        let mut loaded = Loaded::default();
        let packs: HashMap<Digest, u64> = self.storage.packs().await?.into_iter().collect();
        let objects = stream::iter(self.storage.indexes().await?);
        let mut objects = objects.map(|digest| self.index_object(digest)).buffer_unordered(REQUESTS_MAX);
        while let Some(object) = objects.next().await {
            match object {
                Ok(indexed) => loaded.add_indexed(&packs, &indexed)?,
                Err(error) => loaded.note(error)?,
            }
        }
        drop(objects);
        let missing: Vec<_> = packs.into_iter().filter(|(name, _)| !loaded.index.has_pack(name)).collect();
        let footers = stream::iter(missing).map(|(name, size)| self.footer(name, size));
        let mut footers = footers.buffer_unordered(REQUESTS_MAX);
        while let Some(footer) = footers.next().await {
            match footer {
                Ok(pack) => {
                    loaded.index.add(&pack)?;
                    loaded.unindexed.push(pack);
                }
                Err(error) => loaded.note(error)?,
            }
        }
        loaded.index.seal();
        Ok(loaded)
    }

    async fn index_object(&self, digest: Digest) -> Result<Vec<IndexedPack>, ArchiveError> {
        let object = index_name(&digest);
        let bytes = self.storage.get_named(&object, &digest, INDEX_BYTES_MAX).await?;
        index::parse(&bytes).map_err(|why| ArchiveError::damaged(object, why))
    }

    async fn footer(&self, name: Digest, size: u64) -> Result<IndexedPack, ArchiveError> {
        let object = pack_name(&name);
        if size > PACK_BYTES_MAX {
            return Err(ArchiveError::damaged(
                object,
                format!("it has {size} bytes, at most {PACK_BYTES_MAX} make sense"),
            ));
        }
        let length = footer_bytes(size);
        // An empty range cannot be asked for.
        let bytes = match length {
            0 => Vec::new(),
            _ => self.storage.get_part(&object, size - length, length).await?,
        };
        let entries = parse_footer(size, &bytes).map_err(|why| ArchiveError::damaged(object, why))?;
        Ok(IndexedPack { name, entries })
    }
}

impl Loaded {
    /// Takes the packs that are there. What is missing or cut short must not be relied on: a push would leave chunks
    /// out because of it.
    fn add_indexed(
        &mut self,
        packs: &HashMap<Digest, u64>,
        indexed: &[IndexedPack],
    ) -> Result<(), ArchiveError> {
        for pack in indexed {
            let expected = size_of(&pack.entries);
            match packs.get(&pack.name) {
                Some(&size) if size == expected => self.index.add(pack)?,
                Some(&size) => {
                    let why = format!("it has {size} bytes, the index says {expected}");
                    self.damage.push(Damage { object: pack_name(&pack.name), why });
                }
                None => {
                    let why = "it is missing; the index names it".to_owned();
                    self.damage.push(Damage { object: pack_name(&pack.name), why });
                }
            }
        }
        Ok(())
    }

    /// Damage is noted; anything else ends the reading.
    fn note(&mut self, error: ArchiveError) -> Result<(), ArchiveError> {
        self.damage.push(Damage::of(error)?);
        Ok(())
    }
}
