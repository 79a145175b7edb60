//! The tree that a file holds, read from the recorded root downwards.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::hash::pages::{PAGE_BYTES, Place, SLOTS, Shape};
use crate::hash::{Tree, Value, merge_all};

/// The values of a page.
pub(super) type Values = [Value; SLOTS];

/// The tree of a snapshot that was hashed before.
#[derive(Debug)]
pub(in crate::snapshot) struct Before {
    pub(super) shape: Shape,
    /// The pages whose values made the root, so many of them.
    pub(super) trusted: BTreeMap<Place, Values>,
}

impl Before {
    /// No tree: the volume had no bytes.
    pub(in crate::snapshot) fn nothing() -> Self {
        Self { shape: Shape::of(0), trusted: BTreeMap::new() }
    }

    /// Reads what makes the root; `None` if it does not.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(in crate::snapshot) fn read(
        file: &File,
        shape: Shape,
        tail: Option<Value>,
        root: Value,
    ) -> io::Result<Option<Self>> {
        let mut trusted = BTreeMap::new();
        for (place, _) in shape.parts() {
            trusted.insert(place, read(file, place)?);
        }
        if root_of(shape, tail, &|place| &trusted[&place]) != root {
            return Ok(None);
        }
        // One page has all: the page above, of which no value made the root, has it as its first.
        if let [(place, SLOTS)] = shape.parts()[..] {
            let mut above = Values::default();
            above[0] = merge_all(&trusted[&place]);
            trusted.insert(place.parent().0, above);
        }
        Ok(Some(Self { shape, trusted }))
    }
}

/// The values of a page as they are in the file; zeroes where it ends.
pub(super) fn read(file: &File, place: Place) -> io::Result<Values> {
    let mut bytes = [0; PAGE_BYTES as usize];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], place.offset() + have as u64) {
            Ok(0) => break,
            Ok(more) => have += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut values = Values::default();
    for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(size_of::<Value>())) {
        value.copy_from_slice(bytes);
    }
    Ok(values)
}

/// The root of a tree, of the pages that make it and the last cluster's value, if that is cut short.
///
/// # Panics
/// When there is one cluster only: its root is no tree's.
pub(super) fn root_of<'a>(shape: Shape, tail: Option<Value>, values: &dyn Fn(Place) -> &'a Values) -> Value {
    let mut tree = Tree::new();
    for (place, slots) in shape.parts() {
        values(place)[..slots].iter().for_each(|&value| tree.push(value, place.level()));
    }
    tail.into_iter().for_each(|value| tree.push(value, 0));
    tree.finish()
}
