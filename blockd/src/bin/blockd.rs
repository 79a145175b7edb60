//! `blockd`: the daemon, and the tools for a store that is not served.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use blockd::config::{self, Config, Settings};
use blockd::daemon;
use blockd::decompress::probe::{self, Probe};
use blockd::decompress::worker;
use blockd::exit_code;
use blockd::failure::Failure;
use blockd::fsck::{self, FsckOptions};
use blockd::host::Host;
use blockd::inspect::{self, InspectError, InspectQuery};
use clap::{Args, Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tracing_subscriber::EnvFilter;

/// How long threads of long-running requests may take to notice that nobody waits for them any more.
const THREADS_TIME_MAX: Duration = Duration::from_secs(5);

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
    /// Decompress what comes over descriptor 0, confined: started by the daemon itself.
    #[command(hide = true)]
    Decompress {
        /// Try what must be refused instead; what seccomp refuses ends with SIGSYS.
        #[arg(long)]
        probe: Option<Probe>,
    },
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
    /// What to show: all, catalog, maps [LAYER], hashes [LAYER], roots, journal, mark, superblocks, checkpoint.
    query: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Serve(serve) => run_daemon(*serve),
        Command::CheckConfig { file } => check_config(&file),
        Command::Fsck(fsck) => check_store(&fsck),
        Command::Inspect(inspect) => inspect_store(&inspect),
        Command::Decompress { probe } => decompress(probe),
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
    hide_memory();
    daemon::keep_freed_memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let fail = |error| Failure::new(exit_code::FAILED, "cannot start", error, "ulimit -a    (descriptors)");
    let runtime = runtime.map_err(fail)?;
    let result = runtime.block_on(serve_store(&config));
    // A thread that still reads for a client which has been cut off must not hold the end up.
    runtime.shutdown_timeout(THREADS_TIME_MAX);
    result
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

/// Guests' data are in our memory: no core dump, no look at it by other processes of the same user.
fn hide_memory() {
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "core dumps cannot be turned off");
    }
}

fn check_config(file: &Path) -> Result<(), Failure> {
    let config = config::check_file(file)?;
    println!("{}: ok; data in {}", file.display(), config.data.display());
    Ok(())
}

fn decompress(probe: Option<Probe>) -> Result<(), Failure> {
    let done = probe.map_or_else(worker::run, probe::probe);
    done.map_err(|error| {
        Failure::new(exit_code::FAILED, "cannot decompress", error, "blockd decompress --help")
    })
}

async fn serve_store(config: &Config) -> Result<(), Failure> {
    daemon::serve(config, async |opening| Host::start(opening)).await
}

fn check_store(options: &Fsck) -> Result<(), Failure> {
    let shown = options.dir.display();
    let what = format!("cannot check {shown}");
    let check = fsck::fsck(&options.dir, FsckOptions { repair: options.repair });
    let report = check.map_err(|error| offline_failure(&what, &error, &options.dir))?;
    if options.json {
        println!("{}", serde_json::json!(report));
    } else {
        println!("{report}");
    }
    if report.is_clean() {
        return Ok(());
    }
    let why = format!("{} errors", report.errors);
    let next = format!("blockd fsck {shown} --json; blockd inspect {shown}");
    Err(Failure::new(exit_code::VERIFICATION_FAILED, format!("{shown} is damaged"), why, next))
}

fn inspect_store(options: &Inspect) -> Result<(), Failure> {
    let query = options.query.iter().map(String::as_str).collect::<Vec<_>>();
    let query: InspectQuery = query[..].try_into().map_err(|error: String| {
        Failure::new(exit_code::USAGE, "cannot show that", error, "blockd inspect --help")
    })?;
    let what = format!("cannot show {}", options.dir.display());
    let mut out = std::io::stdout().lock();
    match inspect::inspect(&options.dir, query, &mut out) {
        // Whoever reads has seen enough.
        Err(InspectError::Io(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.map_err(|error| offline_failure(&what, &error, &options.dir)),
    }
}

fn offline_failure(what: &str, error: &dyn std::error::Error, dir: &Path) -> Failure {
    let text = error.to_string();
    let shown = dir.display();
    let (code, next) = if text.contains("in use") {
        (exit_code::BUSY, format!("fuser -v {shown}/lock    (stop the daemon first)"))
    } else if text.contains("not a store") {
        (exit_code::NOT_FOUND, format!("ls -la {shown}"))
    } else {
        (exit_code::VERIFICATION_FAILED, format!("blockd fsck {shown}"))
    };
    Failure::new(code, what, text, next)
}
