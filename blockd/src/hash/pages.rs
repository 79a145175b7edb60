//! The tree over a volume cut into pages, as it is kept between one snapshot's hash and the next.
//!
//! ```text
//!  group 1   [ 32 values: each of 32 clusters = one page of group 0 ]      a page stands for 32 ^ (group + 1) clusters
//!               │        │   ...
//!  group 0   [ 32 values: each of one cluster ] [ ... ] ...
//! ```
//!
//! The value of a page is that of its 32 values merged: five levels of the tree. The tree has no end: values are of
//! whole clusters, after the volume there are zeroes, so that it stays as it is when the volume grows. The root is made
//! of what lies whole before the volume's end ([`Shape::parts`]), and of the last cluster if it is cut short.

use std::ops::Range;

use super::Value;
use super::tree::merge;
use crate::units::CLUSTER_BYTES;

/// Values of a page.
pub(crate) const SLOTS: usize = 32;
/// Levels of the tree in a page: `SLOTS` is two to the power of it.
const SLOT_LEVELS: u32 = 5;
/// Groups that the largest volume needs: a page of the last one has more clusters than it.
const GROUPS: u32 = 7;
/// Bytes of a page.
pub(crate) const PAGE_BYTES: u64 = 1024;
/// Bytes before the first page.
pub(crate) const HEADER_BYTES: u64 = 4096;

/// The value of a power of two of subtrees of one size, side by side.
///
/// # Panics
/// When there are none.
pub(crate) fn merge_all(values: &[Value]) -> Value {
    match values {
        [value] => *value,
        [left, right] => merge(left, right),
        _ => {
            let (left, right) = values.split_at(values.len() / 2);
            merge(&merge_all(left), &merge_all(right))
        }
    }
}

/// Which page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// How many groups lie below.
    pub(crate) group: u32,
    /// Its number in the group.
    pub(crate) index: u64,
}

impl Place {
    /// The page of a group that a cluster belongs to.
    pub(crate) fn of(cluster: u64, group: u32) -> Self {
        Self { group, index: cluster >> (SLOT_LEVELS * (group + 1)) }
    }

    /// The level of its values in the tree: each is of `1 << level` clusters.
    pub(crate) fn level(self) -> u32 {
        SLOT_LEVELS * self.group
    }

    /// The clusters of all its values.
    pub(crate) fn clusters(self) -> Range<u64> {
        let bits = SLOT_LEVELS * (self.group + 1);
        self.index << bits..(self.index + 1) << bits
    }

    /// The clusters of one of its values.
    pub(crate) fn slot(self, slot: usize) -> Range<u64> {
        let number = self.index * SLOTS as u64 + slot as u64;
        number << self.level()..(number + 1) << self.level()
    }

    /// How many of its values, the first ones, are of clusters before `end` only.
    pub(crate) fn slots_before(self, end: u64) -> usize {
        let slots = (end >> self.level()).saturating_sub(self.index * SLOTS as u64);
        usize::try_from(slots.min(SLOTS as u64)).expect("at most those of a page")
    }

    /// The page that has this one's value, and which of its values that is.
    pub(crate) fn parent(self) -> (Self, usize) {
        let slot = usize::try_from(self.index % SLOTS as u64).expect("at most those of a page");
        (Self { group: self.group + 1, index: self.index / SLOTS as u64 }, slot)
    }

    /// Where it lies in the file. A page comes before those that it is made of, which follow in order: the file is
    /// about as long as the volume needs, and need not change when the volume grows.
    pub(crate) fn offset(self) -> u64 {
        if self.group + 1 == GROUPS {
            return HEADER_BYTES;
        }
        let (parent, slot) = self.parent();
        // Itself, and all that it is made of: 1 + 32 + 32 * 32 ...
        let pages = ((1 << (SLOT_LEVELS * (self.group + 1))) - 1) / (SLOTS as u64 - 1);
        parent.offset() + PAGE_BYTES + slot as u64 * pages * PAGE_BYTES
    }
}

/// What a volume's size makes of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes.
    pub(crate) size: u64,
    /// Clusters that are not cut short by the end.
    pub(crate) whole: u64,
}

impl Shape {
    /// Of a volume of `size` bytes; of none, with 0.
    pub(crate) fn of(size: u64) -> Self {
        Self { size, whole: size / CLUSTER_BYTES }
    }

    /// Clusters, the last one counted even if it is cut short.
    pub(crate) fn clusters(self) -> u64 {
        self.size.div_ceil(CLUSTER_BYTES)
    }

    /// Bytes of the last cluster, if it is cut short.
    pub(crate) fn tail(self) -> Option<usize> {
        let bytes = usize::try_from(self.size % CLUSTER_BYTES).expect("less than a cluster");
        (bytes > 0).then_some(bytes)
    }

    /// The group of the page that has all whole clusters, and room for one more.
    pub(crate) fn top(self) -> u32 {
        (0..GROUPS)
            .find(|&group| Place { group, index: 0 }.clusters().end > self.whole)
            .expect("a volume's size")
    }

    /// The pages whose first so many values make the root, in order; a last cluster that is cut short follows.
    pub(crate) fn parts(self) -> Vec<(Place, usize)> {
        let edge = |group| {
            let place = Place::of(self.whole, group);
            (place, place.slots_before(self.whole))
        };
        let parts: Vec<_> = (0..=self.top()).rev().map(edge).filter(|&(_, slots)| slots > 0).collect();
        match (parts[..].first(), self.tail()) {
            // One value for all would be the root's, which is made otherwise: of the page below.
            (Some(&(place, 1)), None) if parts.len() == 1 && place.group > 0 => {
                vec![(Place { group: place.group - 1, index: 0 }, SLOTS)]
            }
            _ => parts,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Two pages in one place would be a wrong root, were they not compared with what lies above.
    #[test]
    fn every_page_has_a_place_of_its_own() {
        let mut seen = BTreeSet::new();
        for group in 0..GROUPS {
            for index in 0..(1 << 16 >> (SLOT_LEVELS * group)).max(1) {
                let offset = Place { group, index }.offset();
                assert!(offset >= HEADER_BYTES && offset.is_multiple_of(PAGE_BYTES));
                assert!(seen.insert(offset), "{group} {index}");
            }
        }
        let last = seen.last().unwrap();
        assert!(*last < HEADER_BYTES + PAGE_BYTES * (seen.len() as u64 + 1), "no gaps: {last}");
        let end = Place::of(u64::from(u32::MAX), 0).offset();
        assert!(end < 34 * (1 << 32) && Place::of(u64::from(u32::MAX), 0).parent().0.offset() < end);
    }

    #[test]
    fn the_parts_are_all_whole_clusters_in_order() {
        let sizes =
            (1..3000).chain([32_767, 32_768, 32_769, 1 << 20, 1 << 25, 1 << 30, (1 << 32) - 1, 1 << 32]);
        for whole in sizes {
            for tail in [0, 512] {
                let shape = Shape::of(whole * CLUSTER_BYTES + tail);
                let mut next = 0;
                for (place, slots) in shape.parts() {
                    assert!((1..=SLOTS).contains(&slots));
                    for slot in 0..slots {
                        assert_eq!(place.slot(slot).start, next);
                        next = place.slot(slot).end;
                    }
                }
                assert_eq!(next, whole);
                let values = shape.parts().iter().map(|(_, slots)| slots).sum::<usize>();
                assert!(whole == 1 || values + usize::from(tail > 0) > 1, "{whole}");
            }
        }
    }
}
