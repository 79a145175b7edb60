//! `blockctl archive` with real daemons, against S3 over real HTTP.
//!
//! The servers: s3s-fs, in the test's process, which checks signatures and can be made to fail; and moto, where its
//! program is installed.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "in a test binary a panic is how a helper fails, too")]

mod host;
mod server;

mod damage;
mod faults;
mod moto;
mod round_trip;
