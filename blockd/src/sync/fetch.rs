//! The side that asks for clusters which are damaged here: a state machine without I/O (docs/replication.md, "Fetching").
//!
//! ```text
//!  Greeting ─► Ready ◄─► Asking ─► Over
//! ```
//!
//! It trusts nothing: answers must be about exactly what was asked for, in that order, and content that has not the value
//! which is recorded here never leaves this module.

use std::collections::VecDeque;

use super::session::{Handshake, Link, Millis, Pulse, Side};
use super::wire::{Code, FETCH_CLUSTERS_MAX, Fetch, Found, Frame, Message, Refusal};
use crate::hash::{Value, cluster_value};
use crate::units::ClusterIndex;

/// A host that was asked, and only shows that it is there, is given up. It may have to wait for a merge of layers.
pub const FETCH_STALL_MAX: Millis = 120_000;

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Do {
    /// Send it.
    Send(Frame),
    /// The other side has said this of a cluster; content has the value that was asked for.
    Take {
        /// Which.
        cluster: u32,
        /// What is there.
        found: Found,
    },
    /// The session is over, for that reason.
    Over(Refusal),
}

#[derive(Debug)]
enum State {
    Greeting(Box<Handshake>),
    Ready,
    /// Answers to these have not come.
    Asking(VecDeque<(u32, Value)>),
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Fetcher {
    state: State,
    pulse: Pulse,
    now: Millis,
    out: Vec<Do>,
}

impl Fetcher {
    /// A session over a link that this side has opened.
    pub fn start(link: Link, now: Millis) -> Self {
        let (handshake, first) = Handshake::start(Side::Source, link);
        let state = State::Greeting(Box::new(handshake));
        Self { state, pulse: Pulse::new(now), now, out: vec![Do::Send(first)] }
    }

    /// What is to be done since the last call, in order.
    pub fn take(&mut self) -> Vec<Do> {
        std::mem::take(&mut self.out)
    }

    /// Whether clusters may be asked for.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// Asks for clusters.
    ///
    /// # Panics
    /// When it is not ready, or there are none, or more than [`FETCH_CLUSTERS_MAX`].
    pub fn ask(&mut self, fetch: Fetch, now: Millis) {
        assert!(self.is_ready(), "one question at a time");
        assert!(
            (1..=FETCH_CLUSTERS_MAX).contains(&fetch.clusters.len()),
            "{} clusters",
            fetch.clusters.len()
        );
        self.now = now;
        // While nobody was asked, nobody has listened.
        self.pulse = Pulse::new(now);
        self.state = State::Asking(fetch.clusters.iter().copied().collect());
        self.send(Message::Fetch(fetch));
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

    /// Time passes.
    pub fn tick(&mut self, now: Millis) {
        self.now = now;
        if matches!(self.state, State::Over) {
            return;
        }
        match self.pulse.tick(now, (!self.is_ready()).then_some(FETCH_STALL_MAX)) {
            Ok(true) => self.send(Message::Ping),
            Ok(false) => {}
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn send(&mut self, message: Message) {
        self.pulse.said(self.now);
        self.out.push(Do::Send(Frame::session(message)));
    }

    fn refuse(&mut self, refusal: Refusal) {
        if !matches!(self.state, State::Over) {
            self.send(Message::Refuse(refusal.clone()));
            self.end(refusal);
        }
    }

    fn end(&mut self, refusal: Refusal) {
        self.state = State::Over;
        self.out.push(Do::Over(refusal));
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), Refusal> {
        match (&mut self.state, frame.message) {
            (State::Over, _) | (_, Message::Ping) => {}
            (_, Message::Refuse(refusal)) => self.end(refusal),
            _ if frame.volume != 0 => {
                return Err(Refusal::new(Code::BadFrame, "an answer about a volume that was not offered"));
            }
            (State::Greeting(handshake), message) => match handshake.received(message)? {
                Ok(frame) => self.out.push(Do::Send(frame)),
                Err(_) => self.state = State::Ready,
            },
            (State::Asking(asked), Message::Fetched { cluster, found }) => {
                judge(asked.pop_front(), cluster, &found)?;
                if asked.is_empty() {
                    self.state = State::Ready;
                }
                self.out.push(Do::Take { cluster, found });
            }
            (_, message) => {
                return Err(Refusal::new(Code::BadFrame, format!("{} out of turn", message.name())));
            }
        }
        Ok(())
    }
}

/// An answer to what was asked, and nothing else.
fn judge(asked: Option<(u32, Value)>, cluster: u32, found: &Found) -> Result<(), Refusal> {
    let Some((_, value)) = asked.filter(|(expected, _)| *expected == cluster) else {
        let text = format!("an answer about cluster {cluster}, which was not asked for now");
        return Err(Refusal::new(Code::BadManifest, text));
    };
    match found {
        Found::Here(content) if cluster_value(ClusterIndex(cluster), content) != value => {
            let text = format!("what came of cluster {cluster} is not what its hash says");
            Err(Refusal::new(Code::BadData, text))
        }
        _ => Ok(()),
    }
}
