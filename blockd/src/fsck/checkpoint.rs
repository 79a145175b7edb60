//! The checkpoint: one that a start would use must say what the records say.

use std::path::Path;

use super::report::{FsckReport, Problem, Severity};
use crate::catalog::load::{Loaded, PoolUse};
use crate::catalog::meta::MetaStore;
use crate::checkpoint::file::{CheckpointError, read};
use crate::checkpoint::{Checkpoint, SavedMap};
use crate::map;
use crate::units::LayerId;

/// Holds the checkpoint against what the map records have said.
pub(super) fn check(
    data: &Path,
    store: &dyn MetaStore,
    loaded: &Loaded,
    in_use: &PoolUse,
    report: &mut FsckReport,
) {
    let checkpoint = match read(data, loaded) {
        Ok(checkpoint) => checkpoint,
        Err(CheckpointError::Missing) => return,
        Err(error) => {
            report.add(Problem {
                severity: Severity::Note,
                what: format!("the checkpoint will not be used: {error}"),
                repair: "the next start reads all map records instead, and removes it".into(),
                repairable: false,
            });
            return;
        }
    };
    let mut differences: Vec<String> = pool_difference(&checkpoint, in_use).into_iter().collect();
    for saved in &checkpoint.maps {
        differences.extend(map_difference(store, loaded, saved));
    }
    for difference in differences {
        report.checkpoint_differs = true;
        report.add(Problem {
            severity: Severity::Error,
            what: format!("CHECKPOINT_DIFFERS: the checkpoint and the map records disagree on {difference}"),
            repair: "removes the checkpoint: the records are right".into(),
            repairable: true,
        });
    }
}

fn pool_difference(checkpoint: &Checkpoint, in_use: &PoolUse) -> Option<String> {
    let words = checkpoint.in_use.used.iter().zip(&in_use.used).zip(0_u64..);
    let differing = words.filter(|((a, b), _)| a != b).map(|((a, b), word)| {
        let first = word * 64 + u64::from((a ^ b).trailing_zeros());
        (first, u64::from((a ^ b).count_ones()))
    });
    let (first, count) =
        differing.fold((None, 0), |(first, sum), (at, count)| (first.or(Some(at)), sum + count));
    match first {
        Some(first) => Some(format!("{count} clusters of the pool, pool cluster {first} the first of them")),
        None => (checkpoint.in_use.packed != in_use.packed).then(|| "blocks of packed clusters".to_owned()),
    }
}

fn map_difference(store: &dyn MetaStore, loaded: &Loaded, saved: &SavedMap) -> Option<String> {
    let chain = chain(loaded, saved.head);
    let volume = saved.volume;
    match map::load(store, &chain, saved.map.clusters()) {
        Ok(scanned) => {
            let cluster = saved.map.first_difference(&scanned)?;
            Some(format!("volume {volume}, first at its cluster {cluster}"))
        }
        Err(error) => Some(format!("volume {volume}, whose records make no map: {error}")),
    }
}

/// A layer and its ancestors, newest first; not further than there are layers, for the catalog may be unsound.
fn chain(loaded: &Loaded, top: LayerId) -> Vec<LayerId> {
    let parent = |layer: &LayerId| loaded.layers.get(layer).and_then(|record| record.parent);
    std::iter::successors(Some(top), parent).take(loaded.layers.len()).collect()
}
