//! Copy-on-write volumes with snapshots and clones, each served as an `Export` of the NBD server.
#![forbid(unsafe_code)]
