//! Bytes on their way to a server.

use std::rc::Rc;

/// What is sent in one piece of work: bytes of its own, and between them a payload that many may share.
///
/// The payload is lent, not copied: a client that only makes load sends the same bytes again and again.
pub struct Outgoing {
    bytes: Vec<u8>,
    payload: Rc<[u8]>,
    parts: Vec<Part>,
    /// Parts that are sent, and bytes of the next one.
    parts_sent: usize,
    bytes_sent: usize,
}

#[derive(Clone, Copy)]
enum Part {
    Bytes { start: usize, end: usize },
    Payload,
}

impl Outgoing {
    /// Nothing yet.
    pub fn new(payload: Rc<[u8]>) -> Self {
        Self { bytes: Vec::new(), payload, parts: Vec::new(), parts_sent: 0, bytes_sent: 0 }
    }

    /// Appends these bytes.
    pub fn push_bytes(&mut self, bytes: &[u8]) {
        self.begin_anew_if_sent();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len();
        match self.parts.last_mut() {
            // What lies side by side is one piece for the kernel.
            Some(Part::Bytes { end: last, .. }) => *last = end,
            _ => self.parts.push(Part::Bytes { start, end }),
        }
    }

    /// Appends the payload.
    pub fn push_payload(&mut self) {
        self.begin_anew_if_sent();
        self.parts.push(Part::Payload);
    }

    /// Whether nothing is left to be sent.
    pub fn is_empty(&self) -> bool {
        self.parts_sent == self.parts.len()
    }

    /// Once all is sent, forgets it and keeps the memory.
    fn begin_anew_if_sent(&mut self) {
        if self.is_empty() {
            self.bytes.clear();
            self.parts.clear();
            self.parts_sent = 0;
        }
    }

    /// What is still to be sent, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let mut skip = self.bytes_sent;
        self.parts[self.parts_sent..].iter().map(move |&part| &self.part(part)[std::mem::take(&mut skip)..])
    }

    fn part(&self, part: Part) -> &[u8] {
        match part {
            Part::Bytes { start, end } => &self.bytes[start..end],
            Part::Payload => &self.payload,
        }
    }

    /// Notes that the next `bytes` bytes were sent.
    pub(super) fn advance(&mut self, mut bytes: usize) {
        while let Some(&part) = self.parts.get(self.parts_sent) {
            let rest = self.part(part).len() - self.bytes_sent;
            if bytes < rest {
                self.bytes_sent += bytes;
                return;
            }
            bytes -= rest;
            self.parts_sent += 1;
            self.bytes_sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Outgoing {
        let mut out = Outgoing::new(Rc::from(&b"PAY"[..]));
        out.push_bytes(b"ab");
        out.push_bytes(b"c");
        out.push_payload();
        out.push_payload();
        out.push_bytes(b"d");
        out
    }

    #[test]
    fn neighbouring_bytes_are_one_piece() {
        assert_eq!(sample().slices().collect::<Vec<_>>(), [&b"abc"[..], b"PAY", b"PAY", b"d"]);
    }

    #[test]
    fn whatever_was_sent_at_once_the_rest_is_what_follows() {
        let all = sample().slices().collect::<Vec<_>>().concat();
        for step in 1..=all.len() {
            let (mut out, mut sent) = (sample(), 0);
            while !out.is_empty() {
                assert_eq!(out.slices().collect::<Vec<_>>().concat(), all[sent..], "after {sent} by {step}");
                out.advance(step.min(all.len() - sent));
                sent += step;
            }
            assert!(sent >= all.len());
        }
    }

    #[test]
    fn what_comes_after_all_was_sent_is_not_lost() {
        let mut out = sample();
        out.advance(10);
        assert!(out.is_empty());
        out.push_bytes(b"x");
        out.push_payload();
        assert_eq!(out.slices().collect::<Vec<_>>(), [&b"x"[..], b"PAY"]);
    }
}
