//! All checks in one order: the cheap ones first, the tests last, so that the last lines are the test
//! runner's totals.

use std::process::Command;

use anyhow::{Context, Result};
use fixtures::packages::Purpose;
use fixtures::process;

use crate::deny;
use crate::fuzz;
use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// Random cases of the model test: enough for every door, and for one in a hurry.
const CASES: u32 = 2000;
const CASES_QUICK: u32 = 200;

/// Sanitizers need the target named, so that build scripts and macros are built without them.
pub(crate) const SANITIZER_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the model tests read their number of cases from: of the server and the store, of replication, of moves, and of moves with
/// real stores.
const CASES_VARIABLES: [&str; 4] = ["MODEL_CASES", "SYNC_CASES", "CUTOVER_CASES", "JOINT_CASES"];

/// Every check; `quick` leaves out what changes rarely.
pub(crate) fn test(workspace: &Workspace, cases: Option<u32>, quick: bool) -> Result<()> {
    let progress = Progress::start();
    let step = |name: &str, command: &mut Command| check(&progress, name, command);
    prepare(workspace, Purpose::Test, &progress)?;
    step("format", &mut workspace.cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("lints", &mut workspace.cargo(&lints))?;
    if !quick {
        slow_checks(workspace, &progress)?;
    }
    let cases = cases.unwrap_or(if quick { CASES_QUICK } else { CASES });
    step(
        &format!("tests, {cases} model cases"),
        runner(workspace, &["--workspace"]).envs(CASES_VARIABLES.map(|name| (name, cases.to_string()))),
    )
}

/// The model tests alone, of the server, of the store, of replication, and of moves, in release.
pub(crate) fn model(workspace: &Workspace, cases: u32) -> Result<()> {
    let progress = Progress::start();
    prepare(workspace, Purpose::Build, &progress)?;
    let tests =
        ["--test", "model", "--test", "replication", "--test", "cutover_simulation", "--test", "joint"];
    let packages = ["--release", "-p", "nbd-server", "-p", "blockd", "-p", "vmctl", "-p", "cutover-tests"];
    let mut model = runner(workspace, &[&packages[..], &tests].concat());
    check(
        &progress,
        &format!("model tests, {cases} cases each"),
        model.envs(CASES_VARIABLES.map(|name| (name, cases.to_string()))).env("NEXTEST_PROFILE", "long"),
    )
}

/// Licences, Miri, sanitizer, fuzzing, docs. A tool that is not there is said and skipped: none of them is needed to build or
/// run.
fn slow_checks(workspace: &Workspace, progress: &Progress) -> Result<()> {
    match workspace.find_tool("cargo-deny") {
        Some(program) => check(progress, "dependencies", &mut deny::command(workspace, &program))?,
        None => progress.say("dependencies: skipped, no cargo-deny; `cargo xtask deny` installs and runs it"),
    }
    if process::run(&mut miri(&["--version"])).is_ok() {
        let mut buffers = miri(&["test", "-p", "nbd-server", "--lib", "reactor::buffer"]);
        check(progress, "buffers under Miri", buffers.current_dir(&workspace.root))?;
    } else {
        progress.say("buffers under Miri: skipped; `rustup toolchain install nightly -c miri` brings it");
    }
    reactor_under_sanitizer(workspace, progress)?;
    fuzz::check(workspace, progress)?;
    let mut docs =
        workspace.cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    check(progress, "docs", docs.env("RUSTDOCFLAGS", "-D warnings"))?;
    check(progress, "examples in docs", &mut workspace.cargo(&["test", "--quiet", "--workspace", "--doc"]))
}

/// The unsafe room with the real ring under it, which Miri cannot run: clients that vanish, stall and are
/// stopped in the middle of transfers, with every access to memory checked.
fn reactor_under_sanitizer(workspace: &Workspace, progress: &Progress) -> Result<()> {
    if !has_nightly() {
        progress.say("reactor under AddressSanitizer: skipped; `rustup toolchain install nightly` brings it");
        return Ok(());
    }
    let mut tests = process::command("cargo");
    tests.args(["+nightly", "test", "--quiet", "--target", SANITIZER_TARGET, "-p", "nbd-server"]);
    // Bounds on the server's memory do not hold with the sanitizer's own on top, and it takes every leak for a bug.
    tests.args([
        "--lib",
        "--test",
        "protocol",
        "--",
        "--skip",
        "cost_no_memory",
        "--skip",
        "leaks_on_purpose",
    ]);
    tests.env("RUSTFLAGS", "-Zsanitizer=address").env("CARGO_TARGET_DIR", workspace.target.join("sanitizer"));
    check(progress, "reactor under AddressSanitizer", tests.current_dir(&workspace.root))
}

/// rustup's cargo in `PATH` has a nightly toolchain.
pub(crate) fn has_nightly() -> bool {
    process::run(process::command("cargo").args(["+nightly", "--version"])).is_ok()
}

/// Says what begins, runs it with our terminal, and names it in the error.
fn check(progress: &Progress, name: &str, command: &mut Command) -> Result<()> {
    progress.say(name);
    process::run_visibly(command).with_context(|| format!("check failed: {name}"))
}

/// nextest where it is installed, for its time limits and groups (`.config/nextest.toml`); else cargo's own
/// runner.
fn runner(workspace: &Workspace, arguments: &[&str]) -> Command {
    let runner: &[&str] = match workspace.find_tool("cargo-nextest") {
        Some(_) => &["nextest", "run"],
        None => &["test"],
    };
    let mut command = workspace.cargo(runner);
    command.args(arguments);
    command
}

/// `cargo +nightly miri …`: through rustup's cargo in `PATH`, the only one that understands `+nightly`.
fn miri(arguments: &[&str]) -> Command {
    let mut command = process::command("cargo");
    command.args(["+nightly", "miri"]).args(arguments);
    command
}
