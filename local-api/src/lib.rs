//! HTTP with JSON on a Unix socket, as both daemons have it: who may, limits, errors, events, exit codes.
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

pub mod exit_code;

pub use access::GroupError;
