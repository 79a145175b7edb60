//! Whole lives of connections: negotiation, transmission on what was agreed, and any end, of two clients of one server.

use nbd_server::handshake::Agreement;

use crate::Verdict;
use crate::choices::Choices;
use crate::handshake::options::Belief;
use crate::handshake::{self, Haggle, READ_BYTES, Terms};
use crate::script::{Event, Script, raw};
use crate::transmission::setting::Setting;

/// Who has connected.
enum Guest {
    Negotiating(Box<Negotiating>),
    /// The number in the world.
    Trading(usize),
    Gone,
}

/// What a client in negotiation has sent, and how the server took it.
struct Negotiating {
    haggle: Haggle,
    sent: Vec<u8>,
    belief: Belief,
}

impl Negotiating {
    fn new(terms: &Terms, choices: &mut Choices<'_>) -> Self {
        let flags = u32::from(choices.below(4));
        Self { haggle: Haggle::new(terms), sent: flags.to_be_bytes().to_vec(), belief: Belief::default() }
    }

    /// Hands over what has come; how it ended, if it did.
    fn deliver(&mut self, bytes: usize) -> Result<Option<handshake::Ending>, String> {
        let end = self.haggle.advance()?;
        let rest = &self.sent[self.haggle.fed()..];
        if end.is_some() || rest.is_empty() {
            return Ok(end);
        }
        self.haggle.feed(&rest[..bytes.min(READ_BYTES).min(rest.len())])?;
        self.haggle.advance()
    }
}

/// See the module.
pub struct Session<'a> {
    terms: &'a Terms,
    script: Script,
    guests: Vec<Guest>,
}

impl<'a> Session<'a> {
    /// Of so many clients.
    pub fn new(terms: &'a Terms, script: Script, clients: u8, choices: &mut Choices<'_>) -> Self {
        let guest = |_| Guest::Negotiating(Box::new(Negotiating::new(terms, choices)));
        let guests = (0..clients).map(guest).collect();
        Self { terms, script, guests }
    }

    /// Something happens to one of them.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn act(&mut self, event: Event, who: usize, choices: &mut Choices<'_>) -> Verdict {
        let place = who % self.guests.len();
        match &mut self.guests[place] {
            Guest::Trading(who) => self.script.act(event, *who, choices),
            Guest::Gone => Ok(()),
            Guest::Negotiating(client) => {
                match event {
                    Event::Raw => client.sent.extend_from_slice(raw(choices)),
                    Event::Request if client.belief.entered => {
                        let setting = believed(client.belief);
                        let bytes = self.script.request(&setting, choices);
                        client.sent.extend_from_slice(&bytes);
                    }
                    Event::Request => client.sent.extend_from_slice(&client.belief.option(choices)),
                    Event::Reset | Event::HangUp => return self.leave(place),
                    _ => return self.deliver(place, choices.amount()),
                }
                Ok(())
            }
        }
    }

    fn deliver(&mut self, place: usize, bytes: usize) -> Verdict {
        let Guest::Negotiating(client) = &mut self.guests[place] else { return Ok(()) };
        match client.deliver(bytes)? {
            None => Ok(()),
            Some(end) => self.end_negotiation(place, Some(end)),
        }
    }

    /// The client is gone before it has agreed on anything.
    fn leave(&mut self, place: usize) -> Verdict {
        self.end_negotiation(place, None)
    }

    fn end_negotiation(&mut self, place: usize, end: Option<handshake::Ending>) -> Verdict {
        let guest = std::mem::replace(&mut self.guests[place], Guest::Gone);
        let Guest::Negotiating(client) = guest else { return Ok(()) };
        let Negotiating { haggle, sent, .. } = *client;
        let haggled = haggle.into_haggled(end);
        handshake::check(&sent[..haggled.fed], &haggled, self.terms)?;
        let Some(Ok(agreement)) = haggled.end else { return Ok(()) };
        self.guests[place] = Guest::Trading(self.script.world.peers().len());
        self.enter(&agreement, &sent[haggled.fed..])
    }

    fn enter(&mut self, agreement: &Agreement, unsent: &[u8]) -> Verdict {
        let who = self.script.world.peers().len();
        let setting = Setting::of(&agreement.rules);
        self.script.world.connect(setting, agreement.address.index.0, &agreement.leftover)?;
        self.script.world.send(who, unsent);
        Ok(())
    }

    /// Everybody's bytes arrive, and everybody leaves.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn finish(mut self, choices: &mut Choices<'_>) -> Verdict {
        for place in 0..self.guests.len() {
            while let Guest::Negotiating(client) = &self.guests[place] {
                if client.haggle.fed() == client.sent.len() {
                    self.leave(place)?;
                } else {
                    self.deliver(place, usize::MAX)?;
                }
            }
        }
        self.script.finish(choices)
    }
}

/// What a client sends requests by that has not heard yet what was agreed on.
fn believed(belief: Belief) -> Setting {
    let contexts = vec![1, 2];
    Setting { form: belief.form, contexts, ..Setting::choose(&mut Choices::new(&[])) }
}
