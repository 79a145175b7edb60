//! Shows what a store holds, record by record, without a daemon: one JSON object on each line.
//!
//! Nothing is changed, and nothing is hidden: bytes that do not decode are shown as they are, with the reason.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::{Value, json};

use crate::catalog::format::keys::{self, KeyRange, key_text};
use crate::catalog::format::{LinkRecord, MapRecord, Record, Role};
use crate::catalog::mark::{MarkError, Slot, Slots};
use crate::catalog::meta::{MetaError, MetaStore};
use crate::catalog::rocks::{META_DIRECTORY, RocksMeta};
use crate::checkpoint::file::{CheckpointError, read_header};
use crate::fsck;
use crate::lock::LockError;
use crate::store::superblock::Superblock;
use crate::units::{LayerId, VolumeId};

/// What to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InspectQuery {
    /// Every record there is.
    Everything,
    /// Store, commit, volumes, snapshots, layers, pool files.
    Catalog,
    /// Map records, of one layer or of all.
    Maps(Option<LayerId>),
    /// Hashes of clusters, of one layer or of all.
    Hashes(Option<LayerId>),
    /// Hashes of layers.
    Roots,
    /// What commits changed.
    Journal,
    /// The mark's slots.
    Mark,
    /// The pool files' superblocks.
    Superblocks,
    /// The checkpoint's header.
    Checkpoint,
}

impl TryFrom<&[&str]> for InspectQuery {
    type Error = String;

    /// The words of a command line; none: the catalog.
    fn try_from(words: &[&str]) -> Result<Self, String> {
        let layer = |text: &str| {
            let number = text.parse().map_err(|_| format!("{text:?} is not the number of a layer"))?;
            Ok::<_, String>(Some(LayerId(number)))
        };
        Ok(match *words {
            ["all"] => Self::Everything,
            [] | ["catalog"] => Self::Catalog,
            ["maps"] => Self::Maps(None),
            ["maps", number] => Self::Maps(layer(number)?),
            ["hashes"] => Self::Hashes(None),
            ["hashes", number] => Self::Hashes(layer(number)?),
            ["roots"] => Self::Roots,
            ["journal"] => Self::Journal,
            ["mark"] => Self::Mark,
            ["superblocks"] => Self::Superblocks,
            ["checkpoint"] => Self::Checkpoint,
            _ => return Err(format!("nothing is called {:?}", words.join(" "))),
        })
    }
}

/// Why not all was shown.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// See [`LockError`].
    #[error(transparent)]
    Lock(#[from] LockError),
    /// See [`MetaError`].
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// See [`MarkError`].
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// There is no such store, or the output takes no more.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Writes what was asked for, one JSON object on each line.
///
/// # Errors
/// The store cannot be read, is in use, or the output takes no more.
pub fn inspect(data: &Path, what: InspectQuery, out: &mut dyn Write) -> Result<(), InspectError> {
    let directory = data.join(META_DIRECTORY);
    if !directory.is_dir() {
        let text = format!("{} has no directory `{META_DIRECTORY}`: not a store", data.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text).into());
    }
    let _lock = crate::lock::take(data)?;
    let range = match what {
        InspectQuery::Mark => return mark(data, out),
        InspectQuery::Superblocks => {
            return superblocks(data, &RocksMeta::open_read_only(&directory)?, out);
        }
        InspectQuery::Checkpoint => return checkpoint(data, out),
        InspectQuery::Everything => keys::every_range(),
        InspectQuery::Catalog => keys::catalog_range(),
        InspectQuery::Maps(layer) => layer.map_or_else(keys::maps_range, keys::map_range),
        InspectQuery::Hashes(layer) => layer.map_or_else(keys::hashes_range, keys::hash_range),
        InspectQuery::Roots => keys::roots_range(),
        InspectQuery::Journal => keys::journal_range(),
    };
    records(&RocksMeta::open_read_only(&directory)?, &range, out)
}

/// Writes the records of a range.
///
/// # Errors
/// `Meta`, `Io`.
pub fn records(store: &dyn MetaStore, range: &KeyRange, out: &mut dyn Write) -> Result<(), InspectError> {
    let mut written = Ok(());
    store.scan(&range.start, &range.end, &mut |key, value| {
        let object = Record::decode(key, value).map_or_else(|error| damaged(key, value, &error), record);
        written = writeln!(out, "{object}");
        Ok(if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(written?)
}

fn damaged(key: &[u8], value: &[u8], error: &MetaError) -> Value {
    json!({
        "record": "damaged",
        "key": key_text(key),
        "value": hex(value),
        "error": error.to_string(),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn record(record: Record) -> Value {
    match record {
        Record::Store(store) => json!({
            "record": "store",
            "version": store.version,
            "identity": hex(&store.identity),
            "next_volume": store.next_volume.0,
            "next_layer": store.next_layer.0,
            "next_snapshot": store.next_snapshot.0,
            "created_ms": store.created_ms,
        }),
        Record::Commit(commit) => json!({ "record": "commit", "commit": commit }),
        Record::Volume(id, volume) => json!({
            "record": "volume",
            "volume": id.0,
            "name": volume.name,
            "size": volume.size,
            "head": volume.head.0,
            "created_ms": volume.created_ms,
        }),
        Record::Snapshot(id, snapshot) => json!({
            "record": "snapshot",
            "snapshot": id.0,
            "volume": snapshot.volume.0,
            "name": snapshot.name,
            "layer": snapshot.layer.0,
            "size": snapshot.size,
            "created_ms": snapshot.created_ms,
            "holds": snapshot.holds,
        }),
        Record::Layer(id, layer) => json!({
            "record": "layer",
            "layer": id.0,
            "parent": layer.parent.map(|parent| parent.0),
            "volume": layer.volume.0,
        }),
        Record::PoolFile(file, record) => json!({
            "record": "pool_file",
            "file": file,
            "first": record.first.0,
            "clusters": record.clusters,
            "path": record.path,
        }),
        of_layer => layer_record(of_layer),
    }
}

fn layer_record(record: Record) -> Value {
    match record {
        Record::Map(layer, cluster, map) => map_record(layer, cluster.0, &map),
        Record::Hash(layer, cluster, hash) => {
            json!({ "record": "hash", "layer": layer.0, "cluster": cluster.0, "hash": hex(&hash) })
        }
        Record::Link(volume, link) => link_record(volume, &link),
        Record::Move(volume, moved) => json!({
            "record": "move",
            "volume": volume.0,
            "id": moved.id.to_string(),
            "peer": moved.peer.to_string(),
            "stage": moved.stage,
            "epoch": moved.epoch,
            "since": moved.since.0,
            "uid": moved.handover.map(|handover| handover.uid.to_string()),
            "root": moved.handover.map(|handover| hex(&handover.root)),
        }),
        Record::Origin(snapshot, origin) => json!({
            "record": "origin",
            "snapshot": snapshot.0,
            "uid": origin.uid.to_string(),
            "epoch": origin.point.epoch,
            "sequence": origin.point.sequence,
        }),
        Record::Root(layer, root) => {
            json!({ "record": "root", "layer": layer.0, "size": root.size, "hash": hex(&root.hash) })
        }
        Record::Journal(commit, changed) => {
            let changed: Vec<_> = changed.iter().map(|(layer, cluster)| [layer.0, cluster.0]).collect();
            json!({ "record": "journal", "commit": commit, "changed": changed })
        }
        // `record` has shown those.
        other => json!({ "record": format!("{other:?}") }),
    }
}

fn link_record(volume: VolumeId, link: &LinkRecord) -> Value {
    let receiving = link.receiving.as_ref().map(|receiving| {
        json!({
            "uid": receiving.uid.to_string(),
            "epoch": receiving.point.epoch,
            "sequence": receiving.point.sequence,
            "base": receiving.base.map(|id| id.0),
            "size": receiving.size,
            "name": receiving.name,
            "cursor": receiving.cursor,
            "staged": receiving.staged.map(|id| id.0),
        })
    });
    json!({
        "record": "link",
        "volume": volume.0,
        "lineage": link.lineage.to_string(),
        "epoch": link.epoch,
        "role": if link.role == Role::Replica { "replica" } else { "primary" },
        "peer": link.peer.to_string(),
        "diverged": link.diverged,
        "published": link.published.map(|id| id.0),
        "sequence": link.point.sequence,
        "receiving": receiving,
    })
}

fn map_record(layer: LayerId, cluster: u32, map: &MapRecord) -> Value {
    json!({
        "record": "map",
        "layer": layer.0,
        "cluster": cluster,
        "pool_cluster": map.cluster.map(|cluster| cluster.0),
        "data": format!("{:04x}", map.data.0),
        "zero": format!("{:04x}", map.zero.0),
        "packed": map.packed,
    })
}

fn mark(data: &Path, out: &mut dyn Write) -> Result<(), InspectError> {
    for (index, slot) in Slots::read(data)?.0.into_iter().enumerate() {
        let mut object = json!({ "record": "mark", "slot": index });
        match slot {
            Slot::Empty => object["state"] = "empty".into(),
            Slot::Damaged => object["state"] = "damaged".into(),
            Slot::Newer(version) => {
                object["state"] = "newer".into();
                object["version"] = version.into();
            }
            Slot::Valid { identity, commit } => {
                object["state"] = "valid".into();
                object["identity"] = hex(&identity).into();
                object["commit"] = commit.into();
            }
        }
        writeln!(out, "{object}")?;
    }
    Ok(())
}

fn checkpoint(data: &Path, out: &mut dyn Write) -> Result<(), InspectError> {
    let mut object = json!({ "record": "checkpoint" });
    match read_header(data) {
        Ok((header, length)) => {
            object["state"] = "present".into();
            object["identity"] = hex(&header.identity).into();
            object["commit"] = header.commit.into();
            object["pool_clusters"] = header.pool_clusters.into();
            object["maps"] = header.maps.into();
            object["length"] = length.into();
        }
        Err(CheckpointError::Missing) => object["state"] = "missing".into(),
        Err(error) => {
            object["state"] = "unusable".into();
            object["error"] = error.to_string().into();
        }
    }
    writeln!(out, "{object}")?;
    Ok(())
}

fn superblocks(data: &Path, store: &dyn MetaStore, out: &mut dyn Write) -> Result<(), InspectError> {
    let range = keys::catalog_range();
    let mut files = Vec::new();
    store.scan(&range.start, &range.end, &mut |key, value| {
        if let Ok(Record::PoolFile(index, record)) = Record::decode(key, value) {
            files.push((index, record));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    for (index, record) in files {
        let mut object = json!({ "record": "superblock", "pool_file": index, "path": record.path });
        let found = fsck::read_pool_file(data, &record).map_err(|error| error.to_string()).and_then(
            |(superblock, length)| {
                object["length"] = length.into();
                Superblock::decode(&superblock).map_err(|error| error.to_string())
            },
        );
        match found {
            Ok(found) => {
                object["file"] = found.file.into();
                object["identity"] = hex(&found.identity).into();
                object["first"] = found.first.0.into();
                object["clusters"] = found.clusters.into();
            }
            Err(error) => object["error"] = error.into(),
        }
        writeln!(out, "{object}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::format::{Change, RootRecord};
    use crate::catalog::memory::MemoryMeta;
    use crate::fsck::tests::store;
    use crate::units::ClusterIndex;

    fn lines(bytes: &[u8]) -> Vec<Value> {
        str::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn shown(data: &Path, what: InspectQuery) -> Vec<Value> {
        let mut out = Vec::new();
        inspect(data, what, &mut out).unwrap();
        lines(&out)
    }

    #[test]
    fn every_record_is_one_object() {
        let more = [
            Change::Hash(LayerId(1), ClusterIndex(0), Some([0xAB; 32])),
            Change::Root(LayerId(1), Some(RootRecord { size: 5, hash: [0xCD; 32] })),
            Change::Journal(1, vec![(LayerId(2), ClusterIndex(3))]),
        ];
        let data = store(&more);
        let all = shown(data.path(), InspectQuery::Everything);
        let kinds: Vec<_> = all.iter().map(|object| object["record"].as_str().unwrap()).collect();
        let expected = [
            "store",
            "commit",
            "volume",
            "layer",
            "layer",
            "layer",
            "pool_file",
            "map",
            "map",
            "hash",
            "root",
            "journal",
        ];
        assert_eq!(kinds, expected);
        assert_eq!(all[2]["name"], "vm");
        assert_eq!(all[4]["parent"], 1);
        assert_eq!(all[7]["pool_cluster"], 1);
        assert_eq!(all[7]["data"], "0101");
        assert_eq!(all[10]["hash"], "cd".repeat(32));
        assert_eq!(all[11]["changed"], json!([[2, 3]]));
    }

    #[test]
    fn a_query_shows_its_part() {
        let data = store(&[]);
        let count = |what| shown(data.path(), what).len();
        assert_eq!(count(InspectQuery::Catalog), 7);
        assert_eq!(count(InspectQuery::Maps(None)), 2);
        assert_eq!(count(InspectQuery::Maps(Some(LayerId(2)))), 1);
        assert_eq!(count(InspectQuery::Hashes(None)) + count(InspectQuery::Roots), 0);
        assert_eq!(count(InspectQuery::Journal), 0);
        let mark = shown(data.path(), InspectQuery::Mark);
        assert_eq!((&mark[0]["commit"], &mark[1]["commit"]), (&json!(0), &json!(1)));
        let superblocks = shown(data.path(), InspectQuery::Superblocks);
        assert_eq!(
            (&superblocks[0]["clusters"], &superblocks[0]["length"]),
            (&json!(100), &json!(6_553_600))
        );
        let checkpoint = || shown(data.path(), InspectQuery::Checkpoint).remove(0);
        assert_eq!(checkpoint()["state"], "missing");
        std::fs::write(data.path().join("checkpoint"), b"no checkpoint").unwrap();
        assert_eq!(checkpoint()["state"], "unusable");
        std::fs::remove_file(data.path().join("pool-0")).unwrap();
        assert!(shown(data.path(), InspectQuery::Superblocks)[0]["error"].is_string());
    }

    #[test]
    fn what_does_not_decode_is_shown_as_it_is() {
        let store = MemoryMeta::new();
        store.put_raw(&[0x12, 0, 0, 0, 1], &[0xFE]);
        let mut out = Vec::new();
        records(&store, &keys::every_range(), &mut out).unwrap();
        let [object] = &lines(&out)[..] else { panic!() };
        assert_eq!((&object["key"], &object["value"]), (&json!("12 00000001"), &json!("fe")));
        assert!(object["error"].as_str().unwrap().starts_with("META_DAMAGED: "));
    }

    #[test]
    fn an_output_that_takes_no_more_ends_it() {
        let data = store(&[]);
        let mut small = [0; 50];
        let error = inspect(data.path(), InspectQuery::Everything, &mut &mut small[..]).unwrap_err();
        assert!(matches!(error, InspectError::Io(_)));
    }

    #[test]
    fn a_store_in_use_is_not_read() {
        let data = store(&[]);
        let _held = crate::lock::take(data.path()).unwrap();
        let result = inspect(data.path(), InspectQuery::Mark, &mut Vec::new());
        assert!(matches!(result, Err(InspectError::Lock(LockError::Held(..)))));
    }
}
