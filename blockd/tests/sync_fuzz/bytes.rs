//! Bytes that are no frame, or a damaged one; batches that were damaged on their way.

use blockd::control::replication::Patch;
use blockd::decompress::InProcess;
use blockd::sync::batch::{Bounds, DATA_BYTES_MAX, Packer, RUNS_MAX, ZERO_BLOCKS_MAX, decode, run_hash};
use blockd::sync::wire::{
    CANDIDATES_MAX, Code, Frame, HEADER_BYTES, Header, Message, PAYLOAD_BYTES_MAX, Refusal, VALUES_MAX,
    VOLUMES_MAX, WireError,
};
use blockd::units::{BLOCK_BYTES, CLUSTER_BYTES, ClusterIndex};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::config;
use crate::frames::frame;

const BLOCK: usize = BLOCK_BYTES as usize;
const SIZE: u64 = 9 * CLUSTER_BYTES + 3 * BLOCK_BYTES + 512;

/// One thing that goes wrong on the way.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let at = any::<Index>;
    let value = prop_oneof![Just(0), Just(0xff), Just(0x80), Just(1), any::<u8>()];
    let one = prop_oneof![
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        3 => (at(), value).prop_map(|(at, to)| Mutation::Set(at, to)),
        1 => at().prop_map(Mutation::Cut),
        1 => (at(), 1..50_usize).prop_map(|(at, bytes)| Mutation::Remove(at, bytes)),
        1 => (at(), vec(any::<u8>(), 1..50)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (at(), 1..80_usize).prop_map(|(at, bytes)| Mutation::Repeat(at, bytes)),
    ];
    // A third stays as it is: what is good must be taken.
    prop_oneof![1 => Just(Vec::new()), 2 => vec(one, 1..4)]
}

/// `near`: how far from the start, where what describes the rest is.
fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation], near: usize) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let (len, near) = (bytes.len(), bytes.len().min(near));
        match mutation {
            Mutation::Flip(at, bit) => bytes[at.index(near)] ^= 1 << bit,
            Mutation::Set(at, to) => bytes[at.index(near)] = *to,
            Mutation::Cut(at) => bytes.truncate(at.index(len)),
            Mutation::Remove(at, count) => drop(bytes.drain(at.index(near)..len.min(at.index(near) + count))),
            Mutation::Insert(at, more) => {
                drop(bytes.splice(at.index(near)..at.index(near), more.iter().copied()));
            }
            Mutation::Repeat(at, count) => {
                let piece = bytes[at.index(near)..len.min(at.index(near) + count)].to_vec();
                drop(bytes.splice(at.index(near)..at.index(near), piece));
            }
        }
    }
    bytes
}

/// As the driver reads a stream: a header, judged, then as many bytes as it says.
fn read(stream: &[u8]) -> Option<Result<(Frame, &[u8]), WireError>> {
    let (head, rest) = stream.split_first_chunk::<HEADER_BYTES>()?;
    let header = match Header::decode(*head) {
        Ok(header) => header,
        Err(error) => return Some(Err(error)),
    };
    assert!(header.length <= PAYLOAD_BYTES_MAX, "{} bytes would be kept", header.length);
    let (payload, rest) = rest.split_at_checked(header.length)?;
    Some(Frame::decode(header, payload.to_vec()).map(|frame| (frame, rest)))
}

/// What a decoded message keeps is no more than a small multiple of its bytes.
fn is_bounded(message: &Message, bytes: usize) -> bool {
    match message {
        Message::Offer(volumes) => {
            volumes.len() <= VOLUMES_MAX
                && volumes.iter().all(|volume| {
                    volume.candidates.len() <= CANDIDATES_MAX && volume.candidates.len() * 16 <= bytes
                })
        }
        Message::Have(have) => have.known.len() <= CANDIDATES_MAX && have.known.len() * 34 <= bytes,
        Message::Values(values) => values.values.len() <= VALUES_MAX.min(bytes * 8),
        Message::Wanted(wanted) => wanted.differs.len() <= VALUES_MAX.min(bytes * 8),
        _ => true,
    }
}

proptest! {
    #![proptest_config(config())]

    /// Whatever is taken for a frame is written back as the same bytes: there are no two ways to say one thing.
    #[test]
    fn frames(
        good in vec(frame(), 0..5),
        garbage in vec(any::<u8>(), 0..300),
        mutations in mutations(),
    ) {
        let mut stream: Vec<u8> = good.iter().flat_map(Frame::encode).collect();
        stream.extend(&garbage);
        let stream = mutate(stream, &mutations, usize::MAX);
        let (mut rest, mut found) = (&stream[..], Vec::new());
        while let Some(Ok((frame, after))) = read(rest) {
            let bytes = rest.len() - after.len();
            prop_assert!(is_bounded(&frame.message, bytes), "{frame:?} out of {bytes} bytes");
            // Codes of later versions are one to us.
            if !matches!(frame.message, Message::Refuse(Refusal { code: Code::Failed, .. })) {
                prop_assert_eq!(frame.encode(), &rest[..bytes]);
            }
            found.push(frame);
            rest = after;
        }
        if mutations.is_empty() {
            prop_assert!(found.starts_with(&good));
        }
    }

    #[test]
    fn any_payload_of_any_kind(kind in 0..20_u16, payload in vec(any::<u8>(), 0..400)) {
        let mut stream = u32::try_from(payload.len()).expect("short").to_be_bytes().to_vec();
        stream.extend(kind.to_be_bytes());
        stream.extend([0, 0]);
        stream.extend(&payload);
        if let Some(Ok((frame, _))) = read(&stream) {
            prop_assert!(is_bounded(&frame.message, payload.len()));
            if !matches!(frame.message, Message::Refuse(_)) {
                prop_assert_eq!(frame.encode(), stream);
            }
        }
    }
}

fn image() -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(SIZE.next_multiple_of(CLUSTER_BYTES)).expect("small")];
    fastrand::Rng::with_seed(5).fill(&mut bytes[..usize::try_from(SIZE).expect("small")]);
    bytes
}

/// Runs: the cluster, its first block, how many, and what.
fn pack(image: &[u8], runs: &[(u32, u8, u8, u8)], zstd: bool) -> Vec<u8> {
    let (mut packer, mut next) = (Packer::new(zstd), 0);
    for &(at, first, count, kind) in runs {
        let start = u64::from(at) * 16 + u64::from(first);
        let blocks = SIZE.div_ceil(BLOCK_BYTES);
        let count = u64::from(count).min(16 - u64::from(first)).min(blocks.saturating_sub(start));
        if start < next || count == 0 || packer.is_full(0) {
            continue;
        }
        next = start + count;
        let place = usize::try_from(start).expect("small") * BLOCK;
        let bytes = &image[place..place + usize::try_from(count).expect("few") * BLOCK];
        match kind {
            0 => packer.zero(ClusterIndex(at), first, count),
            _ => packer.data(
                ClusterIndex(at),
                first,
                bytes,
                run_hash(ClusterIndex(at), u32::from(first), bytes),
            ),
        }
    }
    packer.finish()
}

proptest! {
    #![proptest_config(config())]

    /// However a batch was damaged: what is taken of it lies where it may, in order, and data are what the source has
    /// at that place. To make others pass, their hash would have to be found.
    #[test]
    fn batch(
        runs in vec((0..10_u32, 0..16_u8, 1..17_u8, 0..4_u8), 1..20),
        zstd in any::<bool>(),
        mutations in mutations(),
        (from, to) in (0..3_u64, 8..11_u64),
    ) {
        let image = image();
        let good = pack(&image, &runs, zstd);
        let near = 7 + runs.len() * 44;
        let batch = mutate(good, &mutations, near);
        let bounds = Bounds { from, to, size: SIZE, candidates: 2 };
        let Ok(taken) = decode(&batch, &bounds, &InProcess) else { return Ok(()) };
        let (mut end, mut written, mut zeroes) = (from * CLUSTER_BYTES, 0, 0);
        prop_assert!(taken.patches.len() + taken.copies.len() <= RUNS_MAX);
        for patch in &taken.patches {
            let range = patch.range().expect("numbers");
            prop_assert!(range.start >= end && range.end <= SIZE.min(to * CLUSTER_BYTES), "{range:?}");
            end = range.end;
            match patch {
                Patch::Data { offset, bytes } => {
                    written += bytes.len();
                    let at = usize::try_from(*offset).expect("small");
                    prop_assert!(image[at..at + bytes.len()] == bytes[..], "what is not the source's");
                }
                Patch::Zero { length, .. } => zeroes += length.div_ceil(BLOCK_BYTES),
            }
        }
        let copied = taken.copies.len() * CLUSTER_BYTES as usize;
        prop_assert!(written + copied <= DATA_BYTES_MAX && zeroes <= ZERO_BLOCKS_MAX);
        prop_assert!(taken.copies.iter().all(|copy| copy.candidate < 2));
    }
}
