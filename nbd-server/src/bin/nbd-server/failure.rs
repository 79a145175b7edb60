//! Errors as a person sees them: what, why, and the next command to type.

use std::fmt;

use nbd_server::image::OpenError;
use nbd_server::server::StartError;

use crate::exit_code;

/// Three lines and an exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) what: String,
    pub(crate) why: String,
    pub(crate) next: String,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(
        code: u8,
        what: impl Into<String>,
        why: impl fmt::Display,
        next: impl Into<String>,
    ) -> Self {
        Self { what: what.into(), why: why.to_string(), next: next.into(), code }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\nwhy:   {}\nnext:  {}", self.what, self.why, self.next)
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let (path, code, next) = match &error {
            OpenError::NotFound(path) => (
                path,
                exit_code::NOT_FOUND,
                format!("truncate -s 8G {}    (makes an empty image)", path.display()),
            ),
            OpenError::NotADisk(path) => {
                (path, exit_code::USAGE, "nbd-server DISK.IMG    (a file or a block device)".to_owned())
            }
            OpenError::Denied(path, _) => (
                path,
                exit_code::REFUSED,
                format!("nbd-server --read-only {}    (or change its permissions)", path.display()),
            ),
            OpenError::Locked(path) => {
                (path, exit_code::BUSY, format!("fuser -v {}    (shows who has it open)", path.display()))
            }
            OpenError::NoDirect(path) => {
                (path, exit_code::FAILED, format!("nbd-server --cache writeback {}", path.display()))
            }
            OpenError::OddSize { path, size, align } => {
                let rounded = size.next_multiple_of(u64::from(*align));
                let next = format!("truncate -s {rounded} {}    (or --cache writeback)", path.display());
                (path, exit_code::FAILED, next)
            }
            OpenError::Io(path, _) => (path, exit_code::FAILED, format!("stat {}", path.display())),
        };
        Self::new(code, format!("cannot serve {}", path.display()), &error, next)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let (code, next) = match &error {
            StartError::DuplicateName(_) | StartError::BadName => {
                (exit_code::USAGE, "nbd-server a=/path/disk.img b=/other/disk.img    (name them apart)")
            }
            StartError::Ring(_) => (
                exit_code::FAILED,
                "cat /proc/sys/kernel/io_uring_disabled    (must be 0; Linux 6.1 or later)",
            ),
            StartError::Thread(_) => (exit_code::FAILED, "ulimit -a    (threads and descriptors)"),
        };
        Self::new(code, "cannot start", &error, next)
    }
}
