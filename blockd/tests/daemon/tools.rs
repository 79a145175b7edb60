//! Other people's programs, and content to compare.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fixtures::lossy_fs::LossyFs;
use fixtures::process::{self, Captured, ProcessError, find_program, wait_until};

/// How long the system may go on using what we want to undo.
const CLEANUP: Duration = Duration::from_secs(10);

/// A command for a program that must be installed.
pub(crate) fn tool(name: &str) -> Command {
    let program = find_program(name);
    Command::new(
        program.unwrap_or_else(|| panic!("{name} is not installed: run `cargo xtask setup --for test`")),
    )
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Captured {
    process::run(command).unwrap_or_else(|error| panic!("{error}"))
}

/// Bytes that no pattern hides in.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Compares without printing megabytes.
pub(crate) fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        panic!("{what}: byte {at} is {:#x}, expected {:#x}", found[at], expected[at]);
    }
}

/// Whether this process may mount; says so when it may not.
pub(crate) fn may_mount() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: mounting needs root; run `sudo cargo xtask test`");
    }
    root
}

/// Whether a file system that loses what was not synced can be mounted; says so when it cannot.
pub(crate) fn may_cut_power() -> bool {
    let possible = LossyFs::is_possible();
    if !possible {
        eprintln!("SKIPPED: /dev/fuse is missing or may not be opened");
    }
    possible
}

/// Undoes what the system would keep after us, also when the test panics. The kernel takes the ring of a killed daemon
/// down after the process, so it is tried for a while.
pub(crate) struct Unmount<'a>(pub(crate) &'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let mut last = String::new();
        let done = wait_until("the end of what uses the mount", CLEANUP, || {
            let ended = process::run(tool("umount").arg(self.0));
            last = ended.as_ref().err().map(ToString::to_string).unwrap_or_default();
            Ok::<_, ProcessError>(ended.ok())
        });
        if done.is_err() {
            eprintln!("cannot clean up: {last}");
        }
    }
}
