//! The other side, by hand: [`Visit`] speaks as a source to our target, [`Call`] as a target to our source.

use blockd::sync::offer::Offer;
use blockd::sync::session::{Link, PING_INTERVAL, Side, proof};
use blockd::sync::source::{self, Flow};
use blockd::sync::target;
use blockd::sync::wire::{Code, Frame, Hello, Message, Refusal};
use blockd::units::HostId;

use sim_hosts::host::Host;
use sim_hosts::sides::{SourceSide, TargetSide};

/// Operations until a side must have come to rest.
const STEPS_MAX: usize = 100_000;

pub(super) fn hello(host: HostId) -> Hello {
    Hello { version_min: 1, version_max: 1, compression: 1, host, nonce: [3; 32] }
}

pub(super) fn link(host: HostId, peer: HostId, secret: [u8; 32]) -> Link {
    Link { host, peer, secret, nonce: [4; 32], version_min: 1 }
}

fn first_hello(said: &[Frame]) -> Hello {
    match said.first().map(|frame| &frame.message) {
        Some(Message::Hello(hello)) => hello.clone(),
        other => panic!("it begins with {other:?}"),
    }
}

/// The code of a refusal that was said last, and was said once.
fn refusal(said: &[Frame]) -> Code {
    let refusals = said.iter().filter(|frame| matches!(frame.message, Message::Refuse(_))).count();
    match said.last().map(|frame| &frame.message) {
        Some(Message::Refuse(refusal)) if refusals == 1 => refusal.code,
        other => panic!("{refusals} refusals, and last {other:?}"),
    }
}

/// A session with our target.
pub(super) struct Visit<'a> {
    host: &'a mut Host,
    pub(super) side: TargetSide,
    peer: HostId,
    secret: [u8; 32],
    /// What it has said so far.
    pub(super) said: Vec<Frame>,
    pub(super) now: u64,
}

impl<'a> Visit<'a> {
    pub(super) fn new(host: &'a mut Host, peer: HostId, secret: [u8; 32]) -> Self {
        let side = TargetSide::start(link(host.id, peer, secret));
        let mut visit = Self { host, side, peer, secret, said: Vec::new(), now: 0 };
        visit.settle();
        visit
    }

    pub(super) fn greet(&mut self) {
        let (ours, theirs) = (hello(self.peer), first_hello(&self.said));
        let proof = proof(&self.secret, Side::Source, 1, &ours, &theirs);
        self.say([Message::Hello(ours), Message::Bind { version: 1, proof }]);
        assert!(self.side.target.is_idle(), "{:?}", self.said);
    }

    /// Messages about the first volume, one after the other, each to its end.
    pub(super) fn say(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.side.target.received(Frame::session(message), self.now);
            self.settle();
        }
    }

    /// Until nothing is left to be done.
    pub(super) fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            self.route();
            if let Some(action) = self.side.todo.pop_front() {
                self.side.act(self.host, action, self.now);
            } else if self.side.applying.is_empty() && self.side.confirming.is_none() {
                return;
            } else {
                self.host.step();
                self.side.poll(self.host, self.now);
            }
        }
        panic!("it does not come to rest");
    }

    /// What it says is heard, what it wants done waits.
    pub(super) fn route(&mut self) {
        for action in self.side.target.take() {
            assert!(self.side.over.is_none(), "{action:?} after the end");
            match action {
                target::Do::Send(frame) => self.said.push(frame),
                target::Do::Over(refusal) => self.side.over = Some(refusal),
                target::Do::Keep(_) => {}
                other => self.side.todo.push_back(other),
            }
        }
        if self.side.over.is_some() {
            self.side.todo.clear();
        }
    }

    /// Time passes, a second at a time; `each` is said as often as signs of life are due.
    pub(super) fn wait(&mut self, seconds: u64, each: Option<&Message>) {
        for _ in 0..seconds {
            self.now += 1000;
            self.say(each.filter(|_| self.now.is_multiple_of(PING_INTERVAL)).cloned());
            self.side.target.tick(self.now);
            self.settle();
        }
    }

    /// Of the session, which is over.
    pub(super) fn refused(self) -> Code {
        assert!(self.side.target.is_over(), "it goes on: {:?}", self.said.last());
        assert_eq!(self.side.over.as_ref().map(|over| over.code), Some(refusal(&self.said)));
        refusal(&self.said)
    }

    pub(super) fn last(&self) -> &Message {
        &self.said.last().expect("it said something").message
    }
}

/// A session with our source.
pub(super) struct Call<'a> {
    host: &'a mut Host,
    pub(super) side: SourceSide,
    /// What it has said so far.
    pub(super) said: Vec<Frame>,
    pub(super) now: u64,
}

impl<'a> Call<'a> {
    pub(super) fn new(host: &'a mut Host, peer: HostId, offers: Vec<Offer>, flow: Flow) -> Self {
        let side = SourceSide::start(link(host.id, peer, [7; 32]), offers, flow);
        let mut call = Self { host, side, said: Vec::new(), now: 0 };
        call.settle();
        let (ours, theirs) = (hello(peer), first_hello(&call.said));
        let proof = proof(&[7; 32], Side::Target, 1, &theirs, &ours);
        call.say([Message::Hello(ours), Message::Bind { version: 1, proof }]);
        assert!(matches!(call.last(), Message::Offer(_)), "{:?}", call.said);
        call
    }

    pub(super) fn say(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.side.source.received(Frame::session(message), self.now);
            self.settle();
        }
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..STEPS_MAX {
            for action in self.side.source.take() {
                assert!(self.side.over.is_none(), "{action:?} after the end");
                match action {
                    source::Do::Send(frame) => self.said.push(frame),
                    source::Do::Over(result) => self.side.over = Some(result),
                    other => self.side.todo.push_back(other),
                }
            }
            assert!(self.side.source.unconfirmed_bytes() <= self.side.flow.window_bytes);
            let Some(action) = self.side.todo.pop_front() else { return };
            self.side.act(self.host, action, self.now);
        }
        panic!("it does not come to rest");
    }

    pub(super) fn wait(&mut self, seconds: u64, each: Option<&Message>) {
        for _ in 0..seconds {
            self.now += 1000;
            self.say(each.filter(|_| self.now.is_multiple_of(PING_INTERVAL)).cloned());
            self.side.source.tick(self.now);
            self.settle();
        }
    }

    pub(super) fn refused(mut self) -> Refusal {
        let code = refusal(&self.said);
        let over = self.side.over.take().expect("it is over").expect_err("it is refused");
        assert_eq!(over.code, code);
        over
    }

    pub(super) fn last(&self) -> &Message {
        &self.said.last().expect("it said something").message
    }

    pub(super) fn count(&self, name: &str) -> usize {
        self.said.iter().filter(|frame| frame.message.name() == name).count()
    }
}
