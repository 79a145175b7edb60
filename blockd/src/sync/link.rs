//! Frames over a link: bytes in and out, as fast as is allowed.

use std::io;
use std::sync::Arc;

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use super::pace::Pace;
use super::wire::{Frame, HEADER_BYTES, Header, WireError};

/// Bytes that are written at once: what is due by a change of the rate is due soon.
const WRITE_BYTES: usize = 64 << 10;

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
    body: Option<(Header, Vec<u8>)>,
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
                self.body = Some((header, Vec::with_capacity(header.length)));
            }
            let Some((header, payload)) = &mut self.body else { continue };
            while payload.len() < header.length {
                let missing = header.length - payload.len();
                let mut rest = (&mut *payload).limit(missing);
                some(self.stream.read_buf(&mut rest).await?)?;
            }
            self.head_filled = 0;
            if let Some((header, payload)) = self.body.take() {
                return Ok(Some(Frame::decode(header, payload)?));
            }
        }
    }
}

fn some(read: usize) -> io::Result<usize> {
    if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
}

/// Writes frames in order, as fast as all of `paces` let them, until the sender is gone. Tells `sent` the bytes so far.
///
/// # Errors
/// The link broke.
pub(super) async fn write_frames<S: AsyncWrite>(
    mut stream: WriteHalf<S>,
    mut frames: mpsc::UnboundedReceiver<Frame>,
    paces: Vec<Arc<Pace>>,
    sent: watch::Sender<u64>,
) -> io::Result<()> {
    while let Some(frame) = frames.recv().await {
        let (head, batch) = frame.pieces();
        for piece in head.chunks(WRITE_BYTES).chain(batch.chunks(WRITE_BYTES)) {
            for pace in &paces {
                pace.wait(piece.len()).await;
            }
            stream.write_all(piece).await?;
            sent.send_modify(|bytes| *bytes += piece.len() as u64);
        }
        if frames.is_empty() {
            stream.flush().await?;
        }
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::wire::Message;

    #[tokio::test]
    async fn frames_arrive_whole_however_they_are_cut() {
        let (near, far) = tokio::io::duplex(7);
        let (_, write) = tokio::io::split(near);
        let (read, _) = tokio::io::split(far);
        let (sender, receiver) = mpsc::unbounded_channel();
        let (counter, sent) = watch::channel(0);
        let writing = tokio::spawn(write_frames(write, receiver, Vec::new(), counter));
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
        assert_eq!(*sent.borrow(), 40 * (8 + 16 + 50));
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
}
