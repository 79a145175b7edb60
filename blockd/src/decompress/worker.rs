//! `blockd decompress`: the process itself. It is confined, says so, and then makes data of what it is given, until
//! nobody asks any more: when the daemon ends, however it does, it reads the end of its socket.

use std::io::{self, Read, Write};

use rustix::io::Errno;
use rustix::thread::set_name;

use super::confine::confine;
use super::frames::{answer, answer_text, asked, status};
use super::{Decompress, DecompressError, InProcess};
use crate::exit_code;

/// Descriptor 0, in both directions, without buffers: no other one may be used ([`super::confine`]).
struct Link(io::Stdin);

impl Read for Link {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&self.0, &mut *bytes) {
                Err(Errno::INTR) => {}
                read => return Ok(read?),
            }
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.0, bytes) {
                Err(Errno::INTR) => {}
                written => return Ok(written?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Runs until nobody asks any more. What is no request, and a broken socket, end the process.
///
/// # Errors
/// It could not be confined; that was told to who asks, too.
pub fn run() -> io::Result<()> {
    // A megabyte for each batch: not from the kernel each time.
    nbd_server::reactor::keep_freed_memory();
    set_name(c"blockd-unzstd")?;
    let mut link = Link(io::stdin());
    match confine() {
        Ok(missing) => serve(&mut link, &missing.join("; ")).map_err(|_| exit(exit_code::FAILED)),
        Err(why) => {
            answer_text(&mut link, status::REFUSED, &why)?;
            Err(io::Error::other(why))
        }
    }
}

/// Ends this process without a word: no descriptor may be used for one.
pub(super) fn exit(code: u8) -> ! {
    std::process::exit(i32::from(code))
}

fn serve(link: &mut Link, missing: &str) -> io::Result<()> {
    answer_text(link, status::OK, missing)?;
    while let Some((announced, stored)) = asked(link)? {
        match InProcess.decompress(&stored, announced) {
            Ok(data) => answer(link, status::OK, &data)?,
            Err(DecompressError::Bad(why) | DecompressError::Local(why)) => {
                answer_text(link, status::REFUSED, &why)?;
            }
        }
    }
    Ok(())
}
