//! Starting, awaiting and stopping the programs of a run.
//!
//! Nothing outlives its guard: a [`Guarded`] process gets SIGTERM, and SIGKILL when that does not help. Only
//! processes started here are ever signalled, by their process id. Such an id cannot have been given to
//! somebody else meanwhile, because the process stays a zombie until *we* wait for it; for daemons, which
//! leave their parent, [`adopt_orphans`] makes that so.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, set_child_subreaper, waitpid};

use crate::cpu;
use crate::interrupt::Interrupt;
use crate::trouble::{OrTrouble, Trouble};

/// How long a server may take until it accepts a connection, as a rule.
pub const READY_WITHIN: Duration = Duration::from_secs(10);
/// How long a process may take to end after SIGTERM, and again after SIGKILL.
const STOPPED_WITHIN: Duration = Duration::from_secs(5);
/// Pause between two looks at a process.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The same for a program that is timed by who runs it to its end: this stands in its time.
const LOOK_AT_RUN_EVERY: Duration = Duration::from_millis(2);
/// The longest path a Unix socket may have, its closing zero byte not counted. Spec: unix(7), `sun_path`.
const SOCKET_PATH_MAX: usize = 107;
/// How many lines of a program's log stand in an error.
const LOG_LINES_SHOWN: usize = 3;

/// Makes daemons that leave their parent our children again, so that they can be waited for.
///
/// # Errors
/// The kernel refuses.
pub fn adopt_orphans() -> Result<(), Trouble> {
    let us = rustix::process::getpid();
    set_child_subreaper(Some(us))
        .or_trouble(|| "become the parent of daemons".into(), "use Linux 3.4 or later")
}

/// A process that ends with its guard.
#[derive(Debug)]
pub struct Guarded {
    // Apart from the guard: changing the state must not drop a guard, whose end is to change the state.
    state: State,
}

#[derive(Debug)]
enum State {
    /// Started by us.
    Child(Child),
    /// Put itself into the background; ours by [`adopt_orphans`].
    Daemon(Pid),
    /// Has ended and was waited for.
    Ended,
}

impl Guarded {
    /// Guards a process started by us.
    pub fn child(child: Child) -> Self {
        Self { state: State::Child(child) }
    }

    /// Guards a process that [`adopt_orphans`] made ours.
    fn daemon(pid: Pid) -> Self {
        Self { state: State::Daemon(pid) }
    }

    /// Process id, while it runs.
    pub fn pid(&self) -> Option<Pid> {
        match &self.state {
            State::Child(child) => Some(Pid::from_child(child)),
            State::Daemon(pid) => Some(*pid),
            State::Ended => None,
        }
    }

    /// Whether it has ended; then also how, as text.
    ///
    /// # Errors
    /// It could not be waited for.
    pub fn ended(&mut self) -> io::Result<Option<String>> {
        let how = match &mut self.state {
            State::Child(child) => child.try_wait()?.map(|status| status.to_string()),
            State::Daemon(pid) => daemon_ended(*pid)?,
            State::Ended => Some("has ended".to_owned()),
        };
        if how.is_some() {
            self.state = State::Ended;
        }
        Ok(how)
    }

    /// Ends it: SIGTERM, then SIGKILL, then what it may have left below it.
    ///
    /// # Errors
    /// It is still there after all that.
    pub fn stop(&mut self) -> Result<(), Trouble> {
        self.end(&[(Signal::TERM, STOPPED_WITHIN), (Signal::KILL, STOPPED_WITHIN)])
    }

    /// Ends it by signals, each with the time that it has to help.
    fn end(&mut self, signals: &[(Signal, Duration)]) -> Result<(), Trouble> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let below = descendants(pid)?;
        for (signal, limit) in signals {
            send(pid, *signal)?;
            if self.ends_within(*limit)? {
                return kill_left_behind(&below);
            }
        }
        let names = signals.iter().map(|(signal, _)| format!("{signal:?}")).collect::<Vec<_>>().join(", ");
        Err(Trouble::new(format!("stop process {pid:?}"), format!("it survives {names}"), "look at dmesg"))
    }

    fn ends_within(&mut self, limit: Duration) -> Result<bool, Trouble> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.ended().or_trouble(|| "wait for a process".into(), NEXT_REPORT)?.is_some() {
                return Ok(true);
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(false)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Err(trouble) = self.stop() {
            eprintln!("{trouble}");
        }
    }
}

const NEXT_REPORT: &str = "report it, with this text";

fn daemon_ended(pid: Pid) -> io::Result<Option<String>> {
    match waitpid(Some(pid), WaitOptions::NOHANG) {
        Ok(status) => Ok(status.map(|(_, status)| format!("{status:?}"))),
        Err(Errno::CHILD) => Ok(Some("was waited for already".to_owned())),
        Err(error) => Err(error.into()),
    }
}

fn send(pid: Pid, signal: Signal) -> Result<(), Trouble> {
    match kill_process(pid, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(Trouble::new(format!("stop process {pid:?}"), error, NEXT_REPORT)),
    }
}

fn descendants(pid: Pid) -> Result<Vec<u32>, Trouble> {
    let root = pid.as_raw_nonzero().get().unsigned_abs();
    let family = cpu::tree(&cpu::all_processes()?, root);
    Ok(family.iter().map(|process| process.pid).filter(|pid| *pid != root).collect())
}

/// Kills those of `pids` that lost their parent to us: a server's processes for clients still connected.
fn kill_left_behind(pids: &[u32]) -> Result<(), Trouble> {
    if pids.is_empty() {
        return Ok(());
    }
    let us = std::process::id();
    for process in cpu::all_processes()? {
        let orphan = pids.contains(&process.pid) && process.parent == us;
        let Some(pid) = pid_from(process.pid).filter(|_| orphan) else { continue };
        send(pid, Signal::KILL)?;
        Guarded::daemon(pid).ends_within(STOPPED_WITHIN)?;
    }
    Ok(())
}

fn pid_from(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

/// Starts `line`, its input closed and its output in `log`, tied to one CPU when asked to.
///
/// # Errors
/// The program or `taskset` cannot be started, or the log not be written.
pub fn spawn(line: &[String], log: &Path, cpu: Option<u32>) -> Result<Child, Trouble> {
    let what = || format!("start {}", line.join(" "));
    let tied = cpu.map(|cpu| vec!["taskset".to_owned(), "-c".to_owned(), cpu.to_string()]);
    let whole = [tied.unwrap_or_default(), line.to_vec()].concat();
    let (program, arguments) =
        whole.split_first().ok_or_else(|| Trouble::new(what(), "no program", NEXT_REPORT))?;
    let output = File::create(log).or_trouble(what, "free some space in the temporary directory")?;
    let errors = output.try_clone().or_trouble(what, "raise the limit on open files (ulimit -n)")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(output).stderr(errors);
    command.spawn().or_trouble(what, "install it, or leave it out with --servers")
}

/// Runs a program until it ends by itself, its output in `log`; with an error it has been stopped.
///
/// # Errors
/// It cannot be started, does not end in time, or somebody asked to stop.
pub fn run_to_end(
    line: &[String],
    log: &Path,
    cpu: Option<u32>,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<ExitStatus, Trouble> {
    let name = line.first().map_or("a program", String::as_str);
    let mut child = spawn(line, log, cpu)?;
    let ended = wait(&mut child, name, limit, interrupt);
    // A no-op when it has ended by itself; otherwise its end, before anything else is done.
    Guarded::child(child).stop()?;
    ended
}

fn wait(
    child: &mut Child,
    name: &str,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<ExitStatus, Trouble> {
    let deadline = Instant::now() + limit;
    loop {
        interrupt.check()?;
        if let Some(status) = child.try_wait().or_trouble(|| format!("wait for {name}"), NEXT_REPORT)? {
            return Ok(status);
        }
        if Instant::now() > deadline {
            let why = format!("no end within {limit:?}: what it works on no longer answers");
            return Err(Trouble::new(format!("run {name}"), why, "look at the server's log"));
        }
        thread::sleep(LOOK_AT_RUN_EVERY);
    }
}

/// The last lines of a log, on one line.
pub fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_else(|error| format!("its log cannot be read: {error}"));
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..).unwrap_or_default().join(" | ");
    if shown.is_empty() { "it said nothing".to_owned() } else { shown }
}

/// How to start one server.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Its name in errors.
    pub name: &'static str,
    /// Program and arguments.
    pub line: Vec<String>,
    /// The Unix socket it will listen on.
    pub socket: PathBuf,
    /// Where it leaves its process id, when it puts itself into the background.
    pub pid_file: Option<PathBuf>,
    /// Where its output goes.
    pub log: PathBuf,
    /// The CPU it is tied to.
    pub cpu: Option<u32>,
    /// How long it may take until it accepts a connection.
    pub ready_within: Duration,
}

/// A server that accepts connections. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    process: Guarded,
}

impl Server {
    /// Starts a server and waits until its socket accepts a connection.
    ///
    /// # Errors
    /// It cannot be started, ends early, is not ready in time, or somebody asked to stop.
    pub fn start(launch: &Launch, interrupt: &Interrupt) -> Result<Self, Trouble> {
        check_socket_path(&launch.socket)?;
        let mut process = Guarded::child(spawn(&launch.line, &launch.log, launch.cpu)?);
        let deadline = Instant::now() + launch.ready_within;
        if let Some(pid_file) = &launch.pid_file {
            process = follow_daemon(process, pid_file, deadline, launch)?;
        }
        while UnixStream::connect(&launch.socket).is_err() {
            interrupt.check()?;
            let how = process.ended().or_trouble(|| cannot_start(launch), NEXT_REPORT)?;
            if let Some(how) = how {
                return Err(too_early(launch, &how));
            }
            in_time(deadline, launch)?;
        }
        Ok(Self { name: launch.name, process })
    }

    /// CPU time spent so far by the server, its threads and its children.
    ///
    /// Units: the kernel's clock tick, usually 10 ms.
    /// # Errors
    /// The server is gone.
    pub fn cpu_spent(&self) -> Result<Duration, Trouble> {
        cpu::spent_by_tree(self.pid()?)
    }

    /// Its process id.
    ///
    /// # Errors
    /// The server is gone.
    pub fn pid(&self) -> Result<u32, Trouble> {
        let gone = || Trouble::new(format!("measure {}", self.name), "it has ended", "start it by hand");
        Ok(self.process.pid().ok_or_else(gone)?.as_raw_nonzero().get().unsigned_abs())
    }

    /// Stops the server.
    ///
    /// # Errors
    /// It does not end, even by SIGKILL.
    pub fn stop(mut self) -> Result<(), Trouble> {
        self.process.stop()
    }

    /// Stops the server by SIGTERM alone: an end that it makes itself, or none.
    ///
    /// # Errors
    /// It has not ended in time.
    pub fn stop_cleanly(mut self, limit: Duration) -> Result<(), Trouble> {
        self.process.end(&[(Signal::TERM, limit)])
    }

    /// Kills the server.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(mut self) -> Result<(), Trouble> {
        self.process.end(&[(Signal::KILL, STOPPED_WITHIN)])
    }
}

fn check_socket_path(socket: &Path) -> Result<(), Trouble> {
    let length = socket.as_os_str().len();
    if length > SOCKET_PATH_MAX {
        let why = format!("its path has {length} bytes, a Unix socket's may have {SOCKET_PATH_MAX}");
        return Err(Trouble::new("make a socket", why, "set TMPDIR to a directory with a short path"));
    }
    Ok(())
}

/// Waits for the starter of a daemon to end well, then for the daemon's process id.
fn follow_daemon(
    mut starter: Guarded,
    file: &Path,
    until: Instant,
    launch: &Launch,
) -> Result<Guarded, Trouble> {
    let State::Child(child) = &mut starter.state else { return Ok(starter) };
    while child.try_wait().or_trouble(|| cannot_start(launch), NEXT_REPORT)?.is_none() {
        in_time(until, launch)?;
    }
    let status = child.wait().or_trouble(|| cannot_start(launch), NEXT_REPORT)?;
    if !status.success() {
        return Err(too_early(launch, &status.to_string()));
    }
    loop {
        let number = fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = number.and_then(pid_from) {
            return Ok(Guarded::daemon(pid));
        }
        in_time(until, launch)?;
    }
}

/// Sleeps a little, as long as there is time left.
fn in_time(deadline: Instant, launch: &Launch) -> Result<(), Trouble> {
    if Instant::now() < deadline {
        thread::sleep(LOOK_EVERY);
        return Ok(());
    }
    let why = format!("no connection within {:?}: {}", launch.ready_within, last_words(&launch.log));
    Err(Trouble::new(cannot_start(launch), why, by_hand(launch)))
}

fn too_early(launch: &Launch, how: &str) -> Trouble {
    Trouble::new(cannot_start(launch), format!("{how}: {}", last_words(&launch.log)), by_hand(launch))
}

fn cannot_start(launch: &Launch) -> String {
    format!("start {}", launch.name)
}

fn by_hand(launch: &Launch) -> String {
    format!("try it by hand: {}", launch.line.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(dir: &Path, script: &str) -> Launch {
        Launch {
            name: "test",
            line: vec!["sh".into(), "-c".into(), script.into()],
            socket: dir.join("s"),
            pid_file: None,
            log: dir.join("log"),
            cpu: None,
            ready_within: READY_WITHIN,
        }
    }

    #[test]
    fn a_server_that_ends_early_is_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let failed =
            Server::start(&launch(dir.path(), "echo no such disk >&2; exit 3"), &Interrupt::default());
        let trouble = failed.unwrap_err();
        assert_eq!(trouble.what, "start test");
        assert!(trouble.why.contains("exit status: 3"), "{}", trouble.why);
        assert!(trouble.why.contains("no such disk"), "{}", trouble.why);
    }

    #[test]
    fn a_socket_path_longer_than_the_kernel_takes_is_refused() {
        let mut long = launch(Path::new("/run"), "exit 0");
        long.socket = PathBuf::from(format!("/{}", "x".repeat(SOCKET_PATH_MAX)));
        let trouble = Server::start(&long, &Interrupt::default()).unwrap_err();
        assert!(trouble.next.contains("TMPDIR"));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let line = ["sleep".to_owned(), "60".to_owned()];
        let guard = Guarded::child(spawn(&line, &dir.path().join("log"), None).unwrap());
        let pid = guard.pid().unwrap();
        drop(guard);
        assert!(!Path::new(&format!("/proc/{}", pid.as_raw_nonzero())).exists());
    }

    #[test]
    fn a_process_that_has_ended_needs_no_stopping() {
        let dir = tempfile::tempdir().unwrap();
        let line = ["sh".to_owned(), "-c".to_owned(), "exit 0".to_owned()];
        let mut guard = Guarded::child(spawn(&line, &dir.path().join("log"), None).unwrap());
        assert!(guard.ends_within(STOPPED_WITHIN).unwrap());
        assert!(guard.pid().is_none());
        assert!(guard.stop().is_ok());
    }
}
