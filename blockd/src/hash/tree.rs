//! From the values of subtrees, in order, to the root.

use blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::Value;

/// Takes subtrees of whole clusters in order, and makes the root of them: what `b3sum` says of the raw image.
///
/// It keeps one value for each one bit of the number of clusters so far. A merge is put off until the next value
/// comes, for the last one of all is of another kind: it makes the root.
#[derive(Debug, Default)]
pub struct Tree {
    /// Values of subtrees, the largest first; the last two may be of one size, to be merged.
    stack: Vec<Value>,
    /// How many came.
    clusters: u64,
}

impl Tree {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next `1 << level` clusters' value. The volume's last cluster, cut short, counts as one.
    ///
    /// # Panics
    /// When no such subtree begins here.
    pub fn push(&mut self, value: Value, level: u32) {
        assert!(self.clusters.is_multiple_of(1 << level), "level {level} at cluster {}", self.clusters);
        while self.stack.len() > self.clusters.count_ones() as usize {
            let (left, right) = self.take_two();
            self.stack.push(merge(&left, &right));
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
    /// When fewer than two values have come: the root is not a subtree, it is made of two at least.
    pub fn finish(mut self) -> Value {
        while self.stack.len() > 2 {
            let (left, right) = self.take_two();
            self.stack.push(merge(&left, &right));
        }
        let (left, right) = self.take_two();
        *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes()
    }
}

/// The value of two subtrees of one size, side by side.
pub(super) fn merge(left: &Value, right: &Value) -> Value {
    merge_subtrees_non_root(left, right, Mode::Hash)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::hash::{Zeroes, cluster_value};
    use crate::units::{CLUSTER_BYTES, ClusterIndex};

    /// The root by way of values; runs of them are joined first, as large as they may be where `join` says so.
    fn root(image: &[u8], join: &mut dyn FnMut() -> bool) -> Value {
        let value =
            |(at, content): (usize, &[u8])| cluster_value(ClusterIndex(u32::try_from(at).unwrap()), content);
        let values: Vec<_> = image.chunks(CLUSTER_BYTES as usize).enumerate().map(value).collect();
        let whole = image.len() / CLUSTER_BYTES as usize;
        let (mut tree, mut at) = (Tree::new(), 0);
        while at < values.len() {
            let mut level = 0;
            // Not the whole: it would be the root.
            let fits = |level: u32| at.is_multiple_of(1 << level) && at + (1 << level) <= whole;
            while fits(level + 1) && 1 << (level + 1) < values.len() && join() {
                level += 1;
            }
            tree.push(crate::hash::merge_all(&values[at..at + (1 << level)]), level);
            at += 1 << level;
        }
        tree.finish()
    }

    #[test]
    fn the_root_is_the_hash_of_the_image() {
        let mut rng = fastrand::Rng::with_seed(1);
        for clusters in 1..40 {
            for more in [1, 512, 4096, CLUSTER_BYTES - 512, CLUSTER_BYTES] {
                let mut image = vec![0; usize::try_from(clusters * CLUSTER_BYTES + more).unwrap()];
                rng.fill(&mut image);
                let expected = *blake3::hash(&image).as_bytes();
                assert_eq!(root(&image, &mut || false), expected, "{clusters} {more}");
                assert_eq!(root(&image, &mut || true), expected, "{clusters} {more}");
                assert_eq!(root(&image, &mut || rng.bool()), expected, "{clusters} {more}");
            }
        }
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
        let (zeroes, leaves) = (Zeroes::new(), 256);
        for what in ["one thread", "remembered"] {
            let begun = Instant::now();
            assert!(zeroes.subtrees(0, 10, leaves, 1, &mut |_| true).is_some());
            println!("16 GiB of zeroes, {what}: {:?}", begun.elapsed());
        }
        let begun = Instant::now();
        assert!(Zeroes::new().subtrees(0, 10, leaves, 2, &mut |_| true).is_some());
        println!("16 GiB of zeroes, two threads: {:?}", begun.elapsed());
        let value = cluster_value(ClusterIndex(0), &content);
        let mut tree = Tree::new();
        let begun = Instant::now();
        (0..1 << 24).for_each(|_| tree.push(value, 0));
        println!("merging 1 TiB of known values: {:?}, {:?}", tree.finish()[0], begun.elapsed());
    }
}
