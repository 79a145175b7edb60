//! Written and read back; and every way in which a checkpoint must not be believed.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::file::{self, CheckpointError};
use super::*;
use crate::catalog::format::{LayerRecord, PoolFileRecord, StoreRecord, VolumeRecord};
use crate::map::{Entry, HeadPart, Packed, Source};
use crate::units::{CLUSTER_BYTES, ClusterIndex, SnapshotId};

const POOL: u32 = 600_010;
const CLUSTERS: u64 = 20_000;
const COMMIT: u64 = 77;

fn loaded() -> Loaded {
    let store = StoreRecord {
        version: FORMAT_VERSION,
        identity: [9; 16],
        next_volume: VolumeId(9),
        next_layer: LayerId(9),
        next_snapshot: SnapshotId(1),
        created_ms: 0,
    };
    let volume = |id: u32| {
        let size = CLUSTERS * CLUSTER_BYTES;
        (VolumeId(id), VolumeRecord { name: format!("v{id}"), size, head: LayerId(id), created_ms: 0 })
    };
    let layer = |id: u32| (LayerId(id), LayerRecord { parent: None, volume: VolumeId(id) });
    let file = PoolFileRecord { first: PoolCluster(0), clusters: POOL, path: "pool-0".into() };
    Loaded {
        store,
        commit: COMMIT,
        volumes: [1, 2].map(volume).into(),
        snapshots: BTreeMap::new(),
        layers: [1, 2].map(layer).into(),
        files: [(0, file)].into(),
        links: BTreeMap::new(),
        origins: BTreeMap::new(),
        moves: BTreeMap::new(),
        roots: BTreeMap::new(),
        journal: BTreeMap::new(),
    }
}

fn map(seed: u64) -> FlatMap {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut map = FlatMap::new(CLUSTERS);
    for _ in 0..300 {
        let at = ClusterIndex(rng.u32(..300) + if rng.bool() { 0 } else { 10_000 });
        let (data, zero) = (Mask(rng.u16(..) & 0xff), Mask(rng.u16(..) & 0xf00));
        let head = HeadPart { cluster: Some(PoolCluster(rng.u32(1..POOL))), data, zero };
        let packed = rng.bool().then_some(Packed { data: Mask(0xf000), first: 3 });
        let source = Source { cluster: PoolCluster(rng.u32(1..POOL)), shown: Mask(0xf000), packed };
        let older = if rng.bool() { [source].into_iter().collect() } else { Entry::default().older };
        map.set(at, Entry { head: Some(head), older });
    }
    map
}

fn in_use() -> PoolUse {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut used: Vec<u64> = (0..POOL.div_ceil(64)).map(|_| rng.u64(..)).collect();
    *used.last_mut().unwrap() &= (1 << (POOL % 64)) - 1;
    used[0] |= 0b110;
    PoolUse { used, packed: [(PoolCluster(1), Mask(3)), (PoolCluster(2), Mask(5))].into() }
}

fn bytes_at(commit: u64) -> Vec<u8> {
    let (one, two) = (map(1), map(2));
    let maps = vec![(VolumeId(1), LayerId(1), &one), (VolumeId(2), LayerId(2), &two)];
    let saved = Saved { identity: [9; 16], commit, pool_clusters: POOL, in_use: in_use(), maps };
    let mut bytes = Vec::new();
    saved.write(&mut bytes).unwrap();
    bytes
}

#[test]
fn what_was_saved_is_read() {
    let read = Checkpoint::decode(&bytes_at(COMMIT), &loaded()).unwrap();
    assert_eq!(read.in_use, in_use());
    for (saved, seed) in read.maps.iter().zip(1..) {
        assert_eq!((saved.volume.0, u64::from(saved.head.0)), (saved.head.0, seed));
        assert_eq!(saved.map.first_difference(&map(seed)), None);
    }
    assert_eq!(read.maps.len(), 2);
}

#[test]
fn another_state_another_store_another_catalog() {
    let bytes = bytes_at(COMMIT);
    let refused = |change: fn(&mut Loaded)| {
        let mut loaded = loaded();
        change(&mut loaded);
        Checkpoint::decode(&bytes, &loaded).unwrap_err()
    };
    assert_eq!(refused(|l| l.commit += 1), Unusable::OutOfDate { found: COMMIT, expected: COMMIT + 1 });
    assert_eq!(refused(|l| l.commit -= 1), Unusable::OutOfDate { found: COMMIT, expected: COMMIT - 1 });
    assert_eq!(refused(|l| l.store.identity = [8; 16]), Unusable::Foreign);
    assert!(matches!(refused(|l| l.files.get_mut(&0).unwrap().clusters += 1), Damaged(_)));
    assert!(matches!(refused(|l| drop(l.volumes.remove(&VolumeId(1)))), Damaged(_)));
    assert!(matches!(refused(|l| l.volumes.get_mut(&VolumeId(1)).unwrap().head = LayerId(2)), Damaged(_)));
    assert!(matches!(refused(|l| l.volumes.get_mut(&VolumeId(2)).unwrap().size *= 2), Damaged(_)));
}

#[test]
fn a_later_version_is_told_from_damage() {
    let mut bytes = bytes_at(COMMIT);
    bytes[8] = 2;
    assert!(matches!(Header::decode(&bytes), Err(Damaged(_))));
    let crc = crc32c::crc32c(&bytes[..HEADER_CRC]);
    bytes[HEADER_CRC..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Header::decode(&bytes), Err(Unusable::Newer(2)));
}

#[test]
fn no_bit_may_flip_and_no_byte_be_missing() {
    let (bytes, loaded) = (bytes_at(COMMIT), loaded());
    let mut rng = fastrand::Rng::with_seed(3);
    let heads = (0..8 * (HEADER_BYTES + PAGE_HEAD_BYTES + 8)).chain(8 * (bytes.len() - 40)..8 * bytes.len());
    let bits: Vec<usize> = heads.chain((0..1000).map(|_| rng.usize(..8 * bytes.len()))).collect();
    let mut damaged = bytes.clone();
    for bit in bits {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Checkpoint::decode(&damaged, &loaded).is_err(), "bit {bit}");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    for _ in 0..300 {
        let length = rng.usize(..bytes.len());
        assert!(Checkpoint::decode(&bytes[..length], &loaded).is_err(), "{length} bytes");
    }
    damaged.push(0);
    assert!(Checkpoint::decode(&damaged, &loaded).is_err());
}

/// A file system that lost a write shows what was there before: whole pages of another checkpoint.
#[test]
fn pages_of_two_checkpoints_make_none() {
    let (mut bytes, other, loaded) = (bytes_at(COMMIT), bytes_at(COMMIT - 1), loaded());
    assert_eq!(bytes.len(), other.len());
    let middle = bytes.len() / 2;
    bytes[middle..].copy_from_slice(&other[middle..]);
    assert!(Checkpoint::decode(&bytes, &loaded).is_err());
}

#[test]
fn a_file_is_there_until_it_is_removed() {
    let data = tempfile::tempdir().unwrap();
    assert!(matches!(file::read(data.path(), &loaded()), Err(CheckpointError::Missing)));
    file::remove(data.path()).unwrap();
    let one = map(1);
    let maps = vec![(VolumeId(1), LayerId(1), &one)];
    let saved = Saved { identity: [9; 16], commit: COMMIT, pool_clusters: POOL, in_use: in_use(), maps };
    for _ in 0..2 {
        file::save(data.path(), &saved).unwrap();
        assert_eq!(file::read(data.path(), &loaded()).unwrap().maps.len(), 1);
    }
    assert_eq!(file::read_header(data.path()).unwrap().0.commit, COMMIT);
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 1);
    std::fs::write(data.path().join("checkpoint.new"), b"a part").unwrap();
    file::remove(data.path()).unwrap();
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0);
    std::fs::write(data.path().join(file::CHECKPOINT_FILE), b"").unwrap();
    assert!(matches!(file::read(data.path(), &loaded()), Err(CheckpointError::Unusable(Damaged(_)))));
}

#[test]
fn without_room_nothing_is_left() {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(data.path().join(file::CHECKPOINT_FILE).join("in the way")).unwrap();
    let saved =
        Saved { identity: [9; 16], commit: 1, pool_clusters: POOL, in_use: in_use(), maps: Vec::new() };
    assert!(file::save(data.path(), &saved).is_err());
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 1);
}

/// Pages whose checksums are right, of whatever kind and content.
fn made_up(pages: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let header = Header { identity: [9; 16], commit: COMMIT, pool_clusters: POOL, maps: 1 }.encode();
    let mut bytes = header.to_vec();
    let mut writer =
        PageWriter { out: &mut bytes, number: 0, header_crc: crc_of(&header), content: Vec::new() };
    for (kind, content) in pages {
        writer.content.clone_from(content);
        writer.end(*kind).unwrap();
    }
    bytes
}

proptest! {
    #[test]
    fn any_bytes_are_borne(bytes in vec(any::<u8>(), 0..500)) {
        prop_assert!(Checkpoint::decode(&bytes, &loaded()).is_err());
    }

    #[test]
    fn any_pages_are_borne(pages in vec((0_u32..7, vec(any::<u8>(), 0..40)), 0..8)) {
        prop_assert!(Checkpoint::decode(&made_up(&pages), &loaded()).is_err());
    }
}
