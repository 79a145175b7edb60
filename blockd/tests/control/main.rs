//! The API and `blockctl`, against an engine that keeps volumes in memory.
#![forbid(unsafe_code)]

mod engine;
mod harness;

mod api;
mod cli;
mod files;
mod nbd;
