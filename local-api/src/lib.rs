//! HTTP with JSON on a Unix socket, as both daemons have it: who may, limits, errors, events, client, locks, exit codes, sizes, and
//! what people are shown.
//!
//! What the routes mean, and what people are advised to type next, is each daemon's own.
#![forbid(unsafe_code)]

mod access;
mod stall;

pub mod error;
pub mod events;

pub mod answer;
pub mod guard;
pub mod server;

pub mod http;

pub mod lock;

pub mod exit_code;
pub mod failure;
pub mod output;
pub mod size;

pub use access::GroupError;
