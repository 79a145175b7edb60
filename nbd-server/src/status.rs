//! Block status: what is told of ranges of an export, in the meta contexts that a client has chosen.
//!
//! ```text
//!  "base:allocation" ─LIST, SET─► MetaContext ─key─► Command::BlockStatus ─► StatusExtents, one list a context
//!       (a name)                 (the directory's)        (the backend)
//! ```
//!
//! A context is found by its name, byte for byte, among those that the directory says an export has; the backend is
//! told the key that stands beside the name there. What the flags of an extent mean is the context's business:
//! [`BASE_ALLOCATION`] is the protocol's own ([`crate::wire::allocation`]).

use std::sync::Arc;

/// Extents that one reply tells of in one context, at most; a client asks on where they end.
pub const STATUS_EXTENTS_MAX: usize = 4096;
/// Contexts that one client may choose.
pub const CONTEXTS_MAX: usize = 16;
/// The protocol's own context: what is allocated, and what is known to be zero.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// What a backend knows a meta context by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContextKey(pub u64);

impl ContextKey {
    /// That of [`BASE_ALLOCATION`], for every backend.
    pub const ALLOCATION: Self = Self(0);
}

/// A meta context of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaContext {
    /// Namespace, colon, leaf; at most [`crate::wire::MAX_STRING_BYTES`].
    pub name: String,
    /// What the backend is told.
    pub key: ContextKey,
}

impl MetaContext {
    /// [`BASE_ALLOCATION`].
    pub fn allocation() -> Self {
        Self { name: BASE_ALLOCATION.to_owned(), key: ContextKey::ALLOCATION }
    }
}

/// A meta context that a client has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// Its number on this connection.
    pub id: u32,
    /// What the backend is told.
    pub key: ContextKey,
}

/// The contexts that a client has chosen; at most [`CONTEXTS_MAX`].
pub type Contexts = Arc<[Chosen]>;

/// What is the same for a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes, at least one.
    pub length: u64,
    /// What is said of them.
    pub flags: u32,
}

/// What one context says of a range, from its start on: in order, none empty, neighbours different, not beyond the
/// range's end, and no more of them than may be sent.
#[derive(Clone, Debug)]
pub struct StatusExtents {
    extents: Vec<StatusExtent>,
    /// Bytes of the range that nothing is said of yet.
    left: u64,
    extents_max: usize,
}

impl StatusExtents {
    /// Of a range of `length` bytes; `one`: of its beginning only.
    pub fn new(length: u64, one: bool) -> Self {
        Self { extents: Vec::new(), left: length, extents_max: if one { 1 } else { STATUS_EXTENTS_MAX } }
    }

    /// Adds what follows. Returns whether there is room for more.
    pub fn push(&mut self, length: u64, flags: u32) -> bool {
        let length = length.min(self.left);
        self.left -= length;
        let full = self.extents.len() == self.extents_max;
        match self.extents.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.flags == flags => last.length += length,
            // What comes after this has no place any more, be it as it may.
            Some(_) if full => self.left = 0,
            _ => self.extents.push(StatusExtent { length, flags }),
        }
        self.wants_more()
    }

    /// Whether more may be added.
    pub fn wants_more(&self) -> bool {
        self.left > 0
    }

    /// All of them.
    pub fn as_slice(&self) -> &[StatusExtent] {
        &self.extents
    }

    /// Bytes that something is said of.
    pub fn covered(&self) -> u64 {
        self.extents.iter().map(|extent| extent.length).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(extents: &StatusExtents) -> Vec<(u64, u32)> {
        extents.as_slice().iter().map(|extent| (extent.length, extent.flags)).collect()
    }

    #[test]
    fn neighbours_are_joined_and_the_end_is_cut() {
        let mut extents = StatusExtents::new(100, false);
        assert!(extents.push(10, 0) && extents.push(20, 0) && extents.push(0, 7) && extents.push(30, 3));
        assert!(!extents.push(1000, 0), "nothing is left");
        assert!(!extents.push(1, 3));
        assert_eq!(all(&extents), [(30, 0), (30, 3), (40, 0)]);
        assert_eq!(extents.covered(), 100);
    }

    #[test]
    fn one_extent_grows_until_another_comes() {
        let mut extents = StatusExtents::new(100, true);
        assert!(extents.push(10, 1) && extents.push(10, 1));
        assert!(!extents.push(10, 2), "no second one");
        assert!(!extents.push(10, 1), "nor one behind it");
        assert_eq!(all(&extents), [(20, 1)]);
    }

    #[test]
    fn there_are_no_more_than_may_be_sent() {
        let mut extents = StatusExtents::new(u64::MAX, false);
        let wanted = (0..).take_while(|&number| extents.push(512, number & 1)).count();
        assert_eq!((wanted, extents.as_slice().len()), (STATUS_EXTENTS_MAX, STATUS_EXTENTS_MAX));
        assert_eq!(extents.covered(), 512 * STATUS_EXTENTS_MAX as u64);
    }
}
