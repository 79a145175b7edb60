//! Hosts of simulations: blockd's own store over a simulated disk and simulated metadata, and sessions of replication between
//! two of them over a link that may be cut, by blockd's own state machines.
//!
//! What lives here is what several simulations share; what may happen, and what must hold then, is each one's own. Helpers
//! panic where a test would: a simulated host that does not answer is a failed test.
#![forbid(unsafe_code)]

pub mod exchange;
pub mod host;
pub mod killed;
mod mirror;
mod requests;
pub mod sides;
