//! `vmctl`: its commands and its output.
//!
//! ```text
//! args (what may be typed) → one function a command (agent, vm, status, console) → output
//! ```

pub mod args;

mod agent;
mod console;
mod migrate;
mod output;
mod report;
mod status;
pub mod vm;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::agent::api::client::AgentClient;
use crate::exit_code;
use crate::failure::{self, Failure};
use crate::http::HttpError;
use args::{Cli, Command, Format};

/// Runs one command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let fail = |error| Failure::new(exit_code::FAILED, "cannot start", error, "ulimit -a    (descriptors)");
    let result = runtime.map_err(fail).and_then(|runtime| {
        let result = runtime.block_on(run(cli));
        // A blocking read of the terminal must not hold the end up.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => ExitCode::from(exit_code::OK),
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// With the reader of our output gone there is nothing to say, and perhaps nobody to say it to.
fn tell(failure: &Failure) {
    if !output::is_reader_gone(failure) && writeln!(std::io::stderr(), "{failure}").is_err() {
        // The exit code says it.
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    let context = Context { client: AgentClient::new(cli.socket_or_default()), format: cli.output };
    match cli.command {
        Command::Agent(args) => agent::run(*args, cli.socket).await,
        Command::Vm(command) => vm::run(&context, command).await,
        Command::Migrate(args) => migrate::migrate(&context, args).await,
        Command::Abort(args) => migrate::abort(&context, args).await,
        Command::Rollback(args) => migrate::rollback(&context, args).await,
        Command::Recover(args) => migrate::recover(&context, args).await,
        Command::Report(args) => report::report(&context, args).await,
        Command::Status(args) => status::run(&context, args).await,
        Command::Completion { shell } => complete(shell),
    }
}

fn complete(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vmctl", &mut script);
    output::write(&script)
}

/// What every command gets.
struct Context {
    client: AgentClient,
    format: Format,
}

impl Context {
    /// Whether results are for people.
    fn for_people(&self) -> bool {
        self.format == Format::Table
    }
}

/// Tells what was tried when the agent says no.
trait Trying<T> {
    /// The failure's first line.
    fn trying(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Trying<T> for Result<T, HttpError> {
    fn trying(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| failure::of_client(what(), &error))
    }
}
