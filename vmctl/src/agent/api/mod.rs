//! The agent's API: HTTP/1.1 with JSON bodies over a Unix socket; docs/vmctl.md describes every route.

mod access;
mod answer;
mod guard;
mod moves;
mod routes;
mod stall;

pub mod client;
pub mod server;

pub use access::GroupError;
pub use routes::router;
