//! The comparison with the peers: our server and theirs, one after the other, in one run, on one image.
//!
//! ```text
//! options ─► plan ─┬► campaign ─────────────► results ─► targets
//!                  │   │ per class, job, round, server       │
//!                  │   ├─ image    same bytes, same cache    ▼
//!                  │   ├─ process  start, ready, stop      report: text, Markdown, JSON
//!                  │   ├─ fio      the load, or `load`: ours  ▲
//!                  │   └─ cpu      what the server spent     │
//!                  ├► store: scenarios with volumes and snapshots
//!                  ├► sync: replication, first copies and increments
//!                  └► migrate: a running guest moves, beside plain QEMU
//! ```
//!
//! What lives here: which servers and jobs are compared, how one run is made and what is reported of it.
//! The load generator is fio's own engine, for every server the same, so that nothing of ours sits on the measuring
//! side; only where that client is the limit, one of our own is a second one ([`load`]), and every table says which.

#![forbid(unsafe_code)]

pub mod jobs;
pub mod servers;

pub mod options;
pub mod plan;

pub mod campaign;
pub mod client;
pub mod cpu;
pub mod fio;
pub mod image;
pub mod interrupt;
pub mod load;
pub mod process;
pub mod volume;

pub mod migrate;
pub mod store;
pub mod sync;

pub mod parts;

pub mod goals;
pub mod machine;
pub mod plots;
pub mod report;
pub mod results;
pub mod targets;

pub mod trouble;
