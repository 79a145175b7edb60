//! `blockctl job …`.

use clap::{Args, Subcommand};

use crate::api::jobs::{ChangeJob, JobDetails};
use crate::exit_code;
use crate::failure::Failure;
use crate::jobs::calendar::Calendar;
use crate::jobs::carrier::RunErrorKind;
use crate::jobs::job::{Job, Rate};
use crate::jobs::keep::Keep;
use crate::jobs::schedule::Schedule;
use crate::jobs::span::Span;
use crate::jobs::view::{JobView, RunRecord, State, TargetView};
use crate::size::Size;

use super::args::{Format, volume_name};
use super::context::{Context, Trying};
use super::keep::{KeepArgs, KeepRemoteArgs};
use super::volume::Changed;
use super::{follow, output, time};

/// Runs that `job show` shows.
const RUNS_SHOWN: usize = 10;

/// Jobs.
#[derive(Subcommand, Debug)]
pub enum JobCommand {
    /// Replicate volumes on a schedule.
    #[command(
        after_help = "Examples:\n  blockctl job add web --volume web-sys --volume web-data --to B --every 30s --rpo 2m\n  \
                            blockctl job add nightly --volume db --to B --at 'Mon..Fri 02:00' --keep-daily 7"
    )]
    Add(Box<AddArgs>),
    /// All jobs, how old their copies are, and how they are.
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  blockctl job list\n  blockctl job list -o jsonl"
    )]
    List,
    /// One job, and its last runs.
    #[command(after_help = "Example:\n  blockctl job show web")]
    Show {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// How many runs; at most 1000.
        #[arg(long, value_name = "N", default_value_t = RUNS_SHOWN)]
        runs: usize,
    },
    /// Run a job now, and show how it goes.
    #[command(after_help = "Example:\n  blockctl job run web\n  blockctl job run web --no-wait")]
    Run {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
        /// End as soon as it is on its way.
        #[arg(long)]
        no_wait: bool,
    },
    /// End its run, and start no other.
    #[command(after_help = "Example:\n  blockctl job pause web")]
    Pause {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// Go on after a pause.
    #[command(after_help = "Example:\n  blockctl job resume web")]
    Resume {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// End the run that is under way; what the target has confirmed is not sent again.
    #[command(after_help = "Example:\n  blockctl job cancel web")]
    Cancel {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// Change a job, also for a run under way.
    #[command(
        after_help = "Example:\n  blockctl job set web --rate 40MB/s\n  blockctl job set web --rate none"
    )]
    Set(SetArgs),
    /// Forget a job. Snapshots and copies stay; nothing protects the common base any more.
    #[command(visible_alias = "rm", after_help = "Example:\n  blockctl job delete web")]
    Delete {
        /// Its name.
        #[arg(value_parser = volume_name)]
        name: String,
    },
}

/// When.
#[derive(Args, Clone, Debug, Default)]
#[group(multiple = false)]
pub struct ScheduleArgs {
    /// So long after the beginning of the last run, as in 30s; at least 1s.
    #[arg(long, value_name = "SPAN")]
    pub every: Option<Span>,
    /// Cron's five or six fields, UTC.
    #[arg(long, value_name = "FIELDS")]
    pub cron: Option<String>,
    /// A calendar event, UTC: 'Mon..Fri 08..18:00/15', 'daily 02:00', hourly.
    #[arg(long, value_name = "EVENT")]
    pub at: Option<String>,
}

impl ScheduleArgs {
    pub(super) fn schedule(&self) -> Result<Schedule, String> {
        match (&self.every, &self.cron, &self.at) {
            (Some(every), _, _) => Schedule::every(*every),
            (_, Some(cron), _) => Ok(Schedule::Calendar(Box::new(Calendar::cron(cron)?))),
            (_, _, Some(at)) => Ok(Schedule::Calendar(Box::new(Calendar::event(at)?))),
            _ => Ok(Schedule::Manual),
        }
    }
}

/// `job add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// The job's name.
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// A volume; several are cut at one instant.
    #[arg(long = "volume", required = true, value_name = "VOLUME", value_parser = volume_name)]
    pub volumes: Vec<String>,
    /// A host that gets a copy; several get one each.
    #[arg(long, required = true, value_name = "HOST", value_parser = volume_name)]
    pub to: Vec<String>,
    /// When; without: when told to.
    #[command(flatten)]
    pub schedule: ScheduleArgs,
    /// What is kept here; without: the last three.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// What is kept there.
    #[command(flatten)]
    pub keep_remote: KeepRemoteArgs,
    /// Send at most so much, as in 40MB/s.
    #[arg(long)]
    pub rate: Option<Rate>,
    /// How old the copy may become, as in 60s: `blockctl check` warns at 80 % of it.
    #[arg(long, value_name = "SPAN")]
    pub rpo: Option<Span>,
    /// Not to begin yet.
    #[arg(long)]
    pub paused: bool,
}

/// `job set`.
#[derive(Args, Debug)]
pub struct SetArgs {
    /// The job's name.
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// Send at most so much, as in 40MB/s; "none": as fast as it goes.
    #[arg(long, required_unless_present = "rpo", value_parser = or_none::<Rate>)]
    pub rate: Option<OrNone<Rate>>,
    /// How old the copy may become, as in 60s; "none": no matter.
    #[arg(long, value_name = "SPAN", value_parser = or_none::<Span>)]
    pub rpo: Option<OrNone<Span>>,
}

/// A value, or the word `none`.
#[derive(Clone, Copy, Debug)]
pub struct OrNone<T>(pub Option<T>);

pub(super) fn or_none<T: std::str::FromStr<Err = String>>(text: &str) -> Result<OrNone<T>, String> {
    if text == "none" { Ok(OrNone(None)) } else { text.parse().map(|value| OrNone(Some(value))) }
}

pub(super) async fn run(context: &Context, command: JobCommand) -> Result<(), Failure> {
    match command {
        JobCommand::Add(args) => add(context, *args).await,
        JobCommand::List => list(context).await,
        JobCommand::Show { name, runs } => show(context, &name, runs).await,
        JobCommand::Run { name, no_wait } => follow::job(context, &name, !no_wait).await,
        JobCommand::Pause { name } => tell(context, &name, "pause", "paused").await,
        JobCommand::Resume { name } => tell(context, &name, "resume", "resumed").await,
        JobCommand::Cancel { name } => tell(context, &name, "cancel", "cancelled").await,
        JobCommand::Set(args) => set(context, &args).await,
        JobCommand::Delete { name } => {
            context.client.delete_job(&name).await.trying(|| format!("cannot delete job {name}"))?;
            Changed::new("deleted", &name).tell(context, &format!("deleted job {name}; its snapshots stay"))
        }
    }
}

/// A schedule that is none.
pub(super) fn wrong_schedule(what: String, why: String) -> Failure {
    Failure::new(exit_code::USAGE, what, why, "blockctl job add --help    (shows examples)")
}

async fn add(context: &Context, args: AddArgs) -> Result<(), Failure> {
    let what = format!("cannot add job {}", args.name);
    let schedule = args.schedule.schedule().map_err(|why| wrong_schedule(what.clone(), why))?;
    let job = Job {
        schedule,
        keep: args.keep.keep().unwrap_or(Keep::DEFAULT),
        keep_remote: args.keep_remote.keep(),
        rate: args.rate.map(|rate| rate.0),
        rpo: args.rpo,
        paused: args.paused,
        ..Job::new(args.name, args.volumes, args.to)
    };
    add_job(context, &job, what).await
}

pub(super) async fn add_job(context: &Context, job: &Job, what: String) -> Result<(), Failure> {
    // Told here with the job's words; the daemon would say the same.
    job.check()
        .map_err(|why| Failure::new(exit_code::USAGE, what.clone(), why, "blockctl job add --help"))?;
    context.client.add_job(job).await.trying(|| what)?;
    let name = &job.name;
    let sentence =
        format!("added job {name}: {} to {}, {}", job.volumes.join(", "), job.to.join(", "), when(job));
    Changed::new("added", name).tell(context, &sentence)
}

fn when(job: &Job) -> String {
    match &job.schedule {
        Schedule::Manual => "when told to".to_owned(),
        Schedule::Every(span) => format!("every {span}"),
        Schedule::Calendar(calendar) => format!("at {calendar}"),
    }
}

async fn tell(context: &Context, name: &str, verb: &'static str, done: &'static str) -> Result<(), Failure> {
    context.client.tell_job(name, verb).await.trying(|| format!("cannot {verb} job {name}"))?;
    Changed::new(done, name).tell(context, &format!("{done} job {name}"))
}

async fn set(context: &Context, args: &SetArgs) -> Result<(), Failure> {
    let name = &args.name;
    let rate = args.rate.map(|rate| rate.0.map(|rate| rate.0));
    let change = ChangeJob { rate, rpo: args.rpo.map(|rpo| rpo.0) };
    context.client.change_job(name, &change).await.trying(|| format!("cannot change job {name}"))?;
    Changed::new("changed", name).tell(context, &format!("changed job {name}, also for a run under way"))
}

async fn list(context: &Context) -> Result<(), Failure> {
    let list = context.client.jobs().await.trying(|| "cannot list jobs".to_owned())?;
    if let Some(problem) = &list.problem {
        super::progress::note(&format!("warning: {problem}"))?;
    }
    match context.format {
        Format::Json => return output::object(&list),
        Format::Jsonl => return output::list(context.format, "jobs", &list.jobs),
        Format::Table => {}
    }
    if list.jobs.is_empty() {
        return output::line("no jobs; make one: blockctl sync NAME --to HOST --every 30s");
    }
    let rows = list.jobs.iter().flat_map(|job| job.targets.iter().map(|target| row(&list.from, job, target)));
    output::table(
        &["JOB", "FROM→TO", "EVERY", "LAST POINT", "LAG", "SHIPPED", "STATE"],
        &[4, 5],
        rows.collect(),
    )
}

fn dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}

fn row(from: &str, view: &JobView, target: &TargetView) -> Vec<String> {
    let every = if view.once { "once".to_owned() } else { view.job.schedule.to_string() };
    vec![
        view.job.name.clone(),
        format!("{from}→{}", target.to),
        every,
        dash(target.last_point_ms.map(time::utc)),
        dash(target.lag_ms.map(time::span)),
        dash(target.shipped_bytes.map(|bytes| Size(bytes).to_string())),
        state(target),
    ]
}

/// `behind (unreachable, for 43m 2s, next try in 58s)`.
pub(super) fn state(target: &TargetView) -> String {
    if let Some(progress) = target.running {
        let done = progress.bytes_done.saturating_mul(100).checked_div(progress.bytes_total);
        return done
            .map_or_else(|| progress.phase.to_string(), |done| format!("{} {done} %", progress.phase));
    }
    let mut more: Vec<String> = target.reason.iter().cloned().collect();
    if target.reason.is_some() && target.state != State::Paused {
        let now = crate::events::now_ms();
        let since =
            target.failing_since_ms.map(|since| format!("for {}", time::span(now.saturating_sub(since))));
        let next =
            target.next_try_ms.map(|next| format!("next try in {}", time::span(next.saturating_sub(now))));
        more.extend(since.into_iter().chain(next));
    }
    if more.is_empty() { target.state.to_string() } else { format!("{} ({})", target.state, more.join(", ")) }
}

async fn show(context: &Context, name: &str, runs: usize) -> Result<(), Failure> {
    let details = context.client.job(name, runs).await.trying(|| format!("cannot show job {name}"))?;
    if !context.for_people() {
        return output::object(&details);
    }
    output::pairs(&definition(&details))?;
    for target in &details.view.targets {
        output::line("")?;
        output::pairs(&standing(target))?;
    }
    if details.runs.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let rows = details.runs.iter().map(run_row).collect();
    output::table(&["RUN", "TO", "BEGAN (UTC)", "TOOK", "CHANGED", "SENT", "RESULT"], &[0, 3, 4, 5], rows)
}

fn definition(details: &JobDetails) -> Vec<(&'static str, String)> {
    let job = &details.view.job;
    let place = if job.from_config { "  (configuration file)" } else { "" };
    let keep = |keep: &Keep| serde_json::to_string(keep).unwrap_or_default();
    vec![
        ("name", format!("{}{place}", job.name)),
        ("volumes", job.volumes.join(" ")),
        ("runs", if details.view.once { "ran once".to_owned() } else { when(job) }),
        ("keeps", keep(&job.keep)),
        ("keeps there", keep(&job.keep_there())),
        ("rate", dash(job.rate.map(|rate| Rate(rate).to_string()))),
        ("rpo", dash(job.rpo.map(|rpo| rpo.to_string()))),
    ]
}

fn standing(target: &TargetView) -> Vec<(&'static str, String)> {
    let totals = &target.totals;
    let sent = Size(totals.bytes_sent);
    vec![
        ("to", target.to.clone()),
        ("state", state(target)),
        ("last point", dash(target.last_point_ms.map(time::utc))),
        ("snapshot", dash(target.last_snapshot.clone())),
        ("root", dash(target.last_root.clone())),
        ("lag", dash(target.lag_ms.map(time::span))),
        ("limit", dash(target.limit_ms.map(time::span))),
        ("so far", format!("{}, {} failed, {sent} sent", output::count(totals.runs, "run"), totals.failed)),
    ]
}

fn run_row(run: &RunRecord) -> Vec<String> {
    let size = |bytes: Option<u64>| dash(bytes.map(|bytes| Size(bytes).to_string()));
    let result = match &run.error {
        None => "ok".to_owned(),
        Some(error) if error.kind == RunErrorKind::Cancelled => "ended".to_owned(),
        Some(error) => error.message.clone(),
    };
    vec![
        run.run.to_string(),
        run.to.clone(),
        time::utc(run.began_ms),
        format!("{}.{}s", run.duration_ms / 1000, run.duration_ms / 100 % 10),
        size(run.report.as_ref().map(|report| report.bytes_changed)),
        size(run.report.as_ref().map(|report| report.bytes_sent)),
        result,
    ]
}
