//! The protocol on the wire: bad clients and the answers they must get, rows N1-N14 and X1-X15 by name,
//! and what good clients rely on.
//!
//! Clients are made by hand (`fixtures::nbd`), servers are real: in this process for chosen limits, as the
//! binary where facts of a process count. After each bad client another one must be served.

mod exports;
mod harness;

mod handshake;
mod names;
mod tls;
mod tls_fuzz;
mod transmission;

mod contexts;
mod extended;
mod status;

mod backend;
mod limits;
mod registry;
mod serving;
mod stopping;

mod clockwork;
mod process;
