//! The whole NBD protocol, served by one io_uring thread per reactor.
//!
//! What lives here: the protocol ([`wire`], [`handshake`], [`transmission`], [`connection`]), TLS under it ([`tls`]), the
//! bookkeeping that ties requests to connections and exports ([`engine`]), the traits that a disk, and
//! all that a reactor serves, are served through ([`export`]), two exports (a plain file, memory), and the two
//! things that touch the world: the [`reactor`] (sockets and disk files on one ring) and the [`server`]
//! (listening, handshakes, stopping) on tokio.
//!
//! What deliberately does not: volumes, snapshots, who may write. Those are backends of other crates.
//!
//! ```text
//!  socket ── tokio: accept, handshake ──► reactor thread (one io_uring)
//!                                          │ bytes in / bytes out
//!                                          ▼
//!                                        engine: connections ─ Request ─► backend ─ DiskOp ─► reactor
//!                                                            ◄─ Reply ──          ◄ DiskDone ─
//! ```
//!
//! Everything but `reactor` and `server` (and the buffers, which the ring borrows) is free of I/O, clocks and randomness, so that the very same
//! code runs under a simulated disk, network and clock (crate `fixtures`).
#![deny(unsafe_code)]

pub mod wire;

pub mod status;

pub mod disk;
pub mod export;

pub mod client;
pub mod handshake;
pub mod transmission;

pub mod tls;

pub mod connection;
pub mod engine;

pub mod file_export;
pub mod image;
pub mod memory_export;

#[allow(unsafe_code)] // The one room that may: argued block by block there.
pub mod reactor;
pub mod registry;

mod line;
pub mod server;
