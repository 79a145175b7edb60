//! The root of a volume whose clusters come in order, zeroes between them.

use super::{Tree, Value, Zeroes, cluster_value};
use crate::units::{CLUSTER_BYTES, ClusterIndex, cluster_count};

/// Takes the clusters of a volume that hold data, in order, and makes the root.
#[derive(Debug)]
pub struct Sequence {
    size: u64,
    tree: Tree,
    /// The cluster whose turn it is.
    next: u64,
    /// The root, where there is but one cluster: nothing is merged.
    only: Option<Value>,
    threads: usize,
}

impl Sequence {
    /// Of a volume of `size` bytes; `threads` hash zeroes at once.
    ///
    /// # Panics
    /// When there is no byte: a volume has some.
    pub fn new(size: u64, threads: usize) -> Self {
        assert!(size > 0, "a volume has a size");
        Self { size, tree: Tree::new(), next: 0, only: None, threads }
    }

    /// Whether a cluster's value says nothing here: it is cut short, or the only one. Its content is wanted.
    pub fn wants_content(&self, cluster: u64) -> bool {
        cluster_count(self.size) == 1 || cluster >= self.size / CLUSTER_BYTES
    }

    /// A cluster's value; zeroes before it that did not come.
    ///
    /// # Panics
    /// When its content is wanted, or its turn is over.
    pub fn value(&mut self, cluster: u64, value: Value, zeroes: &Zeroes) {
        assert!(!self.wants_content(cluster), "cluster {cluster} is cut short");
        self.zeroes_to(cluster, zeroes);
        self.push(value, 0);
    }

    /// A cluster's content, all 64 KiB of it; what lies beyond the volume's end is left out.
    ///
    /// # Panics
    /// When its turn is over, or there is no such cluster.
    pub fn content(&mut self, cluster: u64, content: &[u8], zeroes: &Zeroes) {
        self.zeroes_to(cluster, zeroes);
        let index = ClusterIndex::of(cluster * CLUSTER_BYTES);
        let length = (self.size - index.start()).min(CLUSTER_BYTES);
        let content = &content[..usize::try_from(length).expect("at most a cluster")];
        if cluster_count(self.size) == 1 {
            self.only = Some(*blake3::hash(content).as_bytes());
            self.next = 1;
        } else {
            self.push(cluster_value(index, content), 0);
        }
    }

    fn push(&mut self, value: Value, level: u32) {
        self.tree.push(value, level);
        self.next += 1 << level;
    }

    /// The largest subtrees of zeroes that there are before a cluster.
    fn zeroes_to(&mut self, cluster: u64, zeroes: &Zeroes) {
        assert!(self.next <= cluster, "cluster {cluster} comes after cluster {}", self.next);
        // The root is no subtree: it is made of two at least.
        let within = cluster_count(self.size) - 1;
        while self.next < cluster {
            let largest = (cluster - self.next).min(within).ilog2();
            let level = largest.min(self.next.trailing_zeros());
            let values = zeroes.subtrees(self.next, level, 1, self.threads, &mut |_| true);
            let value = values.and_then(|mut values| values.pop()).expect("nobody asked to stop");
            self.push(value, level);
        }
    }

    /// The root. Clusters that did not come are zeroes.
    pub fn finish(mut self, zeroes: &Zeroes) -> Value {
        let clusters = cluster_count(self.size);
        if self.next < clusters {
            let last = clusters - 1;
            if self.wants_content(last) {
                self.content(last, &[0; CLUSTER_BYTES as usize], zeroes);
            } else {
                self.zeroes_to(clusters, zeroes);
            }
        }
        self.only.unwrap_or_else(|| self.tree.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_the_hash_of_the_image() {
        let (mut rng, zeroes) = (fastrand::Rng::with_seed(7), Zeroes::new());
        let whole = CLUSTER_BYTES as usize;
        for case in 0..200 {
            let clusters = if case % 4 == 0 { 1 } else { rng.usize(1..40) };
            let size = clusters * whole - if rng.bool() { 0 } else { rng.usize(..whole / 512) * 512 };
            let mut image = vec![0; size];
            let mut sequence = Sequence::new(size as u64, 1);
            for (at, piece) in image.chunks_mut(whole).enumerate().filter(|_| rng.u8(..3) == 0) {
                fastrand::Rng::with_seed(at as u64).fill(piece);
                let mut content = piece.to_vec();
                content.resize(whole, 0);
                if sequence.wants_content(at as u64) {
                    sequence.content(at as u64, &content, &zeroes);
                } else {
                    let value = cluster_value(ClusterIndex(u32::try_from(at).unwrap()), &content);
                    sequence.value(at as u64, value, &zeroes);
                }
            }
            assert_eq!(sequence.finish(&zeroes), *blake3::hash(&image).as_bytes(), "{size}");
        }
    }
}
