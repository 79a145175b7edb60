//! The servers' turns: each with a server of its own, the page cache as its class has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::turn::{Turn, to_run, turns};
use crate::client::{self, Client, NbdLoad};
use crate::fio::{self, Aim, Fio, Measurement};
use crate::image::{self, CacheDrop, Image};
use crate::interrupt::Interrupt;
use crate::options::format_size;
use crate::plan::Plan;
use crate::process::{Launch, READY_WITHIN, Server};
use crate::results::{FailedRun, Run};
use crate::servers::{Class, DiskKind, Places, Program, ServerId, debian_config};
use crate::trouble::{OrTrouble, Trouble};
use crate::volume::{self, STOP_WITHIN, WholeVolume};

/// Given to a server after fio's end, to close its connection and to collect a child process; it spends no CPU
/// time waiting, so the figures do not change by it.
const SETTLE: Duration = Duration::from_millis(100);
/// With `--pinned`.
const SERVER_CPU: u32 = 0;
/// With `--pinned`.
const CLIENT_CPU: u32 = 1;
/// Said once when the direct class begins with a full cache.
const NOT_COOLED: &str =
    "the page cache could not be dropped (needs root): the direct class may find it warm";

/// What the turns have come to so far.
pub(super) struct Campaign<'a> {
    plan: &'a Plan,
    image: Option<Image>,
    volume: Option<WholeVolume<'a>>,
    interrupt: &'a Interrupt,
    /// Sockets, logs and fio's files.
    dir: TempDir,
    pub(super) runs: Vec<Run>,
    pub(super) failures: Vec<FailedRun>,
    pub(super) notices: Vec<String>,
}

impl<'a> Campaign<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        image: Option<Image>,
        volume: Option<WholeVolume<'a>>,
        interrupt: &'a Interrupt,
    ) -> Result<Self, Trouble> {
        let dir = tempfile::Builder::new().prefix("cmp").tempdir();
        let dir =
            dir.or_trouble(|| "make a temporary directory".into(), "set TMPDIR to a writable directory")?;
        let (runs, failures, notices) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { plan, image, volume, interrupt, dir, runs, failures, notices })
    }

    /// Takes all turns, or those until somebody asks to stop.
    pub(super) fn run_all(&mut self) -> Result<(), Trouble> {
        for turn in turns(self.plan) {
            let outcome = self.prepare(turn).and_then(|()| self.measure(turn));
            // What an interrupt cut short is no failure of the server.
            if self.interrupt.requested() {
                return Ok(());
            }
            self.record(turn, outcome);
            let repaired = self.repair(turn);
            if self.interrupt.requested() {
                return Ok(());
            }
            repaired?;
        }
        Ok(())
    }

    /// Brings the page cache into the state of the class.
    fn prepare(&mut self, turn: Turn) -> Result<(), Trouble> {
        match turn.server.class() {
            Class::Cached => image::warm(&self.disk_path(turn.server)),
            Class::Direct => self.cool(),
            Class::Ceiling => Ok(()),
        }
    }

    fn cool(&mut self) -> Result<(), Trouble> {
        let refused = image::drop_caches()? == CacheDrop::NotAllowed;
        if refused && !self.notices.iter().any(|said| said == NOT_COOLED) {
            eprintln!("note: {NOT_COOLED}");
            self.notices.push(NOT_COOLED.to_owned());
        }
        Ok(())
    }

    /// What holds the bytes that a server serves.
    fn disk_path(&self, server: ServerId) -> PathBuf {
        match (server.disk(), &self.volume) {
            (DiskKind::Volume, Some(volume)) => volume.pool(),
            _ => self.image_path().to_owned(),
        }
    }

    /// Closes the holes a trimming job made: the disk has to be completely written.
    fn repair(&self, turn: Turn) -> Result<(), Trouble> {
        if !turn.job.trims() {
            return Ok(());
        }
        match (turn.server.disk(), &self.image, &self.volume) {
            (DiskKind::Image, Some(image), _) => image.fill(self.interrupt),
            (DiskKind::Volume, _, Some(volume)) => volume.fill(),
            _ => Ok(()),
        }
    }

    fn measure(&self, turn: Turn) -> Result<(Measurement, Option<Duration>), Trouble> {
        let cpu = self.plan.pinned.then_some(CLIENT_CPU);
        let fio = Fio { dir: self.dir.path(), cpu, interrupt: self.interrupt };
        match self.launch(turn)? {
            Some(launch) => self.measure_server(turn, &launch, &fio),
            None => {
                let measured = fio.run(turn.job, Aim::File(self.image_path()), self.plan.runtime_s)?;
                Ok((measured, None))
            }
        }
    }

    fn measure_server(
        &self,
        turn: Turn,
        launch: &Launch,
        fio: &Fio<'_>,
    ) -> Result<(Measurement, Option<Duration>), Trouble> {
        let uri = fio::uri(turn.server.export(), &launch.socket);
        let server = Server::start(launch, self.interrupt)?;
        if turn.server.holds_memory() {
            fio.fill(&uri)?;
            thread::sleep(SETTLE);
        }
        let before = server.cpu_spent()?;
        let measured = match turn.client {
            Client::Fio => fio.run(turn.job, Aim::Uri(&uri), self.plan.runtime_s)?,
            Client::Ours => self.run_ours(turn, &launch.socket)?,
        };
        thread::sleep(SETTLE);
        let spent = server.cpu_spent()?.saturating_sub(before);
        match turn.server.program() {
            // It has a store to bring to rest.
            Program::Blockd => server.stop_cleanly(STOP_WITHIN)?,
            _ => server.stop()?,
        }
        Ok((measured, Some(spent)))
    }

    fn run_ours(&self, turn: Turn, socket: &Path) -> Result<Measurement, Trouble> {
        let cpu = self.plan.pinned.then_some(CLIENT_CPU);
        let program = client::beside_us();
        let load = NbdLoad { program: &program, dir: self.dir.path(), cpu, interrupt: self.interrupt };
        load.run(turn.job, socket, turn.server.export(), self.plan.runtime_s)
    }

    /// How to start the server of this turn; none for fio on the file.
    fn launch(&self, turn: Turn) -> Result<Option<Launch>, Trouble> {
        let file = |suffix: &str| self.dir.path().join(format!("{}{suffix}", self.turns_taken()));
        let (socket, pid_file, config) = (file(".s"), file(".pid"), file(".conf"));
        let is_daemon = turn.server == ServerId::DebianNbdServer;
        if is_daemon {
            let text = debian_config(&text_of(self.image_path()), &text_of(&socket));
            fs::write(&config, text).or_trouble(|| "write a configuration file".into(), "free some space")?;
        }
        let store = self.volume.as_ref().map_or(Path::new(""), WholeVolume::store);
        let places = Places {
            ours: text_of(&self.plan.ours),
            blockd: text_of(&self.plan.volume.blockd),
            store: text_of(store),
            api: text_of(&file(".a")),
            debian: text_of(&self.plan.debian),
            image: text_of(&self.disk_path(turn.server)),
            size: format_size(self.plan.image_bytes),
            socket: text_of(&socket),
            config: text_of(&config),
            pid_file: text_of(&pid_file),
        };
        let (name, cpu) = (turn.server.name(), self.plan.pinned.then_some(SERVER_CPU));
        let pid_file = is_daemon.then_some(pid_file);
        let is_store = turn.server.program() == Program::Blockd;
        let (log, ready_within) = (file(".log"), if is_store { volume::READY_WITHIN } else { READY_WITHIN });
        let to_launch = |line| Launch { name, line, socket, pid_file, log, cpu, ready_within };
        Ok(turn.server.command(&places).map(to_launch))
    }

    fn image_path(&self) -> &Path {
        self.image.as_ref().map_or(Path::new(""), Image::path)
    }

    fn turns_taken(&self) -> usize {
        self.runs.len() + self.failures.len()
    }

    fn record(&mut self, turn: Turn, outcome: Result<(Measurement, Option<Duration>), Trouble>) {
        let place = format!("[{}/{}]", self.turns_taken() + 1, self.plan.run_count());
        let Turn { server, job, client, round } = turn;
        let whose = format!("{:<30} round {round} {:<18} {:<14}", job.name, server.name(), client.label());
        match outcome {
            Ok((measured, spent)) => {
                let run = to_run(turn, measured, spent);
                let cpu =
                    run.cpu_us_per_request.map_or(String::new(), |cpu| format!(" {cpu:6.2} us CPU/request"));
                eprintln!("{place} {whose} {:9.0} IOPS{cpu}", measured.iops);
                self.runs.push(run);
            }
            Err(trouble) => {
                eprintln!("{place} {whose}\n{trouble}");
                let (what, why) = (self.scrub(&trouble.what), self.scrub(&trouble.why));
                self.failures.push(FailedRun { server, job: job.name, client, round, what, why });
            }
        }
    }

    /// A text for the results: this machine's paths replaced by placeholders.
    fn scrub(&self, text: &str) -> String {
        let store = self.volume.as_ref().map_or(PathBuf::new(), |volume| volume.store().to_owned());
        let places: [(PathBuf, &str); 6] = [
            (client::beside_us(), "nbd-load"),
            (self.image_path().to_owned(), "$IMG"),
            (store, "$STORE"),
            (self.plan.volume.blockd.clone(), "blockd"),
            (self.dir.path().to_owned(), "$TMP"),
            (self.plan.ours.clone(), "nbd-server"),
        ];
        let known = places.iter().filter(|(path, _)| !path.as_os_str().is_empty());
        known.fold(text.to_owned(), |text, (path, name)| text.replace(&text_of(path), name))
    }
}

fn text_of(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
