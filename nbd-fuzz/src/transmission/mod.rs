//! Transmission: what a client has agreed on, what its bytes ask for, and what each request must be answered with.
//!
//! There are two kinds of answers. [`memory`] knows the only right one, for memory answers at once and in order. On a
//! [`file`](mod@file) requests overlap, and complete and fail as the disk likes: then an answer must be one of those that
//! the disk's history allows.

pub mod setting;
pub mod stream;

pub mod law;

pub mod file;
pub mod memory;

pub mod ledger;

pub mod requests;
