//! What a start takes over from a killed daemon's log, and what it must not.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::path::{Path, PathBuf};

use blockd::catalog::format::{Change, LayerRecord, VolumeRecord};
use blockd::config::{self, Config, Settings};
use blockd::open::{OpenStore, open};
use blockd::size::Size;
use blockd::store::RecentLog;
use blockd::units::{LayerId, VolumeId};

fn config(data: &Path, recent: &str) -> Config {
    let settings = Settings {
        data: Some(data.join("store")),
        recent_dir: Some(if recent == "none" { PathBuf::from(recent) } else { data.join(recent) }),
        pool_size: Some(Size(16 << 20)),
        ..Settings::default()
    };
    config::load(settings, None).unwrap()
}

fn volume(name: &str) -> Change {
    let record = VolumeRecord { name: name.to_owned(), size: 1 << 20, head: LayerId(1), created_ms: 0 };
    Change::Volume(VolumeId(1), Some(record))
}

/// A volume in the commit under way, its new name in the next; then the daemon is killed.
fn leave_two_parts(store: OpenStore) {
    let mut record = store.loaded.store.clone();
    (record.next_volume, record.next_layer) = (VolumeId(2), LayerId(2));
    let layer = Change::Layer(LayerId(1), Some(LayerRecord { parent: None, volume: VolumeId(1) }));
    let last = store.loaded.commit;
    let mut log = store.recent.unwrap();
    log.append(last + 1, &[Change::Store(record), layer, volume("first")]).unwrap();
    log.append(last + 2, &[volume("second")]).unwrap();
    std::mem::forget(log);
}

fn names(store: &OpenStore) -> Vec<&str> {
    store.loaded.volumes.values().map(|volume| volume.name.as_str()).collect()
}

#[test]
fn both_parts_are_taken_over() {
    let data = tempfile::tempdir().unwrap();
    leave_two_parts(open(&config(data.path(), "memory")).unwrap());
    let store = open(&config(data.path(), "memory")).unwrap();
    assert_eq!(names(&store), ["second"]);
    drop(store);
    assert_eq!(names(&open(&config(data.path(), "memory")).unwrap()), ["second"]);
}

/// The second part alone would name a layer that was never made.
#[test]
fn a_log_that_was_not_found_in_time_is_never_used() {
    let data = tempfile::tempdir().unwrap();
    leave_two_parts(open(&config(data.path(), "memory")).unwrap());
    drop(open(&config(data.path(), "none")).unwrap());
    assert_eq!(names(&open(&config(data.path(), "memory")).unwrap()), [""; 0]);
}
