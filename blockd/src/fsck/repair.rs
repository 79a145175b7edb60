//! The few repairs that there are.

use std::ops::ControlFlow;
use std::path::Path;

use super::report::{NO_REPAIR, Problem, Severity};
use super::{Found, FsckReport, LoadError, META_DIRECTORY, Mark, MetaStore, RocksMeta};
use crate::catalog::format::keys::map_range;
use crate::catalog::format::{Change, decode_map};
use crate::catalog::meta::{Batch, MetaError};
use crate::checkpoint::file as checkpoint;
use crate::units::LayerId;

/// Records deleted by one commit: a batch is held in memory.
const DELETIONS_MAX: usize = 4096;

/// Repairs what can be, and says so in the report.
pub(super) fn repair(data: &Path, found: &Found, report: &mut FsckReport) -> Result<(), LoadError> {
    if report.checkpoint_differs {
        checkpoint::remove(data).map_err(|error| MetaError::Io(error.to_string()))?;
        report.repaired.push("the checkpoint was removed".into());
    }
    let (commit, identity) = (found.loaded.commit, found.loaded.store.identity);
    // A layer of which the record was lost looks as if it did not exist: its map records are all that is left of
    // it. And where commits are missing, any write would bury what may still be found.
    if !found.sound {
        report.add(Problem {
            severity: Severity::Note,
            what: "nothing was repaired: a repair believes the catalog, and the catalog has errors".into(),
            repair: NO_REPAIR.into(),
            repairable: false,
        });
        return Ok(());
    }
    if found.mark_is_damaged {
        Mark::rewrite(data, identity, found.mark.unwrap_or(commit))?;
        report
            .repaired
            .push(format!("the mark was written anew, at commit {}", found.mark.unwrap_or(commit)));
    }
    if found.leaked.is_empty() {
        return Ok(());
    }
    if found.has_intents {
        report.add(Problem {
            severity: Severity::Note,
            what: "no map records were deleted: that is a commit, and the intent log follows the last one"
                .into(),
            repair: "start the daemon and stop it, then repair".into(),
            repairable: false,
        });
        return Ok(());
    }
    let store = RocksMeta::open(&data.join(META_DIRECTORY), false)?;
    let mut writer = Writer { store, mark: Mark::open(data, identity)?, commit };
    for (layer, records) in &found.leaked {
        writer.delete_maps(*layer)?;
        report.repaired.push(format!("{records} map records of layer {layer} were deleted"));
    }
    Ok(())
}

struct Writer {
    store: RocksMeta,
    mark: Mark,
    commit: u64,
}

impl Writer {
    fn delete_maps(&mut self, layer: LayerId) -> Result<(), LoadError> {
        loop {
            let batch = self.next_deletions(layer)?;
            if batch.is_empty() {
                return Ok(());
            }
            self.commit(batch)?;
        }
    }

    fn next_deletions(&self, layer: LayerId) -> Result<Batch, MetaError> {
        let (range, mut batch) = (map_range(layer), Batch::new());
        self.store.scan(&range.start, &range.end, &mut |key, value| {
            let (layer, cluster, _) = decode_map(key, value)?;
            batch.push(Change::Map(layer, cluster, None));
            let full = batch.len() == DELETIONS_MAX;
            Ok(if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(batch)
    }

    fn commit(&mut self, mut batch: Batch) -> Result<(), LoadError> {
        self.commit += 1;
        batch.push(Change::Commit(self.commit));
        self.store.write(&batch)?;
        Ok(self.mark.advance(self.commit)?)
    }
}
