use super::*;
use crate::catalog::format::MapRecord;
use crate::units::{ClusterIndex, LayerId};

const PLACE: PoolCluster = PoolCluster(5);
/// Blocks 1 and 2.
const BLOCKS: Mask = Mask(0b110);

fn intents() -> Intents {
    let base = Base { identity: [7; 16], commit: 3 };
    Intents { log: Some(Log { base, number: 0, bytes: Vec::new() }), ..Intents::default() }
}

fn data(byte: u8) -> Vec<u8> {
    vec![byte; 2 * BLOCK_BYTES as usize]
}

fn crc(byte: u8) -> u32 {
    crc32c::crc32c(&data(byte)[..BLOCK_BYTES as usize])
}

/// The record of cluster 0, whose blocks lie in `PLACE`.
fn record(blocks: Mask) -> Vec<Change> {
    let record = MapRecord { cluster: Some(PLACE), data: blocks, ..MapRecord::default() };
    vec![Change::Map(LayerId(1), ClusterIndex(0), Some(record))]
}

impl Intents {
    fn begin(&mut self, byte: u8, new: bool) -> Mask {
        self.write_begins(PLACE, BLOCKS, &data(byte), (new, false))
    }

    fn write(&mut self, byte: u8, new: bool) {
        let watched = self.begin(byte, new);
        self.write_ended(PLACE, watched, true);
        if new {
            self.learned(PLACE, BLOCKS);
        }
    }

    fn crcs(&self) -> Option<Vec<u32>> {
        Some(self.vouch(&record(BLOCKS))?.iter().map(|checked| checked.crc).collect())
    }

    /// The records of `PLACE` become durable in a frame.
    fn commit(&mut self) {
        self.frame(&record(BLOCKS)).expect("a frame");
        self.frame_durable(record(BLOCKS));
    }
}

#[test]
fn a_frame_has_the_checksums_of_the_last_writes() {
    let mut intents = intents();
    intents.write(1, true);
    assert_eq!(intents.crcs(), Some(vec![crc(1); 2]));
    intents.write(2, false);
    assert_eq!(intents.crcs(), Some(vec![crc(2); 2]));
    assert!(intents.can_log());
    let checked = intents.vouch(&record(Mask(0b10))).unwrap();
    assert_eq!(checked, [Checked { cluster: PLACE, block: 1, crc: crc(2) }], "the record names one");
}

#[test]
fn a_block_that_is_being_written_again_has_none() {
    let mut intents = intents();
    intents.write(1, true);
    let watched = intents.begin(2, false);
    assert_eq!(intents.crcs(), None);
    intents.write_ended(PLACE, watched, true);
    assert_eq!(intents.crcs(), Some(vec![crc(2); 2]));
}

#[test]
fn nothing_is_known_after_two_writes_at_once() {
    let mut intents = intents();
    let (first, second) = (intents.begin(1, true), intents.begin(2, true));
    intents.write_ended(PLACE, first, true);
    intents.learned(PLACE, BLOCKS);
    assert!(!intents.can_log());
    intents.write_ended(PLACE, second, true);
    assert_eq!(intents.crcs(), None);
}

#[test]
fn nothing_is_known_after_a_write_beside_one_that_is_not_watched() {
    let mut intents = intents();
    let watched = intents.write_begins(PLACE, BLOCKS, &data(1), (true, true));
    intents.write_ended(PLACE, watched, true);
    assert_eq!(intents.crcs(), None);
}

#[test]
fn nothing_is_known_after_a_write_that_failed() {
    let mut intents = intents();
    intents.write(1, true);
    let watched = intents.begin(2, false);
    intents.write_ended(PLACE, watched, false);
    assert_eq!(intents.crcs(), None);
}

#[test]
fn records_of_blocks_that_were_not_watched_or_were_moved_go_into_a_batch() {
    let mut unwatched = intents();
    unwatched.learned(PLACE, BLOCKS);
    assert!(!unwatched.can_log());
    let mut moved = intents();
    moved.moved();
    assert!(!moved.can_log());
    moved.begin_commit();
    assert!(moved.can_log(), "the commit has them");
}

#[test]
fn no_more_clusters_are_watched_than_there_is_room_for() {
    let mut intents = intents();
    for place in 0..FRESH_CLUSTERS_MAX as u32 {
        assert!(!intents.write_begins(PoolCluster(place), BLOCKS, &data(1), (true, false)).is_empty());
    }
    assert!(intents.write_begins(PoolCluster(9999), BLOCKS, &data(1), (true, false)).is_empty());
    assert_eq!(intents.fresh.len(), FRESH_CLUSTERS_MAX);
}

#[test]
fn blocks_are_unproved_until_the_next_frame_or_batch_is_durable() {
    let mut intents = intents();
    intents.write(1, true);
    assert!(!intents.is_unproved(PLACE, BLOCKS));
    intents.frame(&record(BLOCKS)).unwrap();
    assert!(intents.is_unproved(PLACE, Mask(0b100)) && !intents.is_unproved(PLACE, Mask(1)));
    intents.frame_durable(record(BLOCKS));
    assert!(intents.is_unproved(PLACE, BLOCKS));
    intents.frame(&[]).unwrap();
    assert!(intents.is_unproved(PLACE, BLOCKS), "its sync has not ended");
    intents.frame_durable(Vec::new());
    assert!(!intents.is_unproved(PLACE, BLOCKS));
    intents.taken(PLACE);
    intents.write(2, true);
    intents.commit();
    intents.batch_durable(4);
    assert!(!intents.is_unproved(PLACE, BLOCKS) && intents.records.is_empty());
}

/// Whole blocks are written, and what lies in them already stays.
#[test]
fn frames_follow_each_other_until_the_log_is_full() {
    let mut intents = intents();
    let mut end = 0;
    while let Some(range) = intents.frame(&record(BLOCKS)) {
        assert!(range.start.is_multiple_of(4096) && range.start <= end && range.end > end);
        end = range.end;
        intents.frame_durable(record(BLOCKS));
    }
    let log = intents.log.as_ref().unwrap();
    assert!(end > INTENTS_BYTES - 128 && log.bytes.len() == end, "{end}");
    let frames = intents::read(&log.bytes, log.base).unwrap();
    assert_eq!(frames.len(), intents.records.len());
    intents.batch_durable(4);
    assert_eq!(intents.frame(&[]), Some(0..32));
}

/// What the frames before the failure made durable is not in doubt; what they named is still not to be written again.
#[test]
fn a_failed_log_writes_no_frames_and_keeps_what_is_durable() {
    let mut intents = intents();
    intents.write(1, true);
    intents.commit();
    intents.frame(&[]).unwrap();
    intents.fail();
    assert!(!intents.can_log() && intents.frame(&[]).is_none());
    assert!(intents.is_unproved(PLACE, BLOCKS) && intents.records.len() == 1);
}
