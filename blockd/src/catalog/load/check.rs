//! What the records of the catalog must be to each other. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use super::{LoadError, Loaded};
use crate::catalog::format::{METADATA_VERSION, NO_CLUSTER, SnapshotRecord};
use crate::control::is_valid_name;
use crate::units::{LayerId, SIZE_UNIT_BYTES, VOLUME_BYTES_MAX, VolumeId};

mod links;

/// Where problems go.
pub(super) type Problems = Vec<LoadError>;

/// Adds every contradiction within a catalog.
pub(super) fn catalog(loaded: &Loaded, problems: &mut Problems) {
    numbers(loaded, problems);
    files(loaded, problems);
    layers(loaded, problems);
    volumes(loaded, problems);
    snapshots(loaded, problems);
    heads_are_open(loaded, problems);
    links::check(loaded, problems);
    roots(loaded, problems);
    journal(loaded, problems);
}

pub(super) fn damaged(problems: &mut Problems, text: String) {
    problems.push(LoadError::Damaged(text));
}

/// A number that would be given out again would make two things one.
fn numbers(loaded: &Loaded, problems: &mut Problems) {
    let store = &loaded.store;
    if store.version == 0 || store.version > METADATA_VERSION {
        damaged(problems, format!("the store is of version {}", store.version));
    }
    let last = |last: Option<u32>| last.unwrap_or(0);
    let kinds = [
        ("volume", store.next_volume.0, last(loaded.volumes.keys().next_back().map(|id| id.0))),
        ("layer", store.next_layer.0, last(loaded.layers.keys().next_back().map(|id| id.0))),
        ("snapshot", store.next_snapshot.0, last(loaded.snapshots.keys().next_back().map(|id| id.0))),
    ];
    for (kind, next, last) in kinds {
        if next <= last {
            damaged(problems, format!("{kind} {last} is there, but the next {kind}'s number is {next}"));
        }
    }
}

/// Files follow each other through the pool, in the order of their indices.
fn files(loaded: &Loaded, problems: &mut Problems) {
    let mut first = 0_u64;
    let mut paths = BTreeSet::new();
    let mut bad = |text: String| problems.push(LoadError::Pool(text));
    for ((index, file), expected) in loaded.files.iter().zip(0..) {
        if *index != expected {
            bad(format!("pool file {index} is there, but not {expected}"));
        }
        if u64::from(file.first.0) != first {
            bad(format!("pool file {index} begins with cluster {}, expected {first}", file.first));
        }
        if file.clusters == 0 {
            bad(format!("pool file {index} has no clusters"));
        }
        if file.path.is_empty() || file.path.contains('\0') {
            bad(format!("pool file {index} has the path {:?}", file.path));
        }
        if !paths.insert(&file.path) {
            bad(format!("pool file {index} has another's path {:?}", file.path));
        }
        first = u64::from(file.first.0) + u64::from(file.clusters);
    }
    if first > u64::from(NO_CLUSTER) {
        bad(format!("the pool has {first} clusters, more than there are numbers"));
    }
}

fn layers(loaded: &Loaded, problems: &mut Problems) {
    for (id, layer) in &loaded.layers {
        if let Some(parent) = layer.parent.filter(|parent| !loaded.layers.contains_key(parent)) {
            damaged(problems, format!("layer {id}'s parent {parent} does not exist"));
        }
    }
    // Ends at a root, or at a layer that was seen to end at one.
    let mut sound = BTreeSet::new();
    for start in loaded.layers.keys() {
        let mut path = BTreeSet::new();
        let mut at = Some(*start);
        while let Some(id) = at.filter(|id| !sound.contains(id)) {
            if !path.insert(id) {
                damaged(problems, format!("layer {id} is its own ancestor"));
                break;
            }
            at = loaded.layers.get(&id).and_then(|layer| layer.parent);
        }
        // Those of a cycle too: it was named once.
        sound.extend(path);
    }
}

pub(super) fn size_problem(size: u64) -> Option<String> {
    let legal = size > 0 && size <= VOLUME_BYTES_MAX && size.is_multiple_of(SIZE_UNIT_BYTES);
    (!legal).then(|| format!("has the size {size}"))
}

pub(super) fn name_problem(name: &str) -> Option<String> {
    (!is_valid_name(name)).then(|| format!("has the name {name:?}"))
}

fn volumes(loaded: &Loaded, problems: &mut Problems) {
    let mut names = BTreeMap::new();
    for (id, volume) in &loaded.volumes {
        let head = (!loaded.layers.contains_key(&volume.head))
            .then(|| format!("has the head layer {}, which does not exist", volume.head));
        let same = names.insert(&volume.name, id).map(|other| format!("has volume {other}'s name"));
        for text in [name_problem(&volume.name), size_problem(volume.size), head, same].into_iter().flatten()
        {
            damaged(problems, format!("volume {id} {text}"));
        }
    }
}

fn snapshots(loaded: &Loaded, problems: &mut Problems) {
    let mut names = BTreeMap::new();
    for (id, snapshot) in &loaded.snapshots {
        let SnapshotRecord { volume, name, layer, .. } = snapshot;
        let homeless = (!loaded.volumes.contains_key(volume))
            .then(|| format!("is of volume {volume}, which does not exist"));
        let empty = (!loaded.layers.contains_key(layer))
            .then(|| format!("names layer {layer}, which does not exist"));
        let same = names.insert((volume, name), id).map(|other| format!("has snapshot {other}'s name"));
        let texts =
            [name_problem(name), size_problem(snapshot.size), homeless, empty, same, holds_problem(snapshot)];
        for text in texts.into_iter().flatten() {
            damaged(problems, format!("snapshot {id} {text}"));
        }
    }
}

fn holds_problem(snapshot: &SnapshotRecord) -> Option<String> {
    let mut seen = BTreeSet::new();
    let bad = snapshot.holds.iter().find(|hold| !is_valid_name(hold) || !seen.insert(*hold))?;
    Some(format!("has the hold {bad:?}, which is no name or there twice"))
}

/// A head is written to: what else is read through it would change.
fn heads_are_open(loaded: &Loaded, problems: &mut Problems) {
    let mut heads: BTreeMap<LayerId, VolumeId> = BTreeMap::new();
    for (id, volume) in &loaded.volumes {
        if let Some(other) = heads.insert(volume.head, *id) {
            damaged(problems, format!("layer {} is the head of volumes {other} and {id}", volume.head));
        }
    }
    for (id, snapshot) in &loaded.snapshots {
        if let Some(volume) = heads.get(&snapshot.layer) {
            damaged(problems, format!("snapshot {id} names the head of volume {volume}"));
        }
    }
    for (id, layer) in &loaded.layers {
        if let Some(volume) = layer.parent.and_then(|parent| heads.get(&parent)) {
            damaged(problems, format!("layer {id}'s parent is the head of volume {volume}"));
        }
    }
}

fn roots(loaded: &Loaded, problems: &mut Problems) {
    let heads: BTreeSet<_> = loaded.volumes.values().map(|volume| volume.head).collect();
    for id in loaded.roots.keys() {
        if !loaded.layers.contains_key(id) {
            damaged(problems, format!("there is a hash of layer {id}, which does not exist"));
        } else if heads.contains(id) {
            damaged(problems, format!("there is a hash of layer {id}, which is a head"));
        }
    }
}

fn journal(loaded: &Loaded, problems: &mut Problems) {
    if let Some((last, _)) = loaded.journal.last_key_value().filter(|(last, _)| **last > loaded.commit) {
        damaged(problems, format!("there is a journal of commit {last}, but the last is {}", loaded.commit));
    }
}
