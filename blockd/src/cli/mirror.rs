//! `blockctl mirror …`: volumes whose writes go to another host, too.

use crate::failure::Failure;
use crate::size::Size;
use crate::sync::mirroring::{MirrorInfo, MirrorStage};

use super::args::MirrorCommand;
use super::context::{Context, Trying};
use super::output;

pub(super) async fn run(context: &Context, command: MirrorCommand) -> Result<(), Failure> {
    match command {
        MirrorCommand::List => list(context).await,
        MirrorCommand::End { volume } => {
            context
                .client
                .end_mirror(&volume)
                .await
                .trying(|| format!("cannot end the mirror of {volume}"))?;
            output::line(format!("{volume} is not mirrored any more"))
        }
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let mirrors = context.client.mirrors().await.trying(|| "cannot list mirrors".to_owned())?;
    if !context.for_people() {
        return output::list(context.format, "mirrors", &mirrors);
    }
    if mirrors.is_empty() {
        return output::line("no mirrors; a move makes them: vmctl migrate --help".to_owned());
    }
    let row = |mirror: &MirrorInfo| {
        vec![
            mirror.volume.clone(),
            mirror.to.clone(),
            stage(mirror.stage).to_owned(),
            Size(mirror.backlog_bytes).to_string(),
            Size(mirror.sent_bytes).to_string(),
            mirror.reason.clone().unwrap_or_default(),
        ]
    };
    let rows = mirrors.iter().map(row).collect();
    output::table(&["VOLUME", "TO", "STAGE", "BEHIND", "SENT", "REASON"], &[3, 4], rows)
}

fn stage(stage: MirrorStage) -> &'static str {
    match stage {
        MirrorStage::Connecting => "connecting",
        MirrorStage::CatchingUp => "catching up",
        MirrorStage::InSync => "in sync",
        MirrorStage::Ended => "ended",
    }
}
