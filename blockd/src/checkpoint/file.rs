//! Where the checkpoint is kept: `DATA/checkpoint`, written beside its name and renamed when it is whole.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nbd_server::reactor::FileMap;

use super::{Checkpoint, Header, Saved, Unusable};
use crate::catalog::load::Loaded;

/// The file's name in the data directory.
pub const CHECKPOINT_FILE: &str = "checkpoint";
/// While it is written.
const NEW_FILE: &str = "checkpoint.new";
const BUFFER_BYTES: usize = 1 << 20;

/// Why there is no checkpoint to be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// There is none.
    #[error("there is none")]
    Missing,
    /// It cannot be read.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// See [`Unusable`].
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

impl From<io::Error> for CheckpointError {
    fn from(error: io::Error) -> Self {
        if error.kind() == ErrorKind::NotFound { Self::Missing } else { Self::Io(error) }
    }
}

/// Writes a checkpoint; it is durable when this returns, or there is none.
///
/// # Errors
/// There is none: no room, or what else the system says.
pub fn save(data: &Path, saved: &Saved<'_>) -> io::Result<()> {
    let new = data.join(NEW_FILE);
    let written = write_new(&new, saved).and_then(|()| fs::rename(&new, data.join(CHECKPOINT_FILE)));
    if written.is_err() {
        // A part of one takes room that somebody may need. That it is still there is no harm otherwise.
        if let Err(error) = remove_if_there(&new) {
            tracing::debug!(%error, "the part of a checkpoint stays");
        }
    }
    written.and_then(|()| sync_directory(data))
}

fn write_new(path: &Path, saved: &Saved<'_>) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    saved.write(&mut out)?;
    out.flush()?;
    out.get_ref().sync_all()
}

fn sync_directory(data: &Path) -> io::Result<()> {
    File::open(data)?.sync_all()
}

/// The bytes of a data directory's checkpoint. The caller holds the lock of the directory: nobody else writes there.
fn map(data: &Path) -> Result<FileMap, CheckpointError> {
    Ok(FileMap::new(&File::open(data.join(CHECKPOINT_FILE))?)?)
}

/// Reads the checkpoint of a data directory whose lock the caller holds.
///
/// # Errors
/// Why there is none to be used.
pub fn read(data: &Path, loaded: &Loaded) -> Result<Checkpoint, CheckpointError> {
    Ok(Checkpoint::decode(&map(data)?, loaded)?)
}

/// What the checkpoint of a data directory says of itself, and its bytes. The caller holds the lock.
///
/// # Errors
/// There is none, or its header is damaged.
pub fn read_header(data: &Path) -> Result<(Header, u64), CheckpointError> {
    let bytes = map(data)?;
    Ok((Header::decode(&bytes)?, bytes.len() as u64))
}

/// Removes the checkpoint, if there is one. Durable when this returns: afterwards commits may be made that it does
/// not know.
///
/// # Errors
/// It may still be there.
pub fn remove(data: &Path) -> io::Result<()> {
    let removed = [NEW_FILE, CHECKPOINT_FILE].map(|name| remove_if_there(&data.join(name)));
    for removed in removed {
        if removed? {
            sync_directory(data)?;
        }
    }
    Ok(())
}

/// Whether it was there.
fn remove_if_there(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
