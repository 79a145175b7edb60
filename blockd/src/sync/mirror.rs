//! The side whose changes are mirrored: a state machine without I/O (docs/replication.md, "Mirroring").
//!
//! ```text
//!  Greeting ─► Idle ─► Offering ─► Opening ─► Mirroring ─► Marking ─► Ending ─► Publishing
//!               ▲                                                                   │
//!               └───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! It begins over a snapshot that the other side shows. What changes is sent as it changes; each batch is answered when it is
//! written there. When all of it is a snapshot, and nothing else, it is marked as that, its root is compared, and it is
//! shown; from there it begins again.

use std::collections::VecDeque;

use super::session::{Handshake, IDLE_MAX, Link, Millis, Pulse, Side};
use super::wire::{Begin, Code, Frame, HaveVolume, Message, Mode, OfferedVolume, Ready, Refusal};
use crate::units::SnapshotUid;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Do {
    /// Send it.
    Send(Frame),
    /// The handshake is done: offer.
    Offer,
    /// Batches may be sent.
    GoOn,
    /// The other side has written that batch.
    Written(u64),
    /// It shows the snapshot that was marked.
    Published,
    /// The session is over, for that reason.
    Over(Refusal),
}

#[derive(Debug)]
enum State {
    Greeting(Box<Handshake>),
    Idle,
    Offering {
        base: SnapshotUid,
    },
    Opening,
    Mirroring,
    /// Marked; the root is known, or not yet.
    Marking {
        marked: bool,
        root: Option<[u8; 32]>,
    },
    Ending,
    Publishing,
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct MirrorSource {
    state: State,
    zstd: bool,
    /// Root of the base, as it is known here.
    root: Option<[u8; 32]>,
    /// Frames of data so far.
    cursor: u64,
    /// Batches that were sent and are not written: cursors, numbers.
    sent: VecDeque<(u64, u64)>,
    pulse: Pulse,
    out: Vec<Do>,
}

impl MirrorSource {
    /// A session over a new link.
    pub fn start(link: Link, now: Millis) -> Self {
        let (handshake, first) = Handshake::start(Side::Source, link);
        Self {
            state: State::Greeting(Box::new(handshake)),
            zstd: false,
            root: None,
            cursor: 0,
            sent: VecDeque::new(),
            pulse: Pulse::new(now),
            out: vec![Do::Send(first)],
        }
    }

    /// What is to be done since the last call, in order.
    pub fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.out)
    }

    /// Data may be compressed.
    pub fn zstd(&self) -> bool {
        self.zstd
    }

    /// Whether batches may be sent.
    pub fn is_mirroring(&self) -> bool {
        matches!(self.state, State::Mirroring)
    }

    /// Begins over a snapshot, whose root is known here or not: what is to come is offered under a name of its own, with that
    /// snapshot as its only candidate.
    ///
    /// # Panics
    /// When it was not asked for by [`Do::Offer`] or [`Do::Published`].
    pub fn offer(&mut self, offer: OfferedVolume, root: Option<[u8; 32]>, now: Millis) {
        assert!(matches!(self.state, State::Idle), "offered out of turn");
        let &[base] = &offer.candidates[..] else { panic!("a mirror has one base") };
        self.root = root;
        self.state = State::Offering { base };
        self.send(Message::Offer(vec![offer]), now);
    }

    /// Sends a batch.
    ///
    /// # Panics
    /// When it is not mirroring.
    pub fn batch(&mut self, number: u64, batch: Vec<u8>, now: Millis) {
        assert!(self.is_mirroring(), "a batch out of turn");
        let from = self.cursor;
        self.cursor += 1;
        self.sent.push_back((self.cursor, number));
        self.send(Message::Data { from, cursor: self.cursor, batch }, now);
    }

    /// All that was sent, which is written, is that snapshot.
    ///
    /// # Panics
    /// When it is not mirroring, or something is not written.
    pub fn mark(&mut self, snapshot: OfferedVolume, now: Millis) {
        assert!(self.is_mirroring() && self.sent.is_empty(), "marked out of turn");
        self.state = State::Marking { marked: false, root: None };
        self.send(Message::Mark(snapshot), now);
    }

    /// The root of what was marked.
    pub fn root(&mut self, found: [u8; 32], now: Millis) {
        if let State::Marking { root, .. } = &mut self.state {
            *root = Some(found);
            self.end_if_marked(now);
        }
    }

    /// A frame has come.
    pub fn received(&mut self, frame: Frame, now: Millis) {
        self.pulse.heard(now, frame.message != Message::Ping);
        if matches!(self.state, State::Over) {
            return;
        }
        if let Err(refusal) = self.take_message(frame.message, now) {
            self.refuse(refusal, now);
        }
    }

    /// It ends, for that reason.
    pub fn refuse(&mut self, refusal: Refusal, now: Millis) {
        if !matches!(self.state, State::Over) {
            self.send(Message::Refuse(refusal.clone()), now);
            self.end(refusal);
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now: Millis) {
        if matches!(self.state, State::Over) {
            return;
        }
        let waits = !self.sent.is_empty() || !matches!(self.state, State::Mirroring | State::Idle);
        match self.pulse.tick(now, waits.then_some(IDLE_MAX)) {
            Ok(true) => self.send(Message::Ping, now),
            Ok(false) => {}
            Err(refusal) => self.refuse(refusal, now),
        }
    }

    fn send(&mut self, message: Message, now: Millis) {
        self.pulse.said(now);
        self.out.push(Do::Send(Frame::session(message)));
    }

    fn end(&mut self, refusal: Refusal) {
        self.state = State::Over;
        self.out.push(Do::Over(refusal));
    }

    fn take_message(&mut self, message: Message, now: Millis) -> Result<(), Refusal> {
        match (&mut self.state, message) {
            (_, Message::Refuse(refusal)) => self.end(refusal),
            (State::Greeting(handshake), message) => match handshake.received(message)? {
                Ok(frame) => self.out.push(Do::Send(frame)),
                Err(agreement) => {
                    self.zstd = agreement.zstd;
                    self.state = State::Idle;
                    self.out.push(Do::Offer);
                }
            },
            (_, Message::Ping) => {}
            (&mut State::Offering { base }, Message::Have(have)) => self.begin(base, &have, now)?,
            (State::Opening, Message::Ready(Ready { cursor: 0, complete: false, .. })) => {
                (self.cursor, self.state) = (0, State::Mirroring);
                self.out.push(Do::GoOn);
            }
            (State::Mirroring, Message::Confirmed(cursor)) => self.confirmed(cursor)?,
            (State::Marking { marked, .. }, Message::Marked) if !*marked => {
                *marked = true;
                self.end_if_marked(now);
            }
            (State::Ending, Message::Verified) => {
                self.state = State::Publishing;
                self.send(Message::Publish, now);
            }
            (State::Publishing, Message::Published) => {
                self.state = State::Idle;
                self.out.push(Do::Published);
            }
            (_, message) => {
                return Err(Refusal::new(Code::BadFrame, format!("{} out of turn", message.name())));
            }
        }
        Ok(())
    }

    fn begin(&mut self, base: SnapshotUid, have: &HaveVolume, now: Millis) -> Result<(), Refusal> {
        let known = have.known.iter().find(|(place, _)| *place == 0).map(|(_, root)| *root);
        let is_newest = have.newest.is_some_and(|newest| newest.uid == base);
        let Some(root) = known.filter(|_| is_newest) else {
            return Err(Refusal::new(Code::BaseMismatch, "the other host shows another snapshot"));
        };
        if self.root.is_some_and(|own| own != root) {
            return Err(Refusal::new(Code::BaseMismatch, "the other host's snapshot has another root"));
        }
        self.state = State::Opening;
        self.send(Message::Begin(Begin { mode: Mode::Mirror, base: Some((base, root)), resume: None }), now);
        Ok(())
    }

    fn confirmed(&mut self, cursor: u64) -> Result<(), Refusal> {
        if cursor > self.cursor || self.sent.front().is_none_or(|(first, _)| cursor < *first) {
            return Err(Refusal::new(
                Code::BadFrame,
                format!("frame {cursor} of {} is written", self.cursor),
            ));
        }
        while let Some(&(_, number)) = self.sent.front().filter(|(sent, _)| *sent <= cursor) {
            self.sent.pop_front();
            self.out.push(Do::Written(number));
        }
        Ok(())
    }

    fn end_if_marked(&mut self, now: Millis) {
        if let State::Marking { marked: true, root: Some(root) } = self.state {
            self.state = State::Ending;
            self.send(Message::End { cursor: self.cursor, root }, now);
        }
    }
}
