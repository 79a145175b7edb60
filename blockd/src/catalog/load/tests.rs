//! A sound store loads; each contradiction, one at a time, is refused by its name.

use std::collections::HashMap;

use super::*;
use crate::catalog::format::{Change, MapRecord, MoveRecord, Point, ReceivingRecord, Role, Stage};
use crate::catalog::memory::MemoryMeta;
use crate::units::{HostId, Lineage, Mask, MoveId, PoolCluster, SnapshotUid, VOLUME_BYTES_MAX};

const IDENTITY: [u8; 16] = [9; 16];

fn store_record() -> StoreRecord {
    StoreRecord {
        version: FORMAT_VERSION,
        identity: IDENTITY,
        next_volume: VolumeId(3),
        next_layer: LayerId(5),
        next_snapshot: SnapshotId(2),
        created_ms: 1,
    }
}

fn volume(name: &str, head: u32) -> VolumeRecord {
    VolumeRecord { name: name.into(), size: 1 << 20, head: LayerId(head), created_ms: 2 }
}

fn snapshot() -> SnapshotRecord {
    SnapshotRecord {
        volume: VolumeId(1),
        name: "monday".into(),
        layer: LayerId(1),
        size: 1 << 20,
        created_ms: 3,
        holds: vec!["sync".into()],
    }
}

fn layer(parent: u32, volume: u32) -> LayerRecord {
    LayerRecord { parent: (parent != 0).then_some(LayerId(parent)), volume: VolumeId(volume) }
}

fn file(first: u32, clusters: u32, path: &str) -> PoolFileRecord {
    PoolFileRecord { first: PoolCluster(first), clusters, path: path.into() }
}

fn in_place(cluster: u32) -> MapRecord {
    MapRecord { cluster: Some(PoolCluster(cluster)), data: Mask(1), ..MapRecord::default() }
}

fn packed(cluster: u32, start: u8, blocks: u32) -> MapRecord {
    let data = Mask::of(0..blocks);
    MapRecord { cluster: Some(PoolCluster(cluster)), data, zero: Mask::NONE, packed: Some(start) }
}

fn receiving(link: &mut LinkRecord) -> &mut ReceivingRecord {
    link.receiving.as_mut().unwrap()
}

/// A sound one, but for a change.
fn link(volume: u32, change: impl FnOnce(&mut LinkRecord)) -> Change {
    let receiving = ReceivingRecord {
        uid: SnapshotUid([1; 16]),
        token: [2; 16],
        point: Point { epoch: 1, sequence: 2 },
        base: Some(SnapshotId(1)),
        size: 1 << 20,
        created_ms: 4,
        name: "next".into(),
        cursor: 0,
        staged: None,
    };
    let mut link = LinkRecord {
        lineage: Lineage([3; 16]),
        epoch: 1,
        role: Role::Replica,
        peer: HostId([4; 16]),
        diverged: false,
        published: None,
        point: Point::default(),
        receiving: Some(receiving),
    };
    change(&mut link);
    Change::Link(VolumeId(volume), Some(Box::new(link)))
}

fn origin() -> OriginRecord {
    OriginRecord { uid: SnapshotUid([1; 16]), point: Point::default() }
}

#[test]
fn sound_links_and_origins_load() {
    let newer = Change::Store(StoreRecord { version: METADATA_VERSION, ..store_record() });
    let changes = [newer, link(1, |_| {}), Change::Origin(SnapshotId(1), Some(origin()))];
    let loaded = load(&store(&changes), 7).unwrap();
    assert_eq!((loaded.links.len(), loaded.origins.len()), (1, 1));
    let refused = refusal(&[link(1, |_| {}), link(2, |_| {})]);
    assert!(refused.contains("volumes 1 and 2 have the lineage"), "{refused}");
}

#[test]
fn who_may_write_is_what_a_move_under_way_says() {
    let of = |volume: u32, stage| {
        let (id, peer, since) = (MoveId([5; 16]), HostId([4; 16]), SnapshotId(1));
        let record = MoveRecord { id, peer, stage, epoch: 1, since, handover: None };
        Change::Move(VolumeId(volume), Some(Box::new(record)))
    };
    let loaded = load(&store(&[of(1, Stage::Frozen), of(2, Stage::Aborted)]), 7).unwrap();
    assert_eq!(loaded.moves.len(), 2);
    assert!(load(&store(&[link(1, |_| {}), of(1, Stage::Expected)]), 7).is_ok());
    for (changes, expected) in [
        (vec![of(1, Stage::Expected)], "the volume is this host's"),
        (vec![link(1, |_| {}), of(1, Stage::Frozen)], "the volume is another host's"),
        (vec![of(9, Stage::Aborted)], "a volume that does not exist"),
    ] {
        let refused = refusal(&changes);
        assert!(refused.contains(expected), "{refused}");
    }
}

/// Two volumes, one with a snapshot, and a layer that nothing refers to.
fn sound() -> Vec<Change> {
    let map = |layer, cluster, record| Change::Map(LayerId(layer), ClusterIndex(cluster), Some(record));
    vec![
        Change::Store(store_record()),
        Change::Commit(7),
        Change::Volume(VolumeId(1), Some(volume("a", 2))),
        Change::Volume(VolumeId(2), Some(volume("b", 3))),
        Change::Snapshot(SnapshotId(1), Some(snapshot())),
        Change::Layer(LayerId(1), Some(layer(0, 1))),
        Change::Layer(LayerId(2), Some(layer(1, 1))),
        Change::Layer(LayerId(3), Some(layer(1, 2))),
        Change::Layer(LayerId(4), Some(layer(0, 2))),
        Change::PoolFile(0, file(0, 64, "pool-0")),
        Change::PoolFile(1, file(64, 36, "/elsewhere")),
        Change::Root(LayerId(1), Some(RootRecord { size: 1 << 20, hash: [5; 32] })),
        Change::Hash(LayerId(1), ClusterIndex(0), Some([6; 32])),
        Change::Journal(7, vec![(LayerId(1), ClusterIndex(0))]),
        map(1, 0, in_place(1)),
        map(1, 1, packed(2, 0, 3)),
        map(1, 2, packed(2, 3, 13)),
        map(2, 0, in_place(63)),
        map(2, 9, MapRecord { zero: Mask::ALL, ..MapRecord::default() }),
        map(3, 0, in_place(65)),
        map(4, 0, packed(66, 4, 2)),
    ]
}

fn store(changes: &[Change]) -> MemoryMeta {
    let store = MemoryMeta::new();
    store.write(&sound()).unwrap();
    store.write(changes).unwrap();
    store
}

fn refusal(changes: &[Change]) -> String {
    load(&store(changes), 7).unwrap_err().to_string()
}

#[test]
fn a_sound_store_loads_whole() {
    let store = store(&[]);
    let loaded = load(&store, 7).unwrap();
    assert_eq!((loaded.commit, loaded.store.identity), (7, IDENTITY));
    assert_eq!((loaded.volumes.len(), loaded.snapshots.len(), loaded.layers.len()), (2, 1, 4));
    assert_eq!((loaded.files.len(), loaded.roots.len(), loaded.journal.len()), (2, 1, 1));
    assert_eq!(loaded.layers_to_reclaim().into_iter().collect::<Vec<_>>(), [LayerId(4)]);
    let mut seen = Vec::new();
    let found =
        scan_pool_use(&store, &loaded, &mut |layer, cluster, _| seen.push((layer.0, cluster.0))).unwrap();
    assert_eq!(seen, [(1, 0), (1, 1), (1, 2), (2, 0), (2, 9), (3, 0), (4, 0)]);
    let used: Vec<u32> = (0..200).filter(|cluster| found.is_used(PoolCluster(*cluster))).collect();
    assert_eq!(used, [0, 1, 2, 63, 64, 65, 66]);
    assert_eq!((found.used.len(), found.used_clusters()), (2, 7));
    let packed = HashMap::from([(PoolCluster(2), Mask::ALL), (PoolCluster(66), Mask::of(4..6))]);
    assert_eq!(found.packed, packed);
}

#[test]
fn layers_may_share_a_packed_cluster() {
    let shared = Change::Map(LayerId(1), ClusterIndex(5), Some(packed(66, 0, 4)));
    let store = store(&[shared]);
    let loaded = load(&store, 7).unwrap();
    let found = scan_pool_use(&store, &loaded, &mut |_, _, _| ()).unwrap();
    assert_eq!(found.packed[&PoolCluster(66)], Mask::of(0..6));
}

#[test]
fn the_mark_decides_whether_commits_are_missing() {
    let store = store(&[]);
    assert!(load(&store, 6).is_ok(), "one commit ahead of the mark: nobody was told");
    let error = load(&store, 8).unwrap_err();
    assert_eq!(error, LoadError::Rollback { commit: 7, mark: 8 });
    assert!(error.to_string().starts_with("META_ROLLBACK: "));
    let error = load(&MemoryMeta::new(), 1).unwrap_err();
    assert_eq!(error, LoadError::Rollback { commit: 0, mark: 1 });
    assert!(load(&MemoryMeta::new(), 0).unwrap_err().to_string().starts_with("META_DAMAGED: "));
}

#[test]
fn a_later_format_is_named_before_anything_is_decoded() {
    let newer = StoreRecord { version: METADATA_VERSION + 1, ..store_record() };
    let refused = refusal(&[Change::Store(newer), Change::Layer(LayerId(1), None)]);
    assert!(refused.starts_with("FORMAT_NEWER: metadata of version 5"), "{refused}");
}

#[test]
fn each_contradiction_is_refused_by_its_name() {
    let volume_1 = |record| Change::Volume(VolumeId(1), Some(record));
    let snapshot_1 = |record| Change::Snapshot(SnapshotId(1), Some(record));
    let with_size = |size| VolumeRecord { size, ..volume("a", 2) };
    let cases = [
        (Change::Store(StoreRecord { version: 0, ..store_record() }), "of version 0"),
        (
            Change::Store(StoreRecord { next_volume: VolumeId(2), ..store_record() }),
            "next volume's number is 2",
        ),
        (Change::Store(StoreRecord { next_layer: LayerId(4), ..store_record() }), "next layer's number is 4"),
        (Change::Store(StoreRecord { next_snapshot: SnapshotId(1), ..store_record() }), "next snapshot's"),
        (Change::PoolFile(0, file(1, 64, "p")), "begins with cluster 1, expected 0"),
        (Change::PoolFile(1, file(63, 36, "p")), "begins with cluster 63, expected 64"),
        (Change::PoolFile(3, file(100, 1, "p")), "pool file 3 is there, but not 2"),
        (Change::PoolFile(2, file(100, 0, "p")), "has no clusters"),
        (Change::PoolFile(2, file(100, 1, "pool-0")), "another's path"),
        (Change::PoolFile(2, file(100, 1, "")), "has the path \"\""),
        (Change::PoolFile(2, file(100, u32::MAX - 99, "p")), "more than there are numbers"),
        (Change::Layer(LayerId(1), None), "layer 2's parent 1 does not exist"),
        (Change::Layer(LayerId(1), Some(layer(1, 1))), "layer 1 is its own ancestor"),
        (Change::Layer(LayerId(3), None), "volume 2 has the head layer 3, which does not exist"),
        (Change::Layer(LayerId(4), Some(layer(2, 1))), "layer 4's parent is the head of volume 1"),
        (volume_1(volume("b", 2)), "has volume 1's name"),
        (volume_1(volume(".hidden", 2)), "has the name \".hidden\""),
        (volume_1(volume("a", 3)), "layer 3 is the head of volumes 1 and 2"),
        (volume_1(volume("a", 1)), "snapshot 1 names the head of volume 1"),
        (volume_1(with_size(0)), "has the size 0"),
        (volume_1(with_size(513)), "has the size 513"),
        (volume_1(with_size(VOLUME_BYTES_MAX + 512)), "has the size"),
        (snapshot_1(SnapshotRecord { volume: VolumeId(9), ..snapshot() }), "volume 9, which does not exist"),
        (snapshot_1(SnapshotRecord { layer: LayerId(9), ..snapshot() }), "layer 9, which does not exist"),
        (snapshot_1(SnapshotRecord { name: "a@b".into(), ..snapshot() }), "has the name \"a@b\""),
        (snapshot_1(SnapshotRecord { size: 1, ..snapshot() }), "has the size 1"),
        (
            snapshot_1(SnapshotRecord { holds: vec!["x".into(), "x".into()], ..snapshot() }),
            "has the hold \"x\"",
        ),
        (Change::Root(LayerId(9), Some(RootRecord { size: 1, hash: [0; 32] })), "hash of layer 9"),
        (Change::Root(LayerId(2), Some(RootRecord { size: 1, hash: [0; 32] })), "layer 2, which is a head"),
        (Change::Journal(8, vec![]), "journal of commit 8"),
        (link(9, |_| {}), "link of volume 9, which does not exist"),
        (link(1, |link| link.published = Some(SnapshotId(7))), "names snapshot 7, which is none of its own"),
        (link(2, |link| link.published = Some(SnapshotId(1))), "names snapshot 1, which is none of its own"),
        (link(1, |link| link.role = Role::Primary), "receives, and is no replica"),
        (link(1, |link| receiving(link).staged = Some(SnapshotId(7))), "has staged snapshot 7"),
        (link(1, |link| receiving(link).base = Some(SnapshotId(7))), "builds on snapshot 7"),
        (link(1, |link| receiving(link).name = "/".into()), "has the name \"/\""),
        (Change::Origin(SnapshotId(7), Some(origin())), "origin of snapshot 7, which does not exist"),
    ];
    for (change, expected) in cases {
        let refused = refusal(std::slice::from_ref(&change));
        let code = if matches!(change, Change::PoolFile(..)) { "POOL_MISMATCH: " } else { "META_DAMAGED: " };
        assert!(refused.starts_with(code) && refused.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn two_snapshots_of_one_name_are_refused() {
    let next = StoreRecord { next_snapshot: SnapshotId(9), ..store_record() };
    let refused = refusal(&[Change::Store(next), Change::Snapshot(SnapshotId(5), Some(snapshot()))]);
    assert!(refused.contains("snapshot 5 has snapshot 1's name"), "{refused}");
}

#[test]
fn a_longer_cycle_is_named_once() {
    let cycle = [
        Change::Layer(LayerId(1), Some(layer(3, 1))),
        Change::Layer(LayerId(3), Some(layer(4, 1))),
        Change::Layer(LayerId(4), Some(layer(1, 1))),
    ];
    let (_, problems) = survey(&store(&cycle), 7).unwrap();
    let cycles = problems.iter().filter(|problem| problem.to_string().contains("its own ancestor"));
    assert_eq!(cycles.count(), 1);
}

#[test]
fn what_does_not_decode_is_named_and_the_rest_is_read() {
    let store = store(&[]);
    store.put_raw(&[0x12, 0, 0, 0, 4], &[1, 2, 3]);
    store.put_raw(&[0x22], &[]);
    store.put_raw(&[0x77, 1], &[]);
    let (loaded, problems) = survey(&store, 7).unwrap();
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts[0].starts_with("META_DAMAGED: record 12 00000004 "));
    assert!(texts[1].contains("record 22 ") && texts[2].contains("record 77 01 "));
    assert_eq!(loaded.volumes.len(), 2);
}

#[test]
fn a_record_that_fails_its_checksum_stops_the_load() {
    for seed in 0..50 {
        let store = store(&[]);
        let key = store.fail_checksum(&mut fastrand::Rng::with_seed(seed)).unwrap();
        let result = load(&store, 7).and_then(|loaded| scan_pool_use(&store, &loaded, &mut |_, _, _| ()));
        match result {
            Err(error) => assert!(error.to_string().starts_with("META_DAMAGED: "), "{error}"),
            // Hashes are read when they are used.
            Ok(_) => assert_eq!(key[0], keys::kind::HASH),
        }
    }
}

fn pool_refusal(layer: u32, cluster: u32, record: MapRecord) -> String {
    let store = store(&[Change::Map(LayerId(layer), ClusterIndex(cluster), Some(record))]);
    let loaded = load(&store, 7).unwrap();
    scan_pool_use(&store, &loaded, &mut |_, _, _| ()).unwrap_err().to_string()
}

#[test]
fn a_map_record_that_names_what_it_cannot_is_refused() {
    let cases = [
        ((3, 5, in_place(100)), "layer 3, cluster 5: pool cluster 100 does not exist"),
        ((3, 5, in_place(u32::MAX - 1)), "does not exist"),
        ((3, 5, in_place(64)), "pool cluster 64 is a superblock"),
        ((3, 5, packed(0, 0, 1)), "pool cluster 0 is a superblock"),
        ((3, 5, in_place(63)), "pool cluster 63 belongs to another record"),
        ((3, 5, in_place(65)), "pool cluster 65 belongs to another record"),
        ((3, 5, in_place(2)), "pool cluster 2 belongs to another record"),
        ((1, 5, in_place(2)), "pool cluster 2 belongs to another record"),
        ((1, 5, packed(1, 3, 1)), "pool cluster 1 belongs to another record"),
        ((1, 5, packed(2, 3, 1)), "pool cluster 2 belongs to another record"),
        ((1, 5, packed(66, 5, 2)), "pool cluster 66 belongs to another record"),
        ((3, 5, packed(70, 0, 1)), "it is packed, in the open layer of a volume"),
        ((8, 5, in_place(70)), "layer 8, cluster 5: its layer does not exist"),
    ];
    for ((layer, cluster, record), expected) in cases {
        let refused = pool_refusal(layer, cluster, record);
        assert!(refused.starts_with("META_DAMAGED: ") && refused.contains(expected), "{expected}: {refused}");
    }
}
