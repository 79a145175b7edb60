//! Requests in flight on a connection, found by their cookies.

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// So many bytes from there.
    Read {
        /// Bytes from the start of the export.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// To write.
    Write {
        /// Bytes from the start of the export.
        offset: u64,
    },
    /// To make durable what was written.
    Flush,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read { offset, length } => write!(f, "a read of {length} bytes at {offset}"),
            Self::Write { offset } => write!(f, "a write at {offset}"),
            Self::Flush => f.write_str("a flush"),
        }
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) asked: Asked,
    /// When it was sent, nanoseconds.
    pub(super) sent_ns: u64,
}

#[derive(Debug, Default)]
struct Slot {
    /// How often the slot was used: its cookies differ, so that a second reply to one request is noticed.
    turn: u32,
    pending: Option<Pending>,
    /// What chunks of the reply have told so far: beginnings and ends.
    told: Vec<(u64, u64)>,
}

/// Room for so many requests at once.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    /// All free.
    pub(super) fn new(depth: u32) -> Self {
        let slots = (0..depth).map(|_| Slot::default()).collect();
        Self { slots, free: (0..depth).rev().collect() }
    }

    /// Requests in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether another request may be sent.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a slot for a request; its cookie, or `None` when there is no room.
    pub(super) fn put(&mut self, asked: Asked, now_ns: u64) -> Option<u64> {
        let number = self.free.pop()?;
        let slot = &mut self.slots[number as usize];
        slot.turn = slot.turn.wrapping_add(1);
        slot.pending = Some(Pending { asked, sent_ns: now_ns });
        slot.told.clear();
        Some(u64::from(slot.turn) << 32 | u64::from(number))
    }

    /// What the request of that cookie asks for, if it is in flight.
    pub(super) fn asked(&self, cookie: u64) -> Option<Asked> {
        self.slot(cookie)?.pending.as_ref().map(|pending| pending.asked)
    }

    /// Takes the request out: it is answered.
    pub(super) fn take(&mut self, cookie: u64) -> Option<Pending> {
        let number = self.slot(cookie).map(|_| cookie as u32)?;
        let pending = self.slots[number as usize].pending.take()?;
        self.free.push(number);
        Some(pending)
    }

    /// Notes that a chunk has told of these bytes; `false` when one before has told of any of them.
    pub(super) fn tell(&mut self, cookie: u64, start: u64, end: u64) -> bool {
        let Some(slot) = self.slots.get_mut(cookie as u32 as usize) else { return false };
        if slot.told.iter().any(|&(from, to)| start < to && from < end) {
            return false;
        }
        slot.told.push((start, end));
        true
    }

    /// Bytes that chunks have told of.
    pub(super) fn told(&self, cookie: u64) -> u64 {
        self.slot(cookie).map_or(0, |slot| slot.told.iter().map(|(start, end)| end - start).sum())
    }

    fn slot(&self, cookie: u64) -> Option<&Slot> {
        self.slots.get(cookie as u32 as usize).filter(|slot| u64::from(slot.turn) == cookie >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_good_for_one_reply() {
        let mut slots = Slots::new(2);
        let first = slots.put(Asked::Flush, 5).unwrap();
        let second = slots.put(Asked::Write { offset: 0 }, 6).unwrap();
        assert_eq!((slots.put(Asked::Flush, 7), slots.in_flight()), (None, 2));
        assert_eq!(slots.take(first).map(|pending| pending.sent_ns), Some(5));
        assert!(slots.take(first).is_none() && slots.asked(first).is_none());
        let third = slots.put(Asked::Flush, 8).unwrap();
        assert!(slots.take(first).is_none(), "the slot is used again, the cookie is not");
        assert_eq!(
            (slots.asked(second), slots.asked(third)),
            (Some(Asked::Write { offset: 0 }), Some(Asked::Flush))
        );
        assert!(slots.asked(7).is_none() && slots.asked(u64::MAX).is_none());
    }

    #[test]
    fn no_byte_is_told_twice() {
        let mut slots = Slots::new(1);
        let cookie = slots.put(Asked::Read { offset: 0, length: 100 }, 0).unwrap();
        assert!(slots.tell(cookie, 10, 20) && slots.tell(cookie, 20, 30) && slots.tell(cookie, 0, 10));
        for (start, end) in [(0, 1), (9, 11), (29, 31), (0, 100)] {
            assert!(!slots.tell(cookie, start, end), "{start}..{end}");
        }
        assert_eq!(slots.told(cookie), 30);
    }
}
