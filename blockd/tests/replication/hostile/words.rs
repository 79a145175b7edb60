//! What a hostile source says, and what must come of it.

use blockd::sync::wire::{Code, Message, OfferedVolume};

use super::lab::Lab;

/// A batch by hand: no compression, the runs as they are.
pub(super) fn raw(encoding: u8, length: u32, runs: &[&[u8]], payload: &[u8]) -> Vec<u8> {
    let count = u16::try_from(runs.len()).expect("few");
    let head = [&[encoding][..], &length.to_be_bytes(), &count.to_be_bytes()].concat();
    [&head, &runs.concat(), payload].concat()
}

pub(super) fn data_run(cluster: u32, first: u8, blocks: u8, hash: [u8; 32]) -> Vec<u8> {
    [&cluster.to_be_bytes()[..], &[0, first, blocks], &hash].concat()
}

pub(super) fn zero_run(cluster: u32, first: u8, blocks: u64) -> Vec<u8> {
    [&cluster.to_be_bytes()[..], &[1, first], &blocks.to_be_bytes()].concat()
}

pub(super) fn data(cursor: u64, batch: Vec<u8>) -> Message {
    Message::Data { from: 0, cursor, batch }
}

pub(super) fn zeroes(cursor: u64) -> Message {
    let cluster = u32::try_from(cursor - 1).expect("few");
    Message::Data { from: cursor - 1, cursor, batch: raw(0, 0, &[&zero_run(cluster, 0, 1)], &[]) }
}

/// What comes of each of these, said where data may come.
pub(super) fn each_is_refused(lab: &mut Lab, cases: Vec<(&str, Message)>, code: Code) {
    for (what, message) in cases {
        let mut visit = lab.receiving();
        visit.say([message]);
        assert_eq!(visit.refused(), code, "{what}");
        lab.is_unharmed();
    }
}

pub(super) fn each_offer_is_refused(
    lab: &mut Lab,
    change: impl Fn(&mut OfferedVolume),
    what: &str,
    code: Code,
) {
    let (mut offered, begin) = (lab.offered(), lab.begin());
    change(&mut offered);
    let mut visit = lab.visit();
    visit.say([Message::Offer(vec![offered]), Message::Begin(begin)]);
    assert_eq!(visit.refused(), code, "{what}");
    lab.is_unharmed();
}
