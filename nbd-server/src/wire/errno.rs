//! Errors as the protocol knows them, and the one table from the system's errors to them.

use std::io;

/// An error that a reply may carry. No other number leaves this server (invariant D8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// The medium failed, or has failed before and is not trusted any more.
    Io = 5,
    /// The request is not one that this server can carry out.
    Inval = 22,
    /// The medium is full, or the write passes the end of the export.
    NoSpace = 28,
    /// A fast zero was asked for and cannot be had.
    NotSup = 95,
    /// The server is stopping.
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub const fn to_wire(self) -> u32 {
        self as u32
    }

    /// The error for a number of a reply; `None` for a number that the protocol does not know.
    pub const fn from_wire(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Perm),
            5 => Some(Self::Io),
            22 => Some(Self::Inval),
            28 => Some(Self::NoSpace),
            95 => Some(Self::NotSup),
            108 => Some(Self::Shutdown),
            _ => None,
        }
    }

    /// Maps a system error number. Whatever the protocol has no name for is the medium's failure: `EIO`.
    pub fn from_os(raw: i32) -> Self {
        match raw {
            libc::EPERM | libc::EROFS | libc::EACCES => Self::Perm,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => Self::NoSpace,
            libc::EOPNOTSUPP | libc::ENOSYS => Self::NotSup,
            libc::EINVAL => Self::Inval,
            _ => Self::Io,
        }
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        error.raw_os_error().map_or(Self::Io, Self::from_os)
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Perm => "EPERM",
            Self::Io => "EIO",
            Self::Inval => "EINVAL",
            Self::NoSpace => "ENOSPC",
            Self::NotSup => "ENOTSUP",
            Self::Shutdown => "ESHUTDOWN",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_survives_the_wire() {
        for errno in [Errno::Perm, Errno::Io, Errno::Inval, Errno::NoSpace, Errno::NotSup, Errno::Shutdown] {
            assert_eq!(Errno::from_wire(errno.to_wire()), Some(errno));
        }
        assert_eq!(Errno::from_wire(38), None);
    }

    #[test]
    fn system_errors_map_to_the_protocols() {
        for (os, nbd) in [
            (libc::EROFS, Errno::Perm),
            (libc::EDQUOT, Errno::NoSpace),
            (libc::EFBIG, Errno::NoSpace),
            (libc::ENOMEM, Errno::Io),
            (libc::EBADF, Errno::Io),
            (libc::EOPNOTSUPP, Errno::NotSup),
        ] {
            assert_eq!(Errno::from_os(os), nbd, "errno {os}");
        }
    }
}
