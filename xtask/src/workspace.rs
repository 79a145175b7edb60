//! Where the workspace and cargo's target directory are, and how to call cargo.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use fixtures::process;
use serde_json::Value;

use crate::rocksdb;

/// The places that the doors work with.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// Cargo's target directory, wherever configuration or environment put it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        let metadata = metadata(&mut cargo(), &["--no-deps"])?;
        let path = |key: &str| {
            let value = metadata.get(key).and_then(Value::as_str);
            value.map(PathBuf::from).with_context(|| format!("cargo's metadata lacks {key}"))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")? })
    }

    /// `cargo …` in the workspace's root.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = cargo();
        command.current_dir(&self.root).args(arguments);
        command
    }

    /// Every package that is built on this host, as `cargo metadata` describes it.
    pub(crate) fn packages(&self, host: &str) -> Result<Value> {
        metadata(&mut self.cargo(&[]), &["--filter-platform", host])
    }

    /// Builds `nbd-server` as users get it and returns the program.
    pub(crate) fn build_server(&self) -> Result<PathBuf> {
        let build = ["build", "--quiet", "--release", "-p", "nbd-server", "--bin", "nbd-server"];
        process::run_visibly(&mut self.cargo(&build))?;
        Ok(self.target.join("release/nbd-server"))
    }

    /// Builds `blockd`, `blockctl` and `vmctl` as users get them and returns where they are.
    pub(crate) fn build_blockd(&self) -> Result<PathBuf> {
        let build = ["build", "--quiet", "--release", "-p", "blockd", "-p", "vmctl", "--bins"];
        process::run_visibly(&mut self.cargo(&build))?;
        Ok(self.target.join("release"))
    }

    /// Where a tool of cargo is: `PATH`, or where [`deny`](crate::deny) puts it.
    pub(crate) fn find_tool(&self, name: &str) -> Option<PathBuf> {
        let own = self.tools().join("bin").join(name);
        process::find_program(name).or_else(|| own.exists().then_some(own))
    }

    /// Where tools that we install ourselves go.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

fn metadata(cargo: &mut Command, arguments: &[&str]) -> Result<Value> {
    let answer = process::run(cargo.args(["metadata", "--format-version", "1"]).args(arguments))?;
    serde_json::from_str(&answer.stdout).context("cannot read cargo's metadata")
}

/// The cargo that runs us, so that one toolchain builds everything.
fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // `cargo run` gave us what `.cargo/rocksdb.toml` said before we may have written it anew, and the
    // environment outranks the file: the next cargo must see what a cargo typed by hand sees.
    for variable in rocksdb::VARIABLES {
        command.env_remove(variable);
    }
    command
}
