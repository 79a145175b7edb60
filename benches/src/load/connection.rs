//! One connection's load: which requests are sent, and what comes of them. Free of I/O and clocks.

use nbd_server::reactor::Outgoing;
use nbd_server::wire::{RequestHeader, command};

use super::negotiate::Export;
use super::replies::{Fault, Replies};
use super::slots::{Asked, Slots};
use super::tally::Tally;
use super::{Pattern, Workload};

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    workload: Workload,
    blocks: u64,
    /// The next block of a sequential load.
    next_block: u64,
    random: fastrand::Rng,
    writes_since_flush: u32,
    slots: Slots,
    replies: Replies,
    stopped: bool,
}

impl Connection {
    /// The connection of that number, from 0. Sequential loads begin at different places of the export, so that
    /// connections do not follow each other through the same blocks.
    pub(super) fn new(number: u32, export: Export, workload: Workload) -> Self {
        let blocks = export.size / u64::from(workload.block_bytes);
        Self {
            workload,
            blocks,
            next_block: blocks / u64::from(workload.connections.max(1)) * u64::from(number),
            random: fastrand::Rng::with_seed(workload.seed.wrapping_add(number.into())),
            writes_since_flush: 0,
            slots: Slots::new(workload.depth),
            replies: Replies::new(export.structured),
            stopped: false,
        }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// From now on nothing more is asked for.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Appends as many requests as may be in flight.
    pub(super) fn fill(&mut self, now_ns: u64, out: &mut Outgoing) {
        while !self.stopped && self.slots.has_free() {
            let asked = self.next_request();
            let Some(cookie) = self.slots.put(asked, now_ns) else { return };
            out.push_bytes(&self.header(asked, cookie).to_bytes());
            if matches!(asked, Asked::Write { .. }) {
                out.push_payload();
            }
        }
    }

    fn next_request(&mut self) -> Asked {
        if self.workload.flush_every.is_some_and(|every| self.writes_since_flush >= every) {
            self.writes_since_flush = 0;
            return Asked::Flush;
        }
        let length = self.workload.block_bytes;
        let offset = self.next_place() * u64::from(length);
        if self.workload.pattern.writes() {
            self.writes_since_flush += 1;
            Asked::Write { offset }
        } else {
            Asked::Read { offset, length }
        }
    }

    fn next_place(&mut self) -> u64 {
        match self.workload.pattern {
            Pattern::RandRead | Pattern::RandWrite => self.random.u64(0..self.blocks),
            Pattern::Read | Pattern::Write => {
                let block = self.next_block;
                self.next_block = if block + 1 < self.blocks { block + 1 } else { 0 };
                block
            }
        }
    }

    fn header(&self, asked: Asked, cookie: u64) -> RequestHeader {
        let (command, offset, length) = match asked {
            Asked::Read { offset, length } => (command::READ, offset, length.into()),
            Asked::Write { offset } => (command::WRITE, offset, self.workload.block_bytes.into()),
            Asked::Flush => (command::FLUSH, 0, 0),
        };
        RequestHeader { flags: 0, command, cookie, offset, length }
    }

    /// Takes what it can of `bytes`, tells how many that were, and counts what was answered.
    ///
    /// # Errors
    /// See [`Fault`].
    pub(super) fn received(&mut self, bytes: &[u8], now_ns: u64, tally: &mut Tally) -> Result<usize, Fault> {
        self.replies.take(bytes, &mut self.slots, |slots, cookie| {
            let Some(pending) = slots.take(cookie) else { return };
            match pending.asked {
                Asked::Flush => tally.flushes += 1,
                Asked::Read { .. } | Asked::Write { .. } => {
                    tally.latency.add(now_ns.saturating_sub(pending.sent_ns));
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    const BLOCK: u32 = 4096;

    fn connection(number: u32, pattern: Pattern, flush_every: Option<u32>) -> Connection {
        let export = Export { size: 8 * u64::from(BLOCK) + 100, flags: 0, structured: false };
        let workload =
            Workload { pattern, block_bytes: BLOCK, depth: 7, connections: 2, flush_every, seed: 3 };
        Connection::new(number, export, workload)
    }

    /// The requests that are sent next; those before are answered.
    fn asked(connection: &mut Connection) -> Vec<RequestHeader> {
        let mut out = Outgoing::new(Rc::from(vec![1; BLOCK as usize]));
        connection.fill(0, &mut out);
        let bytes = out.slices().collect::<Vec<_>>().concat();
        let (mut rest, mut headers) = (&bytes[..], Vec::new());
        while let Some((header, after)) = rest.split_first_chunk() {
            let header = RequestHeader::parse(header).unwrap();
            rest = if header.command == command::WRITE { &after[BLOCK as usize..] } else { after };
            headers.push(header);
        }
        assert!(rest.is_empty());
        headers
    }

    fn answer(connection: &mut Connection, headers: &[RequestHeader], now_ns: u64, tally: &mut Tally) {
        for header in headers {
            let mut reply =
                [&0x6744_6698_u32.to_be_bytes()[..], &[0; 4], &header.cookie.to_be_bytes()].concat();
            reply.resize(if header.command == command::READ { 16 + header.length as usize } else { 16 }, 9);
            assert_eq!(connection.received(&reply, now_ns, tally), Ok(reply.len()));
        }
    }

    #[test]
    fn as_many_requests_are_in_flight_as_the_depth_says() {
        let (mut connection, mut tally) = (connection(0, Pattern::RandRead, None), Tally::default());
        let first = asked(&mut connection);
        assert_eq!((first.len(), connection.in_flight(), asked(&mut connection).len()), (7, 7, 0));
        answer(&mut connection, &first[2..5], 5000, &mut tally);
        assert_eq!((tally.ios(), tally.latency.max(), connection.in_flight()), (3, 5000, 4));
        assert_eq!(asked(&mut connection).len(), 3);
        connection.stop();
        answer(&mut connection, &first[..2], 0, &mut tally);
        assert_eq!((asked(&mut connection).len(), connection.in_flight()), (0, 5));
    }

    #[test]
    fn random_blocks_lie_within_the_export_and_reach_all_of_it() {
        let (mut connection, mut tally) = (connection(0, Pattern::RandWrite, None), Tally::default());
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let headers = asked(&mut connection);
            seen.extend(headers.iter().map(|header| (header.command, header.offset, header.length)));
            answer(&mut connection, &headers, 0, &mut tally);
        }
        let whole = (0..8).map(|block| (command::WRITE, block * u64::from(BLOCK), u64::from(BLOCK)));
        assert!(seen.into_iter().eq(whole), "every whole block, and nothing else");
    }

    #[test]
    fn the_seed_decides_and_connections_differ() {
        let places = |number| -> Vec<u64> {
            let headers = asked(&mut connection(number, Pattern::RandRead, None));
            headers.iter().map(|header| header.offset).collect()
        };
        assert_eq!(places(0), places(0));
        assert_ne!(places(0), places(1));
    }

    #[test]
    fn sequential_loads_begin_apart_and_wrap() {
        let places = |number| -> Vec<u64> {
            let headers = asked(&mut connection(number, Pattern::Read, None));
            headers.iter().map(|header| header.offset / u64::from(BLOCK)).collect()
        };
        assert_eq!(places(0), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(places(1), [4, 5, 6, 7, 0, 1, 2]);
    }

    #[test]
    fn a_flush_follows_so_many_writes() {
        let commands = |connection: &mut Connection| -> Vec<u16> {
            asked(connection).iter().map(|header| header.command).collect()
        };
        let (w, f) = (command::WRITE, command::FLUSH);
        assert_eq!(commands(&mut connection(0, Pattern::Write, Some(2))), [w, w, f, w, w, f, w]);
        assert_eq!(commands(&mut connection(0, Pattern::Write, None)), [w; 7]);
        let (mut connection, mut tally) = (connection(0, Pattern::RandWrite, Some(1)), Tally::default());
        let headers = asked(&mut connection);
        answer(&mut connection, &headers, 10, &mut tally);
        assert_eq!((tally.ios(), tally.flushes), (4, 3), "flushes are counted apart");
    }
}
