//! The simulator: events in the order of virtual time.

mod check;
mod disks;
mod faults;
mod guests;
mod machines;
mod messages;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use fastrand::Rng;
use fixtures::sim::seeds::Seen;
use vmctl::cutover::destination::Destination;
use vmctl::cutover::event::{
    Answer, BlockdKind, BlockdOp, DestinationEvent, DestinationOutcome, DestinationQemu, SourceEvent,
    SourceOutcome, SourceQemu,
};
use vmctl::cutover::ids::{MoveId, Text};
use vmctl::cutover::source::Source;

use crate::blockds::{Blockds, Content};
use crate::chance::{Chance, MS, Micros, S};
use crate::guest::Pair;
use crate::twins::setup;

/// Faults stop then; what is not over a minute later never will be.
const CALM: Micros = 20 * S;
const END: Micros = 80 * S;
const POKE_EVERY: Micros = 100 * MS;
/// The driver's bound: a guest that is stopped for so long is worth going back.
const STOPPED_MAX: Micros = 3 * S;

/// What must be seen of many cases.
pub const EVERYTHING: [&str; 16] = [
    "moved",
    "aborted",
    "started cold",
    "agent crashed",
    "QEMU crashed",
    "blockd crashed between moves",
    "blockd crashed while frozen",
    "blockd crashed after the release",
    "blockd crashed while it expected",
    "blockd crashed around an abort",
    "power cuts",
    "cuts",
    "writes",
    "writes that waited",
    "S resumed alone",
    "S did not hear that T has everything",
];

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Deliver(usize, Vec<u8>),
    /// blockd of a host does what was asked by the agent of that incarnation.
    Do(usize, u32, u64, MoveId, BlockdOp),
    Answered(usize, u32, MoveId, BlockdKind, Answer),
    SourceSays(usize, u32, MoveId, SourceQemu),
    DestinationSays(usize, u32, MoveId, DestinationQemu),
    Link(usize, u32, bool),
    Poke(usize, u32),
    Begin(usize, u32, MoveId),
    Alone,
    Write,
    NextMove,
    Fault,
    Heal,
    Calm,
    Timeout(usize, u32, MoveId),
}

#[derive(Debug)]
enum Machine {
    Source(Source),
    Destination(Destination),
}

#[derive(Debug, Clone)]
enum End {
    Source(SourceOutcome),
    Destination(DestinationOutcome),
}

#[derive(Debug, Default)]
struct Agent {
    incarnation: u32,
    open: BTreeMap<MoveId, Machine>,
    ended: BTreeMap<MoveId, End>,
}

/// See the module.
pub struct Sim<B> {
    rng: Rng,
    chance: Chance,
    now: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    agents: [Agent; 2],
    blockds: B,
    /// QEMU's words keep their order.
    said: [Micros; 2],
    pairs: BTreeMap<MoveId, Pair>,
    link: bool,
    owner: usize,
    moves: u8,
    acked: Content,
    verbose: bool,
    seen: Seen,
}

impl<B: Blockds> Sim<B> {
    /// The case of a seed; it may tell what happens.
    pub fn new(seed: u64, verbose: bool, blockds: B) -> Self {
        let mut rng = Rng::with_seed(seed);
        let chance = Chance::draw(&mut rng, B::MOVES_MAX);
        let mut sim = Self {
            rng,
            chance,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            agents: Default::default(),
            blockds,
            said: [0; 2],
            pairs: BTreeMap::new(),
            link: true,
            owner: 0,
            moves: 0,
            acked: 0,
            verbose,
            seen: Seen::default(),
        };
        for (after, event) in [
            (0, Event::NextMove),
            (MS, Event::Alone),
            (MS, Event::Write),
            (CALM, Event::Calm),
            (0, Event::Poke(0, 0)),
            (0, Event::Poke(1, 0)),
        ] {
            sim.at(after, event);
        }
        if let Some(every) = sim.chance.faults_every {
            sim.at(every, Event::Fault);
        }
        sim
    }

    /// Until all is over. How often what happened.
    ///
    /// # Panics
    /// When something is not as it must be.
    pub fn run(mut self) -> Seen {
        while let Some(Reverse((at, place))) = self.queue.pop() {
            let event = self.events.remove(&place).expect("every place has an event");
            self.now = at;
            if at > END {
                break;
            }
            if self.verbose && !matches!(event, Event::Write | Event::Alone | Event::Poke(..)) {
                println!("{at:>9} {event:?}");
            }
            self.blockds.advance(at);
            self.happens(event);
            self.check();
            if (at > CALM || self.moves == self.chance.moves) && self.is_over() {
                break;
            }
        }
        self.check_end();
        self.seen.add(&self.blockds.take_seen());
        self.seen
    }

    fn at(&mut self, after: Micros, event: Event) {
        self.queue.push(Reverse((self.now + after, self.next)));
        self.events.insert(self.next, event);
        self.next += 1;
    }

    fn soon(&mut self) -> Micros {
        self.rng.u64(0..=2 * MS)
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Deliver(host, bytes) => self.deliver(host, &bytes),
            Event::Do(host, agent, blockd, id, op) => self.blockd_does(host, agent, blockd, id, &op),
            Event::Answered(host, agent, id, kind, answer) => {
                self.source(host, agent, id, SourceEvent::Blockd(kind, answer.clone()));
                self.destination(host, agent, id, DestinationEvent::Blockd(kind, answer));
            }
            Event::SourceSays(host, agent, id, report) => {
                self.source(host, agent, id, SourceEvent::Qemu(report));
            }
            Event::DestinationSays(host, agent, id, report) => {
                self.destination(host, agent, id, DestinationEvent::Qemu(report));
            }
            Event::Link(host, agent, up) => self.tell_link(host, agent, up),
            Event::Poke(host, _) => {
                let agent = self.agents[host].incarnation;
                for id in self.open(host) {
                    self.source(host, agent, id, SourceEvent::Poke);
                    self.destination(host, agent, id, DestinationEvent::Poke);
                }
                self.at(POKE_EVERY, Event::Poke(host, agent));
            }
            Event::Begin(host, agent, id) => self.begin(host, agent, id),
            Event::Alone => self.alone(),
            Event::Write => self.write(),
            Event::NextMove => self.next_move(),
            Event::Fault => self.fault(),
            Event::Heal => self.heal(),
            Event::Calm => {
                self.chance.calm();
                self.blockds.calm();
                self.heal();
            }
            Event::Timeout(host, agent, id) => {
                self.source(host, agent, id, SourceEvent::Abort(Text::new("too slow")));
            }
        }
    }

    fn open(&self, host: usize) -> Vec<MoveId> {
        self.agents[host].open.keys().copied().collect()
    }

    fn next_move(&mut self) {
        let host = self.owner;
        let free = self.agents[host].open.is_empty() && self.blockds.accepts(host);
        if self.moves == self.chance.moves || !free || self.now > CALM {
            return;
        }
        self.moves += 1;
        if self.link {
            self.blockds.round(host);
            self.power_may_be_gone();
        }
        let epoch = self.blockds.epoch(host);
        let setup = setup(self.moves, epoch);
        let id = setup.id;
        let memory = self.take_guest();
        self.blockds.open(host, epoch);
        self.pairs.insert(id, Pair::new(id, host, epoch, memory));
        let (source, actions) = Source::start(setup);
        self.agents[host].open.insert(id, Machine::Source(source));
        self.source_does(host, id, actions);
    }

    fn is_over(&self) -> bool {
        self.agents.iter().all(|agent| agent.open.is_empty())
    }
}
