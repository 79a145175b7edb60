//! Replication: snapshots travel to other hosts (docs/replication.md).
//!
//! The protocol is without I/O: frames and the results of operations come in, frames and operations go out.

pub mod wire;

pub mod batch;
pub mod session;

pub mod source;
pub mod target;

pub mod answer;
pub mod fetch;

pub mod offer;
pub mod reading;
pub mod writing;

pub mod carry;
mod link;
pub mod mirror;
pub mod mirroring;
mod pace;
#[cfg(test)]
mod page;
mod reader_thread;
pub mod repair;
pub mod replicator;
mod serve;
mod together;
