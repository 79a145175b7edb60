//! Contents of disks that begin as zeroes. Their memory is used again and again: mapping it anew takes longer than all that an
//! execution does with it.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

/// Contents that are kept for the next execution, at most.
const SPARE_MAX: usize = 8;

static BLOCK: [u8; 4096] = [0; 4096];

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// See the module.
#[derive(Debug)]
pub struct Zeroes {
    bytes: Vec<u8>,
}

impl Zeroes {
    /// So many bytes.
    pub fn new(length: usize) -> Self {
        let mut bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        bytes.clear();
        bytes.resize(length, 0);
        Self { bytes }
    }
}

impl Drop for Zeroes {
    fn drop(&mut self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(std::mem::take(&mut self.bytes));
            }
        });
    }
}

impl Deref for Zeroes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Zeroes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

/// There is nothing but zeroes.
pub fn are_zeroes(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK.len()).all(|chunk| *chunk == BLOCK[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_before_is_clean_again() {
        let mut first = Zeroes::new(10_000);
        first.fill(7);
        assert!(!are_zeroes(&first[9_999..]));
        drop(first);
        assert!(are_zeroes(&Zeroes::new(9_000)) && are_zeroes(&Zeroes::new(11_000)));
    }
}
