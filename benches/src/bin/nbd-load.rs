//! `nbd-load`: load on an NBD export, by a client of our own.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use benches::interrupt::{EXIT_INTERRUPTED, Interrupt};
use benches::load::{Pattern, Report, Target, Times, Workload, block_bytes, run};
use benches::trouble::{OrTrouble, Trouble};
use clap::Parser;

/// Puts load on an NBD export over a Unix socket and tells how many requests it served, and how fast.
///
/// One thread, one io_uring. Whatever may be sent goes out in one call; payload that was read is stepped over, not
/// looked at. A server that answers with an error or breaks the protocol ends the run.
#[derive(Debug, Parser)]
#[command(name = "nbd-load", version, after_help = EXAMPLES)]
struct Arguments {
    /// The server's Unix socket
    #[arg(long, value_name = "SOCKET")]
    unix: PathBuf,

    /// The export's name [default: the default export]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    export: String,

    /// What is done where
    #[arg(long, value_name = "PATTERN")]
    rw: Pattern,

    /// Bytes of each request, with k or m
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = block_bytes)]
    bs: u32,

    /// Requests in flight on each connection
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    depth: u32,

    /// Connections
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    connections: u32,

    /// A flush after so many writes of a connection; it is one of the requests in flight
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    fsync: Option<u32>,

    /// Seconds that are measured
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    runtime: u32,

    /// Seconds of load before, which are not counted
    #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=3600))]
    ramp: u32,

    /// Do not ask for structured replies
    #[arg(long)]
    simple: bool,

    /// What the blocks are drawn from [default: another in each run]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  nbd-load --unix /run/nbd.sock --rw randread
  nbd-load --unix /run/nbd.sock --export disk --rw randwrite --bs 4k --depth 8 --connections 4 --fsync 32
  nbd-load --unix /run/nbd.sock --rw read --bs 256k --depth 16 --simple --ramp 2 --runtime 30 --json

Writing patterns overwrite the export with noise.

Exit codes: 0 measured, 1 something failed, 2 usage, 130 interrupted.";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.fsync.is_some() && !arguments.rw.writes() {
        // Nothing would ever be flushed.
        let mut command = <Arguments as clap::CommandFactory>::command();
        command.error(clap::error::ErrorKind::ArgumentConflict, "--fsync needs a pattern that writes").exit();
    }
    let interrupt = match Interrupt::install() {
        Ok(interrupt) => interrupt,
        Err(trouble) => return fail(&trouble, false),
    };
    match measure(&arguments, &interrupt).and_then(|report| show(&report, arguments.json)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => fail(&trouble, interrupt.requested()),
    }
}

fn measure(arguments: &Arguments, interrupt: &Interrupt) -> Result<Report, Trouble> {
    let target =
        Target { socket: arguments.unix.clone(), export: arguments.export.clone(), simple: arguments.simple };
    let workload = Workload {
        pattern: arguments.rw,
        block_bytes: arguments.bs,
        depth: arguments.depth,
        connections: arguments.connections,
        flush_every: arguments.fsync,
        seed: arguments.seed.unwrap_or_else(|| fastrand::u64(..)),
    };
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let times = Times { ramp: seconds(arguments.ramp), runtime: seconds(arguments.runtime) };
    run(&target, workload, times, interrupt)
}

/// Not by println!, which would end the program when the reader has gone.
fn show(report: &Report, json: bool) -> Result<(), Trouble> {
    let text = if json {
        serde_json::to_string_pretty(report).or_trouble(|| "write the result".into(), "leave out --json")?
    } else {
        report.to_string()
    };
    writeln!(io::stdout(), "{text}").or_trouble(|| "print the result".into(), "look where the output goes")
}

fn fail(trouble: &Trouble, interrupted: bool) -> ExitCode {
    eprintln!("{trouble}");
    if interrupted { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Arguments as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let parse = |rest: &[&str]| {
            Arguments::try_parse_from([&["nbd-load", "--unix", "/s", "--rw", "randread"], rest].concat())
        };
        assert_eq!(parse(&["--bs", "64k"]).unwrap().bs, 65_536);
        for wrong in
            [["--depth", "0"], ["--connections", "0"], ["--bs", "0"], ["--runtime", "0"], ["--rw", "trim"]]
        {
            assert!(parse(&wrong).is_err(), "{wrong:?}");
        }
    }
}
