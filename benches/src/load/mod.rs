//! A load generator of our own: one thread, one io_uring, many requests in flight.
//!
//! fio's nbd engine has a connection a job and receives a structured read in four calls; on a small machine it is
//! busy before a good server is, and then a ratio of IOPS tells of the client. This one sends all requests that may
//! be sent in one call, receives what has come in one call, and steps over payload where it lies. Its figures are
//! labelled in every table: who compares servers with a client of his own making has to say so.
//!
//! ```text
//! negotiate ─► sockets ─► drive ◄──► nbd_server::reactor::SocketRing
//!                           │ bytes in, bytes out, the time
//!                           ▼
//!                       connection ─► replies     what came: checked, payload stepped over
//!                           │   └───► slots       what is in flight
//!                           ▼
//!                         tally ─► histogram
//! ```
//!
//! What lives here: the transmission phase of a client that has nothing to do with the data. All of it but `drive`
//! and `negotiate` is free of I/O and clocks. What deliberately does not: a second negotiation; that is the test
//! client's of `fixtures`. Nor is what was read compared: the test suites do that.

mod histogram;
mod tally;

mod slots;

mod replies;

mod connection;

mod negotiate;

mod drive;

mod report;

pub use drive::{Times, run};
pub use negotiate::Target;
pub use report::{Report, block_bytes};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What is done where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Pattern {
    /// Reads blocks drawn at random.
    RandRead,
    /// Writes blocks drawn at random.
    RandWrite,
    /// Reads one block after the other; from the beginning again after the last.
    Read,
    /// Writes likewise.
    Write,
}

impl Pattern {
    /// Whether it writes.
    pub fn writes(self) -> bool {
        matches!(self, Self::RandWrite | Self::Write)
    }
}

/// The load on an export.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// What is done where.
    pub pattern: Pattern,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests in flight on each connection, flushes among them.
    pub depth: u32,
    /// Connections.
    pub connections: u32,
    /// A flush after so many writes of a connection.
    pub flush_every: Option<u32>,
    /// What the blocks are drawn from.
    pub seed: u64,
}
