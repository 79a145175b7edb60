//! What the store knows about its volumes, and where that is kept.

pub mod format;
pub mod meta;
pub mod mark;
