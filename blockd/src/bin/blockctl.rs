//! `blockctl`: the client of `blockd`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    blockd::cli::main()
}
