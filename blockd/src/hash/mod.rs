//! BLAKE3 as a tree over the clusters of a volume. Arithmetic only: no I/O, no metadata.
//!
//! ```text
//!            root = b3sum of the raw image
//!           /    \
//!          ·      ·            merged from what is below
//!        /   \      \
//!      cv0   cv1   cv2 …       one chaining value for each 64 KiB cluster: 64 chunks, a whole subtree
//! ```
//!
//! A chaining value depends on the cluster's place, for BLAKE3 counts chunks through the whole input. A cluster that
//! the end of the volume cuts short has two values: of the whole 64 KiB, zeroes after the end, which is what is
//! recorded (it stays right when the volume grows), and of what lies before the end, which the root is made of.

pub(crate) mod pages;
mod sequence;
mod tree;
mod zeroes;

use blake3::Hasher;
use blake3::hazmat::HasherExt;

pub(crate) use pages::merge_all;
pub use sequence::Sequence;
pub use tree::Tree;
pub use zeroes::{LEAF_CLUSTERS, Zeroes};

use crate::units::ClusterIndex;

/// A chaining value, or the root.
pub type Value = [u8; 32];

/// The chaining value of a cluster's content at its place.
///
/// # Panics
/// When there is no content, or more than a cluster's.
pub fn cluster_value(cluster: ClusterIndex, content: &[u8]) -> Value {
    Hasher::new().set_input_offset(cluster.start()).update(content).finalize_non_root()
}
