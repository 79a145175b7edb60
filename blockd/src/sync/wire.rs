//! Frames of the replication protocol: bytes to types and back (docs/replication.md, "Frames").
//!
//! No I/O. A frame's length is judged before anything is kept of it, every count before anything is allocated for it.

use crate::catalog::format::Point;
use crate::units::{CLUSTER_BYTES, HostId, Lineage, SnapshotUid};

mod reader;
#[cfg(test)]
mod tests;

use reader::Reader;

/// The first bytes that each side says.
pub const MAGIC: [u8; 8] = *b"blksync\0";
/// The newest version that this program speaks.
pub const VERSION: u16 = 1;
/// Before a frame's payload: length u32, kind u16, volume u16.
pub const HEADER_BYTES: usize = 8;
/// Longest payload: a megabyte of data and what says where it belongs.
pub const PAYLOAD_BYTES_MAX: usize = (1 << 20) + (64 << 10);
/// Volumes of one offer.
pub const VOLUMES_MAX: usize = 64;
/// Snapshots that an offer names for each volume, of which the other side may have some.
pub const CANDIDATES_MAX: usize = 1024;
/// Values of clusters in one frame: 256 MiB of a volume.
pub const VALUES_MAX: usize = 4096;
/// Clusters that are asked for at once: 1 MiB.
pub const FETCH_CLUSTERS_MAX: usize = 16;
/// Longest text of a refusal, bytes.
pub const TEXT_BYTES_MAX: usize = 512;
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 255;
/// zstd may be used.
pub const COMPRESS_ZSTD: u8 = 1;

/// Why a frame is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than any frame.
    #[error("a frame of {0} bytes")]
    TooLong(u32),
    /// A kind that this version does not know.
    #[error("a frame of the unknown kind {0}")]
    UnknownKind(u16),
    /// It does not begin as the protocol does.
    #[error("the other side does not speak this protocol")]
    NotTheProtocol,
    /// Shorter or longer than its kind, or a field that cannot be.
    #[error("{0}")]
    Malformed(&'static str),
}

/// What each side says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The oldest version that it speaks.
    pub version_min: u16,
    /// The newest.
    pub version_max: u16,
    /// Bits: see [`COMPRESS_ZSTD`].
    pub compression: u8,
    /// Who it is; the link has proved it.
    pub host: HostId,
    /// Random.
    pub nonce: [u8; 32],
}

/// A volume that the source brings a snapshot of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedVolume {
    /// Whose content it is.
    pub lineage: Lineage,
    /// What it is called at the target, if it does not exist there.
    pub volume: String,
    /// The snapshot.
    pub uid: SnapshotUid,
    /// When it was taken.
    pub point: Point,
    /// What it is called.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Milliseconds since 1970, UTC.
    pub created_ms: u64,
    /// Snapshots that the source has, the best base first.
    pub candidates: Vec<SnapshotUid>,
}

/// What the target says of a volume that was offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HaveVolume {
    /// Candidates that it has: their places in the offer, and their roots.
    pub known: Vec<(u16, [u8; 32])>,
    /// The newest snapshot that it shows, if it has any: what to compare with where no candidate is known.
    pub newest: Option<NewestSnapshot>,
    /// What has come of the offered snapshot.
    pub received: Option<Received>,
}

impl HaveVolume {
    /// The target shows that snapshot: nothing of it need be sent. (It was published, and the answer was lost.)
    pub fn shows(&self, uid: SnapshotUid) -> bool {
        self.newest.is_some_and(|newest| newest.uid == uid)
    }
}

/// The target's newest snapshot of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewestSnapshot {
    /// Which.
    pub uid: SnapshotUid,
    /// Its root.
    pub root: [u8; 32],
    /// Bytes.
    pub size: u64,
}

/// How far an interrupted attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Names the attempt.
    pub token: [u8; 16],
    /// What it builds on; `None`: zeroes.
    pub base: Option<SnapshotUid>,
    /// Clusters before it are durable.
    pub cursor: u64,
}

/// How the differences are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The source knows the base.
    Changes,
    /// It does not: values of clusters are compared.
    Compare,
    /// What is sent changes at the source, and is no snapshot before it is marked as one.
    Mirror,
}

/// The source begins with a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begin {
    /// How the differences are found.
    pub mode: Mode,
    /// What they are against, and its root; `None`: zeroes.
    pub base: Option<(SnapshotUid, [u8; 32])>,
    /// Goes on with that attempt, from that cursor.
    pub resume: Option<([u8; 16], u64)>,
}

/// The target is ready for the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Names the attempt.
    pub token: [u8; 16],
    /// Clusters before it need not be sent.
    pub cursor: u64,
    /// All has come already: only the root is wanted.
    pub complete: bool,
}

/// The values of clusters, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// The first one's number.
    pub first: u64,
    /// `None`: zeroes.
    pub values: Vec<Option<[u8; 32]>>,
}

/// Which of the clusters, whose values came, differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The first one's number.
    pub first: u64,
    /// One for each value.
    pub differs: Vec<bool>,
}

/// What the source would like the target to keep of a replica's older snapshots. The target keeps that, and what it wants
/// to keep itself: nobody but its own administrator can have it keep less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepWish {
    /// The last ones; then the last of minutes, hours, days, weeks, months, years.
    pub counts: [u32; 7],
    /// All of so many seconds; 0: not asked for.
    pub within_s: u64,
}

/// Clusters of a snapshot whose content is wanted, because it is damaged at the side that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// Whose content it is.
    pub lineage: Lineage,
    /// The snapshot.
    pub uid: SnapshotUid,
    /// Clusters, ascending, and the values that they must have.
    pub clusters: Vec<(u32, [u8; 32])>,
}

/// What is there of a cluster that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// 64 KiB that have the value that was asked for.
    Here(Vec<u8>),
    /// No such snapshot, or none that the asking side may know of.
    Missing,
    /// It is not what was written there either.
    Damaged,
    /// Something sound, which has another value.
    Differs,
}

/// Why one side does not go on; the codes are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "docs/replication.md has a table of them")]
#[repr(u16)]
pub enum Code {
    BadFrame = 1,
    VersionMismatch = 2,
    BadBinding = 3,
    BadId = 4,
    BadManifest = 5,
    BadData = 6,
    BadResume = 7,
    BaseMismatch = 8,
    RootMismatch = 9,
    StaleEpoch = 10,
    StaleSnapshot = 11,
    SessionExists = 12,
    NotAReplica = 13,
    NoSpace = 14,
    Stalled = 15,
    Stopping = 16,
    Failed = 17,
    Quarantined = 18,
    NameTaken = 19,
    Busy = 20,
    NotAllowed = 21,
}

impl Code {
    /// Every code.
    pub const ALL: [Self; 21] = [
        Self::BadFrame,
        Self::VersionMismatch,
        Self::BadBinding,
        Self::BadId,
        Self::BadManifest,
        Self::BadData,
        Self::BadResume,
        Self::BaseMismatch,
        Self::RootMismatch,
        Self::StaleEpoch,
        Self::StaleSnapshot,
        Self::SessionExists,
        Self::NotAReplica,
        Self::NoSpace,
        Self::Stalled,
        Self::Stopping,
        Self::Failed,
        Self::Quarantined,
        Self::NameTaken,
        Self::Busy,
        Self::NotAllowed,
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::BadFrame => "BAD_FRAME",
            Self::VersionMismatch => "VERSION_MISMATCH",
            Self::BadBinding => "BAD_BINDING",
            Self::BadId => "BAD_ID",
            Self::BadManifest => "BAD_MANIFEST",
            Self::BadData => "BAD_DATA",
            Self::BadResume => "BAD_RESUME",
            Self::BaseMismatch => "BASE_MISMATCH",
            Self::RootMismatch => "ROOT_MISMATCH",
            Self::StaleEpoch => "STALE_EPOCH",
            Self::StaleSnapshot => "STALE_SNAPSHOT",
            Self::SessionExists => "SESSION_EXISTS",
            Self::NotAReplica => "NOT_A_REPLICA",
            Self::NoSpace => "NO_SPACE",
            Self::Stalled => "STALLED",
            Self::Stopping => "STOPPING",
            Self::Failed => "FAILED",
            Self::Quarantined => "QUARANTINED",
            Self::NameTaken => "NAME_TAKEN",
            Self::Busy => "BUSY",
            Self::NotAllowed => "NOT_ALLOWED",
        }
    }

    fn of(code: u16) -> Self {
        // What a later version says is a failure all the same.
        Self::ALL.into_iter().find(|known| *known as u16 == code).unwrap_or(Self::Failed)
    }
}

/// Why one side does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {text}", code.name())]
pub struct Refusal {
    /// For programs.
    pub code: Code,
    /// For people; cut at [`TEXT_BYTES_MAX`].
    pub text: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// One message, and the volume of the offer that it is about (0 where it is about none).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its place in the offer.
    pub volume: u16,
    /// What is said.
    pub message: Message,
}

/// What is said. S: by the source, T: by the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Both, first.
    Hello(Hello),
    /// Both: the version, and a proof that both have heard the same on the same link.
    Bind {
        /// The version that is spoken.
        version: u16,
        /// See [`super::session::proof`].
        proof: [u8; 32],
    },
    /// S.
    Offer(Vec<OfferedVolume>),
    /// T, for each volume in order.
    Have(HaveVolume),
    /// S.
    Begin(Begin),
    /// T.
    Ready(Ready),
    /// S: see [`super::batch`]; clusters before `cursor` are complete then.
    Data {
        /// The cursor of the frame before, or where the attempt went on: what is left out in between would never come.
        from: u64,
        /// Grows with every frame; of a mirror it counts them.
        cursor: u64,
        /// A batch.
        batch: Vec<u8>,
    },
    /// T: clusters before it are durable. Of a mirror: frames of data before it are written.
    Confirmed(u64),
    /// S, while comparing.
    Values(Values),
    /// T: the answer.
    Wanted(Wanted),
    /// S: all was sent; the root of the snapshot.
    End {
        /// The cursor of the last frame of data, or where the attempt went on.
        cursor: u64,
        /// Of the snapshot.
        root: [u8; 32],
    },
    /// S, of a mirror: all data so far, and no more, is that snapshot.
    Mark(OfferedVolume),
    /// T: the snapshot is cut, unseen.
    Marked,
    /// T: all has come, and its root is that.
    Verified,
    /// S, at most once for each offer, before it publishes.
    Keep(KeepWish),
    /// S: all volumes of the offer are verified; show them.
    Publish,
    /// T: they are shown, durably.
    Published,
    /// By the side that has opened the link, in a session of its own kind.
    Fetch(Fetch),
    /// The answer: one for each cluster, in the order in which they were asked for.
    Fetched {
        /// Which.
        cluster: u32,
        /// What is there.
        found: Found,
    },
    /// Both, the last frame.
    Refuse(Refusal),
    /// Both: still there, and at work.
    Ping,
}

mod kind {
    pub(super) const HELLO: u16 = 1;
    pub(super) const BIND: u16 = 2;
    pub(super) const OFFER: u16 = 3;
    pub(super) const HAVE: u16 = 4;
    pub(super) const BEGIN: u16 = 5;
    pub(super) const READY: u16 = 6;
    pub(super) const DATA: u16 = 7;
    pub(super) const CONFIRMED: u16 = 8;
    pub(super) const VALUES: u16 = 9;
    pub(super) const WANTED: u16 = 10;
    pub(super) const END: u16 = 11;
    pub(super) const VERIFIED: u16 = 12;
    pub(super) const PUBLISH: u16 = 13;
    pub(super) const PUBLISHED: u16 = 14;
    pub(super) const REFUSE: u16 = 15;
    pub(super) const PING: u16 = 16;
    pub(super) const KEEP: u16 = 17;
    pub(super) const FETCH: u16 = 18;
    pub(super) const FETCHED: u16 = 19;
    pub(super) const MARK: u16 = 20;
    pub(super) const MARKED: u16 = 21;
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the payload.
    pub length: usize,
    kind: u16,
    volume: u16,
}

impl Header {
    /// Judges a header before its payload is read.
    ///
    /// # Errors
    /// `TooLong`.
    pub fn decode(bytes: [u8; HEADER_BYTES]) -> Result<Self, WireError> {
        let [a, b, c, d, kind_high, kind_low, volume_high, volume_low] = bytes;
        let length = u32::from_be_bytes([a, b, c, d]);
        let header = Self {
            length: length as usize,
            kind: u16::from_be_bytes([kind_high, kind_low]),
            volume: u16::from_be_bytes([volume_high, volume_low]),
        };
        if header.length > PAYLOAD_BYTES_MAX { Err(WireError::TooLong(length)) } else { Ok(header) }
    }
}

impl Frame {
    /// A message about no volume.
    pub fn session(message: Message) -> Self {
        Self { volume: 0, message }
    }

    /// The frame of a header and its payload.
    ///
    /// # Errors
    /// `UnknownKind`, `NotTheProtocol`, `Malformed`.
    pub fn decode(header: Header, payload: Vec<u8>) -> Result<Self, WireError> {
        let message = message(header.kind, payload)?;
        Ok(Self { volume: header.volume, message })
    }

    /// How many bytes it has.
    pub fn bytes(&self) -> u64 {
        match &self.message {
            // Not copied to be counted.
            Message::Fetched { found: Found::Here(content), .. } => (HEADER_BYTES + 5 + content.len()) as u64,
            _ => self.encode().len() as u64,
        }
    }

    /// Its bytes, the header's first.
    ///
    /// # Panics
    /// When it is longer than a frame may be: those who make frames keep to the limits.
    pub fn encode(&self) -> Vec<u8> {
        let (mut bytes, batch) = self.pieces();
        bytes.extend_from_slice(batch);
        bytes
    }

    /// The same in two pieces, so that a batch need not be copied.
    ///
    /// # Panics
    /// As [`Self::encode`].
    pub fn pieces(&self) -> (Vec<u8>, &[u8]) {
        let mut bytes = vec![0; HEADER_BYTES];
        let kind = self.message.encode(&mut bytes);
        let batch = match &self.message {
            Message::Data { batch, .. } => &batch[..],
            _ => &[],
        };
        let length = bytes.len() - HEADER_BYTES + batch.len();
        assert!(length <= PAYLOAD_BYTES_MAX, "a frame of {length} bytes");
        bytes[..4].copy_from_slice(&u32::try_from(length).expect("checked").to_be_bytes());
        bytes[4..6].copy_from_slice(&kind.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.volume.to_be_bytes());
        (bytes, batch)
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str, max: usize) {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    bytes.extend(u16::try_from(end).expect("limits are below 64 Ki").to_be_bytes());
    bytes.extend(&text.as_bytes()[..end]);
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend(u16::try_from(count).expect("limits are below 64 Ki").to_be_bytes());
}

fn put_option(bytes: &mut Vec<u8>, present: bool) {
    bytes.push(u8::from(present));
}

/// Eight to a byte, the first one lowest.
fn put_bits(bytes: &mut Vec<u8>, bits: impl Iterator<Item = bool>) {
    let bits: Vec<bool> = bits.collect();
    let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
    bytes.extend(bits.chunks(8).map(byte));
}

impl Message {
    /// Its name, as docs/replication.md has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Bind { .. } => "Bind",
            Self::Offer(_) => "Offer",
            Self::Have(_) => "Have",
            Self::Begin(_) => "Begin",
            Self::Ready(_) => "Ready",
            Self::Data { .. } => "Data",
            Self::Confirmed(_) => "Confirmed",
            Self::Values(_) => "Values",
            Self::Wanted(_) => "Wanted",
            Self::End { .. } => "End",
            Self::Mark(_) => "Mark",
            Self::Marked => "Marked",
            Self::Verified => "Verified",
            Self::Keep(_) => "Keep",
            Self::Publish => "Publish",
            Self::Published => "Published",
            Self::Fetch(_) => "Fetch",
            Self::Fetched { .. } => "Fetched",
            Self::Refuse(_) => "Refuse",
            Self::Ping => "Ping",
        }
    }

    /// Appends the payload, and tells the kind.
    fn encode(&self, bytes: &mut Vec<u8>) -> u16 {
        match self {
            Self::Hello(hello) => hello.encode(bytes),
            Self::Bind { version, proof } => {
                bytes.extend(version.to_be_bytes());
                bytes.extend(proof);
                kind::BIND
            }
            Self::Offer(volumes) => {
                put_count(bytes, volumes.len());
                volumes.iter().for_each(|volume| volume.encode(bytes));
                kind::OFFER
            }
            Self::Have(have) => have.encode(bytes),
            Self::Begin(begin) => begin.encode(bytes),
            Self::Ready(ready) => {
                bytes.extend(ready.token);
                bytes.extend(ready.cursor.to_be_bytes());
                put_option(bytes, ready.complete);
                kind::READY
            }
            // The batch follows.
            Self::Data { from, cursor, batch: _ } => {
                bytes.extend(from.to_be_bytes());
                bytes.extend(cursor.to_be_bytes());
                kind::DATA
            }
            Self::Confirmed(cursor) => {
                bytes.extend(cursor.to_be_bytes());
                kind::CONFIRMED
            }
            Self::Values(values) => values.encode(bytes),
            Self::Wanted(wanted) => {
                bytes.extend(wanted.first.to_be_bytes());
                put_count(bytes, wanted.differs.len());
                put_bits(bytes, wanted.differs.iter().copied());
                kind::WANTED
            }
            Self::End { cursor, root } => {
                bytes.extend(cursor.to_be_bytes());
                bytes.extend(root);
                kind::END
            }
            Self::Mark(volume) => {
                volume.encode(bytes);
                kind::MARK
            }
            Self::Marked => kind::MARKED,
            Self::Verified => kind::VERIFIED,
            Self::Keep(wish) => {
                wish.counts.iter().for_each(|count| bytes.extend(count.to_be_bytes()));
                bytes.extend(wish.within_s.to_be_bytes());
                kind::KEEP
            }
            Self::Publish => kind::PUBLISH,
            Self::Published => kind::PUBLISHED,
            Self::Fetch(fetch) => fetch.encode(bytes),
            Self::Fetched { cluster, found } => {
                bytes.extend(cluster.to_be_bytes());
                found.encode(bytes);
                kind::FETCHED
            }
            Self::Refuse(refusal) => {
                bytes.extend((refusal.code as u16).to_be_bytes());
                put_text(bytes, &refusal.text, TEXT_BYTES_MAX);
                kind::REFUSE
            }
            Self::Ping => kind::PING,
        }
    }
}

impl Hello {
    fn encode(&self, bytes: &mut Vec<u8>) -> u16 {
        bytes.extend(MAGIC);
        bytes.extend(self.version_min.to_be_bytes());
        bytes.extend(self.version_max.to_be_bytes());
        bytes.push(self.compression);
        bytes.extend(self.host.0);
        bytes.extend(self.nonce);
        kind::HELLO
    }

    /// What the proof of the binding is made of.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes
    }
}

impl OfferedVolume {
    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.lineage.0);
        put_text(bytes, &self.volume, NAME_BYTES_MAX);
        bytes.extend(self.uid.0);
        bytes.extend(self.point.epoch.to_be_bytes());
        bytes.extend(self.point.sequence.to_be_bytes());
        put_text(bytes, &self.name, NAME_BYTES_MAX);
        bytes.extend(self.size.to_be_bytes());
        bytes.extend(self.created_ms.to_be_bytes());
        put_count(bytes, self.candidates.len());
        self.candidates.iter().for_each(|uid| bytes.extend(uid.0));
    }
}

impl HaveVolume {
    fn encode(&self, bytes: &mut Vec<u8>) -> u16 {
        put_count(bytes, self.known.len());
        for (place, root) in &self.known {
            bytes.extend(place.to_be_bytes());
            bytes.extend(root);
        }
        put_option(bytes, self.newest.is_some());
        if let Some(newest) = &self.newest {
            bytes.extend(newest.uid.0);
            bytes.extend(newest.root);
            bytes.extend(newest.size.to_be_bytes());
        }
        put_option(bytes, self.received.is_some());
        if let Some(received) = &self.received {
            bytes.extend(received.token);
            put_option(bytes, received.base.is_some());
            bytes.extend(received.base.unwrap_or(SnapshotUid([0; 16])).0);
            bytes.extend(received.cursor.to_be_bytes());
        }
        kind::HAVE
    }
}

impl Begin {
    fn encode(&self, bytes: &mut Vec<u8>) -> u16 {
        bytes.push(match self.mode {
            Mode::Changes => 0,
            Mode::Compare => 1,
            Mode::Mirror => 2,
        });
        put_option(bytes, self.base.is_some());
        if let Some((uid, root)) = &self.base {
            bytes.extend(uid.0);
            bytes.extend(root);
        }
        put_option(bytes, self.resume.is_some());
        if let Some((token, cursor)) = &self.resume {
            bytes.extend(token);
            bytes.extend(cursor.to_be_bytes());
        }
        kind::BEGIN
    }
}

impl Values {
    fn encode(&self, bytes: &mut Vec<u8>) -> u16 {
        bytes.extend(self.first.to_be_bytes());
        put_count(bytes, self.values.len());
        put_bits(bytes, self.values.iter().map(Option::is_none));
        self.values.iter().flatten().for_each(|value| bytes.extend(value));
        kind::VALUES
    }
}

impl Fetch {
    fn encode(&self, bytes: &mut Vec<u8>) -> u16 {
        bytes.extend(self.lineage.0);
        bytes.extend(self.uid.0);
        put_count(bytes, self.clusters.len());
        for (cluster, value) in &self.clusters {
            bytes.extend(cluster.to_be_bytes());
            bytes.extend(value);
        }
        kind::FETCH
    }
}

impl Found {
    /// # Panics
    /// When the content is not a cluster's.
    fn encode(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Here(content) => {
                assert_eq!(content.len() as u64, CLUSTER_BYTES, "a cluster's content");
                bytes.push(0);
                bytes.extend(content);
            }
            Self::Missing => bytes.push(1),
            Self::Damaged => bytes.push(2),
            Self::Differs => bytes.push(3),
        }
    }
}

fn message(kind: u16, payload: Vec<u8>) -> Result<Message, WireError> {
    if kind == kind::DATA {
        return data(payload);
    }
    let mut reader = Reader::new(&payload);
    let message = match kind {
        kind::HELLO => Message::Hello(reader.hello()?),
        kind::BIND => Message::Bind { version: reader.u16()?, proof: reader.take()? },
        kind::OFFER => Message::Offer(reader.list(VOLUMES_MAX, Reader::offered)?),
        kind::HAVE => Message::Have(reader.have()?),
        kind::BEGIN => Message::Begin(reader.begin()?),
        kind::READY => {
            Message::Ready(Ready { token: reader.take()?, cursor: reader.u64()?, complete: reader.flag()? })
        }
        kind::CONFIRMED => Message::Confirmed(reader.u64()?),
        kind::VALUES => Message::Values(reader.values()?),
        kind::WANTED => {
            let first = reader.u64()?;
            let count = reader.count(VALUES_MAX)?;
            Message::Wanted(Wanted { first, differs: reader.bits(count)? })
        }
        kind::END => Message::End { cursor: reader.u64()?, root: reader.take()? },
        kind::MARK => Message::Mark(reader.offered()?),
        kind::MARKED => Message::Marked,
        kind::VERIFIED => Message::Verified,
        kind::KEEP => Message::Keep(reader.keep()?),
        kind::PUBLISH => Message::Publish,
        kind::PUBLISHED => Message::Published,
        kind::FETCH => Message::Fetch(reader.fetch()?),
        kind::FETCHED => Message::Fetched { cluster: reader.u32()?, found: reader.found()? },
        kind::REFUSE => {
            let code = Code::of(reader.u16()?);
            Message::Refuse(Refusal { code, text: reader.text(TEXT_BYTES_MAX)? })
        }
        kind::PING => Message::Ping,
        unknown => return Err(WireError::UnknownKind(unknown)),
    };
    reader.end()?;
    Ok(message)
}

/// Without copying a megabyte more than once.
fn data(mut payload: Vec<u8>) -> Result<Message, WireError> {
    let mut reader = Reader::new(&payload);
    let (from, cursor) = (reader.u64()?, reader.u64()?);
    payload.drain(..16);
    Ok(Message::Data { from, cursor, batch: payload })
}
