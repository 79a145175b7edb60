//! Jobs: what is replicated and pruned by itself.

pub mod calendar;
pub mod clock;
pub mod keep;
pub mod retention;
pub mod schedule;
pub mod span;
