//! The demo: one story of `blockd` with real guests, in which every number is measured and every claim checked.
//!
//! All that it writes is in `target/demo`. Whatever ends it, the machines and the daemons end first.

mod daemon;
mod disk;
mod guests;
mod job;
mod moving;
mod pair;
mod relay;
mod report;
mod story;
mod words;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fixtures::guest::{Kernel, RootImage, probe_accel};
use fixtures::packages::Purpose;
use fixtures::process;

use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;
use daemon::Host;
use guests::{IMAGE_MIB, Machines};
use report::Report;
use story::Story;

const IMAGE: &str = "root.img";
const LOG: &str = "blockd.log";
/// Data and logs of the last act's hosts.
const MOVING: &str = "moving";
/// Kernel and the answer about KVM, for the next run.
const CACHE: &str = "cache";

/// Where the demo works, and its clock.
struct Demo {
    dir: PathBuf,
    progress: Progress,
}

/// Runs the demo and prints its table.
pub(crate) fn run(workspace: &Workspace, keep: bool) -> Result<()> {
    let demo = Demo { dir: workspace.target.join("demo"), progress: Progress::start() };
    let result = demo.run(workspace);
    // A failed run keeps its store: it may be the only evidence. An interrupted one proves nothing.
    let interrupted = process::check_interrupt().is_err();
    demo.clean_up(keep || (result.is_err() && !interrupted))?;
    let report =
        result.with_context(|| format!("demo failed; store and logs are in {}", demo.dir.display()))?;
    let (report, moves) = report;
    println!("\nWhat blockd did in this run\n\n{report}");
    println!("What vmctl did\n\n{moves}");
    println!("  {:<22}{}", "logs", demo.dir.display());
    Ok(())
}

impl Demo {
    fn run(&self, workspace: &Workspace) -> Result<(Report, moving::Moves)> {
        let (host, machines) = self.prepare(workspace)?;
        let story = Story { host: &host, machines: &machines, progress: &self.progress };
        let report = story.tell(&self.dir.join(IMAGE))?;
        let machine = (&machines.kernel, machines.accel);
        let moves = moving::act(&host.programs, machine, &self.dir.join(MOVING), &self.progress)?;
        Ok((report, moves))
    }

    /// Everything that has to be there before the daemon starts.
    fn prepare(&self, workspace: &Workspace) -> Result<(Host, Machines)> {
        let names: Vec<&str> = Purpose::Demo.packages().iter().map(|package| package.name).collect();
        self.progress.say(&format!("needs {}", names.join(", ")));
        prepare(workspace, Purpose::Demo, &self.progress)?;
        self.progress.say("building blockd in release (minutes the first time)");
        let programs = workspace.build_blockd()?;
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        self.remove_all_but(|name| name == CACHE)?;
        self.progress.say("fetching the guest's kernel, unless cached; trying KVM, unless known");
        let cache = self.dir.join(CACHE);
        let kernel = Kernel::fetch(&cache)?;
        let accel = probe_accel(&kernel, &cache)?;
        RootImage { size_mib: IMAGE_MIB, files: Vec::new() }.build(&self.dir.join(IMAGE))?;
        let (dir, log) = (self.dir.clone(), self.dir.join(LOG));
        let host = Host { name: "A", listens: false, programs, dir: dir.clone(), log };
        Ok((host, Machines { kernel, accel, dir }))
    }

    fn clean_up(&self, keep: bool) -> Result<()> {
        if keep { Ok(()) } else { self.remove_all_but(|name| name == CACHE || name.contains(".log")) }
    }

    fn remove_all_but(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.with_context(|| format!("cannot list {}", self.dir.display()))?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            match keep(&name) {
                true => {}
                false if path.is_dir() => remove_dir(&path)?,
                false => remove(&path)?,
            }
        }
        Ok(())
    }
}

/// Removes a file that may not be there.
fn remove(file: &Path) -> Result<()> {
    unless_missing(fs::remove_file(file), file)
}

/// Removes a directory that may not be there, and what is in it.
fn remove_dir(dir: &Path) -> Result<()> {
    unless_missing(fs::remove_dir_all(dir), dir)
}

fn unless_missing(removed: io::Result<()>, path: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
