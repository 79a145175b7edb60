//! A client's stream during negotiation, on tokio: in clear, then perhaps inside TLS.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::tls::{Session, SessionError, sealed_bytes_max};

/// Bytes read at once.
const READ_BYTES: usize = 4096;

/// Why a line has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client's TLS; it was told so where that is possible.
    #[error(transparent)]
    Tls(#[from] SessionError),
}

/// See the module.
pub(crate) struct Line<'a, S> {
    stream: &'a mut S,
    session: Option<Box<Session>>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Line<'a, S> {
    pub(crate) fn new(stream: &'a mut S) -> Self {
        Self { stream, session: None }
    }

    /// The session, if the client has begun one: it goes on in transmission.
    pub(crate) fn into_session(self) -> Option<Box<Session>> {
        self.session
    }

    pub(crate) async fn send(&mut self, mut bytes: &[u8]) -> Result<(), LineError> {
        let Some(session) = &mut self.session else { return Ok(self.stream.write_all(bytes).await?) };
        while !bytes.is_empty() {
            let mut out = vec![0; sealed_bytes_max(bytes.len())];
            let sealed = session.seal(std::iter::once(bytes), &mut out)?;
            self.stream.write_all(&out[..sealed.cipher]).await?;
            bytes = &bytes[sealed.plain..];
        }
        Ok(())
    }

    /// What has come, at least a byte.
    pub(crate) async fn receive(&mut self) -> Result<Vec<u8>, LineError> {
        let mut plain = Vec::new();
        while plain.is_empty() {
            let cipher = self.read().await?;
            let Some(session) = &mut self.session else { return Ok(cipher) };
            let opened = session.receive(&cipher, &mut plain);
            let output = session.take_output();
            self.stream.write_all(&output).await?;
            if opened?.ended && plain.is_empty() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(plain)
    }

    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; READ_BYTES];
        let count = self.stream.read(&mut bytes).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.truncate(count);
        Ok(bytes)
    }

    /// Begins TLS and brings its handshake to an end. What came in the records behind it is returned.
    pub(crate) async fn start_tls(&mut self, config: Arc<ServerConfig>) -> Result<Vec<u8>, LineError> {
        let mut session = Session::new(config)?;
        let mut plain = Vec::new();
        while session.is_handshaking() {
            let cipher = self.read().await?;
            let received = session.receive(&cipher, &mut plain);
            let output = session.take_output();
            // Why a client is not let in must reach it; that it has gone meanwhile is not the reason.
            let sent = self.stream.write_all(&output).await;
            received?;
            sent?;
        }
        self.session = Some(Box::new(session));
        Ok(plain)
    }

    /// The chain that the client has shown.
    pub(crate) fn session(&self) -> Option<&Session> {
        self.session.as_deref()
    }
}
