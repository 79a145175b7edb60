//! The daemon's end: starts the process at a session's first compressed batch, asks it, and ends it with the session.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbd_server::reactor::keep_descriptors;

use super::frames::{self, Head, status};
use super::{Decompress, DecompressError};

/// How long the process may take to start and to confine itself.
const START_TIME_MAX: Duration = Duration::from_secs(10);
/// How long it may take for one batch, which is a megabyte: a thousand times what it needs.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// The daemon's own program, whatever has become of its file since.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Signals that reach the process only from outside: it cannot send them to itself, and no fault in it is one of them.
const FROM_OUTSIDE: [i32; 5] = [libc::SIGKILL, libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// How processes are started. One for each daemon.
#[derive(Debug)]
pub struct Workers {
    program: PathBuf,
    answer_time_max: Duration,
    /// What the kernel does not have was told.
    told: AtomicBool,
}

impl Workers {
    /// Of the program that this process runs, which must be `blockd`.
    pub fn own() -> Arc<Self> {
        Self::of(PathBuf::from(OWN_PROGRAM), ANSWER_TIME_MAX)
    }

    /// Of another program, that may take so long for each answer.
    pub fn of(program: PathBuf, answer_time_max: Duration) -> Arc<Self> {
        Arc::new(Self { program, answer_time_max, told: AtomicBool::new(false) })
    }

    /// For one session; nothing is started yet.
    pub fn session(self: &Arc<Self>) -> Session {
        Session { workers: Arc::clone(self), state: Mutex::new(State::Idle) }
    }

    fn tell_once(&self, missing: &str) {
        if !missing.is_empty() && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(missing, "the process that decompresses is confined by seccomp, but not all else");
        }
    }
}

#[derive(Debug)]
enum State {
    /// Nothing compressed has come yet.
    Idle,
    Running(Worker),
    /// It is not started again in this session.
    Ended(DecompressError),
}

/// What decompresses for one session. Dropped, its process is ended.
#[derive(Debug)]
pub struct Session {
    workers: Arc<Workers>,
    /// One batch after the other: those of a session come in order anyway.
    state: Mutex<State>,
}

impl Decompress for Session {
    fn decompress(&self, stored: &[u8], length: usize) -> Result<Vec<u8>, DecompressError> {
        // What is behind the lock is whole after every statement.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Ended(why) = &*state {
            return Err(why.clone());
        }
        self.ask(&mut state, stored, length).unwrap_or_else(|why| {
            tracing::warn!(?why, "a session's process that decompresses has ended");
            // The process is ended by that.
            *state = State::Ended(why.clone());
            Err(why)
        })
    }
}

impl Session {
    /// The number of the process, if there is one.
    pub fn pid(&self) -> Option<u32> {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Running(worker) => Some(worker.child.id()),
            State::Idle | State::Ended(_) => None,
        }
    }

    /// The outer error: the process is of no more use.
    fn ask(
        &self,
        state: &mut State,
        stored: &[u8],
        length: usize,
    ) -> Result<Result<Vec<u8>, DecompressError>, DecompressError> {
        if let State::Idle = state {
            let (worker, missing) = Worker::start(&self.workers).map_err(DecompressError::Local)?;
            self.workers.tell_once(&missing);
            *state = State::Running(worker);
        }
        let State::Running(worker) = state else { unreachable!("it was started") };
        let asked = exchange(&worker.socket, self.workers.answer_time_max, stored, length);
        asked.map_err(|lost| match lost {
            Lost::Lied(why) => DecompressError::Bad(why),
            Lost::Late => {
                let limit = self.workers.answer_time_max;
                DecompressError::Bad(format!("the process that decompresses gave no answer in {limit:?}"))
            }
            Lost::Ended(error) => worker.ended(&error),
        })
    }
}

/// Why there is no answer.
#[derive(Debug)]
enum Lost {
    /// The answer cannot be one.
    Lied(String),
    Late,
    /// Nobody is there any more.
    Ended(io::Error),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Late,
            _ => Self::Ended(error),
        }
    }
}

/// One request and its answer. Nothing is allocated for an answer before its length was found right.
fn exchange(
    socket: &UnixStream,
    limit: Duration,
    stored: &[u8],
    length: usize,
) -> Result<Result<Vec<u8>, DecompressError>, Lost> {
    let mut link = Timed { socket, until: Instant::now() + limit };
    frames::ask(&mut link, length, stored)?;
    match frames::head(&mut link)? {
        Head { status: status::OK, length: found } if found == length => {
            let mut data = vec![0; length];
            link.read_exact(&mut data)?;
            Ok(Ok(data))
        }
        Head { status: status::OK, length: found } => {
            Err(Lost::Lied(format!("{found} decompressed bytes where {length} are announced")))
        }
        Head { status: status::REFUSED, length: found } => match frames::text(&mut link, found)? {
            Some(why) => Ok(Err(DecompressError::Bad(why))),
            None => Err(Lost::Lied(format!("a reason of {found} bytes"))),
        },
        Head { status, .. } => Err(Lost::Lied(format!("an answer of the unknown kind {status}"))),
    }
}

/// A socket all of whose answers must have come until then: one that trickles is late, too.
struct Timed<'a> {
    socket: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        (&mut &*self.socket).read(bytes)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        (&mut &*self.socket).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A process that is confined. Dropped, it is killed and waited for.
#[derive(Debug)]
struct Worker {
    child: Child,
    socket: UnixStream,
}

impl Worker {
    /// With what it could not be confined by; or why there is none, which is this host's trouble: it has read nothing.
    fn start(workers: &Workers) -> Result<(Self, String), String> {
        let program = workers.program.display();
        let failed = |error: io::Error| format!("{program} decompress cannot be started: {error}");
        let mut worker = Self::spawn(workers).map_err(failed)?;
        let mut link = Timed { socket: &worker.socket, until: Instant::now() + START_TIME_MAX };
        let said = frames::head(&mut link)
            .and_then(|head| Ok((head.status, frames::text(&mut link, head.length)?.unwrap_or_default())));
        match said {
            Ok((status::OK, missing)) => Ok((worker, missing)),
            Ok((_, why)) => Err(format!("{program} decompress cannot be confined: {why}")),
            Err(error) => {
                let status = worker.end();
                Err(format!("{program} decompress has said nothing ({error}; {})", shown(&status)))
            }
        }
    }

    /// Without the user that it becomes: the standard library would fork for that, and a fork of a daemon with much memory,
    /// some of it pinned by io_uring, holds guests up. The process becomes another user by itself.
    fn spawn(workers: &Workers) -> io::Result<Self> {
        let (socket, its_own) = UnixStream::pair()?;
        keep_descriptors()?;
        let mut command = Command::new(&workers.program);
        command.arg0("blockd").arg("decompress").env_clear().current_dir("/");
        command.stdin(OwnedFd::from(its_own)).stdout(Stdio::null()).stderr(Stdio::null());
        // Ctrl-C is for the daemon, which ends it.
        let child = command.process_group(0).spawn()?;
        Ok(Self { child, socket })
    }

    /// Kills it, if it is still there; how it has ended.
    fn end(&mut self) -> io::Result<ExitStatus> {
        // Of one that has ended already, that changes nothing.
        self.child.kill()?;
        self.child.wait()
    }

    /// Whose fault it is that it is gone.
    fn ended(&mut self, error: &io::Error) -> DecompressError {
        let status = self.end();
        let text = format!("the process that decompresses has ended ({error}; {})", shown(&status));
        let signal = status.ok().and_then(|status| status.signal());
        if signal.is_some_and(|signal| FROM_OUTSIDE.contains(&signal)) {
            DecompressError::Local(text)
        } else {
            DecompressError::Bad(text)
        }
    }
}

fn shown(status: &io::Result<ExitStatus>) -> String {
    status.as_ref().map_or_else(ToString::to_string, ToString::to_string)
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "a process that decompresses is not ended");
        }
    }
}

#[cfg(test)]
mod tests;
