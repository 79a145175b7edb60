//! The pool: files, their superblocks, what is where.

pub mod superblock;
