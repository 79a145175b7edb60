//! The option phase: the server's side driven as its driver does, and compared with an oracle.

mod oracle;
mod shelf;

pub mod options;

use std::sync::Arc;

use nbd_server::client::Client;
use nbd_server::handshake::{Agreement, Handshake, Offer, Refusal, Step};

pub use oracle::{Meaning, Told, understand};
pub use shelf::{CONTEXTS, Shelf};

use crate::pieces::Pieces;
use crate::{Verdict, ensure};

/// The largest answer to one option: a list of our two exports, or what is to be known of one of them.
const ANSWER_MAX: usize = 512;
/// An option with its header: what may be waited for at most.
const OPTION_MAX: usize = 16 + (64 << 10);
/// What the server reads at once.
pub const READ_BYTES: usize = 4096;

/// What kind of server it is that a client has come to.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// Nothing is agreed on in clear.
    pub tls: bool,
    /// What can be agreed on.
    pub offer: Offer,
    /// What is exported.
    pub shelf: Arc<Shelf>,
}

/// How a negotiation ended.
pub type Ending = Result<Agreement, Refusal>;

/// One negotiation under way, and all that was said in it.
pub struct Haggle {
    handshake: Handshake,
    said: Vec<u8>,
    fed: usize,
    fed_since_progress: usize,
    /// How much had arrived when the server had handled everything that it could, each time.
    arrivals: Vec<usize>,
}

/// A negotiation that is over, or in which nothing more comes.
pub struct Haggled {
    /// `None`: the server wants more than there is.
    pub end: Option<Ending>,
    /// All that it has said.
    pub said: Vec<u8>,
    /// Bytes handed over.
    pub fed: usize,
    /// See [`understand`].
    pub arrivals: Vec<usize>,
}

impl Haggle {
    /// A client that has just connected.
    pub fn new(terms: &Terms) -> Self {
        let handshake = Handshake::new(Arc::clone(&terms.shelf) as Arc<_>, terms.offer);
        let handshake = if terms.tls { handshake.requiring_tls() } else { handshake };
        Self { handshake, said: Vec::new(), fed: 0, fed_since_progress: 0, arrivals: Vec::new() }
    }

    /// Bytes handed over.
    pub fn fed(&self) -> usize {
        self.fed
    }

    /// Hands bytes over. Only when [`Self::advance`] has found nothing more to do.
    ///
    /// # Errors
    /// The server asks for more than any option has.
    pub fn feed(&mut self, bytes: &[u8]) -> Verdict {
        ensure(self.fed_since_progress <= OPTION_MAX + READ_BYTES, || "it hoards input".to_owned())?;
        self.handshake.receive(bytes);
        self.fed += bytes.len();
        self.fed_since_progress += bytes.len();
        self.arrivals.push(self.fed);
        Ok(())
    }

    /// Handles all messages that have come; tells how it ended, if it did.
    ///
    /// # Errors
    /// The server broke a rule.
    pub fn advance(&mut self) -> Result<Option<Ending>, String> {
        loop {
            let step = self.handshake.advance();
            let output = self.handshake.take_output();
            ensure(output.len() <= ANSWER_MAX, || format!("{} bytes for one option", output.len()))?;
            self.said.extend_from_slice(&output);
            match step {
                Step::Again => self.fed_since_progress = 0,
                // The TLS handshake is carried out elsewhere; what follows is what came inside.
                Step::StartTls => self.handshake.secured(Shelf::known_client()),
                Step::Done(agreement) => return Ok(Some(Ok(agreement))),
                Step::Close(refusal) => return Ok(Some(Err(refusal))),
                Step::NeedInput => return Ok(None),
            }
        }
    }

    /// The end of it.
    pub fn into_haggled(self, end: Option<Ending>) -> Haggled {
        Haggled { end, said: self.said, fed: self.fed, arrivals: self.arrivals }
    }
}

/// Drives a whole negotiation.
///
/// # Errors
/// The server broke a rule.
pub fn haggle(input: &[u8], pieces: &mut Pieces, terms: &Terms) -> Result<Haggled, String> {
    let mut haggle = Haggle::new(terms);
    loop {
        let end = haggle.advance()?;
        let rest = &input[haggle.fed..];
        if end.is_some() || rest.is_empty() {
            return Ok(haggle.into_haggled(end));
        }
        haggle.feed(&rest[..pieces.size().min(READ_BYTES).min(rest.len())])?;
    }
}

/// Compares what came of a negotiation with what its bytes mean.
///
/// # Errors
/// They differ.
pub fn check(input: &[u8], haggled: &Haggled, terms: &Terms) -> Verdict {
    let (told, meaning) = understand(input, terms, &haggled.arrivals);
    let said = oracle::take_apart(&haggled.said, &told)?;
    let found = match &haggled.end {
        None => Meaning::Waits,
        Some(Err(refusal)) => Meaning::Closes(*refusal),
        Some(Ok(agreement)) => {
            let at = haggled.fed - agreement.leftover.len();
            ensure(agreement.leftover == input[at..haggled.fed], || "what is left over differs".to_owned())?;
            let contexts = agreement.rules.contexts.iter().map(|chosen| (chosen.id, chosen.key.0)).collect();
            Meaning::Enters {
                at,
                form: agreement.rules.form(),
                export: agreement.address.index.0,
                contexts,
                said,
            }
        }
    };
    ensure(found == meaning, || format!("{found:?} instead of {meaning:?}"))
}

impl Shelf {
    /// Who has shown a certificate.
    pub fn known_client() -> Client {
        Client { verified: true, identity: Some("known".to_owned()), ..Client::unix() }
    }
}
