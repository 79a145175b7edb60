//! Small private files: 0600, in a directory of 0700, replaced whole or not at all.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::PeerError;
use super::identity::damaged;

/// Rights of the group and of others.
const FOREIGN_RIGHTS: u32 = 0o077;

/// Makes a directory that only its owner may enter.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Makes what was done to a directory durable: files made, renamed, removed.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces a file, or makes it. Durable when this returns; after a crash before that, it has its old or its new
/// content.
pub(super) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    write(&new, bytes)?;
    fs::rename(&new, dir.join(name))?;
    sync_directory(dir)
}

/// Writes and syncs a file, without its directory.
pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// What a file of the directory holds, as JSON; `None`: there is no such file.
///
/// # Errors
/// `Damaged`, `Io`.
pub(super) fn load<T: DeserializeOwned>(
    dir: &Path,
    name: &str,
    bytes_max: u64,
) -> Result<Option<T>, PeerError> {
    let path = dir.join(name);
    match read(&path, bytes_max) {
        Ok(text) => serde_json::from_str(&text).map(Some).map_err(|error| damaged(&path, error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(damaged(&path, error)),
        Err(error) => Err(PeerError::io(path.display(), error)),
    }
}

/// As it is written to a file.
pub(super) fn encode(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("strings and numbers can be written as JSON") + "\n"
}

/// Replaces a file of the directory by JSON; durable when this returns.
///
/// # Errors
/// `Io`.
pub(super) fn save(dir: &Path, name: &str, value: &impl Serialize) -> Result<(), PeerError> {
    replace(dir, name, encode(value).as_bytes())
        .map_err(|error| PeerError::io(dir.join(name).display(), error))
}

/// Reads a small text.
pub(super) fn read(path: &Path, bytes_max: u64) -> io::Result<String> {
    let mut text = String::new();
    let count = File::open(path)?.take(bytes_max + 1).read_to_string(&mut text)? as u64;
    if count > bytes_max {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("it has more than {bytes_max} bytes")));
    }
    Ok(text)
}

/// Whether others than the owner have any right to a file.
pub(super) fn is_open_to_others(path: &Path) -> io::Result<bool> {
    Ok(fs::metadata(path)?.mode() & FOREIGN_RIGHTS != 0)
}
