//! The simulator: events in the order of virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use fastrand::Rng;
use vmctl::cutover::codec::{Decoder, encode};
use vmctl::cutover::destination::Destination;
use vmctl::cutover::event::{
    Answer, BlockdKind, BlockdOp, DestinationAction, DestinationEntry, DestinationEvent, DestinationOutcome,
    DestinationQemu, DestinationQemuOp, Note, SourceAction, SourceEntry, SourceEvent, SourceOutcome,
    SourceQemu, SourceQemuOp,
};
use vmctl::cutover::ids::{MoveId, Text};
use vmctl::cutover::known;
use vmctl::cutover::message::{Envelope, Message};
use vmctl::cutover::record::{Setup, Stage};
use vmctl::cutover::source::Source;

use crate::chance::{Chance, MS, Micros, S};
use crate::guest::Pair;
use crate::twins::{Alone, Blockd, Content, setup, ship};

/// Faults stop then; what is not over a minute later never will be.
const CALM: Micros = 20 * S;
const END: Micros = 80 * S;
const POKE_EVERY: Micros = 100 * MS;
/// The driver's bound: a guest that is stopped for so long is worth going back.
const STOPPED_MAX: Micros = 3 * S;

/// What happened in all.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    moved: u64,
    aborted: u64,
    cold: u64,
    crashes: u64,
    cuts: u64,
    writes: u64,
    /// The record said Released to an agent that had wanted to abort.
    forward: u64,
    resumed_alone: u64,
    unheard: u64,
}

impl Seen {
    fn all(&mut self) -> [&mut u64; 9] {
        [
            &mut self.moved,
            &mut self.aborted,
            &mut self.cold,
            &mut self.crashes,
            &mut self.cuts,
            &mut self.writes,
            &mut self.forward,
            &mut self.resumed_alone,
            &mut self.unheard,
        ]
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let others = [
            other.moved,
            other.aborted,
            other.cold,
            other.crashes,
            other.cuts,
            other.writes,
            other.forward,
            other.resumed_alone,
            other.unheard,
        ];
        for (sum, other) in self.all().into_iter().zip(others) {
            *sum += other;
        }
    }

    pub(crate) fn assert_everything_happened(&mut self) {
        for (place, count) in self.all().into_iter().enumerate() {
            assert!(*count > 0, "number {place} of what is counted never happened");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Deliver(usize, Vec<u8>),
    /// blockd of a host does what was asked by the agent of that incarnation.
    Do(usize, u32, u32, MoveId, BlockdOp),
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

pub(crate) struct Sim {
    rng: Rng,
    chance: Chance,
    now: Micros,
    queue: BinaryHeap<Reverse<(Micros, u64)>>,
    events: BTreeMap<u64, Event>,
    next: u64,
    agents: [Agent; 2],
    blockds: [Blockd; 2],
    blockd_incarnation: [u32; 2],
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

impl Sim {
    pub(crate) fn new(seed: u64, verbose: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let chance = Chance::draw(&mut rng);
        let mut sim = Self {
            rng,
            chance,
            now: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            next: 0,
            agents: Default::default(),
            blockds: [Blockd::new(true), Blockd::new(false)],
            blockd_incarnation: [0; 2],
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

    pub(crate) fn run(mut self) -> Seen {
        while let Some(Reverse((at, place))) = self.queue.pop() {
            let event = self.events.remove(&place).expect("every place has an event");
            self.now = at;
            if at > END {
                break;
            }
            if self.verbose && !matches!(event, Event::Write | Event::Alone | Event::Poke(..)) {
                println!("{at:>9} {event:?}");
            }
            self.happens(event);
            self.check();
            if (at > CALM || self.moves == self.chance.moves) && self.is_over() {
                break;
            }
        }
        self.check_end();
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

    fn source(&mut self, host: usize, agent: u32, id: MoveId, event: SourceEvent) {
        if self.agents[host].incarnation != agent {
            return;
        }
        if let Some(Machine::Source(source)) = self.agents[host].open.get_mut(&id) {
            let was_aborting = source.state_name() == "aborting";
            let actions = source.on(event);
            self.seen.forward += u64::from(was_aborting && source.is_committed());
            self.source_does(host, id, actions);
        }
    }

    fn destination(&mut self, host: usize, agent: u32, id: MoveId, event: DestinationEvent) {
        if self.agents[host].incarnation != agent {
            return;
        }
        if let Some(Machine::Destination(destination)) = self.agents[host].open.get_mut(&id) {
            let actions = destination.on(event);
            self.destination_does(host, id, actions);
        }
    }

    fn source_does(&mut self, host: usize, id: MoveId, actions: Vec<SourceAction>) {
        let agent = self.agents[host].incarnation;
        for action in actions {
            if self.verbose {
                println!("          {host} source: {action:?}");
            }
            match action {
                SourceAction::Send(message) => self.send(host, id, message),
                SourceAction::Blockd(op) => self.ask_blockd(host, id, op),
                SourceAction::Qemu(op) => self.source_qemu(host, id, op),
                SourceAction::Journal(SourceEntry::Ended(outcome)) => {
                    self.agents[host].ended.insert(id, End::Source(outcome));
                }
                SourceAction::Ready => {
                    let after = self.rng.u64(0..200 * MS);
                    self.at(after, Event::Begin(host, agent, id));
                }
                SourceAction::Finished(outcome) => {
                    self.agents[host].open.remove(&id);
                    self.source_ended(host, id, &outcome);
                }
                SourceAction::Note(Note::Contradiction(text)) => panic!("{text}"),
                SourceAction::Journal(SourceEntry::Started(_))
                | SourceAction::Mark(_)
                | SourceAction::Note(_) => {}
            }
        }
    }

    fn source_ended(&mut self, host: usize, id: MoveId, outcome: &SourceOutcome) {
        match outcome {
            SourceOutcome::Moved(_) => self.seen.moved += 1,
            SourceOutcome::Aborted { guest, .. } => {
                self.seen.aborted += 1;
                self.supervise(host, id, *guest);
            }
        }
        self.at(20 * MS, Event::NextMove);
    }

    /// What an agent does with a guest of its own after a move: one that has died is started again, from the disk; one that an
    /// error stopped, which was on its way when the volume was thawed, goes on.
    fn supervise(&mut self, host: usize, id: MoveId, guest: SourceQemu) {
        let content = self.blockds[host].content;
        let pair = self.pairs.get_mut(&id).expect("a pair for each move");
        if guest.is_dead() || pair.qemus.s.is_dead() {
            pair.memory_s = content;
        } else {
            let stopped = !matches!(pair.qemus.s, SourceQemu::Running | SourceQemu::Paused);
            assert!(!stopped, "an aborted move ends with S {:?}", pair.qemus.s);
        }
        pair.qemus.s = SourceQemu::Running;
    }

    fn destination_does(&mut self, host: usize, id: MoveId, actions: Vec<DestinationAction>) {
        for action in actions {
            if self.verbose {
                println!("          {host} destination: {action:?}");
            }
            match action {
                DestinationAction::Send(message) => self.send(host, id, message),
                DestinationAction::Blockd(op) => self.ask_blockd(host, id, op),
                DestinationAction::Qemu(op) => self.destination_qemu(host, id, op),
                DestinationAction::Journal(DestinationEntry::Ended(outcome)) => {
                    self.agents[host].ended.insert(id, End::Destination(outcome));
                }
                DestinationAction::Finished(outcome) => {
                    self.agents[host].open.remove(&id);
                    if let DestinationOutcome::Here { cold, .. } = outcome {
                        self.seen.cold += u64::from(cold);
                        // It has crashed after it had said that it runs.
                        let qemus = &mut self.pairs.get_mut(&id).expect("a pair for each move").qemus;
                        if qemus.t == DestinationQemu::Gone {
                            qemus.t_does(DestinationQemuOp::StartCold);
                        }
                        self.owner = host;
                        self.at(20 * MS, Event::NextMove);
                    }
                }
                DestinationAction::Note(Note::Contradiction(text)) => panic!("{text}"),
                DestinationAction::Note(Note::RanUnowned) => panic!("T ran without owning the volumes"),
                DestinationAction::Journal(DestinationEntry::Preparing(_))
                | DestinationAction::Mark(_)
                | DestinationAction::Note(_) => {}
            }
        }
    }

    fn send(&mut self, host: usize, id: MoveId, message: Message) {
        let bytes = encode(&Envelope { id, message });
        let copies = 1 + u32::from(self.rng.f64() < self.chance.twice);
        for _ in 0..copies {
            if self.link && self.rng.f64() >= self.chance.loss {
                let after = self.rng.u64(0..=self.chance.delay_max);
                self.at(after, Event::Deliver(1 - host, bytes.clone()));
            }
        }
    }

    fn deliver(&mut self, host: usize, bytes: &[u8]) {
        if !self.link {
            return;
        }
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        let Envelope { id, message } = decoder.next().expect("our own bytes").expect("all of them");
        let agent = self.agents[host].incarnation;
        match self.agents[host].open.get(&id) {
            Some(Machine::Source(_)) => self.source(host, agent, id, SourceEvent::Message(id, message)),
            Some(Machine::Destination(_)) => {
                self.destination(host, agent, id, DestinationEvent::Message(id, message));
            }
            None => self.unknown(host, id, message),
        }
    }

    /// A message for which there is no machine.
    fn unknown(&mut self, host: usize, id: MoveId, message: Message) {
        let answer = match self.agents[host].ended.get(&id) {
            Some(End::Source(outcome)) => known::source_answer(&message, Some(outcome), None),
            Some(End::Destination(outcome)) => known::destination_answer(&message, Some(outcome)),
            None => match message {
                Message::Prepare { plan } => {
                    // One move of a VM at a time.
                    if self.agents[host].open.is_empty() {
                        let (destination, actions) = Destination::start(Setup { id, plan });
                        self.agents[host].open.insert(id, Machine::Destination(destination));
                        self.destination_does(host, id, actions);
                    }
                    None
                }
                Message::Query {} => {
                    let record = self.blockds[host].record(id);
                    known::source_answer(&message, None, Some(&record))
                }
                message => known::destination_answer(&message, None),
            },
        };
        if let Some(answer) = answer {
            self.send(host, id, answer);
        }
    }

    fn ask_blockd(&mut self, host: usize, id: MoveId, op: BlockdOp) {
        let (agent, blockd) = (self.agents[host].incarnation, self.blockd_incarnation[host]);
        let slow = if op == BlockdOp::Ship { 50 * MS } else { 5 * MS };
        let after = self.rng.u64(0..=slow);
        self.at(after, Event::Do(host, agent, blockd, id, op));
    }

    fn blockd_does(&mut self, host: usize, agent: u32, blockd: u32, id: MoveId, op: &BlockdOp) {
        let kind = op.kind();
        // It was restarted since: before it had done it, and nobody did.
        let answer = if blockd != self.blockd_incarnation[host] {
            Answer::Unavailable
        } else if *op == BlockdOp::Ship {
            if self.link { self.ship(host, id) } else { Answer::Unavailable }
        } else {
            let answer = self.blockds[host].apply(id, op);
            let mut again = self.blockds[host].clone();
            assert_eq!(again.apply(id, op), answer, "the same again is answered otherwise");
            assert_eq!(again, self.blockds[host], "the same again changes something");
            if kind == BlockdKind::Own && answer == Answer::Done {
                let (new, old) = (self.blockds[host].epoch, self.blockds[1 - host].epoch);
                assert!(new > old, "owned in {new:?} after {old:?}");
            }
            // It was done, and the answer is lost in one of many cases.
            if self.rng.f64() < self.chance.loss / 4.0 { Answer::Unavailable } else { answer }
        };
        let after = self.soon();
        self.at(after, Event::Answered(host, agent, id, kind, answer));
    }

    fn ship(&mut self, host: usize, id: MoveId) -> Answer {
        let mut to = self.blockds[1 - host].clone();
        let answer = ship(id, &self.blockds[host], &mut to);
        self.blockds[1 - host] = to;
        answer
    }

    fn source_qemu(&mut self, host: usize, id: MoveId, op: SourceQemuOp) {
        let stage = self.blockds[host].stage(id);
        match op {
            SourceQemuOp::Resume | SourceQemuOp::Yank => {
                assert_eq!(stage, Stage::Aborted, "S {op:?} before Aborted");
            }
            SourceQemuOp::Cancel => {
                assert!(matches!(stage, Stage::Aborted | Stage::Absent), "S {op:?} while {stage:?}");
            }
            SourceQemuOp::Quit => {
                assert_eq!(stage, Stage::Released, "S {op:?} before Released");
                // Absent: the guest is there, and begins its next move already.
                let there = self.blockds[1 - host].stage(id);
                assert!(there != Stage::Expected, "S {op:?} before the guest is at the destination");
            }
            SourceQemuOp::Continue | SourceQemuOp::Query => {}
        }
        let pair = self.pairs.get_mut(&id).expect("a pair for each move");
        pair.qemus.s_does(op);
        pair.memory_t = if op == SourceQemuOp::Continue { pair.memory_s } else { pair.memory_t };
        self.s_says(id);
    }

    fn destination_qemu(&mut self, host: usize, id: MoveId, op: DestinationQemuOp) {
        if matches!(op, DestinationQemuOp::Cont | DestinationQemuOp::StartCold) {
            assert_eq!(self.blockds[host].stage(id), Stage::Owned, "T {op:?} before Owned");
        }
        self.pairs.get_mut(&id).expect("a pair for each move").qemus.t_does(op);
        self.t_says(id);
    }

    /// QEMU's words come later, in their order.
    fn s_says(&mut self, id: MoveId) {
        let (host, report) = (self.pairs[&id].from, self.pairs[&id].qemus.s);
        let (after, agent) = (self.in_order(host), self.agents[host].incarnation);
        self.at(after, Event::SourceSays(host, agent, id, report));
    }

    fn t_says(&mut self, id: MoveId) {
        let (host, report) = (1 - self.pairs[&id].from, self.pairs[&id].qemus.t);
        let (after, agent) = (self.in_order(host), self.agents[host].incarnation);
        self.at(after, Event::DestinationSays(host, agent, id, report));
    }

    fn in_order(&mut self, host: usize) -> Micros {
        let at = (self.now + self.soon()).max(self.said[host]);
        self.said[host] = at;
        at - self.now
    }

    fn begin(&mut self, host: usize, agent: u32, id: MoveId) {
        self.source(host, agent, id, SourceEvent::Begin);
        if let Some(Machine::Source(source)) = self.agents[host].open.get(&id)
            && source.state_name() == "armed"
            && self.link
        {
            let pair = self.pairs.get_mut(&id).expect("a pair for each move");
            pair.qemus.migrate();
            self.s_says(id);
        }
        self.at(STOPPED_MAX, Event::Timeout(host, agent, id));
        if self.rng.f64() < self.chance.wish {
            let after = self.rng.u64(0..300 * MS);
            self.at(after, Event::Timeout(host, agent, id));
        }
    }

    fn alone(&mut self) {
        let alone = [
            (Alone::SStops, 0.3),
            (Alone::SCompletes, 0.4),
            (Alone::TLoads, 0.4),
            (Alone::SFails, self.chance.qemu_fails * 0.4),
            (Alone::TExits, self.chance.qemu_fails * 0.4),
        ];
        for id in self.pairs.keys().copied().collect::<Vec<_>>() {
            for (alone, often) in alone {
                let pair = self.pairs.get_mut(&id).expect("just listed");
                let accepts = self.blockds[pair.from].accepts();
                // A stream that is broken, or whose other end is gone, fails sooner or later by itself.
                let broken = !pair.stream || pair.qemus.t == DestinationQemu::Gone;
                let often = if alone == Alone::SFails && broken { 0.05 } else { often };
                if !pair.qemus.may(alone, pair.stream, accepts) || self.rng.f64() >= often {
                    continue;
                }
                self.seen.resumed_alone += u64::from(alone == Alone::SFails);
                self.seen.unheard +=
                    u64::from(alone == Alone::SFails && pair.qemus.t == DestinationQemu::Loaded);
                pair.qemus.happens(alone);
                self.s_says(id);
                self.t_says(id);
            }
        }
        self.at(2 * MS, Event::Alone);
    }

    fn write(&mut self) {
        for pair in self.pairs.values_mut() {
            if pair.write(self.now, &mut self.blockds, &mut self.acked) {
                self.seen.writes += 1;
            }
        }
        let after = self.rng.u64(MS..10 * MS);
        self.at(after, Event::Write);
    }

    fn next_move(&mut self) {
        let host = self.owner;
        let free = self.agents[host].open.is_empty() && self.blockds[host].accepts();
        if self.moves == self.chance.moves || !free || self.now > CALM {
            return;
        }
        self.moves += 1;
        let setup = setup(self.moves, self.blockds[host].epoch);
        let id = setup.id;
        let memory = self.take_guest();
        self.pairs.insert(id, Pair::new(id, host, memory));
        let (source, actions) = Source::start(setup);
        self.agents[host].open.insert(id, Machine::Source(source));
        self.source_does(host, id, actions);
    }

    /// The guest's QEMU has its part in a new move; started again, should it have crashed between two.
    fn take_guest(&mut self) -> Content {
        let mut memory = self.blockds[self.owner].content;
        for pair in self.pairs.values_mut() {
            if pair.qemus.s == SourceQemu::Running && pair.from == self.owner {
                memory = pair.memory_s;
                pair.qemus.s = SourceQemu::Gone;
            }
            if pair.qemus.t == DestinationQemu::Running && pair.from != self.owner {
                memory = if pair.qemus.cold { memory } else { pair.memory_t };
                pair.qemus.t = DestinationQemu::Gone;
            }
        }
        memory
    }

    fn fault(&mut self) {
        let Some(every) = self.chance.faults_every else { return };
        let host = self.rng.usize(0..2);
        match self.rng.u8(0..7) {
            0 | 1 => self.crash_agent(host),
            2 | 3 => {
                self.seen.crashes += 1;
                self.blockd_incarnation[host] += 1;
            }
            4 if self.link => self.cut(),
            _ => self.crash_qemu(),
        }
        let after = self.rng.u64(1..=2 * every);
        self.at(after, Event::Fault);
    }

    fn crash_agent(&mut self, host: usize) {
        self.seen.crashes += 1;
        let agent = &mut self.agents[host];
        agent.incarnation += 1;
        let open = std::mem::take(&mut agent.open);
        for (id, machine) in open {
            match machine {
                Machine::Source(source) => {
                    let (source, actions) = Source::recover(source.setup().clone());
                    self.agents[host].open.insert(id, Machine::Source(source));
                    self.source_does(host, id, actions);
                }
                Machine::Destination(destination) => {
                    let (destination, actions) = Destination::recover(destination.setup().clone());
                    self.agents[host].open.insert(id, Machine::Destination(destination));
                    self.destination_does(host, id, actions);
                }
            }
        }
    }

    /// Of the move that is under way, if there is one.
    fn crash_qemu(&mut self) {
        let Some((id, pair)) = self.pairs.iter_mut().next_back() else { return };
        let (id, first) = (*id, self.rng.bool());
        if self.agents.iter().all(|agent| !agent.open.contains_key(&id)) {
            return;
        }
        self.seen.crashes += 1;
        let source_is_open = self.agents[pair.from].open.contains_key(&id);
        if first && source_is_open {
            pair.qemus.s = SourceQemu::Gone;
        } else if self.agents[1 - pair.from].open.contains_key(&id) {
            pair.qemus.t = DestinationQemu::Gone;
        }
        self.s_says(id);
        self.t_says(id);
    }

    fn cut(&mut self) {
        self.seen.cuts += 1;
        self.link = false;
        for pair in self.pairs.values_mut() {
            pair.stream = false;
        }
        self.link_changed(false);
        let after = self.rng.u64(0..2 * S);
        self.at(after, Event::Heal);
    }

    fn heal(&mut self) {
        if !self.link {
            self.link = true;
            self.link_changed(true);
        }
    }

    fn link_changed(&mut self, up: bool) {
        // Heard at once or never too late: what is heard last is true.
        for host in 0..2 {
            let agent = self.agents[host].incarnation;
            self.at(0, Event::Link(host, agent, up));
        }
    }

    fn tell_link(&mut self, host: usize, agent: u32, up: bool) {
        for id in self.open(host) {
            let (source, destination) = if up {
                (SourceEvent::LinkUp, DestinationEvent::LinkUp)
            } else {
                (SourceEvent::LinkDown, DestinationEvent::LinkDown)
            };
            self.source(host, agent, id, source);
            self.destination(host, agent, id, destination);
        }
    }

    /// After every event.
    fn check(&self) {
        let [a, b] = &self.blockds;
        assert!(!(a.accepts() && b.accepts()), "both hosts accept writes");
        let mut running = 0;
        for pair in self.pairs.values() {
            let released = self.blockds[pair.from].stage(pair.id) == Stage::Released;
            assert!(!(released && pair.qemus.s_runs()), "S runs though its volumes are released");
            running += u32::from(pair.qemus.s_runs() && self.blockds[pair.from].accepts());
            if pair.qemus.t == DestinationQemu::Running {
                running += 1;
                let stage = self.blockds[pair.from].stage(pair.id);
                assert!(stage != Stage::Frozen && stage != Stage::Aborted, "T runs while A is {stage:?}");
            }
        }
        assert!(running <= 1, "{running} guests run and may write");
    }

    fn is_over(&self) -> bool {
        self.agents.iter().all(|agent| agent.open.is_empty())
    }

    fn check_end(&self) {
        let open: Vec<_> = self.agents.iter().map(|agent| &agent.open).collect();
        assert!(
            self.is_over(),
            "a minute after the last fault moves are not over: {open:#?} {:#?}",
            self.pairs
        );
        let owner = &self.blockds[self.owner];
        assert!(owner.accepts(), "the owner refuses writes: {:?}", self.blockds);
        assert_eq!(owner.content, self.acked, "writes that were answered are lost");
        let running = self.pairs.values().filter(|pair| {
            (pair.qemus.s_runs() && pair.from == self.owner)
                || (pair.qemus.t == DestinationQemu::Running && pair.from != self.owner)
        });
        assert_eq!(running.count(), 1, "not one guest runs at the end: {:#?}", self.pairs);
    }
}
