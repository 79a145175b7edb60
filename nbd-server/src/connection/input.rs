//! Bytes in, valid requests out: headers, payloads, and what of a large request is started when.

use super::{Connection, Nanos, PartialBuf, Stage};
use crate::export::{Command, Request, RequestId};
use crate::reactor::buffer::{Buf, Pool};
use crate::registry::Class;
use crate::status::{Contexts, STATUS_EXTENTS_MAX};
use crate::transmission::{Accepted, CloseReason, Verdict, judge, judge_filter};
use crate::wire::{EXTENDED_REQUEST_HEADER_BYTES, Errno, REQUEST_HEADER_BYTES, RequestHeader};

/// The backend is not given more than this at once: with extended headers a request may be about all of a disk, and
/// would hold up everybody else. The rest follows when that is done. A multiple of every block size.
const EFFECT_BYTES_MAX: u64 = (1 << 32) - (64 << 10);

/// Where the input stands.
pub(super) enum Want {
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

pub(super) struct InFlight {
    pub(super) class: Class,
    /// When its last byte had come.
    pub(super) came: Nanos,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) wants: Wants,
    pub(super) payload_bytes: usize,
    pub(super) rest: Option<Rest>,
}

/// What of a large request was not handed on yet.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    accepted: Accepted,
    offset: u64,
    length: u64,
}

/// What a successful reply has to carry.
pub(super) enum Wants {
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

impl Connection {
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

    pub(super) fn header_bytes(&self) -> usize {
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
