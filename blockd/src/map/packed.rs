//! Entries as they lie in memory: seven bytes each, in pages.
//!
//! ```text
//!  byte  0 1 2 3   4 5    6
//!       |number   |mask |kind 2 bits, generation 6|      little-endian
//! ```
//!
//! Eight would be aligned, and cost 16 MiB more per TiB. An entry is read as eight bytes all the same, the next one's first
//! among them, so a page ends with one to spare.

use super::pages::PageFault;
use crate::units::Mask;

/// Entries of a page: half a gibibyte of the volume in 56 KiB of memory.
pub(super) const PAGE_ENTRIES: usize = 8192;
/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 7;
const PAGE_BYTES: usize = PAGE_ENTRIES * ENTRY_BYTES + 1;
const ENTRY_BITS: u64 = (1 << (8 * ENTRY_BYTES)) - 1;

/// The last generation; they are 1 to this.
pub(super) const GENERATIONS: u8 = 63;
/// Generation of parts that no open layer owns.
pub(super) const NO_GENERATION: u8 = 0;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// No data; the mask tells what the open layer has made zero. All zero: a hole.
    Zeroed,
    /// The blocks of the mask lie in one pool cluster, each in its place: the number.
    Single,
    /// See the row of the side table.
    Side,
    /// See the row of the pairs; the mask is the first part's.
    Pair,
}

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packed56(u64);

impl Packed56 {
    pub(super) const HOLE: Self = Self(0);

    pub(super) fn new(kind: Kind, generation: u8, mask: Mask, number: u32) -> Self {
        debug_assert!(generation <= GENERATIONS, "generation {generation}");
        let kind = match kind {
            Kind::Zeroed => 0,
            Kind::Single => 1,
            Kind::Side => 2,
            Kind::Pair => 3,
        };
        Self(kind << 54 | u64::from(generation) << 48 | u64::from(mask.0) << 32 | u64::from(number))
    }

    pub(super) fn kind(self) -> Kind {
        match self.0 >> 54 {
            0 => Kind::Zeroed,
            1 => Kind::Single,
            2 => Kind::Side,
            _ => Kind::Pair,
        }
    }

    pub(super) fn generation(self) -> u8 {
        (self.0 >> 48) as u8 & GENERATIONS
    }

    pub(super) fn mask(self) -> Mask {
        Mask((self.0 >> 32) as u16)
    }

    pub(super) fn number(self) -> u32 {
        self.0 as u32
    }
}

/// A page's entries.
pub(super) struct Page(Box<[u8]>);

impl Page {
    /// Bytes of memory, but for the allocator's own.
    pub(super) const BYTES: usize = PAGE_BYTES;

    /// Holes.
    pub(super) fn new() -> Self {
        Self(vec![0; PAGE_BYTES].into_boxed_slice())
    }

    /// A page of so many entries, in order.
    ///
    /// # Errors
    /// That of the first one that has one.
    pub(super) fn of(
        entries: impl ExactSizeIterator<Item = Result<Packed56, PageFault>>,
    ) -> Result<Self, PageFault> {
        assert_eq!(entries.len(), PAGE_ENTRIES, "a page has so many");
        let mut page = Self::new();
        for (at, entry) in entries.enumerate() {
            page.set(at, entry?);
        }
        Ok(page)
    }

    pub(super) fn get(&self, at: usize) -> Packed56 {
        let eight = self.0[at * ENTRY_BYTES..].first_chunk().expect("the page ends with a byte to spare");
        Packed56(u64::from_le_bytes(*eight) & ENTRY_BITS)
    }

    pub(super) fn set(&mut self, at: usize, entry: Packed56) {
        let start = at * ENTRY_BYTES;
        self.0[start..start + ENTRY_BYTES].copy_from_slice(&entry.0.to_le_bytes()[..ENTRY_BYTES]);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Packed56> {
        (0..PAGE_ENTRIES).map(|at| self.get(at))
    }

    /// Whether the entry is of a generation that is over, `open` being the one that is not.
    pub(super) fn is_stale(&self, at: usize, open: u8) -> bool {
        let generation = self.0[at * ENTRY_BYTES + ENTRY_BYTES - 1] & GENERATIONS;
        generation != NO_GENERATION && generation != open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_page_do_not_touch_each_other() {
        let (mut page, mut rng) = (Page::new(), fastrand::Rng::with_seed(7));
        let mut held = vec![Packed56::HOLE; PAGE_ENTRIES];
        let kinds = [Kind::Zeroed, Kind::Single, Kind::Side, Kind::Pair];
        for _ in 0..4 * PAGE_ENTRIES {
            let at = rng.usize(..PAGE_ENTRIES);
            let (kind, generation) = (kinds[rng.usize(..4)], rng.u8(..=GENERATIONS));
            let (mask, number) = (Mask(rng.u16(..)), rng.u32(..));
            held[at] = Packed56::new(kind, generation, mask, number);
            page.set(at, held[at]);
            let entry = page.get(at);
            assert_eq!((entry.kind(), entry.generation()), (kind, generation));
            assert_eq!((entry.mask(), entry.number()), (mask, number));
            assert_eq!(page.is_stale(at, 5), generation != 0 && generation != 5);
        }
        assert!(page.iter().eq(held));
        assert_eq!(page.0.len() as u64, 56 * 1024 + 1);
    }

    #[test]
    fn the_last_entry_has_all_its_bits() {
        let mut page = Page::new();
        let last = Packed56::new(Kind::Pair, GENERATIONS, Mask(u16::MAX), u32::MAX);
        page.set(PAGE_ENTRIES - 1, last);
        assert_eq!(page.get(PAGE_ENTRIES - 1), last);
        assert_eq!(page.get(PAGE_ENTRIES - 2), Packed56::HOLE);
    }
}
