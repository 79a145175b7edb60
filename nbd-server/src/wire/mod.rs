//! Bytes and types of the NBD protocol: constants, headers, the table of errors.
//!
//! Source of every number: the protocol document of the NBD project, `doc/proto.md`. All integers on
//! the wire are big-endian. Nothing here decides anything; `handshake` and `transmission` do.

mod constants;
mod errno;
mod header;

pub use constants::*;
pub use errno::Errno;
pub use header::{
    HOLE_CHUNK_BYTES, REQUEST_HEADER_BYTES, RequestHeader, SIMPLE_REPLY_BYTES, STATUS_EXTENT_BYTES,
    chunk_header, data_chunk_header, error_chunk, hole_chunk, option_reply, simple_reply,
    status_chunk_header, status_extent,
};
