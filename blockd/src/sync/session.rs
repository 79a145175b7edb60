//! What both sides of a session have in common: how it begins, how it knows that the other side is alive.
//!
//! ```text
//!  source                         target
//!    │ ── Hello ────────────────►   │   each its own, at once
//!    │ ◄──────────────── Hello ──   │
//!    │ ── Bind ─────────────────►   │   the version that both find, and a proof over both Hellos
//!    │ ◄───────────────── Bind ──   │   with the secret of this link
//! ```
//!
//! A proof holds for one link only: what was recorded on another one is worth nothing (D5, P6), and who changes what the
//! sides said of their versions is found out (P7).

use super::wire::{COMPRESS_ZSTD, Code, Frame, Hello, Message, Refusal, VERSION};
use crate::units::HostId;

/// Milliseconds of a clock that never goes back.
pub type Millis = u64;

/// A side of which no whole frame comes for so long is gone. The longest one takes that long at 150 kbit/s.
pub const IDLE_MAX: Millis = 60_000;
/// Who has nothing to say, says that, so often.
pub const PING_INTERVAL: Millis = 5_000;
/// A target that confirms nothing for so long, though it says that it is there, is given up.
pub const SOURCE_STALL_MAX: Millis = 600_000;
/// Where a target may have to read a whole volume for its root, it has the time that this rate takes besides: 4 MiB/s.
pub const TARGET_WORK_BYTES_PER_MS: u64 = 4 << 10;
/// A source that sends nothing for so long; it may be hashing a large snapshot.
pub const TARGET_STALL_MAX: Millis = 3_600_000;

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It has what is sent.
    Source,
    /// It gets it.
    Target,
}

/// What a session is begun with.
#[derive(Clone, Debug)]
pub struct Link {
    /// Who this is.
    pub host: HostId,
    /// Who the other side is, as the link has proved it.
    pub peer: HostId,
    /// A secret that both ends of this link have, and nobody else.
    pub secret: [u8; 32],
    /// Random.
    pub nonce: [u8; 32],
    /// The oldest version that is spoken with anybody.
    pub version_min: u16,
}

/// What the sides have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The version.
    pub version: u16,
    /// Data may be compressed with zstd.
    pub zstd: bool,
}

/// The proof that `side` gives.
pub fn proof(secret: &[u8; 32], side: Side, version: u16, source: &Hello, target: &Hello) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(secret);
    hasher.update(match side {
        Side::Source => b"blksync source",
        Side::Target => b"blksync target",
    });
    hasher.update(&version.to_be_bytes());
    for hello in [source, target] {
        hasher.update(&hello.bytes());
    }
    *hasher.finalize().as_bytes()
}

/// The beginning of a session.
#[derive(Debug)]
pub struct Handshake {
    side: Side,
    link: Link,
    own: Hello,
    /// The other side's, and the version that follows.
    heard: Option<(Hello, u16)>,
}

impl Handshake {
    /// The beginning, and what is said first.
    pub fn start(side: Side, link: Link) -> (Self, Frame) {
        let own = Hello {
            version_min: link.version_min,
            version_max: VERSION,
            compression: COMPRESS_ZSTD,
            host: link.host,
            nonce: link.nonce,
        };
        let first = Frame::session(Message::Hello(own.clone()));
        (Self { side, link, own, heard: None }, first)
    }

    /// Takes what the other side says. A frame to send, or that all is agreed.
    ///
    /// # Errors
    /// `VersionMismatch`, `BadBinding`, `BadFrame`.
    pub fn received(&mut self, message: Message) -> Result<Result<Frame, Agreement>, Refusal> {
        match (message, &self.heard) {
            (Message::Hello(theirs), None) => self.hello(theirs).map(Ok),
            (Message::Bind { version, proof }, Some((theirs, agreed))) => {
                let expected = self.proof(self.other(), theirs, *agreed);
                // In constant time.
                if version != *agreed || blake3::Hash::from(expected) != blake3::Hash::from(proof) {
                    let text = "the other side has not heard what this side said on this link";
                    return Err(Refusal::new(Code::BadBinding, text));
                }
                let zstd = self.own.compression & theirs.compression & COMPRESS_ZSTD != 0;
                Ok(Err(Agreement { version, zstd }))
            }
            _ => Err(Refusal::new(Code::BadFrame, "a session does not begin like that")),
        }
    }

    fn other(&self) -> Side {
        match self.side {
            Side::Source => Side::Target,
            Side::Target => Side::Source,
        }
    }

    fn proof(&self, side: Side, theirs: &Hello, version: u16) -> [u8; 32] {
        let (source, target) = match self.side {
            Side::Source => (&self.own, theirs),
            Side::Target => (theirs, &self.own),
        };
        proof(&self.link.secret, side, version, source, target)
    }

    fn hello(&mut self, theirs: Hello) -> Result<Frame, Refusal> {
        if theirs.host != self.link.peer {
            let text = format!("host {} speaks over the link of host {}", theirs.host, self.link.peer);
            return Err(Refusal::new(Code::BadBinding, text));
        }
        let version = self.own.version_max.min(theirs.version_max);
        if version < self.own.version_min.max(theirs.version_min) {
            let text = format!(
                "versions {} to {} here, {} to {} there",
                self.own.version_min, self.own.version_max, theirs.version_min, theirs.version_max
            );
            return Err(Refusal::new(Code::VersionMismatch, text));
        }
        let proof = self.proof(self.side, &theirs, version);
        self.heard = Some((theirs, version));
        Ok(Frame::session(Message::Bind { version, proof }))
    }
}

/// Whether the other side is alive, and whether it is time to show that this one is.
#[derive(Clone, Copy, Debug)]
pub struct Pulse {
    heard: Millis,
    said: Millis,
    moved: Millis,
}

impl Pulse {
    /// All is well now.
    pub fn new(now: Millis) -> Self {
        Self { heard: now, said: now, moved: now }
    }

    /// Something came; `moves` if it was more than a sign of life.
    pub fn heard(&mut self, now: Millis, moves: bool) {
        self.heard = now;
        if moves {
            self.moved = now;
        }
    }

    /// Something was sent.
    pub fn said(&mut self, now: Millis) {
        self.said = now;
    }

    /// This side has got on by itself.
    pub fn moved(&mut self, now: Millis) {
        self.moved = now;
    }

    /// Whether it is time for a sign of life. `patience`: how long the other side, whose turn it is, may do nothing but
    /// show that it is there; `None`: it is not its turn.
    ///
    /// # Errors
    /// `Stalled`: the other side is gone, or does nothing.
    pub fn tick(&mut self, now: Millis, patience: Option<Millis>) -> Result<bool, Refusal> {
        let since = |then: Millis| now.saturating_sub(then);
        if since(self.heard) >= IDLE_MAX {
            let text = format!("nothing was heard for {} s", since(self.heard) / 1000);
            return Err(Refusal::new(Code::Stalled, text));
        }
        if patience.is_some_and(|patience| since(self.moved) >= patience) {
            let text = format!("nothing has moved for {} s", since(self.moved) / 1000);
            return Err(Refusal::new(Code::Stalled, text));
        }
        Ok(since(self.said) >= PING_INTERVAL)
    }
}
