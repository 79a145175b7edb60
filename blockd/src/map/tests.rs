//! Many cuts, of a map that grows: what is of the open layer, and what only was.

use std::collections::BTreeMap;

use super::*;

const BLOCK: Mask = Mask(4);

/// Who wrote which cluster last, by the number of cuts before it.
struct Past {
    map: FlatMap,
    rng: fastrand::Rng,
    written: BTreeMap<u32, u32>,
    cuts: u32,
}

impl Past {
    fn new(seed: u64) -> Self {
        let map = FlatMap::new(PAGE_ENTRIES as u64 + 10);
        Self { map, rng: fastrand::Rng::with_seed(seed), written: BTreeMap::new(), cuts: 0 }
    }

    /// Writes to some clusters: to the first and the last, which a sweep meets at its ends, and some between.
    fn write(&mut self) {
        let last = self.map.clusters() as u32 - 1;
        for cluster in [0, self.rng.u32(..last), self.rng.u32(..last), last] {
            if self.rng.bool() {
                let record =
                    MapRecord { cluster: Some(PoolCluster(cluster)), data: BLOCK, ..MapRecord::default() };
                assert!(self.map.show(ClusterIndex(cluster), &record, true));
                self.written.insert(cluster, self.cuts);
            }
        }
    }

    fn cut(&mut self) {
        self.map.cut();
        self.cuts += 1;
    }

    /// Only what was written after the last cut may be written in place: a snapshot has the rest.
    fn check(&self) {
        for (&cluster, &written) in &self.written {
            let owned = self.map.owned(ClusterIndex(cluster), BLOCK).is_some();
            assert_eq!(owned, written == self.cuts, "cluster {cluster} of cut {written}, now {}", self.cuts);
            assert_eq!(self.map.get(ClusterIndex(cluster)).visible(), BLOCK);
        }
        let head = self.written.values().filter(|written| **written == self.cuts).count();
        assert_eq!(self.map.head_clusters(), head as u64);
    }
}

#[test]
fn what_was_cut_off_stays_so_however_many_cuts_follow() {
    for seed in 0..20 {
        let mut past = Past::new(seed);
        for _ in 0..10 * u32::from(GENERATIONS) {
            past.write();
            past.check();
            past.cut();
            past.check();
        }
    }
}

/// A part of a larger map is larger, or what lies behind the part would be swept too late: after the generation's number
/// has come again.
#[test]
fn a_map_that_grows_is_swept_in_time() {
    for seed in 0..20 {
        let mut past = Past::new(seed);
        for _ in 0..4 * u32::from(GENERATIONS) {
            past.write();
            past.cut();
            past.check();
            if past.rng.u8(..8) == 0 && past.map.clusters() < 40 * PAGE_ENTRIES as u64 {
                let more = past.map.clusters() * u64::from(past.rng.u8(1..4));
                past.map.grow(past.map.clusters() + more);
            }
        }
    }
}
