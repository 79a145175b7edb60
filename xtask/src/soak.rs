//! The replication rig and the kill matrix against the daemons: prepared here, done by the programs `soak` and `cutover` of the
//! `fixtures` crate.

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
    #[arg(long, conflicts_with = "cutover")]
    sync: bool,
    /// Move a real guest between two hosts again and again, and hit agents, blockds, QEMUs and the link while it moves
    #[arg(long, conflicts_with_all = ["latency", "increments", "hours"])]
    cutover: bool,
    /// With --cutover: `all` 168, `gate`, `gate-mirror`, or those whose names have all these words (between commas)
    #[arg(long, value_name = "CELLS", requires = "cutover")]
    cells: Option<String>,
    /// With --cutover: how the disk is brought, `rounds` or `mirror` [default: rounds]
    #[arg(long, value_name = "HOW", requires = "cutover")]
    strategy: Option<String>,
    /// With --cutover: how often each
    #[arg(long, value_name = "N", requires = "cutover")]
    repeat: Option<u32>,
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
    if !options.sync && !options.cutover {
        bail!("nothing to do: give --sync or --cutover");
    }
    let progress = Progress::start();
    // Guests need what the tests need, too.
    prepare(workspace, if options.cutover { Purpose::Test } else { Purpose::Build }, &progress)?;
    progress.say("building the daemons and the rigs (release)");
    let build = ["build", "--quiet", "--release", "-p", "blockd", "-p", "vmctl", "-p", "fixtures", "--bins"];
    process::run_visibly(&mut workspace.cargo(&build))?;
    progress.say("soak");
    let mut rig = if options.cutover { cutover(workspace, options) } else { command(workspace, options) };
    Ok(process::run_visibly(&mut rig)?)
}

fn cutover(workspace: &Workspace, options: &Options) -> Command {
    let release = workspace.target.join("release");
    let mut cutover = Command::new(release.join("cutover"));
    cutover.arg("--bin").arg(&release).arg("--cells").arg(options.cells.as_deref().unwrap_or("all"));
    cutover.arg("--jsonl").arg(workspace.target.join("cutover.jsonl"));
    let words = [
        ("--strategy", options.strategy.clone()),
        ("--repeat", options.repeat.map(|count| count.to_string())),
        ("--seed", options.seed.map(|seed| seed.to_string())),
    ];
    for (name, word) in words {
        if let Some(word) = word {
            cutover.args([name, &word]);
        }
    }
    cutover
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
