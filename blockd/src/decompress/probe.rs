//! `blockd decompress --probe …`: tries from inside what the process must not be able to do.
//!
//! Whatever seccomp forbids ends the process with SIGSYS, which whoever started it sees: one attempt a process.

use std::fs::File;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::ValueEnum;

use super::confine::{confine, lock_files};
use super::worker::exit;
use crate::exit_code;

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// Nothing: it ends well.
    Nothing,
    /// To open a file.
    Open,
    /// To make a socket.
    Socket,
    /// To become another program.
    Exec,
    /// To start a thread, as one would a process.
    Thread,
    /// To write to another descriptor than its socket.
    Descriptor,
    /// To open a file and a TCP port, with nothing but Landlock in the way.
    Landlock,
}

/// Tries it. Exit code 0: it was refused, with an error; [`exit_code::FAILED`]: it was not;
/// [`exit_code::VERIFICATION_FAILED`]: seccomp holds, but not all else. Seccomp ends the process.
///
/// # Errors
/// There is no seccomp, or no Landlock.
pub fn probe(probe: Probe) -> io::Result<()> {
    if probe == Probe::Landlock {
        lock_files().map_err(io::Error::other)?;
        refused(File::open("/etc/passwd"))?;
        return refused(TcpListener::bind("127.0.0.1:0"));
    }
    let missing = confine().map_err(io::Error::other)?;
    if !missing.is_empty() {
        // Nothing can be printed any more.
        exit(exit_code::VERIFICATION_FAILED);
    }
    let refused = match probe {
        Probe::Nothing => Ok(()),
        Probe::Open => refused(File::open("/etc/passwd")),
        Probe::Socket => refused(UnixDatagram::unbound()),
        Probe::Exec => refused(Err::<(), _>(Command::new("/bin/true").exec())),
        Probe::Thread => refused(std::thread::Builder::new().spawn(|| {})),
        Probe::Descriptor => refused(io::stderr().write(b"this must not be seen\n")),
        Probe::Landlock => unreachable!("tried above"),
    };
    exit(refused.map_or(exit_code::FAILED, |()| exit_code::OK))
}

fn refused<T>(tried: io::Result<T>) -> io::Result<()> {
    match tried {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("it was allowed")),
    }
}
