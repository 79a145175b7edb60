//! Random histories of a tree in a file, against the tree made of all values.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use fastrand::Rng;

use super::before::read;
use super::*;
use crate::hash::pages::{PAGE_BYTES, Shape};
use crate::hash::{Tree, Zeroes};
use crate::units::{CLUSTER_BYTES, ClusterIndex};

const CLUSTERS_MAX: u64 = 33_000;

/// Values of clusters of zeroes, which take a second to compute.
fn zero_values() -> &'static [Value] {
    static VALUES: OnceLock<Vec<Value>> = OnceLock::new();
    let value = |at| zeroes().cluster(ClusterIndex(u32::try_from(at).unwrap()));
    VALUES.get_or_init(|| (0..CLUSTERS_MAX).map(value).collect())
}

/// They are remembered from one world to the next.
fn zeroes() -> &'static Zeroes {
    static ZEROES: OnceLock<Zeroes> = OnceLock::new();
    ZEROES.get_or_init(Zeroes::new)
}

/// A volume: what of it is not zeroes, by value only.
#[derive(Clone)]
struct Volume {
    shape: Shape,
    values: BTreeMap<u64, Value>,
    tail: Option<Value>,
}

impl Volume {
    fn empty(size: u64) -> Self {
        let mut volume = Self { shape: Shape::of(0), values: BTreeMap::new(), tail: None };
        volume.resize(size);
        volume
    }

    fn resize(&mut self, size: u64) {
        self.shape = Shape::of(size);
        self.tail = self.shape.tail().map(|length| [length.to_le_bytes()[1]; 32]);
    }

    fn root(&self) -> Value {
        let mut tree = Tree::new();
        for cluster in 0..self.shape.whole {
            let zero = zero_values()[usize::try_from(cluster).unwrap()];
            tree.push(self.values.get(&cluster).copied().unwrap_or(zero), 0);
        }
        self.tail.into_iter().for_each(|tail| tree.push(tail, 0));
        tree.finish()
    }

    /// Changes some values; those that a later tree must be told of.
    fn change(&mut self, rng: &mut Rng, old: Shape) -> BTreeMap<u64, Value> {
        let mut changed = BTreeMap::new();
        let (count, around) = (rng.u32(..8), rng.u64(..self.shape.whole));
        for _ in 0..count {
            let near = (around + rng.u64(..40)).min(self.shape.whole - 1);
            let cluster = if rng.bool() { near } else { rng.u64(..self.shape.whole) };
            let value = match rng.u8(..4) {
                0 => zero_values()[usize::try_from(cluster).unwrap()],
                _ => [rng.u8(1..); 32],
            };
            changed.insert(cluster, value);
        }
        if old.size > 0 && old.whole < self.shape.whole {
            let zero = zero_values()[usize::try_from(old.whole).unwrap()];
            changed.entry(old.whole).or_insert(self.values.get(&old.whole).copied().unwrap_or(zero));
        }
        self.values.extend(&changed);
        changed
    }
}

fn apply(
    before: Before,
    file: &File,
    volume: &Volume,
    changed: &BTreeMap<u64, Value>,
) -> Result<(Value, bool), Trouble> {
    let mut update = Update::new(before, volume.shape, Some(file), Hashes { zeroes: zeroes(), threads: 1 });
    for (&cluster, &value) in changed {
        update.set(cluster, value, &mut |_| true)?;
    }
    update.finish(volume.tail, &mut |_| true)
}

fn size(rng: &mut Rng, clusters_max: u64) -> u64 {
    let clusters = match rng.u8(..3) {
        0 => rng.choice([2, 31, 32, 33, 63, 64, 1023, 1024, 1025, 32_767, 32_768, 32_769]).unwrap(),
        _ => rng.u64(2..1200),
    };
    let tail = if rng.bool() { rng.u64(..128) * 512 } else { 0 };
    clusters.min(clusters_max) * CLUSTER_BYTES + tail
}

/// A tree in a file, and the volume whose it is.
struct World {
    rng: Rng,
    file: File,
    clusters_max: u64,
    volume: Volume,
    root: Value,
}

impl World {
    fn new(seed: u64) -> Self {
        let (mut rng, file) = (Rng::with_seed(seed), tempfile::tempfile().unwrap());
        // Large ones take their time.
        let clusters_max = if seed == 0 { CLUSTERS_MAX - 1 } else { 1200 };
        let mut volume = Volume::empty(size(&mut rng, clusters_max));
        let changed = volume.change(&mut rng, Shape::of(0));
        let (root, kept) = apply(Before::nothing(), &file, &volume, &changed).unwrap();
        assert!(kept);
        let mut world = Self { rng, file, clusters_max, volume, root };
        world.check();
        world.root = root;
        world
    }

    fn check(&mut self) {
        assert_eq!(self.root, self.volume.root(), "{:?}", self.volume.shape);
    }

    fn before(&self) -> Option<Before> {
        Before::read(&self.file, self.volume.shape, self.volume.tail, self.root).unwrap()
    }

    /// The next snapshot; whether the tree was taken for sound.
    fn step(&mut self) -> bool {
        let (old, before) = (self.volume.shape, self.before());
        let mut next = self.volume.clone();
        if self.rng.u8(..3) == 0 {
            let more = size(&mut self.rng, self.clusters_max);
            next.resize(if old.whole > 1200 { old.size + 512 } else { old.size.max(more) });
        }
        let changed = next.change(&mut self.rng, old);
        let result = before.map(|before| apply(before, &self.file, &next, &changed));
        let sound = match result {
            Some(Ok((root, kept))) => {
                self.root = root;
                kept
            }
            Some(Err(Trouble::Page(_))) | None => {
                let (file, values) = (&self.file, next.values.clone());
                file.set_len(0).unwrap();
                (self.root, _) = apply(Before::nothing(), file, &next, &values).unwrap();
                false
            }
            Some(Err(trouble)) => panic!("{trouble}"),
        };
        self.volume = next;
        self.check();
        sound
    }
}

#[test]
fn a_tree_that_is_kept_makes_the_same_root() {
    for seed in 0..21 {
        let mut world = World::new(seed);
        for _ in 0..6 {
            assert!(world.step(), "seed {seed}: a sound tree was refused");
        }
    }
}

/// All in one page, and that page not touched by any change.
#[test]
fn nothing_changes_in_volumes_of_round_sizes() {
    for clusters in [2, 31, 32, 33, 1024, 32_768] {
        let file = tempfile::tempfile().unwrap();
        let volume = Volume::empty(clusters * CLUSTER_BYTES);
        let nothing = BTreeMap::new();
        let (root, kept) = apply(Before::nothing(), &file, &volume, &nothing).unwrap();
        assert_eq!((root, kept), (volume.root(), true));
        let before = Before::read(&file, volume.shape, None, root).unwrap().unwrap();
        assert_eq!(apply(before, &file, &volume, &nothing).unwrap(), (root, true));
    }
}

fn contents(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Damages the file as a crash or a medium might.
fn damage(world: &mut World, older: &[u8]) {
    let length = world.file.metadata().unwrap().len();
    let page =
        HEADER_BYTES + world.rng.u64(..(length - HEADER_BYTES).div_ceil(PAGE_BYTES).max(1)) * PAGE_BYTES;
    let start = usize::try_from(page).unwrap().min(older.len());
    match world.rng.u8(..5) {
        0 => world.file.set_len(world.rng.u64(..length)).unwrap(),
        1 => world.file.write_all_at(&[0; PAGE_BYTES as usize], page).unwrap(),
        2 => world.file.write_all_at(&[world.rng.u8(..)], page + world.rng.u64(..PAGE_BYTES)).unwrap(),
        // Pages as they were some time ago, each whole: what lost writes leave.
        3 => world.file.write_all_at(&older[start..older.len().min(start + 1024)], page).unwrap(),
        _ => world.file.write_all_at(&older[start..], page).unwrap(),
    }
}

#[test]
fn whatever_the_file_holds_the_root_is_right() {
    let (mut refused, mut used) = (0, 0);
    for seed in 0..50 {
        let mut world = World::new(seed);
        let older = contents(&world.file);
        for _ in 0..6 {
            if world.rng.bool() {
                damage(&mut world, &older);
            }
            if world.step() { used += 1 } else { refused += 1 }
        }
    }
    assert!(refused > 20 && used > 20, "{refused} refused, {used} used");
}

/// Updates that end anywhere leave a mixture of two trees.
#[test]
fn an_update_that_was_not_finished_is_found() {
    let mut refused = 0;
    for seed in 0..40 {
        let mut world = World::new(seed + 1);
        let mut next = world.volume.clone();
        let changed = next.change(&mut world.rng, world.volume.shape);
        let before = world.before().unwrap();
        let hashes = Hashes { zeroes: zeroes(), threads: 1 };
        let mut update = Update::new(before, next.shape, Some(&world.file), hashes);
        let some = changed.iter().take(world.rng.usize(..=changed.len()));
        some.for_each(|(&cluster, &value)| update.set(cluster, value, &mut |_| true).unwrap());
        drop(update);
        if !world.step() {
            refused += 1;
        }
    }
    assert!(refused > 5, "{refused}");
}

#[test]
fn a_volume_of_zeroes_takes_no_room() {
    let file = tempfile::tempfile().unwrap();
    let volume = Volume::empty(32_768 * CLUSTER_BYTES + 512);
    let (root, _) = apply(Before::nothing(), &file, &volume, &BTreeMap::new()).unwrap();
    assert_eq!(root, volume.root());
    let written = |place| read(&file, place).unwrap() != [Value::default(); 32];
    let top = crate::hash::pages::Place { group: 3, index: 0 };
    assert!(written(top) && !written(crate::hash::pages::Place { group: 2, index: 0 }));
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    assert!(blocks * 512 <= 16 << 10, "{blocks}");
}

#[test]
fn stopping_is_no_damage() {
    let file = tempfile::tempfile().unwrap();
    let volume = Volume::empty(2048 * CLUSTER_BYTES);
    let hashes = Hashes { zeroes: zeroes(), threads: 1 };
    let update = Update::new(Before::nothing(), volume.shape, Some(&file), hashes);
    assert!(matches!(update.finish(None, &mut |_| false), Err(Trouble::Stopped)));
}
