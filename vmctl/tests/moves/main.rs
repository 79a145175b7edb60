//! Moves of a real guest between two hosts, each with the real blockd and the real agent.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod place;

mod adopted;
mod company;
mod ends;
mod happy;
mod kvm;
mod matrix;
mod mirror;
mod undone;
mod versions;
