//! An input read as decisions: byte after byte, so that a fuzzer that changes one byte changes one decision.

/// What of an input was not read yet. Behind its end every byte is zero.
#[derive(Clone, Debug)]
pub struct Choices<'a> {
    bytes: &'a [u8],
}

impl<'a> Choices<'a> {
    /// All decisions of an input.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Nothing is left.
    pub fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        first
    }

    /// One of two.
    pub fn coin(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number below `end`, out of one byte.
    pub fn below(&mut self, end: u8) -> u8 {
        self.byte() % end
    }

    /// One of these.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// A number of 16 bits.
    pub fn half(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// A number of 32 bits.
    pub fn word(&mut self) -> u32 {
        u32::from(self.half()) << 16 | u32::from(self.half())
    }

    /// A number of 64 bits.
    pub fn long(&mut self) -> u64 {
        u64::from(self.word()) << 32 | u64::from(self.word())
    }

    /// A number of bytes to move at once: mostly few, sometimes all.
    pub fn amount(&mut self) -> usize {
        match self.byte() {
            few @ 0..0x80 => usize::from(few) + 1,
            some @ 0x80..0xe0 => (usize::from(some) - 0x7f) << 7,
            _ => usize::MAX,
        }
    }

    /// The next bytes, fewer at the end.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(count.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_the_end_all_is_zero() {
        let mut choices = Choices::new(&[7, 0x81]);
        assert_eq!((choices.byte(), choices.amount()), (7, 256));
        assert!(choices.is_over());
        assert_eq!((choices.long(), choices.amount(), choices.bytes(3)), (0, 1, &[][..]));
    }
}
