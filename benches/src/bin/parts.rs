//! `parts PART UNITS`: does so many units of one part of the hot path, for callgrind to count (`cargo xtask count`).

#![forbid(unsafe_code)]

use std::io::{self, Write};

use benches::parts::Part;
use clap::{Parser, ValueEnum};

/// Does so many units of one part of the hot path.
#[derive(Debug, Parser)]
#[command(name = "parts", version)]
struct Options {
    /// Which part
    #[arg(value_enum, required_unless_present = "list")]
    part: Option<Part>,
    /// How often, in multiples of the part's batch
    #[arg(default_value_t = 0)]
    units: usize,
    /// Tell of each part its name, its batch and what a unit is, between tabulators
    #[arg(long)]
    list: bool,
}

fn main() -> io::Result<()> {
    let options = Options::parse();
    if options.list {
        return list();
    }
    if let Some(part) = options.part {
        part.set_up().run(options.units);
    }
    Ok(())
}

fn list() -> io::Result<()> {
    let mut out = io::stdout();
    Part::value_variants()
        .iter()
        .try_for_each(|part| writeln!(out, "{}\t{}\t{}", part.name(), part.batch(), part.unit()))
}
