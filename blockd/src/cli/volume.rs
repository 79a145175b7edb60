//! `blockctl volume …`.

use serde::Serialize;

use crate::catalog::format::Role;
use crate::control::{Health, VolumeInfo};
use crate::exit_code;
use crate::failure::Failure;
use crate::size::Size;
use crate::units::SIZE_UNIT_BYTES;

use super::args::{Sure, VolumeCommand};
use super::context::{Context, Trying};
use super::{export_file, import, output, time};

/// The result of a command that changes something.
#[derive(Serialize)]
pub(super) struct Changed<'a> {
    /// What was done: `created`, `deleted` … or, with `--plan`, what would be.
    pub(super) action: &'static str,
    /// To what.
    pub(super) name: &'a str,
    /// `false` for a plan.
    pub(super) done: bool,
    /// What a plan says: the consequences, and what stands in the way.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
}

impl<'a> Changed<'a> {
    pub(super) fn new(action: &'static str, name: &'a str) -> Self {
        Self { action, name, done: true, notes: Vec::new() }
    }

    /// Tells it, in a sentence of its own for people.
    pub(super) fn tell(&self, context: &Context, sentence: &str) -> Result<(), Failure> {
        if context.for_people() { output::line(sentence) } else { output::object(self) }
    }
}

/// What `--plan` says: what would happen, and whether anything stands in the way.
pub(super) struct Plan<'a> {
    pub(super) action: &'static str,
    pub(super) name: &'a str,
    pub(super) would: String,
    pub(super) obstacles: Vec<String>,
    pub(super) blocked_code: u8,
}

impl Plan<'_> {
    /// Tells it. A plan that could not be carried out ends with the exit code that the command would end with.
    pub(super) fn tell(self, context: &Context) -> Result<(), Failure> {
        if context.for_people() {
            output::line(&self.would)?;
            for obstacle in &self.obstacles {
                output::line(format!("  ✗ {obstacle}"))?;
            }
            output::line("Nothing was changed. Run without --plan to do it.")?;
        } else {
            let notes = std::iter::once(self.would.clone()).chain(self.obstacles.iter().cloned()).collect();
            output::object(&Changed { action: self.action, name: self.name, done: false, notes })?;
        }
        if self.obstacles.is_empty() {
            return Ok(());
        }
        let next = "blockctl export list; blockctl snapshot list    (shows what stands in the way)";
        Err(Failure::new(self.blocked_code, "it would be refused", self.obstacles.join("; "), next))
    }
}

pub(super) async fn run(context: &Context, command: VolumeCommand) -> Result<(), Failure> {
    match command {
        VolumeCommand::Create { name, size } => create(context, &name, size).await,
        VolumeCommand::List => list(context).await,
        VolumeCommand::Show { name } => show(context, &name).await,
        VolumeCommand::Resize { name, size } => resize(context, &name, size).await,
        VolumeCommand::Rename { from, to, plan } => rename(context, &from, &to, plan).await,
        VolumeCommand::Delete { name, sure } => delete(context, &name, sure).await,
        VolumeCommand::Import(args) => import::run(context, &args).await,
        VolumeCommand::ExportFile(args) => export_file::run(context, &args).await,
    }
}

/// Rounds a size up to what volumes can have, and says so.
pub(super) fn volume_size(size: u64) -> Result<u64, Failure> {
    let rounded = size.next_multiple_of(SIZE_UNIT_BYTES);
    if rounded != size {
        super::progress::note(&format!(
            "note: rounded up from {size} to {rounded} bytes, a multiple of {SIZE_UNIT_BYTES}"
        ))?;
    }
    Ok(rounded)
}

async fn create(context: &Context, name: &str, size: Size) -> Result<(), Failure> {
    let size = volume_size(size.0)?;
    context.client.create_volume(name, size).await.trying(|| format!("cannot create volume {name}"))?;
    Changed::new("created", name).tell(context, &format!("created {name}, {}", Size(size)))
}

async fn list(context: &Context) -> Result<(), Failure> {
    let volumes = context.client.volumes().await.trying(|| "cannot list volumes".to_owned())?;
    if !context.for_people() {
        return output::list(context.format, "volumes", &volumes);
    }
    if volumes.is_empty() {
        return output::line("no volumes; make one: blockctl volume create NAME --size 64GiB");
    }
    let rows = volumes.iter().map(row).collect();
    let head = ["NAME", "SIZE", "DATA", "OWN", "SNAPSHOTS", "CLIENTS", "ORIGIN", "HEALTH", "ROLE"];
    output::table(&head, &[1, 2, 3, 4, 5], rows)
}

fn row(volume: &VolumeInfo) -> Vec<String> {
    vec![
        volume.name.clone(),
        Size(volume.size).to_string(),
        maybe_size(volume.mapped_bytes),
        maybe_size(volume.own_bytes),
        volume.snapshots.to_string(),
        volume.clients.to_string(),
        volume.origin.clone().unwrap_or_else(|| "–".to_owned()),
        health(volume.health).to_owned(),
        role(volume.role).to_owned(),
    ]
}

/// For people.
pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Primary => "primary",
        Role::Replica => "replica",
    }
}

/// A size, or a dash where it is not known yet.
fn maybe_size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "–".to_owned(), |bytes| Size(bytes).to_string())
}

/// For people.
pub(super) fn health(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::SyncFailed => "sync failed",
        Health::Damaged => "damaged",
    }
}

async fn show(context: &Context, name: &str) -> Result<(), Failure> {
    let volume = context.client.volume(name).await.trying(|| format!("cannot show volume {name}"))?;
    if !context.for_people() {
        return output::object(&volume);
    }
    output::pairs(&[
        ("name", volume.name.clone()),
        ("size", format!("{}  ({} bytes)", Size(volume.size), volume.size)),
        ("data", maybe_size(volume.mapped_bytes)),
        ("own", format!("{}  (freed if it were deleted)", maybe_size(volume.own_bytes))),
        ("snapshots", volume.snapshots.to_string()),
        ("clients", volume.clients.to_string()),
        ("origin", volume.origin.clone().unwrap_or_else(|| "–".to_owned())),
        ("created", time::utc(volume.created_ms)),
        ("health", health(volume.health).to_owned()),
        ("role", role(volume.role).to_owned()),
    ])
}

async fn resize(context: &Context, name: &str, size: Size) -> Result<(), Failure> {
    let size = volume_size(size.0)?;
    context.client.resize_volume(name, size).await.trying(|| format!("cannot resize volume {name}"))?;
    let sentence = format!("{name} has {} now; connected clients see it when they reconnect", Size(size));
    Changed::new("resized", name).tell(context, &sentence)
}

async fn rename(context: &Context, from: &str, to: &str, plan: bool) -> Result<(), Failure> {
    let what = || format!("cannot rename volume {from}");
    if plan {
        let volumes = context.client.volumes().await.trying(what)?;
        return plan_rename(context, &volumes, from, to);
    }
    context.client.rename_volume(from, to).await.trying(what)?;
    Changed::new("renamed", to).tell(context, &format!("{from} is now {to}, and so is its export"))
}

fn plan_rename(context: &Context, volumes: &[VolumeInfo], from: &str, to: &str) -> Result<(), Failure> {
    let find = |name: &str| volumes.iter().find(|volume| volume.name == name);
    let Some(volume) = find(from) else {
        let why = format!("there is no volume {from}");
        return Err(Failure::new(exit_code::NOT_FOUND, "cannot rename", why, "blockctl volume list"));
    };
    let mut obstacles = in_use(volume);
    let taken = find(to).is_some();
    if taken {
        obstacles.push(format!("there is a volume {to} already"));
    }
    Plan {
        action: "renamed",
        name: from,
        would: format!("would rename {from} to {to}; clients must use the new name"),
        obstacles,
        blocked_code: if taken { exit_code::FAILED } else { exit_code::BUSY },
    }
    .tell(context)
}

/// Clients are in the way of what would take their disk away.
pub(super) fn in_use(volume: &VolumeInfo) -> Vec<String> {
    let in_use = volume.clients > 0;
    in_use
        .then(|| format!("{} connected to {}", output::count(volume.clients, "client"), volume.name))
        .into_iter()
        .collect()
}

async fn delete(context: &Context, name: &str, sure: Sure) -> Result<(), Failure> {
    let what = || format!("cannot delete volume {name}");
    let volume = context.client.volume(name).await.trying(what)?;
    let loss = loss_of(&volume);
    if sure.plan {
        let mut obstacles = in_use(&volume);
        let blocked_code = if obstacles.is_empty() { exit_code::REFUSED } else { exit_code::BUSY };
        if volume.snapshots > 0 {
            obstacles.push(format!("it has {}", output::count(volume.snapshots, "snapshot")));
        }
        let would = format!("would delete {name}: {loss}");
        return Plan { action: "deleted", name, would, obstacles, blocked_code }.tell(context);
    }
    context.confirm(sure, "volume delete", &loss, name)?;
    context.client.delete_volume(name).await.trying(what)?;
    Changed::new("deleted", name)
        .tell(context, &format!("deleted {name}; its space is freed in the background"))
}

fn loss_of(volume: &VolumeInfo) -> String {
    match volume.own_bytes {
        Some(own) => format!("{} of its own data will be lost for ever", Size(own)),
        None => "all of its data will be lost for ever".to_owned(),
    }
}
