//! Our target, a source that says anything, and a host that ends operations in any order and in any way.

use std::collections::BTreeSet;

use blockd::sync::session::{Link, Side, proof};
use blockd::sync::target::{APPLYING_MAX, Did, Do, Target};
use blockd::sync::wire::{
    Begin, Code, FETCH_CLUSTERS_MAX, Found, Frame, HaveVolume, Hello, Message, Mode, NewestSnapshot,
    OfferedVolume, Ready, Refusal, Values, Wanted,
};
use blockd::units::{HostId, cluster_count};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::config;
use crate::frames::{frame, offered};

const PEER: HostId = HostId([1; 16]);
const SECRET: [u8; 32] = [7; 32];

#[derive(Clone, Debug)]
enum Step {
    /// What an honest source would say next, as far as it has a choice.
    Honest(u8),
    Offer(Vec<OfferedVolume>),
    Any(Frame),
    Ended(Index, u8),
    Failed(Index),
    Tick(u64),
    Unreadable,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => any::<u8>().prop_map(Step::Honest),
        3 => vec(offered(), 1..4).prop_map(Step::Offer),
        2 => frame().prop_map(Step::Any),
        40 => (any::<Index>(), any::<u8>()).prop_map(|(at, how)| Step::Ended(at, how)),
        1 => any::<Index>().prop_map(Step::Failed),
        8 => (0..9_000_u64).prop_map(Step::Tick),
        1 => Just(Step::Unreadable),
    ]
}

struct World {
    target: Target,
    under_way: Vec<Do>,
    /// The source's view.
    theirs: Option<Hello>,
    bound: bool,
    greeted: bool,
    volumes: Vec<OfferedVolume>,
    current: usize,
    mode: Mode,
    ready: bool,
    sent: u64,
    compared: u64,
    /// What was verified or shown already, of the offer.
    right: BTreeSet<usize>,
    applied_to: u64,
    /// What was mirrored is a snapshot.
    marked: bool,
    over: bool,
    now: u64,
}

impl World {
    fn new() -> Self {
        let link = Link { host: HostId([2; 16]), peer: PEER, secret: SECRET, nonce: [4; 32], version_min: 1 };
        let mut world = Self {
            target: Target::start(link, 0),
            under_way: Vec::new(),
            theirs: None,
            bound: false,
            greeted: false,
            volumes: Vec::new(),
            current: 0,
            mode: Mode::Changes,
            ready: false,
            sent: 0,
            compared: 0,
            right: BTreeSet::new(),
            applied_to: 0,
            marked: false,
            over: false,
            now: 0,
        };
        world.drain();
        world
    }

    fn count(&self, is: fn(&Do) -> bool) -> usize {
        self.under_way.iter().filter(|action| is(action)).count()
    }

    /// Takes what the target wants, and checks that it may want it.
    fn drain(&mut self) {
        let mut refused = None;
        for action in self.target.take() {
            assert!(!self.over, "{action:?} after the end");
            match action {
                Do::Send(frame) => {
                    assert!(refused.is_none(), "{frame:?} after a refusal");
                    if let Message::Refuse(refusal) = &frame.message {
                        refused = Some(refusal.clone());
                    }
                    self.heard(frame.message);
                }
                Do::Over(refusal) => {
                    assert!(refused.is_none_or(|said| said == refusal));
                    (self.over, refused) = (true, None);
                }
                Do::Keep(_) => {}
                other => self.begin(other),
            }
        }
        assert!(refused.is_none(), "refused, and not over");
        assert_eq!(self.target.is_over(), self.over);
    }

    fn heard(&mut self, message: Message) {
        match message {
            Message::Hello(hello) => self.theirs = Some(hello),
            Message::Bind { .. } => self.bound = true,
            Message::Ready(ready) => {
                (self.sent, self.compared, self.ready) = (ready.cursor, ready.cursor, true);
                self.applied_to = ready.cursor;
            }
            Message::Verified => {
                (self.current, self.ready) = (self.current + 1, false);
                self.skip();
            }
            Message::Published => self.volumes.clear(),
            _ => {}
        }
    }

    /// Like the target, the source goes on with the next volume that is not shown already.
    fn skip(&mut self) {
        while self.right.contains(&self.current) {
            self.current += 1;
        }
    }

    fn begin(&mut self, action: Do) {
        let exclusive = |action: &Do| !matches!(action, Do::Apply { .. } | Do::Confirm { .. });
        if exclusive(&action) {
            assert_eq!(self.count(exclusive), 0, "{action:?} beside {:?}", self.under_way);
            let alone = !matches!(action, Do::Compare { .. });
            assert!(!alone || self.under_way.is_empty(), "{action:?} beside {:?}", self.under_way);
        }
        match &action {
            Do::Look(volumes) => (self.volumes, self.current) = (volumes.clone(), 0),
            Do::Compare { values, .. } => self.compared = values.first + values.values.len() as u64,
            Do::Apply { volume, bounds, cursor, .. } if self.mode == Mode::Mirror => {
                let clusters = cluster_count(self.volumes[*volume].size);
                assert_eq!((bounds.from, bounds.to), (0, clusters), "any cluster of it");
                assert_eq!((*volume, *cursor), (self.current, self.sent + 1), "in order");
                self.sent = *cursor;
            }
            Do::Apply { volume, bounds, .. } => {
                assert_eq!((*volume, bounds.from), (self.current, self.sent), "in order, each once");
                assert!(bounds.to > bounds.from && bounds.to <= cluster_count(self.volumes[*volume].size));
                self.sent = bounds.to;
            }
            Do::Prepare { begin, .. } => (self.mode, self.marked) = (begin.mode, false),
            Do::Mark { volume, snapshot } => {
                assert_eq!((self.mode, *volume), (Mode::Mirror, self.current));
                assert_eq!(snapshot.lineage, self.volumes[*volume].lineage);
                assert!(!std::mem::replace(&mut self.marked, true), "marked twice");
            }
            Do::Confirm { cursor, .. } => {
                assert!(self.mode != Mode::Mirror, "a mirror is made durable when it is marked");
                assert_eq!(self.count(|action| matches!(action, Do::Confirm { .. })), 0);
                let written =
                    |action: &Do| !matches!(action, Do::Apply { bounds, .. } if bounds.to <= *cursor);
                assert!(self.under_way.iter().all(written), "confirmed before it is written");
                assert!(*cursor > self.applied_to && *cursor <= self.sent);
                self.applied_to = *cursor;
            }
            Do::Verify { volume, .. } => {
                assert_eq!(*volume, self.current);
                assert!(
                    self.mode != Mode::Mirror || self.marked,
                    "a mirror that was not marked is no snapshot"
                );
            }
            Do::Publish => assert_eq!(self.right.len(), self.volumes.len(), "not all are verified"),
            _ => {}
        }
        self.under_way.push(action);
        let applying = self.count(|action| matches!(action, Do::Apply { .. }));
        assert!(applying <= APPLYING_MAX, "{applying} batches");
    }

    fn say(&mut self, frame: Frame) {
        // As the driver does: no more is read while batches wait.
        if self.target.wants_frames() {
            self.target.received(frame, self.now);
        }
        self.drain();
    }

    fn honest(&mut self, choice: u8) -> Option<Frame> {
        let hello = Hello { version_min: 1, version_max: 1, compression: 1, host: PEER, nonce: [3; 32] };
        let theirs = self.theirs.clone()?;
        if !self.bound {
            return Some(Frame::session(Message::Hello(hello)));
        }
        if !self.greeted {
            self.greeted = true;
            let proof = proof(&SECRET, Side::Source, 1, &hello, &theirs);
            return Some(Frame::session(Message::Bind { version: 1, proof }));
        }
        if self.volumes.is_empty() {
            return None;
        }
        let Some(volume) = self.volumes.get(self.current) else {
            return Some(Frame::session(Message::Publish));
        };
        let clusters = cluster_count(volume.size);
        let message = if !self.ready {
            let mode = [Mode::Compare, Mode::Changes, Mode::Mirror][usize::from(choice % 3)];
            let base = (mode != Mode::Changes).then_some((volume.uid, [0; 32]));
            Message::Begin(Begin { mode, base, resume: None })
        } else if self.mode == Mode::Mirror {
            match choice % 8 {
                0 if self.marked || choice == 0 => Message::End { cursor: self.sent, root: [0; 32] },
                0 => Message::Mark(volume.clone()),
                _ => Message::Data { from: self.sent, cursor: self.sent + 1, batch: vec![] },
            }
        } else if self.mode == Mode::Compare && self.compared < clusters && choice.is_multiple_of(2) {
            let first = self.compared;
            let count = (clusters - first).min(1 + u64::from(choice / 64));
            Message::Values(Values { first, values: vec![None; usize::try_from(count).expect("few")] })
        } else {
            let last = if self.mode == Mode::Compare { self.compared } else { clusters };
            if self.sent < last && choice % 16 != 1 {
                // Now and then the same once more.
                let ahead = if choice == 255 { 0 } else { 1 + u64::from(choice % 2) };
                Message::Data { from: self.sent, cursor: (self.sent + ahead).min(last), batch: vec![] }
            } else {
                Message::End { cursor: self.sent, root: [0; 32] }
            }
        };
        Some(Frame { volume: u16::try_from(self.current).expect("few"), message })
    }

    fn end(&mut self, at: usize, how: u8) {
        let action = self.under_way.swap_remove(at);
        let did = match action {
            Do::Look(volumes) => {
                self.right.clear();
                let have = |(at, volume): (usize, &OfferedVolume)| {
                    let shown = how >> at & 3 == 3;
                    let newest = NewestSnapshot { uid: volume.uid, root: [0; 32], size: volume.size };
                    HaveVolume { newest: shown.then_some(newest), ..HaveVolume::default() }
                };
                let have: Vec<_> = volumes.iter().enumerate().map(have).collect();
                let shown = have.iter().zip(&volumes).enumerate().filter(|(_, (have, v))| have.shows(v.uid));
                self.right.extend(shown.map(|(at, _)| at));
                self.skip();
                Did::Looked(have)
            }
            Do::Prepare { volume, .. } => {
                let clusters = cluster_count(self.volumes[volume].size);
                let resumes = self.mode != Mode::Mirror && how.is_multiple_of(4);
                let cursor = if resumes { u64::from(how).min(clusters) } else { 0 };
                Did::Ready(Ready { token: [1; 16], cursor, complete: cursor == clusters })
            }
            Do::Apply { cursor, .. } => Did::Applied(cursor),
            Do::Mark { .. } => Did::Marked,
            Do::Confirm { cursor, .. } => Did::Confirmed(cursor),
            Do::Compare { values, .. } => {
                Did::Compared(Wanted { first: values.first, differs: vec![true; values.values.len()] })
            }
            Do::Verify { volume, .. } => {
                self.right.insert(volume);
                Did::Verified
            }
            Do::Publish => Did::Published,
            Do::Fetch(fetch) => {
                assert!(fetch.clusters.len() <= FETCH_CLUSTERS_MAX && !fetch.clusters.is_empty());
                Did::Fetched(fetch.clusters.iter().map(|(cluster, _)| (*cluster, Found::Missing)).collect())
            }
            Do::Send(_) | Do::Over(_) | Do::Keep(_) => unreachable!("done at once"),
        };
        self.target.did(did, self.now);
        self.drain();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Honest(choice) => {
                if let Some(frame) = self.honest(choice) {
                    self.say(frame);
                }
            }
            Step::Offer(volumes) => {
                if self.target.is_idle() {
                    self.say(Frame::session(Message::Offer(volumes)));
                }
            }
            Step::Any(frame) => self.say(frame),
            Step::Ended(..) | Step::Failed(_) if self.under_way.is_empty() => {}
            Step::Ended(at, how) => self.end(at.index(self.under_way.len()), how),
            Step::Failed(at) => {
                self.under_way.swap_remove(at.index(self.under_way.len()));
                self.target.did(Did::Failed(Refusal::new(Code::Failed, "a fault")), self.now);
            }
            Step::Tick(ms) => {
                self.now += ms;
                self.target.tick(self.now);
            }
            Step::Unreadable => self.target.unreadable("no frame".to_owned()),
        }
        self.drain();
    }

    /// Whatever is under way ends; then the target is over, or listens.
    fn finish(&mut self) {
        for _ in 0..1000 {
            if self.under_way.is_empty() {
                assert!(self.target.wants_frames() || self.over);
                return;
            }
            self.end(0, 1);
        }
        panic!("something is begun again and again");
    }
}

proptest! {
    #![proptest_config(config())]

    /// Most begin well: what is said later would otherwise be heard too seldom.
    #[test]
    fn target_session(
        volumes in vec(offered(), 1..3),
        prelude in 0..24_u8,
        steps in vec(step(), 0..120),
    ) {
        let mut world = World::new();
        for round in 0..prelude {
            let frame = match world.honest(round.wrapping_mul(37)) {
                Some(frame) => frame,
                None => Frame::session(Message::Offer(volumes.clone())),
            };
            if world.under_way.is_empty() {
                world.say(frame);
            } else {
                world.end(0, 1);
            }
        }
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}
