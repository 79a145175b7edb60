//! Snapshots in object storage: S3, or a directory. Format: docs/archive-format.md.
//!
//! ```text
//!   snapshots/VOLUME/SNAP   signed root: size, BLAKE3 of the raw image, hashes of
//!        │                  inner pages
//!   pages/HASH              inner pages: hashes of leaves, 4096 each
//!        │                  leaf pages: hashes of chunks, 4096 each
//!   packs/HH/HASH           chunks of 64 KiB, compressed, some hundred together
//!   index/HASH              which chunk lies in which pack; can be made anew from the packs
//!   config                  identity and public key, signed
//! ```
//!
//! Everything but `config` and the roots is named after its own BLAKE3. Writing goes from the bottom up and the root
//! comes last, so a push that dies leaves nothing but objects that nobody names, and the next one uses them. Reading
//! goes from the top down and believes nothing: the signature, then each page and each chunk by its hash, at last
//! the whole image.
//!
//! What deliberately does not live here: where clusters come from and go to (`cli::archive`: the daemon's NBD
//! socket and its API).

mod bytes;
mod error;

pub mod key;
pub mod location;
pub mod storage;

pub mod config;
pub mod index;
pub mod pack;
pub mod page;
pub mod root;

mod catalog;
mod fetch;
mod manifest;
mod push;
mod verify;

#[cfg(test)]
mod tests;

pub use catalog::{Archive, Listed, Loaded, Trust};
pub use error::ArchiveError;
pub use fetch::{FETCH_CLUSTERS_WAITING_MAX, Piece, fetch};
pub use push::{Base, Cluster, Push, PushReport};
pub use verify::{Damage, VerifySummary, verify};

/// BLAKE3.
pub type Digest = [u8; 32];

/// Version of every object.
pub const FORMAT_VERSION: u32 = 1;

/// 64 hexadecimal digits.
pub(crate) fn hex(digest: &Digest) -> String {
    crate::api::types::hex(digest)
}

/// The digest that these 64 lower-case digits stand for.
pub(crate) fn parse_hex(text: &str) -> Option<Digest> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}
