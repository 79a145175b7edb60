//! The intent log where it lies: behind the superblock of the pool's first file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Base, INTENTS_BYTES, INTENTS_OFFSET, IntentsError, Recovered};
use crate::catalog::format::PoolFileRecord;
use crate::catalog::load::Loaded;
use crate::units::{BLOCK_BYTES, CLUSTER_BYTES, PoolCluster};

/// Why the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum AreaError {
    /// See [`IntentsError`].
    #[error(transparent)]
    Log(#[from] IntentsError),
    /// The pool's first file cannot be read.
    #[error("intent log: {0}")]
    Io(#[from] io::Error),
}

/// The pool's files, as far as blocks are read.
struct Files<'a> {
    data: &'a Path,
    loaded: &'a Loaded,
}

impl Files<'_> {
    /// `None`: the pool has no such block, or it cannot be read.
    fn block(&self, cluster: PoolCluster, block: u32) -> Option<Vec<u8>> {
        let inside = |record: &&PoolFileRecord| {
            (record.first.0..record.first.0.saturating_add(record.clusters)).contains(&cluster.0)
        };
        let record = self.loaded.files.values().find(inside)?;
        let offset = u64::from(cluster.0 - record.first.0) * CLUSTER_BYTES + u64::from(block) * BLOCK_BYTES;
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        let read =
            File::open(self.data.join(&record.path)).and_then(|file| file.read_exact_at(&mut bytes, offset));
        match read {
            Ok(()) => Some(bytes),
            Err(error) => {
                tracing::warn!(%error, %cluster, block, "a block that the intent log names cannot be read");
                None
            }
        }
    }
}

fn first_file(data: &Path, loaded: &Loaded, write: bool) -> io::Result<File> {
    let record = loaded.files.values().next().ok_or(io::ErrorKind::NotFound)?;
    File::options().read(true).write(write).open(data.join(&record.path))
}

/// What the log makes durable after the last commit of the metadata.
///
/// # Errors
/// It is damaged, or the file cannot be read.
pub fn recover(data: &Path, loaded: &Loaded) -> Result<Recovered, AreaError> {
    let mut area = vec![0; INTENTS_BYTES];
    first_file(data, loaded, false)?.read_exact_at(&mut area, INTENTS_OFFSET)?;
    let base = Base { identity: loaded.store.identity, commit: loaded.commit };
    let files = Files { data, loaded };
    Ok(super::recover(&area, base, |cluster, block| files.block(cluster, block))?)
}

/// Makes the log empty and gives it its place on the medium, so that no frame waits for the file system to find one.
///
/// # Errors
/// The file cannot be written: the log is not to be used.
pub fn clear(data: &Path, loaded: &Loaded) -> io::Result<()> {
    let file = first_file(data, loaded, true)?;
    file.write_all_at(&vec![0; INTENTS_BYTES], INTENTS_OFFSET)?;
    file.sync_data()
}
