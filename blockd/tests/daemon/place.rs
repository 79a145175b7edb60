//! A data directory for one test, and the daemon that serves it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use fixtures::nbd::client::{Client, ClientError};
use fixtures::process::{ChildGuard, ProcessError, wait_until};
use tempfile::TempDir;

/// How long a daemon may take to start, and how long to stop.
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(10);

/// Exit code, standard output, standard error.
pub(crate) type Outcome = (i32, String, String);

pub(crate) fn outcome(output: &Output) -> Outcome {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Where one test keeps its files.
pub(crate) struct Place {
    /// On the disk of the build: `/tmp` may be a tmpfs, which has no direct I/O.
    own: TempDir,
    data: PathBuf,
    /// Near the root: a checkout may lie deeper than a socket's address can tell.
    run: TempDir,
    /// Besides the usual ones, of `serve`.
    pub(crate) arguments: Vec<String>,
}

impl Place {
    /// A data directory that does not exist yet.
    pub(crate) fn new() -> Self {
        let own = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data = own.path().join("data");
        let arguments = vec!["--pool-size".to_owned(), "2G".to_owned()];
        Self { own, data, run: tempfile::tempdir().unwrap(), arguments }
    }

    /// With the data somewhere else.
    pub(crate) fn at(data: &Path) -> Self {
        Self { data: data.to_owned(), ..Self::new() }
    }

    /// Room for other files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.own.path().join(name)
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run.path().join("nbd")
    }

    pub(crate) fn control_socket(&self) -> PathBuf {
        self.run.path().join("control")
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.run.path().join("agent")
    }

    fn log_file(&self) -> PathBuf {
        self.run.path().join("log")
    }

    /// `blockd serve`, not started.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
        command.arg("serve").arg("--data").arg(&self.data).arg("--nbd-unix").arg(self.socket());
        command.arg("--recent-dir").arg(self.run.path().join("memory"));
        command.arg("--socket").arg(self.run.path().join("control")).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.log_file()).unwrap());
        command
    }

    /// Starts the daemon and waits until it serves.
    pub(crate) fn serve(&self) -> Daemon<'_> {
        let child = ChildGuard::spawn(&mut self.command()).unwrap();
        let mut daemon = Daemon { place: self, child, ended: false };
        let started = wait_until("the daemon's start", START, || {
            if let Some(status) = daemon.child.try_status()? {
                panic!("it does not start: {status}\n{}", self.log());
            }
            Ok::<_, ProcessError>(self.log().contains("daemon_started").then_some(()))
        });
        started.unwrap();
        daemon
    }

    /// Starts a daemon that may be refused: its exit code and what it said, or the daemon.
    pub(crate) fn try_serve(&self) -> Result<Daemon<'_>, (i32, String)> {
        let child = ChildGuard::spawn(&mut self.command()).unwrap();
        let mut daemon = Daemon { place: self, child, ended: false };
        let ended = wait_until("the daemon's start or end", START, || {
            let started = self.log().contains("daemon_started");
            let status = daemon.child.try_status()?;
            Ok::<_, ProcessError>(if started { Some(None) } else { status.map(Some) })
        });
        match ended.unwrap() {
            None => Ok(daemon),
            Some(status) => {
                daemon.ended = true;
                Err((status.code().unwrap_or(-1), self.log()))
            }
        }
    }

    /// Starts a daemon that must be refused, with one error of three lines.
    pub(crate) fn refused(&self) -> (i32, String) {
        let Err((code, log)) = self.try_serve() else { panic!("it was served") };
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        let starts = ["next:  ", "why:   ", "error: "];
        assert!(
            lines.len() == 3 && lines.iter().zip(starts).all(|(line, start)| line.starts_with(start)),
            "{log}"
        );
        (code, log)
    }

    /// What the last daemon has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// `blockd fsck` or `blockd inspect`.
    pub(crate) fn offline(&self, words: &[&str]) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockd"));
        outcome(&command.arg(words[0]).arg(&self.data).args(&words[1..]).output().unwrap())
    }

    /// The store must be sound.
    pub(crate) fn assert_sound(&self) {
        let (code, stdout, stderr) = self.offline(&["fsck"]);
        assert_eq!(code, 0, "{stdout}{stderr}");
    }

    /// `blockctl` with these words.
    pub(crate) fn ctl(&self, words: &str) -> Outcome {
        let mut command = Command::new(env!("CARGO_BIN_EXE_blockctl"));
        command.arg("--socket").arg(self.run.path().join("control")).args(words.split(' '));
        outcome(&command.stdin(Stdio::null()).output().unwrap())
    }

    /// `blockctl` that must succeed.
    pub(crate) fn ok(&self, words: &str) -> String {
        let (code, stdout, stderr) = self.ctl(words);
        assert_eq!(code, 0, "blockctl {words}: {stdout}{stderr}");
        stdout
    }

    /// `blockctl` that must be refused with this exit code; why.
    pub(crate) fn not_ok(&self, words: &str, expected: i32) -> String {
        let (code, stdout, stderr) = self.ctl(words);
        assert_eq!(code, expected, "blockctl {words}: {stdout}{stderr}");
        stderr
    }

    /// A client of an export.
    pub(crate) fn client(&self, export: &str) -> Client {
        Client::connect(&self.socket(), export.as_bytes()).unwrap_or_else(|error| panic!("{export}: {error}"))
    }

    /// Why there is no client of an export.
    pub(crate) fn no_client(&self, export: &str) -> ClientError {
        match Client::connect(&self.socket(), export.as_bytes()) {
            Ok(_) => panic!("{export} was opened"),
            Err(error) => error,
        }
    }

    /// The whole content of an export.
    pub(crate) fn content(&self, export: &str) -> Vec<u8> {
        const PIECE: u64 = 4 << 20;
        let mut client = self.client(export);
        let mut content = Vec::new();
        while (content.len() as u64) < client.size() {
            let at = content.len() as u64;
            content.extend(client.read(at, PIECE.min(client.size() - at) as u32).unwrap());
        }
        client.leave().unwrap();
        content
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }
}

/// A daemon that runs; dropped, it is stopped, and must end well.
pub(crate) struct Daemon<'a> {
    place: &'a Place,
    child: ChildGuard,
    ended: bool,
}

impl Daemon<'_> {
    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Stops it with SIGTERM; it must end content.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    /// Stops it with SIGTERM: how it ended.
    pub(crate) fn stop_anyhow(mut self) -> i32 {
        self.ended = true;
        self.child.terminate(STOP).unwrap().code().unwrap_or(-1)
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.ended = true;
    }

    fn end(&mut self) {
        self.ended = true;
        let status = self.child.terminate(STOP).unwrap_or_else(|error| panic!("{error}"));
        let log = self.place.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.place.log());
        } else if !self.ended {
            self.end();
        }
    }
}
