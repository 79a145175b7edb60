//! What links, origins and moves must be to the rest of the catalog.

use std::collections::BTreeMap;

use super::{Problems, damaged, name_problem, size_problem};
use crate::catalog::format::{LinkRecord, MoveRecord, ReceivingRecord, Role, Stage};
use crate::catalog::load::Loaded;
use crate::units::{SnapshotId, VolumeId};

/// Adds every contradiction.
pub(super) fn check(loaded: &Loaded, problems: &mut Problems) {
    let mut lineages = BTreeMap::new();
    for (id, link) in &loaded.links {
        if !loaded.volumes.contains_key(id) {
            damaged(problems, format!("there is a link of volume {id}, which does not exist"));
        }
        if let Some(other) = lineages.insert(link.lineage, id) {
            damaged(problems, format!("volumes {other} and {id} have the lineage {}", link.lineage));
        }
        for text in link_problems(loaded, *id, link) {
            damaged(problems, format!("the link of volume {id} {text}"));
        }
    }
    for id in loaded.origins.keys().filter(|id| !loaded.snapshots.contains_key(id)) {
        damaged(problems, format!("there is an origin of snapshot {id}, which does not exist"));
    }
    for (id, record) in &loaded.moves {
        if let Some(text) = move_problem(loaded, *id, record) {
            damaged(problems, format!("the move of volume {id} {text}"));
        }
    }
}

/// While a move is under way, who may write is what its stage says. Afterwards much may have happened.
fn move_problem(loaded: &Loaded, volume: VolumeId, record: &MoveRecord) -> Option<&'static str> {
    if !loaded.volumes.contains_key(&volume) {
        return Some("is one of a volume that does not exist");
    }
    let role = loaded.links.get(&volume).map_or(Role::Primary, |link| link.role);
    match (record.stage, role) {
        (Stage::Frozen, Role::Replica) => Some("is of this host, and the volume is another host's"),
        (Stage::Expected, Role::Primary) => Some("is of another host, and the volume is this host's"),
        _ => None,
    }
}

fn link_problems(loaded: &Loaded, volume: VolumeId, link: &LinkRecord) -> Vec<String> {
    let own = |id: SnapshotId| loaded.snapshots.get(&id).is_some_and(|record| record.volume == volume);
    let mut texts = Vec::new();
    if let Some(id) = link.published.filter(|&id| !own(id)) {
        texts.push(format!("names snapshot {id}, which is none of its own"));
    }
    let Some(receiving) = &link.receiving else { return texts };
    if link.role != Role::Replica {
        texts.push("receives, and is no replica".to_owned());
    }
    if let Some(id) = receiving.staged.filter(|&id| !own(id)) {
        texts.push(format!("has staged snapshot {id}, which is none of its own"));
    }
    texts.extend(receiving_problems(loaded, receiving));
    texts
}

fn receiving_problems(loaded: &Loaded, receiving: &ReceivingRecord) -> Vec<String> {
    let missing = receiving.base.filter(|id| !loaded.snapshots.contains_key(id));
    let base = missing.map(|id| format!("builds on snapshot {id}, which does not exist"));
    [base, name_problem(&receiving.name), size_problem(receiving.size)].into_iter().flatten().collect()
}
