//! What a start takes over from the intent log, and what it must not.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blockd::catalog::format::{Change, LayerRecord, MapRecord, VolumeRecord};
use blockd::config::{self, Config, Settings};
use blockd::intents::{self, Base, Checked, Frame, INTENTS_BYTES, INTENTS_OFFSET};
use blockd::open::{OpenStore, open};
use blockd::size::Size;
use blockd::store::RecentLog;
use blockd::units::{ClusterIndex, LayerId, Mask, PoolCluster, VolumeId};

fn config(data: &Path) -> Config {
    let settings = Settings {
        data: Some(data.join("store")),
        recent_dir: Some(data.join("memory")),
        pool_size: Some(Size(16 << 20)),
        ..Settings::default()
    };
    config::load(settings, None).unwrap()
}

fn pool(data: &Path) -> File {
    File::options().read(true).write(true).open(data.join("store/pool-0")).unwrap()
}

/// A volume of 1 MiB, and nothing written to it.
fn create(data: &Path) -> Base {
    leave_volume(open(&config(data)).unwrap());
    let store = open(&config(data)).unwrap();
    Base { identity: store.loaded.store.identity, commit: store.loaded.commit }
}

/// The daemon that has made it is killed.
fn leave_volume(store: OpenStore) {
    let mut record = store.loaded.store.clone();
    (record.next_volume, record.next_layer) = (VolumeId(2), LayerId(2));
    let layer = Change::Layer(LayerId(1), Some(LayerRecord { parent: None, volume: VolumeId(1) }));
    let volume = VolumeRecord { name: "web".to_owned(), size: 1 << 20, head: LayerId(1), created_ms: 0 };
    let changes = [Change::Store(record), layer, Change::Volume(VolumeId(1), Some(volume))];
    let mut log = store.recent.unwrap();
    log.append(store.loaded.commit + 1, &changes).unwrap();
    std::mem::forget(log);
}

/// The first block of a cluster, and its data in the pool.
fn write(data: &Path, cluster: u32) -> Frame {
    let (place, bytes) = (PoolCluster(cluster + 1), [cluster as u8 + 1; 4096]);
    pool(data).write_all_at(&bytes, u64::from(place.0) << 16).unwrap();
    let record = MapRecord { cluster: Some(place), data: Mask(1), ..MapRecord::default() };
    Frame {
        checked: vec![Checked { cluster: place, block: 0, crc: crc32c::crc32c(&bytes) }],
        changes: vec![Change::Map(LayerId(1), ClusterIndex(cluster), Some(record))],
    }
}

/// Puts frames into the log; where each begins.
fn log(data: &Path, base: Base, frames: &[Frame]) -> Vec<usize> {
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for (number, frame) in (0..).zip(frames) {
        starts.push(bytes.len());
        intents::push(&mut bytes, base, number, &frame.checked, &frame.changes);
    }
    pool(data).write_all_at(&bytes, INTENTS_OFFSET).unwrap();
    starts
}

fn mapped(store: &OpenStore) -> u64 {
    blockd::map::load(&*store.meta, &[LayerId(1)], 16).unwrap().head_clusters()
}

fn area(data: &Path) -> Vec<u8> {
    let mut bytes = vec![0; INTENTS_BYTES];
    pool(data).read_exact_at(&mut bytes, INTENTS_OFFSET).unwrap();
    bytes
}

#[test]
fn frames_are_taken_over_once() {
    let data = tempfile::tempdir().unwrap();
    let base = create(data.path());
    let frames = [write(data.path(), 0), write(data.path(), 3)];
    log(data.path(), base, &frames);
    let store = open(&config(data.path())).unwrap();
    assert_eq!(mapped(&store), 2);
    assert!(store.log_intents && area(data.path()).iter().all(|byte| *byte == 0));
    drop(store);
    // As a power cut may leave the area.
    log(
        data.path(),
        base,
        &[Frame { changes: vec![Change::Map(LayerId(1), ClusterIndex(0), None)], ..Frame::default() }],
    );
    assert_eq!(mapped(&open(&config(data.path())).unwrap()), 2, "a frame of a former commit is none");
}

/// Its sync had not ended: the data may be there in part, and nobody was told.
#[test]
fn a_last_frame_without_its_data_is_not_taken() {
    let data = tempfile::tempdir().unwrap();
    let base = create(data.path());
    let frames = [write(data.path(), 0), write(data.path(), 3)];
    log(data.path(), base, &frames);
    pool(data.path()).write_all_at(&[0; 512], (4 << 16) + 512).unwrap();
    assert_eq!(mapped(&open(&config(data.path())).unwrap()), 1);
}

/// What it promised is gone, and what was freed with it may hold something else by now.
#[test]
fn a_store_with_a_damaged_log_is_refused_and_left_as_it_is() {
    let data = tempfile::tempdir().unwrap();
    let base = create(data.path());
    let frames = [write(data.path(), 0), write(data.path(), 3), write(data.path(), 5)];
    let starts = log(data.path(), base, &frames);
    pool(data.path()).write_all_at(&[0xFF], INTENTS_OFFSET + starts[1] as u64 + 20).unwrap();
    let before = area(data.path());
    for _ in 0..2 {
        let error = open(&config(data.path())).err().unwrap().to_string();
        assert!(error.contains("INTENTS_DAMAGED: "), "{error}");
    }
    assert_eq!(area(data.path()), before);
}
