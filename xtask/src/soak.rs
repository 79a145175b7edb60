//! The replication rig against the daemon: prepared here, done by the program `soak` of the `fixtures` crate.

use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;
use fixtures::packages::Purpose;
use fixtures::process;

use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// What to run, and how much of it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Bring snapshots to another daemon through cuts, kills, slow links and full disks, and compare what arrives
    #[arg(long)]
    sync: bool,
    /// Measure instead what a guest notices of it: its p99 without a job, with a live target, with a dead one
    #[arg(long, requires = "sync")]
    latency: bool,
    /// Increments that arrive; rounds of --latency [default: 100; 10]
    #[arg(long, value_name = "N")]
    increments: Option<u32>,
    /// Draw the same faults and load again
    #[arg(long)]
    seed: Option<u64>,
    /// Begin anew, with another seed, until so many hours have passed
    #[arg(long, conflicts_with_all = ["latency", "seed"])]
    hours: Option<f64>,
}

/// Builds everything in release and runs the rig.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if !options.sync {
        bail!("nothing to do: give --sync");
    }
    let progress = Progress::start();
    prepare(workspace, Purpose::Build, &progress)?;
    progress.say("building blockd and the rigs (release)");
    let build = ["build", "--quiet", "--release", "-p", "blockd", "-p", "fixtures", "--bins"];
    process::run_visibly(&mut workspace.cargo(&build))?;
    progress.say("soak");
    Ok(process::run_visibly(&mut command(workspace, options))?)
}

fn command(workspace: &Workspace, options: &Options) -> Command {
    let release = workspace.target.join("release");
    let mut soak = Command::new(release.join("soak"));
    let (name, count) = if options.latency { ("latency", "--rounds") } else { ("sync", "--increments") };
    soak.arg(name);
    soak.arg("--blockd").arg(release.join("blockd")).arg("--blockctl").arg(release.join("blockctl"));
    let numbers = [
        (count, options.increments.map(|count| count.to_string())),
        ("--seed", options.seed.map(|seed| seed.to_string())),
        ("--hours", options.hours.map(|hours| hours.to_string())),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            soak.args([name, &number]);
        }
    }
    soak
}
