//! Pages of a manifest: 4096 places each, of which those with a hash are stored.

use super::Digest;
use super::bytes::{Fields, head};

/// Places in a page.
pub const PLACES: usize = 4096;
/// Clusters that a leaf page covers: 256 MiB.
pub const LEAF_CLUSTERS: u64 = PLACES as u64;
/// Clusters that an inner page covers: 1 TiB.
pub const INNER_CLUSTERS: u64 = LEAF_CLUSTERS * PLACES as u64;
/// Bytes of the largest page.
pub const PAGE_BYTES_MAX: u64 = (16 + MAP_BYTES + PLACES * 32) as u64;

const MAGIC: [u8; 8] = *b"BLKDPAGE";
const MAP_BYTES: usize = PLACES / 8;

/// What the hashes of a page are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Chunks.
    Leaf = 0,
    /// Leaf pages.
    Inner = 1,
}

/// A page: a hash for each place, or none where all is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    level: Level,
    hashes: Vec<Option<Digest>>,
}

impl Page {
    /// A page of zeroes.
    pub fn new(level: Level) -> Self {
        Self { level, hashes: vec![None; PLACES] }
    }

    /// The hash at a place.
    pub fn get(&self, place: usize) -> Option<Digest> {
        self.hashes[place]
    }

    /// Changes a place.
    pub fn set(&mut self, place: usize, hash: Option<Digest>) {
        self.hashes[place] = hash;
    }

    /// Whether all of it is zero; such a page is not stored.
    pub fn is_empty(&self) -> bool {
        self.hashes.iter().all(Option::is_none)
    }

    /// Places with a hash, in order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Digest)> {
        self.hashes.iter().enumerate().filter_map(|(place, hash)| Some((place, (*hash)?)))
    }

    /// The object.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = head(MAGIC);
        bytes.extend_from_slice(&(self.level as u32).to_le_bytes());
        let mut map = [0; MAP_BYTES];
        for (place, _) in self.iter() {
            map[place / 8] |= 1 << (place % 8);
        }
        bytes.extend_from_slice(&map);
        for (_, hash) in self.iter() {
            bytes.extend_from_slice(&hash);
        }
        bytes
    }

    /// Reads a page of that level, of which the first `places` may have a hash.
    ///
    /// # Errors
    /// It is no such page.
    pub fn parse(bytes: &[u8], level: Level, places: usize) -> Result<Self, String> {
        let mut fields = Fields::open(bytes, MAGIC)?;
        let found = fields.u32()?;
        if found != level as u32 {
            return Err(format!("it is a page of level {found}, expected {}", level as u32));
        }
        let map = fields.take(MAP_BYTES)?;
        let mut page = Self::new(level);
        for place in 0..PLACES {
            if map[place / 8] >> (place % 8) & 1 == 0 {
                continue;
            }
            if place >= places {
                return Err(format!("it names place {place}, the volume ends at {places}"));
            }
            page.hashes[place] = Some(fields.array()?);
        }
        fields.end()?;
        Ok(page)
    }
}

/// How many of `total` things lie in the run of `each` that has this number.
pub(super) fn share(total: u64, each: u64, number: u64) -> u64 {
    total.saturating_sub(number * each).min(each)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Page {
        let mut page = Page::new(Level::Leaf);
        for place in [0, 7, 8, 4095] {
            page.set(place, Some([place as u8; 32]));
        }
        page
    }

    #[test]
    fn pages_are_read_as_they_were_written() {
        for page in [some(), Page::new(Level::Inner)] {
            assert_eq!(Page::parse(&page.encode(), page.level, PLACES).unwrap(), page);
        }
        assert!(Page::new(Level::Leaf).is_empty() && !some().is_empty());
        let full = Page { level: Level::Leaf, hashes: vec![Some([1; 32]); PLACES] };
        assert_eq!(full.encode().len() as u64, PAGE_BYTES_MAX);
    }

    #[test]
    fn a_page_of_another_level_is_refused() {
        let error = Page::parse(&some().encode(), Level::Inner, PLACES).unwrap_err();
        assert_eq!(error, "it is a page of level 0, expected 1");
    }

    #[test]
    fn a_page_that_passes_the_volumes_end_is_refused() {
        assert!(Page::parse(&some().encode(), Level::Leaf, 4095).is_err());
    }

    #[test]
    fn a_page_whose_map_lies_is_refused() {
        let whole = some().encode();
        for bit in 0..MAP_BYTES * 8 {
            let mut bytes = whole.clone();
            bytes[16 + bit / 8] ^= 1 << (bit % 8);
            assert!(Page::parse(&bytes, Level::Leaf, PLACES).is_err(), "bit {bit}");
        }
        for length in 0..whole.len() {
            assert!(Page::parse(&whole[..length], Level::Leaf, PLACES).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!([share(10, 4, 0), share(10, 4, 2), share(10, 4, 3)], [4, 2, 0]);
    }
}
