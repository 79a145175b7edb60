//! What a socket is given: memory to receive into, and replies to send.

use crate::reactor::buffer::{Buf, Pool};

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
    pub(super) replies: usize,
    pub(super) payload_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Head { start: usize, end: usize },
    Data { index: usize },
}

impl SendBatch {
    pub(super) fn new(pool: &Pool) -> Self {
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

    pub(super) fn clear(&mut self) {
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

    pub(super) fn push_head(&mut self, bytes: &[u8], pool: &Pool) {
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

    pub(super) fn push_data(&mut self, buf: Buf) {
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
