//! `cargo xtask compare`: our server and its peers side by side.

#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use benches::campaign::compare;
use benches::interrupt::{EXIT_INTERRUPTED, Interrupt};
use benches::options::Options;
use benches::plots;
use benches::report;
use benches::results::Results;
use benches::targets::all_met;
use benches::trouble::{OrTrouble, Trouble};
use clap::Parser;

fn main() -> ExitCode {
    let options = Options::parse();
    let interrupt = match Interrupt::install() {
        Ok(interrupt) => interrupt,
        Err(trouble) => return fail(&trouble, None),
    };
    match run(&options, &interrupt) {
        Ok(results) => exit_code(&results, options.strict),
        Err(trouble) => fail(&trouble, Some(&interrupt)),
    }
}

fn run(options: &Options, interrupt: &Interrupt) -> Result<Results, Trouble> {
    let files = [&options.json, &options.markdown];
    files.into_iter().flatten().try_for_each(|path| check_place(path))?;
    // Makes the directory, for the same reason.
    options.plots.iter().try_for_each(|dir| plots::write(&[], dir))?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let results = compare(options, &arguments, interrupt)?;
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&results);
        save(path, &json.or_trouble(|| "write the results".into(), "report it, with this text")?)?;
    }
    let links = draw(&results, options)?;
    if let Some(path) = &options.markdown {
        save(path, &report::markdown(&results, &links))?;
    }
    // Last, and not by println!, which would end the program when the reader has gone.
    let shown = writeln!(io::stdout(), "{}", report::text(&results));
    shown.or_trouble(|| "print the tables".into(), "use --json or --markdown")?;
    Ok(results)
}

/// Writes the charts, and tells where they are from the results page.
fn draw(results: &Results, options: &Options) -> Result<Vec<plots::Link>, Trouble> {
    let Some(dir) = &options.plots else { return Ok(Vec::new()) };
    let all = plots::all(results);
    plots::write(&all, dir)?;
    options.markdown.as_ref().map_or(Ok(Vec::new()), |page| plots::links(&all, page, dir))
}

/// Finds out before half an hour of measuring that there is no place for the results.
fn check_place(path: &Path) -> Result<(), Trouble> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    if path.is_dir() || parent.is_some_and(|parent| !parent.is_dir()) {
        let why = "it is a directory, or there is none to put it in";
        return Err(Trouble::new(format!("write {}", path.display()), why, "choose another file"));
    }
    Ok(())
}

fn save(path: &Path, text: &str) -> Result<(), Trouble> {
    fs::write(path, text).or_trouble(|| format!("write {}", path.display()), "choose another file")
}

/// 0 measured, 1 something failed or (with `--strict`) a target was not met, 130 interrupted.
fn exit_code(results: &Results, strict: bool) -> ExitCode {
    if results.interrupted {
        ExitCode::from(EXIT_INTERRUPTED)
    } else if results.has_failures() || (strict && !all_met(&results.targets)) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn fail(trouble: &Trouble, interrupt: Option<&Interrupt>) -> ExitCode {
    eprintln!("{trouble}");
    let interrupted = interrupt.is_some_and(Interrupt::requested);
    if interrupted { ExitCode::from(EXIT_INTERRUPTED) } else { ExitCode::FAILURE }
}
