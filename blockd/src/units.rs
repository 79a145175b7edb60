//! The store's units, as types: a block number cannot be passed for a cluster number.

use std::fmt;
use std::ops::Range;

/// The unit of ownership, zeroes and diffs.
pub const BLOCK_BYTES: u64 = 4096;
/// The unit of allocation.
pub const CLUSTER_BYTES: u64 = 65_536;
/// Blocks of a cluster, and bits of a [`Mask`].
pub const CLUSTER_BLOCKS: u32 = 16;
/// Largest volume: its clusters have 32-bit numbers.
pub const VOLUME_BYTES_MAX: u64 = CLUSTER_BYTES << 32;
/// Sizes of volumes are multiples of this.
pub const SIZE_UNIT_BYTES: u64 = 512;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A volume's number; never used again.
    VolumeId
);
number!(
    /// A layer's number; never used again.
    LayerId
);
number!(
    /// A snapshot's number; never used again.
    SnapshotId
);
number!(
    /// A cluster of a volume: bytes `n * 64 KiB ..`.
    ClusterIndex
);
number!(
    /// A cluster of the pool.
    PoolCluster
);

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}

identity!(
    /// What a volume and its replicas on other hosts have in common; nothing else has it.
    Lineage
);
identity!(
    /// A snapshot, on whichever hosts it exists.
    SnapshotUid
);
identity!(
    /// A host.
    HostId
);
identity!(
    /// One move of a virtual machine from a host to another; the same on both, random.
    MoveId
);

impl ClusterIndex {
    /// The cluster that holds a byte of a volume.
    ///
    /// # Panics
    /// When the offset passes [`VOLUME_BYTES_MAX`]: volumes are no larger.
    pub fn of(offset: u64) -> Self {
        Self(u32::try_from(offset / CLUSTER_BYTES).expect("an offset in a volume"))
    }

    /// Its first byte in the volume.
    pub fn start(self) -> u64 {
        u64::from(self.0) * CLUSTER_BYTES
    }
}

/// Clusters of a volume of `size` bytes, the last one counted even if it is cut short.
pub fn cluster_count(size: u64) -> u64 {
    size.div_ceil(CLUSTER_BYTES)
}

/// A set of blocks of one cluster: bit *b* is block *b*.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mask(pub u16);

impl Mask {
    /// No block.
    pub const NONE: Self = Self(0);
    /// Every block.
    pub const ALL: Self = Self(u16::MAX);

    /// The blocks of a range.
    pub fn of(blocks: Range<u32>) -> Self {
        let below = |end: u32| ((1u32 << end) - 1) as u16;
        Self(below(blocks.end) & !below(blocks.start))
    }

    /// Whether no block is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a block is in it.
    pub fn has(self, block: u32) -> bool {
        self.0 >> block & 1 == 1
    }

    /// Whether every block of `other` is in it.
    pub fn contains(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// The blocks in either.
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The blocks in it that are not in `other`.
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The blocks in both.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// How many blocks are in it.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The longest run that begins at `block`: its end, and whether its blocks are in the set.
    pub fn run(self, block: u32) -> (u32, bool) {
        let inside = self.has(block);
        let bits = if inside { self.0 } else { !self.0 };
        let length = (!(bits >> block)).trailing_zeros().min(CLUSTER_BLOCKS - block);
        (block + length, inside)
    }

    /// The runs of blocks in it, in order.
    pub fn runs(self) -> impl Iterator<Item = Range<u32>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            while at < CLUSTER_BLOCKS {
                let (end, inside) = self.run(at);
                let run = at..end;
                at = end;
                if inside {
                    return Some(run);
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_sets_of_blocks() {
        assert_eq!(Mask::of(0..16), Mask::ALL);
        assert_eq!(Mask::of(3..3), Mask::NONE);
        assert_eq!(Mask::of(1..3), Mask(0b110));
        assert_eq!(Mask(0b110).run(0), (1, false));
        assert_eq!(Mask(0b110).run(1), (3, true));
        assert_eq!(Mask(0b110).run(3), (16, false));
        assert_eq!(Mask::ALL.run(0), (16, true));
        assert_eq!(Mask(0x8005).runs().collect::<Vec<_>>(), [0..1, 2..3, 15..16]);
        assert!(Mask::NONE.runs().next().is_none());
    }
}
