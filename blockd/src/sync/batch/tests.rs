//! What is packed comes back; what no honest side packs is refused by its name, and without more memory than a batch.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::decompress::InProcess;

const SIZE: u64 = 64 * CLUSTER_BYTES + 5 * BLOCK_BYTES + 512;

fn bounds() -> Bounds {
    Bounds { from: 0, to: 65, size: SIZE, candidates: 2 }
}

fn cluster(number: u32) -> ClusterIndex {
    ClusterIndex(number)
}

fn bytes(seed: u64, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * BLOCK];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

fn add(packer: &mut Packer, at: u32, first: u8, bytes: &[u8]) {
    packer.data(cluster(at), first, bytes, run_hash(cluster(at), u32::from(first), bytes));
}

#[track_caller]
fn refused(batch: &[u8], bounds: &Bounds, code: Code, text: &str) {
    let refusal = decode(batch, bounds, &InProcess).expect_err("it is refused");
    assert_eq!(refusal.code, code, "{refusal}");
    assert!(refusal.text.contains(text), "{refusal}");
}

#[test]
fn data_zeroes_and_copies_come_back() {
    let mut packer = Packer::new(true);
    let (whole, part) = (bytes(1, 16), vec![7; 2 * BLOCK]);
    add(&mut packer, 0, 0, &whole);
    add(&mut packer, 1, 0, &part);
    packer.zero(cluster(1), 4, 20);
    let copy = CopyRun { cluster: cluster(3), candidate: 1, from: cluster(9), value: [5; 32] };
    packer.copy(&copy);
    let mut last = bytes(2, 6);
    last[5 * BLOCK + 512..].fill(0);
    add(&mut packer, 64, 0, &last);
    let batch = decode(&packer.finish(), &bounds(), &InProcess).unwrap();
    assert!(packer.is_empty() && packer.data_bytes() == 0);
    let joined = [&whole[..], &part].concat();
    let zeroes = Patch::Zero { offset: CLUSTER_BYTES + 4 * BLOCK_BYTES, length: 20 * BLOCK_BYTES };
    let end = Patch::Data { offset: 64 * CLUSTER_BYTES, bytes: last[..5 * BLOCK + 512].to_vec() };
    assert_eq!(batch.patches, [Patch::Data { offset: 0, bytes: joined }, zeroes, end]);
    assert_eq!(
        (batch.copies, batch.values),
        (vec![copy], vec![(cluster(0), cluster_value(cluster(0), &whole))])
    );
}

#[test]
fn compression_is_used_where_it_pays() {
    let mut packer = Packer::new(true);
    add(&mut packer, 0, 0, &vec![1; 16 * BLOCK]);
    assert!(packer.finish().len() < 1000);
    let random = bytes(3, 16);
    for batch in 0..20 {
        add(&mut packer, 0, 0, &random);
        let length = packer.finish().len();
        assert!(
            (random.len()..random.len() + HEAD_BYTES + RUN_BYTES_MAX).contains(&length),
            "{batch}: {length}"
        );
    }
    let mut plain = Packer::new(false);
    add(&mut plain, 0, 0, &vec![1; 16 * BLOCK]);
    assert!(plain.finish().len() > 16 * BLOCK);
}

/// D5, P2.
#[test]
fn data_that_are_not_what_their_hash_says_are_refused() {
    let data = bytes(4, 2);
    let cases: [(&str, Value); 4] = [
        ("another's data", run_hash(cluster(1), 0, &bytes(5, 2))),
        ("of another place in the cluster", run_hash(cluster(1), 1, &data)),
        ("of another cluster", run_hash(cluster(2), 0, &data)),
        ("of another domain", *blake3::hash(&data).as_bytes()),
    ];
    for (what, hash) in cases {
        let mut packer = Packer::new(false);
        packer.data(cluster(1), 0, &data, hash);
        let refusal = decode(&packer.finish(), &bounds(), &InProcess).expect_err(what);
        assert_eq!(refusal.code, Code::BadData, "{what}");
    }
    let mut packer = Packer::new(false);
    let whole = bytes(6, 16);
    packer.data(cluster(1), 0, &whole, cluster_value(cluster(2), &whole));
    refused(&packer.finish(), &bounds(), Code::BadData, "cluster 1");
}

/// A batch by hand.
fn raw(encoding: u8, length: u32, runs: &[&[u8]], payload: &[u8]) -> Vec<u8> {
    let mut batch = vec![encoding];
    batch.extend(length.to_be_bytes());
    batch.extend(u16::try_from(runs.len()).unwrap().to_be_bytes());
    batch.extend(runs.concat());
    batch.extend(payload);
    batch
}

fn data_run(at: u32, first: u8, count: u8, hash: Value) -> Vec<u8> {
    [&at.to_be_bytes()[..], &[run::DATA, first, count], &hash].concat()
}

fn zero_run(at: u32, first: u8, blocks: u64) -> Vec<u8> {
    [&at.to_be_bytes()[..], &[run::ZERO, first], &blocks.to_be_bytes()].concat()
}

/// D5, P4.
#[test]
fn decompression_bombs_are_refused() {
    let block = vec![0; BLOCK];
    let run = data_run(0, 0, 1, run_hash(cluster(0), 0, &block));
    let zstd = |data: &[u8]| zstd::bulk::compress(data, 3).unwrap();
    let good = zstd(&block);
    assert!(decode(&raw(1, 4096, &[&run], &good), &bounds(), &InProcess).is_ok());
    // A gigabyte in some kilobytes; what says that it is one byte more, or less; nothing; garbage; two frames.
    let cases: [Vec<u8>; 6] = [
        zstd(&vec![0; 1 << 28]),
        zstd(&vec![0; BLOCK + 1]),
        zstd(&vec![0; BLOCK - 1]),
        Vec::new(),
        bytes(9, 1),
        [good.clone(), good.clone()].concat(),
    ];
    for payload in cases {
        let refusal = decode(&raw(1, 4096, &[&run], &payload), &bounds(), &InProcess).expect_err("a bomb");
        assert_eq!(refusal.code, Code::BadData, "{refusal}");
    }
    // A frame after the frame, of nothing.
    let trailing = [good, zstd(&[])].concat();
    refused(&raw(1, 4096, &[&run], &trailing), &bounds(), Code::BadData, "one frame");
    // A window of 2 GiB, in one shot, is never allocated: the frame says 31 bits.
    let window = [&[0x28, 0xB5, 0x2F, 0xFD, 0x00, 0xA8][..], &[1, 0, 0]].concat();
    let refusal = decode(&raw(1, 4096, &[&run], &window), &bounds(), &InProcess).expect_err("a window");
    assert_eq!(refusal.code, Code::BadData, "{refusal}");
}

/// D5, P5.
#[test]
fn runs_that_cannot_be_are_refused() {
    let block = bytes(7, 1);
    let run = |at, first| data_run(at, first, 1, run_hash(cluster(at), u32::from(first), &block));
    let two = [&block[..], &block].concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no runs", raw(0, 0, &[], &[]), "in 0 runs"),
        ("more data than a batch has", raw(0, DATA_BYTES_MAX as u32 + 1, &[&run(0, 0)], &block), "bytes in"),
        ("2^32 - 1 bytes", raw(0, u32::MAX, &[&run(0, 0)], &block), "bytes in"),
        ("less data than the runs", raw(0, 4096, &[&run(0, 0), &run(1, 0)], &block), "runs of 8192"),
        ("less data than announced", raw(0, 4096, &[&run(0, 0)], &block[1..]), "where 4096 are announced"),
        ("more data than announced", raw(0, 4096, &[&run(0, 0)], &two), "where 4096 are announced"),
        ("not in order", raw(0, 8192, &[&run(1, 0), &run(0, 0)], &two), "expected between"),
        ("twice the same", raw(0, 8192, &[&run(1, 0), &run(1, 0)], &two), "expected between"),
        ("overlapping", raw(0, 4096, &[&zero_run(0, 0, 17), &run(1, 0)], &block), "expected between"),
        ("after the volume's end", raw(0, 4096, &[&run(64, 6)], &block), "expected between"),
        ("a zero run after the end", raw(0, 0, &[&zero_run(64, 0, 7)], &[]), "expected between"),
        ("a zero run of 2^63", raw(0, 0, &[&zero_run(0, 0, 1 << 63)], &[]), "expected between"),
        ("a zero run past all numbers", raw(0, 0, &[&zero_run(1, 0, u64::MAX)], &[]), "expected between"),
        ("no blocks", raw(0, 0, &[&zero_run(0, 0, 0)], &[]), "a run of 0 blocks"),
        ("no data", raw(0, 0, &[&data_run(0, 0, 0, [0; 32])], &[]), "a run of 0 blocks"),
        ("out of its cluster", raw(0, 4096, &[&data_run(0, 15, 2, [0; 32])], &two), "leaves its cluster"),
        ("a first block that none is", raw(0, 0, &[&zero_run(0, 16, 1)], &[]), "a run of 1 blocks"),
        ("an unknown kind", raw(0, 0, &[&[0, 0, 0, 0, 9, 0]], &[]), "unknown kind 9"),
        ("an unknown encoding", raw(7, 4096, &[&run(0, 0)], &block), "unknown encoding 7"),
        ("cut short", raw(0, 4096, &[&run(0, 0)], &block)[..20].to_vec(), "cut short"),
        (
            "a copy of nothing",
            raw(0, 0, &[&[&[0, 0, 0, 0, 2, 0, 0, 2][..], &[0; 36]].concat()], &[]),
            "not offered",
        ),
    ];
    for (what, batch, text) in cases {
        let refusal = decode(&batch, &bounds(), &InProcess).expect_err(what);
        assert!(refusal.code == Code::BadManifest && refusal.text.contains(text), "{what}: {refusal}");
    }
    let later = Bounds { from: 1, ..bounds() };
    refused(&raw(0, 4096, &[&run(0, 0)], &block), &later, Code::BadManifest, "expected between 16");
    let before = Bounds { to: 1, ..bounds() };
    refused(&raw(0, 4096, &[&run(1, 0)], &block), &before, Code::BadManifest, "and 16");
    let mut end = bytes(8, 6);
    end[5 * BLOCK + 512] = 1;
    let batch = raw(0, 6 * 4096, &[&data_run(64, 0, 6, run_hash(cluster(64), 0, &end))], &end);
    refused(&batch, &bounds(), Code::BadManifest, "after the volume's end");
}

/// As much as one request of a guest, no more: the store does it in one step, while guests wait.
#[test]
fn a_batch_makes_no_more_zero_than_a_guest_could() {
    let large = Bounds { from: 0, to: 1 << 20, size: 1 << 36, candidates: 0 };
    let zeroes = |runs: &[&[u8]]| raw(0, 0, runs, &[]);
    assert!(decode(&zeroes(&[&zero_run(0, 0, ZERO_BLOCKS_MAX)]), &large, &InProcess).is_ok());
    let more = [zeroes(&[&zero_run(0, 0, ZERO_BLOCKS_MAX + 1)])];
    let parts = zeroes(&[&zero_run(0, 0, ZERO_BLOCKS_MAX / 2), &zero_run(1 << 16, 0, ZERO_BLOCKS_MAX)]);
    for batch in more.iter().chain([&parts]) {
        refused(batch, &large, Code::BadManifest, "blocks of zeroes");
    }
    let mut packer = Packer::new(false);
    packer.zero(cluster(0), 0, ZERO_BLOCKS_MAX / 2);
    assert!(!packer.is_full(0) && packer.is_full(ZERO_BLOCKS_MAX / 2));
}

/// What is copied is in the target's memory like what is sent.
#[test]
fn copies_count_as_what_a_batch_writes() {
    let mut packer = Packer::new(false);
    for at in 0..16 {
        assert!(!packer.is_full(0));
        packer.copy(&CopyRun { cluster: cluster(at), candidate: 0, from: cluster(at), value: [1; 32] });
    }
    assert!(packer.is_full(0) && packer.data_bytes() == DATA_BYTES_MAX);
    assert_eq!(decode(&packer.finish(), &bounds(), &InProcess).unwrap().copies.len(), 16);
    let run = |at: u32| [&at.to_be_bytes()[..], &[run::COPY, 0, 0, 0], &[0; 36]].concat();
    let runs: Vec<Vec<u8>> = (0..17).map(run).collect();
    let runs: Vec<&[u8]> = runs.iter().map(Vec::as_slice).collect();
    refused(&raw(0, 0, &runs, &[]), &bounds(), Code::BadManifest, "writes 1114112 bytes");
}

proptest! {
    #[test]
    fn whatever_is_packed_comes_back(
        runs in vec((0..65_u32, 0..16_u8, 1..16_u8, 0..3_u8), 1..20),
        zstd in any::<bool>(),
    ) {
        let mut packer = Packer::new(zstd);
        let mut image = vec![0xAA; usize::try_from(SIZE).unwrap()];
        let mut expected = image.clone();
        let mut next = 0;
        for (at, first, count, kind) in runs {
            let start = u64::from(at) * 16 + u64::from(first);
            let count = u64::from(count).min(16 - u64::from(first)).min(SIZE.div_ceil(BLOCK_BYTES).saturating_sub(start));
            if start < next || count == 0 || packer.is_full(0) {
                continue;
            }
            next = start + count;
            let place = usize::try_from(start * BLOCK_BYTES).unwrap();
            let end = expected.len().min(place + count as usize * BLOCK);
            if kind == 0 {
                packer.zero(cluster(at), first, count);
                expected[place..end].fill(0);
            } else {
                let mut data = bytes(start, count as usize);
                data[end - place..].fill(0);
                if kind == 1 {
                    data.fill(0);
                }
                add(&mut packer, at, first, &data);
                expected[place..end].copy_from_slice(&data[..end - place]);
            }
        }
        prop_assume!(!packer.is_empty());
        let batch = decode(&packer.finish(), &bounds(), &InProcess).unwrap();
        for patch in batch.patches {
            let range = patch.range().unwrap();
            let target = &mut image[range.start as usize..range.end as usize];
            match patch {
                Patch::Data { bytes, .. } => target.copy_from_slice(&bytes),
                Patch::Zero { .. } => target.fill(0),
            }
        }
        prop_assert!(image == expected);
    }

    #[test]
    fn any_bytes_are_judged(batch in vec(any::<u8>(), 0..300), runs in 0..4_u16) {
        let mut batch = batch;
        if batch.len() > HEAD_BYTES {
            batch[0] &= 1;
            batch[5..7].copy_from_slice(&runs.to_be_bytes());
        }
        if let Ok(decoded) = decode(&batch, &bounds(), &InProcess) {
            for patch in decoded.patches {
                prop_assert!(patch.range().unwrap().end <= SIZE);
            }
        }
    }
}

/// A process that is in somebody else's hands.
struct Liar(Vec<u8>);

impl Decompress for Liar {
    fn decompress(&self, _: &[u8], _: usize) -> Result<Vec<u8>, DecompressError> {
        Ok(self.0.clone())
    }
}

/// P11: whatever is given back, nothing but what the hashes say is taken.
#[test]
fn what_decompresses_is_not_believed() {
    let block = vec![7; BLOCK];
    let run = data_run(0, 0, 1, run_hash(cluster(0), 0, &block));
    let batch = raw(1, 4096, &[&run], &zstd::bulk::compress(&block, 3).unwrap());
    assert!(decode(&batch, &bounds(), &Liar(block.clone())).is_ok());
    let mut other = block.clone();
    other[4000] ^= 1;
    for lie in [other, vec![7; BLOCK - 1], vec![7; BLOCK + 1], vec![7; 2 * BLOCK], Vec::new()] {
        let refusal = decode(&batch, &bounds(), &Liar(lie)).expect_err("a lie");
        assert_eq!(refusal.code, Code::BadData, "{refusal}");
    }
}
