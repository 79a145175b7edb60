//! What a check found, for people and for programs.

use std::fmt;

use serde::Serialize;

use crate::catalog::load::{LoadError, Loaded};

/// Problems that are described one by one; more are counted.
pub const PROBLEMS_MAX: usize = 1000;

/// Of a problem that only a backup or a replica mends.
pub(super) const NO_REPAIR: &str = "none: restore the store from a backup or a replica";

/// What a problem means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Nothing is lost, and the store is served.
    Note,
    /// The store is not served, or what it holds is not what was written.
    Error,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// See there.
    pub severity: Severity,
    /// Begins with a code where recovery has one.
    pub what: String,
    /// What a repair would do.
    pub repair: String,
    /// Whether we do it when asked.
    pub repairable: bool,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub volumes: u64,
    pub snapshots: u64,
    pub layers: u64,
    pub pool_files: u64,
    pub pool_clusters: u64,
    /// Superblocks included.
    pub used_clusters: u64,
    pub map_records: u64,
    pub hashes: u64,
    pub journal_commits: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FsckReport {
    /// Of the store, in hexadecimal; empty if unknown.
    pub identity: String,
    /// The last commit in the metadata, if they could be read.
    pub commit: Option<u64>,
    /// The last commit that anybody was told of, if the mark could be read.
    pub mark: Option<u64>,
    /// How much there is.
    pub counts: Counts,
    /// At most [`PROBLEMS_MAX`].
    pub problems: Vec<Problem>,
    /// Errors, described or not.
    pub errors: u64,
    /// Notes, described or not.
    pub notes: u64,
    /// Layers that nothing refers to: the daemon merges or drops them in the background. No problem.
    pub layers_to_reclaim: Vec<u32>,
    /// The checkpoint is one that a start would use, and says other things than the records.
    pub checkpoint_differs: bool,
    /// What was repaired; the problems are still listed.
    pub repaired: Vec<String>,
}

impl FsckReport {
    /// Whether there are no errors. After repairs, check again.
    pub fn is_clean(&self) -> bool {
        self.errors == 0
    }

    pub(super) fn add(&mut self, problem: Problem) {
        match problem.severity {
            Severity::Note => self.notes += 1,
            Severity::Error => self.errors += 1,
        }
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    pub(super) fn extend(&mut self, problems: impl IntoIterator<Item = Problem>) {
        problems.into_iter().for_each(|problem| self.add(problem));
    }

    pub(super) fn count(&mut self, loaded: &Loaded) {
        self.identity = format!("{:032x}", u128::from_be_bytes(loaded.store.identity));
        self.commit = Some(loaded.commit);
        self.counts = Counts {
            volumes: loaded.volumes.len() as u64,
            snapshots: loaded.snapshots.len() as u64,
            layers: loaded.layers.len() as u64,
            pool_files: loaded.files.len() as u64,
            pool_clusters: loaded.pool_clusters(),
            journal_commits: loaded.journal.len() as u64,
            ..Counts::default()
        };
        self.layers_to_reclaim = loaded.layers_to_reclaim().into_iter().map(|layer| layer.0).collect();
    }
}

/// An error that only a backup mends.
pub(super) fn beyond_repair(what: String) -> Problem {
    Problem { severity: Severity::Error, what, repair: NO_REPAIR.into(), repairable: false }
}

pub(super) fn load_problem(error: &LoadError) -> Problem {
    let mut problem = beyond_repair(error.to_string());
    match error {
        LoadError::Newer { .. } => problem.repair = "none: use the program that wrote it".into(),
        LoadError::Rollback { .. } => {
            problem.repair =
                "none: put the newest copy of the metadata back; without one, restore from a backup or a replica"
                    .into();
        }
        LoadError::Pool(_) => {
            problem.repair = "none: put the store's own pool files in their places".into();
        }
        LoadError::Damaged(_) | LoadError::Mark(_) | LoadError::Meta(_) => {}
    }
    problem
}

impl fmt::Display for FsckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u64>| number.map_or("unknown".to_owned(), |number| number.to_string());
        let Counts { volumes, snapshots, layers, pool_files, pool_clusters, .. } = self.counts;
        writeln!(f, "commit {}, mark {}", number(self.commit), number(self.mark))?;
        writeln!(f, "{volumes} volumes, {snapshots} snapshots, {layers} layers")?;
        let Counts { used_clusters, map_records, hashes, .. } = self.counts;
        writeln!(f, "{map_records} map records, {hashes} hashes")?;
        writeln!(f, "{pool_files} pool files, {used_clusters} of {pool_clusters} clusters in use")?;
        if !self.layers_to_reclaim.is_empty() {
            writeln!(f, "layers to reclaim: {:?}", self.layers_to_reclaim)?;
        }
        for problem in &self.problems {
            let severity = if problem.severity == Severity::Error { "error" } else { "note" };
            writeln!(f, "{severity}: {}", problem.what)?;
            writeln!(f, "  repair: {}", problem.repair)?;
        }
        let more = (self.errors + self.notes).saturating_sub(self.problems.len() as u64);
        if more > 0 {
            writeln!(f, "and {more} more")?;
        }
        for repaired in &self.repaired {
            writeln!(f, "repaired: {repaired}")?;
        }
        match self.errors {
            0 => write!(f, "clean"),
            errors => write!(f, "{errors} errors"),
        }
    }
}
