//! `blockctl snapshot …` and `clone`.

use serde::Serialize;

use crate::api::types::{DiffQuery, End, Line};
use crate::control::SnapshotInfo;
use crate::exit_code;
use crate::failure::Failure;
use crate::service::{DiffExtent, ExtentKind, RepairReport, Verdict, VerifyReport};
use crate::size::Size;

use super::args::{CloneArgs, Format, SnapshotCommand, Sure};
use super::context::{Context, Trying};
use super::progress::Progress;
use super::scrub::tell_repair;
use super::volume::{Changed, Plan, in_use};
use super::{output, time};

/// Extents that a JSON object (not lines) may hold: beyond, only lines make sense.
const DIFF_EXTENTS_MAX: usize = 1_000_000;

pub(super) async fn run(context: &Context, command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create { names } => create(context, &names).await,
        SnapshotCommand::List { volume } => list(context, volume.as_deref()).await,
        SnapshotCommand::Diff { names } => interruptible(diff(context, names)).await,
        SnapshotCommand::Rollback { name, sure } => rollback(context, &name, sure).await,
        SnapshotCommand::Delete { name, plan } => delete(context, &name, plan).await,
        SnapshotCommand::Prune(args) => super::keep::prune(context, &args).await,
        SnapshotCommand::Hold(args) => {
            let what = || format!("cannot hold {}", args.name);
            context.client.hold(&args.name, &args.reason).await.trying(what)?;
            let sentence = format!("{} is held: {}", args.name, args.reason);
            Changed::new("held", &args.name).tell(context, &sentence)
        }
        SnapshotCommand::Release(args) => {
            let what = || format!("cannot release {}", args.name);
            context.client.release(&args.name, &args.reason).await.trying(what)?;
            let sentence = format!("{} is not held for {} any more", args.name, args.reason);
            Changed::new("released", &args.name).tell(context, &sentence)
        }
        SnapshotCommand::Hash { name } => interruptible(hash(context, &name)).await,
        SnapshotCommand::Verify { name } => interruptible(verify(context, &name)).await,
    }
}

async fn create(context: &Context, names: &[String]) -> Result<(), Failure> {
    let all = names.join(" ");
    context.client.create_snapshots(names).await.trying(|| format!("cannot create {all}"))?;
    let cut = if names.len() > 1 { ", one instant" } else { "" };
    Changed::new("created", &all).tell(context, &format!("created {all}{cut}"))
}

async fn list(context: &Context, volume: Option<&str>) -> Result<(), Failure> {
    let snapshots = context.client.snapshots(volume).await.trying(|| "cannot list snapshots".to_owned())?;
    if !context.for_people() {
        return output::list(context.format, "snapshots", &snapshots);
    }
    if snapshots.is_empty() {
        return output::line("no snapshots; make one: blockctl snapshot create NAME@SNAP");
    }
    let rows = snapshots.iter().map(row).collect();
    output::table(&["NAME", "CREATED (UTC)", "SIZE", "CLIENTS", "HOLDS", "CLONES"], &[2, 3], rows)
}

fn row(snapshot: &SnapshotInfo) -> Vec<String> {
    let list = |items: &[String]| if items.is_empty() { "–".to_owned() } else { items.join(",") };
    vec![
        format!("{}@{}", snapshot.volume, snapshot.name),
        time::utc(snapshot.created_ms),
        Size(snapshot.size).to_string(),
        snapshot.clients.to_string(),
        list(&snapshot.holds),
        list(&snapshot.clones),
    ]
}

/// What `snapshot diff -o json` prints.
#[derive(Serialize)]
struct Diff<'a> {
    from: Option<&'a str>,
    to: &'a str,
    extents: Vec<DiffExtent>,
    bytes: u64,
}

async fn diff(context: &Context, mut names: Vec<String>) -> Result<(), Failure> {
    let to = names.pop().unwrap_or_default();
    let query = DiffQuery { from: names.pop(), to };
    let what = || format!("cannot compare {}", query.to);
    let (mut extents, mut written, mut too_many) = (Vec::new(), Ok(()), false);
    let end = context.client.diff(&query, |line| {
        let Line::Extent(extent) = line else { return };
        match context.format {
            Format::Json if extents.len() == DIFF_EXTENTS_MAX => too_many = true,
            Format::Json => extents.push(extent),
            Format::Jsonl if written.is_ok() => written = output::object(&extent),
            Format::Table if written.is_ok() => written = output::line(extent_line(extent)),
            Format::Jsonl | Format::Table => {}
        }
    });
    let end = end.await.trying(what)?;
    written?;
    if too_many {
        let why = format!("there are more than {DIFF_EXTENTS_MAX} extents");
        return Err(Failure::new(exit_code::FAILED, what(), why, "blockctl snapshot diff … -o jsonl"));
    }
    let (count, bytes) = (end.count.unwrap_or(0), end.bytes.unwrap_or(0));
    match context.format {
        Format::Json => output::object(&Diff { from: query.from.as_deref(), to: &query.to, extents, bytes }),
        Format::Jsonl => Ok(()),
        Format::Table => {
            super::progress::note(&format!("{} differ in {}", Size(bytes), output::count(count, "extent")))
        }
    }
}

fn extent_line(extent: DiffExtent) -> String {
    let kind = match extent.kind {
        ExtentKind::Data => "data",
        ExtentKind::Zero => "zero",
    };
    format!("{:>16} {:>12} {kind}", extent.offset, extent.length)
}

async fn rollback(context: &Context, name: &str, sure: Sure) -> Result<(), Failure> {
    let what = || format!("cannot roll back to {name}");
    let snapshot = context.client.snapshot(name).await.trying(what)?;
    let volume = context.client.volume(&snapshot.volume).await.trying(what)?;
    let loss =
        format!("what was written to {} since {} will be lost", volume.name, time::utc(snapshot.created_ms));
    if sure.plan {
        let would = format!("would make {} what {name} holds: {loss}", volume.name);
        let (obstacles, blocked_code) = (in_use(&volume), exit_code::BUSY);
        return Plan { action: "rolled_back", name, would, obstacles, blocked_code }.tell(context);
    }
    context.confirm(sure, "snapshot rollback", &loss, name)?;
    context.client.rollback(name).await.trying(what)?;
    Changed::new("rolled_back", name).tell(context, &format!("{} is what {name} holds", volume.name))
}

async fn delete(context: &Context, name: &str, plan: bool) -> Result<(), Failure> {
    let what = || format!("cannot delete {name}");
    if plan {
        let snapshot = context.client.snapshot(name).await.trying(what)?;
        return plan_delete(context, name, &snapshot);
    }
    context.client.delete_snapshot(name).await.trying(what)?;
    Changed::new("deleted", name)
        .tell(context, &format!("deleted {name}; its space is freed in the background"))
}

fn plan_delete(context: &Context, name: &str, snapshot: &SnapshotInfo) -> Result<(), Failure> {
    let mut obstacles = Vec::new();
    let blocked_code = if snapshot.clients > 0 { exit_code::BUSY } else { exit_code::REFUSED };
    if snapshot.clients > 0 {
        obstacles.push(format!("{} connected to its export", output::count(snapshot.clients, "client")));
    }
    if !snapshot.holds.is_empty() {
        obstacles.push(format!("it is held: {}", snapshot.holds.join(", ")));
    }
    let would = format!("would delete {name}, made {}", time::utc(snapshot.created_ms));
    Plan { action: "deleted", name, would, obstacles, blocked_code }.tell(context)
}

pub(super) async fn clone(context: &Context, args: CloneArgs) -> Result<(), Failure> {
    let CloneArgs { from, to } = args;
    context.client.clone_snapshot(&from, &to).await.trying(|| format!("cannot clone {from}"))?;
    Changed::new("cloned", &to).tell(context, &format!("created {to}, which begins as {from}"))
}

/// Shows the progress lines of a long-running answer.
pub(super) struct Reader<'a> {
    progress: Progress,
    verb: &'a str,
    name: String,
    written: Result<(), Failure>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(context: &Context, verb: &'a str) -> Self {
        Self { progress: Progress::new(context.format), verb, name: String::new(), written: Ok(()) }
    }

    pub(super) fn line(&mut self, line: &Line) {
        let Line::Progress(progress) = line else { return };
        if self.written.is_ok() {
            self.written = self.show(&progress.name, progress.done, progress.total);
        }
    }

    /// Takes what was drawn off the terminal.
    ///
    /// # Errors
    /// The progress could not be written.
    pub(super) fn end(self) -> Result<(), Failure> {
        self.written
    }

    fn show(&mut self, name: &str, done: u64, total: u64) -> Result<(), Failure> {
        if self.name != name {
            name.clone_into(&mut self.name);
            self.progress.phase(format!("{} {name}", self.verb), total)?;
        }
        self.progress.done(done)
    }
}

/// What `snapshot hash` prints for scripts.
#[derive(Serialize)]
struct Hashed<'a> {
    name: &'a str,
    hash: &'a str,
}

/// BLAKE3 of a snapshot's content, 64 hexadecimal digits.
pub(super) async fn hash_of(context: &Context, name: &str) -> Result<String, Failure> {
    let mut reader = Reader::new(context, "hashing");
    let end = context.client.hash(name, |line| reader.line(&line)).await;
    let end = end.trying(|| format!("cannot hash {name}"))?;
    reader.end()?;
    end.hash.ok_or_else(|| no_result(format!("cannot hash {name}")))
}

async fn hash(context: &Context, name: &str) -> Result<(), Failure> {
    let hash = hash_of(context, name).await?;
    if context.for_people() {
        return output::line(format!("{hash}  {name}"));
    }
    output::object(&Hashed { name, hash: &hash })
}

/// What `snapshot verify`, `replica verify` and `scrub` print for scripts, a snapshot.
#[derive(Serialize)]
pub(super) struct Verified<'a> {
    pub(super) name: &'a str,
    pub(super) ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verdict: Option<Verdict>,
    #[serde(flatten)]
    pub(super) report: Option<&'a VerifyReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) repair: Option<&'a RepairReport>,
}

async fn verify(context: &Context, name: &str) -> Result<(), Failure> {
    let mut reader = Reader::new(context, "verifying");
    let end = context.client.verify(name, |line| reader.line(&line)).await;
    let end = end.trying(|| format!("cannot verify {name}"))?;
    reader.end()?;
    // No report is not a good report.
    let report = end.report.ok_or_else(|| no_result(format!("cannot verify {name}")))?;
    tell_verdict(context, name, &report)
}

/// What was found in a snapshot; damage is a failure.
fn tell_verdict(context: &Context, name: &str, report: &VerifyReport) -> Result<(), Failure> {
    if context.for_people() {
        tell_report(name, report, None)?;
    } else {
        let ok = report.damaged.is_empty();
        let (hash, verdict, repair) = (None, None, None);
        output::object(&Verified { name, ok, error: None, hash, verdict, report: Some(report), repair })?;
    }
    if report.damaged.is_empty() { Ok(()) } else { Err(damaged(name, 1)) }
}

/// What was found in a replica's newest snapshot, and what came of its repair. The verdict is the exit code.
pub(super) fn tell_end(
    context: &Context,
    name: &str,
    report: &VerifyReport,
    end: &End,
) -> Result<(), Failure> {
    let (hash, verdict) = (end.hash.as_deref(), end.verdict.unwrap_or(Verdict::Unknown));
    if context.for_people() {
        tell_report(name, report, hash)?;
        end.repair.as_ref().map_or(Ok(()), tell_repair)?;
    } else {
        let (ok, verdict) = (verdict == Verdict::Sound, Some(verdict));
        let (report, repair) = (Some(report), end.repair.as_ref());
        output::object(&Verified { name, ok, error: None, hash, verdict, report, repair })?;
    }
    match verdict {
        Verdict::Sound => Ok(()),
        Verdict::Damaged if report.damaged.is_empty() => {
            let what = format!("{name} is not what was published");
            let why = "the root of what was read is not the recorded one, though each recorded hash is right";
            Err(Failure::new(exit_code::VERIFICATION_FAILED, what, why, "blockd fsck DIR; then sync it anew"))
        }
        Verdict::Damaged => {
            let next = "blockctl replica verify NAME --repair; dmesg | tail; smartctl -a DEVICE";
            Err(Failure { code: exit_code::VERIFICATION_FAILED, next: next.to_owned(), ..damaged(name, 1) })
        }
        Verdict::Unknown => {
            let why = "no root is recorded of it: compare the one above with snapshot hash, at the source";
            let next = format!("blockctl snapshot hash {name}    (there)");
            Err(Failure::new(exit_code::PARTIAL, format!("{name} was read, and not compared"), why, next))
        }
    }
}

/// The daemon said that it is done, and not what came of it.
pub(super) fn no_result(what: String) -> Failure {
    Failure::new(
        exit_code::FAILED,
        what,
        "the answer has no result",
        "blockctl --version; blockd --version    (do they fit?)",
    )
}

pub(super) fn damaged(what: &str, snapshots: u64) -> Failure {
    Failure::new(
        exit_code::VERIFICATION_FAILED,
        format!("{what} is not what was written"),
        format!("{} failed: the medium changed or lost data", output::count(snapshots, "snapshot")),
        "blockctl scrub --repair; dmesg | tail; smartctl -a DEVICE",
    )
}

/// For people.
pub(super) fn tell_report(name: &str, report: &VerifyReport, hash: Option<&str>) -> Result<(), Failure> {
    let unhashed = match report.unhashed_bytes {
        0 => String::new(),
        bytes => format!(", {} without a hash yet", Size(bytes)),
    };
    let verdict = if report.damaged.is_empty() { "ok" } else { "DAMAGED" };
    output::line(format!("{name}  {verdict}  {} checked{unhashed}", Size(report.checked_bytes)))?;
    hash.map_or(Ok(()), |hash| output::line(format!("  root {hash}")))?;
    let damaged = report.damaged.iter();
    damaged
        .map(|extent| format!("  damaged: {} bytes at {}", extent.length, extent.offset))
        .try_for_each(output::line)
}

/// Ends something long at Ctrl-C, with its progress taken off the terminal.
pub(super) async fn interruptible(long: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    until_ctrl_c(long, "Ctrl-C; the daemon stops its work, nothing was changed").await
}

/// The same of what may have repaired something.
pub(super) async fn repairing(long: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    until_ctrl_c(long, "Ctrl-C; the daemon stops its work, what was repaired stays so").await
}

async fn until_ctrl_c(long: impl Future<Output = Result<(), Failure>>, why: &str) -> Result<(), Failure> {
    tokio::select! {
        result = long => result,
        _ = tokio::signal::ctrl_c() => {
            Err(Failure::new(exit_code::FAILED, "interrupted", why, "the same command begins anew"))
        }
    }
}
