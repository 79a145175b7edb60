//! The daemon's control API: HTTP/1.1 with JSON bodies over a Unix socket.
//!
//! `docs/api.md` describes every route. What deliberately does not live here: what commands mean (`control`), and
//! how people type them (`cli`).

pub mod types;

mod answer;
pub mod clients;
pub mod connections;
mod exports;
pub mod hosts;
pub mod jobs;
mod long;
mod metrics;
mod metrics_exports;
pub mod mirrors;
pub mod moves;
pub mod prune;
pub mod replicas;
mod routes;
mod scrub;
pub mod temporary;
mod tunnel;

pub mod server;

pub mod client;

pub use local_api::GroupError;
pub use routes::{router, routes};
