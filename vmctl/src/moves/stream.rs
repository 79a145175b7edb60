//! Streams between agents: tunnels through the two blockds. Whoever opens one says first what it is for.
//!
//! ```text
//!  A: dial ─► blockd A (HTTP upgrade) ══ mutual TLS ══ blockd B ─► peer.sock of agent B
//!  blockd B: {"v":1,"host":"A","host_id":"…"}\n     who is there, as TLS has proved it
//!  A:        {"v":1,"for":{"control":{"id":"…"}}}\n  what it is for; then bytes as that has them
//! ```

use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::judge::Question;
use crate::cutover::ids::MoveId;
use crate::error::{Error, ErrorAnswer, Kind};
use crate::http::escape;

/// How long it may take until a stream stands.
const OPEN_TIME_MAX: Duration = Duration::from_secs(12);
/// How long who is there may take to say what he wants.
const HELLO_TIME_MAX: Duration = Duration::from_secs(5);
/// Longest line: a definition is in some.
const LINE_BYTES_MAX: usize = 256 << 10;
/// Longest head of blockd's answer, and longest refusal.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Version of what agents say first.
const VERSION: u32 = 1;

/// What a stream is for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Purpose {
    /// Messages of a move's cutover, both ways.
    Control {
        /// Which move.
        id: MoveId,
    },
    /// QEMU's migration stream.
    Memory {
        /// Which move.
        id: MoveId,
    },
    /// One question, one answer.
    Ask(Box<Question>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    v: u32,
    #[serde(rename = "for")]
    purpose: Purpose,
}

/// Who is at the other end: blockd's word.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Introduction {
    v: u32,
    /// What the other host is called here.
    pub(super) host: String,
}

fn broken(error: impl std::fmt::Display) -> Error {
    Error::one_line(Kind::Unreachable, format!("the other agent: {error}"))
}

/// Opens a stream to the agent of a paired host.
///
/// # Errors
/// `unreachable`, or what blockd says.
pub(super) async fn dial(blockd: &Path, host: &str, purpose: Purpose) -> Result<UnixStream, Error> {
    let late = |_| broken(format!("{host} does not answer"));
    timeout(OPEN_TIME_MAX, open(blockd, host, purpose)).await.map_err(late)?
}

async fn open(blockd: &Path, host: &str, purpose: Purpose) -> Result<UnixStream, Error> {
    let unreachable =
        |error| Error::one_line(Kind::Unreachable, format!("blockd: {}: {error}", blockd.display()));
    let mut stream = UnixStream::connect(blockd).await.map_err(unreachable)?;
    let request = format!(
        "POST /v1/hosts/{}/tunnel HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: blockd-tunnel\r\n\
         content-length: 0\r\n\r\n",
        escape(host)
    );
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let head = read_until(&mut stream, b"\r\n\r\n", HEAD_BYTES_MAX).await?;
    if !head.starts_with(b"HTTP/1.1 101 ") {
        return Err(refusal(stream).await);
    }
    write_line(&mut stream, &Hello { v: VERSION, purpose }).await?;
    Ok(stream)
}

/// Why blockd opens no tunnel.
async fn refusal(stream: UnixStream) -> Error {
    let mut body = Vec::new();
    let mut limited = stream.take(HEAD_BYTES_MAX as u64);
    // The connection is kept alive: what has come is all of it.
    let ended = timeout(Duration::from_millis(200), limited.read_to_end(&mut body)).await;
    tracing::debug!(ended = ended.is_ok(), "blockd opens no tunnel");
    let end = body.iter().rposition(|&byte| byte == b'}').map_or(0, |at| at + 1);
    match serde_json::from_slice::<ErrorAnswer>(&body[..end]) {
        Ok(answer) => answer.error,
        Err(_) => Error::one_line(Kind::Unreachable, "blockd opens no tunnel, and does not say why"),
    }
}

/// Reads until `end` came, and not a byte more.
async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &[u8], max: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end) {
        if bytes.len() == max {
            return Err(broken(format!("more than {max} bytes without an end")));
        }
        bytes.push(stream.read_u8().await.map_err(broken)?);
    }
    Ok(bytes)
}

async fn read_line<T: DeserializeOwned>(stream: &mut UnixStream) -> Result<T, Error> {
    let line = read_until(stream, b"\n", LINE_BYTES_MAX).await?;
    serde_json::from_slice(&line)
        .map_err(|error| broken(format!("it says what we do not understand: {error}")))
}

async fn write_line(stream: &mut UnixStream, line: &impl Serialize) -> Result<(), Error> {
    let mut bytes = serde_json::to_vec(line).map_err(broken)?;
    if bytes.len() >= LINE_BYTES_MAX {
        return Err(Error::one_line(Kind::TooLarge, "more than an agent takes in one line"));
    }
    bytes.push(b'\n');
    stream.write_all(&bytes).await.map_err(broken)
}

/// Who is there and what for, of a stream that was opened to us.
pub(super) async fn greet(stream: &mut UnixStream) -> Result<(Introduction, Purpose), Error> {
    let greeting = async {
        let introduction: Introduction = read_line(stream).await?;
        let hello: Hello = read_line(stream).await?;
        if introduction.v != VERSION || hello.v != VERSION {
            return Err(broken(format!("it speaks version {}", hello.v)));
        }
        Ok((introduction, hello.purpose))
    };
    timeout(HELLO_TIME_MAX, greeting).await.map_err(|_| broken("it did not say in time what it wants"))?
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply<T> {
    Ok(T),
    Error(Error),
}

/// Asks the other agent something.
///
/// # Errors
/// `unreachable`, or what it says.
pub(super) async fn ask<T: DeserializeOwned>(
    blockd: &Path,
    host: &str,
    question: Question,
    time_max: Duration,
) -> Result<T, Error> {
    let mut stream = dial(blockd, host, Purpose::Ask(Box::new(question))).await?;
    let nobody = |_| broken(format!("no answer from {host}")).with_next("systemctl status vmctl    (there)");
    match timeout(time_max, read_line(&mut stream)).await.map_err(nobody)? {
        Ok(Reply::Ok(answer)) => Ok(answer),
        Ok(Reply::Error(error)) => Err(error),
        Err(error) => {
            Err(error.with_next("systemctl status vmctl    (there; blockd's agent_socket must be its own)"))
        }
    }
}

/// A stream to the QEMU that waits for a guest's memory there.
///
/// # Errors
/// `unreachable`, or what the other agent says: none waits.
pub(super) async fn dial_memory(blockd: &Path, host: &str, id: MoveId) -> Result<UnixStream, Error> {
    let mut stream = dial(blockd, host, Purpose::Memory { id }).await?;
    let late = |_| broken(format!("{host} leads memory to no QEMU"));
    match timeout(OPEN_TIME_MAX, read_line(&mut stream)).await.map_err(late)?? {
        Reply::Ok(()) => Ok(stream),
        Reply::Error(error) => Err(error),
    }
}

/// Answers a question.
pub(super) async fn reply<T: Serialize>(
    stream: &mut UnixStream,
    answer: Result<T, Error>,
) -> Result<(), Error> {
    let reply = match answer {
        Ok(answer) => Reply::Ok(answer),
        Err(error) => Reply::Error(error),
    };
    write_line(stream, &reply).await
}
