//! The side that has the snapshots: a state machine without I/O (docs/replication.md, "The source").
//!
//! ```text
//!  Greeting ─► Offering ─► Beginning ─► Opening ─► Sending ◄─► Comparing      once for each volume
//!                              ▲                      │ nothing more to send
//!                              │ the next volume      ▼
//!                              └───────────────── Ending ─► Publishing ─► Over
//! ```
//!
//! What it needs done (read, hash) goes out as actions and comes back as [`Did`]; one is under way at a time. Data that
//! are sent and not confirmed are limited by [`Flow`]: that is also what has to be sent again after a cut.

use std::collections::VecDeque;

use super::batch::DATA_BYTES_MAX;
use super::session::{Handshake, Link, Millis, Pulse, SOURCE_STALL_MAX, Side, TARGET_WORK_BYTES_PER_MS};
use super::wire::{
    Begin, Code, Frame, HaveVolume, KeepWish, Message, Mode, OfferedVolume, Ready, Refusal, Values, Wanted,
};
use crate::units::{SnapshotUid, cluster_count};

/// Bytes of data that were sent and not confirmed, at most.
pub const WINDOW_BYTES: usize = 8 << 20;
/// What a batch takes of the window at least: many of zeroes only would otherwise be on their way without a limit.
pub const BATCH_COST_MIN: usize = 4096;

/// How much is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Bytes that were sent and not confirmed, at most; a batch at least.
    pub window_bytes: usize,
    /// Bytes of one batch, at most.
    pub batch_bytes: usize,
}

impl Default for Flow {
    fn default() -> Self {
        Self { window_bytes: WINDOW_BYTES, batch_bytes: DATA_BYTES_MAX }
    }
}

/// A volume to be brought.
#[derive(Clone, Debug)]
pub struct Brought {
    /// As it is offered.
    pub offer: OfferedVolume,
    /// So many of its candidates, from the first on, may be what the differences are against; the others are only
    /// copied from.
    pub bases: usize,
}

/// How the differences of a volume are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The volume's place.
    pub volume: usize,
    /// The base, if it is a candidate.
    pub base: Option<SnapshotUid>,
    /// How.
    pub mode: Mode,
    /// Clusters before it are there.
    pub from: u64,
    /// Candidates that the target has, by their places.
    pub known: Vec<u16>,
    /// Data may be compressed.
    pub zstd: bool,
}

/// What is to be done. One of `Open`, `Read`, `ReadValues`, `Select` and `Root` is under way at a time.
#[derive(Debug, PartialEq, Eq)]
pub enum Do {
    /// Send it.
    Send(Frame),
    /// Get ready to read. Answer: `Opened`.
    Open(Plan),
    /// The next batch. Answer: `Batch`.
    Read,
    /// The values of the next clusters. Answer: `Values`.
    ReadValues,
    /// From now on the batches are of these clusters. Answer: `Opened`.
    Select(Wanted),
    /// The root of the snapshot. Answer: `Root`.
    Root,
    /// The session is over; all was published, or why not.
    Over(Result<(), Refusal>),
}

/// What was done.
#[derive(Debug)]
pub enum Did {
    /// Reading may begin.
    Opened,
    /// A batch; `None`: there is nothing more (of what was selected).
    Batch(Option<Read>),
    /// Values; `None`: after the last cluster.
    Values(Option<Values>),
    /// The root.
    Root([u8; 32]),
    /// It failed.
    Failed(Refusal),
}

/// A batch that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// Clusters before it are complete with this batch.
    pub cursor: u64,
    /// Bytes that it writes: data before compression, and what the target copies.
    pub data_bytes: usize,
    /// See [`super::batch`].
    pub batch: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Greeting(Box<Handshake>),
    Offering(Vec<HaveVolume>),
    Beginning,
    Opening,
    Sending,
    Comparing,
    Ending,
    Publishing,
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Source {
    volumes: Vec<Brought>,
    flow: Flow,
    keep: Option<KeepWish>,
    have: Vec<HaveVolume>,
    state: State,
    current: usize,
    plan: Option<Plan>,
    zstd: bool,
    /// An action is under way.
    busy: bool,
    /// Nothing more of this volume is to be read.
    exhausted: bool,
    /// Values were sent, and the answer has not come: the first cluster, and how many.
    asked: Option<(u64, usize)>,
    /// The cursor of the last batch, or where the attempt goes on.
    sent: u64,
    /// Batches: clusters before the cursor are there with it, and what it takes of the window.
    unconfirmed: VecDeque<(u64, usize)>,
    pulse: Pulse,
    now: Millis,
    out: Vec<Do>,
}

impl Source {
    /// A session that brings these, all to be shown at one instant.
    ///
    /// # Panics
    /// When there are none.
    pub fn start(link: Link, volumes: Vec<Brought>, flow: Flow, now: Millis) -> Self {
        assert!(!volumes.is_empty(), "a session brings something");
        let (handshake, first) = Handshake::start(Side::Source, link);
        Self {
            volumes,
            flow,
            keep: None,
            have: Vec::new(),
            state: State::Greeting(Box::new(handshake)),
            current: 0,
            plan: None,
            zstd: false,
            busy: false,
            exhausted: false,
            asked: None,
            sent: 0,
            unconfirmed: VecDeque::new(),
            pulse: Pulse::new(now),
            now,
            out: vec![Do::Send(first)],
        }
    }

    /// The same, and the target is asked to keep older snapshots.
    #[must_use]
    pub fn with_keep(self, wish: KeepWish) -> Self {
        Self { keep: Some(wish), ..self }
    }

    /// What is to be done since the last call, in order.
    pub fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.out)
    }

    /// Bytes of data that were sent and not confirmed.
    pub fn unconfirmed_bytes(&self) -> usize {
        self.unconfirmed.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Whether it has ended, in whatever way.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// A frame has come.
    pub fn received(&mut self, frame: Frame, now: Millis) {
        self.now = now;
        self.pulse.heard(now, frame.message != Message::Ping);
        if let Err(refusal) = self.take_frame(frame) {
            self.refuse(refusal);
        }
    }

    /// What the other side has sent is no frame.
    pub fn unreadable(&mut self, text: String) {
        self.refuse(Refusal::new(Code::BadFrame, text));
    }

    /// An action has ended.
    pub fn did(&mut self, did: Did, now: Millis) {
        self.now = now;
        self.pulse.moved(now);
        self.busy = false;
        if self.is_over() {
            return;
        }
        match did {
            Did::Opened => {
                self.state = if self.compares() { State::Comparing } else { State::Sending };
                self.go_on();
            }
            Did::Batch(read) => self.batch(read),
            Did::Values(values) => self.values(values),
            Did::Root(root) => {
                self.send(Message::End { cursor: self.sent, root });
                self.state = State::Ending;
            }
            Did::Failed(refusal) => self.refuse(refusal),
        }
    }

    /// Time passes.
    pub fn tick(&mut self, now: Millis) {
        self.now = now;
        if self.is_over() {
            return;
        }
        match self.pulse.tick(now, self.patience()) {
            Ok(true) => self.send(Message::Ping),
            Ok(false) => {}
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// How long the target may do nothing but show that it is there. Of a large volume the root takes hours; but who says
    /// for ever that he is at it would keep snapshots pinned for ever.
    fn patience(&self) -> Option<Millis> {
        let size = |volume: &Brought| volume.offer.size;
        let to_read = match self.state {
            State::Offering(_) => self.volumes.iter().map(size).fold(0, u64::saturating_add),
            State::Beginning | State::Ending => size(&self.volumes[self.current]),
            _ => 0,
        };
        (!self.busy).then_some(SOURCE_STALL_MAX + to_read / TARGET_WORK_BYTES_PER_MS)
    }

    fn send(&mut self, message: Message) {
        let volume = u16::try_from(self.current).expect("few volumes");
        self.pulse.said(self.now);
        self.out.push(Do::Send(Frame { volume, message }));
    }

    fn act(&mut self, action: Do) {
        assert!(!self.busy, "one action at a time");
        self.busy = true;
        self.out.push(action);
    }

    fn refuse(&mut self, refusal: Refusal) {
        if !self.is_over() {
            self.send(Message::Refuse(refusal.clone()));
            self.end(Err(refusal));
        }
    }

    fn end(&mut self, result: Result<(), Refusal>) {
        self.state = State::Over;
        self.out.push(Do::Over(result));
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), Refusal> {
        if let Message::Refuse(refusal) = frame.message {
            if !self.is_over() {
                self.end(Err(refusal));
            }
            return Ok(());
        }
        if frame.message == Message::Ping || self.is_over() {
            return Ok(());
        }
        let expected = match &self.state {
            State::Greeting(_) => 0,
            State::Offering(have) => have.len(),
            _ => self.current,
        };
        if usize::from(frame.volume) != expected {
            return Err(unexpected(&frame.message));
        }
        self.take_message(frame.message)
    }

    fn take_message(&mut self, message: Message) -> Result<(), Refusal> {
        match (&mut self.state, message) {
            (State::Greeting(handshake), message) => match handshake.received(message)? {
                Ok(frame) => self.out.push(Do::Send(frame)),
                Err(agreement) => {
                    self.zstd = agreement.zstd;
                    self.state = State::Offering(Vec::new());
                    let offer = self.volumes.iter().map(|volume| volume.offer.clone()).collect();
                    self.send(Message::Offer(offer));
                }
            },
            (State::Offering(have), Message::Have(one)) => {
                have.push(one);
                if have.len() == self.volumes.len() {
                    self.have = std::mem::take(have);
                    self.begin_next()?;
                }
            }
            (State::Beginning, Message::Ready(ready)) => self.ready(&ready)?,
            (State::Sending | State::Comparing | State::Ending, Message::Confirmed(cursor)) => {
                self.confirmed(cursor)?;
            }
            (State::Comparing, Message::Wanted(wanted)) => self.wanted(wanted)?,
            (State::Ending, Message::Verified) => self.verified()?,
            (State::Publishing, Message::Published) => self.end(Ok(())),
            (_, message) => return Err(unexpected(&message)),
        }
        Ok(())
    }

    /// What the differences of the current volume are against.
    fn begin(&mut self) -> Result<(), Refusal> {
        let (volume, have) = (&self.volumes[self.current], &self.have[self.current]);
        let candidates = &volume.offer.candidates;
        let place = |known: &(u16, [u8; 32])| usize::from(known.0);
        // Each once: whatever is known is opened, to be copied from.
        let once = have.known.is_sorted_by(|one, next| one.0 < next.0);
        if !once || have.known.last().is_some_and(|last| place(last) >= candidates.len()) {
            let text = "a snapshot is said to be known that was not offered, or twice, or out of order";
            return Err(Refusal::new(Code::BadManifest, text));
        }
        let bases = || have.known.iter().filter(|known| place(known) < volume.bases);
        let with_uid = |&(place, root): &(u16, [u8; 32])| (candidates[usize::from(place)], root);
        let newest = have.newest.filter(|newest| newest.size <= volume.offer.size);
        let newest = newest.map(|newest| (newest.uid, newest.root));
        let best = bases().min_by_key(|(place, _)| *place).map(with_uid);
        // An attempt that was interrupted goes on over the base that it was begun with.
        let resumed = have.received.and_then(|received| {
            let base = match received.base {
                None => None,
                Some(uid) => {
                    let known = bases().map(with_uid).find(|(other, _)| *other == uid);
                    Some(known.map(|base| (base, Mode::Changes)).or_else(|| {
                        newest.filter(|(other, _)| *other == uid).map(|base| (base, Mode::Compare))
                    })?)
                }
            };
            Some((base, (received.token, received.cursor)))
        });
        let (base, resume) = match resumed {
            Some((base, resume)) => (base, Some(resume)),
            None => {
                let known = best.map(|base| (base, Mode::Changes));
                (known.or(newest.map(|base| (base, Mode::Compare))), None)
            }
        };
        let mode = base.map_or(Mode::Changes, |(_, mode)| mode);
        let known = have.known.iter().map(|(place, _)| *place).collect();
        let base = base.map(|(base, _)| base);
        let plan_base = base.filter(|_| mode == Mode::Changes).map(|(uid, _)| uid);
        self.plan =
            Some(Plan { volume: self.current, base: plan_base, mode, from: 0, known, zstd: self.zstd });
        self.state = State::Beginning;
        self.send(Message::Begin(Begin { mode, base, resume }));
        Ok(())
    }

    fn ready(&mut self, ready: &Ready) -> Result<(), Refusal> {
        let clusters = cluster_count(self.volumes[self.current].offer.size);
        if ready.cursor > clusters {
            let text = format!("cluster {} of {clusters} is said to be there", ready.cursor);
            return Err(Refusal::new(Code::BadResume, text));
        }
        self.exhausted = ready.complete || ready.cursor == clusters;
        self.unconfirmed.clear();
        self.sent = ready.cursor;
        let plan = self.plan.as_mut().expect("planned");
        plan.from = ready.cursor;
        let plan = plan.clone();
        self.state = State::Opening;
        self.act(Do::Open(plan));
        Ok(())
    }

    fn compares(&self) -> bool {
        let mode = self.plan.as_ref().map(|plan| plan.mode);
        mode == Some(Mode::Compare) && matches!(self.state, State::Opening)
    }

    /// The next step, if nothing is in its way.
    fn go_on(&mut self) {
        if self.busy {
            return;
        }
        match self.state {
            State::Sending | State::Comparing if self.exhausted => self.act(Do::Root),
            State::Sending if self.unconfirmed_bytes() + self.flow.batch_bytes <= self.flow.window_bytes => {
                self.act(Do::Read);
            }
            State::Comparing if self.asked.is_none() => self.act(Do::ReadValues),
            _ => {}
        }
    }

    fn batch(&mut self, read: Option<Read>) {
        match read {
            Some(Read { cursor, data_bytes, batch }) => {
                self.unconfirmed.push_back((cursor, data_bytes.max(BATCH_COST_MIN)));
                let from = std::mem::replace(&mut self.sent, cursor);
                self.send(Message::Data { from, cursor, batch });
            }
            // Of what was selected; the next clusters are compared.
            None if self.plan.as_ref().is_some_and(|plan| plan.mode == Mode::Compare) => {
                self.state = State::Comparing;
            }
            None => self.exhausted = true,
        }
        self.go_on();
    }

    fn values(&mut self, values: Option<Values>) {
        match values {
            Some(values) => {
                self.asked = Some((values.first, values.values.len()));
                self.send(Message::Values(values));
            }
            None => {
                self.exhausted = true;
                self.go_on();
            }
        }
    }

    /// The answer to the values that were sent: of these clusters, not of others.
    fn wanted(&mut self, wanted: Wanted) -> Result<(), Refusal> {
        let Some(asked) = self.asked.take() else {
            return Err(unexpected(&Message::Wanted(wanted)));
        };
        let answered = (wanted.first, wanted.differs.len());
        if answered != asked {
            let text = format!("{} answers at cluster {}, asked of {asked:?}", answered.1, answered.0);
            return Err(Refusal::new(Code::BadManifest, text));
        }
        self.act(Do::Select(wanted));
        Ok(())
    }

    fn confirmed(&mut self, cursor: u64) -> Result<(), Refusal> {
        // Who confirms what he has not got would have it never sent again; who confirms nothing new, for ever, would seem
        // to get on.
        let Some(place) = self.unconfirmed.iter().position(|(end, _)| *end == cursor) else {
            let text = format!("cluster {cursor} is confirmed, at which no batch ended that was not yet");
            return Err(Refusal::new(Code::BadManifest, text));
        };
        self.unconfirmed.drain(..=place);
        self.go_on();
        Ok(())
    }

    fn verified(&mut self) -> Result<(), Refusal> {
        self.current += 1;
        self.begin_next()
    }

    /// The next volume that the target does not show already.
    fn begin_next(&mut self) -> Result<(), Refusal> {
        let shown = |have: &HaveVolume, offer: &OfferedVolume| have.shows(offer.uid);
        while self.current < self.volumes.len()
            && shown(&self.have[self.current], &self.volumes[self.current].offer)
        {
            self.current += 1;
        }
        if self.current < self.volumes.len() {
            return self.begin();
        }
        self.current = 0;
        self.state = State::Publishing;
        if let Some(wish) = self.keep {
            self.send(Message::Keep(wish));
        }
        self.send(Message::Publish);
        Ok(())
    }
}

fn unexpected(message: &Message) -> Refusal {
    Refusal::new(Code::BadFrame, format!("{} out of turn", message.name()))
}
