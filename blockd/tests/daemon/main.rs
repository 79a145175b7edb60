//! The real daemon and the real `blockctl`, driven by real clients: what the parts promise, whole.
//!
//! Each test has a data directory and a daemon of its own ([`place`]). Tests that mount a file system need root, and
//! those that cut the power need FUSE; without, they say so and return.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod place;
mod tools;

mod changed;
mod clones;
mod connected;
mod exports;
mod hashes;
mod hosts;
mod mirrors;
mod moves;
mod nbd_tls;
mod observed;
mod repair;
mod replicas;
mod soak;
mod stopping;
mod sync;
mod temporary;
mod tenants;
mod within;

mod crashes;
mod damage;
mod directories;
mod failed_syncs;
mod full_disk;
