//! The archive's key: Ed25519, in a file of its own. Who has it can add snapshots; its public half tells whether
//! a snapshot was added by such a one.
//!
//! ```text
//! blockd-archive-key 1
//! secret 64 hexadecimal digits        (missing in the public file)
//! public 64 hexadecimal digits
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use super::{ArchiveError, hex, parse_hex};

const FIRST_LINE: &str = "blockd-archive-key 1";
/// Larger files are no keys.
const FILE_BYTES_MAX: u64 = 4096;

/// An Ed25519 signature.
pub type Signature = [u8; 64];

/// Tells whether something was signed by the archive's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Whether these bytes were signed for this purpose.
    pub fn verifies(&self, purpose: &str, bytes: &[u8], signature: &Signature) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(&message(purpose, bytes), signature).is_ok()
    }

    /// For people to compare.
    pub fn to_hex(self) -> String {
        hex(&self.0)
    }
}

/// Signs for an archive.
#[derive(Debug)]
pub struct SecretKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl SecretKey {
    /// A new one, from the system's randomness.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn generate() -> Result<([u8; 32], Self), ArchiveError> {
        let mut seed = [0; 32];
        let no_random = |_| ArchiveError::Refused("the system has no randomness".to_owned());
        SystemRandom::new().fill(&mut seed).map_err(no_random)?;
        let key = Self::from_seed(&seed).map_err(ArchiveError::Refused)?;
        Ok((seed, key))
    }

    fn from_seed(seed: &[u8; 32]) -> Result<Self, String> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|error| error.to_string())?;
        let bytes = pair.public_key().as_ref().try_into();
        let public = PublicKey(bytes.map_err(|_| "its public half has another length".to_owned())?);
        Ok(Self { pair, public })
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// Signs for one purpose: a signature cannot be used for another.
    pub fn sign(&self, purpose: &str, bytes: &[u8]) -> Signature {
        let signature = self.pair.sign(&message(purpose, bytes));
        signature.as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }
}

/// The purpose stands before the bytes, with an end of its own.
fn message(purpose: &str, bytes: &[u8]) -> Vec<u8> {
    [purpose.as_bytes(), b"\0", bytes].concat()
}

/// Where the public half is kept beside the secret one: `FILE.pub`.
pub fn public_file(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    PathBuf::from(name)
}

/// Makes a key in a new file, readable by its owner only, and its public half in `FILE.pub`. Both are durable.
///
/// # Errors
/// The file exists, or cannot be written.
pub fn create(file: &Path) -> Result<SecretKey, ArchiveError> {
    let (seed, key) = SecretKey::generate()?;
    let public = format!("public {}\n", key.public.to_hex());
    let secret = format!("{FIRST_LINE}\nsecret {}\n{public}", hex(&seed));
    write_new(file, 0o600, &secret).map_err(|error| of_file(file, error))?;
    let beside = public_file(file);
    write_new(&beside, 0o644, &format!("{FIRST_LINE}\n{public}")).map_err(|error| of_file(&beside, error))?;
    Ok(key)
}

fn write_new(file: &Path, mode: u32, text: &str) -> io::Result<()> {
    let mut made = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
    made.write_all(text.as_bytes())?;
    made.sync_all()?;
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn of_file(file: &Path, error: impl std::fmt::Display) -> ArchiveError {
    ArchiveError::Key { file: file.display().to_string(), why: error.to_string() }
}

/// What a key file holds.
struct KeyFile {
    secret: Option<[u8; 32]>,
    public: PublicKey,
}

fn read(file: &Path) -> Result<KeyFile, ArchiveError> {
    let metadata = fs::metadata(file).map_err(|error| of_file(file, error))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(of_file(file, "it is no key"));
    }
    let text = fs::read_to_string(file).map_err(|error| of_file(file, error))?;
    let key = parse(&text).ok_or_else(|| of_file(file, "it is no key of an archive"))?;
    if key.secret.is_some() && metadata.permissions().mode() & 0o077 != 0 {
        return Err(of_file(file, format!("others may read it: chmod 600 {}", file.display())));
    }
    Ok(key)
}

fn parse(text: &str) -> Option<KeyFile> {
    let mut lines = text.lines();
    if lines.next()? != FIRST_LINE {
        return None;
    }
    let (mut secret, mut public) = (None, None);
    for line in lines {
        match line.split_once(' ')? {
            ("secret", digits) => secret = Some(parse_hex(digits)?),
            ("public", digits) => public = Some(PublicKey(parse_hex(digits)?)),
            _ => return None,
        }
    }
    Some(KeyFile { secret, public: public? })
}

/// Reads the secret key.
///
/// # Errors
/// It cannot be read, others may read it, or it is no secret key.
pub fn read_secret(file: &Path) -> Result<SecretKey, ArchiveError> {
    let key = read(file)?;
    let seed =
        key.secret.ok_or_else(|| of_file(file, "it holds the public half only; pushing needs the secret"))?;
    let secret = SecretKey::from_seed(&seed).map_err(|why| of_file(file, why))?;
    if secret.public == key.public {
        return Ok(secret);
    }
    Err(of_file(file, "its two halves do not belong together"))
}

/// Reads the public half, from either file.
///
/// # Errors
/// It cannot be read, or is no key.
pub fn read_public(file: &Path) -> Result<PublicKey, ArchiveError> {
    read(file).map(|key| key.public)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kept_in_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let made = create(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let read = read_secret(&file).unwrap();
        let signature = read.sign("test", b"bytes");
        for public in [made.public(), read_public(&file).unwrap(), read_public(&public_file(&file)).unwrap()]
        {
            assert!(public.verifies("test", b"bytes", &signature));
            assert!(!public.verifies("tes", b"tbytes", &signature), "the purpose has an end");
            assert!(!public.verifies("test", b"bytez", &signature));
        }
        assert!(matches!(create(&file), Err(ArchiveError::Key { .. })), "a key was overwritten");
        assert!(read_secret(&public_file(&file)).is_err());
    }

    #[test]
    fn a_secret_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        create(&file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(read_secret(&file).unwrap_err().to_string().contains("chmod 600"));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let digits = "0".repeat(64);
        for text in ["", "blockd-archive-key 2\n", "blockd-archive-key 1\npublic 12\n", &"x".repeat(5000)] {
            fs::write(&file, text).unwrap();
            assert!(read_public(&file).is_err(), "{text:?}");
        }
        fs::write(&file, format!("{FIRST_LINE}\nsecret {digits}\npublic {digits}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read_secret(&file).unwrap_err().to_string().contains("do not belong together"));
    }
}
