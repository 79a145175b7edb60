//! What our dependencies may be: `deny.toml`, checked by cargo-deny.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use fixtures::process;

use crate::progress::Progress;
use crate::workspace::Workspace;

/// The checks that need nothing but the dependency graph.
pub(crate) const OFFLINE_CHECKS: [&str; 3] = ["licenses", "bans", "sources"];

/// Installs cargo-deny if need be and runs it.
pub(crate) fn run(workspace: &Workspace, advisories: bool) -> Result<()> {
    let program = match workspace.find_tool("cargo-deny") {
        Some(program) => program,
        None => install(workspace)?,
    };
    let mut check = command(workspace, &program);
    if advisories {
        check.arg("advisories");
    }
    Ok(process::run_visibly(&mut check)?)
}

/// `cargo deny check` with the checks that need no net.
pub(crate) fn command(workspace: &Workspace, program: &Path) -> Command {
    let mut check = Command::new(program);
    // The same toolchain as everything else: cargo-deny asks cargo for the graph.
    check.current_dir(&workspace.root).arg("check").args(OFFLINE_CHECKS);
    check
}

fn install(workspace: &Workspace) -> Result<PathBuf> {
    let tools = workspace.tools();
    Progress::start().say(&format!("building cargo-deny into {} (some minutes, once)", tools.display()));
    let mut install = workspace.cargo(&["install", "--quiet", "--locked", "cargo-deny", "--root"]);
    process::run_visibly(install.arg(&tools))?;
    workspace.find_tool("cargo-deny").context("cargo installed cargo-deny, but it is not where it should be")
}
