//! The header of a tree cache: whose tree it is.

use crate::hash::Value;
use crate::hash::pages::Shape;
use crate::units::LayerId;

const MAGIC: [u8; 8] = *b"BLKDTREE";
const VERSION: u32 = 1;
/// Bytes of the header; the rest of its 4 KiB is zero.
pub(super) const BYTES: usize = 76;

/// See the module. A file that is being changed has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::snapshot) struct Header {
    /// The snapshot's layer.
    pub(in crate::snapshot) layer: LayerId,
    /// The snapshot's size, bytes.
    pub(in crate::snapshot) size: u64,
    /// The value of its last cluster, up to its end, if that cuts it short.
    pub(in crate::snapshot) tail: Option<Value>,
}

impl Header {
    pub(super) fn encode(&self, identity: [u8; 16]) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.layer.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&identity);
        bytes[32..40].copy_from_slice(&self.size.to_le_bytes());
        bytes[40..72].copy_from_slice(&self.tail.unwrap_or_default());
        let crc = crc32c::crc32c(&bytes[..72]);
        bytes[72..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// A header of that store; `None`: it is none, or one of a version that we do not know.
    pub(super) fn decode(bytes: &[u8; BYTES], identity: [u8; 16]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sound = bytes[..8] == MAGIC
            && number(8) == VERSION
            && bytes[16..32] == identity
            && number(72) == crc32c::crc32c(&bytes[..72]);
        let size = u64::from_le_bytes(bytes[32..40].try_into().expect("eight bytes"));
        let tail = Shape::of(size).tail().map(|_| bytes[40..72].try_into().expect("a value's bytes"));
        sound.then_some(Self { layer: LayerId(number(12)), size, tail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_was_written_or_none() {
        let identity = [7; 16];
        for (size, tail) in [(65_536, None), (65_536 + 512, Some([9; 32]))] {
            let header = Header { layer: LayerId(3), size, tail };
            let bytes = header.encode(identity);
            assert_eq!(Header::decode(&bytes, identity), Some(header));
            assert_eq!(Header::decode(&bytes, [8; 16]), None);
            for at in 0..BYTES {
                let mut damaged = bytes;
                damaged[at] ^= 1;
                assert_eq!(Header::decode(&damaged, identity), None, "byte {at}");
            }
        }
        assert_eq!(Header::decode(&[0; BYTES], [0; 16]), None);
    }
}
