//! The three targets: an input in, a verdict out.

use std::sync::Arc;

use nbd_server::handshake::Offer;
use nbd_server::reactor::buffer::Pool;

use crate::Verdict;
use crate::choices::Choices;
use crate::handshake::{self, Shelf, Terms};
use crate::pieces::Pieces;
use crate::script::{Event, STEPS_MAX, Script, choose_files};
use crate::session::Session;
use crate::transmission::setting::{EXPORT_BYTES, Setting, choose_limits};
use crate::world::{Medium, World, dirty_pool};

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The option phase, with whatever bytes a client sends.
    Handshake,
    /// Transmission of up to two clients who send requests, on memory or a file.
    Transmission,
    /// Both, on files, with clients that vanish and a server that stops.
    Session,
}

/// Bytes of the second export of a session.
const OTHER_BYTES: u64 = 1 << 16;

thread_local! {
    /// Buffers are as dirty in the first execution as in the last.
    static POOL: Pool = dirty_pool();
}

impl Target {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Handshake, Self::Transmission, Self::Session];

    /// Its program, and the directory of its corpus.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handshake => "nbd_handshake",
            Self::Transmission => "nbd_transmission",
            Self::Session => "nbd_session",
        }
    }

    /// What of the heap an execution may hold at once, bytes. The buffers of transmission are not of the heap: they are held
    /// against the connection's limits after each step ([`crate::world`]). What remains is an option and its answer, and
    /// tables of requests; most of it is the oracles' own: the disk, twice, and all that was sent.
    pub fn heap_bytes_max(self) -> usize {
        match self {
            Self::Handshake => 1 << 20,
            Self::Transmission | Self::Session => 12 << 20,
        }
    }

    /// Carries an input out.
    ///
    /// # Errors
    /// The server has broken a rule; the text says which.
    pub fn run(self, input: &[u8]) -> Verdict {
        let mut choices = Choices::new(input);
        match self {
            Self::Handshake => run_handshake(&mut choices),
            Self::Transmission => run_transmission(&mut choices),
            Self::Session => run_session(&mut choices),
        }
    }
}

fn choose_terms(choices: &mut Choices<'_>) -> Terms {
    let bits = choices.byte();
    let has = |bit: u8| bits >> bit & 1 == 1;
    let mut shelf = Shelf { stopping: bits >> 4 & 7 == 7, closed: has(0), ..Shelf::default() };
    for (export, size) in shelf.exports.iter_mut().zip([EXPORT_BYTES, OTHER_BYTES]) {
        export.size = size;
    }
    (shelf.exports[0].fast_zero, shelf.exports[0].block_minimum) = (has(4), if has(5) { 512 } else { 1 });
    (shelf.exports[1].read_only, shelf.exports[1].rotational) = (has(7), has(6));
    shelf.exports[1].description = "the other one".to_owned();
    // One offer in eight lacks something.
    let lacks = |what: u8| bits & 0x0e == what << 1;
    let offer = Offer {
        structured_replies: !lacks(5),
        meta_contexts: !lacks(6),
        extended_headers: !lacks(7) && !lacks(5),
    };
    Terms { tls: has(0), offer, shelf: Arc::new(shelf) }
}

fn run_handshake(choices: &mut Choices<'_>) -> Verdict {
    let terms = choose_terms(choices);
    let mut pieces = Pieces::choose(choices);
    let input = choices.rest();
    let haggled = handshake::haggle(input, &mut pieces, &terms)?;
    handshake::check(input, &haggled, &terms)
}

fn run_transmission(choices: &mut Choices<'_>) -> Verdict {
    let clients = choices.below(2) + 1;
    let sizes = [EXPORT_BYTES; 2];
    let medium = if choices.coin() { choose_files(choices, &sizes[..1]) } else { Medium::Memory };
    let world = World::new(&medium, &sizes, choose_limits(choices), POOL.with(Pool::clone));
    let mut script = Script::new(world);
    for number in 0..clients {
        let setting = Setting::choose(choices);
        let leftover = if choices.coin() { script.request(&setting, choices) } else { Vec::new() };
        let export = if matches!(medium, Medium::Memory) { u32::from(number) } else { 0 };
        script.world.connect(setting, export, &leftover)?;
    }
    for _ in 0..STEPS_MAX {
        if choices.is_over() {
            break;
        }
        let who = usize::from(choices.below(clients));
        script.act(Event::choose(choices, false), who, choices)?;
    }
    script.finish(choices)
}

fn run_session(choices: &mut Choices<'_>) -> Verdict {
    let terms = choose_terms(choices);
    let medium = choose_files(choices, &[EXPORT_BYTES, OTHER_BYTES]);
    let world = World::new(&medium, &[], choose_limits(choices), POOL.with(Pool::clone));
    let clients = choices.below(2) + 1;
    let mut session = Session::new(&terms, Script::new(world), clients, choices);
    for _ in 0..STEPS_MAX {
        if choices.is_over() {
            break;
        }
        let who = usize::from(choices.below(clients));
        session.act(Event::choose(choices, true), who, choices)?;
    }
    session.finish(choices)
}
