//! Bytes and types of the NBD protocol: constants, headers, the table of errors.
//!
//! Source of every number: the protocol document of the NBD project, `doc/proto.md`. All integers on
//! the wire are big-endian. Nothing here decides anything; `handshake` and `transmission` do.

mod constants;
mod errno;
mod header;
mod reply;

pub use constants::*;
pub use errno::Errno;
pub use header::{EXTENDED_REQUEST_HEADER_BYTES, REQUEST_HEADER_BYTES, RequestHeader, option_reply};
pub use reply::{Head, ReplyForm, ReplyTo};
