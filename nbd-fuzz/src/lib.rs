//! The NBD server under arbitrary clients: what they may send, and what must come of it.
//!
//! What lives here: the oracles, which read the same bytes as the server without sharing code with it; the drivers, which take
//! the place of reactor and kernel; and the three targets that libFuzzer and the properties feed. What deliberately does not:
//! libFuzzer itself (`src/bin`, behind the feature `libfuzzer`) and proptest's generators (`tests`).
//!
//! ```text
//!  bytes ─► choices ─► script ─► world (engine, sockets, disk) ─► ledger (one for each client) ─► Ok, or what was broken
//!             └──────► handshake: driver ─────────────────────► handshake: oracle
//! ```
//!
//! A violation is an error with a text; whoever calls makes a panic of it, or a failed case.

#![forbid(unsafe_code)]

pub mod bytes;
pub mod choices;
pub mod pieces;
pub mod zeroes;

pub mod handshake;
pub mod transmission;

pub mod disk;
pub mod world;

pub mod script;
pub mod session;
pub mod targets;

#[cfg(feature = "libfuzzer")]
pub mod heap;

pub mod seeds;

/// Whether all is as it must be; if not, what is wrong.
pub type Verdict = Result<(), String>;

/// An error with that text, unless it holds.
///
/// # Errors
/// It does not hold.
pub fn ensure(holds: bool, text: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(text()) }
}
