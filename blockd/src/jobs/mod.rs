//! Jobs: what is replicated and pruned by itself, how old the copies are, and who is told when they are too old.
//!
//! ```text
//! schedule (when) ─► runner (who, one task) ─► carrier (how: the transfer, behind a trait)
//!                       │                          │
//!                       └─ record, files ◄─────────┘   retention, prune (what may go)
//! ```
//!
//! What deliberately does not live here: the transfer itself, HTTP (`api::jobs`), and the commands (`cli::job`).

pub mod clock;
pub mod span;

pub mod calendar;
pub mod schedule;

pub mod keep;
pub mod retention;

pub mod job;

pub mod carrier;
pub mod record;
pub mod together;
pub mod view;

pub mod sections;

pub mod files;
pub mod prune;

mod entry;

pub mod desk;
pub mod runner;
