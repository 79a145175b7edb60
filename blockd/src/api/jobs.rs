//! Jobs over HTTP: bodies and handlers.

use axum::Json;
use axum::body::{Body as HttpBody, Bytes};
use axum::extract::State as Extract;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Deserializer, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::answer::{Args, Body, Refusal, VolumeName, check_name};
use super::long::{CHUNKS_WAITING_MAX, Chunks, PROGRESS_INTERVAL, STALL_TIME_MAX};
use super::routes::{Context, Reply, State, all_volumes};
use super::types::{Done, Kind};
use crate::jobs::carrier::{Outcome, RunError, RunProgress, RunReport};
use crate::jobs::desk::{Change, Jobs, Started};
use crate::jobs::job::Job;
use crate::jobs::span::Span;
use crate::jobs::view::{JobView, RunRecord};
use crate::service::Service;

/// Runs in one answer, unless asked for more.
const RUNS_SHOWN: usize = 20;

/// `GET /v1/jobs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobList {
    /// This host's name.
    pub from: String,
    /// By name.
    pub jobs: Vec<JobView>,
    /// What is wrong with the jobs' files, if anything is.
    pub problem: Option<String>,
}

/// `GET /v1/jobs/{name}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDetails {
    /// This host's name.
    pub from: String,
    /// The job.
    #[serde(flatten)]
    pub view: JobView,
    /// Its last runs, oldest first.
    pub runs: Vec<RunRecord>,
}

/// Query of `GET /v1/jobs/{name}`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunsQuery {
    /// How many runs; at most 1000.
    pub runs: Option<usize>,
}

/// Query of `POST /v1/jobs/{name}/run`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunQuery {
    /// `false`: the answer ends when the runs are on their way.
    pub wait: Option<bool>,
}

/// `PATCH /v1/jobs/{name}`: what is missing stays, null takes it away.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeJob {
    /// Bytes a second.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rate: Option<Option<u64>>,
    /// How old the last point may become.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub rpo: Option<Option<Span>>,
}

/// Null is something else than nothing.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// `POST /v1/sync`: volumes go to one or several targets once, without a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    /// The volumes, cut at one instant.
    pub volumes: Vec<String>,
    /// The targets.
    pub to: Vec<String>,
    /// Bytes a second at most, to each.
    #[serde(default)]
    pub rate: Option<u64>,
}

impl Sync {
    /// What runs and snapshots of it are called: as the job that would do the same again and again.
    pub fn name(&self) -> String {
        format!("{}-{}", self.volumes.first().map_or("", String::as_str), self.to.join("-"))
    }
}

/// One line of an answer that follows runs. The last one is `end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunLine {
    /// A run is on its way, or was already.
    Started {
        /// The job's name.
        job: String,
        /// The target.
        to: String,
    },
    /// How far it is; at most four a second.
    Progress {
        /// The target.
        to: String,
        /// How far.
        #[serde(flatten)]
        progress: RunProgress,
    },
    /// It has ended: one of report and error.
    Ended {
        /// The target.
        to: String,
        /// What it brought.
        report: Option<RunReport>,
        /// Why it failed.
        error: Option<RunError>,
    },
    /// The last line.
    End {
        /// Runs that have failed.
        failed: u64,
    },
}

/// The daemon's jobs.
pub(crate) fn desk(service: &Service) -> Result<&Jobs, Refusal> {
    service.jobs.as_ref().ok_or_else(|| Refusal::new(Kind::Refused, "this daemon has no jobs"))
}

fn done() -> Json<Done> {
    Json(Done { done: true })
}

pub(crate) async fn list(Extract(state): Context) -> Reply<JobList> {
    let overview = desk(&state.service)?.list().await?;
    let from = state.service.host.to_string();
    Ok(Json(JobList { from, jobs: overview.jobs, problem: overview.problem }))
}

pub(crate) async fn show(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Args(query): Args<RunsQuery>,
) -> Reply<JobDetails> {
    let jobs = desk(&state.service)?;
    let view = jobs.show(&name).await?;
    let runs = jobs.history(&name, query.runs.unwrap_or(RUNS_SHOWN)).await?;
    Ok(Json(JobDetails { from: state.service.host.to_string(), view, runs }))
}

/// Told now rather than by the first run.
async fn check_volumes(state: &State, wanted: &[String]) -> Result<(), Refusal> {
    let there = all_volumes(&state.service).await?;
    match wanted.iter().find(|name| !there.iter().any(|volume| volume.name == **name)) {
        Some(missing) => Err(Refusal::new(Kind::NotFound, format!("there is no volume {missing}"))),
        None => Ok(()),
    }
}

pub(crate) async fn add(Extract(state): Context, Body(job): Body<Job>) -> Reply<Done> {
    let jobs = desk(&state.service)?;
    check_volumes(&state, &job.volumes).await?;
    jobs.add(job).await?;
    Ok(done())
}

pub(crate) async fn delete(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    desk(&state.service)?.delete(&name).await?;
    Ok(done())
}

pub(crate) async fn change(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Body(ChangeJob { rate, rpo }): Body<ChangeJob>,
) -> Reply<Done> {
    desk(&state.service)?.change(&name, Change { rate, rpo }).await?;
    Ok(done())
}

pub(crate) async fn cancel(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    desk(&state.service)?.cancel(&name).await?;
    Ok(done())
}

pub(crate) async fn pause(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    desk(&state.service)?.pause(&name, true).await?;
    Ok(done())
}

pub(crate) async fn resume(Extract(state): Context, VolumeName(name): VolumeName) -> Reply<Done> {
    desk(&state.service)?.pause(&name, false).await?;
    Ok(done())
}

pub(crate) async fn run(
    Extract(state): Context,
    VolumeName(name): VolumeName,
    Args(query): Args<RunQuery>,
) -> Result<Response, Refusal> {
    let started = desk(&state.service)?.run(&name).await?;
    Ok(follow(started, query.wait.unwrap_or(true)))
}

pub(crate) async fn sync(Extract(state): Context, Body(sync): Body<Sync>) -> Result<Response, Refusal> {
    let jobs = desk(&state.service)?;
    for volume in &sync.volumes {
        check_name(volume)?;
    }
    check_volumes(&state, &sync.volumes).await?;
    let (name, rate) = (sync.name(), sync.rate);
    let job = Job { rate, ..Job::new(name, sync.volumes, sync.to) };
    Ok(follow(jobs.once(job).await?, true))
}

/// Answers with how the runs go on. They do so without a client, too.
fn follow(started: Vec<Started>, wait: bool) -> Response {
    let (chunks, receiver) = mpsc::channel(CHUNKS_WAITING_MAX);
    tokio::spawn(async move {
        if tell_all(&chunks, started, wait).await.is_none() {
            tracing::debug!("a client left before its answer's end");
        }
    });
    ([(CONTENT_TYPE, "application/x-ndjson")], HttpBody::new(Chunks(receiver))).into_response()
}

/// `None`: the client is gone, or takes nothing.
async fn tell_all(chunks: &mpsc::Sender<Bytes>, started: Vec<Started>, wait: bool) -> Option<()> {
    for Started { job, to, .. } in &started {
        tell(chunks, &RunLine::Started { job: job.clone(), to: to.clone() }).await?;
    }
    let mut failed = 0;
    if wait {
        failed = watch_all(chunks, started).await?;
    }
    tell(chunks, &RunLine::End { failed }).await
}

/// Runs that have failed.
async fn watch_all(chunks: &mpsc::Sender<Bytes>, mut started: Vec<Started>) -> Option<u64> {
    let mut ends: JoinSet<(String, Outcome)> = JoinSet::new();
    for Started { to, watch, .. } in started.clone() {
        ends.spawn(async move { (to, watch.ended().await) });
    }
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut failed, mut told) = (0, Vec::new());
    loop {
        tokio::select! {
            ended = ends.join_next() => {
                let Some(Ok((to, outcome))) = ended else { return Some(failed) };
                failed += u64::from(outcome.is_err());
                started.retain(|one| one.to != to);
                let (report, error) = (outcome.as_ref().ok().cloned(), outcome.err());
                tell(chunks, &RunLine::Ended { to, report, error }).await?;
            }
            _ = ticks.tick() => {
                let now: Vec<(String, RunProgress)> =
                    started.iter().map(|one| (one.to.clone(), one.watch.progress())).collect();
                for (to, progress) in now.iter().filter(|one| !told.contains(*one)) {
                    tell(chunks, &RunLine::Progress { to: to.clone(), progress: *progress }).await?;
                }
                told = now;
                if chunks.is_closed() {
                    return None;
                }
            }
        }
    }
}

async fn tell(chunks: &mpsc::Sender<Bytes>, line: &RunLine) -> Option<()> {
    let mut bytes = serde_json::to_vec(line).ok()?;
    bytes.push(b'\n');
    timeout(STALL_TIME_MAX, chunks.send(Bytes::from(bytes))).await.ok()?.ok()
}
