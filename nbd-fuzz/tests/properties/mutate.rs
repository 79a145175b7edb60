//! What goes wrong on the way, and in which pieces the rest arrives.

use nbd_fuzz::pieces::Pieces;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// One thing that goes wrong on the way.
#[derive(Clone, Debug)]
pub(crate) enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
}

pub(crate) fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let at = any::<Index>;
    let one = prop_oneof![
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        3 => (at(), prop_oneof![Just(0), Just(0xff), Just(0x80), any::<u8>()]).prop_map(|(at, to)| Mutation::Set(at, to)),
        1 => at().prop_map(Mutation::Cut),
        1 => (at(), 1..40_usize).prop_map(|(at, bytes)| Mutation::Remove(at, bytes)),
        1 => (at(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (at(), 1..80_usize).prop_map(|(at, bytes)| Mutation::Repeat(at, bytes)),
    ];
    // Half of the streams stay as they are: the oracle must hold for good ones first.
    prop_oneof![Just(Vec::new()), vec(one, 1..4)]
}

pub(crate) fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match mutation {
            Mutation::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Mutation::Set(at, to) => bytes[at.index(len)] = *to,
            Mutation::Cut(at) => bytes.truncate(at.index(len)),
            Mutation::Remove(at, count) => drop(bytes.drain(at.index(len)..len.min(at.index(len) + count))),
            Mutation::Insert(at, more) => {
                drop(bytes.splice(at.index(len)..at.index(len), more.iter().copied()));
            }
            Mutation::Repeat(at, count) => {
                let piece = bytes[at.index(len)..len.min(at.index(len) + count)].to_vec();
                drop(bytes.splice(at.index(len)..at.index(len), piece));
            }
        }
    }
    bytes
}

/// Sizes, used again and again.
pub(crate) fn pieces() -> impl Strategy<Value = Pieces> {
    let size = prop_oneof![2 => 1..40_usize, 2 => 1..5000_usize, 1 => Just(1 << 20)];
    vec(size, 1..8).prop_map(Pieces::new)
}
