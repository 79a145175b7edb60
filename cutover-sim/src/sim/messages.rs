//! The link between the two agents, and what is said to an agent that has no machine for it.

use vmctl::cutover::codec::{Decoder, encode};
use vmctl::cutover::destination::Destination;
use vmctl::cutover::event::{DestinationEvent, SourceEvent};
use vmctl::cutover::ids::MoveId;
use vmctl::cutover::known;
use vmctl::cutover::message::{Envelope, Message};
use vmctl::cutover::record::Setup;

use super::{End, Event, Machine, Sim};
use crate::blockds::Blockds;
use crate::chance::S;

impl<B: Blockds> Sim<B> {
    pub(super) fn send(&mut self, host: usize, id: MoveId, message: Message) {
        let bytes = encode(&Envelope { id, message });
        let copies = 1 + u32::from(self.rng.f64() < self.chance.twice);
        for _ in 0..copies {
            if self.link && self.rng.f64() >= self.chance.loss {
                let after = self.rng.u64(0..=self.chance.delay_max);
                self.at(after, Event::Deliver(1 - host, bytes.clone()));
            }
        }
    }

    pub(super) fn deliver(&mut self, host: usize, bytes: &[u8]) {
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
    pub(super) fn unknown(&mut self, host: usize, id: MoveId, message: Message) {
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
                    let record = self.blockds.record(host, id);
                    known::source_answer(&message, None, Some(&record))
                }
                message => known::destination_answer(&message, None),
            },
        };
        if let Some(answer) = answer {
            self.send(host, id, answer);
        }
    }

    pub(super) fn cut(&mut self) {
        self.seen.count("cuts");
        self.link = false;
        for pair in self.pairs.values_mut() {
            pair.stream = false;
        }
        self.link_changed(false);
        let after = self.rng.u64(0..2 * S);
        self.at(after, Event::Heal);
    }

    pub(super) fn heal(&mut self) {
        if !self.link {
            self.link = true;
            self.link_changed(true);
        }
    }

    pub(super) fn link_changed(&mut self, up: bool) {
        // Heard at once or never too late: what is heard last is true.
        for host in 0..2 {
            let agent = self.agents[host].incarnation;
            self.at(0, Event::Link(host, agent, up));
        }
    }

    pub(super) fn tell_link(&mut self, host: usize, agent: u32, up: bool) {
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
}
