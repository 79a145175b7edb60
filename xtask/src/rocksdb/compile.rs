//! Has cargo compile RocksDB, with the compiler and the flags that the cache promises, and says how far it is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, anyhow};
use fixtures::process::{ChildGuard, ProcessError, check_interrupt, last_lines};
use serde_json::Value;

use super::{CRATE, PULSE, Source};
use crate::progress::Progress;
use crate::workspace::Workspace;

/// What the crate `cc` calls C++ compilers by, unless told otherwise.
pub(super) const COMPILER: &str = "c++";

/// What one developer's shell must not put into the library of all.
const FOREIGN: [&str; 7] = [
    "CXX",
    "CXXFLAGS",
    "HOST_CXX",
    "HOST_CXXFLAGS",
    "ROCKSDB_CXX_STD",
    "RUSTFLAGS",
    // A build directory of its own, outside the target directory that we give and count files in.
    "CARGO_BUILD_BUILD_DIR",
];

/// How many of the last lines go into the error; all of them are in the log.
const ERROR_LINES: usize = 20;

/// Compiles below `scratch` and returns the archive, which lies there.
///
/// What the compilers say goes to `kept_log` when they fail, and nowhere otherwise.
pub(super) fn run(
    workspace: &Workspace,
    source: &Source,
    scratch: &Path,
    kept_log: &Path,
    progress: &Progress,
) -> Result<PathBuf> {
    let target = scratch.join("target");
    let (messages, log) = (scratch.join("messages.json"), scratch.join("log"));
    let mut command = command(workspace, &target);
    command.stdin(Stdio::null()).stdout(create(&messages)?).stderr(create(&log)?);
    let status = watch(&mut ChildGuard::spawn(&mut command)?, &target, source.files(), progress)?;
    if !status.success() {
        // Ctrl-C reaches cargo as well and may end it before we look: that is no failure worth a log.
        check_interrupt()?;
        return Err(explain(status, &log, kept_log)?);
    }
    Ok(out_dir(&fs::read_to_string(messages)?, &source.id)?.join("librocksdb.a"))
}

/// The end of the log as an error; all of it is kept.
fn explain(status: ExitStatus, log: &Path, kept_log: &Path) -> Result<anyhow::Error> {
    fs::rename(log, kept_log).context("cannot keep the log")?;
    let words = last_lines(&fs::read_to_string(kept_log)?, ERROR_LINES);
    Ok(anyhow!("cargo failed ({status}); all that it said is in {}:\n{words}", kept_log.display()))
}

/// `cargo build` of that one package out of this workspace: its version, its features and its build tools are
/// then those of the lock file, without a second list of them.
fn command(workspace: &Workspace, target: &Path) -> Command {
    let mut command = workspace.cargo(&["build", "--release", "--package", CRATE]);
    command.args(["--message-format", "json-render-diagnostics", "--target-dir"]).arg(target);
    for variable in FOREIGN {
        command.env_remove(variable);
    }
    command
        // Empty, it outranks the flags of configuration files as well.
        .env("CARGO_ENCODED_RUSTFLAGS", "")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        // `.cargo/rocksdb.toml` may still point to a library that is gone, or to another version's.
        .env("ROCKSDB_COMPILE", "1")
        .env("ROCKSDB_INCLUDE_DIR", "rocksdb/include");
    command
}

/// Waits for the end, and says now and then how far it is.
fn watch(
    child: &mut ChildGuard,
    target: &Path,
    files: usize,
    progress: &Progress,
) -> Result<ExitStatus, ProcessError> {
    loop {
        match child.wait_for(PULSE) {
            Err(ProcessError::TimedOut { .. }) => {
                progress.say(&format!("RocksDB: {} of {files} files compiled", count_objects(target)));
            }
            end => return end,
        }
    }
}

/// How many object files there are by now. Only told to people: what cannot be read counts nothing.
fn count_objects(target: &Path) -> usize {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = |dir: &PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(CRATE));
    let builds = list(&target.join("release/build")).filter(ours);
    let files = builds.flat_map(|build| list(&build.join("out")).collect::<Vec<_>>());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "o")).count()
}

/// Where the build script of package `id` put its files, from cargo's messages.
fn out_dir(messages: &str, id: &str) -> Result<PathBuf> {
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ran = |message: &Value| message["reason"] == "build-script-executed" && message["package_id"] == id;
    let out = messages.find(ran).and_then(|message| message["out_dir"].as_str().map(PathBuf::from));
    out.with_context(|| format!("cargo did not say where {id} was built"))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_scripts_directory_is_read_from_the_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"package_id\":\"a#x\"}\n\
                        {\"reason\":\"build-script-executed\",\"package_id\":\"b#y\",\"out_dir\":\"/b\"}\n\
                        not json\n\
                        {\"reason\":\"build-script-executed\",\"package_id\":\"a#x\",\"out_dir\":\"/a\"}\n";
        assert_eq!(out_dir(messages, "a#x").unwrap(), Path::new("/a"));
        assert!(out_dir(messages, "c#z").is_err());
    }

    #[test]
    fn only_rocksdbs_objects_are_counted() {
        let top = tempfile::tempdir().unwrap();
        let build = top.path().join("release/build");
        for (dir, file) in [("librocksdb-sys-1", "a.o"), ("librocksdb-sys-1", "a.d"), ("other-1", "b.o")] {
            fs::create_dir_all(build.join(dir).join("out")).unwrap();
            fs::write(build.join(dir).join("out").join(file), "").unwrap();
        }
        assert_eq!(count_objects(top.path()), 1);
        assert_eq!(count_objects(Path::new("/nonexistent")), 0);
    }
}
