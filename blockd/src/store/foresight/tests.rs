use super::*;

const A: VolumeId = VolumeId(1);
const B: VolumeId = VolumeId(2);

fn at(ms: u64) -> Nanos {
    Nanos(ms * 1_000_000)
}

/// Cuts of a volume at these milliseconds.
fn after_cuts(volume: VolumeId, times_ms: &[u64]) -> Foresight {
    let mut foresight = Foresight::default();
    times_ms.iter().for_each(|ms| foresight.cut(volume, at(*ms)));
    foresight
}

/// Lets time pass, a millisecond at a time, and returns when passes were due.
fn due(foresight: &mut Foresight, from_ms: u64, to_ms: u64) -> Vec<u64> {
    let is_due = |ms: &u64| {
        let due = foresight.is_due(at(*ms));
        if due {
            foresight.plan(at(*ms).after(PASS_EVERY));
        }
        due
    };
    (from_ms..to_ms).filter(is_due).collect()
}

#[test]
fn one_cut_is_no_rhythm() {
    assert_eq!(after_cuts(A, &[5000]).next, None);
}

#[test]
fn passes_begin_before_the_next_cut_and_end_when_it_does_not_come() {
    let mut foresight = after_cuts(A, &[1000, 6000]);
    let due = due(&mut foresight, 6000, 60_000);
    assert_eq!((due.first(), due.last()), (Some(&10_000), Some(&12_000)));
    assert_eq!(due.len(), 201, "one in {PASS_EVERY:?}");
    assert_eq!(foresight.next, None);
}

#[test]
fn a_short_interval_has_a_short_lead() {
    let mut foresight = after_cuts(A, &[1000, 1200]);
    let due = due(&mut foresight, 1200, 60_000);
    assert_eq!((due.first(), due.last()), (Some(&1350), Some(&1450)));
}

#[test]
fn a_cut_ends_the_passes_and_is_measured_from() {
    let mut foresight = after_cuts(A, &[1000, 6000]);
    assert!(!due(&mut foresight, 6000, 11_100).is_empty());
    foresight.cut(A, at(11_100));
    assert_eq!(foresight.next, Some(at(11_100 + 5100 - 1000)));
}

#[test]
fn each_volume_has_its_own_rhythm() {
    let mut foresight = after_cuts(A, &[0, 5000]);
    foresight.cut(B, at(6000));
    assert_eq!(foresight.next, Some(at(9000)), "another volume's cut is not the next one");
    foresight.cut(B, at(7000));
    let due = due(&mut foresight, 7000, 60_000);
    assert_eq!((due.first(), due.last()), (Some(&7750), Some(&11_000)));
    assert!(due.iter().all(|ms| (7750..=8250).contains(ms) || (9000..=11_000).contains(ms)), "{due:?}");
}

#[test]
fn cuts_that_are_far_apart_are_forgotten() {
    let mut foresight = after_cuts(A, &[0]);
    foresight.cut(B, at(3_601_000));
    assert_eq!(foresight.rhythms.len(), 1);
    foresight.cut(A, at(3_602_000));
    assert_eq!(foresight.next, None);
}

/// Regions of a pass.
fn count(ranges: &[(usize, Range<u64>)]) -> u64 {
    ranges.iter().map(|(_, range)| (range.end - range.start) / REGION_BYTES).sum()
}

fn write_block(foresight: &mut Foresight, file: usize, region: u64) {
    let block = region * REGION_BYTES + 4096;
    foresight.wrote(file, &(block..block + 4096));
}

/// So many regions of each of two files are written to, every other one.
fn write(foresight: &mut Foresight, regions: u64) {
    for file in 0..2 {
        (0..regions).for_each(|region| write_block(foresight, file, region * 2));
    }
}

#[test]
fn the_first_sweep_takes_its_time_and_the_third_takes_one_pass() {
    let mut foresight = after_cuts(A, &[1000, 6000]);
    for (sweep, passes) in [(1, 50), (2, 10), (3, 1), (4, 1)] {
        write(&mut foresight, 25);
        let sizes: Vec<u64> = (0..passes).map(|_| count(&foresight.pass())).collect();
        assert_eq!(sizes.iter().sum::<u64>(), 50, "sweep {sweep}");
        assert!(sizes.iter().all(|size| *size == 50 / passes), "sweep {sweep}: {sizes:?}");
    }
    assert!(foresight.pass().is_empty(), "nothing was written since");
}

#[test]
fn what_is_written_during_a_sweep_belongs_to_the_next_one() {
    let mut foresight = after_cuts(A, &[1000, 6000]);
    write(&mut foresight, 25);
    let first = foresight.pass();
    write(&mut foresight, 1);
    (1..50).for_each(|_| assert_eq!(count(&foresight.pass()), 1));
    assert_eq!(foresight.pass(), first, "it was written to again");
}

#[test]
fn a_pass_joins_what_lies_together_and_has_a_bound() {
    let mut foresight = after_cuts(A, &[1000, 6000]);
    [7, 3, 5, 4, 4].iter().for_each(|&region| write_block(&mut foresight, 0, region));
    write_block(&mut foresight, 1, 8);
    foresight.sweep.earlier = SWEEP_PASSES.len();
    let found = foresight.pass();
    let region = |from: u64, to: u64| from * REGION_BYTES..to * REGION_BYTES;
    assert_eq!(found.as_slice(), [(0, region(3, 6)), (0, region(7, 8)), (1, region(8, 9))]);
    write(&mut foresight, 100);
    let sizes: Vec<u64> = (0..4).map(|_| count(&foresight.pass())).collect();
    assert_eq!(sizes, [64, 64, 64, 8]);
}

#[test]
fn a_long_write_belongs_to_all_its_regions() {
    let mut foresight = after_cuts(A, &[1000, 6000]);
    foresight.wrote(0, &(REGION_BYTES - 1..3 * REGION_BYTES + 1));
    assert_eq!(foresight.written.take(), [(0, 0), (0, 1), (0, 2), (0, 3)]);
    foresight.wrote(0, &(REGION_BYTES..2 * REGION_BYTES));
    assert_eq!(foresight.written.take(), [(0, 1)]);
}

#[test]
fn nothing_is_noted_where_no_cut_is_expected() {
    let mut foresight = after_cuts(A, &[1000]);
    write(&mut foresight, 5);
    assert!(foresight.written.files.is_empty());
}

#[test]
fn a_cut_forgets_what_was_written_before_it() {
    let mut foresight = after_cuts(A, &[1000, 6000]);
    write(&mut foresight, 25);
    assert!(!foresight.pass().is_empty());
    write(&mut foresight, 25);
    foresight.cut(A, at(11_000));
    assert!(foresight.pass().is_empty());
    write(&mut foresight, 25);
    assert_eq!(count(&foresight.pass()), 1, "sweeps begin anew");
}
