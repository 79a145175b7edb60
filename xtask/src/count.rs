//! Instructions of the hot path, counted by callgrind: what a quiet machine would be needed for otherwise.
//!
//! Each part (`benches::parts`) is run twice with different numbers of units; the difference is what the units cost, without
//! setting up. docs/instructions.md has what was last recorded.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use fixtures::packages::Purpose;
use fixtures::process;

use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;

/// The page with the counts, below docs/.
const PAGE: &str = "instructions.md";
/// Before the table.
const HEAD: &str = "\
# Instructions of the hot path

Counted by callgrind (`cargo xtask count`; `--record` writes this page), a unit of each part of `benches::parts`, in the
release build. Data are moved in memory, the kernel's share is not in them. A count that has grown by more than 3 % without
a reason is a regression; it needs no quiet machine to be seen. The client that hands over bytes, and the disk, are in them:
4,400 of a write, 400 of a read.

| part | a unit is | instructions |
|---|---|---:|
";
/// How much more than recorded is a regression.
const TOLERATED: f64 = 0.03;
/// Units of the shorter run, in batches; the longer has three times as many.
const BATCHES: usize = 32;

/// What to do with the counts.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Write them to docs/instructions.md
    #[arg(long)]
    record: bool,
}

/// A part, as `parts --list` tells of it.
struct Part {
    name: String,
    batch: usize,
    unit: String,
}

/// `cargo xtask count`.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let progress = Progress::start();
    if process::find_program("valgrind").is_none() {
        bail!("callgrind counts the instructions, and valgrind is not there: apt-get install valgrind");
    }
    prepare(workspace, Purpose::Build, &progress)?;
    let mut build = process::command("cargo");
    build.args(["build", "--quiet", "--release", "-p", "benches", "--bin", "parts"]);
    progress.say("building the parts (release)");
    process::run_visibly(build.current_dir(&workspace.root))?;
    let program = workspace.target.join("release").join("parts");
    let page = workspace.root.join("docs").join(PAGE);
    let recorded = recorded(&page)?;
    let mut lines = String::new();
    let mut grown = Vec::new();
    for part in parts(&program)? {
        let count = count(workspace, &program, &part)?;
        let before = recorded.iter().find(|(name, _)| *name == part.name).map(|(_, count)| *count);
        let change =
            before.map_or("new".to_owned(), |before| format!("{:+.1} %", (count / before - 1.0) * 100.0));
        progress.show(&format!("{:<20} {count:>12.1} instructions a unit, {change}", part.name));
        lines += &format!("| {} | {} | {count:.1} |\n", part.name, part.unit);
        if before.is_some_and(|before| count > before * (1.0 + TOLERATED)) {
            grown.push(part.name);
        }
    }
    if options.record {
        return fs::write(&page, format!("{HEAD}{lines}")).with_context(|| format!("cannot write {PAGE}"));
    }
    if grown.is_empty() {
        return Ok(());
    }
    bail!("more instructions than docs/{PAGE} says: {} (--record, if there is a reason)", grown.join(", "))
}

fn parts(program: &Path) -> Result<Vec<Part>> {
    let listed = process::run(Command::new(program).arg("--list"))?;
    let part = |line: &str| {
        let mut fields = line.splitn(3, '\t').map(str::to_owned);
        let (name, batch, unit) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Part { name, batch: batch.parse().ok()?, unit })
    };
    listed.stdout.lines().map(|line| part(line).with_context(|| format!("{line:?} is no part"))).collect()
}

/// Instructions of a unit.
fn count(workspace: &Workspace, program: &Path, part: &Part) -> Result<f64> {
    let (few, many) = (BATCHES * part.batch, 3 * BATCHES * part.batch);
    let cost = |units: usize| total(workspace, program, &part.name, units);
    let (less, more) = (cost(few)?, cost(many)?);
    Ok((more as f64 - less as f64) / (many - few) as f64)
}

/// Instructions of a whole run.
fn total(workspace: &Workspace, program: &Path, part: &str, units: usize) -> Result<u64> {
    let out = workspace.target.join("callgrind.out");
    let mut valgrind = process::command("valgrind");
    valgrind.arg("--tool=callgrind").arg(format!("--callgrind-out-file={}", out.display()));
    process::run(valgrind.arg(program).arg(part).arg(units.to_string()))?;
    let written = fs::read_to_string(&out).with_context(|| format!("cannot read {}", out.display()))?;
    totals(&written).context("callgrind has written no totals")
}

fn totals(written: &str) -> Option<u64> {
    let line = written.lines().find_map(|line| line.strip_prefix("totals: "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Name and count of each row of the page; none without a page.
fn recorded(page: &Path) -> Result<Vec<(String, f64)>> {
    match fs::read_to_string(page) {
        Ok(text) => Ok(rows(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", page.display())),
    }
}

fn rows(text: &str) -> Vec<(String, f64)> {
    let row = |line: &str| {
        let fields: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        Some(((*fields.first()?).to_owned(), fields.get(2)?.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_read_as_it_is_written() {
        let page = format!("{HEAD}| parse-request | one header | 12.5 |\n| map-lookup | one | 7.0 |\n");
        assert_eq!(rows(&page), [("parse-request".to_owned(), 12.5), ("map-lookup".to_owned(), 7.0)]);
    }

    #[test]
    fn totals_are_the_first_number() {
        assert_eq!(totals("events: Ir\nsummary: 9\ntotals: 1234\n"), Some(1234));
        assert_eq!(totals("events: Ir\n"), None);
    }
}
