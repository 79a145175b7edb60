//! The API and `blockctl`, against an engine that keeps volumes in memory.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod carrier;
mod engine;
mod harness;

mod api;
mod cli;
mod daemon;
mod files;
mod jobs;
mod nbd;
