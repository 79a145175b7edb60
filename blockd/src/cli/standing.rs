//! What jobs add to `blockctl status` and `blockctl check`.

use crate::api::client::{Client, ClientError};
use crate::api::jobs::JobList;
use crate::api::types::Kind;
use crate::jobs::view::{JobView, Severity, State, TargetView};

use super::{output, time};

/// Jobs that a monitor's line names; the rest is counted.
const NAMED_MAX: usize = 3;

/// The jobs; none of a daemon that has none.
pub(super) async fn jobs(client: &Client) -> Result<Option<JobList>, ClientError> {
    match client.jobs().await {
        Err(ClientError::Refused(error)) if matches!(error.kind, Kind::Refused | Kind::BadRequest) => {
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

fn targets(list: &JobList) -> impl Iterator<Item = (&JobView, &TargetView)> {
    list.jobs.iter().flat_map(|job| job.targets.iter().map(move |target| (job, target)))
}

/// `7 jobs: 5 ok, 1 behind, 1 failed; oldest point mail→B, 44m 0s`.
pub(super) fn summary(list: &JobList) -> String {
    let states = [State::Ok, State::Never, State::Behind, State::Failed, State::Paused];
    let counted = states.into_iter().filter_map(|state| {
        let count = targets(list).filter(|(_, target)| target.state == state).count();
        (count > 0).then(|| format!("{count} {state}"))
    });
    let counted: Vec<String> = counted.collect();
    let at_work = targets(list).filter(|(job, target)| !job.once && target.state != State::Paused);
    let oldest =
        at_work.filter_map(|(job, target)| Some((target.lag_ms?, job, target))).max_by_key(|one| one.0);
    let oldest = oldest.map(|(lag_ms, job, target)| {
        format!("; oldest point {}→{}, {}", job.job.name, target.to, time::span(lag_ms))
    });
    let jobs = output::count(list.jobs.len() as u64, "job");
    format!("{jobs}: {}{}", counted.join(", "), oldest.unwrap_or_default())
}

/// How bad it is, and what a monitor is told; empty if all is well.
pub(super) fn judge(list: &JobList) -> (Severity, String) {
    if let Some(problem) = &list.problem {
        return (Severity::Critical, problem.clone());
    }
    let severity = |(job, target): &(&JobView, &TargetView)| job.severity(target);
    let mut bad: Vec<_> = targets(list).filter(|one| severity(one) > Severity::Ok).collect();
    // The worst first; names after each other among the equally bad.
    bad.sort_by_key(|one| std::cmp::Reverse(severity(one)));
    let worst = bad.first().map_or(Severity::Ok, severity);
    let mut told: Vec<String> =
        bad.iter().take(NAMED_MAX).map(|(job, target)| describe(job, target)).collect();
    if bad.len() > NAMED_MAX {
        told.push(format!("{} more", bad.len() - NAMED_MAX));
    }
    (worst, told.join("; "))
}

/// `mail behind 44m 0s (limit 15m 0s)`.
fn describe(job: &JobView, target: &TargetView) -> String {
    let several = job.targets.len() > 1;
    let name = if several { format!("{}→{}", job.job.name, target.to) } else { job.job.name.clone() };
    let limit = target.limit_ms.map(|limit| format!(" (limit {})", time::span(limit))).unwrap_or_default();
    let reason = target.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match (target.state, target.lag_ms) {
        (State::Failed | State::Never, _) | (_, None) => format!("{name} {}{reason}", target.state),
        (State::Ok, Some(lag)) => format!("{name} soon behind, {}{limit}", time::span(lag)),
        (state, Some(lag)) => format!("{name} {state} {}{limit}{reason}", time::span(lag)),
    }
}
