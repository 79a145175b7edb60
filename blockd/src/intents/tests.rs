use super::*;
use crate::catalog::format::MapRecord;
use crate::units::{ClusterIndex, LayerId, Mask};

const BASE: Base = Base { identity: *b"0123456789abcdef", commit: 7 };

fn change(cluster: u32) -> Change {
    let record =
        MapRecord { cluster: Some(PoolCluster(cluster)), data: Mask(1), zero: Mask::NONE, packed: None };
    Change::Map(LayerId(3), ClusterIndex(cluster), Some(record))
}

/// Block 0 of a pool cluster holds the cluster's number.
fn block(cluster: PoolCluster, _block: u32) -> Option<Vec<u8>> {
    Some(vec![cluster.0 as u8; 4096])
}

fn frame(clusters: &[u32]) -> Frame {
    let checked = clusters.iter().map(|&cluster| {
        let crc = crc32c::crc32c(&block(PoolCluster(cluster), 0).unwrap());
        Checked { cluster: PoolCluster(cluster), block: 0, crc }
    });
    Frame { checked: checked.collect(), changes: clusters.iter().map(|&cluster| change(cluster)).collect() }
}

/// A log with these frames, and where each of them ends.
fn log(frames: &[Frame]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for (number, frame) in frames.iter().enumerate() {
        push(&mut bytes, BASE, number as u32, &frame.checked, &frame.changes);
        ends.push(bytes.len());
    }
    bytes.resize(INTENTS_BYTES, 0);
    (bytes, ends)
}

#[test]
fn the_bytes_are_as_drawn() {
    let (area, ends) = log(&[frame(&[9])]);
    let content = &area[HEAD_BYTES..ends[0]];
    assert_eq!(area[..16], *b"blkdINT1\0\0\0\0\0\0\0\x07");
    assert_eq!(area[16..20], [0; 4]);
    let length = u32::from_be_bytes(area[20..24].try_into().unwrap()) as usize;
    assert_eq!(length.next_multiple_of(8), content.len());
    assert_eq!(area[24..28], [0, 0, 0, 1]);
    assert_eq!(content[..8], [0, 0, 0, 9, 0, 0, 0, 0]);
    assert_eq!(content[8..12], crc32c::crc32c(&[9; 4096]).to_be_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&BASE.identity), &area[..28]);
    assert_eq!(area[28..32], crc32c::crc32c_append(crc, &content[..length]).to_be_bytes());
}

#[test]
fn frames_are_read_in_order() {
    let frames = [frame(&[1]), frame(&[]), frame(&[2, 3])];
    let (area, _) = log(&frames);
    assert_eq!(read(&area, BASE).unwrap(), frames);
    let found = recover(&area, BASE, block).unwrap();
    assert_eq!(found, Recovered { changes: [1, 2, 3].map(change).to_vec(), frames: 3, unfinished: false });
}

#[test]
fn frames_of_another_commit_or_store_are_none() {
    let (area, _) = log(&[frame(&[1])]);
    for base in [Base { commit: 8, ..BASE }, Base { commit: 6, ..BASE }, Base { identity: [1; 16], ..BASE }] {
        assert_eq!(recover(&area, base, block).unwrap(), Recovered::default());
    }
    assert!(read(&[0; INTENTS_BYTES], BASE).unwrap().is_empty());
}

/// The data of the last frame need not have come to the medium: nobody was told. Those of the others had.
#[test]
fn only_the_last_frame_is_compared() {
    let (area, _) = log(&[frame(&[1]), frame(&[2, 3])]);
    let changed = |which: u32| {
        move |cluster: PoolCluster, at| {
            if cluster.0 == which { Some(vec![99; 4096]) } else { block(cluster, at) }
        }
    };
    for which in [2, 3] {
        let found = recover(&area, BASE, changed(which)).unwrap();
        assert_eq!(found, Recovered { changes: vec![change(1)], frames: 1, unfinished: true });
    }
    assert_eq!(recover(&area, BASE, changed(1)).unwrap().frames, 2, "it was written again since");
}

/// Others of its frame may have been promised, and whoever reads it is told.
#[test]
fn a_block_that_cannot_be_read_counts_as_written() {
    let (area, _) = log(&[frame(&[2, 3])]);
    let unreadable = |cluster: PoolCluster, at| if cluster.0 == 2 { None } else { block(cluster, at) };
    assert_eq!(recover(&area, BASE, unreadable).unwrap().frames, 1);
}

#[test]
fn any_flipped_bit_or_cut_of_the_last_frame_ends_the_log() {
    let (good, ends) = log(&[frame(&[1]), frame(&[2])]);
    let padding = u32::from_be_bytes(good[ends[0] + 20..ends[0] + 24].try_into().unwrap()) as usize;
    let end = ends[0] + HEAD_BYTES + padding;
    for bit in ends[0] * 8..end * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&bad, BASE).unwrap().len(), 1, "bit {bit}");
    }
    for cut in ends[0]..end {
        let mut bad = good.clone();
        bad[cut..].fill(0);
        assert!(read(&bad, BASE).unwrap().len() == 1 || bad == good, "cut at {cut}");
        assert!(read(&good[..cut], BASE).unwrap().len() == 1, "the end at {cut}");
    }
}

/// It was durable when the next one was written: what it promised is gone.
#[test]
fn a_damaged_frame_before_a_whole_one_is_told() {
    let (good, ends) = log(&[frame(&[1]), frame(&[2]), frame(&[3])]);
    for (missing, at) in [(0, 5), (1, ends[0] + 40), (1, ends[0] + 20)] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        let error = read(&bad, BASE).unwrap_err();
        assert!(error.to_string().starts_with("INTENTS_DAMAGED: "), "{error}");
        assert!(matches!(error, IntentsError::Gap { missing: found, .. } if found == missing), "{error}");
    }
}

#[test]
fn what_is_none_of_ours_is_refused() {
    let named = Frame { changes: vec![Change::Commit(3)], ..frame(&[1]) };
    assert!(matches!(read(&log(&[named]).0, BASE), Err(IntentsError::Foreign(0, _))));
    let mut far = frame(&[1]);
    far.checked[0].block = 16;
    assert!(matches!(read(&log(&[far]).0, BASE), Err(IntentsError::Foreign(0, _))));
}
