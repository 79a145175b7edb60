//! Frames over a link: bytes in and out, as fast as is allowed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::wire::{Frame, HEADER_BYTES, Header, WireError};

/// Bytes that are written at once: what is due by a change of the rate is due soon.
const WRITE_BYTES: usize = 64 << 10;
/// The longest that a rate is slept off at a time, so that another one takes effect.
const NAP_MAX: Duration = Duration::from_millis(100);

/// Why no frame comes any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// What came is none.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The link broke.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Takes frames off a link. [`Self::next`] may be dropped at any time: nothing of a frame is lost.
pub(super) struct FrameReader<S> {
    stream: ReadHalf<S>,
    head: [u8; HEADER_BYTES],
    head_filled: usize,
    body: Option<(Header, Vec<u8>, usize)>,
}

impl<S: AsyncRead> FrameReader<S> {
    /// Of that half.
    pub(super) fn new(stream: ReadHalf<S>) -> Self {
        Self { stream, head: [0; HEADER_BYTES], head_filled: 0, body: None }
    }

    /// The next frame; `None` at the end of the link.
    ///
    /// # Errors
    /// `Wire`; `Io`, also where the link ends inside a frame.
    pub(super) async fn next(&mut self) -> Result<Option<Frame>, LinkError> {
        loop {
            if self.body.is_none() {
                while self.head_filled < HEADER_BYTES {
                    let read = self.stream.read(&mut self.head[self.head_filled..]).await?;
                    if read == 0 && self.head_filled == 0 {
                        return Ok(None);
                    }
                    self.head_filled += some(read)?;
                }
                let header = Header::decode(self.head)?;
                self.body = Some((header, vec![0; header.length], 0));
            }
            let Some((_, payload, filled)) = &mut self.body else { continue };
            while *filled < payload.len() {
                *filled += some(self.stream.read(&mut payload[*filled..]).await?)?;
            }
            self.head_filled = 0;
            if let Some((header, payload, _)) = self.body.take() {
                return Ok(Some(Frame::decode(header, payload)?));
            }
        }
    }
}

fn some(read: usize) -> io::Result<usize> {
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
}

/// Bytes a second; 0: as fast as it goes. Asked again and again: it may change at any time.
pub(super) type Rate = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Writes frames in order, until the sender is gone. Counts the bytes in `sent`.
///
/// # Errors
/// The link broke.
pub(super) async fn write_frames<S: AsyncWrite>(
    mut stream: WriteHalf<S>,
    mut frames: mpsc::UnboundedReceiver<Frame>,
    rate: Rate,
    sent: Arc<AtomicU64>,
) -> io::Result<()> {
    let mut pace = Pace::new();
    while let Some(frame) = frames.recv().await {
        let bytes = frame.encode();
        for piece in bytes.chunks(WRITE_BYTES) {
            pace.wait(piece.len(), &rate).await;
            stream.write_all(piece).await?;
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        if frames.is_empty() {
            stream.flush().await?;
        }
    }
    stream.shutdown().await
}

/// Spreads bytes over time. What was not used is not saved up, but for a moment.
struct Pace {
    /// When the bytes so far are paid for.
    free_at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { free_at: Instant::now() }
    }

    async fn wait(&mut self, bytes: usize, rate: &Rate) {
        loop {
            let (now, allowed) = (Instant::now(), rate());
            if allowed == 0 {
                self.free_at = now;
                return;
            }
            if self.free_at <= now {
                let cost = Duration::from_secs_f64(bytes as f64 / allowed as f64);
                self.free_at = self.free_at.max(now.checked_sub(NAP_MAX).unwrap_or(now)) + cost;
                return;
            }
            // A rate that was raised meanwhile counts for what is left.
            let left = (self.free_at - now).min(Duration::from_secs_f64(bytes as f64 / allowed as f64));
            self.free_at = now + left;
            tokio::time::sleep(left.min(NAP_MAX)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::wire::Message;

    fn rate(bytes: u64) -> Rate {
        Arc::new(move || bytes)
    }

    #[tokio::test]
    async fn frames_arrive_whole_however_they_are_cut() {
        let (near, far) = tokio::io::duplex(7);
        let (_, write) = tokio::io::split(near);
        let (read, _) = tokio::io::split(far);
        let (sender, receiver) = mpsc::unbounded_channel();
        let sent = Arc::<AtomicU64>::default();
        let writing = tokio::spawn(write_frames(write, receiver, rate(0), Arc::clone(&sent)));
        let frames: Vec<Frame> = (0..40)
            .map(|n| Frame {
                volume: n,
                message: Message::Data { from: 0, cursor: u64::from(n), batch: vec![3; 50] },
            })
            .collect();
        for frame in &frames {
            sender.send(frame.clone()).unwrap();
        }
        drop(sender);
        let mut reader = FrameReader::new(read);
        for frame in frames {
            // Whoever waits gives up now and then.
            let found = loop {
                tokio::select! {
                    biased;
                    found = reader.next() => break found,
                    () = tokio::task::yield_now() => {}
                }
            };
            assert_eq!(found.unwrap(), Some(frame));
        }
        assert!(reader.next().await.unwrap().is_none());
        writing.await.unwrap().unwrap();
        assert_eq!(sent.load(Ordering::Relaxed), 40 * (8 + 8 + 50));
    }

    #[tokio::test]
    async fn a_link_that_ends_inside_a_frame_is_broken() {
        let (mut near, far) = tokio::io::duplex(64);
        let bytes = Frame::session(Message::Confirmed(1)).encode();
        near.write_all(&bytes[..12]).await.unwrap();
        drop(near);
        let mut reader = FrameReader::new(tokio::io::split(far).0);
        assert!(matches!(reader.next().await, Err(LinkError::Io(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rate_is_kept_and_may_change() {
        let allowed = Arc::new(AtomicU64::new(1000));
        let now = Arc::clone(&allowed);
        let rate: Rate = Arc::new(move || now.load(Ordering::Relaxed));
        let (mut pace, begun) = (Pace::new(), Instant::now());
        for _ in 0..20 {
            pace.wait(500, &rate).await;
        }
        let took = begun.elapsed();
        assert!((Duration::from_secs(9)..Duration::from_secs(10)).contains(&took), "{took:?}");
        allowed.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        for _ in 0..1000 {
            pace.wait(1 << 20, &rate).await;
        }
        assert!(begun.elapsed() <= NAP_MAX, "{:?}", begun.elapsed());
    }
}
