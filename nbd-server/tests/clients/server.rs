//! A directory for one test, and the server in it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use fixtures::process::{self, ChildGuard, ProcessError, wait_until};
use tempfile::TempDir;

use crate::tools::noise;

/// How long a server may take to start, and how long to stop (the promise of its SIGTERM).
const START: Duration = Duration::from_secs(10);
const STOP: Duration = Duration::from_secs(5);

/// What a Unix socket's address holds, bytes, the last a NUL.
const SOCKET_PATH_MAX: usize = 107;

/// Both ways to cache an image; whatever moves data is tested with both.
pub(crate) const CACHES: [&str; 2] = ["writeback", "direct"];

/// Where one test keeps its files.
pub(crate) struct Place {
    /// On the disk of the build: `/tmp` may be a tmpfs, which has no direct I/O.
    images: TempDir,
    /// Near the root: a checkout may lie deeper than a socket's address can tell.
    sockets: TempDir,
}

impl Place {
    /// An empty one; removed when dropped.
    pub(crate) fn new() -> Self {
        let images = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { images, sockets: tempfile::tempdir().unwrap() }
    }

    /// The path of an image or other file.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.images.path().join(name)
    }

    /// Makes a file of zeroes that takes no space.
    pub(crate) fn sparse(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// Makes a file of noise.
    pub(crate) fn noisy(&self, name: &str, bytes: usize) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, noise(bytes as u64, bytes)).unwrap();
        path
    }

    /// Makes a file of `bytes` with islands of noise, a MiB each, where `starts` says.
    pub(crate) fn islands(&self, name: &str, bytes: u64, starts: &[u64]) -> PathBuf {
        let path = self.sparse(name, bytes);
        let file = File::options().write(true).open(&path).unwrap();
        for &start in starts {
            file.write_all_at(&noise(start + 1, 1 << 20), start).unwrap();
        }
        path
    }

    /// Where the server listens.
    pub(crate) fn socket(&self) -> PathBuf {
        let socket = self.sockets.path().join("s");
        assert!(socket.as_os_str().len() <= SOCKET_PATH_MAX, "TMPDIR is too long for sockets");
        socket
    }

    /// The binary, in the directory of the images, without words of the environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nbd-server"));
        command.current_dir(self.images.path()).env_remove("NBD_SERVER_LOG").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// Starts a server on [`socket`](Self::socket) and waits until it accepts connections.
    pub(crate) fn serve(&self, arguments: &[&str]) -> Server {
        let (socket, log) = (self.socket(), self.path("server.log"));
        let mut command = self.command(arguments);
        command.arg("--unix").arg(&socket).stderr(File::create(&log).unwrap());
        let mut server =
            Server { child: ChildGuard::spawn(&mut command).unwrap(), socket, log, ended: false };
        let connected = process::wait_for_socket(&server.socket, &mut server.child, START);
        drop(connected.unwrap_or_else(|error| panic!("{error}")));
        server
    }

    /// Starts a server that must not come up; returns its exit code and what it said.
    pub(crate) fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let log = self.path("refused.log");
        let mut command = self.command(arguments);
        let mut child = ChildGuard::spawn(command.stderr(File::create(&log).unwrap())).unwrap();
        let status = child.wait_for(START).unwrap_or_else(|error| panic!("{error}"));
        (status.code().expect("an exit code"), fs::read_to_string(log).unwrap())
    }
}

/// A server that runs; dropped, it is stopped.
pub(crate) struct Server {
    child: ChildGuard,
    socket: PathBuf,
    log: PathBuf,
    ended: bool,
}

impl Server {
    /// The default export.
    pub(crate) fn uri(&self) -> String {
        self.export_uri("")
    }

    /// An export by name.
    pub(crate) fn export_uri(&self, name: &str) -> String {
        format!("nbd+unix:///{name}?socket={}", self.socket.display())
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The port that `--listen 127.0.0.1:0` got; the server names it in its log.
    pub(crate) fn port(&self) -> u16 {
        let found = wait_until("the port in the log", START, || {
            let log = self.log();
            let line = log.lines().find_map(|line| line.split_once("nbd://127.0.0.1:"));
            Ok::<_, ProcessError>(line.map(|(_, port)| port.trim().parse().unwrap()))
        });
        found.unwrap()
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Stops it with SIGTERM; see [`end`](Self::end).
    pub(crate) fn stop(mut self) {
        self.end();
    }

    /// Ends it with SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.ended = true;
    }

    /// It must end by itself and in time, content and without complaints, and take its socket along.
    fn end(&mut self) {
        self.ended = true;
        let status = self.child.terminate(STOP).unwrap_or_else(|error| panic!("{error}"));
        let log = self.log();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
        assert!(!self.socket.exists(), "the socket's file stayed");
    }
}

/// A test that does not stop its server still wants to know how it ends.
impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the server's log:\n{}", self.log());
        } else if !self.ended {
            self.end();
        }
    }
}
