//! Other people's programs, and files with content to compare.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use fixtures::process::{self, Captured, ProcessError, find_program, wait_until};

/// What to type when a program is not there.
const SETUP: &str = "run `cargo xtask setup --for test`";

/// The Python of the distribution: the only one that sees its `python3-libnbd`.
const PYTHON: &str = "/usr/bin/python3";
const PYTHON_LIBNBD: &str = "/usr/lib/python3/dist-packages/nbd.py";

/// How long the system may go on using what we want to undo.
const CLEANUP: Duration = Duration::from_secs(5);

/// A command for a program that must be installed.
pub(crate) fn tool(name: &str) -> Command {
    let program = find_program(name).unwrap_or_else(|| panic!("{name} is not installed: {SETUP}"));
    Command::new(program)
}

/// Sees to it that programs are there which others will start for us (the guest's).
pub(crate) fn require(names: &[&str]) {
    for name in names {
        assert!(find_program(name).is_some(), "{name} is not installed: {SETUP}");
    }
}

/// A command that runs a Python script in which `import nbd` works.
pub(crate) fn python(script: &str) -> Command {
    for file in [PYTHON, PYTHON_LIBNBD] {
        assert!(Path::new(file).exists(), "{file} is not installed: {SETUP}");
    }
    let mut command = Command::new(PYTHON);
    command.args(["-c", script]);
    command
}

/// Runs a command that must succeed.
pub(crate) fn run(command: &mut Command) -> Captured {
    process::run(command).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs a command that must start and then fail; returns its last words.
pub(crate) fn run_failing(command: &mut Command) -> String {
    match process::run(command) {
        Ok(_) => panic!("`{}` succeeded", process::describe(command)),
        Err(ProcessError::Failed { output, status, .. }) if status.code().is_some() => output,
        Err(error) => panic!("{error}"),
    }
}

/// Fails unless two files hold the same bytes.
pub(crate) fn assert_same_content(left: &Path, right: &Path) {
    run(tool("cmp").arg(left).arg(right));
}

/// Bytes that no pattern hides in: a shifted, swapped or repeated block differs (xorshift).
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Bytes that a file takes on its medium.
pub(crate) fn allocated(file: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(file).unwrap()) * 512
}

/// Undoes what the system would keep after us, also when the test panics.
pub(crate) struct Cleanup {
    command: Command,
    pending: bool,
}

impl Cleanup {
    /// Runs `name` with `arguments` at the end.
    pub(crate) fn new(name: &str, arguments: &[&Path]) -> Self {
        let mut command = tool(name);
        command.args(arguments);
        Self { command, pending: true }
    }

    /// Runs it now; it must succeed.
    pub(crate) fn now(mut self) {
        self.retry().unwrap_or_else(|error| panic!("{error}"));
        self.pending = false;
    }

    /// Runs it now, once: for what must not be in use any more.
    pub(crate) fn at_once(mut self) {
        self.pending = false;
        process::run(&mut self.command).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The kernel takes the ring of a killed server down after the process has gone, its files last: a mount stays
    /// busy for that long. Tried again until it works.
    fn retry(&mut self) -> Result<(), ProcessError> {
        let mut last = Ok(());
        let done = wait_until("the end of what uses it", CLEANUP, || {
            last = process::run(&mut self.command).map(drop);
            Ok::<_, ProcessError>(last.is_ok().then_some(()))
        });
        done.or(last)
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if self.pending
            && let Err(error) = self.retry()
        {
            eprintln!("cannot clean up: {error}");
        }
    }
}

/// Whether this process may mount; says so when it may not.
pub(crate) fn may_mount(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: mounting needs root; run `sudo cargo xtask test`");
    }
    root
}
