//! `vmctl`: the client, and with `vmctl agent` the agent of a host.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    vmctl::cli::main()
}
