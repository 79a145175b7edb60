//! Hosts that know each other: two or more in one process, over loopback, and forgers among them.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod forge;
mod host;

mod files;
mod links;
mod pairing;
mod strangers;
