//! The developer's doors: everything that one does with this workspace, as `cargo xtask …`.
//!
//! Each door says which Debian packages it needs and installs them when it runs as root. What is written goes
//! below cargo's target directory; the one exception is the compiled RocksDB (module `rocksdb`), which all
//! clones of the repository share.

#![forbid(unsafe_code)]

mod checks;
mod compare;
mod count;
mod crash;
mod demo;
mod deny;
mod fuzz;
mod progress;
mod rocksdb;
mod soak;
mod workspace;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand, ValueEnum};
use fixtures::packages::{self, Purpose};
use fixtures::process::{check_interrupt, interrupt_flag};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use progress::Progress;
use workspace::Workspace;

/// What shells report for a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "The doors of this workspace: what one runs, sees and checks",
    version
)]
struct Cli {
    #[command(subcommand)]
    door: Door,
}

#[derive(Debug, Subcommand)]
enum Door {
    /// Install the Debian packages that a door needs (as root; else print the command to type), and compile
    /// RocksDB, once per host
    Setup {
        /// Which door they are for
        #[arg(long = "for", value_enum, default_value = "test")]
        purpose: SetupFor,
    },
    /// Tell blockd's story with real guests: import, snapshot, clone, a kill -9, rollback, all checked from outside
    Demo {
        /// Keep store and image afterwards (logs are always kept)
        #[arg(long)]
        keep: bool,
    },
    /// Run every check: format, lints, licences, sanitizer, fuzzing, docs, then all tests
    Test {
        /// Random cases of the model test [default: 2000, with --quick 200]
        #[arg(long)]
        cases: Option<u32>,
        /// Fewer model cases; no licences, no sanitizer, no fuzzing, no docs
        #[arg(long)]
        quick: bool,
    },
    /// Run only the model test, in release, with many random cases
    Model {
        /// Random cases
        #[arg(long, default_value_t = 100_000)]
        cases: u32,
    },
    /// Feed the NBD server what libFuzzer makes, guided by what code it reaches, and compare with oracles
    Fuzz(fuzz::Options),
    /// Count the instructions of the hot path with callgrind, and compare with docs/instructions.md
    Count(count::Options),
    /// Crash blockd again and again under load, and compare every block after each start
    Crash(crash::Options),
    /// Replicate from one blockd to another over a link that breaks, kill both, and compare what has arrived
    Soak(soak::Options),
    /// Measure our server and its peers side by side
    Compare {
        /// Arguments for the comparison itself; `--help` shows them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Check licences, bans and sources of every dependency with cargo-deny, installed below target/ if
    /// missing
    Deny {
        /// Also check the advisory database, which is fetched from the net
        #[arg(long)]
        advisories: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SetupFor {
    Build,
    Demo,
    Test,
    Compare,
}

impl From<SetupFor> for Purpose {
    fn from(purpose: SetupFor) -> Self {
        match purpose {
            SetupFor::Build => Self::Build,
            SetupFor::Demo => Self::Demo,
            SetupFor::Test => Self::Test,
            SetupFor::Compare => Self::Compare,
        }
    }
}

fn main() -> ExitCode {
    let Err(error) = watch_signals().and_then(|()| open(Cli::parse().door)) else { return ExitCode::SUCCESS };
    // Asked of the flag, not of the error: Ctrl-C also reaches our children, and their end may be noticed
    // first.
    if check_interrupt().is_err() {
        eprintln!("interrupted; everything started here has been stopped");
        return ExitCode::from(INTERRUPTED);
    }
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

/// The first signal makes every wait fail, so that guards clean up; the second ends this process at once.
fn watch_signals() -> Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order: the handler that ends the process must find the flag as earlier signals left it.
        flag::register_conditional_shutdown(signal, i32::from(INTERRUPTED), interrupt_flag())
            .and_then(|_| flag::register(signal, interrupt_flag()))
            .context("cannot watch for Ctrl-C")?;
    }
    Ok(())
}

fn open(door: Door) -> Result<()> {
    let workspace = Workspace::find()?;
    match door {
        Door::Setup { purpose } => setup(&workspace, purpose.into()),
        Door::Demo { keep } => demo::run(&workspace, keep),
        Door::Test { cases, quick } => checks::test(&workspace, cases, quick),
        Door::Model { cases } => checks::model(&workspace, cases),
        Door::Fuzz(options) => fuzz::run(&workspace, &options),
        Door::Count(options) => count::run(&workspace, &options),
        Door::Crash(options) => crash::run(&workspace, &options),
        Door::Soak(options) => soak::run(&workspace, &options),
        Door::Compare { args } => compare::run(&workspace, &args),
        Door::Deny { advisories } => deny::run(&workspace, advisories),
    }
}

fn setup(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    let progress = Progress::start();
    ensure_packages(purpose, &progress)?;
    let library = rocksdb::ensure(workspace, &progress)?;
    println!("All there:");
    for package in purpose.packages() {
        println!("  {:<18} {}", package.name, package.why);
    }
    println!("  {:<18} {}", "RocksDB, compiled", library.display());
    Ok(())
}

/// What every door that builds the workspace begins with; says something only when it takes time.
fn prepare(workspace: &Workspace, purpose: Purpose, progress: &Progress) -> Result<()> {
    ensure_packages(purpose, progress)?;
    rocksdb::ensure(workspace, progress)?;
    Ok(())
}

fn ensure_packages(purpose: Purpose, progress: &Progress) -> Result<()> {
    packages::ensure(purpose, &mut |line| progress.say(line))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn compare_passes_options_through() {
        let cli = Cli::parse_from(["xtask", "compare", "--seconds", "3", "--help"]);
        assert!(matches!(cli.door, Door::Compare { args } if args == ["--seconds", "3", "--help"]));
    }
}
