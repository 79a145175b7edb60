//! Decompression of what other hosts send, in a process of its own (docs/replication.md, "Batches").
//!
//! All that judges a peer's bytes is Rust, but for zstd. Its bytes are therefore given to a process that has nothing to
//! lose: no files, no sockets, no other system calls than those for memory and for the one socket that it was started
//! with. What it gives back is believed no more than what the peer sent: the length is known before, and the hashes are
//! compared afterwards.
//!
//! ```text
//!  batch::decode ─ Decompress ─┬─ InProcess            simulation, tests, and inside of the process
//!                              └─ Session ═ socket ═ `blockd decompress`, confined
//! ```

mod frames;

pub mod process;

pub mod confine;
pub mod probe;
pub mod worker;

/// What zstd's bytes are made data by.
pub trait Decompress: Send + Sync {
    /// Makes exactly `length` bytes of one frame of zstd. Blocking.
    ///
    /// # Errors
    /// The bytes are not that; or this host could not do it.
    fn decompress(&self, stored: &[u8], length: usize) -> Result<Vec<u8>, DecompressError>;
}

/// Why there are no data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecompressError {
    /// The bytes are not what they should be, or have done harm to what decompresses them.
    Bad(String),
    /// This host's own trouble: whoever sent the bytes is not to blame.
    Local(String),
}

/// In this process: where the bytes are our own, or where this process may be harmed.
#[derive(Clone, Copy, Debug, Default)]
pub struct InProcess;

impl Decompress for InProcess {
    /// Into a buffer of exactly that length, whatever the compressed data say of themselves.
    fn decompress(&self, stored: &[u8], length: usize) -> Result<Vec<u8>, DecompressError> {
        if zstd::zstd_safe::find_frame_compressed_size(stored) != Ok(stored.len()) {
            return Err(DecompressError::Bad("compressed data are not one frame".to_owned()));
        }
        let mut data = vec![0; length];
        match zstd::bulk::decompress_to_buffer(stored, &mut data) {
            Ok(found) if found == length => Ok(data),
            Ok(found) => Err(DecompressError::Bad(format!("{found} bytes where {length} are announced"))),
            Err(error) => {
                Err(DecompressError::Bad(format!("{length} bytes cannot be decompressed: {error}")))
            }
        }
    }
}
