//! One session between two hosts, event by event: frames travel, operations are carried out, and anything may fail.

use std::collections::{BTreeMap, VecDeque};

use blockd::control::Control;
use blockd::sync::offer::Offer;
use blockd::sync::session::Link;
use blockd::sync::source::{self, Flow};
use blockd::sync::target;
use blockd::sync::wire::{Code, Frame, HEADER_BYTES, Header, Message, Refusal};
use blockd::units::{HostId, SnapshotUid};
use fastrand::Rng;

use crate::host::Host;
use crate::sides::{SourceSide, TargetSide};

/// Events of one session, at most.
const EVENTS_MAX: usize = 400_000;

/// What may go wrong in a session, each per mille of its events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trouble {
    /// The link ends.
    pub cut: u32,
    /// The link carries nothing any more, and nobody is told.
    pub freeze: u32,
    /// A frame comes twice.
    pub duplicate: u32,
    /// A frame overtakes another.
    pub reorder: u32,
    /// The source is killed, or its power goes.
    pub crash_source: u32,
    /// The target is killed, or its power goes.
    pub crash_target: u32,
}

/// What was seen, over all sessions of a case.
#[derive(Debug, Default)]
pub struct Watched {
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// The source was told that so many clusters of a snapshot, over a base, are durable.
    pub confirmed: BTreeMap<(SnapshotUid, Option<SnapshotUid>), u64>,
    /// Bytes of data in frames that were sent.
    pub data_bytes: u64,
}

impl Watched {
    /// It happened.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// One direction of the link.
#[derive(Default)]
struct Pipe {
    frames: VecDeque<Vec<u8>>,
    frozen: bool,
}

impl Pipe {
    fn send(&mut self, frame: &Frame, trouble: &Trouble, rng: &mut Rng) {
        let bytes = frame.encode();
        if rng.u32(..1000) < trouble.duplicate {
            self.frames.push_back(bytes.clone());
        }
        if rng.u32(..1000) < trouble.reorder && !self.frames.is_empty() {
            let last = self.frames.len() - 1;
            self.frames.insert(last, bytes);
        } else {
            self.frames.push_back(bytes);
        }
    }

    fn take(&mut self) -> Option<Frame> {
        if self.frozen {
            return None;
        }
        let bytes = self.frames.pop_front()?;
        let (head, payload) = bytes.split_first_chunk::<HEADER_BYTES>().expect("a whole frame");
        let header = Header::decode(*head).expect("a legal frame");
        assert_eq!(header.length, payload.len());
        Some(Frame::decode(header, payload.to_vec()).expect("a legal frame"))
    }
}

/// A session under way.
pub struct Exchange<'a> {
    /// The source.
    pub a: &'a mut Host,
    /// The target.
    pub b: &'a mut Host,
    from: SourceSide,
    to: TargetSide,
    forward: Pipe,
    back: Pipe,
    trouble: Trouble,
    watched: &'a mut Watched,
    rng: Rng,
    now: u64,
    cut: bool,
}

impl<'a> Exchange<'a> {
    /// A session that brings what is offered from `a` to `b`.
    pub fn new(
        a: &'a mut Host,
        b: &'a mut Host,
        offers: Vec<Offer>,
        flow: Flow,
        trouble: Trouble,
        watched: &'a mut Watched,
        seed: u64,
    ) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut secret = [0; 32];
        rng.fill(&mut secret);
        let mut link = |host: HostId, peer: HostId| {
            let mut nonce = [0; 32];
            rng.fill(&mut nonce);
            Link { host, peer, secret, nonce, version_min: 1 }
        };
        let from = SourceSide::start(link(a.id, b.id), offers, flow);
        let to = TargetSide::start(link(b.id, a.id));
        let (forward, back) = (Pipe::default(), Pipe::default());
        Self { a, b, from, to, forward, back, trouble, watched, rng, now: 0, cut: false }
    }

    /// Until it is over on both sides, whichever way. What the source says of it.
    ///
    /// # Errors
    /// Why it did not come to its end; `Stalled` if the link or a host was gone.
    pub fn run(mut self) -> Result<(), Refusal> {
        for _ in 0..EVENTS_MAX {
            self.route();
            self.strike();
            if self.cut || self.a.down || self.b.down {
                break;
            }
            if self.from.over.is_some() && (self.to.over.is_some() || self.to.target.is_idle()) {
                break;
            }
            self.event();
        }
        let gone = || Refusal::new(Code::Stalled, "the link is gone");
        let over = self.from.over.take();
        assert!(
            over.is_some() || self.cut || self.a.down || self.b.down,
            "the session comes to no end: {:?} {:?}",
            self.from.source,
            self.to.target
        );
        if !self.a.down {
            self.release();
        }
        over.unwrap_or_else(|| Err(gone()))
    }

    /// What the source has pinned.
    fn release(&mut self) {
        self.from.reading = None;
        let pins = 0..64;
        for pin in pins {
            self.a.must(Control::Unpin { pin });
        }
    }

    /// Frames go on their way, the rest waits to be done.
    fn route(&mut self) {
        for action in self.from.source.take() {
            match action {
                source::Do::Send(frame) => {
                    self.watch_sent(&frame);
                    self.forward.send(&frame, &self.trouble, &mut self.rng);
                }
                source::Do::Over(result) => self.from.over = Some(result),
                other => self.from.todo.push_back(other),
            }
        }
        for action in self.to.target.take() {
            match action {
                target::Do::Send(frame) => self.back.send(&frame, &self.trouble, &mut self.rng),
                target::Do::Over(refusal) => self.to.over = Some(refusal),
                // Of what is kept nobody here takes care.
                target::Do::Keep(_) => {}
                other => self.to.todo.push_back(other),
            }
        }
        let unconfirmed = self.from.source.unconfirmed_bytes();
        assert!(unconfirmed <= self.from.flow.window_bytes, "{unconfirmed} bytes are on their way");
    }

    fn watch_sent(&mut self, frame: &Frame) {
        match &frame.message {
            Message::Begin(begin) => {
                self.from.base = begin.base.map(|(uid, _)| uid);
                self.watched.count(match begin.mode {
                    blockd::sync::wire::Mode::Changes if begin.base.is_some() => "over a base",
                    blockd::sync::wire::Mode::Changes => "over nothing",
                    blockd::sync::wire::Mode::Compare => "compared",
                    blockd::sync::wire::Mode::Mirror => "mirrored",
                });
            }
            Message::Data { batch, .. } => {
                self.watched.data_bytes += batch.len() as u64;
                self.watched.count("batches");
            }
            _ => {}
        }
    }

    /// What was confirmed is durable: it is not asked for again.
    fn watch_heard(&mut self, frame: &Frame) {
        let Some(offer) = self.from.offers.get(usize::from(frame.volume)) else { return };
        let key = (offer.brought.offer.uid, self.from.base);
        match &frame.message {
            Message::Confirmed(cursor) => {
                let known = self.watched.confirmed.entry(key).or_default();
                *known = (*known).max(*cursor);
            }
            Message::Ready(ready) => {
                let known = self.watched.confirmed.get(&key).copied().unwrap_or_default();
                assert!(
                    ready.cursor >= known,
                    "cluster {known} was confirmed, {} is asked for",
                    ready.cursor
                );
                if ready.cursor > 0 {
                    self.watched.count("resumed");
                }
            }
            _ => {}
        }
    }

    fn strike(&mut self) {
        let hit = |per_mille: u32, rng: &mut Rng| rng.u32(..1000) < per_mille;
        if hit(self.trouble.cut, &mut self.rng) {
            self.watched.count("cut");
            self.cut = true;
        }
        if hit(self.trouble.freeze, &mut self.rng) {
            self.watched.count("frozen");
            (self.forward.frozen, self.back.frozen) = (self.rng.bool(), true);
        }
        if hit(self.trouble.crash_source, &mut self.rng) {
            self.watched.count("source crashed");
            let power = self.rng.bool();
            self.a.crash(power);
        }
        if hit(self.trouble.crash_target, &mut self.rng) {
            self.watched.count("target crashed");
            let power = self.rng.bool();
            self.b.crash(power);
        }
    }

    fn event(&mut self) {
        match self.rng.u32(..12) {
            0..2 => {
                if let Some(frame) = self.back.take() {
                    self.watch_heard(&frame);
                    self.from.source.received(frame, self.now);
                }
            }
            2..4 => {
                if self.to.target.wants_frames()
                    && let Some(frame) = self.forward.take()
                {
                    self.to.target.received(frame, self.now);
                }
            }
            4..6 => {
                if let Some(action) = self.from.todo.pop_front() {
                    self.from.act(self.a, action, self.now);
                }
            }
            6..8 => {
                if let Some(action) = self.to.todo.pop_front() {
                    self.to.act(self.b, action, self.now);
                }
            }
            8..10 => {
                self.b.step();
                self.to.poll(self.b, self.now);
            }
            10 => {
                self.a.step();
            }
            _ => {
                let frozen = self.forward.frozen || self.back.frozen;
                self.now += if frozen { 2_000 } else { 20 };
                self.from.source.tick(self.now);
                self.to.target.tick(self.now);
            }
        }
    }
}
