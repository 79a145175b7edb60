//! The files of records. The calls block; each is short.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::error::{Error, Kind};
use crate::vm::name::VmName;
use crate::vm::places::private_dir;

/// The directory of the records.
const DIRECTORY: &str = "vms";
/// Version of the files.
const VERSION: u32 = 1;
/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// VMs of one host.
const VMS_MAX: usize = 1024;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is not what we have written.
    #[error("{0} is damaged: {1}")]
    Damaged(PathBuf, String),
    /// The system says no.
    #[error("{0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        match &error {
            FileError::Damaged(path, _) => {
                let next = format!(
                    "mv {0} {0}.damaged    (then restart the agent, and adopt or define it anew)",
                    path.display()
                );
                Self::one_line(Kind::Damaged, error).with_next(next)
            }
            FileError::Io(_, source) if source.kind() == ErrorKind::StorageFull => {
                Self::one_line(Kind::NoSpace, error)
            }
            FileError::Io(..) => Self::one_line(Kind::Io, error),
        }
    }
}

/// A record, or why it cannot be used.
pub type Found = Result<Record, FileError>;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole<T> {
    version: u32,
    record: T,
}

/// The version of a file, before anything else of it is believed.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// The records below one data directory.
#[derive(Clone, Debug)]
pub struct Files {
    directory: PathBuf,
}

impl Files {
    /// Makes the directory if there is none.
    ///
    /// # Errors
    /// The system says no.
    pub fn open(data: &Path) -> Result<Self, FileError> {
        let directory = data.join(DIRECTORY);
        private_dir(&directory).map_err(|error| FileError::Io(directory.clone(), error))?;
        Ok(Self { directory })
    }

    fn path(&self, name: &VmName) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// All records, by name; those that cannot be used are errors of their own.
    ///
    /// # Errors
    /// The directory cannot be read, or holds more than there can be.
    pub fn read_all(&self) -> Result<Vec<(VmName, Found)>, FileError> {
        let failed = |error| FileError::Io(self.directory.clone(), error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let file = entry.map_err(failed)?.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".json"));
            names.extend(name.and_then(|name| name.parse::<VmName>().ok()));
        }
        if names.len() > VMS_MAX {
            let why = format!("{} VMs, at most {VMS_MAX}", names.len());
            return Err(FileError::Damaged(self.directory.clone(), why));
        }
        names.sort_unstable();
        Ok(names.into_iter().map(|name| (name.clone(), self.read(&name))).collect())
    }

    fn read(&self, name: &VmName) -> Result<Record, FileError> {
        let path = self.path(name);
        let record: Record = read_file(&path)?;
        let damaged = |why: String| Err(FileError::Damaged(path.clone(), why));
        if record.definition.name != *name {
            return damaged(format!("it is the record of {}", record.definition.name));
        }
        match record.definition.check() {
            Err(error) => damaged(error.to_string()),
            Ok(()) => Ok(record),
        }
    }

    /// Replaces a record; durable when this returns. Not for one that was found damaged.
    ///
    /// # Errors
    /// What the system says; the old one is still there.
    pub fn write(&self, record: &Record) -> Result<(), FileError> {
        write_file(&self.path(&record.definition.name), record)
    }

    /// Takes a record away; durable when this returns.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, name: &VmName) -> Result<(), FileError> {
        let path = self.path(name);
        let removed = fs::remove_file(&path).and_then(|()| self.sync());
        removed.map_err(|error| FileError::Io(path, error))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }
}

/// Replaces a file; durable when this returns.
///
/// # Errors
/// What the system says; the old one is still there.
pub(crate) fn write_file<T: Serialize>(path: &Path, record: &T) -> Result<(), FileError> {
    let failed = |error| FileError::Io(path.to_owned(), error);
    let directory = path.parent().unwrap_or(Path::new("."));
    let whole = Whole { version: VERSION, record };
    let mut bytes = serde_json::to_vec_pretty(&whole).map_err(|error| failed(error.into()))?;
    bytes.push(b'\n');
    let mut file = tempfile::NamedTempFile::new_in(directory).map_err(failed)?;
    file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// Reads what [`write_file`] has written.
///
/// # Errors
/// It is damaged, or the system says no.
pub(crate) fn read_file<T: DeserializeOwned>(path: &Path) -> Result<T, FileError> {
    let failed = |error| FileError::Io(path.to_owned(), error);
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    let damaged = |why: String| FileError::Damaged(path.to_owned(), why);
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(damaged("more than 1 MiB".to_owned()));
    }
    let header: Header = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    if header.version != VERSION {
        return Err(damaged(format!("version {}, this program knows {VERSION}", header.version)));
    }
    let whole: Whole<T> = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    Ok(whole.record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::definition::Definition;

    fn record(name: &str) -> Record {
        let text = format!("name = \"{name}\"\nmemory = \"64MiB\"\nmachine = \"pc-q35-7.2\"\n");
        Record::new(Definition::parse(&text, Path::new("x")).unwrap())
    }

    #[test]
    fn what_was_written_is_read() {
        let data = tempfile::tempdir().unwrap();
        let files = Files::open(data.path()).unwrap();
        let mut web = record("web");
        files.write(&record("db")).unwrap();
        files.write(&web).unwrap();
        web.held_by = Some("a move".to_owned());
        files.write(&web).unwrap();
        let all: Vec<_> = files.read_all().unwrap().into_iter().map(|(_, record)| record.unwrap()).collect();
        assert_eq!(all, [record("db"), web]);
        files.remove(&"db".parse().unwrap()).unwrap();
        assert_eq!(files.read_all().unwrap().len(), 1);
        assert_eq!(fs::read_dir(data.path().join(DIRECTORY)).unwrap().count(), 1, "no leftovers");
    }

    #[test]
    fn a_damaged_file_is_told_and_left_alone() {
        let data = tempfile::tempdir().unwrap();
        let files = Files::open(data.path()).unwrap();
        files.write(&record("good")).unwrap();
        let other = fs::read_to_string(data.path().join("vms/good.json")).unwrap();
        let later = r#"{"version":2,"record":{"new":1}}"#;
        let huge = "x".repeat(2 << 20);
        let damaged = [("a", "{"), ("b", &other), ("c", later), ("d", &huge), ("e", "")];
        for (name, text) in damaged {
            fs::write(data.path().join(format!("vms/{name}.json")), text).unwrap();
        }
        let all = files.read_all().unwrap();
        let bad: Vec<_> =
            all.iter().filter(|(_, record)| record.is_err()).map(|(name, _)| name.as_str()).collect();
        assert_eq!(bad, ["a", "b", "c", "d", "e"]);
        assert!(matches!(&all[2].1, Err(FileError::Damaged(_, why)) if why.contains("version 2")));
        assert_eq!(fs::read_to_string(data.path().join("vms/a.json")).unwrap(), "{");
    }
}
