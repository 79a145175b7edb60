//! Replies in, bytes out: whole ones, chunks, and errors.

use super::input::{InFlight, Wants};
use super::{Connection, Stage};
use crate::export::{Extent, Payload, Reply};
use crate::reactor::buffer::{Buf, Pool};
use crate::registry::Class;
use crate::status::{Contexts, StatusExtents};
use crate::wire::{Errno, ReplyTo, RequestHeader, command};

impl Connection {
    /// A command on zero bytes succeeds without reaching the export.
    pub(super) fn answer_nothing(&mut self, header: &RequestHeader, pool: &Pool) {
        let head = self.to(header.cookie, header.offset).nothing(header.command == command::READ);
        self.building.push_head(&head, pool);
        self.answered(Class::of(header.command), self.received_at, Ok(0));
    }

    fn to(&self, cookie: u64, offset: u64) -> ReplyTo {
        ReplyTo { form: self.rules.form(), cookie, offset }
    }

    /// An error of that class, to a request that never came to be in flight.
    pub(super) fn refuse(&mut self, header: &RequestHeader, error: Errno, pool: &Pool) {
        let chunked = matches!(header.command, command::READ | command::BLOCK_STATUS);
        self.push_error(chunked, header.cookie, header.offset, error, pool);
        self.answered(Class::of(header.command), self.received_at, Err(()));
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
