//! What programs that this process starts get to see of its files.

use std::io;

/// The first descriptor that has no meaning of its own.
const FIRST: libc::c_uint = 3;

/// No program that is started from now on inherits a descriptor, but for its standard ones.
///
/// Rust opens everything so, but who started this process may have left descriptors open for it, knowingly or not.
///
/// # Errors
/// The kernel is older than Linux 5.11.
pub fn keep_descriptors() -> io::Result<()> {
    // SAFETY: with this flag the call closes nothing: it only sets a mark that counts when another program is executed.
    // It takes numbers, no pointers.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
