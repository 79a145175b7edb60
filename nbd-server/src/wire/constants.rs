//! The protocol's numbers, named as the protocol document names them.

/// First eight bytes a server sends: "NBDMAGIC".
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": marks newstyle negotiation, and every option a client sends.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Marks every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Marks every request in transmission.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Marks a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Marks a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Flags of the server's greeting and of the client's answer (the same bits on both sides).
pub mod handshake_flag {
    /// Options are answered, unknown ones too.
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// The 124 zero bytes after `EXPORT_NAME` are left out.
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Marks every request where extended headers were agreed on.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Marks every chunk of a reply there.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Options a client may send before transmission.
pub mod option {
    /// Choose an export; cannot report an error, so failure closes the connection.
    pub const EXPORT_NAME: u32 = 1;
    /// End the negotiation.
    pub const ABORT: u32 = 2;
    /// List the exports.
    pub const LIST: u32 = 3;
    /// Go on inside TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and enter transmission.
    pub const GO: u32 = 7;
    /// Ask for structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List the meta contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose the meta contexts that `BLOCK_STATUS` tells of.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Ask for longer headers of requests and replies, with 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Replies to options; errors have the top bit set.
pub mod option_reply_type {
    /// The option is done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One meta context.
    pub const META_CONTEXT: u32 = 4;
    /// The option is not known here.
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    /// The option's data are wrong.
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    /// Not without TLS.
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    /// There is no such export (or none that this client may see: the same answer).
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    /// The server is stopping.
    pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    /// The option is larger than this server reads.
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    /// Extended headers were agreed on, or have to be.
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// Kinds of information in an `INFO` reply.
pub mod info {
    /// Size and transmission flags; always sent.
    pub const EXPORT: u16 = 0;
    /// The canonical name.
    pub const NAME: u16 = 1;
    /// A text for people.
    pub const DESCRIPTION: u16 = 2;
    /// Minimum, preferred and maximum block size.
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do, told to the client before transmission.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes fail with `EPERM`.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is supported.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is supported, on every command.
    pub const SEND_FUA: u16 = 1 << 3;
    /// The medium spins.
    pub const ROTATIONAL: u16 = 1 << 4;
    /// `TRIM` is supported.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is supported, with and without `NO_HOLE`.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is supported on reads (only with structured replies).
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers writes answered on all connections.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is supported.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The `FAST_ZERO` flag is supported.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// `BLOCK_STATUS` takes a list of meta contexts (only with extended headers).
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands of the transmission phase.
pub mod command {
    /// Read a range.
    pub const READ: u16 = 0;
    /// Write a range; the payload follows the header.
    pub const WRITE: u16 = 1;
    /// Leave: finish what is in flight, no reply.
    pub const DISC: u16 = 2;
    /// Make every answered write durable.
    pub const FLUSH: u16 = 3;
    /// The range is not needed any more.
    pub const TRIM: u16 = 4;
    /// The range will be read soon.
    pub const CACHE: u16 = 5;
    /// The range becomes zero.
    pub const WRITE_ZEROES: u16 = 6;
    /// What is known of the range, in each meta context.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a command.
pub mod command_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes must stay allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The reply must be one piece.
    pub const DF: u16 = 1 << 2;
    /// One extent a context is enough.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Fail with `ENOTSUP` rather than be slow.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The length is that of a payload (only with extended headers).
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Kinds of chunks in a structured reply.
pub mod chunk {
    /// No content.
    pub const NONE: u16 = 0;
    /// Offset and data.
    pub const OFFSET_DATA: u16 = 1;
    /// Offset and length of zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// A meta context's number, and its extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// The same with 64-bit lengths, and the number of extents.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// The request failed.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// Flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
}

/// What `base:allocation` says of an extent.
pub mod allocation {
    /// Nothing is allocated: a write may run out of space.
    pub const HOLE: u32 = 1 << 0;
    /// It reads as zero.
    pub const ZERO: u32 = 1 << 1;
}

/// The most payload one request may carry, bytes: the protocol's default, told in `INFO_BLOCK_SIZE`.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// The longest string of the protocol, bytes.
pub const MAX_STRING_BYTES: usize = 4096;
