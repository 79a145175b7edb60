//! How long a store with much in it takes to start: a measurement, run by hand.
//!
//! `STARTUP_GIB=1024 cargo test --release -p blockd --test startup -- --ignored --nocapture`. The metadata are made
//! directly, no data are written: one volume whose clusters are mapped in order, and a tenth of them once more in
//! its head, over a snapshot (not with `STARTUP_PLAIN=1`). With `STARTUP_KEEP=1` the store stays, for a daemon to be
//! started on it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use blockd::catalog::format::{Change, LayerRecord, MapRecord, SnapshotRecord, VolumeRecord};
use blockd::catalog::load::scan_pool_use;
use blockd::catalog::meta::MetaStore;
use blockd::checkpoint::Saved;
use blockd::checkpoint::file::save;
use blockd::config::{self, Config, Settings};
use blockd::map;
use blockd::open::{OpenStore, open};
use blockd::rebuild;
use blockd::size::Size;
use blockd::units::{CLUSTER_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, SnapshotId, VolumeId};

const GIB_CLUSTERS: u32 = 16_384;
const BATCH_RECORDS: usize = 16_384;
const VOLUME: VolumeId = VolumeId(1);
const CLOSED: LayerId = LayerId(1);
const HEAD: LayerId = LayerId(2);

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    println!("{what}: {} ms, {} MiB resident", start.elapsed().as_millis(), status_kib("VmRSS:") >> 10);
    result
}

fn status_kib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn clusters() -> u32 {
    let gib: u32 = std::env::var("STARTUP_GIB").map_or(16, |text| text.parse().unwrap());
    gib * GIB_CLUSTERS
}

fn config(data: &Path) -> Config {
    let size = (u64::from(clusters()) * 12 / 10 + 100) * CLUSTER_BYTES;
    let settings =
        Settings { data: Some(data.to_owned()), pool_size: Some(Size(size)), ..Settings::default() };
    config::load(settings, None).unwrap()
}

/// Writes changes in batches, as a daemon would.
struct Writer<'a> {
    store: &'a OpenStore,
    commit: u64,
    batch: Vec<Change>,
}

impl Writer<'_> {
    fn push(&mut self, change: Change) {
        self.batch.push(change);
        if self.batch.len() == BATCH_RECORDS {
            self.write();
        }
    }

    fn write(&mut self) {
        self.commit += 1;
        self.batch.push(Change::Commit(self.commit));
        self.store.meta.write(&self.batch).unwrap();
        self.batch.clear();
    }
}

fn catalog(store: &OpenStore) -> Vec<Change> {
    let mut record = store.loaded.store.clone();
    (record.next_volume, record.next_layer, record.next_snapshot) = (VolumeId(2), LayerId(3), SnapshotId(2));
    let size = u64::from(clusters()) * CLUSTER_BYTES;
    let volume = VolumeRecord { name: "v".to_owned(), size, head: HEAD, created_ms: 0 };
    let name = "s".to_owned();
    let snapshot =
        SnapshotRecord { volume: VOLUME, name, layer: CLOSED, size, created_ms: 0, holds: Vec::new() };
    vec![
        Change::Store(record),
        Change::Layer(CLOSED, Some(LayerRecord { parent: None, volume: VOLUME })),
        Change::Layer(HEAD, Some(LayerRecord { parent: Some(CLOSED), volume: VOLUME })),
        Change::Volume(VOLUME, Some(volume)),
        Change::Snapshot(SnapshotId(1), Some(snapshot)),
    ]
}

fn fill(store: &OpenStore) {
    let mut writer = Writer { store, commit: store.loaded.commit, batch: catalog(store) };
    let mut pool = 1;
    let layers = [(CLOSED, 1, Mask::ALL), (HEAD, 10, Mask(0x00f0))];
    let plain = std::env::var_os("STARTUP_PLAIN").is_some();
    for (layer, step, data) in layers.into_iter().take(if plain { 1 } else { 2 }) {
        for cluster in (0..clusters()).step_by(step) {
            let record = MapRecord { cluster: Some(PoolCluster(pool)), data, ..MapRecord::default() };
            writer.push(Change::Map(layer, ClusterIndex(cluster), Some(record)));
            pool += 1;
        }
    }
    writer.write();
}

/// The passes over the records side by side, everything cached; all find the same.
fn compare_passes(store: &OpenStore) {
    let OpenStore { meta, loaded, in_use, maps, .. } = store;
    let map = &maps[0].map;
    let scanned = timed("one thread, first pass: the allocator", || {
        scan_pool_use(&**meta, loaded, &mut |_, _, _| {}).unwrap()
    });
    assert!(scanned == *in_use);
    let loaded_map = timed("one thread, second pass: the map", || {
        map::load(&**meta, &[HEAD, CLOSED], map.clusters()).unwrap()
    });
    assert_eq!(loaded_map.first_difference(map), None);
    drop((scanned, loaded_map));
    for threads in [1, 2, 4] {
        let read = timed(&format!("one pass for both, {threads} threads"), || {
            rebuild::checkpoint(&**meta, loaded, threads).unwrap()
        });
        assert_eq!(read.maps[0].map.first_difference(map), None);
    }
}

fn save_checkpoint(data: &Path, store: &OpenStore) {
    let saved = Saved {
        identity: store.loaded.store.identity,
        commit: store.loaded.commit,
        pool_clusters: u32::try_from(store.loaded.pool_clusters()).unwrap(),
        in_use: store.in_use.clone(),
        maps: vec![(VOLUME, HEAD, &*store.maps[0].map)],
    };
    timed("write of the checkpoint", || save(data, &saved).unwrap());
}

/// In a process of its own: this one's memory has seen other things.
fn start_again(data: &Path) {
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--ignored", "--exact", "--nocapture", "start_of_what_is_there"]);
    assert!(again.env("STARTUP_DATA", data).status().unwrap().success());
}

#[test]
#[ignore = "a measurement, by hand"]
fn start_of_a_full_store() {
    let data = tempfile::tempdir_in(std::env::var("STARTUP_DIR").unwrap_or("/var/tmp".to_owned())).unwrap();
    let config = config(data.path());
    let store = timed("make", || open(&config).unwrap());
    timed("fill", || fill(&store));
    drop(store);
    let store = timed("start without checkpoint, RocksDB compacting", || open(&config).unwrap());
    compare_passes(&store);
    drop(store);
    start_again(data.path());
    let store = open(&config).unwrap();
    save_checkpoint(data.path(), &store);
    drop(store);
    start_again(data.path());
    if std::env::var_os("STARTUP_KEEP").is_some() {
        println!("kept: {}", data.keep().display());
    }
}

#[test]
#[ignore = "started by start_of_a_full_store"]
fn start_of_what_is_there() {
    let Some(data) = std::env::var_os("STARTUP_DATA") else { return };
    let data = Path::new(&data);
    let what = if data.join("checkpoint").exists() { "with the checkpoint" } else { "without checkpoint" };
    let config = config(data);
    let store = timed(&format!("start {what}, map included"), || open(&config).unwrap());
    let map = &store.maps[0].map;
    println!("{} MiB resident at most", status_kib("VmHWM:") >> 10);
    println!("map: {} MiB, {} rows aside", map.memory_bytes() >> 20, map.side_rows());
}
