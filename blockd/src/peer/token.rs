//! Pairing tokens: what the operator carries from one host to the other, and the open ones of this host.
//!
//! As text `bp1.` and base64url without padding of, in order (docs/replication.md):
//!
//! | bytes | content |
//! |---|---|
//! | 16 | the secret |
//! | 32 | BLAKE3 of the CA certificate of the host that made it |
//! | 1 | number of addresses, 1 to 8 |
//! | each: 2, n | length, little-endian; `HOST:PORT` |
//! | 4 | the first bytes of BLAKE3 of `bp1.` and all before: finds typing errors |

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::CertificateDer;

use super::addresses::{ADDRESS_BYTES_MAX, ADDRESSES_MAX, check_addresses};
use super::certs;
use super::error::{PeerError, PeerErrorKind};
use super::host_id::HostId;
use super::registry::Consent;

/// Tokens that wait to be used.
pub const OPEN_TOKENS_MAX: usize = 8;
/// Wrong proofs that end a token.
pub const WRONG_PROOFS_MAX: u8 = 5;
/// How long a token may be open.
pub const TOKEN_TIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

const PREFIX: &str = "bp1.";
const SECRET_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
const TOKEN_BYTES_MAX: usize =
    SECRET_BYTES + 32 + 1 + ADDRESSES_MAX * (2 + ADDRESS_BYTES_MAX) + CHECKSUM_BYTES;

/// The secret that both sides prove to know; never shown but as a part of the token's text.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) [u8; SECRET_BYTES]);

/// What tells open tokens apart without giving their secrets away.
pub(super) type TokenId = [u8; 8];

impl Secret {
    /// Names the token to the host that made it.
    pub(super) fn token_id(&self) -> TokenId {
        let key = blake3::derive_key("blockd host pairing v1: token id", &self.0);
        key.first_chunk().copied().expect("32 bytes begin with 8")
    }

    /// The key of the proofs.
    fn proof_key(&self) -> [u8; 32] {
        blake3::derive_key("blockd host pairing v1: proof", &self.0)
    }
}

/// Who proves; keeps one side's proof from being sent back as the other's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Prover {
    /// The host that uses a token.
    Joining = 1,
    /// The host that made it.
    Inviting = 2,
}

/// What both sides of a pairing must see alike.
pub(super) struct Transcript<'a> {
    /// Out of the TLS connection: nobody stands between.
    pub(super) exporter: [u8; 32],
    /// The host that uses the token: identity and CA.
    pub(super) joining: (HostId, &'a CertificateDer<'a>),
    /// The host that made it.
    pub(super) inviting: (HostId, &'a CertificateDer<'a>),
}

impl Transcript<'_> {
    /// The proof that somebody knows the secret and sees the same hosts on the same connection.
    pub(super) fn proof(&self, secret: &Secret, prover: Prover) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&secret.proof_key());
        hasher.update(&[prover as u8]).update(&self.exporter);
        for (id, ca) in [&self.joining, &self.inviting] {
            hasher.update(&id.0).update(certs::fingerprint(ca).as_bytes());
        }
        hasher.finalize()
    }
}

/// A token, as it is carried over. Its text is a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(super) secret: Secret,
    pub(super) fingerprint: [u8; 32],
    pub(super) addresses: Vec<String>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Token {
    /// The one line to be copied.
    pub fn to_text(&self) -> String {
        let mut bytes = Vec::with_capacity(TOKEN_BYTES_MAX);
        bytes.extend_from_slice(&self.secret.0);
        bytes.extend_from_slice(&self.fingerprint);
        bytes.push(u8::try_from(self.addresses.len()).expect("checked: at most 8 addresses"));
        for address in &self.addresses {
            let length = u16::try_from(address.len()).expect("checked: at most 259 bytes");
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(address.as_bytes());
        }
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::Hasher::new().update(PREFIX.as_bytes()).update(bytes).finalize();
    hash.as_bytes().first_chunk().copied().expect("32 bytes begin with 4")
}

fn bad(message: &str) -> PeerError {
    PeerError::new(PeerErrorKind::BadValue, message)
        .with_next("copy the whole line that `blockctl host pair --new` printed")
}

impl FromStr for Token {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        let text = text.trim();
        let Some(body) = text.strip_prefix(PREFIX) else {
            return Err(bad("this is no token: those of this version begin with bp1."));
        };
        // Four characters carry three bytes.
        if body.len() > TOKEN_BYTES_MAX.div_ceil(3) * 4 {
            return Err(bad("this is no token: it is too long"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| bad("the token has a typing error"))?;
        let Some((content, sum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(bad("the token is not whole"));
        };
        if checksum(content) != *sum {
            return Err(bad("the token has a typing error, or is not whole"));
        }
        let token = decode(content).ok_or_else(|| bad("the token is none that this version knows"))?;
        check_addresses(&token.addresses)?;
        Ok(token)
    }
}

fn decode(mut bytes: &[u8]) -> Option<Token> {
    let secret = Secret(*bytes.split_off(..SECRET_BYTES)?.first_chunk()?);
    let fingerprint = *bytes.split_off(..32)?.first_chunk()?;
    let count = *bytes.split_off_first()?;
    let mut addresses = Vec::new();
    for _ in 0..count {
        let length = u16::from_le_bytes(*bytes.split_off(..2)?.first_chunk()?);
        let address = bytes.split_off(..usize::from(length))?;
        addresses.push(std::str::from_utf8(address).ok()?.to_owned());
    }
    (bytes.is_empty() && !addresses.is_empty()).then_some(Token { secret, fingerprint, addresses })
}

/// The tokens of this host that were not used yet. In memory only: a restart forgets them.
#[derive(Default)]
pub(super) struct OpenTokens {
    open: Vec<Open>,
}

struct Open {
    secret: Secret,
    until: Instant,
    wrong: u8,
    consent: Consent,
}

impl OpenTokens {
    /// Opens a token until that time.
    ///
    /// # Errors
    /// `Busy`: as many as may be are open.
    pub(super) fn add(
        &mut self,
        secret: Secret,
        consent: Consent,
        now: Instant,
        until: Instant,
    ) -> Result<(), PeerError> {
        self.open.retain(|open| now < open.until);
        if self.open.len() == OPEN_TOKENS_MAX {
            let message = format!("{OPEN_TOKENS_MAX} tokens are open; wait until one is used or has ended");
            return Err(PeerError::new(PeerErrorKind::Busy, message));
        }
        self.open.push(Open { secret, until, wrong: 0, consent });
        Ok(())
    }

    /// Uses a token up, if `is_proven` says that whoever asks knows its secret.
    ///
    /// # Errors
    /// `Refused`, with the same words for whatever reason: who does not know the secret need not know more.
    pub(super) fn redeem(
        &mut self,
        id: TokenId,
        now: Instant,
        is_proven: impl FnOnce(&Secret) -> bool,
    ) -> Result<(Secret, Consent), PeerError> {
        self.open.retain(|open| now < open.until);
        let refused = || {
            let message =
                "the token is not open: used, too old, wrong, or the daemon that made it was restarted";
            PeerError::new(PeerErrorKind::Refused, message).with_next("blockctl host pair --new    (there)")
        };
        let index = self.open.iter().position(|open| open.secret.token_id() == id).ok_or_else(refused)?;
        if is_proven(&self.open[index].secret) {
            let open = self.open.swap_remove(index);
            return Ok((open.secret, open.consent));
        }
        self.open[index].wrong += 1;
        if self.open[index].wrong == WRONG_PROOFS_MAX {
            self.open.swap_remove(index);
        }
        Err(refused())
    }
}
