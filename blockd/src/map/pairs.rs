//! Rows of clusters whose blocks come from two places, sixteen bytes each: with the seven of the entry, 368 MiB per TiB where
//! all clusters are such.
//!
//! One of the two is plain, blocks in place; it comes first (*top*), and its data mask stands in the entry. If the entry is of the
//! open layer it is the head's part. The other is an older part, plain or packed. All else goes to the side table.

use smallvec::smallvec;

use super::{Entry, HeadPart, Packed, Source};
use crate::units::{Mask, PoolCluster};

/// Rows of a page: 8 KiB, what a map with one row in it has to hold. Pages are never moved, so that growing costs no
/// second copy of all rows.
const PAGE_ROWS: usize = 512;
/// Ends the list of free rows.
const NO_ROW: u32 = u32::MAX;

/// A cluster of two parts, but for what stands in its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// Where the first part's data lie; of a free row, the next free one.
    top: u32,
    base: u32,
    /// What the first part has made zero, if it is the head's.
    zero: Mask,
    /// What shows of the second.
    shown: Mask,
    /// Of a packed second part: see [`Packed`].
    packed_data: Mask,
    /// The same, and one more; 0 if it is plain.
    packed_first: u8,
}

const _: () = assert!(size_of::<Pair>() == 16);

impl Pair {
    /// The mask for the entry, and the row; `None` if the entry is no pair.
    pub(super) fn of(entry: &Entry) -> Option<(Mask, Self)> {
        match (entry.head, &entry.older[..]) {
            (Some(HeadPart { cluster: Some(top), data, zero }), [base]) => {
                Some((data, Self::new(top, zero, base)))
            }
            (None, [top @ Source { packed: None, .. }, base] | [base, top @ Source { packed: None, .. }]) => {
                Some((top.shown, Self::new(top.cluster, Mask::NONE, base)))
            }
            _ => None,
        }
    }

    fn new(top: PoolCluster, zero: Mask, base: &Source) -> Self {
        let (packed_data, packed_first) =
            base.packed.map_or((Mask::NONE, 0), |packed| (packed.data, packed.first + 1));
        Self { top: top.0, base: base.cluster.0, zero, shown: base.shown, packed_data, packed_first }
    }

    /// Where the first part's data lie.
    pub(super) fn top(&self) -> PoolCluster {
        PoolCluster(self.top)
    }

    /// The entry, its first part being the head's.
    pub(super) fn entry(&self, data: Mask) -> Entry {
        let packed = self.packed_first.checked_sub(1).map(|first| Packed { data: self.packed_data, first });
        let base = Source { cluster: PoolCluster(self.base), shown: self.shown, packed };
        let head = HeadPart { cluster: Some(self.top()), data, zero: self.zero };
        Entry { head: Some(head), older: smallvec![base] }
    }
}

/// The table.
pub(super) struct Pairs {
    pages: Vec<Box<[Pair]>>,
    /// Rows that were ever used; those behind are free.
    end: u32,
    /// The first free row before `end`.
    free: u32,
    len: usize,
}

impl Pairs {
    pub(super) fn new() -> Self {
        Self { pages: Vec::new(), end: 0, free: NO_ROW, len: 0 }
    }

    /// Rows in use.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of memory, about.
    pub(super) fn memory_bytes(&self) -> usize {
        self.pages.len() * PAGE_ROWS * size_of::<Pair>()
    }

    pub(super) fn get(&self, row: u32) -> Pair {
        let row = row as usize;
        self.pages[row / PAGE_ROWS][row % PAGE_ROWS]
    }

    pub(super) fn set(&mut self, row: u32, pair: Pair) {
        let row = row as usize;
        self.pages[row / PAGE_ROWS][row % PAGE_ROWS] = pair;
    }

    /// Takes a free row.
    ///
    /// # Panics
    /// With more rows than a volume can have clusters.
    pub(super) fn insert(&mut self, pair: Pair) -> u32 {
        self.len += 1;
        if self.free != NO_ROW {
            let row = self.free;
            self.free = self.get(row).top;
            self.set(row, pair);
            return row;
        }
        let row = self.end;
        assert!(row < NO_ROW, "no more rows than clusters");
        if row as usize == self.pages.len() * PAGE_ROWS {
            self.pages.push(vec![pair; PAGE_ROWS].into_boxed_slice());
        }
        self.end += 1;
        self.set(row, pair);
        row
    }

    /// Gives a row back.
    pub(super) fn remove(&mut self, row: u32) -> Pair {
        let pair = self.get(row);
        self.set(row, Pair { top: self.free, ..pair });
        self.free = row;
        self.len -= 1;
        if self.len == 0 {
            // Nobody needs the memory of a past that is gone.
            *self = Self::new();
        }
        pair
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FlatMap, MapRecord};
    use super::*;
    use crate::units::ClusterIndex;

    fn source(cluster: u32, shown: u16, packed: Option<Packed>) -> Source {
        Source { cluster: PoolCluster(cluster), shown: Mask(shown), packed }
    }

    fn pair(top: u32) -> Pair {
        Pair::new(PoolCluster(top), Mask::NONE, &source(top + 1, 2, None))
    }

    #[test]
    fn a_head_over_anything_is_a_pair() {
        for packed in
            [None, Some(Packed { data: Mask(0b1100), first: 0 }), Some(Packed { data: Mask(6), first: 13 })]
        {
            let head = HeadPart { cluster: Some(PoolCluster(7)), data: Mask(1), zero: Mask(0x8000) };
            let entry = Entry { head: Some(head), older: smallvec![source(9, 0b100, packed)] };
            let (data, pair) = Pair::of(&entry).unwrap();
            assert_eq!(pair.entry(data), entry);
        }
    }

    #[test]
    fn of_two_older_parts_a_plain_one_comes_first() {
        let packed = source(9, 6, Some(Packed { data: Mask(6), first: 3 }));
        let plain = source(8, 1, None);
        for older in [[packed, plain], [plain, packed]] {
            let (data, pair) = Pair::of(&Entry { head: None, older: older.into() }).unwrap();
            let mut closed = pair.entry(data);
            closed.close_head();
            assert_eq!(closed, Entry { head: None, older: smallvec![packed, plain] });
        }
        assert_eq!(Pair::of(&Entry { head: None, older: smallvec![packed, packed] }), None);
        assert_eq!(Pair::of(&Entry { head: None, older: smallvec![plain] }), None);
        let zeroed = HeadPart { cluster: None, data: Mask::NONE, zero: Mask(1) };
        assert_eq!(Pair::of(&Entry { head: Some(zeroed), older: smallvec![plain] }), None);
    }

    #[test]
    fn two_places_cost_sixteen_bytes_a_cluster() {
        let clusters = 4 * PAGE_ROWS as u32;
        let mut map = FlatMap::new(u64::from(clusters));
        let data = |at: u32, data| MapRecord { cluster: Some(PoolCluster(at)), data, ..MapRecord::default() };
        (0..clusters).for_each(|at| assert!(map.show(ClusterIndex(at), &data(at, Mask::ALL), true)));
        let single = map.memory_bytes();
        map.cut();
        for at in 0..clusters {
            assert!(map.show(ClusterIndex(at), &data(clusters + at, Mask(4)), true));
            assert_eq!(map.owned(ClusterIndex(at), Mask(4)), Some(PoolCluster(clusters + at)));
            assert_eq!(map.owned(ClusterIndex(at), Mask(5)), None);
        }
        assert_eq!((map.pair_rows(), map.side_rows()), (clusters as usize, 0));
        assert_eq!(map.memory_bytes(), single + clusters as usize * 16);
        // What is cut and swept is the same, and written whole it needs no rows.
        (0..200).for_each(|_| map.cut());
        assert_eq!((map.pair_rows(), map.visible_blocks()), (clusters as usize, u64::from(clusters) * 16));
        assert_eq!(map.owned(ClusterIndex(3), Mask(4)), None);
        (0..clusters).for_each(|at| assert!(map.show(ClusterIndex(at), &data(at, Mask::ALL), true)));
        assert_eq!(map.memory_bytes(), single);
    }

    #[test]
    fn rows_are_used_again_and_keep_what_they_hold() {
        let (mut pairs, mut rng) = (Pairs::new(), fastrand::Rng::with_seed(5));
        let mut held: Vec<(u32, u32)> = Vec::new();
        for number in 0..50_000 {
            if rng.u8(..3) > 0 || held.is_empty() {
                held.push((pairs.insert(pair(number)), number));
            } else {
                let (row, number) = held.swap_remove(rng.usize(..held.len()));
                assert_eq!(pairs.remove(row), pair(number));
            }
        }
        assert_eq!(pairs.len(), held.len());
        assert!(held.iter().all(|&(row, number)| pairs.get(row) == pair(number)));
        // It only grew; without the rows that were given back it would be twice as much.
        let most = (held.len() * 5 / 4 + PAGE_ROWS) * size_of::<Pair>();
        assert!(pairs.memory_bytes() <= most, "{} bytes for {} rows", pairs.memory_bytes(), held.len());
        held.drain(..).for_each(|(row, number)| assert_eq!(pairs.remove(row), pair(number)));
        assert_eq!((pairs.len(), pairs.memory_bytes()), (0, 0));
    }
}
