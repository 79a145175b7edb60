//! `blockctl scrub`: all snapshots are read, and what is damaged is repaired if asked for.

use clap::Args;

use crate::api::types::{Line, Scrub, Scrubbed};
use crate::failure::Failure;
use crate::service::RepairReport;
use crate::size::Size;

use super::args::volume_name;
use super::context::{Context, Trying};
use super::output;
use super::snapshot::{Reader, Verified, damaged, interruptible, repairing, tell_report};

/// `--repair`.
#[derive(Args, Clone, Debug)]
pub struct RepairArgs {
    /// Repair what is damaged with what paired hosts have of it: those that are known to have it, or HOST.
    #[arg(long, value_name = "HOST", num_args = 0..=1, require_equals = true, value_parser = volume_name)]
    #[allow(clippy::option_option, reason = "clap's form of an option whose value may be left out")]
    pub repair: Option<Option<String>>,
}

pub(super) async fn scrub(
    context: &Context,
    volume: Option<String>,
    RepairArgs { repair }: RepairArgs,
) -> Result<(), Failure> {
    let scrub = Scrub { volume, repair: repair.is_some(), from: repair.flatten() };
    if scrub.repair {
        return repairing(scrub_all(context, &scrub)).await;
    }
    interruptible(scrub_all(context, &scrub)).await
}

async fn scrub_all(context: &Context, scrub: &Scrub) -> Result<(), Failure> {
    let mut reader = Reader::new(context, "scrubbing");
    let mut found = Vec::new();
    let end = context.client.scrub(scrub, |line| match line {
        Line::Scrubbed(scrubbed) => found.push(scrubbed),
        other => reader.line(&other),
    });
    let end = end.await.trying(|| "cannot scrub".to_owned())?;
    reader.end()?;
    for scrubbed in &found {
        tell_scrubbed(context, scrubbed)?;
    }
    match end.failed.unwrap_or(0) {
        0 if context.for_people() => {
            let repaired = end.repaired_bytes.filter(|bytes| *bytes > 0);
            let repaired = repaired.map_or_else(String::new, |bytes| format!(", {} repaired", Size(bytes)));
            output::line(format!("{} ok{repaired}", output::count(end.count.unwrap_or(0), "snapshot")))
        }
        0 => Ok(()),
        failed => Err(damaged("the store", failed)),
    }
}

fn tell_scrubbed(context: &Context, scrubbed: &Scrubbed) -> Result<(), Failure> {
    let Scrubbed { name, report, error, repair } = scrubbed;
    if !context.for_people() {
        let error = error.as_ref().map(|error| error.message.as_str());
        let (ok, report, repair) = (scrubbed.is_sound(), report.as_ref(), repair.as_ref());
        return output::object(&Verified { name, ok, error, hash: None, verdict: None, report, repair });
    }
    match report {
        Some(report) => tell_report(name, report, None)?,
        None => {
            let why = error.as_ref().map_or("unknown", |error| error.message.as_str());
            return output::line(format!("{name}  UNREADABLE  {why}"));
        }
    }
    if let Some(error) = error {
        output::line(format!("  not repaired: {}", error.message))?;
    }
    repair.as_ref().map_or(Ok(()), tell_repair)
}

/// What a repair has done, for people.
pub(super) fn tell_repair(repair: &RepairReport) -> Result<(), Failure> {
    if repair.repaired_bytes > 0 {
        output::line(format!("  repaired: {} from {}", Size(repair.repaired_bytes), repair.from.join(", ")))?;
    }
    let failed = repair.failed.iter();
    failed
        .map(|failed| {
            format!("  NOT REPAIRED: {} bytes at {}: {}", failed.length, failed.offset, failed.reason)
        })
        .try_for_each(output::line)
}
