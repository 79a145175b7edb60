//! The link of a move: one control stream at a time, dialled or accepted, again and again.
//!
//! ```text
//!  0x00                                a sign of life, every half second
//!  0x01 · length u32 · JSON            a message (cutover::codec)
//! ```
//!
//! Messages are lost while there is no stream: the cutover's machines say again what matters.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::stream::{Purpose, dial};
use crate::cutover::codec::{Decoder, MESSAGE_BYTES_MAX, encode};
use crate::cutover::ids::MoveId;
use crate::cutover::message::{Envelope, Message};

/// Messages that wait to be sent.
const OUT_MAX: usize = 64;
/// Streams that wait to be taken.
const ACCEPTED_MAX: usize = 4;
/// How often a sign of life is sent.
const PING: Duration = Duration::from_millis(500);
/// Without a sign for so long, nobody is there.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// Between two attempts to dial.
const DIAL_PAUSE: Duration = Duration::from_millis(300);
/// The destination dials only when the source does not.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the link tells.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// A stream stands.
    Up,
    /// None does.
    Down,
    /// The other agent says it.
    Message(Envelope),
}

/// Where a link goes.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// blockd's API.
    pub(super) blockd: PathBuf,
    /// The other host.
    pub(super) host: String,
    /// The move.
    pub(super) id: MoveId,
    /// Whether it dials at once; else it waits a little for the other side to.
    pub(super) eager: bool,
}

/// The link; dropped, it ends.
pub(super) struct Link {
    out: mpsc::Sender<Message>,
    accepted: mpsc::Sender<UnixStream>,
    task: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// Starts it; `told` gets what it has to tell.
    pub(super) fn start(target: Target, told: mpsc::Sender<LinkEvent>) -> Self {
        let (out, sending) = mpsc::channel(OUT_MAX);
        let (accepted, accepting) = mpsc::channel(ACCEPTED_MAX);
        let task = tokio::spawn(Keeper { target, told, sending, accepting }.run()).abort_handle();
        Self { out, accepted, task }
    }

    /// Sends, or loses it.
    pub(super) fn send(&self, message: Message) {
        if let Err(error) = self.out.try_send(message) {
            tracing::debug!(%error, "a message is lost");
        }
    }

    /// Where streams go that the other side has opened.
    pub(super) fn accepted(&self) -> mpsc::Sender<UnixStream> {
        self.accepted.clone()
    }
}

struct Keeper {
    target: Target,
    told: mpsc::Sender<LinkEvent>,
    sending: mpsc::Receiver<Message>,
    accepting: mpsc::Receiver<UnixStream>,
}

impl Keeper {
    /// Until nobody listens any more.
    async fn run(mut self) {
        let mut next = None;
        // One that is closed at once is not dialled again at once: nobody is to be kept busy with that.
        let mut pause = if self.target.eager { Duration::ZERO } else { PATIENCE };
        loop {
            let stream = match next.take() {
                Some(stream) => stream,
                None => match self.find(pause).await {
                    Some(stream) => stream,
                    None => return,
                },
            };
            if self.told.send(LinkEvent::Up).await.is_err() {
                return;
            }
            next = self.serve(stream).await;
            pause = if self.target.eager { DIAL_PAUSE } else { PATIENCE };
            if self.told.send(LinkEvent::Down).await.is_err() {
                return;
            }
        }
    }

    /// A stream, whoever opens it; `None`: the move is over.
    async fn find(&mut self, mut pause: Duration) -> Option<UnixStream> {
        loop {
            let target = &self.target;
            let dialling = async {
                sleep(pause).await;
                dial(&target.blockd, &target.host, Purpose::Control { id: target.id }).await
            };
            tokio::select! {
                accepted = self.accepting.recv() => return accepted,
                dialled = dialling => match dialled {
                    Ok(stream) => return Some(stream),
                    Err(error) => tracing::debug!(host = target.host, %error, "no link"),
                },
                () = self.told.closed() => return None,
            }
            // What could not be said is lost.
            while self.sending.try_recv().is_ok() {}
            pause = if self.target.eager { DIAL_PAUSE } else { PATIENCE };
        }
    }

    /// Until the stream ends, or another one takes its place, which is returned.
    async fn serve(&mut self, stream: UnixStream) -> Option<UnixStream> {
        let (read, mut write) = stream.into_split();
        let told = self.told.clone();
        let mut reading = tokio::spawn(receive(read, told));
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let next = loop {
            let written = tokio::select! {
                accepted = self.accepting.recv() => break accepted,
                ended = &mut reading => {
                    tracing::debug!(?ended, "a link has ended");
                    break None;
                }
                message = self.sending.recv() => match message {
                    Some(message) => send(&mut write, self.target.id, message).await,
                    None => break None,
                },
                _ = ping.tick() => write.write_all(&[0]).await,
            };
            if let Err(error) = written {
                tracing::debug!(%error, "a link has broken");
                break None;
            }
        };
        reading.abort();
        next
    }
}

async fn send(write: &mut OwnedWriteHalf, id: MoveId, message: Message) -> std::io::Result<()> {
    let bytes = [&[1][..], &encode(&Envelope { id, message })].concat();
    // A peer that takes nothing must not hold up the signs of life for ever.
    match timeout(SILENCE_MAX, write.write_all(&bytes)).await {
        Ok(written) => written,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

/// Until the other side falls silent, ends, or says what is no message; why.
async fn receive(mut read: OwnedReadHalf, told: mpsc::Sender<LinkEvent>) -> String {
    loop {
        match timeout(SILENCE_MAX, receive_one(&mut read)).await {
            Ok(Ok(Some(envelope))) => {
                if told.send(LinkEvent::Message(envelope)).await.is_err() {
                    return "nobody listens any more".to_owned();
                }
            }
            Ok(Ok(None)) => {}
            Ok(Err(why)) => return why,
            Err(_) => return "no sign of life".to_owned(),
        }
    }
}

/// The next message; `None`: a sign of life.
pub(super) async fn receive_one(read: &mut (impl AsyncReadExt + Unpin)) -> Result<Option<Envelope>, String> {
    let told = |error: std::io::Error| error.to_string();
    match read.read_u8().await.map_err(told)? {
        0 => return Ok(None),
        1 => {}
        kind => return Err(format!("a frame of the unknown kind {kind}")),
    }
    let length = read.read_u32().await.map_err(told)?;
    if length as usize > MESSAGE_BYTES_MAX {
        return Err(format!("a message of {length} bytes"));
    }
    let mut body = vec![0; length as usize];
    read.read_exact(&mut body).await.map_err(told)?;
    let mut decoder = Decoder::default();
    decoder.push(&length.to_be_bytes());
    decoder.push(&body);
    match decoder.next() {
        Ok(Some(envelope)) => Ok(Some(envelope)),
        Ok(None) => Err("a message without content".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Says one thing on a stream that is no link.
pub(super) async fn say(stream: &mut UnixStream, id: MoveId, message: Message) -> std::io::Result<()> {
    let bytes = [&[1][..], &encode(&Envelope { id, message })].concat();
    stream.write_all(&bytes).await
}
