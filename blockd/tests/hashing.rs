//! How fast snapshots are hashed: measurements, run by hand.
//!
//! `cargo test --release -p blockd --test hashing -- --ignored --nocapture --test-threads 1`. Stores are made in
//! `HASHING_DIR` (/var/tmp). `data` hashes `HASHING_GIB` (2) of random data that lie in the page cache, against BLAKE3
//! over the same file on one thread. `next` hashes the snapshot after 1 % of 4 GiB was written at random, 4 KiB each, on
//! volumes of 4 and of 64 GiB (`HASHING_LARGE_GIB`) that are mapped completely; their metadata are made directly, with
//! hashes that are of no data, and the pool reads as zeroes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blockd::catalog::format::{Change, LayerRecord, MapRecord};
use blockd::catalog::meta::MetaStore;
use blockd::catalog::rocks::RocksMeta;
use blockd::config::{self, Settings};
use blockd::control::{Answer, Control, ControlError, Pinned};
use blockd::open::{OpenStore, open};
use blockd::size::Size;
use blockd::snapshot::{ClosedReader, PoolHandle, TREES_DIRECTORY, Trees, hash};
use blockd::units::{CLUSTER_BYTES, ClusterIndex, LayerId, Mask, PoolCluster, VolumeId};
use fastrand::Rng;
use tempfile::TempDir;

const GIB_CLUSTERS: u32 = 16_384;
const BATCH_RECORDS: usize = 16_384;
const IDENTITY: [u8; 16] = [1; 16];
/// 1 % of the blocks of 4 GiB.
const WRITES: u32 = 10_486;

/// Time on a processor, of this thread: others may be at work on the machine.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split_ascii_whitespace().next().unwrap().parse().unwrap())
}

/// Both times of some work: the clock's is told, the processor's returned.
fn timed<T>(what: &str, work: impl FnOnce() -> T) -> (T, Duration) {
    let (begun, used) = (Instant::now(), processor_time());
    let result = work();
    let (time, used) = (begun.elapsed(), processor_time() - used);
    println!("{what}: {time:.0?}, {used:.0?} of it on the processor");
    (result, used)
}

fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

struct Store {
    meta: Arc<RocksMeta>,
    reader: ClosedReader,
    clusters: u32,
    directory: TempDir,
}

impl Store {
    /// One layer after the other is written by `fill`; each has the one before as its parent.
    fn make(clusters: u32) -> Self {
        let place = std::env::var("HASHING_DIR").unwrap_or("/var/tmp".to_owned());
        let directory = tempfile::tempdir_in(place).unwrap();
        let pool_size = Some(Size((u64::from(clusters + WRITES) + 100) * CLUSTER_BYTES));
        let data = Some(directory.path().to_owned());
        let config = config::load(Settings { data, pool_size, ..Settings::default() }, None).unwrap();
        let OpenStore { meta, loaded, readers, .. } = open(&config).unwrap();
        let handles = readers.into_iter().zip(loaded.files.values()).map(|(file, record)| {
            let (first, clusters) = (record.first, record.clusters);
            PoolHandle { file: Arc::new(file), first, clusters }
        });
        let reader = ClosedReader::new(meta.clone(), handles.collect());
        let layers = [None, Some(LayerId(1))].into_iter().zip(1..).map(|(parent, id)| {
            Change::Layer(LayerId(id), Some(LayerRecord { parent, volume: VolumeId(1) }))
        });
        meta.write(&layers.collect::<Vec<_>>()).unwrap();
        Self { meta, reader, clusters, directory }
    }

    fn write(&self, changes: impl Iterator<Item = Change>) {
        let mut changes = changes.peekable();
        while changes.peek().is_some() {
            self.meta.write(&changes.by_ref().take(BATCH_RECORDS).collect::<Vec<_>>()).unwrap();
        }
    }

    fn pinned(&self, layer: u32) -> Pinned {
        let chain = (1..=layer).rev().map(LayerId).collect();
        Pinned { pin: 1, chain, size: u64::from(self.clusters) * CLUSTER_BYTES }
    }

    fn submit(&self, command: Control) -> Result<Answer, ControlError> {
        let Control::KeepHashes { hashes, roots, .. } = command else { unreachable!() };
        let hashes = hashes.into_iter().map(|(layer, at, value)| Change::Hash(layer, at, Some(value)));
        let roots = roots.into_iter().map(|(layer, root)| Change::Root(layer, Some(root)));
        self.write(hashes.chain(roots));
        Ok(Answer::Done)
    }

    fn hash(&self, reader: &ClosedReader, layer: u32, what: &str) -> ([u8; 32], Duration) {
        let work = || hash(reader, &self.pinned(layer), &|command| self.submit(command), &mut |_, _| true);
        let (root, time) = timed(what, work);
        (root.unwrap(), time)
    }

    fn forget_root(&self, layer: u32) {
        self.meta.write(&[Change::Root(LayerId(layer), None)]).unwrap();
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }
}

/// All clusters of layer 1, one after the other.
fn mapped(clusters: u32) -> impl Iterator<Item = Change> {
    (0..clusters).map(|at| {
        let (cluster, data) = (Some(PoolCluster(at + 1)), Mask::ALL);
        Change::Map(LayerId(1), ClusterIndex(at), Some(MapRecord { cluster, data, ..MapRecord::default() }))
    })
}

fn plain(path: &Path, bytes: u64) -> [u8; 32] {
    let (mut file, mut hasher, mut buffer) =
        (File::open(path).unwrap(), blake3::Hasher::new(), vec![0; 1 << 20]);
    file.seek(SeekFrom::Start(CLUSTER_BYTES)).unwrap();
    for _ in 0..bytes >> 20 {
        file.read_exact(&mut buffer).unwrap();
        hasher.update(&buffer);
    }
    *hasher.finalize().as_bytes()
}

#[test]
#[ignore = "a measurement, by hand"]
fn data() {
    let store = Store::make(number("HASHING_GIB", 2) * GIB_CLUSTERS);
    let bytes = u64::from(store.clusters) * CLUSTER_BYTES;
    let (path, mut rng, mut content) = (store.path("pool-0"), Rng::with_seed(1), vec![0; 1 << 20]);
    let mut pool = File::options().write(true).open(&path).unwrap();
    pool.seek(SeekFrom::Start(CLUSTER_BYTES)).unwrap();
    for _ in 0..bytes >> 20 {
        rng.fill(&mut content);
        pool.write_all(&content).unwrap();
    }
    store.write(mapped(store.clusters));
    for _ in 0..3 {
        let (expected, plain) = timed("BLAKE3 over the file", || plain(&path, bytes));
        let (root, time) = store.hash(&store.reader, 1, "hash of the snapshot");
        assert_eq!(root, expected);
        println!("ratio {:.2} by processor time", plain.as_secs_f64() / time.as_secs_f64());
        store.write((0..store.clusters).map(|at| Change::Hash(LayerId(1), ClusterIndex(at), None)));
        store.forget_root(1);
    }
    let b3sum = |file: &Path| Command::new("b3sum").args(["--num-threads", "1"]).arg(file).status();
    let begun = Instant::now();
    if b3sum(&path).is_ok_and(|status| status.success()) {
        println!("b3sum of the pool's file, {} bytes: {:?}", pool.metadata().unwrap().len(), begun.elapsed());
    }
}

/// Clusters and blocks that were written at random: some twice.
fn written(clusters: u32) -> BTreeMap<u32, Mask> {
    let (mut rng, mut written) = (Rng::with_seed(7), BTreeMap::<u32, Mask>::new());
    for _ in 0..WRITES {
        let mask = written.entry(rng.u32(..clusters)).or_default();
        *mask = mask.with(Mask(1 << rng.u32(..16)));
    }
    written
}

fn next_of(gib: u32) {
    println!("{gib} GiB");
    let store = Store::make(gib * GIB_CLUSTERS);
    let value = |at: u32| [u8::try_from(at % 251).unwrap(); 32];
    let hashes = (0..store.clusters).map(|at| Change::Hash(LayerId(1), ClusterIndex(at), Some(value(at))));
    store.write(mapped(store.clusters).chain(hashes));
    let written = written(store.clusters);
    let place = |at| Some(PoolCluster(store.clusters + 1 + at));
    store.write((0..).zip(&written).map(|(at, (&cluster, &data))| {
        let record = MapRecord { cluster: place(at), data, ..MapRecord::default() };
        Change::Map(LayerId(2), ClusterIndex(cluster), Some(record))
    }));
    store.meta.begin_merging();
    let with_trees = store.reader.clone().with_trees(Trees::new(store.directory.path(), IDENTITY));
    store.hash(&with_trees, 1, "first hash, all values recorded");
    let (tree, kept) = (store.path(TREES_DIRECTORY).join("1.tree"), store.path("kept.tree"));
    std::fs::copy(&tree, &kept).unwrap();
    println!("{} clusters changed", written.len());
    for round in ["computed", "recorded"] {
        let (root, time) = store.hash(&with_trees, 2, &format!("next hash, values {round}"));
        println!("  {:.1} us for each cluster", time.as_secs_f64() * 1e6 / written.len() as f64);
        std::fs::copy(&kept, &tree).unwrap();
        store.forget_root(2);
        if round == "recorded" {
            let (full, _) = store.hash(&store.reader, 2, "the same without a tree");
            assert_eq!(root, full);
        }
    }
}

#[test]
#[ignore = "a measurement, by hand"]
fn next() {
    next_of(4);
    next_of(number("HASHING_LARGE_GIB", 64));
}
