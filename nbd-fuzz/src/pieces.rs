//! The sizes in which a stream arrives or leaves.

use crate::choices::Choices;

/// Sizes, used again and again.
#[derive(Clone, Debug)]
pub struct Pieces {
    sizes: Vec<usize>,
    next: usize,
}

impl Pieces {
    /// These, in turn.
    ///
    /// # Panics
    /// When there is none, or one of nothing: a stream would never move.
    pub fn new(sizes: Vec<usize>) -> Self {
        assert!(!sizes.is_empty() && sizes.iter().all(|&size| size > 0), "{sizes:?}");
        Self { sizes, next: 0 }
    }

    /// One to four sizes.
    pub fn choose(choices: &mut Choices<'_>) -> Self {
        let count = choices.below(4) + 1;
        Self::new((0..count).map(|_| choices.amount()).collect())
    }

    /// The next size.
    pub fn size(&mut self) -> usize {
        self.next += 1;
        self.sizes[(self.next - 1) % self.sizes.len()]
    }
}
