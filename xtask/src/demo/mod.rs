//! The demo: a Linux guest boots from a disk that our server serves, writes, powers off; then every byte that
//! it wrote is looked at from outside, without the server.
//!
//! All that it writes is in `target/demo`. Whatever ends it, the machine and the server end first.

mod report;
mod server;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fixtures::guest::{self, Accel, GuestOutcome, GuestRun, GuestSpec, Kernel, RootImage, nbd_drive};
use fixtures::packages::Purpose;
use fixtures::process;

use crate::prepare;
use crate::progress::Progress;
use crate::workspace::Workspace;
use report::{FileSum, GuestWords, Report};
use server::Server;

const SCRIPT: &str = include_str!("guest.sh");
const FILES: u32 = 8;
const FILE_MIB: u32 = 8;
const IMAGE_MIB: u64 = 256;
/// Holds the written content twice, in a file in memory and in the page cache, and some more.
const MEMORY_MIB: u32 = 512;

const IMAGE: &str = "root.img";
const SOCKET: &str = "nbd.sock";
const DUMP: &str = "dumped";

/// Generous, for translated guests on busy machines; a good run takes a tenth of it.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);
const WORK_TIMEOUT: Duration = Duration::from_secs(240);

/// Where the demo works, and its clock.
struct Demo {
    dir: PathBuf,
    progress: Progress,
}

/// What has to be there before the server starts.
struct Prepared {
    server: PathBuf,
    kernel: Kernel,
    initramfs: PathBuf,
    accel: Accel,
}

/// Runs the demo and prints its table.
pub(crate) fn run(workspace: &Workspace, keep: bool) -> Result<()> {
    let demo = Demo { dir: workspace.target.join("demo"), progress: Progress::start() };
    let result = demo.run(workspace);
    // A failed run keeps its image: it may be the only evidence. An interrupted one proves nothing.
    let interrupted = process::check_interrupt().is_err();
    demo.clean_up(keep || (result.is_err() && !interrupted))?;
    let report =
        result.with_context(|| format!("demo failed; image and logs are in {}", demo.dir.display()))?;
    println!("\nA Linux guest on a disk served by nbd-server\n\n{report}");
    println!("  logs                    {}", demo.dir.display());
    Ok(())
}

impl Demo {
    fn run(&self, workspace: &Workspace) -> Result<Report> {
        let prepared = self.prepare(workspace)?;
        self.progress.say("starting nbd-server");
        let server = Server::start(&prepared.server, &self.dir, IMAGE, SOCKET)?;
        let (boot, outcome) = self.run_guest(&prepared)?;
        let used = server.used()?;
        self.progress.say("stopping nbd-server with SIGTERM");
        let stop = server.stop()?;
        let guest = GuestWords::parse(&outcome.console)?;
        self.check_image(&guest.sums)?;
        Ok(Report { accel: prepared.accel.name(), boot, guest, server: used, stop })
    }

    fn prepare(&self, workspace: &Workspace) -> Result<Prepared> {
        let names: Vec<&str> = Purpose::Demo.packages().iter().map(|package| package.name).collect();
        self.progress.say(&format!("needs {}", names.join(", ")));
        prepare(workspace, Purpose::Demo, &self.progress)?;
        self.progress.say("building nbd-server in release (minutes the first time)");
        let server = workspace.build_server()?;
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        remove(&self.dir.join(SOCKET))?;
        self.progress.say("fetching the guest's kernel, unless cached");
        let cache = self.dir.join("cache");
        let kernel = Kernel::fetch(&cache)?;
        self.progress.say("making the guest's disk");
        RootImage { size_mib: IMAGE_MIB, files: Vec::new() }.build(&self.dir.join(IMAGE))?;
        let initramfs = self.dir.join("initramfs");
        let script = format!("FILES={FILES}\nFILE_MIB={FILE_MIB}\n{SCRIPT}");
        GuestSpec { script, ..GuestSpec::default() }.build_initramfs(&kernel, &initramfs)?;
        self.progress.say("trying KVM, unless known");
        let accel = guest::probe_accel(&kernel, &cache)?;
        Ok(Prepared { server, kernel, initramfs, accel })
    }

    /// Boots the guest and waits until it has powered off; returns the time to its script and how it ended.
    fn run_guest(&self, prepared: &Prepared) -> Result<(Duration, GuestOutcome)> {
        self.progress.say(&format!("booting the guest from the served disk ({})", prepared.accel.name()));
        let console = self.dir.join("console.log");
        let run = GuestRun::new(&prepared.kernel, &prepared.initramfs, prepared.accel, &console)
            .memory_mib(MEMORY_MIB)
            .current_dir(&self.dir)
            .drive(nbd_drive(Path::new(SOCKET), ""));
        let mut running = run.start()?;
        let boot = running.wait_ready(BOOT_TIMEOUT)?;
        self.progress.say(&format!("the guest writes {FILES} files of {FILE_MIB} MiB"));
        running.wait_for("DEMO-WRITE", WORK_TIMEOUT)?;
        self.progress.say("the guest reads them back and powers off");
        let outcome = running.wait_done(WORK_TIMEOUT)?;
        if outcome.rc != 0 {
            bail!(
                "the guest's script failed with {}:\n{}",
                outcome.rc,
                process::last_lines(&outcome.console, 15)
            );
        }
        Ok((boot, outcome))
    }

    /// Looks at the image as a file, now that nobody serves it.
    fn check_image(&self, sums: &[FileSum]) -> Result<()> {
        self.progress.say("checking the disk's image with e2fsck and debugfs");
        let image = self.dir.join(IMAGE);
        process::run(process::command("e2fsck").arg("-fn").arg(&image))
            .context("the guest's file system is damaged")?;
        if sums.len() != FILES as usize {
            bail!("the guest printed {} checksums instead of {FILES}", sums.len());
        }
        for expected in sums {
            let md5 = self.md5_in_image(&expected.path)?;
            if md5 != expected.md5 {
                bail!("{}: checksum {md5} in the image, {} in the guest", expected.path, expected.md5);
            }
        }
        Ok(())
    }

    fn md5_in_image(&self, path: &str) -> Result<String> {
        let dump = self.dir.join(DUMP);
        // debugfs exits with 0 whatever happens: an older dump must not pass for this file.
        remove(&dump)?;
        let request = format!("dump {path} {DUMP}");
        process::run(process::command("debugfs").current_dir(&self.dir).args(["-R", &request, IMAGE]))?;
        let output = process::run(process::command("md5sum").arg(&dump))?.stdout;
        Ok(output.split_whitespace().next().context("md5sum printed nothing")?.to_owned())
    }

    fn clean_up(&self, keep_image: bool) -> Result<()> {
        for name in [SOCKET, DUMP, "initramfs"] {
            remove(&self.dir.join(name))?;
        }
        if keep_image { Ok(()) } else { remove(&self.dir.join(IMAGE)) }
    }
}

/// Removes a file that may not be there.
fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}
