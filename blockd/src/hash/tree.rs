//! From the values of clusters, in order, to the root.

use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::zeroes::{LEAF_CLUSTERS, LEAF_LEVEL, ZEROES, Zeroes, zero_subtree};
use super::{Value, cluster_value};
use crate::units::{CLUSTER_BYTES, ClusterIndex, cluster_count};

/// Takes the values of a volume's clusters in order, and makes the root of them: what `b3sum` says of the raw image.
///
/// It keeps one value for each one bit of the number of clusters so far. A merge is put off until the next value
/// comes, for the last one of all is of another kind: it makes the root.
#[derive(Debug)]
pub struct Tree {
    size: u64,
    /// Values of subtrees, the largest first; the last two may be of one size, to be merged.
    stack: Vec<Value>,
    /// How many came.
    clusters: u64,
    /// The root, where there is but one cluster: nothing is merged.
    only: Option<Value>,
}

impl Tree {
    /// The tree of a volume of `size` bytes.
    ///
    /// # Panics
    /// When there is no byte: a volume has some.
    pub fn new(size: u64) -> Self {
        assert!(size > 0, "a volume has a size");
        Self { size, stack: Vec::new(), clusters: 0, only: None }
    }

    /// The cluster whose turn it is.
    pub fn next(&self) -> u64 {
        self.clusters
    }

    /// Clusters of the volume.
    pub fn total(&self) -> u64 {
        cluster_count(self.size)
    }

    /// Whether that cluster's value says nothing here: it is cut short, or the only one. Its content is wanted.
    pub fn wants_content(&self, cluster: u64) -> bool {
        self.total() == 1 || cluster >= self.size / CLUSTER_BYTES
    }

    /// The next cluster's value.
    ///
    /// # Panics
    /// When its content is wanted, or there is no such cluster.
    pub fn push(&mut self, value: Value) {
        assert!(!self.wants_content(self.clusters), "cluster {} is cut short", self.clusters);
        self.push_subtree(value, 0);
    }

    /// The next cluster's content, all 64 KiB of it; what lies beyond the volume's end is left out.
    ///
    /// # Panics
    /// When there is no such cluster.
    pub fn push_content(&mut self, content: &[u8]) {
        assert!(self.clusters < self.total(), "the volume has {} clusters", self.total());
        let cluster = ClusterIndex::of(self.clusters * CLUSTER_BYTES);
        let length = (self.size - cluster.start()).min(CLUSTER_BYTES);
        let content = &content[..usize::try_from(length).expect("at most a cluster")];
        if self.total() == 1 {
            self.only = Some(*blake3::hash(content).as_bytes());
            self.clusters = 1;
        } else {
            self.push_subtree(cluster_value(cluster, content), 0);
        }
    }

    /// Zeroes up to cluster `to`, in steps. A step says how many clusters there are now and is told whether to go on;
    /// if not, this ends early and the answer is `false`. `threads` compute at once, if there is that much to do.
    pub fn push_zeroes(
        &mut self,
        to: u64,
        zeroes: &Zeroes,
        threads: usize,
        step: &mut dyn FnMut(u64) -> bool,
    ) -> bool {
        while self.clusters < to {
            if self.wants_content(self.clusters) {
                self.push_content(&ZEROES);
                continue;
            }
            match self.zero_level(to) {
                LEAF_LEVEL.. => self.push_zero_leaves(to, zeroes, threads),
                level => self.push_subtree(zero_subtree(self.clusters, level), level),
            }
            if !step(self.clusters) {
                return false;
            }
        }
        true
    }

    /// The largest subtree that begins here and ends at `to` or before.
    fn zero_level(&self, to: u64) -> u32 {
        let whole = to.min(self.size / CLUSTER_BYTES) - self.clusters;
        // The root is not a subtree: it is made of two at least.
        let within = whole.min(self.total() - 1);
        within.ilog2().min(self.clusters.trailing_zeros())
    }

    /// A leaf for each thread, as far as there are so many. There is one, and it is not the root.
    fn push_zero_leaves(&mut self, to: u64, zeroes: &Zeroes, threads: usize) {
        let first = self.clusters / LEAF_CLUSTERS;
        let whole = to.min(self.size / CLUSTER_BYTES) / LEAF_CLUSTERS;
        let end = whole.min(first + threads.max(1) as u64);
        for value in zeroes.leaves(first..end) {
            self.push_subtree(value, LEAF_LEVEL);
        }
    }

    fn push_subtree(&mut self, value: Value, level: u32) {
        while self.stack.len() > self.clusters.count_ones() as usize {
            let (left, right) = self.take_two();
            self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
        self.stack.push(value);
        self.clusters += 1 << level;
    }

    fn take_two(&mut self) -> (Value, Value) {
        let right = self.stack.pop().expect("two at least");
        (self.stack.pop().expect("two at least"), right)
    }

    /// The root.
    ///
    /// # Panics
    /// When not every cluster has come.
    pub fn finish(mut self) -> Value {
        assert_eq!(self.clusters, self.total(), "not every cluster has come");
        if let Some(root) = self.only {
            return root;
        }
        while self.stack.len() > 2 {
            let (left, right) = self.take_two();
            self.stack.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
        let (left, right) = self.take_two();
        *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// The root by way of values, with runs of zeroes taken as such.
    fn root(image: &[u8], zeroes: &Zeroes, threads: usize) -> Value {
        let mut tree = Tree::new(image.len() as u64);
        for (at, content) in image.chunks(CLUSTER_BYTES as usize).enumerate() {
            if content.iter().all(|&byte| byte == 0) {
                continue;
            }
            assert!(tree.push_zeroes(at as u64, zeroes, threads, &mut |_| true));
            let mut whole = content.to_vec();
            whole.resize(CLUSTER_BYTES as usize, 0);
            if tree.wants_content(at as u64) {
                tree.push_content(&whole);
            } else {
                tree.push(cluster_value(ClusterIndex(u32::try_from(at).unwrap()), &whole));
            }
        }
        assert!(tree.push_zeroes(tree.total(), zeroes, threads, &mut |_| true));
        tree.finish()
    }

    fn sizes() -> Vec<u64> {
        let mut sizes = vec![512, 1024, 4096, 3 * CLUSTER_BYTES + 1536, 3 * CLUSTER_BYTES];
        for power in 0..6 {
            let whole = CLUSTER_BYTES << power;
            sizes.extend([whole - 512, whole, whole + 512, whole + 4096, whole + CLUSTER_BYTES]);
        }
        sizes
    }

    #[test]
    fn the_root_is_the_hash_of_the_image() {
        let (mut rng, zeroes) = (fastrand::Rng::with_seed(1), Zeroes::new());
        for size in sizes().into_iter().flat_map(|size| [(size, 0), (size, 50), (size, 100)]) {
            let (size, sparse) = (usize::try_from(size.0).unwrap(), size.1);
            let mut image = vec![0; size];
            for piece in image.chunks_mut(CLUSTER_BYTES as usize) {
                if rng.u32(..100) >= sparse {
                    rng.fill(piece);
                }
            }
            assert_eq!(root(&image, &zeroes, 1), *blake3::hash(&image).as_bytes(), "{size} {sparse}");
        }
    }

    #[test]
    fn random_sizes_and_contents() {
        let (mut rng, zeroes) = (fastrand::Rng::with_seed(2), Zeroes::new());
        for _ in 0..60 {
            let mut image = vec![0; rng.usize(1..8000) * 512];
            for _ in 0..rng.usize(..6) {
                let at = rng.usize(..image.len());
                image[at] = rng.u8(..);
            }
            assert_eq!(root(&image, &zeroes, 2), *blake3::hash(&image).as_bytes(), "{}", image.len());
        }
    }

    #[test]
    fn leaves_of_zeroes_are_computed_and_remembered() {
        const LEAF: usize = (LEAF_CLUSTERS * CLUSTER_BYTES) as usize;
        let zeroes = Zeroes::new();
        for size in [LEAF, LEAF + 512, 2 * LEAF, 3 * LEAF + 65_536] {
            let mut image = vec![0; size];
            image[size / 2] = 1;
            for threads in [1, 3] {
                assert_eq!(root(&image, &zeroes, threads), *blake3::hash(&image).as_bytes(), "{size}");
            }
            image[size / 2] = 0;
            assert_eq!(root(&image, &zeroes, 2), *blake3::hash(&image).as_bytes(), "{size}");
        }
    }

    #[test]
    fn zeroes_stop_when_told() {
        let mut tree = Tree::new(CLUSTER_BYTES << 20);
        assert!(!tree.push_zeroes(1 << 20, &Zeroes::new(), 1, &mut |_| false));
        assert!(tree.next() < 1 << 20);
    }

    /// Not a check but a measurement: `cargo test --release -p blockd speed_of -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement"]
    fn speed_of_hashing() {
        let content = vec![7; CLUSTER_BYTES as usize];
        let begun = Instant::now();
        for cluster in 0..1 << 15 {
            std::hint::black_box(cluster_value(ClusterIndex(cluster), &content));
        }
        println!("data, 2 GiB by clusters: {:?}", begun.elapsed());
        let (zeroes, size) = (Zeroes::new(), 16u64 << 30);
        for what in ["one thread", "remembered"] {
            let begun = Instant::now();
            assert!(Tree::new(size).push_zeroes(size / CLUSTER_BYTES, &zeroes, 1, &mut |_| true));
            println!("16 GiB of zeroes, {what}: {:?}", begun.elapsed());
        }
        let begun = Instant::now();
        assert!(Tree::new(size).push_zeroes(size / CLUSTER_BYTES, &Zeroes::new(), 2, &mut |_| true));
        println!("16 GiB of zeroes, two threads: {:?}", begun.elapsed());
        let value = cluster_value(ClusterIndex(0), &content);
        let mut tree = Tree::new(1 << 40);
        let begun = Instant::now();
        (0..tree.total()).for_each(|_| tree.push(value));
        println!("merging 1 TiB of known values: {:?}, {:?}", tree.finish()[0], begun.elapsed());
    }
}
