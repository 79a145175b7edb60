//! Jobs.

pub mod calendar;
pub mod clock;
pub mod schedule;
pub mod span;
