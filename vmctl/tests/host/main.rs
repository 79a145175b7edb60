//! One host: the real agent, the real QEMU, the real blockd.
//!
//! blockd is the program beside ours in cargo's target directory, which `cargo xtask test` builds; `BLOCKD_BIN` names
//! another one.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod rig;

mod commands;
mod guests;
mod moving;
mod strangers;
