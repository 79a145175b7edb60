//! Runs that are followed: `blockctl job run` and `blockctl sync`.

use clap::Args;
use serde::Serialize;

use crate::api::jobs::{RunLine, Sync};
use crate::exit_code;
use crate::failure::Failure;
use crate::jobs::carrier::{RunError, RunErrorKind, RunProgress, RunReport};
use crate::jobs::job::{Job, Rate};
use crate::jobs::keep::Keep;
use crate::size::Size;

use super::args::volume_name;
use super::context::{Context, Trying};
use super::job::{ScheduleArgs, add_job, wrong_schedule};
use super::keep::KeepArgs;
use super::progress::Progress;
use super::volume::Plan;
use super::{output, time};

/// `sync`.
#[derive(Args, Debug)]
pub struct SyncArgs {
    /// The volumes; several are cut at one instant.
    #[arg(required = true, value_name = "NAME", value_parser = volume_name)]
    pub volumes: Vec<String>,
    /// A host that gets a copy; several get the same, which is read once.
    #[arg(long, required = true, value_name = "HOST", value_parser = volume_name)]
    pub to: Vec<String>,
    /// Now, and not again; that is what happens without a schedule.
    #[arg(long, conflicts_with_all = ["every", "cron", "at"])]
    pub once: bool,
    /// Again and again: makes the job NAME-HOST.
    #[command(flatten)]
    pub schedule: ScheduleArgs,
    /// What the job keeps here; without: the last three.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Send at most so much, as in 40MB/s.
    #[arg(long)]
    pub rate: Option<Rate>,
    /// Say what would happen, change nothing.
    #[arg(long)]
    pub plan: bool,
}

pub(super) async fn sync(context: &Context, args: SyncArgs) -> Result<(), Failure> {
    let rate = args.rate.map(|rate| rate.0);
    let sync = Sync { volumes: args.volumes, to: args.to, rate };
    let what = format!("cannot bring {} to {}", sync.volumes.join(", "), sync.to.join(", "));
    let schedule = args.schedule.schedule().map_err(|why| wrong_schedule(what.clone(), why))?;
    let scheduled =
        args.schedule.every.is_some() || args.schedule.cron.is_some() || args.schedule.at.is_some();
    let keep = args.keep.keep().unwrap_or(Keep::DEFAULT);
    let job = Job { schedule, rate, keep, ..Job::new(sync.name(), sync.volumes.clone(), sync.to.clone()) };
    if args.plan {
        return plan(context, &job, scheduled, &what).await;
    }
    if scheduled {
        return add_job(context, &job, what).await;
    }
    once(context, &sync, &what).await
}

async fn plan(context: &Context, job: &Job, scheduled: bool, what: &str) -> Result<(), Failure> {
    let trying = || what.to_owned();
    let volumes = context.client.volumes().await.trying(trying)?;
    let there =
        context.client.jobs().await.trying(trying)?.jobs.into_iter().find(|one| one.job.name == job.name);
    let missing = job.volumes.iter().filter(|name| !volumes.iter().any(|volume| volume.name == **name));
    let mut obstacles: Vec<String> = missing.map(|name| format!("there is no volume {name}")).collect();
    let blocked_code = if obstacles.is_empty() { exit_code::FAILED } else { exit_code::NOT_FOUND };
    if scheduled && there.as_ref().is_some_and(|there| !there.once) {
        obstacles.push(format!("there is a job {} already", job.name));
    }
    let target = there.iter().flat_map(|there| &there.targets).find(|target| job.to.contains(&target.to));
    let base = match target.and_then(|target| target.last_snapshot.as_ref().zip(target.lag_ms)) {
        Some((snapshot, lag_ms)) => format!("what has changed since @{snapshot}, {} ago", time::span(lag_ms)),
        None => "all data, or what it does not have yet: no common snapshot is on record".to_owned(),
    };
    let first = if scheduled {
        format!("would add job {} ({}); its first run", job.name, job.schedule)
    } else {
        "would".to_owned()
    };
    let verb = if scheduled { "brings" } else { "bring" };
    let would = format!("{first} {verb} {} to {}: {base}", job.volumes.join(", "), job.to.join(", "));
    Plan { action: "synced", name: &job.name, would, obstacles, blocked_code }.tell(context)
}

async fn once(context: &Context, sync: &Sync, what: &str) -> Result<(), Failure> {
    let mut follower = Follower::new(context, sync.name());
    let result = tokio::select! {
        result = context.client.sync(sync, |line| follower.line(line)) => result,
        _ = tokio::signal::ctrl_c() => {
            drop(follower);
            context.client.tell_job(&sync.name(), "cancel").await.trying(|| what.to_owned())?;
            let why = "Ctrl-C; what the target has confirmed is not sent again";
            return Err(Failure::new(exit_code::FAILED, "interrupted", why, "the same command goes on"));
        }
    };
    let failed = result.trying(|| what.to_owned())?;
    follower.end(what, failed)
}

/// `job run`.
pub(super) async fn job(context: &Context, name: &str, wait: bool) -> Result<(), Failure> {
    let what = format!("cannot run job {name}");
    let mut follower = Follower::new(context, name.to_owned());
    let result = tokio::select! {
        result = context.client.run_job(name, wait, |line| follower.line(line)) => result,
        _ = tokio::signal::ctrl_c() => {
            drop(follower);
            let next = format!("blockctl job show {name}; blockctl job cancel {name}");
            return Err(Failure::new(exit_code::FAILED, "not watched any more", "Ctrl-C; the run goes on", next));
        }
    };
    let failed = result.trying(|| what.clone())?;
    if !wait && context.for_people() {
        output::line(format!("job {name} is on its way; look: blockctl job show {name}"))?;
    }
    follower.end(&what, failed)
}

/// What an end is for scripts.
#[derive(Serialize)]
struct Ended<'a> {
    event: &'static str,
    job: &'a str,
    to: &'a str,
    report: Option<&'a RunReport>,
    error: Option<&'a RunError>,
}

/// Shows how runs go on.
struct Follower<'a> {
    context: &'a Context,
    name: String,
    progress: Progress,
    shown: Option<(String, String, u64)>,
    ended: Vec<(String, Option<RunReport>, Option<RunError>)>,
    written: Result<(), Failure>,
}

impl<'a> Follower<'a> {
    fn new(context: &'a Context, name: String) -> Self {
        let progress = Progress::new(context.format);
        Self { context, name, progress, shown: None, ended: Vec::new(), written: Ok(()) }
    }

    fn line(&mut self, line: RunLine) {
        match line {
            RunLine::Progress { to, progress } if self.written.is_ok() => {
                self.written = self.show(to, &progress);
            }
            RunLine::Ended { to, report, error } => self.ended.push((to, report, error)),
            RunLine::Progress { .. } | RunLine::Started { .. } | RunLine::End { .. } => {}
        }
    }

    fn show(&mut self, to: String, progress: &RunProgress) -> Result<(), Failure> {
        let phase = (to, progress.phase.to_string(), progress.bytes_total);
        if self.shown.as_ref() != Some(&phase) {
            self.progress.phase(format!("{}→{}  {}", self.name, phase.0, phase.1), phase.2)?;
            self.shown = Some(phase);
        }
        self.progress.done(progress.bytes_done)
    }

    fn end(self, what: &str, failed: u64) -> Result<(), Failure> {
        let Self { context, name, progress, ended, written, .. } = self;
        drop(progress);
        written?;
        for (to, report, error) in &ended {
            let (report, error) = (report.as_ref(), error.as_ref());
            if !context.for_people() {
                output::object(&Ended { event: "ended", job: &name, to, report, error })?;
            } else if let Some(report) = report {
                output::line(format!("{name}→{to}  ok  {}", sum(report)))?;
            }
        }
        if failed == 0 {
            return Ok(());
        }
        let errors: Vec<&RunError> = ended.iter().filter_map(|(_, _, error)| error.as_ref()).collect();
        let code = match errors[..] {
            [] => exit_code::FAILED,
            _ if errors.len() < ended.len() => exit_code::PARTIAL,
            [first, ..] => code_of(first.kind),
        };
        let named =
            ended.iter().filter_map(|(to, _, error)| Some(format!("{to}: {}", error.as_ref()?.message)));
        let next = format!("blockctl job show {name}; blockctl events");
        Err(Failure::new(code, what, named.collect::<Vec<_>>().join("; "), next))
    }
}

/// `3.1 MiB sent of 24 MiB that changed (87 % saved)`.
fn sum(report: &RunReport) -> String {
    let (sent, changed) = (report.bytes_sent, report.bytes_changed);
    let saved = match changed.saturating_sub(sent).saturating_mul(100).checked_div(changed) {
        None | Some(0) => String::new(),
        Some(saved) => format!(" ({saved} % saved)"),
    };
    format!("{} sent of {} that changed{saved}; @{}", Size(sent), Size(changed), report.snapshot)
}

fn code_of(kind: RunErrorKind) -> u8 {
    match kind {
        RunErrorKind::Unreachable | RunErrorKind::Stopping => exit_code::UNREACHABLE,
        RunErrorKind::Refused => exit_code::REFUSED,
        RunErrorKind::NotFound => exit_code::NOT_FOUND,
        RunErrorKind::Busy => exit_code::BUSY,
        RunErrorKind::Verification | RunErrorKind::Damaged => exit_code::VERIFICATION_FAILED,
        RunErrorKind::NoSpace | RunErrorKind::Cancelled | RunErrorKind::Io | RunErrorKind::Unknown => {
            exit_code::FAILED
        }
    }
}
