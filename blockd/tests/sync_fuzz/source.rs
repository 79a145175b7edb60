//! Our source, a target that says anything, and a host that ends operations in any way.

use blockd::catalog::format::Point;
use blockd::sync::session::{Link, Side, proof};
use blockd::sync::source::{BATCH_COST_MIN, Brought, Did, Do, Flow, Read, Source};
use blockd::sync::wire::{
    Code, Frame, HaveVolume, Hello, Message, Mode, OfferedVolume, Ready, Refusal, Values, Wanted,
};
use blockd::units::{CLUSTER_BYTES, HostId, Lineage, SnapshotUid, cluster_count};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::config;
use crate::frames::{frame, have, offered};

const PEER: HostId = HostId([1; 16]);
const SECRET: [u8; 32] = [7; 32];
const FLOW: Flow = Flow { window_bytes: 4 * CLUSTER_BYTES as usize, batch_bytes: CLUSTER_BYTES as usize };

#[derive(Clone, Debug)]
enum Step {
    /// What an honest target would say next, as far as it has a choice.
    Honest(u8),
    Have(HaveVolume),
    Any(Frame),
    Ended(u8),
    Failed,
    Tick(u64),
    Unreadable,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        40 => any::<u8>().prop_map(Step::Honest),
        6 => have().prop_map(Step::Have),
        2 => frame().prop_map(Step::Any),
        40 => any::<u8>().prop_map(Step::Ended),
        1 => Just(Step::Failed),
        8 => (0..9_000_u64).prop_map(Step::Tick),
        1 => Just(Step::Unreadable),
    ]
}

fn volumes() -> impl Strategy<Value = Vec<Brought>> {
    let brought = (offered(), 1..12_u64, 0..4_usize).prop_map(|(offer, clusters, bases)| {
        let bases = bases.min(offer.candidates.len());
        Brought { offer: OfferedVolume { size: clusters * CLUSTER_BYTES, ..offer }, bases }
    });
    vec(brought, 1..4).prop_map(|mut all| {
        for (number, brought) in (0..).zip(&mut all) {
            brought.offer.lineage = Lineage([number; 16]);
        }
        all
    })
}

struct World {
    source: Source,
    volumes: Vec<Brought>,
    under_way: Option<Do>,
    /// The target's view.
    theirs: Option<Hello>,
    bound: bool,
    offered: bool,
    haves: usize,
    begun: Option<(u16, Mode)>,
    asked: Option<Values>,
    sent: Vec<u64>,
    last: u64,
    ended: Option<u16>,
    publishes: bool,
    /// The reader's.
    next: u64,
    compared: u64,
    selected: u64,
    over: bool,
    now: u64,
}

impl World {
    fn new(volumes: Vec<Brought>) -> Self {
        let link = Link { host: HostId([2; 16]), peer: PEER, secret: SECRET, nonce: [4; 32], version_min: 1 };
        let mut world = Self {
            source: Source::start(link, volumes.clone(), FLOW, 0),
            volumes,
            under_way: None,
            theirs: None,
            bound: false,
            offered: false,
            haves: 0,
            begun: None,
            asked: None,
            sent: Vec::new(),
            last: 0,
            ended: None,
            publishes: false,
            next: 0,
            compared: 0,
            selected: 0,
            over: false,
            now: 0,
        };
        world.drain();
        world
    }

    fn drain(&mut self) {
        let mut refused = None;
        for action in self.source.take() {
            assert!(!self.over, "{action:?} after the end");
            match action {
                Do::Send(frame) => {
                    assert!(refused.is_none(), "{frame:?} after a refusal");
                    if let Message::Refuse(refusal) = &frame.message {
                        refused = Some(refusal.clone());
                    }
                    self.heard(frame);
                }
                Do::Over(result) => {
                    assert!(refused.is_none_or(|said| Err(said) == result));
                    assert!(result.is_err() || self.publishes, "well, without a publication");
                    (self.over, refused) = (true, None);
                }
                other => self.begin(other),
            }
        }
        assert!(refused.is_none(), "refused, and not over");
        assert_eq!(self.source.is_over(), self.over);
        assert!(self.source.unconfirmed_bytes() <= FLOW.window_bytes);
    }

    fn heard(&mut self, frame: Frame) {
        match frame.message {
            Message::Hello(hello) => self.theirs = Some(hello),
            Message::Bind { .. } => self.bound = true,
            Message::Offer(_) => self.offered = true,
            Message::Begin(begin) => {
                (self.begun, self.ended) = (Some((frame.volume, begin.mode)), None);
                self.sent.clear();
            }
            Message::Data { from, cursor, .. } => {
                assert_eq!(std::mem::replace(&mut self.last, cursor), from, "nothing is left out");
                self.sent.push(cursor);
                assert!(self.sent.len() <= FLOW.window_bytes / BATCH_COST_MIN, "{} batches", self.sent.len());
            }
            Message::Values(values) => self.asked = Some(values),
            Message::End { cursor, .. } => {
                assert_eq!(cursor, self.last);
                self.ended = Some(frame.volume);
            }
            Message::Publish => self.publishes = true,
            _ => {}
        }
    }

    fn begin(&mut self, action: Do) {
        assert!(self.under_way.is_none(), "{action:?} beside {:?}", self.under_way);
        match &action {
            Do::Open(plan) => {
                let offer = &self.volumes[plan.volume].offer;
                assert!(plan.from <= cluster_count(offer.size));
                assert!(plan.known.is_sorted_by(|one, next| one < next), "{:?}", plan.known);
                assert!(plan.known.iter().all(|place| usize::from(*place) < offer.candidates.len()));
                assert!(plan.base.is_none_or(|base| offer.candidates.contains(&base)));
                (self.next, self.compared, self.selected) = (plan.from, plan.from, 0);
                self.last = plan.from;
            }
            Do::Select(wanted) => {
                let asked = self.asked.take().expect("values were sent");
                let (first, count) = (asked.first, asked.values.len());
                assert_eq!((wanted.first, wanted.differs.len()), (first, count), "what was not asked");
                self.selected = wanted.differs.iter().filter(|differs| **differs).count() as u64;
            }
            _ => {}
        }
        self.under_way = Some(action);
    }

    fn say(&mut self, frame: Frame) {
        self.source.received(frame, self.now);
        self.drain();
    }

    fn honest(&mut self, choice: u8) -> Option<Frame> {
        let hello = Hello { version_min: 1, version_max: 1, compression: 1, host: PEER, nonce: [3; 32] };
        let theirs = self.theirs.clone()?;
        let of = |volume, message| Some(Frame { volume, message });
        if !self.bound {
            return of(0, Message::Hello(hello));
        }
        if !self.offered {
            let proof = proof(&SECRET, Side::Target, 1, &theirs, &hello);
            return of(0, Message::Bind { version: 1, proof });
        }
        if self.publishes {
            return of(0, Message::Published);
        }
        let Some((volume, _)) = self.begun else {
            self.haves += 1;
            let volume = u16::try_from(self.haves - 1).expect("few");
            return of(volume, Message::Have(HaveVolume::default()));
        };
        if let Some(ended) = self.ended {
            return of(ended, Message::Verified);
        }
        if !self.sent.is_empty() {
            let place = usize::from(choice) % self.sent.len();
            let cursor = self.sent.drain(..=place).next_back().expect("sent");
            return of(volume, Message::Confirmed(cursor));
        }
        if let Some(asked) = &self.asked {
            let differs = (0..asked.values.len()).map(|at| choice >> (at % 8) & 1 == 1).collect();
            return of(volume, Message::Wanted(Wanted { first: asked.first, differs }));
        }
        let clusters = cluster_count(self.volumes[usize::from(volume)].offer.size);
        let cursor = if choice.is_multiple_of(4) { u64::from(choice / 4).min(clusters) } else { 0 };
        of(volume, Message::Ready(Ready { token: [1; 16], cursor, complete: cursor == clusters }))
    }

    fn end(&mut self, how: u8) {
        let Some(action) = self.under_way.take() else { return };
        let (volume, mode) = self.begun.expect("something was begun");
        let clusters = cluster_count(self.volumes[usize::from(volume)].offer.size);
        let did = match action {
            Do::Open(_) | Do::Select(_) => Did::Opened,
            Do::Read => Did::Batch(self.read(how, mode, clusters)),
            Do::ReadValues => Did::Values((self.compared < clusters).then(|| {
                let first = self.compared;
                let count = (clusters - first).min(1 + u64::from(how % 4));
                self.compared += count;
                Values { first, values: vec![None; usize::try_from(count).expect("few")] }
            })),
            Do::Root => Did::Root([how; 32]),
            Do::Send(_) | Do::Over(_) => unreachable!("done at once"),
        };
        self.source.did(did, self.now);
        self.drain();
    }

    /// A cluster, or some, or only zeroes, of which nothing is on its way.
    fn read(&mut self, how: u8, mode: Mode, clusters: u64) -> Option<Read> {
        let left = if mode == Mode::Compare { self.selected } else { clusters - self.next };
        if left == 0 {
            return None;
        }
        self.selected = self.selected.saturating_sub(1);
        self.next = (self.next + 1 + u64::from(how % 2)).min(clusters);
        let data_bytes = if how.is_multiple_of(3) { 0 } else { FLOW.batch_bytes };
        Some(Read { cursor: self.next, data_bytes, batch: vec![] })
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Honest(choice) => {
                if let Some(frame) = self.honest(choice) {
                    self.say(frame);
                }
            }
            Step::Have(have) => {
                if self.offered && self.begun.is_none() {
                    self.haves += 1;
                    let volume = u16::try_from(self.haves - 1).expect("few");
                    self.say(Frame { volume, message: Message::Have(have) });
                }
            }
            Step::Any(frame) => self.say(frame),
            Step::Ended(how) => self.end(how),
            Step::Failed => {
                if self.under_way.take().is_some() {
                    self.source.did(Did::Failed(Refusal::new(Code::Failed, "a fault")), self.now);
                }
            }
            Step::Tick(ms) => {
                self.now += ms;
                self.source.tick(self.now);
            }
            Step::Unreadable => self.source.unreadable("no frame".to_owned()),
        }
        self.drain();
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn source_session(volumes in volumes(), steps in vec(step(), 0..160)) {
        let mut world = World::new(volumes);
        for step in steps {
            world.step(step);
        }
    }

    /// Without lies and faults it comes to its end: nothing that the source waits for is forgotten.
    #[test]
    fn an_honest_session_ends_well(
        volumes in volumes(),
        steps in vec((any::<u8>(), any::<u8>()), 2000),
    ) {
        let mut world = World::new(volumes);
        for (choice, how) in steps {
            let frame = if world.under_way.is_none() { world.honest(choice) } else { None };
            match frame {
                Some(frame) => world.say(frame),
                None => world.end(how),
            }
            if world.over {
                return Ok(());
            }
        }
        prop_assert!(false, "no end: {:?}", world.source);
    }
}

/// Batches of nothing but zeroes are on their way in a limited number too: each has its place in the source's memory.
#[test]
fn batches_of_zeroes_fill_the_window() {
    let offer = OfferedVolume {
        lineage: Lineage([1; 16]),
        volume: "v".to_owned(),
        uid: SnapshotUid([1; 16]),
        point: Point { epoch: 1, sequence: 1 },
        name: "s".to_owned(),
        size: 1000 * CLUSTER_BYTES,
        created_ms: 1,
        candidates: Vec::new(),
    };
    let mut world = World::new(vec![Brought { offer, bases: 0 }]);
    while world.under_way.is_none() {
        let frame = world.honest(1).expect("it waits for the target");
        world.say(frame);
    }
    while world.under_way.is_some() {
        world.end(0);
    }
    assert_eq!(world.sent.len(), FLOW.window_bytes / BATCH_COST_MIN - FLOW.batch_bytes / BATCH_COST_MIN + 1);
}
