//! Map records and hashes: there may be millions, so they are read as a stream.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::report::{FsckReport, Problem, Severity, beyond_repair};
use crate::catalog::format::keys::{hashes_range, maps_range};
use crate::catalog::format::{MapRecord, Record, decode_map};
use crate::catalog::load::{LoadError, Loaded, MapFault, PoolCheck, PoolUse};
use crate::catalog::meta::MetaStore;
use crate::units::{BLOCK_BYTES, CLUSTER_BLOCKS, CLUSTER_BYTES, ClusterIndex, LayerId, PoolCluster};

/// Layers that do not exist, and how many map records they have.
pub(super) type Leaked = BTreeMap<LayerId, u64>;

/// Bytes that each pool file must have for what is said to be in it.
pub(super) type Ends = BTreeMap<u16, u64>;

/// Clusters of which every owner is named; more are only counted.
const CONTESTED_MAX: usize = 1000;

/// What the map records say together.
pub(super) struct Checked {
    pub(super) leaked: Leaked,
    pub(super) ends: Ends,
    pub(super) in_use: PoolUse,
}

/// Checks all map records.
pub(super) fn check(
    store: &dyn MetaStore,
    loaded: &Loaded,
    report: &mut FsckReport,
) -> Result<Checked, LoadError> {
    let mut check = PoolCheck::new(loaded);
    let mut stream =
        Stream { loaded, report, leaked: Leaked::new(), ends: Ends::new(), contested: BTreeSet::new() };
    let range = maps_range();
    store.scan(&range.start, &range.end, &mut |key, value| {
        stream.report.counts.map_records += 1;
        match decode_map(key, value) {
            // Judged by itself: it will be deleted, and then no longer contest what others name.
            Ok((layer, ..)) if !loaded.layers.contains_key(&layer) => {
                *stream.leaked.entry(layer).or_default() += 1;
            }
            Ok((layer, cluster, record)) => {
                stream.take(layer, cluster, &record, check.take(layer, &record));
            }
            Err(error) => stream.report.add(beyond_repair(error.to_string())),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let in_use = check.finish();
    stream.report.counts.used_clusters = in_use.used_clusters();
    stream.report_leaks();
    let Stream { leaked, ends, contested, .. } = stream;
    name_owners(store, &contested, report)?;
    Ok(Checked { leaked, ends, in_use })
}

struct Stream<'a> {
    loaded: &'a Loaded,
    report: &'a mut FsckReport,
    leaked: Leaked,
    ends: Ends,
    /// Clusters with more than one owner.
    contested: BTreeSet<PoolCluster>,
}

impl Stream<'_> {
    fn take(
        &mut self,
        layer: LayerId,
        cluster: ClusterIndex,
        record: &MapRecord,
        fault: Result<(), MapFault>,
    ) {
        let Err(fault) = fault else { return self.note_end(record) };
        if let MapFault::DoublyOwned(cluster) = fault
            && self.contested.len() < CONTESTED_MAX
        {
            self.contested.insert(cluster);
        }
        let what = format!("META_DAMAGED: map record of layer {layer}, cluster {cluster}: {fault}");
        self.report.add(beyond_repair(what));
    }

    /// The file must reach to the record's last data block.
    fn note_end(&mut self, record: &MapRecord) {
        let Some(cluster) = record.cluster.filter(|_| !record.data.is_empty()) else { return };
        let blocks = match record.packed {
            Some(start) => u32::from(start) + record.data.count(),
            None => CLUSTER_BLOCKS - record.data.0.leading_zeros(),
        };
        let file = self.loaded.files.iter().rfind(|(_, file)| file.first <= cluster);
        let Some((index, file)) = file else { return };
        let start = u64::from(cluster.0 - file.first.0) * CLUSTER_BYTES;
        let end = self.ends.entry(*index).or_default();
        *end = (*end).max(start + u64::from(blocks) * BLOCK_BYTES);
    }

    fn report_leaks(&mut self) {
        for (layer, records) in &self.leaked {
            self.report.add(Problem {
                severity: Severity::Error,
                what: format!("META_DAMAGED: {records} map records of layer {layer}, which does not exist"),
                repair: "deletes them; what they name in the pool is free then".into(),
                repairable: true,
            });
        }
    }
}

/// A second pass, in the hope that one of the owners can be done without.
fn name_owners(
    store: &dyn MetaStore,
    contested: &BTreeSet<PoolCluster>,
    report: &mut FsckReport,
) -> Result<(), LoadError> {
    if contested.is_empty() {
        return Ok(());
    }
    let mut owners: BTreeMap<PoolCluster, Vec<String>> = BTreeMap::new();
    let range = maps_range();
    store.scan(&range.start, &range.end, &mut |key, value| {
        // What does not decode was reported by the first pass.
        if let Ok((layer, cluster, MapRecord { cluster: Some(pool), .. })) = decode_map(key, value)
            && contested.contains(&pool)
        {
            owners.entry(pool).or_default().push(format!("layer {layer} at {cluster}"));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for (cluster, owners) in owners {
        report.add(beyond_repair(format!("pool cluster {cluster} is named by {}", owners.join(", "))));
    }
    Ok(())
}

/// Checks the hashes of clusters: that they decode, and that their layers can have hashes.
pub(super) fn check_hashes(
    store: &dyn MetaStore,
    loaded: &Loaded,
    report: &mut FsckReport,
) -> Result<(), LoadError> {
    let heads: BTreeSet<_> = loaded.volumes.values().map(|volume| volume.head).collect();
    let mut strays: BTreeMap<LayerId, u64> = BTreeMap::new();
    let range = hashes_range();
    store.scan(&range.start, &range.end, &mut |key, value| {
        report.counts.hashes += 1;
        match Record::decode(key, value) {
            Ok(Record::Hash(layer, ..)) if !loaded.layers.contains_key(&layer) || heads.contains(&layer) => {
                *strays.entry(layer).or_default() += 1;
            }
            Ok(_) => {}
            Err(error) => report.add(beyond_repair(error.to_string())),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for (layer, hashes) in strays {
        report.add(beyond_repair(format!(
            "META_DAMAGED: {hashes} hashes of layer {layer}, which does not exist or is a head"
        )));
    }
    Ok(())
}
