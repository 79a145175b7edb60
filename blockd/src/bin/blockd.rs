//! `blockd`: the daemon, and the tools for a store that is not served.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use blockd::config::{self, Config, Settings};
use blockd::exit_code;
use blockd::failure::Failure;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

const EXAMPLES: &str = "\
Examples:
  blockd serve --data /var/lib/blockd
      serve the store in that directory; made if there is none
  blockd serve --config /etc/blockd/blockd.toml
  blockd check-config /etc/blockd/blockd.toml
  blockd fsck /var/lib/blockd
      check a store that is not being served

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 in use, 5 refused, 8 verification failed.";

/// Serves volumes over NBD, with snapshots and clones. `blockctl` talks to it.
#[derive(Parser, Debug)]
#[command(name = "blockd", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Serve a store until SIGTERM or Ctrl-C.
    #[command(after_help = "Example:\n  blockd serve --data /var/lib/blockd --cache direct")]
    Serve(Box<Serve>),
    /// Say whether a configuration file is right, without doing anything.
    #[command(after_help = "Example:\n  blockd check-config /etc/blockd/blockd.toml")]
    CheckConfig {
        /// The file.
        file: PathBuf,
    },
    /// Check a store that is not being served.
    #[command(after_help = "Example:\n  blockd fsck /var/lib/blockd --json")]
    Fsck(Fsck),
    /// Show what is stored, without changing it.
    #[command(after_help = "Example:\n  blockd inspect /var/lib/blockd volumes")]
    Inspect(Inspect),
}

#[derive(Args, Debug)]
struct Serve {
    /// Configuration file; its keys are the flags below, with _ for -.
    #[arg(long, value_name = "FILE", env = "BLOCKD_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Args, Debug)]
struct Fsck {
    /// The data directory.
    dir: PathBuf,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// Repair what can be repaired without guessing.
    #[arg(long)]
    repair: bool,
}

#[derive(Args, Debug)]
struct Inspect {
    /// The data directory.
    dir: PathBuf,
    /// What to show; without it, an overview.
    query: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(serve) => run_daemon(*serve),
        Command::CheckConfig { file } => check_config(&file),
        Command::Fsck(fsck) => check_store(&fsck),
        Command::Inspect(inspect) => inspect_store(&inspect),
    };
    match result {
        Ok(()) => ExitCode::from(exit_code::OK),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn run_daemon(serve: Serve) -> Result<(), Failure> {
    let config = config::load(serve.settings, serve.config.as_deref())?;
    start_log(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let fail = |error| Failure::new(exit_code::FAILED, "cannot start", error, "ulimit -a    (descriptors)");
    runtime.map_err(fail)?.block_on(serve_store(&config))
}

fn start_log(filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::new(exit_code::USAGE, "the log filter is wrong", error, "blockd serve --log debug …")
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    Ok(())
}

fn check_config(file: &Path) -> Result<(), Failure> {
    let config = config::check_file(file)?;
    println!("{}: ok; data in {}", file.display(), config.data.display());
    Ok(())
}

fn not_in_this_build(what: &str) -> Failure {
    Failure::new(exit_code::FAILED, what, "this build has no store yet", "blockd --version")
}

async fn serve_store(config: &Config) -> Result<(), Failure> {
    Err(not_in_this_build(&format!("cannot serve {}", config.data.display())))
}

fn check_store(fsck: &Fsck) -> Result<(), Failure> {
    tracing::debug!(json = fsck.json, repair = fsck.repair, "fsck");
    Err(not_in_this_build(&format!("cannot check {}", fsck.dir.display())))
}

fn inspect_store(inspect: &Inspect) -> Result<(), Failure> {
    Err(not_in_this_build(&format!("cannot show {:?} of {}", inspect.query, inspect.dir.display())))
}
