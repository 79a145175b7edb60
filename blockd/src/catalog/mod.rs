//! What the store knows about its volumes, and where that is kept.

pub mod ballast;
pub mod format;
pub mod load;
pub mod mark;
pub mod memory;
pub mod meta;
pub mod open;
mod reads;
pub mod rocks;
pub mod worker;
