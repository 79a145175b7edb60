//! `blockctl archive list` and `verify`.

use serde::Serialize;

use crate::archive::index::Index;
use crate::archive::root::Root;
use crate::archive::{self, Archive, ArchiveError, Damage, Listed, VerifySummary, hex};
use crate::exit_code;
use crate::failure::Failure;
use crate::size::Size;
use crate::units::CLUSTER_BYTES;

use super::super::context::Context;
use super::super::progress::Progress;
use super::super::{output, time};
use super::{ListArgs, VerifyArgs, failure};

/// A snapshot of the archive, for scripts.
#[derive(Serialize)]
struct Row {
    name: String,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

impl Row {
    fn new(listed: &Listed) -> Self {
        let (root, error) = match &listed.root {
            Ok(root) => (Some(root), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Self {
            name: listed.name.to_string(),
            ok: error.is_none(),
            error,
            size: root.map(|root| root.size),
            data_bytes: root.map(|root| root.clusters * CLUSTER_BYTES),
            created_ms: root.map(|root| root.created_ms),
            hash: root.map(|root| hex(&root.hash)),
        }
    }

    fn cells(&self) -> Vec<String> {
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "–".to_owned(), |bytes| Size(bytes).to_string());
        let state = self.error.clone().unwrap_or_else(|| "signed".to_owned());
        let taken = self.created_ms.map_or_else(|| "–".to_owned(), time::utc);
        vec![self.name.clone(), taken, size(self.size), size(self.data_bytes), state]
    }
}

pub(super) async fn list(context: &Context, args: &ListArgs) -> Result<(), Failure> {
    let what = "cannot list the archive";
    let archive = args.source.open(what).await?;
    let listed = archive.list(args.volume.as_deref()).await.map_err(|error| failure(what, error))?;
    let rows: Vec<Row> = listed.iter().map(Row::new).collect();
    if !context.for_people() {
        output::list(context.format, "snapshots", &rows)?;
    } else if rows.is_empty() {
        output::line("no snapshots; add one: blockctl archive push NAME@SNAP --to URL --key FILE")?;
    } else {
        let cells = rows.iter().map(Row::cells).collect();
        output::table(&["NAME", "TAKEN (UTC)", "SIZE", "DATA", "STATE"], &[2, 3], cells)?;
    }
    match rows.iter().filter(|row| !row.ok).count() {
        0 => Ok(()),
        damaged => {
            Err(damaged_failure(&format!("{} cannot be read", output::count(damaged as u64, "snapshot"))))
        }
    }
}

fn damaged_failure(why: &str) -> Failure {
    let next = "push again what a host still has; restore the objects from a copy of the bucket";
    Failure::new(exit_code::VERIFICATION_FAILED, "the archive is not what was written", why, next)
}

/// What `verify` prints for scripts, a snapshot; without a name, of what no snapshot is known to need.
#[derive(Serialize)]
struct Verified<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    ok: bool,
    checked_bytes: u64,
    damaged: Vec<Damaged<'a>>,
}

#[derive(Serialize)]
struct Damaged<'a> {
    object: &'a str,
    why: &'a str,
}

pub(super) async fn verify(context: &Context, args: &VerifyArgs) -> Result<(), Failure> {
    tokio::select! {
        ended = verify_all(context, args) => ended,
        _ = tokio::signal::ctrl_c() => {
            let next = "the same command begins anew";
            Err(Failure::new(exit_code::FAILED, "interrupted", "Ctrl-C; nothing was changed", next))
        }
    }
}

async fn verify_all(context: &Context, args: &VerifyArgs) -> Result<(), Failure> {
    let what = "cannot verify the archive";
    let fail = |error| failure(what, error);
    let archive = args.source.open(what).await?;
    let snapshots = match &args.name {
        Some(name) => {
            let name = name.parse().map_err(|error| Failure::new(exit_code::USAGE, what, error, ""))?;
            vec![Listed { root: archive.root(&name).await, name }]
        }
        None => archive.list(None).await.map_err(fail)?,
    };
    let loaded = archive.load_index().await.map_err(fail)?;
    let mut damaged = usize::from(!loaded.damage.is_empty());
    if !loaded.damage.is_empty() {
        tell(context, None, &VerifySummary { clusters: 0, damage: loaded.damage })?;
    }
    for listed in snapshots {
        let summary = verify_one(context, &archive, &loaded.index, listed.root, args).await.map_err(fail);
        let summary = summary?;
        damaged += usize::from(!summary.damage.is_empty());
        tell(context, Some(&listed.name.to_string()), &summary)?;
    }
    if damaged == 0 { Ok(()) } else { Err(damaged_failure("the objects are named above")) }
}

async fn verify_one(
    context: &Context,
    archive: &Archive,
    index: &Index,
    root: Result<Root, ArchiveError>,
    args: &VerifyArgs,
) -> Result<VerifySummary, ArchiveError> {
    let root = match root {
        Ok(root) => root,
        Err(ArchiveError::Damaged { object, why }) => {
            return Ok(VerifySummary { clusters: 0, damage: vec![Damage { object, why }] });
        }
        Err(error) => return Err(error),
    };
    let mut progress = Progress::new(context.format);
    let shown = progress.phase(format!("verifying {}", root.name), root.clusters * CLUSTER_BYTES);
    let mut failed = shown.is_err();
    archive::verify(archive, index, &root, args.read_data, move |clusters| {
        // With the reader of our output gone the result will tell.
        failed = failed || progress.done(clusters * CLUSTER_BYTES).is_err();
    })
    .await
}

fn tell(context: &Context, name: Option<&str>, summary: &VerifySummary) -> Result<(), Failure> {
    let checked_bytes = summary.clusters * CLUSTER_BYTES;
    if !context.for_people() {
        let damaged =
            summary.damage.iter().map(|damage| Damaged { object: &damage.object, why: &damage.why });
        let damaged: Vec<_> = damaged.collect();
        return output::object(&Verified { name, ok: damaged.is_empty(), checked_bytes, damaged });
    }
    let verdict = if summary.damage.is_empty() { "ok" } else { "DAMAGED" };
    output::line(format!(
        "{}  {verdict}  {} checked",
        name.unwrap_or("index and packs"),
        Size(checked_bytes)
    ))?;
    let mut lines =
        summary.damage.iter().map(|damage| format!("  damaged: {}: {}", damage.object, damage.why));
    lines.try_for_each(output::line)
}
