//! `vmctl migrate`, `abort`, `rollback`, `recover`.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::sleep;

use super::{Context, Trying, output};
use crate::agent::view::{Migrate, MovePlan, Rollback};
use crate::cutover::event::{SourceOutcome, SourceQemu};
use crate::cutover::ids::MoveId;
use crate::exit_code;
use crate::failure::{self, Failure};
use crate::moves::reason_text;
use crate::moves::record::{MULTIFD_MAX, MoveRecord, Options, Side, Strategy, When};
use crate::size::Size;
use crate::span::milliseconds;
use crate::vm::name::VmName;

/// Between two looks at a move.
const LOOK: Duration = Duration::from_millis(250);
/// How long `recover` waits for what is being finished.
const RECOVER_TIME_MAX: Duration = Duration::from_secs(60);

/// What a move may do.
#[derive(Args, Clone, Debug, Default)]
pub struct Bounds {
    /// Longest silence of the guest, as in 100ms or 2s: above it the move does not switch over. Default: no bound.
    #[arg(long, value_name = "TIME", value_parser = some_milliseconds)]
    pub silence: Option<u64>,
    /// How the disks are brought while the guest runs: rounds (differences, again and again), mirror (what the guest writes
    /// is at the other host before the guest is answered), or auto (mirror where differences do not get small).
    #[arg(long, value_enum, default_value_t, value_name = "HOW", hide_possible_values = true)]
    pub strategy: Strategy,
    /// Bytes a second that memory may take, as in 200MiB. Default: as fast as it goes.
    #[arg(long, value_name = "SIZE")]
    pub bandwidth: Option<Size>,
    /// Send memory while the guest runs even without KVM: QEMU may then lose what the guest writes meanwhile.
    #[arg(long)]
    pub live: bool,
    /// Slow the guest down if it dirties its memory faster than it can be sent.
    #[arg(long)]
    pub auto_converge: bool,
    /// Spread memory over so many connections besides the first (QEMU's multifd), where one does not fill the link.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MULTIFD_MAX)))]
    pub multifd: Option<u8>,
    /// When the guest may be stopped: now, or quiet (when it changes less than it usually does; waits ten minutes at most).
    #[arg(long, value_enum, default_value_t, value_name = "WHEN", hide_possible_values = true)]
    pub when: When,
    /// How long the volumes stay where the VM came from, as in 24h or 7d: until then the way back is short. Default: until
    /// they are deleted by hand.
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    pub keep_source: Option<u64>,
}

impl Bounds {
    fn options(&self) -> Options {
        Options {
            silence_ms: self.silence,
            strategy: self.strategy,
            bandwidth: self.bandwidth.map(|size| size.0),
            live: self.live,
            auto_converge: self.auto_converge,
            multifd: self.multifd,
            keep_source_ms: self.keep_source,
            when: self.when,
        }
    }
}

fn some_milliseconds(text: &str) -> Result<u64, String> {
    milliseconds(text).and_then(|ms| if ms > 0 { Ok(ms) } else { Err(format!("{text:?} is no time at all")) })
}

/// `migrate`.
#[derive(Args, Debug)]
pub struct MigrateArgs {
    /// Which VM.
    pub vm: VmName,
    /// The host that it goes to; one that blockd is paired with.
    #[arg(long, value_name = "HOST")]
    pub to: String,
    /// Tell what would be done and change nothing.
    #[arg(long)]
    pub plan: bool,
    /// Do not wait for the end.
    #[arg(long)]
    pub no_wait: bool,
    /// What it may do.
    #[command(flatten)]
    pub bounds: Bounds,
}

/// `rollback`.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// Which VM.
    pub vm: VmName,
    /// What it may do.
    #[command(flatten)]
    pub bounds: Bounds,
}

/// `abort`, `report`.
#[derive(Args, Debug)]
pub struct VmArgs {
    /// Which VM.
    pub vm: VmName,
}

/// `recover`.
#[derive(Args, Debug)]
pub struct RecoverArgs {
    /// Wait for the moves of this VM only.
    pub vm: Option<VmName>,
}

pub(super) async fn migrate(context: &Context, args: MigrateArgs) -> Result<(), Failure> {
    let MigrateArgs { vm, to, plan, no_wait, bounds } = args;
    let request = Migrate { to: to.clone(), options: bounds.options() };
    let trying = || format!("cannot move {vm} to {to}");
    if plan {
        let plan = context.client.migrate_plan(&vm, &request).await.trying(trying)?;
        return show_plan(context, &vm, &to, &plan);
    }
    let begun = context.client.migrate(&vm, &request).await.trying(trying)?;
    if no_wait {
        return output::object(&begun);
    }
    follow(context, begun.id).await
}

fn show_plan(context: &Context, vm: &VmName, to: &str, plan: &MovePlan) -> Result<(), Failure> {
    if context.for_people() {
        let rows = plan.checks.iter().map(|check| {
            let mark = if check.ok { "✓" } else { "✗" };
            vec![
                mark.to_owned(),
                check.what.clone(),
                check.found.clone(),
                check.fix.clone().unwrap_or_default(),
            ]
        });
        output::table(&["", "CHECK", "FOUND", "FIX"], &[], rows.collect())?;
        let disk = if plan.replicas { "what its replica there lacks of" } else { "what is used of" };
        let mut pairs =
            vec![("ship", format!("{disk} {}, memory {}", bytes(plan.disk_bytes), bytes(plan.memory_bytes)))];
        if let Some(last) = &plan.last {
            let ms = |ms: Option<f64>| ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:.0} ms"));
            pairs.push((
                "last time",
                format!("{} in all, silence {}", ms(last.total_ms), ms(last.silence_ms)),
            ));
        }
        output::pairs(&pairs)?;
        output::line("Nothing was changed. Run it without --plan to do it.")?;
    } else {
        output::object(plan)?;
    }
    match plan.checks.iter().find(|check| !check.ok) {
        None => Ok(()),
        Some(check) => {
            let next = check.fix.clone().unwrap_or_default();
            let why = format!("{}: {}", check.what, check.found);
            Err(Failure::new(exit_code::REFUSED, format!("{vm} cannot go to {to}"), why, next))
        }
    }
}

/// Shows how a move goes, until it has ended. It goes on when we do not.
pub(super) async fn follow(context: &Context, id: MoveId) -> Result<(), Failure> {
    let bar = (context.for_people() && std::io::stderr().is_terminal()).then(ProgressBar::new_spinner);
    if let Some(bar) = &bar {
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("a constant template"));
    }
    let mut shown = None;
    loop {
        let record = context.client.a_move(id).await.trying(|| format!("cannot follow the move {id}"))?;
        let line = progress(&record);
        if let Some(bar) = &bar {
            bar.set_message(line.clone());
            bar.tick();
        }
        if context.format == super::args::Format::Jsonl && shown.as_ref() != Some(&record) {
            output::object(&record)?;
        } else if bar.is_none()
            && context.for_people()
            && shown.as_ref().map(|old: &MoveRecord| old.phase) != Some(record.phase)
        {
            output::line(&line)?;
        }
        if record.has_ended() {
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            return ended(context, &record);
        }
        shown = Some(record);
        sleep(LOOK).await;
    }
}

/// For people: three digits that matter.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (count as f64, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// One line.
pub(super) fn progress(record: &MoveRecord) -> String {
    let numbers = &record.numbers;
    let arrow = if record.side == Side::Source { "→" } else { "←" };
    let rounds = numbers.rounds.len();
    let disk: u64 = numbers.rounds.iter().map(|round| round.bytes_changed).sum();
    let mut line = format!("{}  {arrow} {}  {}", record.vm, record.host, record.phase.name());
    if rounds > 0 {
        let mirrored = if numbers.mirror.is_some() { ", mirrored" } else { "" };
        line += &format!("  disk {} in {rounds} rounds{mirrored}", bytes(disk));
    }
    if numbers.memory_total > 0 {
        line += &format!("  memory {} of {}", bytes(numbers.memory_bytes), bytes(numbers.memory_total));
    }
    if let Some(forecast) = numbers.forecast {
        line += &format!("  silence ~{:.0} ms", forecast.silence_ms);
    }
    line
}

fn ended(context: &Context, record: &MoveRecord) -> Result<(), Failure> {
    if !record.has_moved() {
        if !context.for_people() {
            output::object(record)?;
        }
        return Err(failure(record));
    }
    if !context.for_people() {
        return if context.format == super::args::Format::Json { output::object(record) } else { Ok(()) };
    }
    if record.side == Side::Destination {
        let (vm, host) = (&record.vm, &record.host);
        return output::line(format!(
            "{vm} has come from {host} and runs here. report: vmctl report {vm}    (on {host})"
        ));
    }
    let numbers = &record.numbers;
    let rounds: u64 = numbers.rounds.iter().chain(&numbers.last_round).map(|round| round.bytes_sent).sum();
    let disk = rounds + numbers.mirror.map_or(0, |mirror| mirror.bytes_sent);
    let silence = numbers.silence_ms.map_or_else(|| "unknown".to_owned(), |ms| format!("{ms:.0} ms"));
    let forecast =
        numbers.forecast.map_or_else(String::new, |told| format!(" (forecast {:.0})", told.silence_ms));
    let epoch = match &record.source_end {
        Some(SourceOutcome::Moved(commit)) => format!(" · epoch {}→{}", commit.epoch.0, commit.epoch.0 + 1),
        _ => String::new(),
    };
    output::line(format!(
        "moved. silence {silence}{forecast} · {} of disk and {} of memory sent{epoch}",
        bytes(disk),
        bytes(numbers.memory_bytes)
    ))?;
    output::line(format!("report: vmctl report {0}    undo: vmctl rollback {0}", record.vm))
}

fn failure(record: &MoveRecord) -> Failure {
    let (vm, host) = (&record.vm, &record.host);
    let what = format!("{vm} was not moved to {host}");
    if let Some(error) = &record.failure {
        return failure::of_error(what, error);
    }
    let next = record.notes.iter().rev().find_map(|note| note.strip_prefix("next: ").map(str::to_owned));
    let next = next.unwrap_or_else(|| format!("vmctl report {vm}    (tells how far it got)"));
    let why = match &record.source_end {
        Some(SourceOutcome::Aborted { reason, guest: SourceQemu::Running }) => {
            format!("{}; it runs on here", reason_text(reason))
        }
        Some(SourceOutcome::Aborted { reason, guest }) => {
            format!("{}; its guest is {guest:?} here: vmctl vm start {vm}", reason_text(reason))
        }
        _ => "it was undone".to_owned(),
    };
    Failure::new(exit_code::FAILED, what, why, next)
}

pub(super) async fn abort(context: &Context, args: VmArgs) -> Result<(), Failure> {
    let begun =
        context.client.abort(&args.vm).await.trying(|| format!("cannot give up the move of {}", args.vm))?;
    loop {
        let record = context.client.a_move(begun.id).await.trying(|| "cannot follow the move".to_owned())?;
        if !record.has_ended() {
            sleep(LOOK).await;
            continue;
        }
        if record.has_moved() {
            let why = "the commit record was there already";
            let what = format!("{} has moved to {}", record.vm, record.host);
            return Err(Failure::new(exit_code::REFUSED, what, why, format!("vmctl rollback {}", record.vm)));
        }
        return if context.for_people() {
            output::line(format!("given up: {} stays here", record.vm))
        } else {
            output::object(&record)
        };
    }
}

pub(super) async fn rollback(context: &Context, args: RollbackArgs) -> Result<(), Failure> {
    let request = Rollback { options: args.bounds.options() };
    let begun = context.client.rollback(&args.vm, &request).await;
    let begun = begun.trying(|| format!("cannot bring {} back", args.vm))?;
    // The other host does it: its end is seen here when the VM is.
    let is_here = |record: &MoveRecord| record.id == begun.id;
    for _ in 0..240 {
        let moves =
            context.client.moves(Some(&args.vm)).await.trying(|| "cannot follow the move".to_owned())?;
        if moves.iter().any(is_here) {
            return follow(context, begun.id).await;
        }
        sleep(LOOK).await;
    }
    let on = begun.on.unwrap_or_default();
    let what = format!("{} does not come back", args.vm);
    let why = format!("{on} has begun the move {} and it has not arrived here within a minute", begun.id);
    Err(Failure::new(exit_code::FAILED, what, why, format!("vmctl report {}    (on {on})", args.vm)))
}

pub(super) async fn recover(context: &Context, args: RecoverArgs) -> Result<(), Failure> {
    let mut waited = Duration::ZERO;
    loop {
        let found = context.client.recover().await.trying(|| "cannot recover".to_owned())?;
        let wanted = |record: &&MoveRecord| args.vm.as_ref().is_none_or(|vm| record.vm == *vm);
        let open: Vec<&MoveRecord> = found.moves.iter().filter(wanted).collect();
        for id in &found.given_up {
            output::line(format!("given up: the move {id}, which blockd knew and nobody else"))?;
        }
        if open.is_empty() {
            return if context.for_people() {
                output::line("nothing is left to finish or undo")
            } else {
                output::object(&found)
            };
        }
        if waited >= RECOVER_TIME_MAX {
            let one = open[0];
            let what = format!("the move of {} is not finished yet", one.vm);
            let why = format!(
                "{}: {}",
                one.phase.name(),
                one.notes.last().map_or("the other host does not answer", String::as_str)
            );
            let next =
                format!("systemctl status vmctl blockd    (here and on {}; it goes on by itself)", one.host);
            return Err(Failure::new(exit_code::PARTIAL, what, why, next));
        }
        sleep(LOOK * 4).await;
        waited += LOOK * 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_a_unit_and_few_digits() {
        let shown = [0, 999, 1000, 85_478_072, 1 << 30].map(bytes);
        assert_eq!(shown, ["0 B", "999 B", "1.0 KiB", "81.5 MiB", "1.0 GiB"]);
    }

    #[test]
    fn no_time_at_all_is_no_bound() {
        assert_eq!(some_milliseconds("100ms"), Ok(100));
        assert!(some_milliseconds("0ms").is_err());
    }
}
