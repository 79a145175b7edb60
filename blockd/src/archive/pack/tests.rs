use proptest::prelude::*;

use super::*;

/// A chunk that is compressed for even seeds, and cannot be for odd ones.
pub(crate) fn chunk(seed: u64) -> (Digest, Vec<u8>) {
    let mut content = vec![0; CHUNK_BYTES];
    let end = if seed.is_multiple_of(2) { CHUNK_BYTES / 4 } else { CHUNK_BYTES };
    fastrand::Rng::with_seed(seed).fill(&mut content[..end]);
    (blake3::hash(&content).into(), content)
}

pub(crate) fn pack_of(seeds: &[u64]) -> Pack {
    let mut builder = PackBuilder::default();
    for &seed in seeds {
        let (hash, content) = chunk(seed);
        builder.add(encode(hash, content));
    }
    builder.finish()
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let size = bytes.len() as u64;
    parse_footer(size, &bytes[(size - footer_bytes(size)) as usize..])
}

fn stored(content: &[u8], encoding: Encoding, hash: Digest) -> Result<Vec<u8>, String> {
    decode(&Entry { hash, stored: content.len() as u32, encoding }, content)
}

#[test]
fn packs_are_read_as_they_were_written() {
    let pack = pack_of(&[1, 2, 3, 4]);
    assert_eq!(pack.name, *blake3::hash(&pack.bytes).as_bytes());
    assert_eq!(parse(&pack.bytes).unwrap(), pack.entries);
    let encodings: Vec<_> = pack.entries.iter().map(|entry| entry.encoding).collect();
    assert_eq!(encodings, [Encoding::Plain, Encoding::Zstd, Encoding::Plain, Encoding::Zstd]);
    let mut at = HEAD_BYTES;
    for (entry, seed) in pack.entries.iter().zip(1..) {
        let end = at + entry.stored as usize;
        assert_eq!(decode(entry, &pack.bytes[at..end]).unwrap(), chunk(seed).1);
        at = end;
    }
}

#[test]
fn a_pack_is_full_before_it_is_too_large() {
    let mut builder = PackBuilder::default();
    for seed in (1..).step_by(2) {
        if builder.is_full() {
            break;
        }
        let (hash, content) = chunk(seed);
        builder.add(encode(hash, content));
    }
    let pack = builder.finish();
    assert_eq!(pack.entries.len(), PACK_DATA_BYTES / CHUNK_BYTES);
    assert!(pack.bytes.len() as u64 <= PACK_BYTES_MAX);
    assert_eq!(parse(&pack.bytes).unwrap().len(), 256);
}

#[test]
fn a_truncated_pack_is_refused() {
    let pack = pack_of(&[1, 2, 3]);
    for length in (0..pack.bytes.len()).rev().take(300).chain([0, 1, 43, 44, 45]) {
        assert!(parse(&pack.bytes[..length]).is_err(), "cut to {length}");
    }
    let size = pack.bytes.len() as u64;
    assert!(parse_footer(size + 1, &pack.bytes).is_err(), "a size that is another");
}

#[test]
fn a_footer_with_any_byte_changed_is_refused() {
    let pack = pack_of(&[1, 2]);
    let footer = pack.bytes.len() - 2 * ENTRY_BYTES - TAIL_BYTES;
    for at in footer..pack.bytes.len() {
        let mut bytes = pack.bytes.clone();
        bytes[at] ^= 0x10;
        assert!(parse(&bytes).is_err(), "byte {at}");
    }
}

/// The footer's own hash made right again: what an attacker would do.
fn forged(pack: &Pack, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = pack.bytes.clone();
    let end = bytes.len() - TAIL_BYTES;
    let start = end - pack.entries.len() * ENTRY_BYTES;
    change(&mut bytes[start..end]);
    let digest: Digest = blake3::hash(&bytes[start..end]).into();
    bytes[end..end + 32].copy_from_slice(&digest);
    bytes
}

#[test]
fn lying_lengths_are_refused() {
    let pack = pack_of(&[2, 4]);
    let longer = pack.entries[0].stored + 1;
    for length in [0, 1, longer, 65_536, 1 << 31, u32::MAX] {
        let bytes = forged(&pack, |footer| footer[32..36].copy_from_slice(&length.to_le_bytes()));
        assert!(parse(&bytes).is_err(), "{length}");
    }
    assert!(parse(&forged(&pack, |footer| footer[36] = 2)).is_err(), "an unknown encoding");
    assert!(parse(&forged(&pack, |footer| footer[36] = 0)).is_err(), "a plain chunk that is short");
}

#[test]
fn lengths_moved_between_chunks_are_found_when_they_are_read() {
    let pack = pack_of(&[2, 4]);
    let lengths = [pack.entries[0].stored + 5, pack.entries[1].stored - 5];
    let bytes = forged(&pack, |footer| {
        footer[32..36].copy_from_slice(&lengths[0].to_le_bytes());
        footer[69..73].copy_from_slice(&lengths[1].to_le_bytes());
    });
    let entries = parse(&bytes).unwrap();
    let first = &bytes[HEAD_BYTES..HEAD_BYTES + lengths[0] as usize];
    assert!(decode(&entries[0], first).is_err());
    let second = &bytes[HEAD_BYTES + lengths[0] as usize..][..lengths[1] as usize];
    assert!(decode(&entries[1], second).is_err());
}

#[test]
fn a_wrong_hash_is_refused() {
    let (hash, content) = chunk(1);
    assert!(stored(&content, Encoding::Plain, hash).is_ok());
    let mut changed = content.clone();
    changed[70] ^= 1;
    assert!(stored(&changed, Encoding::Plain, hash).unwrap_err().contains("another hash"));
    assert!(stored(&content[..CHUNK_BYTES - 1], Encoding::Plain, hash).is_err());
}

#[test]
fn a_decompression_bomb_stays_small() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
    let error = stored(&bomb, Encoding::Zstd, [0; 32]).unwrap_err();
    assert!(error.contains("cannot be restored"), "{error}");
    let (hash, content) = chunk(2);
    let mut frames = zstd::bulk::compress(&content, 1).unwrap();
    frames.extend(zstd::bulk::compress(&[7; 100], 1).unwrap());
    assert!(stored(&frames, Encoding::Zstd, hash).is_err(), "a second frame behind the first");
    let short = zstd::bulk::compress(&content[..1000], 1).unwrap();
    assert!(stored(&short, Encoding::Zstd, hash).unwrap_err().contains("has 1000 bytes"));
}

proptest! {
    #[test]
    fn any_footer_is_parsed_without_harm(size in 0u64..200_000, footer in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(parse_footer(size, &footer).is_err());
    }

    #[test]
    fn any_stored_bytes_are_decoded_without_harm(bytes in prop::collection::vec(any::<u8>(), 1..500)) {
        prop_assert!(stored(&bytes, Encoding::Zstd, [0; 32]).is_err());
    }

    #[test]
    fn any_content_comes_back(seed: u64, data in 0usize..CHUNK_BYTES) {
        let mut content = vec![0; CHUNK_BYTES];
        fastrand::Rng::with_seed(seed).fill(&mut content[..data]);
        let hash: Digest = blake3::hash(&content).into();
        let chunk = encode(hash, content.clone());
        prop_assert_eq!(decode(&chunk.entry, &chunk.bytes).unwrap(), content);
    }
}
