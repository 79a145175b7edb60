//! What stands between a connection in transmission and its socket: ciphertext there, plaintext here. No I/O.
//!
//! ```text
//!  socket ◄─ ReceiveOp, SendBatch of ciphertext ─ Relay ─ ReceiveOp, SendBatch of plaintext ─► Connection
//! ```
//!
//! The connection's receive is kept until a record for it has come; its batch, until all of the ciphertext that was
//! made of it is in the socket. So neither side notices the other: what the connection's limits hold back is not
//! decrypted, and then not received.
//!
//! Bounds: [`RECEIVE_BYTES`] of ciphertext, the rest of one record of plaintext, and [`SEND_BYTES`] on their way out.

use crate::connection::{Connection, Nanos, PartialBuf, ReceiveOp, SendBatch, SocketAction};
use crate::reactor::buffer::{Buf, Pool};
use crate::transmission::CloseReason;
use crate::wire::Errno;

use super::session::{Session, sealed_bytes_max};

/// Ciphertext that is received at once; more than twice the largest record.
const RECEIVE_BYTES: usize = 128 << 10;
/// Ciphertext that is on its way to the socket at once.
const SEND_BYTES: usize = 256 << 10;
/// The alert that says goodbye, with whatever the library sends before it.
const GOODBYE_BYTES: usize = 1 << 10;

/// See the module.
pub(crate) struct Relay {
    session: Session,
    /// `None` while the ring receives into it.
    cipher: Option<Buf>,
    start: usize,
    filled: usize,
    /// The connection's receive.
    wanted: Option<ReceiveOp>,
    /// The socket gives nothing more.
    end: Option<Result<(), Errno>>,
    received_at: Nanos,
    /// The connection's batch, and how much of it is in the ciphertext that is being sent.
    sending: Option<(SendBatch, usize)>,
    goodbye: Goodbye,
    /// What the socket was about to do when the goodbye came first.
    held: Option<SocketAction>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Goodbye {
    NotYet,
    Sending { since: Nanos, cut: bool },
    Said,
}

/// What is next.
pub(crate) enum Next {
    /// The socket should do that.
    Socket(SocketAction),
    /// The connection has something new to parse: start its requests, then ask again.
    Parse,
    /// Nothing, for now.
    Nothing,
}

impl Relay {
    pub(crate) fn new(mut session: Session, pool: &Pool, now: Nanos) -> Self {
        let early = session.take_incoming();
        let mut cipher = pool.take(RECEIVE_BYTES.max(early.len()));
        cipher[..early.len()].copy_from_slice(&early);
        Self {
            session,
            cipher: Some(cipher),
            start: 0,
            filled: early.len(),
            wanted: None,
            end: None,
            received_at: now,
            sending: None,
            goodbye: Goodbye::NotYet,
            held: None,
        }
    }

    /// What the connection's socket should do now.
    pub(crate) fn next_action(&mut self, connection: &mut Connection, pool: &Pool, now: Nanos) -> Next {
        if let Goodbye::Sending { since, cut: false } = self.goodbye
            && !connection.is_leaving()
        {
            self.goodbye = Goodbye::Sending { since, cut: true };
            return Next::Socket(SocketAction::Shutdown);
        }
        if matches!(self.goodbye, Goodbye::Sending { .. }) {
            return Next::Nothing;
        }
        if let Some(action) = self.held.take() {
            return Next::Socket(action);
        }
        if self.cipher.is_some()
            && let Some(op) = self.wanted.take()
        {
            return self.receive(op, connection, now);
        }
        match connection.next_action(pool, now) {
            None => Next::Nothing,
            Some(SocketAction::Receive(op)) => self.receive(op, connection, now),
            Some(SocketAction::Send(batch)) => match self.seal(batch, pool) {
                Ok(cipher) => Next::Socket(SocketAction::Send(cipher)),
                Err(batch) => {
                    // The connection breaks; what it wants then is asked for again.
                    connection.sent(batch, Err(Errno::Io), now);
                    Next::Parse
                }
            },
            Some(last) => self.last(last, connection, pool, now),
        }
    }

    /// Before the end, a goodbye, if the end is in order.
    fn last(&mut self, last: SocketAction, connection: &Connection, pool: &Pool, now: Nanos) -> Next {
        if self.goodbye == Goodbye::NotYet && connection.is_leaving() {
            let mut out = pool.take(GOODBYE_BYTES);
            let bytes = self.session.say_goodbye(&mut out);
            if bytes > 0 {
                self.goodbye = Goodbye::Sending { since: now, cut: false };
                self.held = Some(last);
                return Next::Socket(SocketAction::Send(SendBatch::of_bytes(out, bytes)));
            }
        }
        Next::Socket(last)
    }

    /// Fills the connection's receive, or lets the socket bring more.
    fn receive(&mut self, mut op: ReceiveOp, connection: &mut Connection, now: Nanos) -> Next {
        let Some(mut cipher) = self.cipher.take() else {
            self.wanted = Some(op);
            return Next::Nothing;
        };
        let (payload, chunk) = op.targets();
        let input = &mut cipher[self.start..self.filled];
        let result = match self.session.open(input, (payload.unwrap_or_default(), chunk)) {
            Ok((0, opened)) => {
                self.start += opened.used;
                if opened.ended { Some(Ok(0)) } else { self.end.map(|end| end.map(|()| 0)) }
            }
            Ok((bytes, opened)) => {
                self.start += opened.used;
                Some(Ok(bytes))
            }
            Err(error) => {
                tracing::info!(%error, "a client's TLS has failed");
                connection.fail(CloseReason::BrokenTls);
                Some(Err(Errno::Io))
            }
        };
        if let Some(result) = result {
            self.cipher = Some(cipher);
            connection.received(op, result, now);
            return Next::Parse;
        }
        self.wanted = Some(op);
        Next::Socket(SocketAction::Receive(self.receive_more(cipher, now)))
    }

    fn receive_more(&mut self, mut cipher: Buf, now: Nanos) -> ReceiveOp {
        cipher.copy_within(self.start..self.filled, 0);
        (self.start, self.filled) = (0, self.filled - self.start);
        self.received_at = now;
        // What is left is less than a record, so there is room.
        let chunk_limit = cipher.len() - self.filled;
        ReceiveOp { payload: None, chunk: PartialBuf { buf: cipher, filled: self.filled }, chunk_limit }
    }

    /// A receive of the socket has ended. What it means is seen with the next action.
    pub(crate) fn received(&mut self, op: ReceiveOp, result: Result<usize, Errno>, now: Nanos) {
        self.cipher = Some(op.chunk.buf);
        self.received_at = now;
        match result {
            Ok(0) => self.end = Some(Ok(())),
            Ok(bytes) => self.filled += bytes,
            Err(error) => self.end = Some(Err(error)),
        }
    }

    /// Makes the next ciphertext of a batch, which must not be empty. Gives the batch back if that is impossible.
    fn seal(&mut self, batch: SendBatch, pool: &Pool) -> Result<SendBatch, SendBatch> {
        let plain: usize = batch.slices().map(<[u8]>::len).sum();
        let mut out = pool.take(sealed_bytes_max(plain).min(SEND_BYTES));
        match self.session.seal(batch.slices(), &mut out) {
            Ok(sealed) => {
                self.sending = Some((batch, sealed.plain));
                Ok(SendBatch::of_bytes(out, sealed.cipher))
            }
            Err(error) => {
                tracing::info!(%error, "a client's TLS has failed");
                Err(batch)
            }
        }
    }

    /// A send of the socket has ended. What is to be sent before anything else is returned.
    pub(crate) fn sent(
        &mut self,
        mut cipher: SendBatch,
        result: Result<usize, Errno>,
        connection: &mut Connection,
        (pool, now): (&Pool, Nanos),
    ) -> Option<SendBatch> {
        let bytes = result.unwrap_or(0);
        cipher.advance(bytes);
        if bytes > 0 && !cipher.is_empty() {
            return Some(cipher);
        }
        if matches!(self.goodbye, Goodbye::Sending { .. }) {
            self.goodbye = Goodbye::Said;
            return None;
        }
        let (batch, plain) = self.sending.take().expect("what is sent was sealed for a batch");
        let result = if bytes > 0 { Ok(plain) } else { Err(result.err().unwrap_or(Errno::Io)) };
        let rest = connection.sent(batch, result, now)?;
        match self.seal(rest, pool) {
            Ok(cipher) => Some(cipher),
            Err(rest) => {
                connection.sent(rest, Err(Errno::Io), now);
                None
            }
        }
    }

    /// A client that leaves half a record, or does not take our goodbye, for too long is given up.
    pub(crate) fn check_stall(&self, connection: &mut Connection, now: Nanos) {
        let late = |since: Nanos| now >= since.after(connection.patience());
        let half_record = self.wanted.is_some() && self.cipher.is_none() && self.filled > 0;
        let stalled = match self.goodbye {
            Goodbye::Sending { since, .. } => late(since),
            _ => half_record && late(self.received_at),
        };
        if stalled {
            connection.fail(CloseReason::Stalled);
        }
    }
}
