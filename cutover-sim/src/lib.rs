//! Moves back and forth, with a guest that writes: vmctl's own cutover on two hosts, in virtual time, over a link that delays,
//! loses, repeats, reorders and breaks, with crashes of agents, blockds and QEMUs at any instant.
//!
//! What takes the place of the two blockds is [`blockds::Blockds`]: the few lines of [`twins`] for vmctl's own tests, and
//! blockd's own store for `cutover-tests`. The exhaustive model has the twins, and [`qemus`], too.
#![forbid(unsafe_code)]

pub mod blockds;
pub mod qemus;
pub mod twins;

mod chance;
mod guest;
mod sim;

pub use chance::{MS, Micros, S};
pub use sim::{EVERYTHING, Sim};
