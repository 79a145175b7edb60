//! What the daemon and the process that decompresses say to each other.
//!
//! ```text
//!  request  announced u32 · stored u32 · stored bytes
//!  answer   status u8 · length u32 · the data, or a reason
//! ```
//!
//! The first answer belongs to no request: the process says that it is confined, or why it is not.

use std::io::{self, Read, Write};

use crate::sync::batch::DATA_BYTES_MAX;
use crate::sync::wire::PAYLOAD_BYTES_MAX;

/// The longest reason, bytes.
pub(super) const REASON_BYTES_MAX: usize = 500;

pub(super) mod status {
    pub(in crate::decompress) const OK: u8 = 0;
    pub(in crate::decompress) const REFUSED: u8 = 1;
}

/// The first five bytes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u8,
    pub(super) length: usize,
}

fn length(bytes: [u8; 4]) -> usize {
    u32::from_be_bytes(bytes) as usize
}

fn written(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("limited before").to_be_bytes()
}

/// Asks for so many bytes of these.
///
/// # Panics
/// When there are more than may be asked for: whoever asks has judged that.
pub(super) fn ask(link: &mut impl Write, announced: usize, stored: &[u8]) -> io::Result<()> {
    assert!(announced <= DATA_BYTES_MAX && stored.len() <= PAYLOAD_BYTES_MAX, "no batch is so long");
    let [a, b, c, d] = written(announced);
    let [e, f, g, h] = written(stored.len());
    link.write_all(&[a, b, c, d, e, f, g, h])?;
    link.write_all(stored)
}

/// The next request: announced and stored bytes. `None`: nobody asks any more.
pub(super) fn asked(link: &mut impl Read) -> io::Result<Option<(usize, Vec<u8>)>> {
    let mut head = [0; 8];
    match link.read(&mut head)? {
        0 => return Ok(None),
        read => link.read_exact(&mut head[read..])?,
    }
    let [a, b, c, d, e, f, g, h] = head;
    let (announced, stored) = (length([a, b, c, d]), length([e, f, g, h]));
    if announced > DATA_BYTES_MAX || stored > PAYLOAD_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; stored];
    link.read_exact(&mut bytes)?;
    Ok(Some((announced, bytes)))
}

/// Answers.
pub(super) fn answer(link: &mut impl Write, status: u8, bytes: &[u8]) -> io::Result<()> {
    let [a, b, c, d] = written(bytes.len());
    link.write_all(&[status, a, b, c, d])?;
    link.write_all(bytes)
}

/// A reason, as an answer.
pub(super) fn answer_text(link: &mut impl Write, status: u8, text: &str) -> io::Result<()> {
    answer(link, status, &text.as_bytes()[..text.len().min(REASON_BYTES_MAX)])
}

/// The beginning of an answer.
pub(super) fn head(link: &mut impl Read) -> io::Result<Head> {
    let mut head = [0; 5];
    link.read_exact(&mut head)?;
    let [status, a, b, c, d] = head;
    Ok(Head { status, length: length([a, b, c, d]) })
}

/// A reason of that length; what is no plain text in it is not shown. `None`: too long.
pub(super) fn text(link: &mut impl Read, length: usize) -> io::Result<Option<String>> {
    if length > REASON_BYTES_MAX {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    link.read_exact(&mut bytes)?;
    let plain = |byte: u8| if byte == b' ' || byte.is_ascii_graphic() { char::from(byte) } else { '?' };
    Ok(Some(bytes.into_iter().map(plain).collect()))
}
