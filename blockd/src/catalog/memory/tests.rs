//! The twin is as deaf and as forgetful as the real store may be, and no more.

use super::*;
use crate::catalog::format::MapRecord;
use crate::catalog::format::keys::{every_range, map_key};
use crate::catalog::meta::{Batch, MetaAnswer, MetaDone, MetaOp, MetaPort};
use crate::units::{ClusterIndex, LayerId, Mask};

const LAYER: LayerId = LayerId(1);

/// A batch that leaves its number in one record of its own and one that all share.
fn batch(commit: u64) -> Batch {
    let record = MapRecord { zero: Mask(commit as u16), ..MapRecord::default() };
    vec![
        Change::Commit(commit),
        Change::Map(LAYER, ClusterIndex(0), Some(record)),
        Change::Map(LAYER, ClusterIndex(commit as u32), Some(record)),
    ]
}

fn submit(port: &SimMetaPort, commit: u64) {
    port.clone().submit(commit, MetaOp::Commit { commit, batch: batch(commit) });
}

fn scan(port: &SimMetaPort, tag: u64) {
    port.clone().submit(tag, MetaOp::Scan { layer: LAYER, from: ClusterIndex(0), limit: 100 });
}

/// The store after exactly so many batches.
fn after(commits: u64) -> Vec<RawRecord> {
    let store = MemoryMeta::new();
    for commit in 1..=commits {
        store.write(&batch(commit)).unwrap();
    }
    store.records()
}

#[test]
fn a_power_cut_keeps_what_completed_and_a_prefix_of_the_rest() {
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let mut rng = Rng::with_seed(seed);
        let port = SimMetaPort::new(MemoryMeta::new());
        (1..=4).for_each(|commit| submit(&port, commit));
        for commit in 1..=2 {
            assert_eq!(port.complete_one(&mut rng).unwrap().tag, commit);
        }
        let found = port.power_cut(&mut rng);
        assert_eq!(found.records(), after(found.commit()));
        assert!((2..=4).contains(&found.commit()));
        assert!(found.mark() >= 2 && found.mark() <= found.commit() && found.mark() + 1 >= found.commit());
        assert_eq!(port.pending(), 0);
        seen.insert((found.commit(), found.mark()));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(2, 2), (3, 2), (3, 3), (4, 3), (4, 4)]);
}

#[test]
fn a_failed_commit_may_or_may_not_be_there_and_no_later_one_is_taken() {
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let mut rng = Rng::with_seed(seed);
        let port = SimMetaPort::new(MemoryMeta::new());
        port.inject(MetaFault::Io);
        (1..=2).for_each(|commit| submit(&port, commit));
        for _ in 0..2 {
            assert!(matches!(port.complete_one(&mut rng).unwrap().result, Err(MetaError::Io(_))));
        }
        let shown = port.snapshot().commit();
        let found = port.power_cut(&mut rng);
        assert_eq!(found.records(), after(found.commit()));
        assert!(found.commit() <= 1 && found.mark() <= found.commit());
        seen.insert((shown, found.commit()));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(0, 0), (0, 1), (1, 0), (1, 1)]);
}

#[test]
fn without_space_nothing_is_written_and_the_next_commit_may_succeed() {
    for seed in 0..50 {
        let mut rng = Rng::with_seed(seed);
        let port = SimMetaPort::new(MemoryMeta::new());
        port.inject(MetaFault::NoSpace);
        submit(&port, 1);
        assert!(matches!(port.complete_one(&mut rng).unwrap().result, Err(MetaError::NoSpace)));
        assert!(port.snapshot().records().is_empty());
        submit(&port, 1);
        assert!(port.complete_one(&mut rng).unwrap().result.is_ok());
        assert_eq!(port.power_cut(&mut rng).records(), after(1));
        assert_eq!(port.faults_hit(), 1);
    }
}

fn newest(done: &MetaDone) -> u16 {
    let Ok(MetaAnswer::Records(records)) = &done.result else { panic!("{done:?}") };
    records.first().map_or(0, |(_, record)| record.zero.0)
}

/// A read sees at least what had completed before it was submitted; how much more is drawn.
#[test]
fn a_read_sees_some_moment_between_its_submission_and_its_completion() {
    let mut seen = BTreeSet::new();
    for seed in 0..400 {
        let mut rng = Rng::with_seed(seed);
        let port = SimMetaPort::new(MemoryMeta::new());
        submit(&port, 1);
        port.complete_one(&mut rng).unwrap();
        submit(&port, 2);
        scan(&port, 100);
        let first = port.complete_one(&mut rng).unwrap();
        let second = port.complete_one(&mut rng).unwrap();
        let late = first.tag == 2;
        let found = newest(if late { &second } else { &first });
        assert!((1..=2).contains(&found));
        seen.insert((late, found));
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

#[test]
fn a_read_fault_strikes_a_read() {
    let mut rng = Rng::with_seed(1);
    let port = SimMetaPort::new(MemoryMeta::new());
    port.inject(MetaFault::ReadDamaged);
    submit(&port, 1);
    assert!(port.complete_one(&mut rng).unwrap().result.is_ok());
    scan(&port, 2);
    assert!(matches!(port.complete_one(&mut rng).unwrap().result, Err(MetaError::Damaged(_))));
    scan(&port, 3);
    assert!(port.complete_one(&mut rng).unwrap().result.is_ok());
    assert!(port.complete_one(&mut rng).is_none());
}

#[test]
fn a_limited_scan_ends_at_its_limit() {
    let mut rng = Rng::with_seed(1);
    let port = SimMetaPort::new(MemoryMeta::new());
    for commit in 1..=5 {
        submit(&port, commit);
        port.complete_one(&mut rng).unwrap();
    }
    port.clone().submit(9, MetaOp::Scan { layer: LAYER, from: ClusterIndex(2), limit: 3 });
    let Ok(MetaAnswer::Records(records)) = port.complete_one(&mut rng).unwrap().result else { panic!() };
    assert_eq!(records.iter().map(|(cluster, _)| cluster.0).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn an_older_copy_is_exactly_what_there_was_and_the_mark_stays() {
    let store = MemoryMeta::new();
    for commit in 1..=6 {
        store.write(&batch(commit)).unwrap();
        store.set_mark(commit);
    }
    let trim = [Change::Commit(7), Change::DropHashes(LAYER), Change::Map(LAYER, ClusterIndex(3), None)];
    store.write(&trim).unwrap();
    assert_eq!(store.drop_last_commits(3), 3);
    assert_eq!(store.records(), after(4));
    assert_eq!((store.commit(), store.mark()), (4, 6));
    assert_eq!(store.drop_last_commits(10), 4);
}

#[test]
fn damage_is_in_one_record() {
    let store = MemoryMeta::new();
    (1..=3).for_each(|commit| store.write(&batch(commit)).unwrap());
    let good = store.records();
    let key = store.flip_bit(&mut Rng::with_seed(3)).unwrap();
    let differing: Vec<_> =
        store.records().into_iter().zip(good).filter(|(now, before)| now != before).collect();
    assert_eq!(differing.len(), 1);
    assert_eq!(differing[0].0.0, key);
    let key = store.fail_checksum(&mut Rng::with_seed(3)).unwrap();
    assert!(matches!(store.get(&key), Err(MetaError::Damaged(_))));
    assert!(collect(&store, &every_range()).is_err());
    assert!(store.get(&map_key(LayerId(9), ClusterIndex(0))).unwrap().is_none());
}
