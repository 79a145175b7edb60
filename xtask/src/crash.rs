//! The crash rigs against the daemon: prepared here, done by the program `crash` of the `fixtures` crate.

use std::process::Command;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use fixtures::packages::Purpose;
use fixtures::process;

use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// What to run, and how much of it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kill blockd with SIGKILL that many times under load
    #[arg(long, value_name = "N")]
    kills: Option<u32>,
    /// Cut the power that many times, on a file system that forgets what was not synced
    #[arg(long, value_name = "N")]
    power: Option<u32>,
    /// The negative control: servers that lie about FLUSH must be found out
    #[arg(long)]
    liar: bool,
    /// Draw the same crashes and load again
    #[arg(long)]
    seed: Option<u64>,
    /// How blockd caches
    #[arg(long, value_enum, default_value = "writeback")]
    cache: Cache,
    /// Power cuts tear what was not written as whole 4 KiB pages
    #[arg(long)]
    tear: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cache {
    Writeback,
    Direct,
}

impl Cache {
    fn name(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::Direct => "direct",
        }
    }
}

/// Builds everything in release and runs the rigs that were asked for, one after the other.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if options.kills.is_none() && options.power.is_none() && !options.liar {
        bail!("nothing to do: give --kills N, --power N or --liar");
    }
    let progress = Progress::start();
    prepare(workspace, Purpose::Test, &progress)?;
    progress.say("building blockd and the rigs (release)");
    let build = ["build", "--quiet", "--release", "-p", "blockd", "-p", "fixtures", "--bins"];
    process::run_visibly(&mut workspace.cargo(&build))?;
    if let Some(count) = options.kills {
        rig(workspace, &progress, options, "kills", Some(count))?;
    }
    if let Some(count) = options.power {
        rig(workspace, &progress, options, "power", Some(count))?;
    }
    if options.liar {
        rig(workspace, &progress, options, "liar", None)?;
    }
    Ok(())
}

fn rig(
    workspace: &Workspace,
    progress: &Progress,
    options: &Options,
    name: &str,
    count: Option<u32>,
) -> Result<()> {
    progress.say(&format!("crash {name}"));
    let release = workspace.target.join("release");
    let mut crash = Command::new(release.join("crash"));
    crash.arg(name);
    if let Some(count) = count {
        crash.args(["--count", &count.to_string(), "--cache", options.cache.name()]);
        crash.arg("--blockd").arg(release.join("blockd")).arg("--blockctl").arg(release.join("blockctl"));
    }
    if let Some(seed) = options.seed {
        crash.args(["--seed", &seed.to_string()]);
    }
    if options.tear {
        crash.arg("--tear");
    }
    Ok(process::run_visibly(&mut crash)?)
}
