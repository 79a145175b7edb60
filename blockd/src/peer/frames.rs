//! Messages of pairing and greeting: four bytes of length, big-endian, then so many bytes of JSON.

use std::io::{self, ErrorKind};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest message.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Longest text of another host that is shown to people.
const SHOWN_CHARS_MAX: usize = 300;

/// Sends a message.
pub(super) async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(ErrorKind::InvalidInput, "a message of ours is too long"));
    }
    let length = u32::try_from(body.len()).expect("checked: at most 64 KiB");
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Receives a message, and not a byte more.
///
/// # Errors
/// `InvalidData`: it is too long, or none of this kind.
pub(super) async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > MESSAGE_BYTES_MAX {
        let what = format!("a message of {length} bytes, at most {MESSAGE_BYTES_MAX} may be");
        return Err(io::Error::new(ErrorKind::InvalidData, what));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    serde_json::from_slice(&body).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// A text from another host, as it may be shown: short, and without what a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_bounded() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        send(&mut near, &"x".repeat(1000)).await.unwrap();
        assert_eq!(receive::<String>(&mut far).await.unwrap().len(), 1000);
        assert!(send(&mut near, &"x".repeat(MESSAGE_BYTES_MAX)).await.is_err());
        near.write_all(&0x10001_u32.to_be_bytes()).await.unwrap();
        let error = receive::<String>(&mut far).await.unwrap_err();
        assert_eq!(error.to_string(), "a message of 65537 bytes, at most 65536 may be");
    }

    #[test]
    fn a_terminal_obeys_nobody_else() {
        assert_eq!(shown("no\x1b[2Jroom\n"), "no?[2Jroom?");
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), 300);
    }
}
