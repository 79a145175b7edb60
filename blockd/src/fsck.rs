//! Checks a store that no daemon serves: everything that recovery checks, without stopping at the first problem.
//!
//! Reads only, RocksDB's log included, unless a repair is asked for. Repairs are few: a mark that is damaged is
//! written anew, map records of layers that do not exist are deleted. Whatever else is wrong needs a backup.

use std::io;
use std::path::Path;

use crate::catalog::load::{LoadError, Loaded, survey};
use crate::catalog::mark::{Mark, MarkError, Slot, Slots, check_identity};
use crate::catalog::meta::MetaStore;
use crate::catalog::rocks::{META_DIRECTORY, RocksMeta};
use crate::intents::area::{self, AreaError};
use crate::lock::LockError;

mod checkpoint;
mod files;
mod maps;
mod repair;
mod report;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use files::read as read_pool_file;
pub use report::{Counts, FsckReport, PROBLEMS_MAX, Problem, Severity};

/// How to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsckOptions {
    /// Do the repairs that there are, instead of saying what they would do.
    pub repair: bool,
}

/// Why nothing was checked. What is wrong with the store is no error but in the report.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The store is in use, or is none.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There is no such store.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A repair could not be made. What was made before it stays.
    #[error("repair: {0}")]
    Repair(LoadError),
}

/// Checks the store in a data directory.
///
/// # Errors
/// Nothing was checked, or a repair failed.
pub fn fsck(data: &Path, options: FsckOptions) -> Result<FsckReport, FsckError> {
    // A wrong path must not be given a lock file.
    if !data.join(META_DIRECTORY).is_dir() {
        let text = format!("{} has no directory `{META_DIRECTORY}`: not a store", data.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text).into());
    }
    let _lock = crate::lock::take(data)?;
    let mut report = FsckReport::default();
    let slots = check_mark(data, &mut report);
    let Some(found) = check_metadata(data, slots.as_ref(), &mut report) else { return Ok(report) };
    if options.repair {
        repair::repair(data, &found, &mut report).map_err(FsckError::Repair)?;
    }
    Ok(report)
}

/// What repairs are made from.
#[derive(Debug)]
struct Found {
    loaded: Loaded,
    /// Of the mark, if it has a valid slot.
    mark: Option<u64>,
    mark_is_damaged: bool,
    /// The catalog has no errors and the mark is its own.
    sound: bool,
    leaked: maps::Leaked,
    /// The intent log holds what the metadata lack: a commit now would bury it.
    has_intents: bool,
}

fn check_mark(data: &Path, report: &mut FsckReport) -> Option<Slots> {
    let slots = match Slots::read(data) {
        Ok(slots) => slots,
        Err(error) => {
            report.add(mark_problem(&error));
            return None;
        }
    };
    match slots.newest() {
        Ok((_, commit)) => {
            report.mark = Some(commit);
            if slots.0.contains(&Slot::Damaged) {
                report.add(Problem {
                    severity: Severity::Note,
                    what: "MARK_DAMAGED: one slot of two is damaged, as a power cut leaves it".into(),
                    repair: "writes the slot anew; so does the next commit".into(),
                    repairable: true,
                });
            }
        }
        Err(error) => report.add(mark_problem(&error)),
    }
    Some(slots)
}

fn mark_problem(error: &MarkError) -> Problem {
    let repairable = matches!(error, MarkError::Damaged(_));
    let repair = if repairable {
        "writes a mark at the metadata's last commit; that no later commit was promised can then not be proved"
    } else {
        report::NO_REPAIR
    };
    Problem { severity: Severity::Error, what: error.to_string(), repair: repair.into(), repairable }
}

/// `None`: too little could be read for a repair.
fn check_metadata(data: &Path, slots: Option<&Slots>, report: &mut FsckReport) -> Option<Found> {
    let newest = slots.and_then(|slots| slots.newest().ok());
    let mark = newest.map(|(_, commit)| commit);
    let damaged = slots.is_none_or(|slots| slots.0.contains(&Slot::Damaged) || newest.is_none());
    let result = RocksMeta::open_read_only(&data.join(META_DIRECTORY)).map_err(LoadError::from);
    let checked = result.and_then(|store| {
        let (loaded, mut problems) = survey(&store, mark.unwrap_or(0))?;
        let mismatch = newest.and_then(|(identity, _)| check_identity(identity, loaded.store.identity).err());
        problems.extend(mismatch.map(LoadError::from));
        report.extend(problems.iter().map(report::load_problem));
        let sound = problems.is_empty();
        let leaked = check_records(data, &store, &loaded, report)?;
        let has_intents = check_intents(data, &loaded, report);
        Ok(Found { loaded, mark, mark_is_damaged: damaged, sound, leaked, has_intents })
    });
    match checked {
        Ok(found) => Some(found),
        Err(error) => {
            report.add(report::load_problem(&error));
            None
        }
    }
}

/// Whether the intent log holds anything, or may.
fn check_intents(data: &Path, loaded: &Loaded, report: &mut FsckReport) -> bool {
    match area::recover(data, loaded) {
        Ok(found) if found.frames == 0 => false,
        Ok(found) => {
            let what = format!("{} commits are in the intent log only, as a crash leaves them", found.frames);
            let repair = "none needed: the next start takes them over".into();
            report.add(Problem { severity: Severity::Note, what, repair, repairable: false });
            true
        }
        // What is wrong with the file is told already.
        Err(AreaError::Io(_)) => true,
        Err(error @ AreaError::Log(_)) => {
            report.add(report::beyond_repair(error.to_string()));
            true
        }
    }
}

fn check_records(
    data: &Path,
    store: &dyn MetaStore,
    loaded: &Loaded,
    report: &mut FsckReport,
) -> Result<maps::Leaked, LoadError> {
    report.count(loaded);
    let maps::Checked { leaked, ends, in_use } = maps::check(store, loaded, report)?;
    maps::check_hashes(store, loaded, report)?;
    files::check(data, loaded, &ends, report);
    checkpoint::check(data, store, loaded, &in_use, report);
    Ok(leaked)
}
