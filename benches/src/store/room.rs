//! Where the scenarios work: directories, sockets, and the programs that they run to their end.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::fio::{Amount, Fio, Load, Measurement};
use crate::interrupt::Interrupt;
use crate::plan::StorePlan;
use crate::process::{Launch, READY_WITHIN, Server, last_words, run_to_end};
use crate::trouble::{OrTrouble, Trouble};

/// How long a program such as qemu-img may take.
const TOOL_WITHIN: Duration = Duration::from_secs(600);
/// Pause between two looks at the interrupt while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What to do when there is no room for images.
pub const NEXT_DIR: &str = "choose another place with --dir, or a smaller --store-size";

/// A served disk. Dropping it stops its server, if it has one of its own.
#[derive(Debug)]
pub struct Served {
    /// Where clients find it.
    pub uri: String,
    /// Its server; a volume's daemon lives longer.
    pub server: Option<Server>,
}

/// Directories and programs.
#[derive(Debug)]
pub struct Room<'a> {
    /// What was asked for.
    pub plan: &'a StorePlan,
    /// Ends everything early.
    pub interrupt: &'a Interrupt,
    images: TempDir,
    /// Sockets and logs: a socket's path must be short.
    short: TempDir,
    taken: Cell<u32>,
}

impl<'a> Room<'a> {
    /// Makes the directories; they go with this value.
    ///
    /// # Errors
    /// No permission or no space.
    pub fn new(plan: &'a StorePlan, interrupt: &'a Interrupt) -> Result<Self, Trouble> {
        fs::create_dir_all(&plan.dir).or_trouble(|| format!("make {}", plan.dir.display()), NEXT_DIR)?;
        let dir = plan.dir.canonicalize().or_trouble(|| format!("find {}", plan.dir.display()), NEXT_DIR)?;
        let images = tempfile::Builder::new().prefix("store").tempdir_in(dir);
        let images = images.or_trouble(|| "make a directory for images".into(), NEXT_DIR)?;
        let short = tempfile::Builder::new().prefix("cmp").tempdir();
        let short =
            short.or_trouble(|| "make a temporary directory".into(), "set TMPDIR to a writable directory")?;
        Ok(Self { plan, interrupt, images, short, taken: Cell::new(0) })
    }

    /// Where images and stores go.
    pub fn images(&self) -> &Path {
        self.images.path()
    }

    /// A place for an image that nobody has yet.
    pub fn new_image(&self, kind: &str) -> PathBuf {
        self.images.path().join(format!("{}.{kind}", self.next_number()))
    }

    /// A place for a socket or a log that nobody has yet.
    pub fn new_short(&self, kind: &str) -> PathBuf {
        self.short.path().join(format!("{}.{kind}", self.next_number()))
    }

    fn next_number(&self) -> u32 {
        self.taken.set(self.taken.get() + 1);
        self.taken.get()
    }

    /// fio, with a place for its files.
    pub fn fio(&self) -> Fio<'_> {
        Fio { dir: self.short.path(), cpu: None, interrupt: self.interrupt }
    }

    /// Starts a server that listens on `socket`.
    ///
    /// # Errors
    /// It cannot be started or is not ready in time.
    pub fn serve(&self, name: &'static str, line: Vec<String>, socket: &Path) -> Result<Server, Trouble> {
        self.serve_within(READY_WITHIN, name, line, socket)
    }

    /// The same, with another limit.
    ///
    /// # Errors
    /// It cannot be started or is not ready in time.
    pub fn serve_within(
        &self,
        ready_within: Duration,
        name: &'static str,
        line: Vec<String>,
        socket: &Path,
    ) -> Result<Server, Trouble> {
        let (socket, log) = (socket.to_owned(), self.new_short("log"));
        let launch = Launch { name, line, socket, pid_file: None, log, cpu: None, ready_within };
        Server::start(&launch, self.interrupt)
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It fails, takes too long, or somebody asked to stop.
    pub fn run(&self, line: &[&str]) -> Result<String, Trouble> {
        let line: Vec<String> = line.iter().map(|&word| word.to_owned()).collect();
        let log = self.new_short("log");
        let status = run_to_end(&line, &log, None, TOOL_WITHIN, self.interrupt)?;
        if status.success() {
            return fs::read_to_string(&log).or_trouble(|| "read a log".into(), NEXT_DIR);
        }
        let next = format!("try it by hand: {}", line.join(" "));
        Err(Trouble::new(format!("run {}", line[0]), last_words(&log), next))
    }

    /// Sees to it that nothing is dirty: neither in the disk's server nor in any page cache.
    ///
    /// # Errors
    /// The disk does not flush.
    pub fn flush(&self, uri: &str) -> Result<Duration, Trouble> {
        let begun = Instant::now();
        self.run(&["qemu-io", "-f", "raw", "-c", "flush", uri])?;
        let took = begun.elapsed();
        rustix::fs::sync();
        Ok(took)
    }

    /// Reads one block.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn read_block(&self, uri: &str, offset: u64) -> Result<(), Trouble> {
        self.run(&["qemu-io", "-r", "-f", "raw", "-c", &format!("read {offset} 4096"), uri]).map(drop)
    }

    /// Runs a load of fio's.
    ///
    /// # Errors
    /// fio fails, or somebody asked to stop.
    pub fn load(&self, load: &Load<'_>, uri: &str) -> Result<Measurement, Trouble> {
        self.fio().load(load, uri)
    }

    /// Writes a part of the disk's blocks at random, each at most once.
    ///
    /// # Errors
    /// fio fails, or somebody asked to stop.
    pub fn scatter(&self, uri: &str, count: u64) -> Result<Measurement, Trouble> {
        let amount = Amount::Blocks { count, seconds_max: 600 };
        self.load(&Load::random_4k("randwrite", 64, amount), uri)
    }

    /// Waits, unless somebody asks to stop.
    ///
    /// # Errors
    /// Somebody asked to stop.
    pub fn pause(&self, time: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.interrupt.check()?;
            thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }
}

/// A path as an argument.
pub fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A command line as it is started.
pub fn words(line: &[&str]) -> Vec<String> {
    line.iter().map(|&word| word.to_owned()).collect()
}
