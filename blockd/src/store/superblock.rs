//! The first block of every pool file: it says which store the file belongs to, and where in the pool it lies.
//!
//! No I/O. Without it, two pool files swapped by a clumsy restore would be read as each other, and every block
//! served would be another's.

use crate::catalog::format::{FORMAT_VERSION, PoolFileRecord};
use crate::units::PoolCluster;

/// Bytes of a superblock; the rest of its cluster is zero.
pub const SUPERBLOCK_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"BLKDPOOL";
/// The checksum covers what lies before it.
const CRC_OFFSET: usize = 40;

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Index of the file in the pool.
    pub file: u16,
    /// Of the store.
    pub identity: [u8; 16],
    /// The file's first cluster, this one, in the pool.
    pub first: PoolCluster,
    /// Clusters in the file, this one included.
    pub clusters: u32,
}

/// Why a pool file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Written by a later program.
    #[error("FORMAT_NEWER: superblock of version {found}, this program knows {FORMAT_VERSION}")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Not a superblock, or damaged.
    #[error("POOL_MISMATCH: no valid superblock: {0}")]
    Damaged(&'static str),
    /// A superblock, but not this file's.
    #[error("POOL_MISMATCH: superblock's {what} is {found}, the catalog's {expected}")]
    Mismatch {
        /// Which field.
        what: &'static str,
        /// In the superblock.
        found: String,
        /// In the catalog.
        expected: String,
    },
}

impl Superblock {
    /// The superblock of a pool file as the catalog knows it.
    pub fn of(identity: [u8; 16], file: u16, record: &PoolFileRecord) -> Self {
        Self { file, identity, first: record.first, clusters: record.clusters }
    }

    /// Its bytes.
    pub fn encode(&self) -> [u8; SUPERBLOCK_BYTES] {
        let mut bytes = [0; SUPERBLOCK_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.file.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.identity);
        bytes[32..36].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.clusters.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        bytes[CRC_OFFSET..CRC_OFFSET + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What the bytes say.
    ///
    /// # Errors
    /// `Damaged` or `Newer`.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        if bytes.len() < SUPERBLOCK_BYTES {
            return Err(SuperblockError::Damaged("too short"));
        }
        if &bytes[..8] != MAGIC {
            return Err(SuperblockError::Damaged("wrong magic"));
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if u32_at(CRC_OFFSET) != crc32c::crc32c(&bytes[..CRC_OFFSET]) {
            return Err(SuperblockError::Damaged("wrong checksum"));
        }
        // After the checksum: a damaged version is damage, not a later program's.
        let version = u32_at(8);
        if version != FORMAT_VERSION {
            return Err(SuperblockError::Newer { found: version });
        }
        let mut identity = [0; 16];
        identity.copy_from_slice(&bytes[16..32]);
        let file = u16::from_le_bytes([bytes[12], bytes[13]]);
        Ok(Self { file, identity, first: PoolCluster(u32_at(32)), clusters: u32_at(36) })
    }

    /// Whether the bytes are this superblock.
    ///
    /// # Errors
    /// `Damaged` or `Newer`, or the first field that differs.
    pub fn check(&self, bytes: &[u8]) -> Result<(), SuperblockError> {
        let found = Self::decode(bytes)?;
        let identity = |identity: [u8; 16]| format!("{:032x}", u128::from_be_bytes(identity));
        same("identity", identity(found.identity), identity(self.identity))?;
        same("file index", found.file.to_string(), self.file.to_string())?;
        same("first cluster", found.first.to_string(), self.first.to_string())?;
        same("cluster count", found.clusters.to_string(), self.clusters.to_string())
    }
}

fn same(what: &'static str, found: String, expected: String) -> Result<(), SuperblockError> {
    if found == expected { Ok(()) } else { Err(SuperblockError::Mismatch { what, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            file: 0x0102,
            identity: *b"0123456789abcdef",
            first: PoolCluster(0x0A0B),
            clusters: 0x0C,
        }
    }

    #[test]
    fn the_bytes_are_as_drawn() {
        let bytes = superblock().encode();
        let expected = b"BLKDPOOL\x01\0\0\0\x02\x01\0\x000123456789abcdef\x0B\x0A\0\0\x0C\0\0\0";
        assert_eq!(&bytes[..40], expected);
        assert_eq!(bytes[40..44], crc32c::crc32c(expected).to_le_bytes());
        assert!(bytes[44..].iter().all(|byte| *byte == 0));
        assert_eq!(Superblock::decode(&bytes), Ok(superblock()));
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        for bit in 0..44 * 8 {
            let mut bytes = superblock().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = superblock().check(&bytes).unwrap_err();
            assert!(error.to_string().starts_with("POOL_MISMATCH: "), "bit {bit}: {error}");
        }
        assert!(superblock().check(&superblock().encode()[..4095]).is_err());
    }

    #[test]
    fn another_files_superblock_is_refused_with_both_values() {
        let good = superblock();
        let others = [
            (Superblock { file: 3, ..good }, "file index is 3, the catalog's 258"),
            (Superblock { identity: [0; 16], ..good }, "identity is 00000000000000000000000000000000"),
            (Superblock { first: PoolCluster(1), ..good }, "first cluster is 1, the catalog's 2571"),
            (Superblock { clusters: 13, ..good }, "cluster count is 13, the catalog's 12"),
        ];
        for (other, expected) in others {
            let error = good.check(&other.encode()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_later_version_is_named_as_such() {
        let mut bytes = superblock().encode();
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(superblock().check(&bytes), Err(SuperblockError::Newer { found: 2 }));
    }
}
