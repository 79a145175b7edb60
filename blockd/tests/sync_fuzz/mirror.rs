//! Our mirror, a target that says anything, and a host that has batches, snapshots and roots at any time.

use blockd::sync::mirror::{Do, MirrorSource};
use blockd::sync::session::{Link, Side, proof};
use blockd::sync::wire::{
    Code, Frame, HaveVolume, Hello, Message, NewestSnapshot, OfferedVolume, Ready, Refusal,
};
use blockd::units::{HostId, SnapshotUid};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::config;
use crate::frames::{frame, offered};

const PEER: HostId = HostId([1; 16]);
const SECRET: [u8; 32] = [7; 32];
const ROOT: [u8; 32] = [3; 32];

#[derive(Clone, Debug)]
enum Step {
    /// What an honest target would say next.
    Honest(u8),
    Any(Frame),
    Batch,
    Mark,
    Root,
    Tick(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => any::<u8>().prop_map(Step::Honest),
        1 => frame().prop_map(Step::Any),
        20 => Just(Step::Batch),
        8 => Just(Step::Mark),
        8 => Just(Step::Root),
        8 => (0..9_000_u64).prop_map(Step::Tick),
    ]
}

struct World {
    source: MirrorSource,
    offer: OfferedVolume,
    now: u64,
    /// What was said and is not answered, oldest first.
    said: Vec<Message>,
    theirs: Option<Hello>,
    greeted: bool,
    /// Batches that are on their way.
    on_way: Vec<u64>,
    next: u64,
    marked: bool,
    over: bool,
    published: u32,
}

impl World {
    fn start(offer: OfferedVolume) -> Self {
        let link = Link { host: HostId([2; 16]), peer: PEER, secret: SECRET, nonce: [9; 32], version_min: 1 };
        let offer = OfferedVolume { candidates: vec![SnapshotUid([5; 16])], ..offer };
        let mut world = Self {
            source: MirrorSource::start(link, 0),
            offer,
            now: 0,
            said: Vec::new(),
            theirs: None,
            greeted: false,
            on_way: Vec::new(),
            next: 0,
            marked: false,
            over: false,
            published: 0,
        };
        world.drain();
        world
    }

    fn drain(&mut self) {
        for action in self.source.take() {
            assert!(!self.over, "{action:?} after the end");
            match action {
                Do::Send(frame) => match frame.message {
                    Message::Hello(hello) => self.theirs = Some(hello),
                    Message::Ping | Message::Bind { .. } => {}
                    Message::End { .. } => {
                        assert!(self.on_way.is_empty(), "an end with batches on their way");
                        self.said.push(Message::End { cursor: 0, root: ROOT });
                    }
                    other => self.said.push(other),
                },
                Do::Offer => self.source.offer(self.offer.clone(), None, self.now),
                Do::GoOn => assert!(self.source.is_mirroring()),
                Do::Written(number) => {
                    assert_eq!(self.on_way.first(), Some(&number), "in order, each once");
                    self.on_way.remove(0);
                }
                Do::Published => {
                    assert!(std::mem::take(&mut self.marked), "nothing was marked");
                    self.published += 1;
                    self.source.offer(self.offer.clone(), Some(ROOT), self.now);
                }
                Do::Over(_) => self.over = true,
            }
        }
    }

    /// Offers made while draining have something to say.
    fn settle(&mut self) {
        for _ in 0..3 {
            self.drain();
        }
    }

    fn honest(&mut self, choice: u8) -> Option<Message> {
        let hello = Hello { version_min: 1, version_max: 1, compression: 1, host: PEER, nonce: [4; 32] };
        let theirs = self.theirs.clone()?;
        if !self.greeted {
            self.greeted = true;
            self.said.insert(0, Message::Ping);
            return Some(Message::Hello(hello));
        }
        let said = (!self.said.is_empty()).then(|| self.said.remove(0))?;
        Some(match said {
            // The binding.
            Message::Ping => {
                Message::Bind { version: 1, proof: proof(&SECRET, Side::Target, 1, &theirs, &hello) }
            }
            Message::Offer(_) => {
                let root = if choice == 0 { [0; 32] } else { ROOT };
                let newest = NewestSnapshot { uid: SnapshotUid([5; 16]), root, size: 1 };
                Message::Have(HaveVolume { known: vec![(0, root)], newest: Some(newest), received: None })
            }
            Message::Begin(_) => Message::Ready(Ready { token: [1; 16], cursor: 0, complete: false }),
            Message::Data { cursor, .. } => {
                // Several at once.
                let mut last = cursor;
                while choice.is_multiple_of(2)
                    && let Some(&Message::Data { cursor, .. }) = self.said.first()
                {
                    self.said.remove(0);
                    last = cursor;
                }
                Message::Confirmed(last)
            }
            Message::Mark(_) => Message::Marked,
            Message::End { .. } => Message::Verified,
            Message::Publish => Message::Published,
            other => Message::Refuse(Refusal::new(Code::Failed, other.name())),
        })
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Honest(choice) => {
                if let Some(message) = self.honest(choice) {
                    self.source.received(Frame::session(message), self.now);
                }
            }
            Step::Any(frame) => self.source.received(frame, self.now),
            Step::Batch if self.source.is_mirroring() && self.on_way.len() < 4 => {
                self.next += 1;
                self.on_way.push(self.next);
                self.source.batch(self.next, vec![0], self.now);
            }
            Step::Mark if self.source.is_mirroring() && self.on_way.is_empty() => {
                self.marked = true;
                self.source.mark(self.offer.clone(), self.now);
            }
            Step::Root => self.source.root(ROOT, self.now),
            Step::Tick(ms) => {
                self.now += ms;
                self.source.tick(self.now);
            }
            Step::Batch | Step::Mark => {}
        }
        self.settle();
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_mirror_is_never_confused(offer in offered(), steps in vec(step(), 1..120)) {
        let mut world = World::start(offer);
        for step in steps {
            world.step(step);
        }
    }
}

/// With an honest target every batch is written, and every mark is shown.
#[test]
fn an_honest_target_gets_all_of_it() {
    let uid = SnapshotUid([6; 16]);
    let offer = OfferedVolume {
        lineage: blockd::units::Lineage([1; 16]),
        volume: "web".to_owned(),
        uid,
        point: blockd::catalog::format::Point { epoch: 1, sequence: 2 },
        name: "mirror".to_owned(),
        size: 1 << 20,
        created_ms: 1,
        candidates: Vec::new(),
    };
    let mut world = World::start(offer);
    for round in 1..=3 {
        for _ in 0..10 {
            world.step(Step::Honest(1));
        }
        for _ in 0..4 {
            world.step(Step::Batch);
        }
        for _ in 0..6 {
            world.step(Step::Honest(2));
        }
        world.step(Step::Mark);
        world.step(Step::Root);
        for _ in 0..6 {
            world.step(Step::Honest(1));
        }
        assert_eq!((world.published, world.over, world.on_way.len()), (round, false, 0));
    }
}
