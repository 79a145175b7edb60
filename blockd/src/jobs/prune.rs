//! Deletes the snapshots that retention lets go: gathers what is known of a volume's snapshots, has them judged.

use crate::control::{Answer, Control, ControlError, ErrorKind, SnapshotInfo, SnapshotName};
use crate::service::Service;

use super::job::job_of;
use super::keep::Keep;
use super::retention::{Candidate, Verdict, judge};

/// What must stay because of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The job that goes there.
    pub job: String,
    /// The target.
    pub to: String,
    /// The last snapshot that it has verified; `None`: none is known of, so that all are still to come.
    pub base: Option<String>,
}

/// Which snapshots are judged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Those of jobs, each by its job's own rules.
    Jobs(Vec<(String, Keep)>),
    /// Those of all jobs, all by the same rules.
    Made(Keep),
    /// All of the volume's.
    All(Keep),
}

/// Everything known about a volume's snapshots, as retention wants it.
fn candidates(snapshots: &[SnapshotInfo], guards: &[Guard]) -> Vec<Candidate> {
    let sequence_of = |name: &str| snapshots.iter().find(|one| one.name == name).map(|one| one.sequence);
    let bases: Vec<(&Guard, Option<u64>)> =
        guards.iter().map(|guard| (guard, guard.base.as_deref().and_then(sequence_of))).collect();
    let candidate = |info: &SnapshotInfo| {
        let is_base = |(_, base): &&(&Guard, Option<u64>)| *base == Some(info.sequence);
        // Without a base here, or with one that is gone, none of the job's is known to be there.
        let is_owed = |(guard, base): &&(&Guard, Option<u64>)| {
            job_of(&info.name) == Some(guard.job.as_str()) && base.is_none_or(|base| info.sequence > base)
        };
        let target = |(guard, _): &(&Guard, Option<u64>)| guard.to.clone();
        Candidate {
            name: info.name.clone(),
            created_ms: info.created_ms,
            sequence: info.sequence,
            holds: info.holds.clone(),
            clones: info.clones.clone(),
            clients: info.clients,
            base_of: bases.iter().filter(is_base).map(target).collect(),
            unreplicated_to: bases.iter().filter(is_owed).map(target).collect(),
            subject: false,
        }
    };
    snapshots.iter().map(candidate).collect()
}

/// What would become of a volume's snapshots; the newest first.
pub fn plan(snapshots: &[SnapshotInfo], policy: &Policy, guards: &[Guard]) -> Vec<Verdict> {
    let candidates = candidates(snapshots, guards);
    let judge_those = |keep: &Keep, wanted: &dyn Fn(&str) -> bool| {
        let subject =
            |candidate: &Candidate| Candidate { subject: wanted(&candidate.name), ..candidate.clone() };
        judge(keep, candidates.iter().map(subject).collect())
    };
    match policy {
        Policy::All(keep) => judge_those(keep, &|_| true),
        Policy::Made(keep) => judge_those(keep, &|name| job_of(name).is_some()),
        Policy::Jobs(jobs) => {
            let mut verdicts = judge_those(&Keep::default(), &|_| false);
            for (job, keep) in jobs {
                let is_its = |name: &str| job_of(name) == Some(job.as_str());
                // Each in its place: the order is the same every time.
                for (verdict, its) in verdicts.iter_mut().zip(judge_those(keep, &is_its)) {
                    if is_its(&verdict.name) {
                        *verdict = its;
                    }
                }
            }
            verdicts
        }
    }
}

/// What was deleted, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The newest first.
    pub verdicts: Vec<Verdict>,
    /// Those that should have gone, and why they did not: somebody began to use them.
    pub refused: Vec<(String, String)>,
}

/// Judges a volume's snapshots, and with `delete` deletes those that may go, the oldest first.
///
/// # Errors
/// The store's. A snapshot that is refused because of its use is no error; whatever else fails ends the pruning.
pub async fn prune(
    service: &Service,
    volume: &str,
    policy: &Policy,
    guards: &[Guard],
    delete: bool,
) -> Result<Pruned, ControlError> {
    let list = Control::ListSnapshots { volume: Some(volume.to_owned()) };
    let Answer::Snapshots(snapshots) = service.call(list).await? else {
        return Err(ControlError::new(ErrorKind::Io, "the store gave an answer of the wrong kind"));
    };
    let verdicts = plan(&snapshots, policy, guards);
    let mut refused = Vec::new();
    let gone = verdicts.iter().rev().filter(|verdict| delete && !verdict.keep());
    for verdict in gone {
        let name = SnapshotName { volume: volume.to_owned(), snapshot: verdict.name.clone() };
        match service.call(Control::DeleteSnapshot { name: name.clone() }).await {
            // No event each: jobs that run every second would push all others out of memory.
            Ok(_) => tracing::debug!(%name, "pruned"),
            Err(error) if matches!(error.kind, ErrorKind::Busy | ErrorKind::Refused) => {
                refused.push((verdict.name.clone(), error.message));
            }
            // Somebody was faster.
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Pruned { verdicts, refused })
}

#[cfg(test)]
mod tests {
    use super::super::job::snapshot_name;
    use super::*;

    fn snapshots(names: &[String]) -> Vec<SnapshotInfo> {
        let info = |(number, name): (usize, &String)| SnapshotInfo {
            volume: "web".to_owned(),
            name: name.clone(),
            sequence: number as u64 + 1,
            size: 4096,
            created_ms: 1_795_183_410_000 + number as u64 * 60_000,
            holds: Vec::new(),
            clones: Vec::new(),
            clients: 0,
            uid: String::new(),
        };
        names.iter().enumerate().map(info).collect()
    }

    fn guard(job: &str, base: Option<&str>) -> Guard {
        Guard { job: job.to_owned(), to: "B".to_owned(), base: base.map(str::to_owned) }
    }

    fn dropped(verdicts: Vec<Verdict>) -> Vec<String> {
        verdicts.into_iter().filter(|verdict| !verdict.keep()).map(|verdict| verdict.name).collect()
    }

    #[test]
    fn each_job_prunes_its_own_and_never_what_a_target_lacks() {
        let name = |job: &str, minute: u64| snapshot_name(job, 1_795_183_410_000 + minute * 60_000);
        let names =
            [name("a", 0), name("b", 1), name("a", 2), "monday".to_owned(), name("a", 4), name("a", 5)];
        let all = snapshots(&names);
        let keep = Keep { last: 1, ..Keep::default() };
        let policy = Policy::Jobs(vec![("a".to_owned(), keep)]);
        let with = |base: Option<&str>| dropped(plan(&all, &policy, &[guard("a", base)]));
        assert_eq!(with(Some(&names[5])), [&names[4], &names[2], &names[0]].map(String::as_str));
        assert_eq!(with(Some(&names[2])), [names[0].as_str()], "the base and what came after it stay");
        assert!(with(None).is_empty(), "nothing is known to be there");
        assert!(with(Some("gone")).is_empty(), "the base is not here any more");
        let both = Policy::Jobs(vec![("a".to_owned(), keep), ("b".to_owned(), keep)]);
        assert!(!dropped(plan(&all, &both, &[])).contains(&names[1]), "the newest of its job");
        assert_eq!(dropped(plan(&all, &Policy::Made(keep), &[])).len(), 4);
        assert_eq!(dropped(plan(&all, &Policy::All(keep), &[])).len(), 5);
        let foreign = [guard("c", Some("monday"))];
        assert!(!dropped(plan(&all, &Policy::All(keep), &foreign)).contains(&"monday".to_owned()));
    }
}
