//! A map's pages as bytes, for the checkpoint: docs/on-disk-format.md, "checkpoint".
//!
//! What is written depends on the content alone, not on how the map came to it: generations are reduced to "open"
//! or not, and rows of the side table follow their page. What is read is checked as if nobody had checked it before.

use smallvec::SmallVec;

use super::packed::{Kind, NO_GENERATION, PAGE_ENTRIES, Packed56, Page};
use super::{Entry, FlatMap, HeadPart, Packed, Source, encode_small};
use crate::catalog::format::NO_CLUSTER;
use crate::units::{CLUSTER_BLOCKS, ClusterIndex, Mask, PoolCluster};

/// Number of the page, and its entries; rows follow.
const FIXED_BYTES: usize = 4 + PAGE_ENTRIES * 8;
/// An older part in a row.
const OLDER_BYTES: usize = 10;
/// "Open" in a written entry, and the generation of a map that is new.
const OPEN: u8 = 1;
/// Kinds of written entries.
const HOLE: u8 = 0;
const SINGLE: u8 = 1;
const ZEROED: u8 = 2;
const SIDE: u8 = 3;

/// Why bytes are no page of a map.
pub(crate) type PageFault = &'static str;

const CUT_SHORT: PageFault = "a page of a map is cut short";
const BAD_ENTRY: PageFault = "an entry of a map cannot be";
const BAD_ROW: PageFault = "a row of a map cannot be";

impl Entry {
    /// The same without what makes no difference: a head part that says nothing, the order of the older parts.
    fn normalized(mut self) -> Self {
        self.head = self.head.filter(|head| *head != HeadPart::default());
        self.older.sort_unstable_by_key(|source| (source.cluster, source.shown.0));
        self
    }
}

impl FlatMap {
    /// Pages that may hold anything.
    pub fn page_numbers(&self) -> impl Iterator<Item = u32> {
        let present = self.pages.iter().zip(0..).filter(|(page, _)| page.is_some());
        present.map(|(_, number)| number)
    }

    /// Appends a page's bytes; none if it holds nothing.
    pub fn encode_page(&self, number: u32, bytes: &mut Vec<u8>) {
        let Some(page) = &self.pages[number as usize] else { return };
        let start = bytes.len();
        bytes.extend_from_slice(&number.to_le_bytes());
        let mut rows = Vec::new();
        for raw in page.iter() {
            bytes.extend_from_slice(&self.written(raw, &mut rows).to_le_bytes());
        }
        if bytes[start + 4..].iter().all(|byte| *byte == 0) {
            bytes.truncate(start);
        }
        bytes.append(&mut rows);
    }

    /// An entry as it is written; its row, if it has one, is appended to the rows.
    fn written(&self, raw: Packed56, rows: &mut Vec<u8>) -> u64 {
        let open = raw.generation() == self.generation;
        if raw == Packed56::HOLE {
            return 0;
        }
        if raw.kind() == Kind::Single && open {
            return Written { kind: SINGLE, generation: OPEN, mask: raw.mask(), number: raw.number() }.bits();
        }
        let entry = self.entry(raw).normalized();
        let small = encode_small(&entry, OPEN).and_then(Written::small);
        let row = Written { kind: SIDE, generation: NO_GENERATION, mask: Mask::NONE, number: 0 };
        if small.is_none() {
            write_row(&entry, rows);
        }
        small.unwrap_or(row).bits()
    }

    /// Takes a page as it was written; the map is new, and its pages come in order.
    ///
    /// # Errors
    /// The bytes are no page of this map, or name clusters that a pool of `pool_clusters` does not have. The map is
    /// of no use then.
    pub fn decode_page(&mut self, bytes: &[u8], pool_clusters: u32) -> Result<(), PageFault> {
        let (number, rest) = bytes.split_first_chunk().ok_or(CUT_SHORT)?;
        let (entries, rows) = rest.split_at_checked(FIXED_BYTES - 4).ok_or(CUT_SHORT)?;
        let number = u32::from_le_bytes(*number) as usize;
        match self.pages.get(number..) {
            Some([None, later @ ..]) if later.iter().all(Option::is_none) => {}
            _ => return Err("a page of a map is out of order, or beyond its end"),
        }
        let mut rows = Rows { bytes: rows, pool_clusters };
        let page = entries.as_chunks().0.iter();
        let page = Page::of(page.map(|entry| self.read(u64::from_le_bytes(*entry), &mut rows)))?;
        let inside = usize::try_from(self.clusters).map_err(|_| CUT_SHORT)? - number * PAGE_ENTRIES;
        let beyond = page.iter().skip(inside).any(|raw| raw != Packed56::HOLE);
        if beyond || !rows.bytes.is_empty() {
            return Err("a page of a map has more than its clusters");
        }
        self.pages[number] = Some(page);
        Ok(())
    }

    /// An entry as it is kept, counted.
    fn read(&mut self, bits: u64, rows: &mut Rows<'_>) -> Result<Packed56, PageFault> {
        let Written { kind, generation, mask, number } =
            Written::of(bits).filter(|written| written.is_sound(rows.pool_clusters)).ok_or(BAD_ENTRY)?;
        match kind {
            SINGLE => {
                self.visible_blocks += u64::from(mask.count());
                self.head_clusters += u64::from(generation == OPEN);
                Ok(Packed56::new(Kind::Single, generation, mask, number))
            }
            SIDE => self.read_row(rows),
            ZEROED => Ok(Packed56::new(Kind::Zeroed, generation, mask, 0)),
            _ => Ok(Packed56::HOLE),
        }
    }

    fn read_row(&mut self, rows: &mut Rows<'_>) -> Result<Packed56, PageFault> {
        let entry = rows.next()?;
        self.count(&Entry::default(), &entry);
        Ok(self.encode(Packed56::HOLE, entry))
    }

    /// The first cluster of which the two maps do not say the same; the end of the shorter one, if they differ in
    /// length alone.
    pub fn first_difference(&self, other: &Self) -> Option<ClusterIndex> {
        let clusters = self.clusters.min(other.clusters);
        let at = |cluster: u64| ClusterIndex(u32::try_from(cluster).unwrap_or(u32::MAX));
        let differs = |cluster: &u64| {
            let page = *cluster as usize / PAGE_ENTRIES;
            let holes = self.pages[page].is_none() && other.pages[page].is_none();
            !holes && self.get(at(*cluster)).normalized() != other.get(at(*cluster)).normalized()
        };
        let found = (0..clusters).find(differs);
        found.or((self.clusters != other.clusters).then_some(clusters)).map(at)
    }
}

/// A written entry: kind 3 bits, 5 of 0, generation 8, mask 16, number 32.
struct Written {
    kind: u8,
    generation: u8,
    mask: Mask,
    number: u32,
}

impl Written {
    fn bits(&self) -> u64 {
        let Self { kind, generation, mask, number } = *self;
        u64::from(kind) << 61 | u64::from(generation) << 48 | u64::from(mask.0) << 32 | u64::from(number)
    }

    /// `None`: bits are set that nobody uses.
    fn of(bits: u64) -> Option<Self> {
        let kind = (bits >> 61) as u8;
        let (generation, mask, number) = ((bits >> 48) as u8, Mask((bits >> 32) as u16), bits as u32);
        Some(Self { kind, generation, mask, number }).filter(|written| written.bits() == bits)
    }

    /// An entry that needs no row.
    fn small(raw: Packed56) -> Option<Self> {
        let kind = match raw.kind() {
            _ if raw == Packed56::HOLE => HOLE,
            Kind::Single => SINGLE,
            Kind::Zeroed => ZEROED,
            Kind::Side | Kind::Pair => return None,
        };
        Some(Self { kind, generation: raw.generation(), mask: raw.mask(), number: raw.number() })
    }

    /// Whether it can be what was written.
    fn is_sound(&self, pool_clusters: u32) -> bool {
        let Self { kind, generation, mask, number } = *self;
        let (open, closed) = (generation == OPEN, generation == NO_GENERATION);
        match kind {
            HOLE => self.bits() == 0,
            SINGLE => number < pool_clusters && (open || (closed && !mask.is_empty())),
            ZEROED => open && number == 0 && !mask.is_empty(),
            SIDE => closed && number == 0 && mask.is_empty(),
            _ => false,
        }
    }
}

fn write_row(entry: &Entry, rows: &mut Vec<u8>) {
    let older = u8::try_from(entry.older.len()).expect("older parts show disjoint blocks: 16 at most");
    rows.extend_from_slice(&[u8::from(entry.head.is_some()), older]);
    if let Some(HeadPart { cluster, data, zero }) = entry.head {
        rows.extend_from_slice(&cluster.map_or(NO_CLUSTER, |cluster| cluster.0).to_le_bytes());
        rows.extend_from_slice(&data.0.to_le_bytes());
        rows.extend_from_slice(&zero.0.to_le_bytes());
    }
    for Source { cluster, shown, packed } in &entry.older {
        let (first, data) = packed.map_or((0, Mask::NONE), |packed| (packed.first + 1, packed.data));
        rows.extend_from_slice(&cluster.0.to_le_bytes());
        rows.extend_from_slice(&shown.0.to_le_bytes());
        rows.extend_from_slice(&[first, 0]);
        rows.extend_from_slice(&data.0.to_le_bytes());
    }
}

/// Rows that are still to be read.
struct Rows<'a> {
    bytes: &'a [u8],
    pool_clusters: u32,
}

impl Rows<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], PageFault> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(CUT_SHORT)?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn next(&mut self) -> Result<Entry, PageFault> {
        let [has_head, older] = self.take()?;
        let head = match has_head {
            0 => None,
            1 => Some(self.head()?),
            _ => return Err(BAD_ROW),
        };
        let mut entry = Entry { head, older: SmallVec::new() };
        let mut decided = head.map_or(Mask::NONE, |head| head.data.with(head.zero));
        for _ in 0..older {
            let source = self.older()?;
            if source.shown.is_empty() || !source.shown.and(decided).is_empty() {
                return Err(BAD_ROW);
            }
            decided = decided.with(source.shown);
            entry.older.push(source);
        }
        Ok(entry)
    }

    fn head(&mut self) -> Result<HeadPart, PageFault> {
        let [a, b, c, d, data_low, data_high, zero_low, zero_high] = self.take()?;
        let cluster = u32::from_le_bytes([a, b, c, d]);
        let cluster = (cluster != NO_CLUSTER).then_some(cluster);
        let data = Mask(u16::from_le_bytes([data_low, data_high]));
        let zero = Mask(u16::from_le_bytes([zero_low, zero_high]));
        let known = cluster.map_or(data.is_empty(), |cluster| cluster < self.pool_clusters);
        if !known || !data.and(zero).is_empty() {
            return Err(BAD_ROW);
        }
        Ok(HeadPart { cluster: cluster.map(PoolCluster), data, zero })
    }

    fn older(&mut self) -> Result<Source, PageFault> {
        let bytes: [u8; OLDER_BYTES] = self.take()?;
        let [a, b, c, d, shown_low, shown_high, first, padding, data_low, data_high] = bytes;
        let cluster = u32::from_le_bytes([a, b, c, d]);
        let shown = Mask(u16::from_le_bytes([shown_low, shown_high]));
        let data = Mask(u16::from_le_bytes([data_low, data_high]));
        let packed = first.checked_sub(1).map(|first| Packed { data, first });
        let sound = match packed {
            None => data.is_empty(),
            Some(Packed { data, first }) => {
                data.contains(shown) && u32::from(first) + data.count() <= CLUSTER_BLOCKS
            }
        };
        if !sound || padding != 0 || cluster >= self.pool_clusters {
            return Err(BAD_ROW);
        }
        Ok(Source { cluster: PoolCluster(cluster), shown, packed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: u32 = 1000;

    fn random_entry(rng: &mut fastrand::Rng) -> Entry {
        let mut left = Mask::ALL;
        let mut part = |rng: &mut fastrand::Rng| {
            let mask = Mask(rng.u16(..)).and(Mask(rng.u16(..))).and(left);
            left = left.without(mask);
            mask
        };
        let cluster = |rng: &mut fastrand::Rng| PoolCluster(rng.u32(..POOL));
        let mut entry = Entry::default();
        if rng.bool() {
            let has_cluster = rng.bool();
            let data = if has_cluster { part(rng) } else { Mask::NONE };
            let zero = if rng.bool() { part(rng) } else { Mask::NONE };
            entry.head = Some(HeadPart { cluster: has_cluster.then(|| cluster(rng)), data, zero });
        }
        for _ in 0..rng.u8(..4) {
            let shown = part(rng);
            let packed = (rng.bool() && !shown.is_empty()).then_some(Packed { data: shown, first: 0 });
            entry.older.push(Source { cluster: cluster(rng), shown, packed });
        }
        entry.older.retain(|source| !source.shown.is_empty());
        entry
    }

    /// A map with a past: entries set, set again, and cuts between them.
    fn random_map(seed: u64) -> FlatMap {
        let mut rng = fastrand::Rng::with_seed(seed);
        let clusters = 3 * PAGE_ENTRIES as u64 + 100;
        let mut map = FlatMap::new(clusters);
        for _ in 0..4 {
            for _ in 0..500 {
                // The pages between stay empty.
                let at = if rng.bool() { rng.u64(..200) } else { clusters - 1 - rng.u64(..300) };
                map.set(ClusterIndex(at as u32), random_entry(&mut rng));
            }
            map.cut();
        }
        for _ in 0..rng.u32(..300) {
            map.cut();
        }
        map.set(ClusterIndex(7), random_entry(&mut rng));
        map
    }

    fn pages(map: &FlatMap) -> Vec<Vec<u8>> {
        let encode = |number| {
            let mut bytes = Vec::new();
            map.encode_page(number, &mut bytes);
            bytes
        };
        map.page_numbers().map(encode).filter(|bytes| !bytes.is_empty()).collect()
    }

    fn read_back(map: &FlatMap, pages: &[Vec<u8>]) -> Result<FlatMap, PageFault> {
        let mut read = FlatMap::new(map.clusters());
        pages.iter().try_for_each(|page| read.decode_page(page, POOL))?;
        Ok(read)
    }

    #[test]
    fn a_map_is_read_as_it_was_written() {
        for seed in 0..40 {
            let map = random_map(seed);
            let written = pages(&map);
            let read = read_back(&map, &written).unwrap();
            assert_eq!(map.first_difference(&read), None, "seed {seed}");
            assert_eq!(map.visible_blocks(), read.visible_blocks());
            assert_eq!(map.head_clusters(), read.head_clusters());
            assert!(pages(&read) == written, "the bytes are of the content alone");
        }
    }

    #[test]
    fn any_change_makes_a_difference() {
        let (mut map, before) = (random_map(1), random_map(1));
        let at = ClusterIndex(PAGE_ENTRIES as u32 + 5);
        let head = HeadPart { zero: Mask(1), ..HeadPart::default() };
        map.set(at, Entry { head: Some(head), ..Entry::default() });
        assert_eq!(map.first_difference(&before), Some(at));
        map = random_map(1);
        map.grow(before.clusters() + 1);
        assert_eq!(map.first_difference(&before), Some(ClusterIndex(before.clusters() as u32)));
    }

    /// One that is refused must not be refused for something else: each differs in one thing from one that is read.
    #[test]
    fn each_way_an_entry_cannot_be_is_refused() {
        let entry = |kind: u64, generation: u64, mask: u64, number: u64| {
            kind << 61 | generation << 48 | mask << 32 | number
        };
        let (kind, open, last) = (u64::from, u64::from(OPEN), u64::from(POOL) - 1);
        let read = |bits: u64| {
            let mut map = FlatMap::new(1);
            map.read(bits, &mut Rows { bytes: &[], pool_clusters: POOL }).map(|_| ())
        };
        let sound = [
            entry(kind(HOLE), 0, 0, 0),
            entry(kind(SINGLE), open, 0, last),
            entry(kind(SINGLE), 0, 1, last),
            entry(kind(ZEROED), open, 1, 0),
        ];
        sound.into_iter().for_each(|bits| assert_eq!(read(bits), Ok(()), "{bits:x}"));
        let unsound = [
            entry(kind(HOLE), 0, 0, 1),
            entry(kind(HOLE), 0, 1, 0),
            entry(kind(HOLE), open, 0, 0),
            entry(kind(SINGLE), open, 0, last + 1),
            entry(kind(SINGLE), 0, 0, last),
            entry(kind(SINGLE), open + 1, 1, last),
            entry(kind(ZEROED), 0, 1, 0),
            entry(kind(ZEROED), open, 0, 0),
            entry(kind(ZEROED), open, 1, 1),
            entry(kind(SIDE), open, 0, 0),
            entry(kind(SIDE), 0, 1, 0),
            entry(kind(SIDE), 0, 0, 1),
            entry(kind(SIDE) + 1, 0, 0, 0),
        ];
        unsound.into_iter().for_each(|bits| assert_eq!(read(bits), Err(BAD_ENTRY), "{bits:x}"));
        for unused in 56..61 {
            assert_eq!(
                read(entry(kind(SINGLE), open, 1, last) | 1 << unused),
                Err(BAD_ENTRY),
                "bit {unused}"
            );
        }
    }

    /// Checksums stand before this; it must bear anything all the same.
    #[test]
    fn damaged_pages_are_refused_or_read_never_a_panic() {
        let map = random_map(2);
        let written = pages(&map);
        let mut rng = fastrand::Rng::with_seed(2);
        for _ in 0..2000 {
            let mut damaged = written.clone();
            let page = rng.usize(..damaged.len());
            let bytes = &mut damaged[page];
            match rng.u8(..4) {
                0 => bytes.truncate(rng.usize(..bytes.len())),
                1 => bytes.push(rng.u8(..)),
                _ => {
                    let at = if rng.bool() { rng.usize(..bytes.len()) } else { rng.usize(..8 * 200) };
                    bytes[at] ^= 1 << rng.u8(..8);
                }
            }
            if let Ok(read) = read_back(&map, &damaged) {
                // All that it says can be asked for.
                read.mapped_from(0).for_each(|cluster| drop(read.get(cluster)));
            }
        }
        assert!(read_back(&map, &[written[1].clone(), written[0].clone()]).is_err());
        assert!(read_back(&map, &[written[0].clone(), written[0].clone()]).is_err());
        assert_eq!(read_back(&map, &[Vec::new()]).unwrap_err(), CUT_SHORT);
    }
}
