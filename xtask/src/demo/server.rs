//! Our server as a child of the demo: start, what it used, stop.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fixtures::process::{ChildGuard, wait_for_socket};

use super::report::ServerUse;

/// How long the server may take to accept the first connection, and to stop.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel's unit for CPU times in `/proc`, the same on every Linux that we run on.
const TICKS_PER_SECOND: u64 = 100;

/// A server that runs in the demo's directory.
#[derive(Debug)]
pub(super) struct Server {
    child: ChildGuard,
}

impl Server {
    /// Serves `image` on the Unix socket `socket`, both names in `dir`; returns once it accepts.
    pub(super) fn start(program: &Path, dir: &Path, image: &str, socket: &str) -> Result<Self> {
        let log = dir.join("server.log");
        let output = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut command = Command::new(program);
        // Relative names: a socket address holds 107 bytes, which the directory's full path may exceed.
        command.current_dir(dir).args([image, "--unix", socket]);
        // Its log goes to a file, where colours are noise.
        command.env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let mut child = ChildGuard::spawn(&mut command)?;
        let connected = wait_for_socket(&dir.join(socket), &mut child, START_TIMEOUT);
        drop(connected.with_context(|| format!("the server did not start; see {}", log.display()))?);
        Ok(Self { child })
    }

    /// What it has used so far; fails once it has ended.
    pub(super) fn used(&self) -> Result<ServerUse> {
        let read = |name: &str| {
            let file = format!("/proc/{}/{name}", self.child.pid());
            fs::read_to_string(&file).with_context(|| format!("the server is gone: {file}"))
        };
        let ticks = parse_cpu_ticks(&read("stat")?).context("cannot read the server's CPU time")?;
        let memory_peak_kib = parse_peak_kib(&read("status")?).context("cannot read the server's memory")?;
        Ok(ServerUse { cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND), memory_peak_kib })
    }

    /// Asks it to stop and expects exit code 0; returns how long that took.
    pub(super) fn stop(mut self) -> Result<Duration> {
        if let Some(status) = self.child.try_status()? {
            bail!("the server ended by itself: {status}");
        }
        let asked = Instant::now();
        let status = self.child.terminate(STOP_TIMEOUT)?;
        if !status.success() {
            bail!("the server ended with {status} after SIGTERM");
        }
        Ok(asked.elapsed())
    }
}

/// User and system time in `/proc/PID/stat`: fields 14 and 15. The name before them may hold blanks and
/// brackets.
fn parse_cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The largest resident size so far in `/proc/PID/status`.
fn parse_peak_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ticks_are_found_behind_any_name() {
        let stat = "42 (a) (b c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0";
        assert_eq!(parse_cpu_ticks(stat), Some(42));
        assert_eq!(parse_cpu_ticks("42 (x) S 1"), None);
    }

    #[test]
    fn peak_memory_is_found() {
        assert_eq!(parse_peak_kib("Name:\tx\nVmHWM:\t   5120 kB\n"), Some(5120));
    }

    #[test]
    fn our_own_process_can_be_read() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        assert!(parse_cpu_ticks(&stat).is_some() && parse_peak_kib(&status).is_some());
    }
}
