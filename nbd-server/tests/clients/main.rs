//! The real binary, driven by real clients.
//!
//! What lives here: one module per family of clients. Each test starts the binary on a Unix socket in a
//! directory of its own ([`server`]) and lets programs that others wrote judge it: libnbd's, QEMU's, fio, a
//! client crate of the old days, Linux itself on the host and in a guest.
//!
//! What deliberately does not: hand-made requests (`protocol`), random programs (`model`).
//!
//! A client that is not installed fails its tests with the command that installs it. Two tests need root for
//! their mounts and only say so when they lack it: those of [`host_kernel`] and [`full_disk`].
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod server;
mod tools;

mod fio;
mod maps;
mod nbdcopy;
mod nbdinfo;
mod nbdsh;
mod newer_qemu;
mod old_client;
mod qemu_tools;

mod guests;
mod host_kernel;

mod crashes;
mod faults;
mod full_disk;
mod refusals;
mod restart;
