//! `blockd` as a child of the demo, and `blockctl`, with which it is told what to do.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::process::{self, ChildGuard, wait_for_socket, wait_until};
use serde_json::Value;

/// Names in the demo's directory. Relative on every command line: a socket address holds 107 bytes, which the
/// directory's full path may exceed.
const DATA: &str = "store";
pub(super) const NBD_SOCKET: &str = "nbd.sock";
const CONTROL_SOCKET: &str = "control.sock";
const POOL_SIZE: &str = "8GiB";

/// How long the daemon may take to answer its first question, and to stop.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long the daemon may take to see that a client has gone, and to give space back.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Any free port of loopback: where the second host listens for the first.
const PEER_LISTEN: &str = "127.0.0.1:0";

/// Where the programs are, and where they work.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// What it calls itself.
    pub(super) name: &'static str,
    /// Whether other hosts can connect to it.
    pub(super) listens: bool,
    /// Holds `blockd` and `blockctl`.
    pub(super) programs: PathBuf,
    /// All names are relative to it.
    pub(super) dir: PathBuf,
    /// What the daemon says.
    pub(super) log: PathBuf,
}

/// A daemon that runs.
#[derive(Debug)]
pub(super) struct Daemon {
    child: ChildGuard,
}

/// What the store says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreStatus {
    /// In use, by whatever.
    pub(super) used_bytes: u64,
    /// Freed or to be freed, but not yet free.
    pub(super) pending: u64,
    /// Connected.
    pub(super) clients: u64,
}

impl Host {
    /// Starts the daemon, always with the same arguments; returns once it has answered a question.
    pub(super) fn start(&self) -> Result<Daemon> {
        let log = &self.log;
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = self.program("blockd");
        command.args(["serve", "--data", DATA, "--nbd-unix", NBD_SOCKET, "--socket", CONTROL_SOCKET]);
        command.args(["--pool-size", POOL_SIZE, "--name", self.name]);
        if self.listens {
            command.args(["--peer-listen", PEER_LISTEN]);
        }
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child = ChildGuard::spawn(&mut command)?;
        let connected = wait_for_socket(&self.dir.join(CONTROL_SOCKET), &mut child, START_TIMEOUT);
        drop(connected.with_context(|| format!("blockd did not start; see {}", log.display()))?);
        self.status()?;
        Ok(Daemon { child })
    }

    /// Runs `blockctl` with these words; returns how long its whole run took.
    pub(super) fn ctl(&self, words: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        process::run(self.blockctl().args(words))?;
        Ok(began.elapsed())
    }

    /// Runs `blockctl` with these words; returns what it says to people.
    pub(super) fn said(&self, words: &[&str]) -> Result<String> {
        Ok(process::run(self.blockctl().args(words))?.stdout)
    }

    /// Runs `blockctl` with these words; returns what it says to programs.
    pub(super) fn ask(&self, words: &[&str]) -> Result<Value> {
        let answer = process::run(self.blockctl().args(words).args(["-o", "json"]))?.stdout;
        serde_json::from_str(&answer).with_context(|| format!("blockctl {} said {answer:?}", words.join(" ")))
    }

    /// Uses a token of another host. It is a secret: no command line shows it.
    pub(super) fn pair(&self, token: &str) -> Result<()> {
        process::run_with_input(self.blockctl().args(["host", "pair", "-"]), token.as_bytes())?;
        Ok(())
    }

    /// Asks the daemon.
    pub(super) fn status(&self) -> Result<StoreStatus> {
        let answer = self.ask(&["status"])?;
        parse_status(&answer).with_context(|| format!("blockctl status said {answer}"))
    }

    /// Waits until every client has gone: QEMU's end and the daemon's notice of it are two moments.
    pub(super) fn wait_without_clients(&self) -> Result<()> {
        wait_until("end of all NBD connections", SETTLE_TIMEOUT, || {
            Ok((self.status()?.clients == 0).then_some(()))
        })
    }

    /// Waits until everything that was deleted is free again; returns the bytes in use.
    pub(super) fn wait_reclaimed(&self, expected: u64) -> Result<u64> {
        let mut last = None;
        let freed: Result<u64> = wait_until("free space", SETTLE_TIMEOUT, || {
            let status = self.status()?;
            last = Some(status);
            Ok((status.pending == 0 && status.used_bytes <= expected).then_some(status.used_bytes))
        });
        freed.with_context(|| format!("space was not given back: {expected} bytes expected, {last:?}"))
    }

    /// Checks the store that nobody serves; anything but "clean" is an error with its words.
    pub(super) fn fsck(&self) -> Result<()> {
        let words = process::run(self.program("blockd").args(["fsck", DATA]))?.stdout;
        if words.lines().last().map(str::trim) != Some("clean") {
            bail!("blockd fsck of {} is not content:\n{words}", self.name);
        }
        Ok(())
    }

    fn blockctl(&self) -> Command {
        let mut command = self.program("blockctl");
        command.args(["--socket", CONTROL_SOCKET]);
        command
    }

    /// A program of ours in the demo's directory, whatever the caller's environment says about other daemons.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(&self.dir);
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("BLOCKD_") {
                command.env_remove(variable);
            }
        }
        command
    }
}

impl Daemon {
    /// Ends it as a crash would; it gets no chance to write anything more.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.refuse_ended()?;
        Ok(self.child.kill()?)
    }

    /// Asks it to stop and expects exit code 0; returns how long that took.
    pub(super) fn stop(mut self) -> Result<Duration> {
        self.refuse_ended()?;
        let asked = Instant::now();
        let status = self.child.terminate(STOP_TIMEOUT)?;
        if !status.success() {
            bail!("blockd ended with {status} after SIGTERM");
        }
        Ok(asked.elapsed())
    }

    /// An error if it has ended without being asked to.
    pub(super) fn refuse_ended(&mut self) -> Result<()> {
        match self.child.try_status()? {
            Some(status) => bail!("blockd ended by itself: {status}"),
            None => Ok(()),
        }
    }
}

fn parse_status(answer: &Value) -> Option<StoreStatus> {
    let number = |key: &str| answer.get("store")?.get(key)?.as_u64();
    Some(StoreStatus {
        used_bytes: number("used_bytes")?,
        pending: number("pending_free_bytes")? + number("layers_to_reclaim")?,
        clients: number("clients")?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_status_is_read() {
        let store = json!({"used_bytes": 7, "pending_free_bytes": 2, "layers_to_reclaim": 1, "clients": 3});
        let status = parse_status(&json!({"v": 1, "store": store}));
        assert_eq!(status, Some(StoreStatus { used_bytes: 7, pending: 3, clients: 3 }));
        assert_eq!(parse_status(&json!({})), None);
    }
}
