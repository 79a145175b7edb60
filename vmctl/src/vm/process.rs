//! QEMU's process, told apart from every other one: a number is given to another process sooner or later.

use std::fs::{self, File};
use std::io;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe::Receiver;

/// Told apart from boot to boot, because numbers and ticks begin anew.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Pause after a wake-up that was none.
const WAKE_PAUSE: Duration = Duration::from_millis(20);

/// Which process, on this host, for all time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it began, in the kernel's ticks since the boot.
    pub start_ticks: u64,
    /// Which boot.
    pub boot_id: String,
}

/// A process that was there when this was made; what is done to it is done to it, and to no other.
#[derive(Debug)]
pub struct Process {
    /// Which one.
    pub id: ProcessId,
    /// A pidfd: becomes readable when the process ends. tokio's type for pipes watches any descriptor for that, and is
    /// its only one that may without `unsafe`; nothing is ever read from it.
    handle: Receiver,
}

impl Process {
    /// The process that has that number now; `None`: there is none.
    ///
    /// # Errors
    /// The system says no.
    pub fn of_pid(pid: i32) -> io::Result<Option<Self>> {
        let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
        let handle = match pidfd_open(number, PidfdFlags::NONBLOCK) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the handle was opened: if the process is still there, both are the same one's.
        let Some(start_ticks) = start_ticks(pid)? else { return Ok(None) };
        let id = ProcessId { pid, start_ticks, boot_id: boot_id()? };
        let handle = Receiver::from_file_unchecked(File::from(handle))?;
        let process = Self { id, handle };
        Ok((!process.has_ended()?).then_some(process))
    }

    /// That very process, if it is still there.
    ///
    /// # Errors
    /// The system says no.
    pub fn of_id(id: &ProcessId) -> io::Result<Option<Self>> {
        Ok(Self::of_pid(id.pid)?.filter(|process| process.id == *id))
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The system says no.
    pub fn has_ended(&self) -> io::Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        Ok(poll(&mut fds, Some(&Timespec::default()))? > 0)
    }

    /// Waits until it has ended. May be dropped and asked for again.
    ///
    /// # Errors
    /// The system says no.
    pub async fn ended(&self) -> io::Result<()> {
        loop {
            self.handle.readable().await?;
            if self.has_ended()? {
                return Ok(());
            }
            tokio::time::sleep(WAKE_PAUSE).await;
        }
    }

    /// Ends it at once (SIGKILL).
    ///
    /// # Errors
    /// The system says no; that it has ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.handle, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string(BOOT_ID)?.trim().to_owned())
}

/// `None`: there is no such process.
fn start_ticks(pid: i32) -> io::Result<Option<u64>> {
    let text = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        // ESRCH: it ended between opening and reading.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(3) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    parse_start(&text).map(Some).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat has another form")))
}

/// Field 22 of `/proc/PID/stat`; the second one, a name in brackets, may hold anything.
fn parse_start(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_is_no_problem() {
        let stat = "77 (a) b) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 999 1";
        assert_eq!(parse_start(stat), Some(12345));
        assert_eq!(parse_start(""), None);
    }

    #[tokio::test]
    async fn a_process_is_told_from_its_successor_and_its_end_is_seen() {
        let mut child = tokio::process::Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(child.id().unwrap()).unwrap();
        let process = Process::of_pid(pid).unwrap().unwrap();
        assert!(Process::of_id(&process.id).unwrap().is_some());
        let other = ProcessId { start_ticks: process.id.start_ticks + 1, ..process.id.clone() };
        assert!(Process::of_id(&other).unwrap().is_none(), "the number alone is not enough");
        let other = ProcessId { boot_id: "another".to_owned(), ..process.id.clone() };
        assert!(Process::of_id(&other).unwrap().is_none());
        assert!(!process.has_ended().unwrap());
        process.kill().unwrap();
        process.ended().await.unwrap();
        child.wait().await.unwrap();
        process.kill().unwrap();
        assert!(Process::of_id(&process.id).unwrap().is_none());
    }

    #[test]
    fn numbers_that_are_none_are_nobody() {
        assert!(parse_start("x").is_none());
    }
}
