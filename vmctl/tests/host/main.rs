//! One host: the real agent, the real QEMU, the real blockd.
//!
//! blockd is the program beside ours in cargo's target directory, which `cargo xtask test` builds; `BLOCKD_BIN` names
//! another one.

mod rig;

mod commands;
mod guests;
mod moving;
