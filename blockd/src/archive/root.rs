//! The signed root of a snapshot: what it is, and which pages it consists of.

use super::Digest;
use super::bytes::{Fields, Parsed, head};
use super::config::ArchiveConfig;
use super::key::SecretKey;
use super::page::INNER_CLUSTERS;
use crate::control::SnapshotName;
use crate::units::{SIZE_UNIT_BYTES, VOLUME_BYTES_MAX, cluster_count};

/// Bytes of the largest root.
pub const ROOT_BYTES_MAX: u64 = 16 << 10;

const MAGIC: [u8; 8] = *b"BLKDSNAP";
const PURPOSE: &str = "blockd archive snapshot";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Which.
    pub name: SnapshotName,
    /// Bytes of the volume.
    pub size: u64,
    /// When the snapshot was taken: milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// BLAKE3 of the raw image, as `b3sum` prints it.
    pub hash: Digest,
    /// Clusters with data.
    pub clusters: u64,
    /// Inner pages, one for each TiB begun; none where all is zero.
    pub inner: Vec<Option<Digest>>,
}

/// Inner pages of a volume of that size.
pub(super) fn inner_count(size: u64) -> u64 {
    cluster_count(size).div_ceil(INNER_CLUSTERS)
}

impl Root {
    /// The object, signed for this archive.
    pub fn encode(&self, config: &ArchiveConfig, key: &SecretKey) -> Vec<u8> {
        let mut bytes = head(MAGIC);
        bytes.extend_from_slice(&config.id);
        for number in [self.size, self.created_ms, self.clusters] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.hash);
        for name in [&self.name.volume, &self.name.snapshot] {
            bytes.extend_from_slice(&u16::try_from(name.len()).expect("names are short").to_le_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes.extend_from_slice(&u16::try_from(self.inner.len()).expect("few pages").to_le_bytes());
        for page in &self.inner {
            bytes.push(u8::from(page.is_some()));
            bytes.extend_from_slice(&page.unwrap_or_default());
        }
        let signature = key.sign(PURPOSE, &bytes);
        bytes.extend_from_slice(&signature);
        bytes
    }

    /// Reads the root of the snapshot of that name, and checks that the archive's key signed it for this archive and
    /// this name.
    ///
    /// # Errors
    /// It is none, or of another snapshot or archive, or not signed by the key.
    pub fn parse(bytes: &[u8], config: &ArchiveConfig, name: &SnapshotName) -> Result<Self, String> {
        let mut fields = Fields::open(bytes, MAGIC)?;
        // Nothing is made of what nobody vouches for.
        let signed = bytes.len().checked_sub(64).ok_or("it ends too early")?;
        let (text, signature) = bytes.split_at(signed);
        let signature = signature.try_into().map_err(|_| "it ends too early")?;
        if !config.key.verifies(PURPOSE, text, signature) {
            return Err("its signature is wrong".to_owned());
        }
        if fields.array::<16>()? != config.id {
            return Err("it belongs to another archive".to_owned());
        }
        let root = Self::parse_signed(&mut fields)?;
        if fields.left() != 64 {
            return Err("bytes too many or too few".to_owned());
        }
        if root.name == *name { Ok(root) } else { Err(format!("it is the root of {}", root.name)) }
    }

    fn parse_signed(fields: &mut Fields<'_>) -> Parsed<Self> {
        let (size, created_ms, clusters) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let sound =
            (SIZE_UNIT_BYTES..=VOLUME_BYTES_MAX).contains(&size) && size.is_multiple_of(SIZE_UNIT_BYTES);
        if !sound || clusters > cluster_count(size) {
            return Err(format!("it tells of {clusters} clusters in {size} bytes"));
        }
        let hash = fields.array()?;
        let (volume, snapshot) = (parse_name(fields)?, parse_name(fields)?);
        let name = format!("{volume}@{snapshot}").parse().map_err(|_| "its name is none")?;
        let count = u64::from(fields.u16()?);
        if count != inner_count(size) {
            return Err(format!("it has {count} pages, its size needs {}", inner_count(size)));
        }
        let inner = (0..count).map(|_| parse_page(fields)).collect::<Parsed<_>>()?;
        Ok(Self { name, size, created_ms, hash, clusters, inner })
    }
}

fn parse_name(fields: &mut Fields<'_>) -> Parsed<String> {
    let length = usize::from(fields.u16()?);
    String::from_utf8(fields.take(length)?.to_vec()).map_err(|_| "its name is none".to_owned())
}

fn parse_page(fields: &mut Fields<'_>) -> Parsed<Option<Digest>> {
    let (there, hash) = (fields.u8()?, fields.array()?);
    match (there, hash) {
        (0, hash) if hash == Digest::default() => Ok(None),
        (1, hash) => Ok(Some(hash)),
        _ => Err("a page is neither there nor missing".to_owned()),
    }
}

#[cfg(test)]
mod tests;
