//! `blockctl export create` and `export remove`: exports for a while.

use std::time::Duration;

use clap::Args;

use crate::api::temporary::{CreateExport, CreatedExport, HeldLine};
use crate::failure::Failure;
use crate::jobs::span::Span;
use crate::nbd_door::{Ended, TemporaryExport};

use super::args::export_name;
use super::context::{Context, Trying};
use super::{output, time};

/// `export create`.
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// NAME or NAME@SNAP.
    #[arg(value_parser = export_name)]
    pub name: String,
    /// How long it lasts, 1s to 7d; then its clients are disconnected, whatever they are doing.
    #[arg(long, value_name = "TIME")]
    pub ttl: Span,
    /// Give it a secret name that opens it once, whatever the rules of access say. Without: a name that opens it as often
    /// as you like, for whoever may see NAME.
    #[arg(long)]
    pub token: bool,
    /// Let its clients write.
    #[arg(long)]
    pub write: bool,
    /// Return at once, and leave its end to the time. Without: wait, and end it when this command ends.
    #[arg(long)]
    pub detach: bool,
}

pub(super) async fn create(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let what = || format!("cannot export {} for a while", args.name);
    let wanted = CreateExport {
        name: args.name.clone(),
        ttl_ms: args.ttl.as_millis(),
        token: args.token,
        write: args.write,
        hold: !args.detach,
    };
    if args.detach {
        let created = context.client.create_export(&wanted).await.trying(what)?;
        return show(context, created, Duration::from(args.ttl));
    }
    let mut shown = Ok(());
    let holding = context.client.hold_export(&wanted, |created| {
        shown = show(context, created, Duration::from(args.ttl));
        if shown.is_ok() && context.for_people() {
            eprintln!("Ctrl-C ends it.");
        }
    });
    let ended = tokio::select! {
        // It ends with the connection, which ends with this process.
        _ = tokio::signal::ctrl_c() => None,
        ended = holding => Some(ended.trying(what)?),
    };
    shown?;
    match ended {
        Some(ended) if context.for_people() => eprintln!("It is over: {}.", reason(ended)),
        Some(ended) => output::object(&HeldLine::Ended(ended))?,
        None => {}
    }
    Ok(())
}

fn show(context: &Context, created: CreatedExport, ttl: Duration) -> Result<(), Failure> {
    if !context.for_people() {
        return output::object(&HeldLine::Created(created));
    }
    let CreatedExport { export, open_as, uri } = created;
    output::pairs(&[
        ("export", export.name.clone()),
        ("access", access(&export)),
        ("until", format!("{} UTC  ({})", time::utc(export.expires_ms), time::span(ttl.as_millis() as u64))),
        ("open as", open_as),
        ("uri", uri.unwrap_or_else(|| "–".to_owned())),
    ])
}

/// What its clients may do, for people.
pub(super) fn access(export: &TemporaryExport) -> String {
    let access = if export.read_only { "read-only" } else { "writable" };
    match (export.one_use, export.used) {
        (true, true) => format!("{access}, used"),
        (true, false) => format!("{access}, for one use"),
        (false, _) => access.to_owned(),
    }
}

fn reason(ended: Ended) -> &'static str {
    match ended {
        Ended::Expired => "its time is up",
        Ended::UsedUp => "its client has left",
        Ended::CreatorGone => "nobody holds it",
        Ended::Removed => "it was removed",
        Ended::TargetGone => "what it stood for is gone",
    }
}

pub(super) async fn remove(context: &Context, name: &str) -> Result<(), Failure> {
    context.client.remove_export(name).await.trying(|| format!("cannot remove export {name}"))?;
    if context.for_people() {
        return output::line(format!("Removed {name}; its clients are disconnected."));
    }
    output::object(&crate::api::types::Done { done: true })
}
