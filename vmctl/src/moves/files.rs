//! The files of moves: `DATA/moves/ID.json`. The calls block; each is short.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::record::MoveRecord;
use crate::cutover::ids::MoveId;
use crate::journal::{FileError, read_file, write_file};
use crate::vm::places::private_dir;

const DIRECTORY: &str = "moves";
/// Moves that are kept; the oldest ended ones go.
const KEPT_MAX: usize = 256;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct MoveFiles {
    directory: PathBuf,
}

impl MoveFiles {
    /// Makes the directory if there is none.
    pub(super) fn open(data: &Path) -> Result<Self, FileError> {
        let directory = data.join(DIRECTORY);
        private_dir(&directory).map_err(|error| FileError::Io(directory.clone(), error))?;
        Ok(Self { directory })
    }

    fn path(&self, id: MoveId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// All of them, oldest first. One that cannot be used is told, and left alone.
    pub(super) fn read_all(&self) -> Result<Vec<MoveRecord>, FileError> {
        let failed = |error| FileError::Io(self.directory.clone(), error);
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name();
            let id = file.to_str().and_then(|file| file.strip_suffix(".json")?.parse::<MoveId>().ok());
            let Some(id) = id else { continue };
            match self.read(id) {
                Ok(Some(record)) => all.push(record),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "a move cannot be gone on with: what it is about is held");
                }
            }
        }
        all.sort_by_key(|record| (record.started_ms, record.id));
        Ok(all)
    }

    /// One of them, if it is there.
    pub(super) fn read(&self, id: MoveId) -> Result<Option<MoveRecord>, FileError> {
        let path = self.path(id);
        match read_file::<MoveRecord>(&path) {
            Ok(record) if record.id == id => Ok(Some(record)),
            Ok(record) => Err(FileError::Damaged(path, format!("it is that of {}", record.id))),
            Err(FileError::Io(_, error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Durable when this returns.
    pub(super) fn write(&self, record: &MoveRecord) -> Result<(), FileError> {
        write_file(&self.path(record.id), record)
    }

    /// Forgets the oldest ended moves when there are too many.
    pub(super) fn tidy(&self) -> Result<(), FileError> {
        let all = self.read_all()?;
        let surplus = all.len().saturating_sub(KEPT_MAX);
        for record in all.iter().filter(|record| record.has_ended()).take(surplus) {
            let path = self.path(record.id);
            fs::remove_file(&path).map_err(|error| FileError::Io(path, error))?;
        }
        Ok(())
    }
}
