//! The comparison with the peers: prepared here, done by the `benches` crate.

use anyhow::Result;
use fixtures::packages::Purpose;
use fixtures::process;

use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// Installs the peers, builds our programs in release, and hands over.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let progress = Progress::start();
    prepare(workspace, Purpose::Compare, &progress)?;
    if arguments.iter().any(|argument| argument == "--migrate") {
        prepare(workspace, Purpose::Demo, &progress)?;
    }
    progress.say("building nbd-server, blockd and the comparison (release)");
    workspace.build_server()?;
    workspace.build_blockd()?;
    // The second client is a program of its own, looked for beside the comparison.
    process::run_visibly(&mut workspace.cargo(&[
        "build",
        "--quiet",
        "--release",
        "-p",
        "benches",
        "--bins",
    ]))?;
    let mut compare =
        workspace.cargo(&["run", "--quiet", "--release", "-p", "benches", "--bin", "compare", "--"]);
    Ok(process::run_visibly(compare.args(arguments))?)
}
