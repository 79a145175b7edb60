//! Coverage-guided fuzzing of the NBD server: `nbd-fuzz`'s targets under libFuzzer, with AddressSanitizer or, six times as often,
//! without.
//!
//! They are built by nightly with the flags that cargo-fuzz sets, into a directory of their own below target/. There, too, go the
//! inputs that are found; the corpus in the repository changes only with `--keep`.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use fixtures::packages::Purpose;
use fixtures::process::{self, ChildGuard};

use crate::checks::{SANITIZER_TARGET, has_nightly};
use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// Seconds a target, unless said otherwise.
pub(crate) const SECONDS: u64 = 60;
/// An input that takes longer is a finding.
const TIMEOUT_SECONDS: u32 = 10;
/// Lines of a finding that are shown.
const LINES: usize = 3;

/// As cargo-fuzz sets them, without the tracing of comparisons: it costs a third of the speed, and what there is to be found by
/// it are magics, which the dictionary has.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "--cfg=fuzzing",
];
const SANITIZER_FLAG: &str = "-Zsanitizer=address";
/// Writes the first inputs; it is not instrumented, for the coverage's symbols come with libFuzzer or with the sanitizer.
const SEEDS: &str = "nbd_seeds";
/// Leaks are what the targets count themselves; little is kept of what was freed, or executions would wait for new memory.
const ASAN_OPTIONS: &str =
    "detect_leaks=0:quarantine_size_mb=8:detect_stack_use_after_return=0:malloc_context_size=2";

/// What to run, and how much of it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this one [default: all, two at a time]
    #[arg(long, value_enum)]
    target: Option<Target>,
    /// How long each [default: 60]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,
    /// How often each, however long it takes
    #[arg(long, value_name = "N", conflicts_with = "seconds")]
    executions: Option<u64>,
    /// Without AddressSanitizer: six times as many executions; only the oracles judge
    #[arg(long)]
    no_sanitizer: bool,
    /// Merge what was found into the corpus of the repository
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Handshake,
    Transmission,
    Session,
}

impl Target {
    fn program(self) -> &'static str {
        match self {
            Self::Handshake => "nbd_handshake",
            Self::Transmission => "nbd_transmission",
            Self::Session => "nbd_session",
        }
    }

    /// Bytes of an input: of a client's options, or of decisions.
    fn input_bytes_max(self) -> u32 {
        if self == Self::Handshake { 8192 } else { 1024 }
    }
}

/// What decides when a target is done.
#[derive(Debug, Clone, Copy)]
enum Until {
    Seconds(u64),
    Executions(u64),
}

/// Where things are.
struct Places {
    programs: PathBuf,
    seeds: PathBuf,
    /// What is found goes here.
    found: PathBuf,
    crate_root: PathBuf,
}

/// `cargo xtask fuzz`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let progress = Progress::start();
    prepare(workspace, Purpose::Build, &progress)?;
    if !has_nightly() {
        bail!(
            "libFuzzer's targets need nightly: `rustup toolchain install nightly`; the properties run without: {STABLE}"
        );
    }
    let targets = options.target.map_or_else(|| Target::value_variants().to_vec(), |target| vec![target]);
    let until =
        options.executions.map_or(Until::Seconds(options.seconds.unwrap_or(SECONDS)), Until::Executions);
    let places = build(workspace, !options.no_sanitizer, &progress)?;
    fuzz(&places, &targets, until, &progress)?;
    if options.keep {
        targets.iter().try_for_each(|&target| keep(&places, target, &progress))?;
    }
    Ok(())
}

/// What remains where there is no nightly.
const STABLE: &str = "`cargo nextest run -p nbd-fuzz`";

/// All targets for a minute each, as a step of `cargo xtask test`.
pub(crate) fn check(workspace: &Workspace, progress: &Progress) -> Result<()> {
    if !has_nightly() {
        progress
            .say("fuzzing: skipped, only its properties run; `rustup toolchain install nightly` brings it");
        return Ok(());
    }
    progress.say(&format!("fuzzing, {SECONDS} s a target, two at a time"));
    let places = build(workspace, true, progress)?;
    fuzz(&places, Target::value_variants(), Until::Seconds(SECONDS), progress)
        .context("check failed: fuzzing")
}

fn build(workspace: &Workspace, sanitizer: bool, progress: &Progress) -> Result<Places> {
    progress.say(&format!(
        "building the fuzz targets (nightly, {} AddressSanitizer)",
        if sanitizer { "with" } else { "without" }
    ));
    let found = workspace.target.join("fuzz").join("found");
    let target_dir = workspace.target.join(if sanitizer { "fuzz" } else { "fuzz-plain" });
    let mut flags = FLAGS.join(" ");
    if sanitizer {
        flags = format!("{flags} {SANITIZER_FLAG}");
    }
    let mut build = process::command("cargo");
    build.args(["+nightly", "build", "--quiet", "--profile", "fuzz", "--target", SANITIZER_TARGET]);
    build.args(["-p", "nbd-fuzz", "--features", "libfuzzer"]).current_dir(&workspace.root);
    build.args(Target::value_variants().iter().flat_map(|target| ["--bin", target.program()]));
    build.env("RUSTFLAGS", flags).env("CARGO_TARGET_DIR", &target_dir);
    process::run_visibly(&mut build)?;
    let mut build = process::command("cargo");
    build.args(["build", "--quiet", "-p", "nbd-fuzz", "--bin", SEEDS]).current_dir(&workspace.root);
    process::run_visibly(&mut build)?;
    Ok(Places {
        programs: target_dir.join(SANITIZER_TARGET).join("fuzz"),
        seeds: workspace.target.join("debug").join(SEEDS),
        found,
        crate_root: workspace.root.join("nbd-fuzz"),
    })
}

/// Runs them, two at a time; the first that finds something is the error.
fn fuzz(places: &Places, targets: &[Target], until: Until, progress: &Progress) -> Result<()> {
    for pair in targets.chunks(2) {
        let running = |&target: &Target| Ok((target, start(places, target, until)?));
        let running: Vec<_> = pair.iter().map(running).collect::<Result<_>>()?;
        let ended: Vec<_> =
            running.into_iter().map(|(target, run)| tell(places, target, run, progress)).collect();
        ended.into_iter().collect::<Result<()>>()?;
    }
    Ok(())
}

impl Places {
    fn corpus(&self, target: Target) -> PathBuf {
        self.crate_root.join("corpus").join(target.program())
    }

    fn found(&self, target: Target) -> PathBuf {
        self.found.join(target.program())
    }

    fn log(&self, target: Target) -> PathBuf {
        self.found.join(format!("{}.log", target.program()))
    }

    fn artifacts(&self, target: Target) -> String {
        format!("{}/{}-", self.found.display(), target.program())
    }

    /// A target's program with what every run of it has.
    fn program(&self, target: Target) -> Command {
        let mut program = Command::new(self.programs.join(target.program()));
        program.env("ASAN_OPTIONS", ASAN_OPTIONS).current_dir(&self.crate_root);
        program
            .arg(format!("-timeout={TIMEOUT_SECONDS}"))
            .arg(format!("-max_len={}", target.input_bytes_max()));
        program.arg("-print_funcs=0").arg(format!("-artifact_prefix={}", self.artifacts(target)));
        program
    }
}

/// A target under way; its words go into its log.
fn start(places: &Places, target: Target, until: Until) -> Result<ChildGuard> {
    let found = places.found(target);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut program = places.program(target);
    program.arg(&found).arg(places.corpus(target)).arg("-print_final_stats=1");
    match until {
        Until::Seconds(seconds) => program.arg(format!("-max_total_time={seconds}")),
        Until::Executions(executions) => program.arg(format!("-runs={executions}")),
    };
    if target == Target::Handshake {
        process::run(Command::new(&places.seeds).arg(&found))?;
        program.arg(format!("-dict={}", places.crate_root.join("nbd.dict").display()));
    }
    let log = places.log(target);
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    program.stdout(file.try_clone()?).stderr(file);
    Ok(ChildGuard::spawn(&mut program)?)
}

/// Waits for a target's end and says what came of it.
fn tell(places: &Places, target: Target, mut run: ChildGuard, progress: &Progress) -> Result<()> {
    let status = run.wait()?;
    let log = places.log(target);
    let words = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    let words = String::from_utf8_lossy(&words);
    if status.success() {
        progress.show(&format!("{}: {}", target.program(), totals(&words)));
        return Ok(());
    }
    progress.show(&format!("{} has found something:", target.program()));
    words.lines().skip_while(|line| !is_finding(line)).take(LINES).for_each(|line| progress.show(line));
    if let Some(file) = words.lines().find_map(|line| line.split_once("Test unit written to ")) {
        let program = places.programs.join(target.program());
        progress.show(&format!("again: {} {}", program.display(), file.1));
    }
    bail!("{} ended with {status}; all that it said: {}", target.program(), log.display())
}

/// Where a log gets interesting.
fn is_finding(line: &str) -> bool {
    line.contains("panicked at") || line.starts_with("memory allocation of") || line.contains("ERROR: ")
}

/// Executions, coverage and inputs, out of libFuzzer's last words.
fn totals(words: &str) -> String {
    let number = |name: &str| {
        let line = words.lines().rev().find_map(|line| line.split_once(name))?;
        line.1.split_whitespace().next()
    };
    let tell = |name: &str, what: &str| format!("{} {what}", number(name).unwrap_or("unknown"));
    [
        tell("stat::number_of_executed_units:", "executions"),
        tell("stat::average_exec_per_sec:", "a second"),
        tell(" cov: ", "branches"),
        tell(" ft: ", "features"),
        tell("stat::new_units_added:", "new inputs"),
    ]
    .join(", ")
}

/// Makes the repository's corpus anew, of its own inputs and those that were found: as few as reach as much.
fn keep(places: &Places, target: Target, progress: &Progress) -> Result<()> {
    let (corpus, merged) = (places.corpus(target), places.found.join(format!("{}-merged", target.program())));
    remove(&merged)?;
    fs::create_dir_all(&merged).with_context(|| format!("cannot make {}", merged.display()))?;
    let mut merge = places.program(target);
    merge.arg("-set_cover_merge=1").args([&merged, &corpus, &places.found(target)]);
    process::run(&mut merge)?;
    remove(&corpus)?;
    fs::create_dir_all(&corpus).with_context(|| format!("cannot make {}", corpus.display()))?;
    let mut inputs = 0;
    for file in fs::read_dir(&merged)? {
        let file = file?;
        fs::copy(file.path(), corpus.join(file.file_name()))?;
        inputs += 1;
    }
    progress.show(&format!("{}: {inputs} inputs are kept", target.program()));
    Ok(())
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_last_ones() {
        let words = "#2 INITED cov: 1 ft: 2 corp: 1/1b\n#9\tDONE   cov: 30 ft: 40 corp: 5/6b\n\
            stat::number_of_executed_units: 9\nstat::average_exec_per_sec:     3\nstat::new_units_added: 4\n";
        assert_eq!(totals(words), "9 executions, 3 a second, 30 branches, 40 features, 4 new inputs");
        assert!(totals("").starts_with("unknown executions"));
    }

    #[test]
    fn findings_are_where_the_server_or_the_sanitizer_speaks() {
        assert!(is_finding("thread '<unnamed>' (1) panicked at nbd-fuzz/src/heap.rs:22:9:"));
        assert!(is_finding("==1== ERROR: libFuzzer: deadly signal"));
        assert!(!is_finding("#2 INITED cov: 1 ft: 2"));
    }
}
