//! `config`: which archive this is, and whose. Written once, never changed.

use super::bytes::{Fields, head};
use super::key::{PublicKey, SecretKey};
use super::pack::CHUNK_BYTES;

/// Bytes of the object.
pub const CONFIG_BYTES: u64 = 136;

const MAGIC: [u8; 8] = *b"BLKDARCH";
const PURPOSE: &str = "blockd archive config";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// The archive's identity: random, part of all that is signed.
    pub id: [u8; 16],
    /// Milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// Of the key that signs its snapshots.
    pub key: PublicKey,
}

impl ArchiveConfig {
    /// The object, signed.
    pub fn encode(&self, key: &SecretKey) -> Vec<u8> {
        let mut bytes = head(MAGIC);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(&self.created_ms.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(CHUNK_BYTES).expect("64 KiB").to_le_bytes());
        bytes.extend_from_slice(&self.key.0);
        let signature = key.sign(PURPOSE, &bytes);
        bytes.extend_from_slice(&signature);
        bytes
    }

    /// Reads it. That its signature is right says only that who wrote it has the key that it names.
    ///
    /// # Errors
    /// It is none, or not signed by that key.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut fields = Fields::open(bytes, MAGIC)?;
        let (id, created_ms, chunk_bytes) = (fields.array()?, fields.u64()?, fields.u32()?);
        if chunk_bytes as usize != CHUNK_BYTES {
            return Err(format!("its chunks have {chunk_bytes} bytes, this program knows {CHUNK_BYTES}"));
        }
        let key = PublicKey(fields.array()?);
        let signed = bytes.len() - fields.left();
        let signature = fields.array()?;
        fields.end()?;
        if key.verifies(PURPOSE, &bytes[..signed], &signature) {
            return Ok(Self { id, created_ms, key });
        }
        Err("its signature is wrong".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_read_as_it_was_written_and_nothing_else() {
        let (_, key) = SecretKey::generate().unwrap();
        let config = ArchiveConfig { id: [7; 16], created_ms: 5, key: key.public() };
        let bytes = config.encode(&key);
        assert_eq!(bytes.len() as u64, CONFIG_BYTES);
        assert_eq!(ArchiveConfig::parse(&bytes).unwrap(), config);
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(ArchiveConfig::parse(&changed).is_err(), "byte {at}");
            assert!(ArchiveConfig::parse(&bytes[..at]).is_err(), "cut to {at}");
        }
        assert!(ArchiveConfig::parse(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn a_later_version_is_told_as_such() {
        let (_, key) = SecretKey::generate().unwrap();
        let mut bytes = ArchiveConfig { id: [7; 16], created_ms: 5, key: key.public() }.encode(&key);
        bytes[8] = 2;
        assert_eq!(ArchiveConfig::parse(&bytes).unwrap_err(), "it has version 2, this program knows 1");
    }
}
