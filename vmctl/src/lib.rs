//! Guests on blockd's volumes: how they are defined, started, watched and adopted on one host.
//!
//! ```text
//! cli ─ HTTP over a Unix socket ─► agent ─► one owner task a VM ─┬─► qmp ─► QEMU
//!                                                                ├─► journal (records on disk)
//!                                                                └─► blockd (its API)
//! ```
//!
//! It depends on nothing of blockd's code: it speaks HTTP to it, and has `local-api` in common with it. docs/vmctl.md is
//! for users.
#![forbid(unsafe_code)]

pub mod error;
pub use local_api::exit_code;
pub mod failure;
pub mod size;
pub mod span;

pub mod http;
pub mod qmp;

pub mod blockd;
pub mod journal;
pub mod vm;

pub mod cutover;
pub mod moves;

pub mod agent;
pub mod config;

pub mod cli;
