//! The side that gets the snapshots: a state machine without I/O (docs/replication.md, "The target").
//!
//! ```text
//!  Greeting ─► Waiting ─► Looking ─► Offered ─► Preparing ─► Receiving ◄─► Comparing     once for each volume
//!                ▲                      ▲                        │ End
//!                │                      │ the next volume        ▼
//!                │                      └────── Verifying ◄── Gathering
//!                └── Publishing ◄─ Offered, all verified
//!  Preparing ─► Mirroring ─► Marking ─► Marked ─► Verifying     of a mirror
//!  Waiting ─► Fetching ◄─► Asked     in a session that only asks
//! ```
//!
//! It trusts nothing: every frame must be one that may come now, its clusters must follow those before, and what a batch
//! says is judged where it is written ([`super::batch`]). A volume gets no more clusters than it has, each once for
//! each attempt: a source that sends for ever runs out of what it may send.

use std::collections::BTreeMap;

use super::batch::Bounds;
use super::session::{Handshake, Link, Millis, PING_INTERVAL, Pulse, Side, TARGET_STALL_MAX};
use super::wire::{
    Begin, Code, Fetch, Found, Frame, HaveVolume, KeepWish, Message, Mode, OfferedVolume, Ready, Refusal,
    Values, Wanted,
};
use crate::control::is_valid_name;
use crate::units::{SIZE_UNIT_BYTES, VOLUME_BYTES_MAX, cluster_count};

/// Batches that are being written; no more frames are taken meanwhile.
pub const APPLYING_MAX: usize = 12;
/// Signs of life that may come too early, between two frames that are more. Those that come in their time are no trouble,
/// however long this side is at work.
pub const EARLY_PINGS_MAX: u32 = 1000;

/// What is to be done. `Apply` and `Confirm` may be under way at once, several of the former, also beside a `Compare`; all
/// others are alone.
#[derive(Debug, PartialEq, Eq)]
pub enum Do {
    /// Send it.
    Send(Frame),
    /// What is there of these? Answer: `Looked`.
    Look(Vec<OfferedVolume>),
    /// Prepare a volume of the offer. Answer: `Ready`.
    Prepare {
        /// Its place.
        volume: usize,
        /// How.
        begin: Begin,
    },
    /// Judge a batch and write it. Answer: `Applied`.
    Apply {
        /// The volume's place.
        volume: usize,
        /// What it may touch.
        bounds: Bounds,
        /// Clusters before it are complete with it; of a mirror: its number.
        cursor: u64,
        /// See [`super::batch`].
        batch: Vec<u8>,
    },
    /// Clusters before the cursor are there: make that durable. Answer: `Confirmed`.
    Confirm {
        /// The volume's place.
        volume: usize,
        /// See above.
        cursor: u64,
    },
    /// Which of these differ from the base? Answer: `Compared`.
    Compare {
        /// The volume's place.
        volume: usize,
        /// Values of the source's clusters.
        values: Values,
    },
    /// All has come: compare the root. Answer: `Verified`.
    Verify {
        /// The volume's place.
        volume: usize,
        /// What it must be.
        root: [u8; 32],
    },
    /// What the source would like to be kept. No answer.
    Keep(KeepWish),
    /// What was mirrored is that snapshot: cut it, unseen. Answer: `Marked`.
    Mark {
        /// The volume's place.
        volume: usize,
        /// Which.
        snapshot: OfferedVolume,
    },
    /// Show all volumes of the offer. Answer: `Published`.
    Publish,
    /// What is there of these clusters? Answer: `Fetched`.
    Fetch(Fetch),
    /// The session is over, for that reason.
    Over(Refusal),
}

/// What was done.
#[derive(Debug)]
pub enum Did {
    /// For each volume.
    Looked(Vec<HaveVolume>),
    /// Data may come.
    Ready(Ready),
    /// It is written.
    Applied(u64),
    /// It is durable.
    Confirmed(u64),
    /// Which differ.
    Compared(Wanted),
    /// The snapshot is cut.
    Marked,
    /// The root is right.
    Verified,
    /// They are shown.
    Published,
    /// Of each cluster that was asked for, in that order.
    Fetched(Vec<(u32, Found)>),
    /// It failed.
    Failed(Refusal),
}

#[derive(Debug)]
enum State {
    Greeting(Box<Handshake>),
    /// For an offer.
    Waiting,
    Looking,
    /// For the beginning of a volume, or for the end of all.
    Offered,
    Preparing,
    Receiving,
    Comparing,
    /// A mirror takes what changes, until it is marked.
    Mirroring,
    Marking,
    /// Nothing but the root may come.
    Marked,
    /// The end has come, some batches are still being written.
    Gathering([u8; 32]),
    Verifying,
    Publishing,
    /// Clusters are read that were asked for.
    Fetching,
    /// They were sent; others may be asked for, and nothing else may come.
    Asked,
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Target {
    state: State,
    volumes: Vec<OfferedVolume>,
    /// Volumes that are shown as they are offered: nothing of them comes.
    shown: Vec<bool>,
    /// The volume that is being received; those before are verified.
    current: usize,
    /// What is to be kept was said.
    wished: bool,
    mode: Mode,
    /// Clusters before it have come, written or not.
    arrived: u64,
    /// Clusters before it were compared.
    compared: u64,
    /// Batches that are being written, or were written before others that came before them: where they begin, by
    /// where they end, and whether they are written.
    applying: BTreeMap<u64, bool>,
    /// Clusters before it are written.
    applied: u64,
    /// Clusters before it are durable, or being made so.
    confirming: u64,
    confirm_under_way: bool,
    early_pings: u32,
    pinged: Option<Millis>,
    pulse: Pulse,
    now: Millis,
    out: Vec<Do>,
}

impl Target {
    /// A session that takes what the other side brings.
    pub fn start(link: Link, now: Millis) -> Self {
        let (handshake, first) = Handshake::start(Side::Target, link);
        Self {
            state: State::Greeting(Box::new(handshake)),
            volumes: Vec::new(),
            shown: Vec::new(),
            current: 0,
            wished: false,
            mode: Mode::Changes,
            arrived: 0,
            compared: 0,
            applying: BTreeMap::new(),
            applied: 0,
            confirming: 0,
            confirm_under_way: false,
            early_pings: 0,
            pinged: None,
            pulse: Pulse::new(now),
            now,
            out: vec![Do::Send(first)],
        }
    }

    /// What is to be done since the last call, in order.
    pub fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.out)
    }

    /// Whether a frame may be read now; otherwise what was read already is to be written first.
    pub fn wants_frames(&self) -> bool {
        self.applying.len() < APPLYING_MAX
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Whether nothing was begun: the other side may go without a word.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Waiting | State::Asked | State::Over)
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

    /// The host itself ends it.
    pub fn refuse(&mut self, refusal: Refusal) {
        if !self.is_over() {
            self.send(Message::Refuse(refusal.clone()));
            self.end(refusal);
        }
    }

    /// An action has ended.
    pub fn did(&mut self, did: Did, now: Millis) {
        self.now = now;
        self.pulse.moved(now);
        if self.is_over() {
            return;
        }
        match did {
            Did::Looked(have) => self.looked(have),
            Did::Ready(ready) => self.ready(ready),
            Did::Applied(cursor) => self.applied(cursor),
            Did::Confirmed(cursor) => {
                self.confirm_under_way = false;
                self.send(Message::Confirmed(cursor));
                self.confirm();
                self.verify_if_gathered();
            }
            Did::Compared(wanted) => {
                self.state = State::Comparing;
                self.send(Message::Wanted(wanted));
            }
            Did::Marked => {
                self.state = State::Marked;
                self.send(Message::Marked);
            }
            Did::Verified => {
                self.send(Message::Verified);
                self.current += 1;
                self.skip_shown();
            }
            Did::Published => {
                self.current = 0;
                self.send(Message::Published);
                self.volumes.clear();
                self.state = State::Waiting;
            }
            Did::Fetched(found) => {
                self.state = State::Asked;
                for (cluster, found) in found {
                    self.send(Message::Fetched { cluster, found });
                }
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
        let at_work = matches!(
            self.state,
            State::Looking
                | State::Preparing
                | State::Marking
                | State::Verifying
                | State::Publishing
                | State::Gathering(_)
                | State::Fetching
        );
        // A mirror of what does not change has nothing to say: signs of life are enough.
        let mirrors = matches!(self.state, State::Mirroring);
        let waits = !at_work && !mirrors && self.applying.is_empty();
        match self.pulse.tick(now, waits.then_some(TARGET_STALL_MAX)) {
            Ok(true) => self.send(Message::Ping),
            Ok(false) => {}
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn send_of(&mut self, volume: usize, message: Message) {
        let volume = u16::try_from(volume).expect("few volumes");
        self.pulse.said(self.now);
        self.out.push(Do::Send(Frame { volume, message }));
    }

    fn send(&mut self, message: Message) {
        let current = self.current.min(self.volumes.len().saturating_sub(1));
        self.send_of(current, message);
    }

    fn end(&mut self, refusal: Refusal) {
        self.state = State::Over;
        self.out.push(Do::Over(refusal));
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), Refusal> {
        match frame.message {
            _ if self.is_over() => return Ok(()),
            Message::Refuse(refusal) => {
                self.end(refusal);
                return Ok(());
            }
            Message::Ping => return self.pinged(),
            _ => self.early_pings = 0,
        }
        let expected = match &frame.message {
            Message::Publish | Message::Keep(_) => 0,
            _ => self.current,
        };
        if usize::from(frame.volume) != expected {
            return Err(unexpected(&frame.message));
        }
        self.take_message(frame.message)
    }

    fn pinged(&mut self) -> Result<(), Refusal> {
        let early = self.pinged.is_some_and(|before| self.now.saturating_sub(before) < PING_INTERVAL / 2);
        self.pinged = Some(self.now);
        self.early_pings += u32::from(early);
        if self.early_pings > EARLY_PINGS_MAX {
            return Err(Refusal::new(Code::Stalled, "nothing but signs of life"));
        }
        Ok(())
    }

    fn take_message(&mut self, message: Message) -> Result<(), Refusal> {
        match (&mut self.state, message) {
            (State::Greeting(handshake), message) => match handshake.received(message)? {
                Ok(frame) => self.out.push(Do::Send(frame)),
                Err(_) => self.state = State::Waiting,
            },
            (State::Waiting, Message::Offer(volumes)) => self.offer(volumes)?,
            (State::Waiting | State::Asked, Message::Fetch(fetch)) => {
                check_fetch(&fetch)?;
                self.state = State::Fetching;
                self.out.push(Do::Fetch(fetch));
            }
            (State::Offered, Message::Begin(begin)) if self.current < self.volumes.len() => {
                check_begin(&begin, &self.volumes[self.current])?;
                self.mode = begin.mode;
                self.state = State::Preparing;
                self.out.push(Do::Prepare { volume: self.current, begin });
            }
            (State::Offered, Message::Keep(wish)) if !std::mem::replace(&mut self.wished, true) => {
                self.out.push(Do::Keep(wish));
            }
            (State::Offered, Message::Publish) if self.current == self.volumes.len() => {
                self.state = State::Publishing;
                self.out.push(Do::Publish);
            }
            (State::Mirroring, Message::Mark(snapshot)) => self.mark(snapshot)?,
            (
                State::Receiving | State::Comparing | State::Mirroring,
                Message::Data { from, cursor, batch },
            ) => {
                self.data(from, cursor, batch)?;
            }
            (State::Comparing, Message::Values(values)) => self.values(values)?,
            (State::Receiving | State::Comparing | State::Marked, Message::End { cursor, root }) => {
                if cursor != self.arrived {
                    let text = format!("the end after cluster {cursor}, expected {}", self.arrived);
                    return Err(Refusal::new(Code::BadManifest, text));
                }
                self.state = State::Gathering(root);
                self.verify_if_gathered();
            }
            (_, message) => return Err(unexpected(&message)),
        }
        Ok(())
    }

    fn offer(&mut self, volumes: Vec<OfferedVolume>) -> Result<(), Refusal> {
        if volumes.is_empty() {
            return Err(Refusal::new(Code::BadManifest, "an offer of nothing"));
        }
        for (at, volume) in volumes.iter().enumerate() {
            check_offered(volume)?;
            if volumes[..at].iter().any(|other| other.lineage == volume.lineage) {
                return Err(Refusal::new(Code::BadManifest, "a volume is offered twice"));
            }
        }
        self.volumes.clone_from(&volumes);
        (self.current, self.wished) = (0, false);
        self.state = State::Looking;
        self.out.push(Do::Look(volumes));
        Ok(())
    }

    fn looked(&mut self, have: Vec<HaveVolume>) {
        let uids = self.volumes.iter().map(|volume| volume.uid);
        self.shown = have.iter().zip(uids).map(|(have, uid)| have.shows(uid)).collect();
        for (volume, one) in have.into_iter().enumerate() {
            self.send_of(volume, Message::Have(one));
        }
        self.current = 0;
        self.skip_shown();
    }

    /// The next volume may begin.
    fn skip_shown(&mut self) {
        while self.shown.get(self.current) == Some(&true) {
            self.current += 1;
        }
        self.state = State::Offered;
    }

    fn ready(&mut self, ready: Ready) {
        (self.arrived, self.compared) = (ready.cursor, ready.cursor);
        (self.applied, self.confirming) = (ready.cursor, ready.cursor);
        self.applying.clear();
        self.state = match self.mode {
            Mode::Changes => State::Receiving,
            Mode::Compare => State::Comparing,
            Mode::Mirror => State::Mirroring,
        };
        self.send(Message::Ready(ready));
    }

    fn data(&mut self, from: u64, cursor: u64, batch: Vec<u8>) -> Result<(), Refusal> {
        let volume = &self.volumes[self.current];
        let last = match self.mode {
            Mode::Changes => cluster_count(volume.size),
            Mode::Compare => self.compared,
            Mode::Mirror => from.saturating_add(1),
        };
        // A frame that is missing must not be taken for clusters that have not changed: they would be confirmed.
        if from != self.arrived || cursor <= from || cursor > last {
            let text = format!("data of clusters {from} to {cursor}, expected {} to {last}", self.arrived);
            return Err(Refusal::new(Code::BadManifest, text));
        }
        let candidates = volume.candidates.len();
        let mut bounds = Bounds { from: self.arrived, to: cursor, size: volume.size, candidates };
        if self.mode == Mode::Mirror {
            // Any cluster, as often as it changes.
            (bounds.from, bounds.to) = (0, cluster_count(volume.size));
        }
        self.arrived = cursor;
        self.applying.insert(cursor, false);
        self.out.push(Do::Apply { volume: self.current, bounds, cursor, batch });
        Ok(())
    }

    fn applied(&mut self, cursor: u64) {
        if let Some(written) = self.applying.get_mut(&cursor) {
            *written = true;
        }
        while let Some(first) = self.applying.first_entry().filter(|first| *first.get()) {
            self.applied = *first.key();
            first.remove();
        }
        if self.mode == Mode::Mirror {
            // Written is enough: what counts is made durable when it is marked.
            if self.applied > self.confirming {
                self.confirming = self.applied;
                self.send(Message::Confirmed(self.applied));
            }
            return;
        }
        self.confirm();
        self.verify_if_gathered();
    }

    /// One at a time: whatever is written meanwhile shares the next one.
    fn confirm(&mut self) {
        if !self.confirm_under_way && self.applied > self.confirming {
            (self.confirm_under_way, self.confirming) = (true, self.applied);
            self.out.push(Do::Confirm { volume: self.current, cursor: self.applied });
        }
    }

    /// The source says that only when all is written; one that does not has said what is wrong.
    fn mark(&mut self, snapshot: OfferedVolume) -> Result<(), Refusal> {
        check_offered(&snapshot)?;
        let volume = &self.volumes[self.current];
        let same = snapshot.lineage == volume.lineage && snapshot.size == volume.size;
        if !same || !self.applying.is_empty() {
            return Err(Refusal::new(Code::BadManifest, "that is not what was mirrored"));
        }
        self.state = State::Marking;
        self.out.push(Do::Mark { volume: self.current, snapshot });
        Ok(())
    }

    fn values(&mut self, values: Values) -> Result<(), Refusal> {
        let end = values.first.checked_add(values.values.len() as u64);
        let clusters = cluster_count(self.volumes[self.current].size);
        if values.first != self.compared || values.values.is_empty() || end.is_none_or(|end| end > clusters) {
            let text = format!("{} values at cluster {}", values.values.len(), values.first);
            return Err(Refusal::new(Code::BadManifest, text));
        }
        self.compared = end.expect("checked");
        // One comparison at a time: until then nothing more of this volume may come.
        self.state = State::Looking;
        self.out.push(Do::Compare { volume: self.current, values });
        Ok(())
    }

    fn verify_if_gathered(&mut self) {
        let State::Gathering(root) = self.state else { return };
        if self.applying.is_empty() && !self.confirm_under_way {
            self.state = State::Verifying;
            self.out.push(Do::Verify { volume: self.current, root });
        }
    }
}

/// D5, P1: names are keys and nothing else, and must be legal even so.
fn check_offered(volume: &OfferedVolume) -> Result<(), Refusal> {
    for name in [&volume.volume, &volume.name] {
        if !is_valid_name(name) {
            let text = format!("{:?} is no name", name.chars().take(64).collect::<String>());
            return Err(Refusal::new(Code::BadId, text));
        }
    }
    let size = volume.size;
    if size == 0 || size > VOLUME_BYTES_MAX || !size.is_multiple_of(SIZE_UNIT_BYTES) {
        return Err(Refusal::new(Code::BadManifest, format!("a volume of {size} bytes")));
    }
    Ok(())
}

/// Each cluster once, in order: an answer is never longer than what was asked for.
fn check_fetch(fetch: &Fetch) -> Result<(), Refusal> {
    if fetch.clusters.is_empty() || !fetch.clusters.is_sorted_by(|(a, _), (b, _)| a < b) {
        return Err(Refusal::new(Code::BadManifest, "clusters that are asked for come in order, each once"));
    }
    Ok(())
}

fn check_begin(begin: &Begin, volume: &OfferedVolume) -> Result<(), Refusal> {
    if begin.mode == Mode::Compare && begin.base.is_none() {
        return Err(Refusal::new(Code::BadManifest, "nothing to compare with"));
    }
    if begin.mode == Mode::Mirror && (begin.base.is_none() || begin.resume.is_some()) {
        return Err(Refusal::new(Code::BadManifest, "a mirror begins anew, over a base"));
    }
    let clusters = cluster_count(volume.size);
    match begin.resume {
        Some((_, cursor)) if cursor > clusters => {
            Err(Refusal::new(Code::BadResume, format!("cluster {cursor} of {clusters}")))
        }
        _ => Ok(()),
    }
}

fn unexpected(message: &Message) -> Refusal {
    Refusal::new(Code::BadFrame, format!("{} out of turn", message.name()))
}
