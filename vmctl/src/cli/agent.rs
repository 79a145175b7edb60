//! `vmctl agent`.

use std::io::IsTerminal;
use std::path::PathBuf;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing_subscriber::EnvFilter;

use super::args::AgentArgs;
use crate::config::{self, Settings};
use crate::exit_code;
use crate::failure::Failure;

pub(super) async fn run(args: AgentArgs, socket: Option<PathBuf>) -> Result<(), Failure> {
    let settings = Settings { socket, ..args.settings };
    let config = config::load(settings, args.config.as_deref())?;
    start_log(&config.log)?;
    // Migration streams, that is guests' memory, will pass through ours.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps cannot be turned off");
    }
    crate::agent::run(config).await
}

fn start_log(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(exit_code::USAGE, "the log filter is wrong", error, "vmctl agent --log debug …")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}
