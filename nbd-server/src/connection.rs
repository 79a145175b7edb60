//! One client in transmission: bytes in, valid requests out; replies in, bytes out. No I/O.
//!
//! ```text
//!            bytes            next_request             reply                 take_send
//!  socket ─────────► Receive ──────────────► in flight ───────► Outbox ───────────────► socket
//!                       ▲                                          │
//!                       └──── stops reading at the limits ◄────────┘
//! ```
//!
//! Stages, and the only legal moves between them:
//!
//! ```text
//!  Open ──DISC, end of stream, stalled?, server stops──► Leaving ──nothing left──► finished
//!   └────────socket failed, bad magic, stalled────► Broken ──operations returned──► finished
//! ```
//!
//! `Leaving` reads no more requests, finishes those in flight and sends their replies. `Broken` sends
//! nothing more; it only waits until the ring and the export have given everything back.
//!
//! Bounds ([`Limits`]): a request counts from its header until its reply was handed to the socket, so a
//! client that never reads its replies stops being read long before memory matters.
//!
//! Rooms: `input` (bytes to requests), `output` (replies to bytes), `buffers` (what a socket is given), here the stages.

mod buffers;
mod input;
mod output;

use std::collections::VecDeque;
use std::sync::Arc;

use slab::Slab;

use crate::disk::ExportIndex;
use crate::reactor::buffer::{Buf, Pool};
use crate::registry::{Class, Meter};
use crate::transmission::{CloseReason, Rules};
use crate::wire::Errno;

pub use buffers::{PartialBuf, ReceiveOp, SendBatch};
use input::{InFlight, Want};

/// Nanoseconds on a clock that only moves forward. Where it comes from is the reactor's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// This time plus `duration`.
    #[must_use]
    pub fn after(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// What is left until `later`; nothing if that is over.
    #[must_use]
    pub fn until(self, later: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// Bounds of one connection.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Requests that may be between their header and their sent reply.
    pub requests_max: usize,
    /// Payload bytes that those requests may hold. Must exceed one maximum payload.
    pub payload_bytes_max: usize,
    /// Bytes read ahead from a socket at once.
    pub receive_bytes: usize,
    /// Reads wait while this many bytes of replies are not sent: what is read ahead of the client goes
    /// cold in the processor's cache before it is copied to the socket, and only costs memory.
    pub send_ahead_bytes: usize,
    /// How long half a request may wait for its rest, or a reply for being read.
    pub stall: std::time::Duration,
    /// When the server stops: answer requests that still arrive with ESHUTDOWN. Otherwise they are not read any more,
    /// and their client finds the connection closed: for clients that then wait for the next server, and would take
    /// the error for the disk's.
    pub refuse_at_stop: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            requests_max: 256,
            payload_bytes_max: 40 << 20,
            receive_bytes: 128 << 10,
            send_ahead_bytes: 2 << 20,
            stall: std::time::Duration::from_secs(30),
            refuse_at_stop: true,
        }
    }
}

/// Payloads with at least this many bytes outstanding are received straight into their request's buffer.
const DIRECT_RECEIVE_BYTES: usize = 16 << 10;
/// How much is read ahead behind such a payload: the next header, and little that has to be copied.
const LOOK_AHEAD_BYTES: usize = 4 << 10;

/// See the module's picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Open,
    Leaving(CloseReason),
    Broken(CloseReason),
}

/// What a socket should do next.
#[derive(Debug)]
pub enum SocketAction {
    /// Receive; give the operation back through [`Connection::received`].
    Receive(ReceiveOp),
    /// Send; give the batch back through [`Connection::sent`].
    Send(SendBatch),
    /// Make pending operations end: nothing more is read or written.
    Shutdown,
    /// Close the socket: the connection is finished.
    Close(CloseReason),
}

/// One client.
pub struct Connection {
    /// The place in the engine, part of every request's id.
    index: u32,
    export: ExportIndex,
    rules: Rules,
    limits: Limits,
    stage: Stage,
    /// The server stops: new requests are answered ESHUTDOWN.
    stopping: bool,
    want: Want,
    /// Received and not yet parsed; `None` while the ring has it.
    chunk: Option<Buf>,
    parsed: usize,
    filled: usize,
    receiving: bool,
    in_flight: Slab<InFlight>,
    /// Requests in flight of which the next part is to be started.
    parts: VecDeque<usize>,
    payload_bytes: usize,
    building: SendBatch,
    spare: Option<SendBatch>,
    sending: bool,
    sending_replies: usize,
    sending_payload_bytes: usize,
    shutdown_done: bool,
    received_at: Nanos,
    sent_at: Nanos,
    meter: Arc<Meter>,
    /// What the replies in `building` are to be counted as, when they are sent.
    uncounted: Vec<Uncounted>,
}

/// A reply that was not handed to the socket yet.
struct Uncounted {
    class: Class,
    came: Nanos,
    result: Result<u64, ()>,
}

impl Connection {
    /// A connection that has just left the handshake; `leftover` was received behind its last option.
    pub fn new(
        index: u32,
        export: ExportIndex,
        rules: Rules,
        limits: Limits,
        leftover: &[u8],
        pool: &Pool,
    ) -> Self {
        let mut chunk = pool.take(limits.receive_bytes.max(leftover.len()));
        chunk[..leftover.len()].copy_from_slice(leftover);
        Self {
            index,
            export,
            rules,
            limits,
            stage: Stage::Open,
            stopping: false,
            want: Want::Header,
            chunk: Some(chunk),
            parsed: 0,
            filled: leftover.len(),
            receiving: false,
            in_flight: Slab::new(),
            parts: VecDeque::new(),
            payload_bytes: 0,
            building: SendBatch::new(pool),
            spare: None,
            sending: false,
            sending_replies: 0,
            sending_payload_bytes: 0,
            shutdown_done: false,
            received_at: Nanos::default(),
            sent_at: Nanos::default(),
            meter: Arc::default(),
            uncounted: Vec::new(),
        }
    }

    /// It has come now, and is counted there.
    pub fn begin(&mut self, now: Nanos, meter: Option<Arc<Meter>>) {
        self.received_at = now;
        if let Some(meter) = meter {
            self.meter = meter;
        }
    }

    /// A whole reply stands in `building`.
    fn answered(&mut self, class: Class, came: Nanos, result: Result<u64, ()>) {
        self.building.replies += 1;
        self.uncounted.push(Uncounted { class, came, result });
    }

    /// The export in use.
    pub fn export(&self) -> ExportIndex {
        self.export
    }

    /// What it was told that its export is called.
    pub fn export_name(&self) -> &str {
        &self.rules.export.name
    }

    /// Requests between their header and their sent reply.
    fn requests(&self) -> usize {
        self.in_flight.len() + self.building.replies + self.sending_replies
    }

    /// What the socket should do now; call until it returns `None`.
    pub fn next_action(&mut self, pool: &Pool, now: Nanos) -> Option<SocketAction> {
        if let Some(batch) = self.take_send(pool, now) {
            self.sent_at = now;
            return Some(SocketAction::Send(batch));
        }
        if let Some(op) = self.take_receive() {
            // The peer's time runs from here: until now it was us who did not read.
            self.received_at = now;
            return Some(SocketAction::Receive(op));
        }
        if self.must_shut_down() {
            self.shutdown_done = true;
            return Some(SocketAction::Shutdown);
        }
        self.finished().map(SocketAction::Close)
    }

    fn take_send(&mut self, pool: &Pool, now: Nanos) -> Option<SendBatch> {
        if self.sending || self.building.is_empty() || matches!(self.stage, Stage::Broken(_)) {
            return None;
        }
        let empty = self.spare.take().unwrap_or_else(|| SendBatch::new(pool));
        let batch = std::mem::replace(&mut self.building, empty);
        self.sending = true;
        self.sending_replies = batch.replies;
        self.sending_payload_bytes = batch.payload_bytes;
        for Uncounted { class, came, result } in self.uncounted.drain(..) {
            self.meter.answered(class, came, now, result);
        }
        Some(batch)
    }

    /// Receives when more input could be used: not while the limits hold requests back.
    fn take_receive(&mut self) -> Option<ReceiveOp> {
        let blocked = self.requests() >= self.limits.requests_max || self.header_waits();
        if self.receiving || blocked || self.stage != Stage::Open {
            return None;
        }
        let mut chunk = self.chunk.take()?;
        chunk.copy_within(self.parsed..self.filled, 0);
        let filled = self.filled - self.parsed;
        (self.parsed, self.filled) = (0, filled);
        self.receiving = true;
        let payload = self.take_large_payload();
        let room = chunk.len() - filled;
        let chunk_limit = if payload.is_some() { room.min(LOOK_AHEAD_BYTES) } else { room };
        Some(ReceiveOp { payload, chunk: PartialBuf { buf: chunk, filled }, chunk_limit })
    }

    /// A whole header that was not taken: its payload does not fit under the limit yet.
    fn header_waits(&self) -> bool {
        matches!(self.want, Want::Header) && self.filled - self.parsed >= self.header_bytes()
    }

    fn take_large_payload(&mut self) -> Option<PartialBuf> {
        let Want::Payload { part, .. } = &mut self.want else { return None };
        part.take_if(|part| part.buf.len() - part.filled >= DIRECT_RECEIVE_BYTES)
    }

    /// A connection that will not be read again still has a receive in the ring: end it.
    fn must_shut_down(&self) -> bool {
        let gone = match self.stage {
            Stage::Open => false,
            Stage::Leaving(_) => self.in_flight.is_empty() && self.building.is_empty() && !self.sending,
            Stage::Broken(_) => true,
        };
        gone && !self.shutdown_done && (self.receiving || self.sending)
    }

    fn finished(&self) -> Option<CloseReason> {
        let idle = self.in_flight.is_empty() && !self.receiving && !self.sending;
        match self.stage {
            Stage::Leaving(reason) if idle && self.building.is_empty() => Some(reason),
            Stage::Broken(reason) if idle => Some(reason),
            _ => None,
        }
    }

    /// A receive has ended; `Ok(0)` is the end of the stream.
    pub fn received(&mut self, op: ReceiveOp, result: Result<usize, Errno>, now: Nanos) {
        self.receiving = false;
        self.received_at = now;
        let ReceiveOp { payload, chunk, .. } = op;
        self.chunk = Some(chunk.buf);
        let moved = result.unwrap_or(0);
        let in_payload = self.put_back(payload, moved);
        self.filled += moved - in_payload;
        if self.stage == Stage::Open && moved == 0 {
            self.stage = match result {
                Ok(_) => Stage::Leaving(CloseReason::PeerGone),
                Err(_) => Stage::Broken(CloseReason::PeerGone),
            };
        }
    }

    /// Returns a payload that was received into directly; tells how many of `moved` bytes went there.
    fn put_back(&mut self, payload: Option<PartialBuf>, moved: usize) -> usize {
        let Some(PartialBuf { buf, filled }) = payload else { return 0 };
        let taken = moved.min(buf.len() - filled);
        if let Want::Payload { part, .. } = &mut self.want {
            *part = Some(PartialBuf { buf, filled: filled + taken });
        }
        taken
    }

    /// A send has ended with that many bytes moved. A short send goes on with the rest first.
    pub fn sent(
        &mut self,
        mut batch: SendBatch,
        result: Result<usize, Errno>,
        now: Nanos,
    ) -> Option<SendBatch> {
        self.sent_at = now;
        match result {
            Ok(moved) if moved > 0 => batch.advance(moved),
            // Our own shutdown of a broken connection fails its send, too: the first reason stays.
            _ if matches!(self.stage, Stage::Broken(_)) => {}
            _ => self.stage = Stage::Broken(CloseReason::PeerGone),
        }
        let broken = matches!(self.stage, Stage::Broken(_));
        if !broken && !batch.is_empty() {
            return Some(batch);
        }
        self.sending = false;
        self.sending_replies = 0;
        self.sending_payload_bytes = 0;
        self.payload_bytes -= batch.payload_bytes;
        batch.clear();
        self.spare = Some(batch);
        None
    }

    /// Closes the connection if its peer has kept half a request, or unread replies, for too long.
    pub fn check_stall(&mut self, now: Nanos) {
        let half_request = self.receiving && (self.filled > 0 || !matches!(self.want, Want::Header));
        let since = |at: Nanos| now >= at.after(self.limits.stall);
        let stalled = (half_request && since(self.received_at)) || (self.sending && since(self.sent_at));
        if stalled && !matches!(self.stage, Stage::Broken(_)) {
            self.stage = Stage::Broken(CloseReason::Stalled);
        }
    }

    /// Gives the connection up, for a reason that lies outside of it. The first reason stays.
    pub(crate) fn fail(&mut self, reason: CloseReason) {
        if !matches!(self.stage, Stage::Broken(_)) {
            self.stage = Stage::Broken(reason);
        }
    }

    /// It ends in order: what was answered has been sent, and there is time for a last word.
    pub(crate) fn is_leaving(&self) -> bool {
        matches!(self.stage, Stage::Leaving(_))
    }

    /// How long the client may leave us waiting.
    pub(crate) fn patience(&self) -> std::time::Duration {
        self.limits.stall
    }

    /// The server stops: requests that arrive from now on are answered ESHUTDOWN, or not read any more.
    pub fn begin_stop(&mut self) {
        self.stopping = true;
    }

    /// The server stops and nothing is in flight: leave. With `force`, leave in any case.
    pub fn end_stop(&mut self, force: bool) {
        let idle = self.requests() == 0 && matches!(self.want, Want::Header);
        if force {
            self.stage = Stage::Broken(CloseReason::Shutdown);
        } else if idle && self.stage == Stage::Open {
            self.stage = Stage::Leaving(CloseReason::Shutdown);
        }
    }
}
