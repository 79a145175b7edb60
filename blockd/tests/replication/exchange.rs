//! One session between two hosts, event by event: frames travel, operations are carried out, and anything may fail.

use std::collections::{BTreeMap, VecDeque};

use blockd::control::Control;
use blockd::sync::offer::Offer;
use blockd::sync::session::Link;
use blockd::sync::source::{self, Flow, Plan, Source};
use blockd::sync::target::{self, Target};
use blockd::sync::wire::{Code, Frame, HEADER_BYTES, Header, KeepWish, Message, OfferedVolume, Refusal};
use blockd::sync::writing::{Place, refusal};
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
pub(crate) struct Trouble {
    pub(crate) cut: u32,
    pub(crate) freeze: u32,
    pub(crate) duplicate: u32,
    pub(crate) reorder: u32,
    pub(crate) crash_source: u32,
    pub(crate) crash_target: u32,
}

/// What was seen, over all sessions of a case.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) counts: BTreeMap<&'static str, u64>,
    /// The source was told that so many clusters of a snapshot, over a base, are durable.
    pub(crate) confirmed: BTreeMap<(SnapshotUid, Option<SnapshotUid>), u64>,
    /// Bytes of data in frames that were sent.
    pub(crate) data_bytes: u64,
}

impl Watched {
    pub(crate) fn count(&mut self, what: &'static str) {
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

struct SourceSide {
    source: Source,
    offers: Vec<Offer>,
    flow: Flow,
    todo: VecDeque<source::Do>,
    reading: Option<Reading>,
    pinned: Option<Pinned>,
    base: Option<SnapshotUid>,
    over: Option<Result<(), Refusal>>,
}

struct TargetSide {
    target: Target,
    peer: HostId,
    volumes: Vec<OfferedVolume>,
    attempts: BTreeMap<usize, ReceiveToken>,
    base: Option<SnapshotUid>,
    todo: VecDeque<target::Do>,
    applying: Vec<(Token, u64)>,
    confirming: Option<(Token, u64)>,
    over: Option<Refusal>,
}

/// A command that waits while layers are being merged.
fn patient(host: &mut Host, command: &Control) -> Result<Answer, ControlError> {
    for _ in 0..BUSY_TRIES {
        match host.ask(command.clone()) {
            Err(error) if error.kind == ErrorKind::Busy => {
                host.tick(100);
                host.step();
            }
            other => return other,
        }
    }
    panic!("busy for ever: {command:?}");
}

fn pin(host: &mut Host, name: &SnapshotName) -> Result<Pinned, ControlError> {
    match patient(host, &Control::Pin { name: name.clone() })? {
        Answer::Pinned(pinned) => Ok(pinned),
        other => panic!("{other:?}"),
    }
}

/// Something that blocks, on a host that goes on meanwhile.
fn blocking<T>(
    host: &mut Host,
    work: impl FnOnce(&dyn Fn(Control) -> Result<Answer, ControlError>) -> T,
) -> T {
    let shared = RefCell::new(host);
    work(&|command| shared.borrow_mut().ask(command))
}

impl SourceSide {
    fn act(&mut self, host: &mut Host, action: source::Do, now: u64) {
        let did = self.perform(host, action).unwrap_or_else(|error| source::Did::Failed(refusal(&error)));
        if !host.down {
            self.source.did(did, now);
        }
    }

    fn perform(&mut self, host: &mut Host, action: source::Do) -> Result<source::Did, ControlError> {
        Ok(match action {
            source::Do::Open(plan) => {
                self.open(host, &plan)?;
                source::Did::Opened
            }
            source::Do::Read => {
                let batch = self.reading.as_mut().expect("it is open").batch()?;
                self.keep(host)?;
                source::Did::Batch(batch)
            }
            source::Do::ReadValues => {
                let values = self.reading.as_mut().expect("it is open").values()?;
                self.keep(host)?;
                source::Did::Values(values)
            }
            source::Do::Select(wanted) => {
                self.reading.as_mut().expect("it is open").select(&wanted);
                source::Did::Opened
            }
            source::Do::Root => {
                let (reader, pinned) = (host.reader(), self.pinned.clone().expect("it is open"));
                let root = blocking(host, |submit| hash(&reader, &pinned, submit, &mut |_, _| true))?;
                source::Did::Root(root)
            }
            source::Do::Send(_) | source::Do::Over(_) => unreachable!("done at once"),
        })
    }

    fn open(&mut self, host: &mut Host, plan: &Plan) -> Result<(), ControlError> {
        let offer = self.offers[plan.volume].clone();
        let to = pin(host, &offer.snapshot)?;
        let from = plan.base.map(|uid| pin(host, offer.candidate(uid).expect("offered"))).transpose()?;
        let mut twins = Vec::new();
        if plan.base.is_none() {
            for &place in plan.known.iter().filter(|place| usize::from(**place) >= offer.brought.bases) {
                let pinned = pin(host, &offer.candidates[usize::from(place)])?;
                twins.push(Twin { place, pinned });
            }
        }
        let reader = host.reader();
        self.reading =
            Some(Reading::open(&reader, plan, to.clone(), from.as_ref(), twins, self.flow.batch_bytes)?);
        self.pinned = Some(to);
        Ok(())
    }

    /// Values that were computed are for the root, and for the next time.
    fn keep(&mut self, host: &mut Host) -> Result<(), ControlError> {
        let hashes = self.reading.as_mut().expect("it is open").take_kept();
        if hashes.is_empty() {
            return Ok(());
        }
        let pin = self.pinned.as_ref().expect("it is open").pin;
        host.ask(Control::KeepHashes { pin, hashes, roots: Vec::new() }).map(drop)
    }
}

impl TargetSide {
    fn act(&mut self, host: &mut Host, action: target::Do, now: u64) {
        if let Some(did) = self.perform(host, action).unwrap_or_else(|r| Some(target::Did::Failed(r)))
            && !host.down
        {
            self.target.did(did, now);
        }
    }

    fn place<T>(
        &self,
        host: &mut Host,
        work: impl FnOnce(&Place<'_>) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let (reader, peer) = (host.reader(), self.peer);
        let shared = RefCell::new(host);
        let submit = |command| shared.borrow_mut().ask(command);
        let pause = || {
            let mut host = shared.borrow_mut();
            host.tick(100);
            host.step();
            true
        };
        work(&Place { reader: &reader, submit: &submit, pause: &pause, peer })
    }

    /// `None`: it ends later.
    fn perform(&mut self, host: &mut Host, action: target::Do) -> Result<Option<target::Did>, Refusal> {
        Ok(Some(match action {
            target::Do::Look(volumes) => {
                let mut have = Vec::new();
                for volume in &volumes {
                    have.push(self.place(host, |place| place.look(volume))?);
                }
                self.volumes = volumes;
                self.attempts.clear();
                target::Did::Looked(have)
            }
            target::Do::Prepare { volume, begin } => {
                let token = host.rng.u128(..).to_be_bytes();
                let offered = self.volumes[volume].clone();
                let ready = self.place(host, |place| place.prepare(&offered, &begin, token))?;
                self.attempts.insert(volume, ready.token);
                self.base = begin.base.map(|(uid, _)| uid);
                target::Did::Ready(ready)
            }
            target::Do::Apply { volume, bounds, batch } => {
                let offered = self.volumes[volume].clone();
                let patches = self.place(host, |place| place.patches(&offered, &bounds, &batch))?;
                let (lineage, token) = (offered.lineage, self.attempts[&volume]);
                let command = Control::Replication(Replication::Apply { lineage, token, patches });
                self.applying.push((host.command(command), bounds.to));
                return Ok(None);
            }
            target::Do::Confirm { volume, cursor } => {
                let (lineage, token) = (self.volumes[volume].lineage, self.attempts[&volume]);
                let command = Control::Replication(Replication::Confirm { lineage, token, cursor });
                self.confirming = Some((host.command(command), cursor));
                return Ok(None);
            }
            target::Do::Compare { values, .. } => {
                let base = self.base.expect("compared with something");
                target::Did::Compared(self.place(host, |place| place.compare(base, &values))?)
            }
            target::Do::Verify { volume, root } => {
                let (offered, token) = (self.volumes[volume].clone(), self.attempts[&volume]);
                self.place(host, |place| place.verify(&offered, token, root, &mut |_, _| true))?;
                target::Did::Verified
            }
            target::Do::Publish => {
                let staged = self.attempts.iter().map(|(at, token)| (self.volumes[*at].lineage, *token));
                let staged = staged.collect();
                self.place(host, |place| place.publish(staged))?;
                target::Did::Published
            }
            target::Do::Send(_) | target::Do::Over(_) | target::Do::Keep(_) => {
                unreachable!("done at once")
            }
        }))
    }

    /// Writes and confirmations that have ended.
    fn poll(&mut self, host: &mut Host, now: u64) {
        let mut at = 0;
        while at < self.applying.len() {
            let (token, cursor) = self.applying[at];
            let Some(answer) = host.answer(token) else {
                at += 1;
                continue;
            };
            self.applying.remove(at);
            let did = answer
                .map_or_else(|error| target::Did::Failed(refusal(&error)), |_| target::Did::Applied(cursor));
            self.target.did(did, now);
        }
        if let Some((token, cursor)) = self.confirming
            && let Some(answer) = host.answer(token)
        {
            self.confirming = None;
            let did = answer.map_or_else(
                |error| target::Did::Failed(refusal(&error)),
                |_| target::Did::Confirmed(cursor),
            );
            self.target.did(did, now);
        }
    }
}

/// A session under way.
pub(crate) struct Exchange<'a> {
    pub(crate) a: &'a mut Host,
    pub(crate) b: &'a mut Host,
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
    pub(crate) fn new(
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
        let brought = offers.iter().map(|offer| offer.brought.clone()).collect();
        let source = Source::start(link(a.id, b.id), brought, flow, 0).with_keep(KeepWish::default());
        let target = Target::start(link(b.id, a.id), 0);
        let from = SourceSide {
            source,
            offers,
            flow,
            todo: VecDeque::new(),
            reading: None,
            pinned: None,
            base: None,
            over: None,
        };
        let to = TargetSide {
            target,
            peer: a.id,
            volumes: Vec::new(),
            attempts: BTreeMap::new(),
            base: None,
            todo: VecDeque::new(),
            applying: Vec::new(),
            confirming: None,
            over: None,
        };
        let from = SourceSide::start(link(a.id, b.id), offers, flow);
        let to = TargetSide::start(link(b.id, a.id));
        let (forward, back) = (Pipe::default(), Pipe::default());
        Self { a, b, from, to, forward, back, trouble, watched, rng, now: 0, cut: false }
    }

    /// Until it is over on both sides, whichever way. What the source says of it.
    pub(crate) fn run(mut self) -> Result<(), Refusal> {
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
            10 => self.a.step(),
            _ => {
                let frozen = self.forward.frozen || self.back.frozen;
                self.now += if frozen { 2_000 } else { 20 };
                self.from.source.tick(self.now);
                self.to.target.tick(self.now);
            }
        }
    }
}
