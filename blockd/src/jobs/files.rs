//! Jobs on disk.
//!
//! ```text
//! DATA/jobs.json               what the jobs are; replaced as a whole
//! DATA/jobs-state/NAME.json    how far a job is: points, errors, counters; replaced as a whole
//! DATA/jobs-state/NAME.runs    its last runs, one JSON object a line; appended to, shortened now and then
//! ```
//!
//! Files are written beside their names, synced, and renamed: a crash leaves the old or the new one. A damaged `jobs.json`
//! is never overwritten. A lost state makes a lag unknown, not small.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::job::{JOBS_MAX, Job};

/// The jobs' file in the data directory.
pub const JOBS_FILE: &str = "jobs.json";
/// The directory of their states.
pub const STATE_DIRECTORY: &str = "jobs-state";
/// Version of both kinds of files.
const VERSION: u32 = 1;
/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Runs kept a job.
pub const RUNS_KEPT_MAX: usize = 1000;

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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JobsFile {
    version: u32,
    jobs: Vec<Job>,
}

#[derive(Serialize, Deserialize)]
struct StateFile<T> {
    version: u32,
    state: T,
}

/// The files below one data directory. The calls block.
#[derive(Clone, Debug)]
pub struct JobFiles {
    data: PathBuf,
}

impl JobFiles {
    /// Nothing is opened yet.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self { data: data.into() }
    }

    fn jobs_path(&self) -> PathBuf {
        self.data.join(JOBS_FILE)
    }

    fn state_directory(&self) -> PathBuf {
        self.data.join(STATE_DIRECTORY)
    }

    fn state_path(&self, job: &str) -> PathBuf {
        self.state_directory().join(format!("{job}.json"))
    }

    fn runs_path(&self, job: &str) -> PathBuf {
        self.state_directory().join(format!("{job}.runs"))
    }

    /// All jobs on disk; none if there is no file.
    ///
    /// # Errors
    /// The file cannot be read or is damaged; it stays as it is.
    pub fn read_jobs(&self) -> Result<Vec<Job>, FileError> {
        let path = self.jobs_path();
        let Some(file) = read::<JobsFile>(&path)? else { return Ok(Vec::new()) };
        let damaged = |why: String| Err(FileError::Damaged(path.clone(), why));
        if file.version != VERSION {
            return damaged(format!("version {}, this program knows {VERSION}", file.version));
        }
        if file.jobs.len() > JOBS_MAX {
            return damaged(format!("{} jobs, at most {JOBS_MAX}", file.jobs.len()));
        }
        if let Some(why) = file.jobs.iter().find_map(|job| job.check().err()) {
            return damaged(why);
        }
        Ok(file.jobs)
    }

    /// Replaces them; durable when this returns.
    ///
    /// # Errors
    /// What the system says; the old file is still there.
    pub fn write_jobs(&self, jobs: &[Job]) -> Result<(), FileError> {
        let file = JobsFile { version: VERSION, jobs: jobs.to_vec() };
        replace(&self.jobs_path(), &file)
    }

    /// Names of the jobs that have a state.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn states(&self) -> Result<Vec<String>, FileError> {
        let path = self.state_directory();
        let failed = |error| FileError::Io(path.clone(), error);
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// How far a job is; `None` if nothing is on record.
    ///
    /// # Errors
    /// The file cannot be read; or it is damaged, and was put aside as `NAME.json.damaged`.
    pub fn read_state<T: DeserializeOwned>(&self, job: &str) -> Result<Option<T>, FileError> {
        let path = self.state_path(job);
        let result = read::<StateFile<T>>(&path).and_then(|file| match file {
            Some(file) if file.version == VERSION => Ok(Some(file.state)),
            Some(file) => Err(FileError::Damaged(path.clone(), format!("version {}", file.version))),
            None => Ok(None),
        });
        if let Err(FileError::Damaged(..)) = &result {
            let aside = path.with_extension("json.damaged");
            fs::rename(&path, &aside).map_err(|error| FileError::Io(aside, error))?;
        }
        result
    }

    /// Replaces it.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_state<T: Serialize>(&self, job: &str, state: &T) -> Result<(), FileError> {
        self.make_state_directory()?;
        replace(&self.state_path(job), &StateFile { version: VERSION, state })
    }

    fn make_state_directory(&self) -> Result<(), FileError> {
        let path = self.state_directory();
        match fs::create_dir(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(|error| FileError::Io(path, error)),
        }
    }

    /// Forgets a job's state and its runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_state(&self, job: &str) -> Result<(), FileError> {
        for path in [self.state_path(job), self.runs_path(job)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(|error| FileError::Io(path, error))?,
            }
        }
        Ok(())
    }

    /// Adds a run to a job's history. Not synced: what a power cut takes is missed by nobody.
    ///
    /// # Errors
    /// What the system says.
    pub fn append_run<T: Serialize>(&self, job: &str, run: &T) -> Result<(), FileError> {
        self.make_state_directory()?;
        let path = self.runs_path(job);
        let failed = |error| FileError::Io(path.clone(), error);
        let text = read_text(&path)?.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let mut line = serde_json::to_vec(run).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        if lines.len() >= 2 * RUNS_KEPT_MAX {
            let mut kept = lines[lines.len() + 1 - RUNS_KEPT_MAX..].join("\n").into_bytes();
            kept.push(b'\n');
            kept.extend(line);
            return replace_bytes(&path, &kept);
        }
        if !text.is_empty() && !text.ends_with('\n') {
            // A crash has cut the last line: it must not take this one with it.
            line.insert(0, b'\n');
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(&line)).map_err(failed)
    }

    /// A job's last runs, oldest first; lines that are damaged are left out.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read_runs<T: DeserializeOwned>(&self, job: &str, count: usize) -> Result<Vec<T>, FileError> {
        let text = read_text(&self.runs_path(job))?.unwrap_or_default();
        let newest = text.lines().rev().filter_map(|line| serde_json::from_str(line).ok());
        let mut runs: Vec<T> = newest.take(count.min(RUNS_KEPT_MAX)).collect();
        runs.reverse();
        Ok(runs)
    }
}

fn read_text(path: &Path) -> Result<Option<String>, FileError> {
    let failed = |error| FileError::Io(path.to_owned(), error);
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FileError::Damaged(path.to_owned(), "more than 64 MiB".to_owned()));
    }
    let text = String::from_utf8(bytes);
    text.map(Some).map_err(|error| FileError::Damaged(path.to_owned(), error.to_string()))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let Some(text) = read_text(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|error| FileError::Damaged(path.to_owned(), error.to_string()))
}

fn replace(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let bytes =
        serde_json::to_vec_pretty(value).map_err(|error| FileError::Io(path.to_owned(), error.into()))?;
    replace_bytes(path, &bytes)
}

fn replace_bytes(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let failed = |error| FileError::Io(path.to_owned(), error);
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, path).map_err(failed)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(name: &str) -> Job {
        Job::new(name, vec!["web".to_owned()], vec!["B".to_owned()])
    }

    #[test]
    fn jobs_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let files = JobFiles::new(dir.path());
        assert!(files.read_jobs().unwrap().is_empty());
        let jobs =
            vec![Job { schedule: "Mon..Fri 08:00".parse().unwrap(), rate: Some(7), ..job("web") }, job("db")];
        files.write_jobs(&jobs).unwrap();
        assert_eq!(files.read_jobs().unwrap(), jobs);
        assert!(!dir.path().join("jobs.json.new").exists());
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (files, path) = (JobFiles::new(dir.path()), dir.path().join(JOBS_FILE));
        files.write_jobs(&[job("web")]).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let many =
            serde_json::to_string(&JobsFile { version: 1, jobs: vec![job("web"); JOBS_MAX + 1] }).unwrap();
        let damages = [
            good[..good.len() - 3].to_owned(),
            good.replace("\"version\": 1", "\"version\": 2"),
            good.replace("\"web\"", "\"../web\""),
            good.replace("paused", "poused"),
            String::new(),
            many,
        ];
        for damage in damages {
            fs::write(&path, &damage).unwrap();
            let error = files.read_jobs().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{} is damaged: ", path.display())), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), damage);
        }
    }

    #[test]
    fn a_damaged_state_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let files = JobFiles::new(dir.path());
        files.write_state("web", &7u64).unwrap();
        assert_eq!(
            (files.read_state("web").unwrap(), files.states().unwrap()),
            (Some(7u64), vec!["web".to_owned()])
        );
        fs::write(files.state_path("web"), "{\"version\":1,\"sta").unwrap();
        assert!(matches!(files.read_state::<u64>("web"), Err(FileError::Damaged(..))));
        assert_eq!(files.read_state::<u64>("web").unwrap(), None);
        assert!(dir.path().join("jobs-state/web.json.damaged").exists());
        assert!(files.states().unwrap().is_empty());
    }

    #[test]
    fn the_history_is_bounded_and_survives_a_cut_line() {
        let dir = tempfile::tempdir().unwrap();
        let files = JobFiles::new(dir.path());
        files.make_state_directory().unwrap();
        let lines: String = (0..1998u64).map(|number| format!("{number}\n")).collect();
        fs::write(files.runs_path("web"), lines + "19").unwrap();
        for number in 1999..2010u64 {
            files.append_run("web", &number).unwrap();
        }
        assert_eq!(files.read_runs::<u64>("web", 3).unwrap(), [2007, 2008, 2009]);
        let kept = fs::read_to_string(files.runs_path("web")).unwrap().lines().count();
        assert!((RUNS_KEPT_MAX..2 * RUNS_KEPT_MAX).contains(&kept), "{kept}");
        assert_eq!(files.read_runs::<u64>("web", 5000).unwrap().len(), RUNS_KEPT_MAX);
        fs::write(files.runs_path("cut"), "4\n{\"ru").unwrap();
        files.append_run("cut", &5u64).unwrap();
        assert_eq!(files.read_runs::<u64>("cut", 9).unwrap(), [4, 5], "the cut line takes nothing with it");
        files.remove_state("web").unwrap();
        assert!(files.read_runs::<u64>("web", 3).unwrap().is_empty());
    }
}
