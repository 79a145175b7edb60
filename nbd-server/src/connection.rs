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

use std::collections::VecDeque;
use std::sync::Arc;

use slab::Slab;

use crate::disk::ExportIndex;
use crate::export::{Command, Extent, Payload, Reply, Request, RequestId};
use crate::reactor::buffer::{Buf, Pool};
use crate::registry::{Class, Meter};
use crate::status::{Contexts, STATUS_EXTENTS_MAX, StatusExtents};
use crate::transmission::{Accepted, CloseReason, Rules, Verdict, judge, judge_filter};
use crate::wire::{
    EXTENDED_REQUEST_HEADER_BYTES, Errno, REQUEST_HEADER_BYTES, ReplyTo, RequestHeader, command,
};

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
/// The backend is not given more than this at once: with extended headers a request may be about all of a disk, and
/// would hold up everybody else. The rest follows when that is done. A multiple of every block size.
const EFFECT_BYTES_MAX: u64 = (1 << 32) - (64 << 10);
/// First size of a batch's header buffer: enough for 256 replies without holes.
const HEAD_BYTES: usize = 8 << 10;

/// A receive to carry out: fill `payload` from its mark, then `chunk` from its mark.
#[derive(Debug)]
pub struct ReceiveOp {
    /// The rest of a large payload goes here first.
    pub payload: Option<PartialBuf>,
    /// Whatever follows.
    pub chunk: PartialBuf,
    /// Bytes of `chunk` that may be filled.
    pub chunk_limit: usize,
}

/// A buffer that is filled up to a mark.
#[derive(Debug)]
pub struct PartialBuf {
    /// The memory.
    pub buf: Buf,
    /// Bytes filled so far.
    pub filled: usize,
}

impl ReceiveOp {
    /// The memory to receive into, in order.
    pub fn targets(&mut self) -> (Option<&mut [u8]>, &mut [u8]) {
        let payload = self.payload.as_mut().map(|p| &mut p.buf[p.filled..]);
        let end = self.chunk.filled + self.chunk_limit;
        (payload, &mut self.chunk.buf[self.chunk.filled..end])
    }
}

/// Replies on their way to a socket. Owned by the ring while it is sent.
#[derive(Debug)]
pub struct SendBatch {
    head: Buf,
    head_len: usize,
    data: Vec<Buf>,
    parts: Vec<Part>,
    first_part: usize,
    first_part_sent: usize,
    replies: usize,
    payload_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Head { start: usize, end: usize },
    Data { index: usize },
}

impl SendBatch {
    fn new(pool: &Pool) -> Self {
        Self {
            head: pool.take(HEAD_BYTES),
            head_len: 0,
            data: Vec::new(),
            parts: Vec::new(),
            first_part: 0,
            first_part_sent: 0,
            replies: 0,
            payload_bytes: 0,
        }
    }

    fn clear(&mut self) {
        self.head_len = 0;
        self.data.clear();
        self.parts.clear();
        self.first_part = 0;
        self.first_part_sent = 0;
        self.replies = 0;
        self.payload_bytes = 0;
    }

    /// The first `bytes` bytes of `buf`, answering nothing by themselves: records on their way to a socket.
    pub(crate) fn of_bytes(buf: Buf, bytes: usize) -> Self {
        Self {
            head: buf,
            head_len: bytes,
            data: Vec::new(),
            parts: vec![Part::Head { start: 0, end: bytes }],
            first_part: 0,
            first_part_sent: 0,
            replies: 0,
            payload_bytes: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.first_part == self.parts.len()
    }

    fn push_head(&mut self, bytes: &[u8], pool: &Pool) {
        let end = self.head_len + bytes.len();
        if end > self.head.len() {
            // Only a reply with very many holes gets here.
            let mut larger = pool.take(end.next_power_of_two());
            larger[..self.head_len].copy_from_slice(&self.head[..self.head_len]);
            self.head = larger;
        }
        self.head[self.head_len..end].copy_from_slice(bytes);
        match self.parts.last_mut() {
            // Replies without payload lie side by side: one piece for all of them.
            Some(Part::Head { end: last, .. }) if *last == self.head_len => *last = end,
            _ => self.parts.push(Part::Head { start: self.head_len, end }),
        }
        self.head_len = end;
    }

    fn push_data(&mut self, buf: Buf) {
        self.parts.push(Part::Data { index: self.data.len() });
        self.data.push(buf);
    }

    fn part(&self, part: Part) -> &[u8] {
        match part {
            Part::Head { start, end } => &self.head[start..end],
            Part::Data { index } => &self.data[index],
        }
    }

    /// What is still to be sent, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let rest = &self.parts[self.first_part..];
        let mut skip = self.first_part_sent;
        rest.iter().map(move |&part| &self.part(part)[std::mem::take(&mut skip)..])
    }

    /// Notes that the first `bytes` bytes were sent.
    pub(crate) fn advance(&mut self, mut bytes: usize) {
        while bytes > 0 && !self.is_empty() {
            let rest = self.part(self.parts[self.first_part]).len() - self.first_part_sent;
            if bytes < rest {
                self.first_part_sent += bytes;
                return;
            }
            bytes -= rest;
            self.first_part += 1;
            self.first_part_sent = 0;
        }
    }
}

/// Where the input stands.
enum Want {
    Header,
    /// `part` is `None` while the ring receives into it.
    Payload {
        header: RequestHeader,
        accepted: Accepted,
        part: Option<PartialBuf>,
    },
    /// A refused request's payload is skipped before the refusal is sent.
    Skip {
        left: usize,
        header: RequestHeader,
        error: Errno,
    },
}

struct InFlight {
    class: Class,
    /// When its last byte had come.
    came: Nanos,
    cookie: u64,
    offset: u64,
    length: u32,
    wants: Wants,
    payload_bytes: usize,
    rest: Option<Rest>,
}

/// What of a large request was not handed on yet.
#[derive(Clone, Copy)]
struct Rest {
    accepted: Accepted,
    offset: u64,
    length: u64,
}

/// What a successful reply has to carry.
enum Wants {
    Nothing,
    /// Its reply may name holes.
    Data {
        holes: bool,
    },
    Status {
        contexts: Contexts,
        one: bool,
    },
}

impl Wants {
    fn of(command: &Command) -> Self {
        match command {
            &Command::Read { holes, .. } => Self::Data { holes },
            Command::BlockStatus { contexts, one } => {
                Self::Status { contexts: Contexts::clone(contexts), one: *one }
            }
            _ => Self::Nothing,
        }
    }
}

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

    /// An error of that class, to a request that never came to be in flight.
    fn refuse(&mut self, header: &RequestHeader, error: Errno, pool: &Pool) {
        let chunked = matches!(header.command, command::READ | command::BLOCK_STATUS);
        self.push_error(chunked, header.cookie, header.offset, error, pool);
        self.answered(Class::of(header.command), self.received_at, Err(()));
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

    /// The next valid request among the bytes received, if the limits allow one. Refused requests are
    /// answered on the way.
    pub fn next_request(&mut self, pool: &Pool) -> Option<Request> {
        if let Some(request) = self.next_part() {
            return Some(request);
        }
        while self.stage == Stage::Open && !self.receiving && self.requests() < self.limits.requests_max {
            let step = match &mut self.want {
                Want::Header => self.step_header(pool),
                Want::Payload { .. } => self.step_payload(pool),
                Want::Skip { .. } => self.step_skip(pool),
            };
            match step {
                Step::Again => {}
                Step::Stop => return None,
                Step::Request(request) => return Some(request),
            }
        }
        None
    }

    /// The next part of a large request, the one before being done.
    fn next_part(&mut self) -> Option<Request> {
        while let Some(index) = self.parts.pop_front() {
            if matches!(self.stage, Stage::Broken(_)) {
                // Nobody waits for the rest.
                self.payload_bytes -= self.in_flight.remove(index).payload_bytes;
                continue;
            }
            let entry = &mut self.in_flight[index];
            let Rest { accepted, offset, length } = entry.rest.take()?;
            let first = length.min(EFFECT_BYTES_MAX);
            if length > first {
                entry.rest = Some(Rest { accepted, offset: offset + first, length: length - first });
            }
            let command = effect(accepted)?;
            return Some(Request { id: self.id(index), offset, length: effect_length(first), command });
        }
        None
    }

    fn id(&self, index: usize) -> RequestId {
        // The table holds at most `requests_max` entries, far below 2^32.
        RequestId { connection: self.index, index: u32::try_from(index).expect("a small table") }
    }

    fn unparsed(&self) -> &[u8] {
        self.chunk.as_ref().map_or(&[], |chunk| &chunk[self.parsed..self.filled])
    }

    fn step_header(&mut self, pool: &Pool) -> Step {
        if self.stopping && !self.limits.refuse_at_stop {
            return Step::Stop;
        }
        let bytes = self.unparsed();
        let parsed = if self.rules.extended {
            bytes.first_chunk().map(RequestHeader::parse_extended)
        } else {
            bytes.first_chunk().map(RequestHeader::parse)
        };
        let Some(header) = parsed else { return Step::Stop };
        let Some(header) = header else { return self.give_up(CloseReason::BadRequestMagic) };
        let verdict = self.judge(&header);
        if let Verdict::Accept(accepted) = verdict
            && self.must_wait(accepted, &header)
        {
            // The header stays where it is until earlier requests have given their buffers back.
            return Step::Stop;
        }
        self.parsed += self.header_bytes();
        match verdict {
            Verdict::Accept(accepted) => self.accept(accepted, header, pool),
            Verdict::Refuse { error, skip } => {
                self.want = Want::Skip { left: skip as usize, header, error };
                Step::Again
            }
            Verdict::Leave => {
                self.stage = Stage::Leaving(CloseReason::Left);
                Step::Stop
            }
            Verdict::Close(reason) => self.give_up(reason),
        }
    }

    fn header_bytes(&self) -> usize {
        if self.rules.extended { EXTENDED_REQUEST_HEADER_BYTES } else { REQUEST_HEADER_BYTES }
    }

    fn must_wait(&self, accepted: Accepted, header: &RequestHeader) -> bool {
        let unsent = self.building.payload_bytes + self.sending_payload_bytes;
        let ahead = matches!(accepted, Accepted::Read { .. }) && unsent >= self.limits.send_ahead_bytes;
        ahead || self.payload_bytes + self.cost(accepted, header) > self.limits.payload_bytes_max
    }

    /// Payload bytes that a request is charged with, from its header to its sent reply: what it carries, or the most
    /// that its reply may.
    fn cost(&self, accepted: Accepted, header: &RequestHeader) -> usize {
        match accepted {
            Accepted::Read { .. } | Accepted::Write { .. } => header.length as usize,
            Accepted::BlockStatus { one, filter } => {
                let extents = if one { 1 } else { STATUS_EXTENTS_MAX };
                let reply = self.rules.contexts.len() * extents * self.rules.form().extent_bytes();
                if filter { reply + header.length as usize } else { reply }
            }
            _ => 0,
        }
    }

    fn judge(&self, header: &RequestHeader) -> Verdict {
        match judge(header, &self.rules) {
            Verdict::Accept(accepted) if self.stopping => {
                let payload = if accepted.has_payload() { header.length } else { 0 };
                let skip = u32::try_from(payload).expect("what is accepted is bounded");
                Verdict::Refuse { error: Errno::Shutdown, skip }
            }
            verdict => verdict,
        }
    }

    fn give_up(&mut self, reason: CloseReason) -> Step {
        self.stage = Stage::Broken(reason);
        Step::Stop
    }

    fn accept(&mut self, accepted: Accepted, header: RequestHeader, pool: &Pool) -> Step {
        let payload_bytes = self.cost(accepted, &header);
        if accepted.has_payload() {
            let part = PartialBuf { buf: pool.take(header.length as usize), filled: 0 };
            self.payload_bytes += payload_bytes;
            self.want = Want::Payload { header, accepted, part: Some(part) };
            return Step::Again;
        }
        let command = match accepted {
            Accepted::Nothing => {
                self.answer_nothing(&header, pool);
                return Step::Again;
            }
            Accepted::Read { holes } => Command::Read { buf: pool.take(header.length as usize), holes },
            Accepted::BlockStatus { one, .. } => {
                Command::BlockStatus { contexts: Contexts::clone(&self.rules.contexts), one }
            }
            // Whatever else there is has no payload and no data to answer with.
            _ => effect(accepted).expect("an effect"),
        };
        self.payload_bytes += payload_bytes;
        Step::Request(self.register(&header, accepted, command, payload_bytes))
    }

    /// A command on zero bytes succeeds without reaching the export.
    fn answer_nothing(&mut self, header: &RequestHeader, pool: &Pool) {
        let head = self.to(header.cookie, header.offset).nothing(header.command == command::READ);
        self.building.push_head(&head, pool);
        self.answered(Class::of(header.command), self.received_at, Ok(0));
    }

    fn to(&self, cookie: u64, offset: u64) -> ReplyTo {
        ReplyTo { form: self.rules.form(), cookie, offset }
    }

    fn register(
        &mut self,
        header: &RequestHeader,
        accepted: Accepted,
        command: Command,
        payload_bytes: usize,
    ) -> Request {
        let (offset, length) = match accepted {
            Accepted::Flush => (0, 0),
            _ => (header.offset, header.length),
        };
        let first = length.min(EFFECT_BYTES_MAX);
        let rest = Rest { accepted, offset: offset + first, length: length - first };
        let index = self.in_flight.insert(InFlight {
            class: Class::of(header.command),
            came: self.received_at,
            cookie: header.cookie,
            offset: header.offset,
            length: effect_length(first),
            wants: Wants::of(&command),
            payload_bytes,
            // Of a question, and of advice, the beginning is enough.
            rest: Some(rest).filter(|rest| rest.length > 0 && accepted.changes()),
        });
        Request { id: self.id(index), offset, length: effect_length(first), command }
    }

    fn step_payload(&mut self, pool: &Pool) -> Step {
        let Want::Payload { header, accepted, part: slot } = &mut self.want else { return Step::Stop };
        let Some(mut part) = slot.take() else { return Step::Stop };
        let available = self.chunk.as_ref().map_or(&[][..], |chunk| &chunk[self.parsed..self.filled]);
        let take = available.len().min(part.buf.len() - part.filled);
        part.buf[part.filled..part.filled + take].copy_from_slice(&available[..take]);
        part.filled += take;
        self.parsed += take;
        if part.filled < part.buf.len() {
            *slot = Some(part);
            return Step::Stop;
        }
        let (header, accepted) = (*header, *accepted);
        self.want = Want::Header;
        self.accept_payload(header, accepted, part.buf, pool)
    }

    /// A request's payload is complete.
    fn accept_payload(&mut self, header: RequestHeader, accepted: Accepted, buf: Buf, pool: &Pool) -> Step {
        let payload_bytes = self.cost(accepted, &header);
        let (header, command) = match accepted {
            Accepted::BlockStatus { one, .. } => match judge_filter(&header, &buf, &self.rules) {
                Ok((length, contexts)) => {
                    (RequestHeader { length, ..header }, Command::BlockStatus { contexts, one })
                }
                Err(error) => {
                    self.payload_bytes -= payload_bytes;
                    self.refuse(&header, error, pool);
                    return Step::Again;
                }
            },
            _ => (header, Command::Write { buf, fua: accepted.is_durable() }),
        };
        Step::Request(self.register(&header, accepted, command, payload_bytes))
    }

    fn step_skip(&mut self, pool: &Pool) -> Step {
        let available = self.filled - self.parsed;
        let Want::Skip { left, header, error } = &mut self.want else { return Step::Stop };
        let take = available.min(*left);
        *left -= take;
        self.parsed += take;
        if *left > 0 {
            return Step::Stop;
        }
        let (header, error) = (*header, *error);
        self.want = Want::Header;
        self.refuse(&header, error, pool);
        Step::Again
    }

    /// Errors of what is answered in chunks take that form when it was negotiated; other commands stay simple.
    fn push_error(&mut self, chunked: bool, cookie: u64, offset: u64, error: Errno, pool: &Pool) {
        let head = self.to(cookie, offset).error(error, chunked);
        self.building.push_head(&head, pool);
    }

    /// Queues the only reply to a request that `next_request` returned.
    ///
    /// # Panics
    /// When the request is not in flight, or a reply's payload is not what was asked for: a bug of the export
    /// that must not reach a client as wrong bytes.
    pub fn reply(&mut self, reply: Reply, pool: &Pool) {
        let (index, broken) = (reply.id.index as usize, matches!(self.stage, Stage::Broken(_)));
        if reply.outcome.is_ok() && self.in_flight[index].rest.is_some() && !broken {
            return self.parts.push_back(index);
        }
        let request = self.in_flight.remove(index);
        if broken {
            self.payload_bytes -= request.payload_bytes;
            return;
        }
        match (reply.outcome, &request.wants) {
            (Ok(_), Wants::Nothing) => {
                self.payload_bytes -= request.payload_bytes;
                let head = self.to(request.cookie, request.offset).nothing(false);
                self.building.push_head(&head, pool);
                self.answered(request.class, request.came, Ok(u64::from(request.length)));
            }
            (Ok(payload), _) => self.push_payload(&request, payload, pool),
            (Err(error), wants) => {
                self.payload_bytes -= request.payload_bytes;
                let chunked = !matches!(wants, Wants::Nothing);
                self.push_error(chunked, request.cookie, request.offset, error, pool);
                self.answered(request.class, request.came, Err(()));
            }
        }
    }

    /// What a reply carries stays charged to the connection until it was sent.
    fn push_payload(&mut self, request: &InFlight, payload: Payload, pool: &Pool) {
        self.building.payload_bytes += request.payload_bytes;
        match (payload, &request.wants) {
            (Payload::Data(buf), Wants::Data { .. }) => {
                assert_eq!(buf.len(), request.length as usize, "a read's reply has the length asked for");
                self.push_whole_head(request, pool);
                self.building.push_data(buf);
            }
            (Payload::Extents(extents), &Wants::Data { holes }) => {
                self.push_extents(request, holes, extents, pool);
            }
            (Payload::Status(status), Wants::Status { contexts, one }) => {
                self.push_status(request, contexts, *one, &status, pool);
            }
            (payload, _) => panic!("a reply with {payload:?} to another question"),
        }
        self.answered(request.class, request.came, Ok(u64::from(request.length)));
    }

    /// A chunk for each context.
    fn push_status(
        &mut self,
        request: &InFlight,
        contexts: &Contexts,
        one: bool,
        status: &[StatusExtents],
        pool: &Pool,
    ) {
        assert_eq!(status.len(), contexts.len(), "every context is told of");
        let to = self.to(request.cookie, request.offset);
        for (number, (context, extents)) in (1..).zip(contexts.iter().zip(status)) {
            let told = extents.as_slice();
            assert!(!told.is_empty() && (!one || told.len() == 1), "as many extents as were asked for");
            assert!(extents.covered() <= u64::from(request.length), "of the range that was asked for");
            let done = number == contexts.len();
            self.building.push_head(&to.status(done, context.id, told.len()), pool);
            let bytes = to.form.extent_bytes();
            let mut body = pool.take(told.len() * bytes);
            for (place, extent) in body.chunks_exact_mut(bytes).zip(told) {
                to.write_extent(place, extent.length, extent.flags);
            }
            self.building.push_data(body);
        }
    }

    /// What stands before all the data of a read in one go.
    fn push_whole_head(&mut self, request: &InFlight, pool: &Pool) {
        let head = self.to(request.cookie, request.offset).data(true, request.offset, request.length);
        self.building.push_head(&head, pool);
    }

    fn push_extents(&mut self, request: &InFlight, allowed: bool, mut extents: Vec<Extent>, pool: &Pool) {
        // Chunks of no bytes are against the protocol.
        extents.retain(|extent| extent.length() > 0);
        let holes = extents.iter().any(|extent| matches!(extent, Extent::Hole(_)));
        assert!(allowed || !holes, "a hole in the reply to a read that did not allow any");
        let covered: u64 = extents.iter().map(|extent| u64::from(extent.length())).sum();
        assert_eq!(covered, u64::from(request.length), "the pieces cover the read exactly");
        if holes {
            return self.push_chunks(request, extents, pool);
        }
        // One chunk, of however many pieces: that is what DF asks for, and simplest for everybody else.
        self.push_whole_head(request, pool);
        for extent in extents {
            if let Extent::Data(buf) = extent {
                self.building.push_data(buf);
            }
        }
    }

    /// One chunk for each hole, and one for all the pieces of data up to the next hole.
    fn push_chunks(&mut self, request: &InFlight, extents: Vec<Extent>, pool: &Pool) {
        let to = self.to(request.cookie, request.offset);
        let end = request.offset + u64::from(request.length);
        // Data up to `told` have their chunk's header already.
        let (mut at, mut told) = (request.offset, request.offset);
        let mut extents = extents.into_iter();
        while let Some(extent) = extents.next() {
            let start = at;
            at += u64::from(extent.length());
            match extent {
                Extent::Hole(length) => {
                    self.building.push_head(&to.hole(at == end, start, length), pool);
                    told = at;
                }
                Extent::Data(buf) => {
                    if start == told {
                        let run = buf_length(&buf) + data_length(extents.as_slice());
                        told += u64::from(run);
                        self.building.push_head(&to.data(told == end, start, run), pool);
                    }
                    self.building.push_data(buf);
                }
            }
        }
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

/// The command of what changes a range, or is advice about it, without payload; `None` for all else.
fn effect(accepted: Accepted) -> Option<Command> {
    match accepted {
        Accepted::Flush => Some(Command::Flush),
        Accepted::Trim { fua } => Some(Command::Trim { fua }),
        Accepted::WriteZeroes { fua, no_hole, fast } => Some(Command::WriteZeroes { fua, no_hole, fast }),
        Accepted::Cache => Some(Command::Cache),
        _ => None,
    }
}

fn effect_length(bytes: u64) -> u32 {
    u32::try_from(bytes).expect("no more than EFFECT_BYTES_MAX")
}

enum Step {
    Again,
    Stop,
    Request(Request),
}

fn buf_length(buf: &Buf) -> u32 {
    u32::try_from(buf.len()).expect("a piece is no longer than its request")
}

impl Extent {
    fn length(&self) -> u32 {
        match self {
            Self::Data(buf) => buf_length(buf),
            Self::Hole(length) => *length,
        }
    }
}

/// Bytes of data before the first hole.
fn data_length(extents: &[Extent]) -> u32 {
    extents.iter().take_while(|extent| matches!(extent, Extent::Data(_))).map(Extent::length).sum()
}
