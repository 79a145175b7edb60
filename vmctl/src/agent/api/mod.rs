//! The agent's API: HTTP/1.1 with JSON bodies over a Unix socket; docs/vmctl.md describes every route.

mod answer;
mod moves;
mod routes;

pub mod client;

pub use local_api::GroupError;
pub use routes::router;
