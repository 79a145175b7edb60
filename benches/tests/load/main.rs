//! Our own load generator against servers: our real one in this process, and bad ones made by hand.

#![forbid(unsafe_code)]

mod server;

mod combinations;

mod lies;
