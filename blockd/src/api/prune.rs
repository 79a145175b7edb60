//! Retention over HTTP.

use axum::Json;
use axum::extract::State as Extract;
use serde::{Deserialize, Serialize};

use super::answer::{Body, Refusal, VolumeName};
use super::routes::{Context, Reply};
use super::types::Kind;
use crate::jobs::desk::Protection;
use crate::jobs::keep::Keep;
use crate::jobs::prune::{self, Policy};
use crate::jobs::retention::Verdict;

/// `POST /v1/volumes/{name}/prune`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Prune {
    /// The rules; missing: each job's own, for the snapshots that it has made.
    pub keep: Option<Keep>,
    /// Also snapshots that no job has made.
    pub all: bool,
    /// Delete nothing.
    pub plan: bool,
}

/// What became of a volume's snapshots, or would.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Newest first.
    pub snapshots: Vec<Judged>,
    /// How many stay.
    pub kept: u64,
    /// How many were deleted, or would be.
    pub dropped: u64,
    /// `false`: it was only a plan.
    pub done: bool,
}

/// A snapshot that was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// Its name within the volume.
    pub name: String,
    /// It stays.
    pub keep: bool,
    /// Why.
    pub reasons: Vec<String>,
}

fn policy(wanted: &Prune, volume: &str, known: &Protection) -> Result<Policy, Refusal> {
    let bad = |message: String| Err(Refusal::new(Kind::BadValue, message));
    match (wanted.keep, wanted.all) {
        (Some(keep), _) if keep.is_empty() => bad("no rule says what to keep".to_owned()),
        (Some(keep), all) => {
            keep.check().map_err(|why| Refusal::new(Kind::BadValue, why))?;
            Ok(if all { Policy::All(keep) } else { Policy::Made(keep) })
        }
        (None, true) => {
            bad("jobs' rules speak only of their own snapshots: say what to keep of all".to_owned())
        }
        (None, false) if known.policies.is_empty() => {
            bad(format!("no job has rules for {volume}: say what to keep"))
        }
        (None, false) => Ok(Policy::Jobs(known.policies.clone())),
    }
}

pub(crate) async fn prune(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Body(wanted): Body<Prune>,
) -> Reply<Pruned> {
    let service = &state.service;
    let known = match &service.jobs {
        Some(jobs) => jobs.protection(&name).await?,
        None => Protection::default(),
    };
    let policy = policy(&wanted, &name, &known)?;
    let pruned = prune::prune(service, &name, &policy, &known.guards, !wanted.plan).await?;
    let judge = |verdict: Verdict| {
        let refused = pruned.refused.iter().filter(|(refused, _)| *refused == verdict.name);
        let reasons = verdict.reasons.iter().map(ToString::to_string);
        let reasons: Vec<String> = reasons.chain(refused.map(|(_, why)| why.clone())).collect();
        Judged { name: verdict.name, keep: !reasons.is_empty(), reasons }
    };
    let snapshots: Vec<Judged> = pruned.verdicts.into_iter().map(judge).collect();
    let kept = snapshots.iter().filter(|snapshot| snapshot.keep).count() as u64;
    let dropped = snapshots.len() as u64 - kept;
    if !wanted.plan && dropped > 0 {
        service.events.record("snapshots_pruned", name, format!("{dropped} deleted, {kept} kept"));
    }
    Ok(Json(Pruned { snapshots, kept, dropped, done: !wanted.plan }))
}
