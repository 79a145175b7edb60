//! Reads RocksDB's manifest before RocksDB does.
//!
//! RocksDB 11.8 never returns from opening a manifest in which one bit of a record's type is flipped, so that it
//! looks like a record of a log that is used again: its reader refuses the record without going past it, and reads
//! it again for ever (`log::Reader::ReadPhysicalRecord`, the return before `recycled_` is set). A daemon that hangs
//! names nothing; so we look first.

use std::path::Path;

use crate::catalog::meta::MetaError;

/// Records do not cross the borders of blocks.
const BLOCK_BYTES: usize = 32 << 10;
/// Checksum u32, length u16, type u8; little-endian.
const HEADER_BYTES: usize = 7;
/// A whole record, or a first, middle or last part; 0 is space that was not written.
const TYPE_MAX: u8 = 4;

/// Whether each record of the manifest is one that a manifest can have. A tail that is cut short is left to RocksDB,
/// as is a manifest that is not there.
///
/// # Errors
/// `Damaged`, with the place.
pub(super) fn check(directory: &Path) -> Result<(), MetaError> {
    let Ok(current) = std::fs::read_to_string(directory.join("CURRENT")) else { return Ok(()) };
    let name = current.trim_end();
    // Anything else in CURRENT is damage, which RocksDB names.
    if !name.starts_with("MANIFEST-") || name.contains('/') {
        return Ok(());
    }
    let Ok(manifest) = std::fs::read(directory.join(name)) else { return Ok(()) };
    for (block, bytes) in manifest.chunks(BLOCK_BYTES).enumerate() {
        check_block(bytes).map_err(|at| {
            MetaError::Damaged(format!("{name} is damaged at byte {}", block * BLOCK_BYTES + at))
        })?;
    }
    Ok(())
}

/// The place of the first bad record.
fn check_block(block: &[u8]) -> Result<(), usize> {
    let mut at = 0;
    while let Some((header, rest)) = block[at..].split_first_chunk::<HEADER_BYTES>() {
        let [c0, c1, c2, c3, low, high, kind] = *header;
        let length = usize::from(u16::from_le_bytes([low, high]));
        if kind > TYPE_MAX {
            return Err(at);
        }
        // Not written; or cut short, at the end.
        let Some(payload) = rest.get(..length).filter(|_| kind != 0) else { return Ok(()) };
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&[kind]), payload);
        if masked(checksum) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(at);
        }
        at += HEADER_BYTES + length;
    }
    Ok(())
}

/// How RocksDB stores a checksum.
fn masked(checksum: u32) -> u32 {
    checksum.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::format::Change;
    use crate::catalog::meta::MetaStore;
    use crate::catalog::rocks::RocksMeta;

    /// A store and the path of its manifest, which has several edits.
    fn store() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("meta");
        let rocks = RocksMeta::open(&path, true).unwrap().with_reserve(0);
        for commit in 1..4 {
            rocks.write(&[Change::Commit(commit)]).unwrap();
            rocks.flush().unwrap();
        }
        drop(rocks);
        let current = std::fs::read_to_string(path.join("CURRENT")).unwrap();
        let manifest = path.join(current.trim_end());
        (directory, manifest)
    }

    #[test]
    fn a_manifest_of_rocksdb_is_sound_and_any_flipped_bit_of_a_type_is_found() {
        let (_directory, path) = store();
        let meta = path.parent().unwrap();
        check(meta).unwrap();
        let good = std::fs::read(&path).unwrap();
        let (mut at, mut records) = (0, 0);
        while at + HEADER_BYTES < good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at + 6] ^= 1 << bit;
                std::fs::write(&path, bad).unwrap();
                // A type of 0 ends the block for us; RocksDB finds the wrong checksum.
                let found = RocksMeta::open_read_only(meta);
                assert!(found.is_err(), "byte {} bit {bit}", at + 6);
            }
            at += HEADER_BYTES + usize::from(u16::from_le_bytes([good[at + 4], good[at + 5]]));
            records += 1;
        }
        assert!(records > 3);
    }

    #[test]
    fn the_place_of_the_damage_is_named() {
        let (_directory, path) = store();
        let mut bad = std::fs::read(&path).unwrap();
        bad[HEADER_BYTES + 1] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let Err(MetaError::Damaged(text)) = check(path.parent().unwrap()) else { panic!() };
        assert!(text.starts_with("MANIFEST-") && text.ends_with("is damaged at byte 0"), "{text}");
    }
}
