//! What is kept, on the command line; and `blockctl snapshot prune`.

use clap::Args;

use crate::api::prune::{Judged, Prune, Pruned};
use crate::exit_code;
use crate::failure::Failure;
use crate::jobs::keep::Keep;
use crate::jobs::span::Span;

use super::args::{Format, volume_name};
use super::context::{Context, Trying};
use super::output;

/// `--keep-…`.
#[derive(Args, Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each has its help")]
pub struct KeepArgs {
    /// Keep the newest so many.
    #[arg(long, value_name = "N")]
    pub keep_last: Option<u32>,
    /// Keep the newest of each of so many minutes that have one (also below; UTC).
    #[arg(long, value_name = "N")]
    pub keep_minutely: Option<u32>,
    /// … hours.
    #[arg(long, value_name = "N")]
    pub keep_hourly: Option<u32>,
    /// … days.
    #[arg(long, value_name = "N")]
    pub keep_daily: Option<u32>,
    /// … weeks.
    #[arg(long, value_name = "N")]
    pub keep_weekly: Option<u32>,
    /// … months.
    #[arg(long, value_name = "N")]
    pub keep_monthly: Option<u32>,
    /// … years.
    #[arg(long, value_name = "N")]
    pub keep_yearly: Option<u32>,
    /// Keep all that are at most so much older than the newest, as in 7d.
    #[arg(long, value_name = "SPAN")]
    pub keep_within: Option<Span>,
}

/// `--keep-remote-…`: the same, for the targets.
#[derive(Args, Clone, Copy, Debug, Default)]
#[allow(missing_docs, reason = "each has its help")]
pub struct KeepRemoteArgs {
    /// Keep so many at the target; without any of these: as here.
    #[arg(long, value_name = "N")]
    pub keep_remote_last: Option<u32>,
    /// … minutes.
    #[arg(long, value_name = "N")]
    pub keep_remote_minutely: Option<u32>,
    /// … hours.
    #[arg(long, value_name = "N")]
    pub keep_remote_hourly: Option<u32>,
    /// … days.
    #[arg(long, value_name = "N")]
    pub keep_remote_daily: Option<u32>,
    /// … weeks.
    #[arg(long, value_name = "N")]
    pub keep_remote_weekly: Option<u32>,
    /// … months.
    #[arg(long, value_name = "N")]
    pub keep_remote_monthly: Option<u32>,
    /// … years.
    #[arg(long, value_name = "N")]
    pub keep_remote_yearly: Option<u32>,
    /// … all that are at most so much older than the newest.
    #[arg(long, value_name = "SPAN")]
    pub keep_remote_within: Option<Span>,
}

impl KeepArgs {
    /// The rules, if one was given.
    pub(super) fn keep(&self) -> Option<Keep> {
        let keep = Keep {
            last: self.keep_last.unwrap_or(0),
            minutely: self.keep_minutely.unwrap_or(0),
            hourly: self.keep_hourly.unwrap_or(0),
            daily: self.keep_daily.unwrap_or(0),
            weekly: self.keep_weekly.unwrap_or(0),
            monthly: self.keep_monthly.unwrap_or(0),
            yearly: self.keep_yearly.unwrap_or(0),
            within: self.keep_within,
        };
        (!keep.is_empty()).then_some(keep)
    }
}

impl KeepRemoteArgs {
    /// The rules, if one was given.
    pub(super) fn keep(&self) -> Option<Keep> {
        let same = KeepArgs {
            keep_last: self.keep_remote_last,
            keep_minutely: self.keep_remote_minutely,
            keep_hourly: self.keep_remote_hourly,
            keep_daily: self.keep_remote_daily,
            keep_weekly: self.keep_remote_weekly,
            keep_monthly: self.keep_remote_monthly,
            keep_yearly: self.keep_remote_yearly,
            keep_within: self.keep_remote_within,
        };
        same.keep()
    }
}

/// `snapshot prune`.
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// The volume.
    #[arg(value_name = "NAME", value_parser = volume_name)]
    pub volume: String,
    /// What to keep; without any: each job's own rules, for the snapshots that it has made.
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Also snapshots that no job has made.
    #[arg(long)]
    pub all: bool,
    /// Say what would happen and why, change nothing.
    #[arg(short = 'n', long, visible_alias = "dry-run")]
    pub plan: bool,
}

pub(super) async fn prune(context: &Context, args: &PruneArgs) -> Result<(), Failure> {
    let what = || format!("cannot prune {}", args.volume);
    let keep = args.keep.keep();
    if args.all && keep.is_none() {
        let next = format!("blockctl snapshot prune {} --all --keep-last 3 --plan", args.volume);
        return Err(Failure::new(
            exit_code::USAGE,
            what(),
            "--all needs a rule that says what to keep",
            next,
        ));
    }
    let wanted = Prune { keep, all: args.all, plan: args.plan };
    let pruned = context.client.prune(&args.volume, &wanted).await.trying(what)?;
    match context.format {
        Format::Json => output::object(&pruned),
        Format::Jsonl => output::list(context.format, "snapshots", &pruned.snapshots),
        Format::Table => tell(&pruned),
    }
}

fn tell(pruned: &Pruned) -> Result<(), Failure> {
    let width = pruned.snapshots.iter().map(|snapshot| snapshot.name.len()).max().unwrap_or(0);
    for Judged { name, keep, reasons } in &pruned.snapshots {
        let verdict = if *keep { "keep" } else { "drop" };
        output::line(format!("@{name:width$}  {verdict}  {}", reasons.join(", ")).trim_end())?;
    }
    let (kept, dropped) = (pruned.kept, pruned.dropped);
    if pruned.done {
        let freed = if dropped > 0 { "; their space is freed in the background" } else { "" };
        return output::line(format!("{kept} kept, {dropped} deleted{freed}"));
    }
    output::line(format!(
        "{kept} kept, {dropped} would be deleted\nNothing was changed. Run without --plan to do it."
    ))
}
