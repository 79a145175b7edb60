//! Each record byte for byte, as the document draws it; everything comes back as it was; nothing makes us panic.

use proptest::collection::vec;
use proptest::prelude::*;

use super::keys::{self, KeyRange};
use super::*;
use crate::catalog::meta::MetaError;
use crate::units::{HostId, Lineage, MoveId, SnapshotUid};

/// What a change did, in the order in which it did it.
#[derive(Default)]
struct Raw {
    puts: Vec<(Vec<u8>, Vec<u8>)>,
    deletes: Vec<Vec<u8>>,
    ranges: Vec<KeyRange>,
}

impl RawSink for Raw {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.puts.push((key.to_vec(), value.to_vec()));
    }

    fn delete(&mut self, key: &[u8]) {
        self.deletes.push(key.to_vec());
    }

    fn delete_range(&mut self, range: KeyRange) {
        self.ranges.push(range);
    }
}

fn encoded(change: &Change) -> Raw {
    let mut raw = Raw::default();
    change.encode(&mut raw);
    raw
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The only put of a change, in hexadecimal.
fn put(change: &Change) -> (String, String) {
    let raw = encoded(change);
    let [(key, value)] = &raw.puts[..] else { panic!("{} puts", raw.puts.len()) };
    assert!(raw.deletes.is_empty() && raw.ranges.is_empty());
    (hex(key), hex(value))
}

#[track_caller]
fn golden(change: &Change, key: &str, value: &str) {
    let spaceless = |text: &str| text.replace(' ', "");
    assert_eq!(put(change), (spaceless(key), spaceless(value)));
}

#[test]
fn the_store_and_commit_records_are_as_drawn() {
    let store = StoreRecord {
        version: 1,
        identity: *b"0123456789abcdef",
        next_volume: VolumeId(2),
        next_layer: LayerId(0x0103),
        next_snapshot: SnapshotId(4),
        created_ms: 0x0506,
    };
    golden(
        &Change::Store(store),
        "00",
        "00000001 30313233343536373839616263646566 00000002 00000103 00000004 0000000000000506",
    );
    golden(&Change::Commit(0x0102), "01", "0000000000000102");
}

#[test]
fn the_catalog_records_are_as_drawn() {
    let volume = VolumeRecord { name: "vm".into(), size: 0x10000, head: LayerId(7), created_ms: 9 };
    golden(
        &Change::Volume(VolumeId(3), Some(volume)),
        "10 00000003",
        "0000000000010000 00000007 0000000000000009 0002 766d",
    );
    let snapshot = SnapshotRecord {
        volume: VolumeId(3),
        name: "a".into(),
        layer: LayerId(6),
        size: 0x200,
        created_ms: 8,
        holds: vec!["x".into(), "yz".into()],
    };
    golden(
        &Change::Snapshot(SnapshotId(5), Some(snapshot)),
        "11 00000005",
        "00000003 00000006 0000000000000200 0000000000000008 0001 61 0002 0001 78 0002 797a",
    );
    let layer = LayerRecord { parent: Some(LayerId(6)), volume: VolumeId(3) };
    golden(&Change::Layer(LayerId(7), Some(layer)), "12 00000007", "00000006 00000003");
    let layer = LayerRecord { parent: None, volume: VolumeId(3) };
    golden(&Change::Layer(LayerId(6), Some(layer)), "12 00000006", "00000000 00000003");
    let file = PoolFileRecord { first: PoolCluster(0x100), clusters: 0x200, path: "p".into() };
    golden(&Change::PoolFile(1, file), "13 0001", "00000100 00000200 0001 70");
}

#[test]
fn links_and_origins_are_as_drawn() {
    let (uid, token) = (SnapshotUid(*b"uuuuuuuuuuuuuuuu"), *b"tttttttttttttttt");
    let receiving = ReceivingRecord {
        uid,
        token,
        point: Point { epoch: 3, sequence: 9 },
        base: Some(SnapshotId(5)),
        size: 0x10000,
        created_ms: 7,
        name: "s".into(),
        cursor: 0x0102,
        staged: None,
    };
    let link = LinkRecord {
        lineage: Lineage(*b"llllllllllllllll"),
        epoch: 3,
        role: Role::Replica,
        peer: HostId(*b"hhhhhhhhhhhhhhhh"),
        diverged: false,
        published: Some(SnapshotId(5)),
        point: Point { epoch: 3, sequence: 8 },
        receiving: Some(receiving),
    };
    let sixteen = |byte: u8| hex(&[byte; 16]);
    let head = format!(
        "{} 0000000000000003 01 {} 00 00000005 0000000000000003 0000000000000008",
        sixteen(b'l'),
        sixteen(b'h')
    );
    let tail = format!(
        "01 {} {} 0000000000000003 0000000000000009 00000005 0000000000010000 0000000000000007 \
         0000000000000102 00000000 0001 73",
        sixteen(b'u'),
        sixteen(b't')
    );
    golden(
        &Change::Link(VolumeId(2), Some(Box::new(link.clone()))),
        "14 00000002",
        &format!("{head} {tail}"),
    );
    let idle = LinkRecord { receiving: None, ..link };
    golden(&Change::Link(VolumeId(2), Some(Box::new(idle))), "14 00000002", &format!("{head} 00"));
    let origin = OriginRecord { uid, point: Point { epoch: 1, sequence: 2 } };
    let value = format!("{} 0000000000000001 0000000000000002", sixteen(b'u'));
    golden(&Change::Origin(SnapshotId(6), Some(origin)), "15 00000006", &value);
}

#[test]
fn moves_are_as_drawn() {
    let (id, peer) = (MoveId([b'm'; 16]), HostId([b'h'; 16]));
    let frozen =
        MoveRecord { id, peer, stage: Stage::Frozen, epoch: 7, since: SnapshotId(9), handover: None };
    let head = format!("{} {}", "6d".repeat(16), "68".repeat(16));
    let at = |record: MoveRecord| Change::Move(VolumeId(2), Some(Box::new(record)));
    golden(&at(frozen.clone()), "16 00000002", &format!("{head} 00 0000000000000007 00000009 00"));
    let handover = Some(Handover { uid: SnapshotUid([b'u'; 16]), root: [b'r'; 32] });
    let tail = format!("01 {} {}", "75".repeat(16), "72".repeat(32));
    let released = MoveRecord { stage: Stage::Released, handover, ..frozen.clone() };
    golden(&at(released.clone()), "16 00000002", &format!("{head} 01 0000000000000007 00000009 {tail}"));
    let owned = MoveRecord { stage: Stage::Owned, since: SnapshotId(0), ..released };
    golden(&at(owned), "16 00000002", &format!("{head} 03 0000000000000007 00000000 {tail}"));
    for (stage, byte) in [(Stage::Expected, "02"), (Stage::Aborted, "04")] {
        let record = MoveRecord { stage, ..frozen.clone() };
        golden(&at(record), "16 00000002", &format!("{head} {byte} 0000000000000007 00000009 00"));
    }
}

/// Of those that were released or owned, all is known; of others there is nothing to know.
#[test]
fn a_move_that_has_changed_hands_says_with_what() {
    let record = |stage: u8, handed: &[u8]| {
        let mut value = [[1; 16], [2; 16]].concat();
        value.push(stage);
        value.extend([0; 12]);
        value.extend(handed);
        Record::decode(&keys::move_key(VolumeId(1)), &value)
    };
    let handed: Vec<u8> = [&[1][..], &[3; 48]].concat();
    assert!(record(0, &[0]).is_ok() && record(1, &handed).is_ok());
    for (stage, handed) in [(0, &handed[..]), (1, &[0]), (5, &[0]), (0, &[2]), (0, &[]), (1, &handed[..48])] {
        assert!(record(stage, handed).is_err(), "stage {stage}");
    }
}

#[test]
fn map_records_are_as_drawn() {
    let at = |record| Change::Map(LayerId(0x0A), ClusterIndex(0x0B), Some(record));
    let mut record =
        MapRecord { cluster: Some(PoolCluster(0xC)), data: Mask(0x8001), zero: Mask(0x0700), packed: None };
    golden(&at(record), "20 0000000a 0000000b", "0000000c 8001 0700 00");
    record.packed = Some(14);
    golden(&at(record), "20 0000000a 0000000b", "0000000c 8001 0700 0f");
    let zeroes = MapRecord { zero: Mask::ALL, ..MapRecord::default() };
    golden(&at(zeroes), "20 0000000a 0000000b", "ffffffff 0000 ffff 00");
}

#[test]
fn hashes_and_journals_are_as_drawn() {
    let bytes = hex(&[0x5A; 32]);
    golden(&Change::Hash(LayerId(1), ClusterIndex(2), Some([0x5A; 32])), "30 00000001 00000002", &bytes);
    let root = RootRecord { size: 0x0300, hash: [0x5A; 32] };
    golden(&Change::Root(LayerId(1), Some(root)), "31 00000001", &format!("0000000000000300 {bytes}"));
    let journal = vec![(LayerId(1), ClusterIndex(2)), (LayerId(3), ClusterIndex(4))];
    golden(&Change::Journal(0x11, journal), "40 0000000000000011", "00000001 00000002 00000003 00000004");
}

#[test]
fn a_deletion_names_the_key_of_the_record() {
    let one = |change: &Change| {
        let raw = encoded(change);
        assert!(raw.puts.is_empty() && raw.ranges.is_empty());
        assert_eq!(raw.deletes.len(), 1);
        hex(&raw.deletes[0])
    };
    assert_eq!(one(&Change::Volume(VolumeId(1), None)), "1000000001");
    assert_eq!(one(&Change::Snapshot(SnapshotId(1), None)), "1100000001");
    assert_eq!(one(&Change::Layer(LayerId(1), None)), "1200000001");
    assert_eq!(one(&Change::Map(LayerId(1), ClusterIndex(2), None)), "200000000100000002");
    assert_eq!(one(&Change::Hash(LayerId(1), ClusterIndex(2), None)), "300000000100000002");
    assert_eq!(one(&Change::Root(LayerId(1), None)), "3100000001");
}

#[test]
fn ranges_end_where_they_should() {
    let inside = |range: &KeyRange, key: &[u8]| range.contains(&key.to_vec());
    let raw = encoded(&Change::TrimJournal(9));
    assert!(inside(&raw.ranges[0], &keys::journal_key(0)) && inside(&raw.ranges[0], &keys::journal_key(9)));
    assert!(!inside(&raw.ranges[0], &keys::journal_key(10)));
    assert!(inside(&keys::journal_range_through(u64::MAX), &keys::journal_key(u64::MAX)));
    let raw = encoded(&Change::DropHashes(LayerId(5)));
    assert_eq!(raw.deletes, [keys::root_key(LayerId(5))]);
    assert!(inside(&raw.ranges[0], &keys::hash_key(LayerId(5), ClusterIndex(u32::MAX))));
    assert!(!inside(&raw.ranges[0], &keys::hash_key(LayerId(6), ClusterIndex(0))));
    assert!(!inside(&raw.ranges[0], &keys::map_key(LayerId(5), ClusterIndex(0))));
    let last = LayerId(u32::MAX);
    assert!(inside(&keys::map_range(last), &keys::map_key(last, ClusterIndex(u32::MAX))));
    assert!(!inside(&keys::map_range(last), &keys::hash_key(LayerId(1), ClusterIndex(0))));
    let tail = keys::map_range_from(LayerId(2), ClusterIndex(7));
    assert!(inside(&tail, &keys::map_key(LayerId(2), ClusterIndex(7))));
    assert!(!inside(&tail, &keys::map_key(LayerId(2), ClusterIndex(6))));
    assert!(inside(&keys::every_range(), &[0xFF; keys::KEY_BYTES_MAX]));
}

/// Each is one byte or one number away from a record that decodes.
#[test]
fn what_no_record_may_be_is_refused_and_named() {
    let map = |value: [u8; 9]| Record::decode(&[0x20, 0, 0, 0, 1, 0, 0, 0, 2], &value);
    assert!(map([0, 0, 0, 1, 0, 3, 0, 4, 0]).is_ok());
    assert!(map([0, 0, 0, 1, 0, 3, 0, 4, 15]).is_ok());
    let cases = [
        (map([0, 0, 0, 1, 0, 3, 0, 1, 0]), "both data and zero"),
        (map([255, 255, 255, 255, 0, 3, 0, 4, 0]), "no pool cluster"),
        (map([255, 255, 255, 255, 0, 0, 0, 4, 1]), "packed but has no data"),
        (map([0, 0, 0, 1, 0, 3, 0, 4, 16]), "past the end"),
        (map([0, 0, 0, 1, 0, 3, 0, 4, 255]), "past the end"),
        (Record::decode(&[0x20, 0, 0, 0, 0, 0, 0, 0, 2], &[0; 9]), "number 0"),
        (Record::decode(&[0x20, 0, 0, 0, 1, 0, 0, 0], &[0; 9]), "key shorter"),
        (Record::decode(&[0x20, 0, 0, 0, 1, 0, 0, 0, 2], &[0; 8]), "shorter or longer"),
        (Record::decode(&[0x10, 0, 0, 0, 0], &[0; 22]), "number 0"),
        (Record::decode(&[0x01, 0], &[0; 8]), "shorter or longer"),
        (Record::decode(&[0x01], &[0; 9]), "shorter or longer"),
        (Record::decode(&[0x99], &[]), "unknown kind"),
        (Record::decode(&[], &[]), "empty key"),
    ];
    for (found, expected) in cases {
        let Err(MetaError::Damaged(text)) = found else { panic!("{expected}: {found:?}") };
        assert!(text.contains(expected), "{text}");
    }
    let Err(MetaError::Damaged(text)) =
        map([0; 8].into_iter().chain([255]).collect::<Vec<_>>().try_into().unwrap())
    else {
        panic!()
    };
    assert!(text.starts_with("record 20 00000001 00000002 "), "{text}");
}

fn text() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}"
}

fn layer_id() -> impl Strategy<Value = LayerId> {
    (1..=u32::MAX).prop_map(LayerId)
}

fn cluster() -> impl Strategy<Value = ClusterIndex> {
    any::<u32>().prop_map(ClusterIndex)
}

fn map_record() -> impl Strategy<Value = MapRecord> {
    (0..NO_CLUSTER, any::<[u16; 2]>(), 0..16_u8, 0..4_u8).prop_map(|(pool, [data, zero], start, shape)| {
        let (data, zero) = (Mask(data), Mask(zero).without(Mask(data)));
        let fits = !data.is_empty() && u32::from(start) + data.count() <= 16;
        match shape {
            0 => MapRecord { zero, ..MapRecord::default() },
            1 if fits => MapRecord { cluster: Some(PoolCluster(pool)), data, zero, packed: Some(start) },
            _ => MapRecord { cluster: Some(PoolCluster(pool)), data, zero, packed: None },
        }
    })
}

fn point() -> impl Strategy<Value = Point> {
    any::<[u64; 2]>().prop_map(|[epoch, sequence]| Point { epoch, sequence })
}

fn snapshot_number() -> impl Strategy<Value = Option<SnapshotId>> {
    any::<u32>().prop_map(|id| (id != 0).then_some(SnapshotId(id)))
}

fn receiving() -> impl Strategy<Value = ReceivingRecord> {
    let numbers = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u64; 3]>(), point(), text());
    (numbers, snapshot_number(), snapshot_number()).prop_map(
        |((uid, token, [size, created_ms, cursor], point, name), base, staged)| ReceivingRecord {
            uid: SnapshotUid(uid),
            token,
            point,
            base,
            size,
            created_ms,
            name,
            cursor,
            staged,
        },
    )
}

fn link() -> impl Strategy<Value = LinkRecord> {
    let numbers = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u64>(), any::<bool>(), any::<bool>());
    (numbers, snapshot_number(), point(), proptest::option::of(receiving())).prop_map(
        |((lineage, peer, epoch, replica, diverged), published, point, receiving)| LinkRecord {
            lineage: Lineage(lineage),
            epoch,
            role: if replica { Role::Replica } else { Role::Primary },
            peer: HostId(peer),
            diverged,
            published,
            point,
            receiving,
        },
    )
}

fn moved() -> impl Strategy<Value = MoveRecord> {
    let ends = prop_oneof![Just(Stage::Released), Just(Stage::Owned)].prop_map(|stage| (stage, true));
    let others = prop_oneof![Just(Stage::Frozen), Just(Stage::Expected), Just(Stage::Aborted)];
    let stages = prop_oneof![ends, others.prop_map(|stage| (stage, false))];
    let numbers = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<u64>(), any::<u32>());
    (numbers, stages, any::<[u8; 16]>(), any::<[u8; 32]>()).prop_map(
        |((id, peer, epoch, since), (stage, handed), uid, root)| MoveRecord {
            id: MoveId(id),
            peer: HostId(peer),
            stage,
            epoch,
            since: SnapshotId(since),
            handover: handed.then_some(Handover { uid: SnapshotUid(uid), root }),
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    let store = (any::<u32>(), any::<[u8; 16]>(), any::<[u32; 3]>(), any::<u64>()).prop_map(
        |(version, identity, [volume, layer, snapshot], created_ms)| StoreRecord {
            version,
            identity,
            next_volume: VolumeId(volume),
            next_layer: LayerId(layer),
            next_snapshot: SnapshotId(snapshot),
            created_ms,
        },
    );
    let volume =
        (text(), any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(name, size, head, created_ms)| {
            VolumeRecord { name, size, head: LayerId(head), created_ms }
        });
    let snapshot = (text(), any::<[u32; 2]>(), any::<[u64; 2]>(), vec(text(), 0..4)).prop_map(
        |(name, [volume, layer], [size, created_ms], holds)| SnapshotRecord {
            volume: VolumeId(volume),
            name,
            layer: LayerId(layer),
            size,
            created_ms,
            holds,
        },
    );
    let layer = (any::<u32>(), any::<u32>()).prop_map(|(parent, volume)| LayerRecord {
        parent: (parent != 0).then_some(LayerId(parent)),
        volume: VolumeId(volume),
    });
    let file = (any::<u16>(), any::<[u32; 2]>(), ".{0,40}").prop_map(|(index, [first, clusters], path)| {
        Record::PoolFile(index, PoolFileRecord { first: PoolCluster(first), clusters, path })
    });
    let root = (layer_id(), any::<u64>(), any::<[u8; 32]>())
        .prop_map(|(id, size, hash)| Record::Root(id, RootRecord { size, hash }));
    prop_oneof![
        (1..=u32::MAX, link()).prop_map(|(id, record)| Record::Link(VolumeId(id), Box::new(record))),
        (1..=u32::MAX, moved()).prop_map(|(id, record)| Record::Move(VolumeId(id), Box::new(record))),
        (1..=u32::MAX, any::<[u8; 16]>(), point()).prop_map(|(id, uid, point)| {
            Record::Origin(SnapshotId(id), OriginRecord { uid: SnapshotUid(uid), point })
        }),
        store.prop_map(Record::Store),
        any::<u64>().prop_map(Record::Commit),
        (1..=u32::MAX, volume).prop_map(|(id, record)| Record::Volume(VolumeId(id), record)),
        (1..=u32::MAX, snapshot).prop_map(|(id, record)| Record::Snapshot(SnapshotId(id), record)),
        (layer_id(), layer).prop_map(|(id, record)| Record::Layer(id, record)),
        file,
        (layer_id(), cluster(), map_record()).prop_map(|(id, at, record)| Record::Map(id, at, record)),
        (layer_id(), cluster(), any::<[u8; 32]>()).prop_map(|(id, at, hash)| Record::Hash(id, at, hash)),
        root,
        (any::<u64>(), vec((layer_id(), cluster()), 0..5))
            .prop_map(|(commit, changed)| Record::Journal(commit, changed)),
    ]
}

proptest! {
    #[test]
    fn a_record_comes_back_as_it_was(record in record()) {
        let raw = encoded(&Change::from(record.clone()));
        let (key, value) = &raw.puts[0];
        prop_assert!(key.len() <= keys::KEY_BYTES_MAX);
        prop_assert_eq!(Record::decode(key, value), Ok(record));
    }

    /// What decodes was written by us: there are no two ways to write one record.
    #[test]
    fn bytes_decode_to_one_record_or_to_an_error(
        kind in prop_oneof![(0..0x42_u8), any::<u8>()],
        rest in vec(any::<u8>(), 0..12),
        value in vec(any::<u8>(), 0..80),
    ) {
        let key: Vec<u8> = [kind].into_iter().chain(rest).collect();
        match Record::decode(&key, &value) {
            Ok(record) => prop_assert_eq!(&encoded(&Change::from(record)).puts[0], &(key, value)),
            Err(error) => prop_assert!(matches!(error, MetaError::Damaged(_))),
        }
    }

    /// Starts from good bytes, so that the deep ends of the decoder are reached.
    #[test]
    fn damaged_bytes_decode_to_one_record_or_to_an_error(
        record in record(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<prop::sample::Index>(),
    ) {
        let raw = encoded(&Change::from(record));
        let (key, mut value) = raw.puts[0].clone();
        if let Some(byte) = (!value.is_empty()).then(|| at.index(value.len())) {
            value[byte] ^= 1 << bit;
            value.truncate(cut.index(value.len() + 1).max(value.len() / 2));
        }
        match Record::decode(&key, &value) {
            Ok(record) => prop_assert_eq!(&encoded(&Change::from(record)).puts[0], &(key, value)),
            Err(error) => prop_assert!(matches!(error, MetaError::Damaged(_))),
        }
    }
}
