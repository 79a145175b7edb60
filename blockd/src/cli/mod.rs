//! `blockctl`: its commands and its output.
//!
//! ```text
//! args (what may be typed) → one function a command (volume, snapshot, export, job, follow, watch) → output
//! ```

pub mod args;

mod context;
mod output;
mod progress;
mod time;

pub mod client;
mod export;
mod export_temporary;
pub mod host;
pub mod keep;
mod mirror;
pub mod replica;
mod scrub;
mod snapshot;
mod volume;
mod watch;

pub mod follow;
pub mod job;
mod standing;

mod archive;
mod export_file;
mod import;
pub mod nbd_client;
mod qemu_img;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::exit_code;
use crate::failure::Failure;
use args::{Cli, Command};
use context::Context;

/// Runs one command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let fail = |error| Failure::new(exit_code::FAILED, "cannot start", error, "ulimit -a    (descriptors)");
    let result = runtime.map_err(fail).and_then(|runtime| {
        let result = runtime.block_on(run(cli));
        // A blocking read of a file or of the terminal must not hold the end up.
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
    let context = Context::new(&cli);
    match cli.command {
        Command::Volume(command) => volume::run(&context, command).await,
        Command::Snapshot(command) => snapshot::run(&context, command).await,
        Command::Clone(clone) => snapshot::clone(&context, clone).await,
        Command::Export(command) => export::run(&context, command).await,
        Command::Mirror(command) => mirror::run(&context, command).await,
        Command::Archive(command) => archive::run(&context, command).await,
        Command::Client(command) => client::run(&context, command).await,
        Command::Host(command) => host::run(&context, command).await,
        Command::Replica(command) => replica::run(&context, command).await,
        Command::Status => watch::status(&context).await,
        Command::Top(top) => watch::top(&context, &top).await,
        Command::Check => watch::check(&context).await,
        Command::Events(events) => watch::events(&context, &events).await,
        Command::Scrub { volume, repair } => scrub::scrub(&context, volume, repair).await,
        Command::Job(command) => job::run(&context, command).await,
        Command::Sync(args) => follow::sync(&context, *args).await,
        Command::Metrics => watch::metrics(&context).await,
        Command::Completion { shell } => complete(shell),
    }
}

fn complete(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "blockctl", &mut script);
    output::write(&script)
}
