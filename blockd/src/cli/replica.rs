//! `blockctl replica …`: copies of other hosts' volumes, and how one takes over.

use clap::{Args, Subcommand};

use crate::api::client::ClientError;
use crate::api::replicas::{FollowedHost, Receiving, ReplicaInfo, VerifyQuery};
use crate::api::types::Kind;
use crate::catalog::format::Role;
use crate::exit_code;
use crate::failure::{self, Failure};
use crate::size::Size;

use super::args::{Sure, volume_name};
use super::context::{Context, Trying};
use super::scrub::RepairArgs;
use super::snapshot::{Reader, interruptible, no_result, repairing, tell_end};
use super::volume::{Changed, in_use, role};
use super::{output, standing, time};

/// Copies of other hosts' volumes.
#[derive(Subcommand, Debug)]
pub enum ReplicaCommand {
    /// All replicas, how old what they show is, and what is on its way; and volumes that were promoted.
    #[command(
        visible_alias = "ls",
        after_help = "Example:\n  blockctl replica list\n  blockctl replica list -o jsonl"
    )]
    List,
    /// One replica, how to open it, and how to try it out.
    #[command(after_help = "Example:\n  blockctl replica show web")]
    Show {
        /// The volume's name here.
        #[arg(value_parser = volume_name)]
        name: String,
    },
    /// Let clients write to a replica, in a new epoch: it takes the place of the volume that it followed.
    #[command(
        after_help = "Examples:\n  blockctl replica promote web --plan\n  blockctl replica promote web --yes\n\nMake sure first that nobody writes to the old one any more. Then let that one follow, on its host:\n  blockctl replica demote web --to-follow HOST"
    )]
    Promote {
        /// The volume's name here.
        #[arg(value_parser = volume_name)]
        name: String,
        /// How sure you are.
        #[command(flatten)]
        sure: Sure,
    },
    /// Let a volume follow another host's; refused while clients are connected.
    #[command(
        after_help = "Examples:\n  blockctl replica demote web --to-follow B --plan\n  blockctl replica demote web --to-follow B --yes"
    )]
    Demote(DemoteArgs),
    /// Read all of the newest snapshot, make its root of what was read, and compare it with the recorded one.
    #[command(
        after_help = "Examples:\n  blockctl replica verify web\n  blockctl replica verify web --repair\n\nExit codes: 0 sound, or sound again; 8 damaged; 6 nothing wrong, but no root is recorded to compare with."
    )]
    Verify {
        /// The volume's name here.
        #[arg(value_parser = volume_name)]
        name: String,
        /// What is damaged.
        #[command(flatten)]
        repair: RepairArgs,
    },
}

/// `replica demote`.
#[derive(Args, Debug)]
pub struct DemoteArgs {
    /// The volume's name here.
    #[arg(value_parser = volume_name)]
    pub name: String,
    /// The paired host that has been promoted.
    #[arg(long, value_name = "HOST", value_parser = volume_name)]
    pub to_follow: String,
    /// How sure you are.
    #[command(flatten)]
    pub sure: Sure,
}

pub(super) async fn run(context: &Context, command: ReplicaCommand) -> Result<(), Failure> {
    match command {
        ReplicaCommand::List => list(context).await,
        ReplicaCommand::Show { name } => show(context, &name).await,
        ReplicaCommand::Promote { name, sure } => promote(context, &name, sure).await,
        ReplicaCommand::Demote(args) => demote(context, &args).await,
        ReplicaCommand::Verify { name, repair } if repair.repair.is_some() => {
            repairing(verify(context, &name, repair)).await
        }
        ReplicaCommand::Verify { name, repair } => interruptible(verify(context, &name, repair)).await,
    }
}

fn dash() -> String {
    "–".to_owned()
}

/// What a host is called, or else what it is for good.
fn host(host: &FollowedHost) -> &str {
    host.name.as_deref().unwrap_or(&host.id)
}

async fn list(context: &Context) -> Result<(), Failure> {
    let replicas = context.client.replicas().await.trying(|| "cannot list replicas".to_owned())?;
    if !context.for_people() {
        return output::list(context.format, "replicas", &replicas);
    }
    if replicas.is_empty() {
        return output::line("no replicas; they come from other hosts: blockctl sync --help, there");
    }
    let head = ["NAME", "ROLE", "EPOCH", "FOLLOWS", "NEWEST", "TAKEN (UTC)", "LAG", "SNAPSHOTS", "RECEIVING"];
    output::table(&head, &[2, 6, 7], replicas.iter().map(row).collect())
}

fn row(replica: &ReplicaInfo) -> Vec<String> {
    let newest = replica.newest.as_ref();
    vec![
        replica.name.clone(),
        role(replica.role).to_owned(),
        replica.epoch.to_string(),
        replica.peer.as_ref().map_or_else(dash, |peer| host(peer).to_owned()),
        newest.map_or_else(dash, |newest| newest.name.clone()),
        newest.map_or_else(dash, |newest| time::utc(newest.created_ms)),
        newest.map_or_else(dash, |newest| time::span(newest.lag_ms)),
        replica.snapshots.to_string(),
        replica.receiving.as_ref().map_or_else(dash, |receiving| format!("{} %", percent(receiving))),
    ]
}

/// `2 replicas, 1 receiving; oldest web, 12s`; nothing if there are none.
pub(super) fn summary(replicas: &[ReplicaInfo]) -> Option<String> {
    let following: Vec<_> = replicas.iter().filter(|replica| replica.role == Role::Replica).collect();
    if following.is_empty() {
        return None;
    }
    let count = |of: &dyn Fn(&ReplicaInfo) -> bool| following.iter().filter(|replica| of(replica)).count();
    let mut text = following.len().to_string();
    for (count, word) in [
        (count(&|replica| replica.receiving.is_some()), "receiving"),
        (count(&|replica| replica.newest.is_none()), "without a complete snapshot"),
    ] {
        if count > 0 {
            text += &format!(", {count} {word}");
        }
    }
    let ages = following.iter().filter_map(|replica| Some((replica.newest.as_ref()?.lag_ms, &replica.name)));
    if let Some((lag_ms, name)) = ages.max() {
        text += &format!("; oldest {name}, {}", time::span(lag_ms));
    }
    Some(text)
}

/// Never 100 before all has come.
fn percent(receiving: &Receiving) -> u64 {
    receiving.cursor.saturating_mul(100) / receiving.total.max(1)
}

fn progress(receiving: &Receiving) -> String {
    let Receiving { snapshot, cursor, total, bytes, staged } = receiving;
    if *staged {
        return format!("{snapshot}: all of it has come and is being compared");
    }
    format!("{snapshot}: {cursor} of {total} clusters, {} ({} %)", Size(*bytes), percent(receiving))
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let what = || format!("cannot show replica {name}");
    let replica = context.client.replica(name).await.trying(what)?;
    if !context.for_people() {
        return output::object(&replica);
    }
    let uri = match context.client.export(name).await {
        Ok(export) => export.uri,
        // A replica without a complete snapshot has none.
        Err(ClientError::Refused(error)) if error.kind == Kind::NotFound => None,
        Err(error) => return Err(failure::of_client(what(), &error)),
    };
    let mut pairs = vec![
        ("name", replica.name.clone()),
        ("role", standing_of(&replica)),
        ("epoch", replica.epoch.to_string()),
        ("lineage", replica.lineage.clone()),
        ("size", format!("{}  ({} bytes)", Size(replica.size), replica.size)),
    ];
    if replica.role == Role::Replica {
        pairs.push(("newest", newest(&replica)));
        pairs.push(("receiving", replica.receiving.as_ref().map_or_else(dash, progress)));
    }
    pairs.push(("snapshots", replica.snapshots.to_string()));
    if let Some(newest) = &replica.newest {
        pairs.push(("read", uri.unwrap_or_else(dash)));
        pairs.push((
            "",
            format!("read-only; {name} is the newest at the time of opening, {} stays", newest.name),
        ));
        pairs.push(("try out", format!("blockctl clone {} {name}-test", newest.name)));
    }
    output::pairs(&pairs)
}

fn standing_of(replica: &ReplicaInfo) -> String {
    match (&replica.peer, replica.role) {
        (_, Role::Primary) => "primary: written to by clients of this host".to_owned(),
        (None, Role::Replica) => "replica".to_owned(),
        (Some(peer), Role::Replica) => format!("replica: follows {}", host(peer)),
    }
}

fn newest(replica: &ReplicaInfo) -> String {
    let Some(newest) = &replica.newest else { return "–  (no complete snapshot has come yet)".to_owned() };
    let (taken, lag) = (time::utc(newest.created_ms), time::span(newest.lag_ms));
    format!("{}  taken {taken}, {lag} ago", newest.name)
}

/// What is about to happen, a line each; the first one says all that must be known.
struct Steps {
    lines: Vec<String>,
    /// Why it would be refused.
    obstacle: Option<(u8, String)>,
}

impl Steps {
    /// With `--plan`: tells them, and ends as the command itself would.
    fn plan(self, context: &Context, action: &'static str, name: &str) -> Result<(), Failure> {
        let Self { lines, obstacle } = self;
        if context.for_people() {
            self::tell(&lines)?;
            if let Some((_, obstacle)) = &obstacle {
                output::line(format!("  ✗ {obstacle}"))?;
            }
            output::line("Nothing was changed. Run without --plan to do it.")?;
        } else {
            let notes = lines.into_iter().chain(obstacle.clone().map(|(_, text)| text)).collect();
            output::object(&Changed { action, name, done: false, notes })?;
        }
        let Some((code, why)) = obstacle else { return Ok(()) };
        let next =
            format!("blockctl replica show {name}; blockctl export list    (shows what stands in the way)");
        Err(Failure::new(code, "it would be refused", why, next))
    }

    /// Tells people before they are asked; the line to ask with.
    fn announce(self, context: &Context) -> Result<(String, Vec<String>), Failure> {
        if context.for_people() {
            self::tell(&self.lines)?;
        }
        let first = self.lines.first().cloned().unwrap_or_default();
        Ok((first, self.lines))
    }
}

fn tell(lines: &[String]) -> Result<(), Failure> {
    let mut lines = lines.iter();
    lines.next().map_or(Ok(()), output::line)?;
    lines.map(|line| format!("  {line}")).try_for_each(output::line)
}

async fn promote(context: &Context, name: &str, sure: Sure) -> Result<(), Failure> {
    let what = || format!("cannot promote {name}");
    let replica = context.client.replica(name).await.trying(what)?;
    let own_name = own_name(context).await.trying(what)?;
    let mut steps = promotion(&replica, &own_name);
    if sure.plan {
        return steps.plan(context, "promoted", name);
    }
    if let Some((code, why)) = steps.obstacle.take() {
        return Err(Failure::new(code, what(), why, format!("blockctl replica show {name}")));
    }
    let (loss, notes) = steps.announce(context)?;
    context.confirm(sure, "replica promote", &loss, name)?;
    context.client.promote(name).await.trying(what)?;
    let sentence =
        format!("promoted {name}: clients of this host write to it, in epoch {}", replica.epoch + 1);
    Changed { notes, ..Changed::new("promoted", name) }.tell(context, &sentence)
}

/// What this host calls itself.
async fn own_name(context: &Context) -> Result<String, ClientError> {
    let from = standing::jobs(&context.client).await?.map(|list| list.from);
    Ok(from.filter(|name| !name.is_empty()).unwrap_or_else(|| "THIS-HOST".to_owned()))
}

fn promotion(replica: &ReplicaInfo, own_name: &str) -> Steps {
    let (name, epoch) = (&replica.name, replica.epoch);
    if replica.role == Role::Primary {
        let obstacle = Some((exit_code::REFUSED, format!("{name} is no replica")));
        return Steps { lines: vec![format!("would leave {name} as it is")], obstacle };
    }
    let content = match &replica.newest {
        _ if replica.diverged => Ok("what it was when it was demoted".to_owned()),
        Some(newest) => {
            let (taken, lag) = (time::utc(newest.created_ms), time::span(newest.lag_ms));
            Ok(format!("what {} holds, taken {taken}, {lag} ago", newest.name))
        }
        None => Err((exit_code::REFUSED, format!("no complete snapshot of {name} has come yet"))),
    };
    let shown = content.as_deref().unwrap_or("nothing");
    let mut lines = vec![format!("{name} becomes writable here, epoch {epoch} → {}: {shown}", epoch + 1)];
    if let Some(receiving) = &replica.receiving {
        lines.push(format!("thrown away: what has come of {}", progress(receiving)));
    }
    let peer = replica.peer.as_ref().map_or("the other host", host);
    lines.push(format!("what {peer} has of it and is not in that is not here"));
    lines.push(format!(
        "the old one must follow, on {peer}: blockctl replica demote {name} --to-follow {own_name}"
    ));
    Steps { lines, obstacle: content.err() }
}

async fn demote(context: &Context, args: &DemoteArgs) -> Result<(), Failure> {
    let DemoteArgs { name, to_follow, sure } = args;
    let what = || format!("cannot demote {name}");
    let replica = context.client.replica(name).await.trying(what)?;
    let volume = context.client.volume(name).await.trying(what)?;
    let followed = context.client.host(to_follow).await.trying(what)?;
    let obstacle = if replica.role == Role::Replica {
        Some((exit_code::REFUSED, format!("{name} is a replica already")))
    } else if let Some(client) = in_use(&volume).pop() {
        Some((exit_code::BUSY, client))
    } else {
        let distrusted = || (exit_code::REFUSED, format!("host {to_follow} is not trusted"));
        (!followed.trusted).then(distrusted)
    };
    let steps = Steps { lines: demotion(&replica, to_follow), obstacle };
    if sure.plan {
        return steps.plan(context, "demoted", name);
    }
    let (loss, notes) = steps.announce(context)?;
    context.confirm(*sure, &format!("replica demote --to-follow {to_follow}"), &loss, name)?;
    context.client.demote(name, to_follow).await.trying(what)?;
    let sentence = format!("demoted {name}: it follows {to_follow}");
    Changed { notes, ..Changed::new("demoted", name) }.tell(context, &sentence)
}

fn demotion(replica: &ReplicaInfo, to_follow: &str) -> Vec<String> {
    let (name, epoch) = (&replica.name, replica.epoch);
    vec![
        format!("{name} takes no writes any more and follows {to_follow}, of an epoch after {epoch}"),
        format!(
            "with the first snapshot that comes, what only this host has becomes {name}-diverged-{epoch}"
        ),
        format!("until then blockctl replica promote {name} makes it what it is now"),
    ]
}

async fn verify(context: &Context, name: &str, RepairArgs { repair }: RepairArgs) -> Result<(), Failure> {
    let what = || format!("cannot verify replica {name}");
    let query = VerifyQuery { repair: repair.is_some(), from: repair.flatten() };
    let mut reader = Reader::new(context, "verifying");
    let end = context.client.verify_replica(name, &query, |line| reader.line(&line)).await;
    let end = end.trying(what)?;
    reader.end()?;
    // No report is not a good report.
    let report = end.report.as_ref().ok_or_else(|| no_result(what()))?;
    tell_end(context, end.name.as_deref().unwrap_or(name), report, &end)
}
