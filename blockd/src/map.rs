//! The flat map of a volume: where each of its blocks is read from, however many layers it has.

/// See the module.
#[derive(Debug, Default)]
pub struct FlatMap {}
