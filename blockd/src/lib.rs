//! The copy-on-write store behind volumes, snapshots and clones, and the daemon that serves it.
#![forbid(unsafe_code)]

pub mod units;

pub mod map;

pub mod hash;

pub mod catalog;
pub mod checkpoint;
pub mod control;
pub mod fsck;
pub mod inspect;
pub mod intents;
pub mod lock;
pub mod rebuild;
pub mod recent;
pub mod store;

pub use local_api::events;
pub mod service;

pub mod snapshot;

pub mod archive;
pub mod decompress;
pub mod jobs;
pub mod peer;
pub mod sync;

pub mod api;

pub use local_api::exit_code;
pub mod failure;
pub mod size;

pub mod nbd_door;

pub mod config;
pub mod daemon;
pub mod host;
pub mod open;

pub mod cli;
