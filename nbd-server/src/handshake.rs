//! Option haggling: fixed newstyle negotiation as a state machine without I/O.
//!
//! ```text
//!  greeting ► ClientFlags ► Options ──GO, EXPORT_NAME──► Done(Agreement)
//!                  │            └──────ABORT────────────► Close(Aborted)
//!                  └─ anything the protocol forbids ────► Close(reason)
//! ```
//!
//! Before a client that must speak TLS is listened to, it must:
//!
//! ```text
//!  Options (Required) ──STARTTLS──► StartTls: the driver's TLS handshake ──secured──► Options (Done), all forgotten
//!     ├─ EXPORT_NAME, bytes behind STARTTLS ► Close
//!     └─ anything else but ABORT ► ERR_TLS_REQD
//! ```
//!
//! The driver sends [`Handshake::greeting`], then alternates: [`Handshake::advance`] handles at most one
//! message and leaves its answer in [`Handshake::take_output`]; only when it asks for input is more read.
//! So neither input nor output can grow beyond one option and its answer, whatever a client sends.
//! How long it may take is the driver's business (a deadline on the whole handshake).

mod meta;

use std::sync::Arc;

use crate::client::Client;
use crate::export::ExportInfo;
use crate::status::MetaContext;
use crate::transmission::Rules;
use crate::wire::{
    MAX_PAYLOAD_BYTES, MAX_STRING_BYTES, NBD_MAGIC, OPTION_MAGIC, handshake_flag, info, option, option_reply,
    option_reply_type as reply, transmission_flag,
};

pub use meta::QUERIES_MAX;

/// Bounds of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandshakeLimits {
    /// The largest option data that is read, bytes.
    pub option_bytes_max: usize,
    /// Options that one client may send, plus [`OPTIONS_PER_EXPORT`] for each export that it may see.
    pub options_max: usize,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self { option_bytes_max: 64 << 10, options_max: 32 }
    }
}

/// `nbdinfo --list` and `qemu-nbd --list` ask for the details of every export on one connection.
pub const OPTIONS_PER_EXPORT: usize = 4;
/// Bytes of an option's header: magic, number, length.
const OPTION_HEADER_BYTES: usize = 16;
/// Zero bytes that end an `EXPORT_NAME` answer for clients of the old days.
const LEGACY_ZERO_BYTES: usize = 124;

/// What can be exported, and to where its clients are handed over.
///
/// It may change while clients look at it. Who was told of an export enters transmission on it even if it was
/// taken out meanwhile: what then becomes of the client is for the backend to say. Names have 1 to
/// [`MAX_STRING_BYTES`] bytes and no NUL, descriptions no more.
pub trait Directory: Send + Sync {
    /// How many exports there are for a client. Asked for every option.
    fn count(&self, client: &Client) -> usize {
        self.list(client).len()
    }
    /// Every export that client may see.
    fn list(&self, client: &Client) -> Vec<ExportInfo>;
    /// The export for a name as it came over the wire (`""` is the default export), and its address. What a client may
    /// not see does not exist for it; what it may only read is read-only for it.
    fn find(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)>;
    /// Whether a client that was let in to the export of that name (as it was told, [`ExportInfo::name`]) still is. Asked
    /// when it enters transmission, and by [`crate::server::Acceptor::review`].
    fn admits(&self, _client: &Client, _export: &str) -> bool {
        true
    }
    /// What [`Self::find`] finds, for a client that enters transmission on it now: an export that is for one use is used
    /// up by that.
    fn enter(&self, client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        self.find(client, name)
    }
    /// What may be asked of an export with `BLOCK_STATUS`, under the name that [`Self::find`] knows it by; each name
    /// once.
    fn contexts(&self, client: &Client, name: &[u8]) -> Vec<MetaContext> {
        let tells = self.find(client, name).is_some_and(|(_, export)| export.tells_allocation);
        if tells { vec![MetaContext::allocation()] } else { Vec::new() }
    }
    /// No client may enter transmission any more. A directory need not know: the server that it is given to
    /// adds its own stop.
    fn stopping(&self) -> bool {
        false
    }
}

/// Where an export lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportAddress {
    /// Which reactor.
    pub reactor: usize,
    /// Its name there.
    pub index: crate::disk::ExportIndex,
}

/// The end of a successful negotiation.
#[derive(Debug)]
pub struct Agreement {
    /// Where the export lives.
    pub address: ExportAddress,
    /// What was agreed on.
    pub rules: Rules,
    /// Bytes that the client has sent behind its last option.
    pub leftover: Vec<u8>,
}

/// Why a negotiation ended without an agreement. Logged with these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The client asked to end it.
    Aborted,
    /// Flag bits that we did not offer.
    UnknownClientFlags,
    /// An option did not begin with the magic.
    BadOptionMagic,
    /// An option announced more data than we read.
    OptionTooLarge,
    /// More options than any client needs.
    TooManyOptions,
    /// `EXPORT_NAME` has no other way to say no.
    UnknownExport,
    /// What the protocol forbids.
    ExportNameAfterExtendedHeaders,
    /// The server stops.
    Stopping,
    /// `EXPORT_NAME` before TLS.
    TlsRequired,
    /// Bytes in clear behind `STARTTLS`: somebody may have put them there.
    PlaintextAfterStarttls,
}

/// What the driver should do.
#[derive(Debug)]
pub enum Step {
    /// Send the output, read more, call [`Handshake::receive`].
    NeedInput,
    /// Send the output, call [`Handshake::advance`] again.
    Again,
    /// Send the output, carry the TLS handshake out, call [`Handshake::secured`].
    StartTls,
    /// Send the output; the client is in transmission.
    Done(Agreement),
    /// Send the output, close.
    Close(Refusal),
}

/// What a client may agree on; without, the options are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Structured replies.
    pub structured_replies: bool,
    /// Meta contexts, for clients with structured replies or extended headers.
    pub meta_contexts: bool,
    /// Extended headers.
    pub extended_headers: bool,
}

impl Default for Offer {
    fn default() -> Self {
        Self { structured_replies: true, meta_contexts: true, extended_headers: true }
    }
}

enum State {
    ClientFlags,
    Options,
}

/// How TLS stands with a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tls {
    /// It is not spoken here.
    Off,
    /// It must come first.
    Required,
    /// It has come.
    Done,
}

/// One client in negotiation.
pub struct Handshake {
    directory: Arc<dyn Directory>,
    client: Client,
    offer: Offer,
    limits: HandshakeLimits,
    state: State,
    tls: Tls,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    choice: Option<meta::Choice>,
    options: usize,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What `INFO` and `GO` carry.
struct InfoRequest<'a> {
    name: &'a [u8],
    wants_name: bool,
    wants_description: bool,
    wants_block_size: bool,
}

impl Handshake {
    /// A client that has just connected over a Unix socket.
    pub fn new(directory: Arc<dyn Directory>, offer: Offer) -> Self {
        Self {
            directory,
            client: Client::unix(),
            offer,
            limits: HandshakeLimits::default(),
            state: State::ClientFlags,
            tls: Tls::Off,
            no_zeroes: false,
            structured: false,
            extended: false,
            choice: None,
            options: 0,
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    /// The same for that client.
    #[must_use]
    pub fn with_client(mut self, client: Client) -> Self {
        self.client = client;
        self
    }

    /// The same within those bounds.
    #[must_use]
    pub fn within(mut self, limits: HandshakeLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The same, but nothing is agreed on before the client has begun TLS.
    #[must_use]
    pub fn requiring_tls(mut self) -> Self {
        self.tls = Tls::Required;
        self
    }

    /// TLS has begun, and the client is known by its certificate. Whatever was agreed on before is forgotten: it may
    /// have come from somebody else. Only its flags stay, as the protocol demands; they lay out one reply.
    pub fn secured(&mut self, client: Client) {
        self.client = client;
        self.tls = Tls::Done;
        self.structured = false;
        self.extended = false;
        self.choice = None;
        self.input.clear();
    }

    /// Who it is.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The first bytes a server sends.
    pub fn greeting() -> [u8; 18] {
        let mut bytes = [0; 18];
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        bytes[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[16..].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// Adds bytes from the client.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// What must be sent before anything else is done.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Handles at most one message.
    pub fn advance(&mut self) -> Step {
        match self.state {
            State::ClientFlags => self.client_flags(),
            State::Options => self.option(),
        }
    }

    fn client_flags(&mut self) -> Step {
        let Some((bytes, _)) = self.input.split_first_chunk::<4>() else { return Step::NeedInput };
        let flags = u32::from_be_bytes(*bytes);
        let known = u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        if flags & !known != 0 {
            return Step::Close(Refusal::UnknownClientFlags);
        }
        self.no_zeroes = flags & u32::from(handshake_flag::NO_ZEROES) != 0;
        self.input.drain(..4);
        self.state = State::Options;
        Step::Again
    }

    fn option(&mut self) -> Step {
        let Some(header) = self.input.first_chunk::<OPTION_HEADER_BYTES>() else { return Step::NeedInput };
        let (magic, rest) = header.split_at(8);
        let (number, length) = rest.split_at(4);
        if magic != OPTION_MAGIC.to_be_bytes() {
            return Step::Close(Refusal::BadOptionMagic);
        }
        let word = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
        let (number, length) = (word(number), word(length) as usize);
        let too_large = length > self.limits.option_bytes_max;
        if too_large && number == option::EXPORT_NAME {
            // Its only answer is the export itself: a client would take a refusal for the size.
            return Step::Close(Refusal::OptionTooLarge);
        }
        if too_large {
            self.refuse(number, reply::ERR_TOO_BIG, "option data longer than is read here");
            return Step::Close(Refusal::OptionTooLarge);
        }
        if self.input.len() < OPTION_HEADER_BYTES + length {
            return Step::NeedInput;
        }
        self.options += 1;
        if self.options > self.limits.options_max + OPTIONS_PER_EXPORT * self.directory.count(&self.client) {
            return Step::Close(Refusal::TooManyOptions);
        }
        let data: Vec<u8> =
            self.input.drain(..OPTION_HEADER_BYTES + length).skip(OPTION_HEADER_BYTES).collect();
        self.dispatch(number, &data)
    }

    fn dispatch(&mut self, number: u32, data: &[u8]) -> Step {
        if self.tls == Tls::Required && number != option::ABORT {
            return self.before_tls(number, data);
        }
        match number {
            option::STARTTLS if self.tls == Tls::Done => {
                self.refuse(number, reply::ERR_INVALID, "TLS has begun already");
                Step::Again
            }
            option::EXPORT_NAME => self.export_name(data),
            option::ABORT => {
                self.answer(number, reply::ACK, &[]);
                Step::Close(Refusal::Aborted)
            }
            option::LIST => self.list(data),
            option::INFO | option::GO => self.info(number, data),
            option::STRUCTURED_REPLY if self.offer.structured_replies => self.structured_reply(data),
            option::EXTENDED_HEADERS if self.offer.extended_headers => self.extended_headers(data),
            option::LIST_META_CONTEXT if self.offer.meta_contexts => self.list_meta_contexts(data),
            option::SET_META_CONTEXT if self.offer.meta_contexts => self.set_meta_contexts(data),
            _ => {
                self.refuse(number, reply::ERR_UNSUP, "option not supported");
                Step::Again
            }
        }
    }

    fn before_tls(&mut self, number: u32, data: &[u8]) -> Step {
        match number {
            option::EXPORT_NAME => Step::Close(Refusal::TlsRequired),
            option::STARTTLS if !data.is_empty() => {
                self.refuse(number, reply::ERR_INVALID, "STARTTLS takes no data");
                Step::Again
            }
            option::STARTTLS if !self.input.is_empty() => Step::Close(Refusal::PlaintextAfterStarttls),
            option::STARTTLS => {
                self.answer(number, reply::ACK, &[]);
                Step::StartTls
            }
            _ => {
                self.refuse(number, reply::ERR_TLS_REQD, "begin with STARTTLS");
                Step::Again
            }
        }
    }

    fn answer(&mut self, number: u32, kind: u32, data: &[u8]) {
        option_reply(&mut self.output, number, kind, data);
    }

    /// Texts are ours: nothing that a client sent is echoed.
    fn refuse(&mut self, number: u32, kind: u32, text: &str) {
        self.answer(number, kind, text.as_bytes());
    }

    fn list(&mut self, data: &[u8]) -> Step {
        if !data.is_empty() {
            self.refuse(option::LIST, reply::ERR_INVALID, "LIST takes no data");
            return Step::Again;
        }
        for export in self.directory.list(&self.client) {
            let name = export.name.as_bytes();
            let mut entry = Vec::with_capacity(4 + name.len() + export.description.len());
            // Names are bounded by MAX_STRING_BYTES when an export is made.
            entry.extend_from_slice(&u32::try_from(name.len()).expect("a short name").to_be_bytes());
            entry.extend_from_slice(name);
            entry.extend_from_slice(export.description.as_bytes());
            self.answer(option::LIST, reply::SERVER, &entry);
        }
        self.answer(option::LIST, reply::ACK, &[]);
        Step::Again
    }

    fn structured_reply(&mut self, data: &[u8]) -> Step {
        if data.is_empty() && self.extended {
            let text = "extended headers take precedence";
            self.refuse(option::STRUCTURED_REPLY, reply::ERR_EXT_HEADER_REQD, text);
        } else if data.is_empty() {
            self.structured = true;
            self.answer(option::STRUCTURED_REPLY, reply::ACK, &[]);
        } else {
            self.refuse(option::STRUCTURED_REPLY, reply::ERR_INVALID, "STRUCTURED_REPLY takes no data");
        }
        Step::Again
    }

    /// They bring all that structured replies do.
    fn extended_headers(&mut self, data: &[u8]) -> Step {
        if data.is_empty() {
            (self.extended, self.structured) = (true, true);
            self.answer(option::EXTENDED_HEADERS, reply::ACK, &[]);
        } else {
            self.refuse(option::EXTENDED_HEADERS, reply::ERR_INVALID, "EXTENDED_HEADERS takes no data");
        }
        Step::Again
    }

    fn export_name(&mut self, name: &[u8]) -> Step {
        if self.directory.stopping() {
            return Step::Close(Refusal::Stopping);
        }
        if self.extended {
            return Step::Close(Refusal::ExportNameAfterExtendedHeaders);
        }
        let found =
            if name.len() <= MAX_STRING_BYTES { self.directory.enter(&self.client, name) } else { None };
        let Some((address, export)) = found else { return Step::Close(Refusal::UnknownExport) };
        self.output.extend_from_slice(&export.size.to_be_bytes());
        self.output.extend_from_slice(&export.transmission_flags(self.structured).to_be_bytes());
        if !self.no_zeroes {
            self.output.extend_from_slice(&[0; LEGACY_ZERO_BYTES]);
        }
        self.done(name, address, export)
    }

    /// `name`: as the client called it.
    fn done(&mut self, name: &[u8], address: ExportAddress, export: ExportInfo) -> Step {
        let contexts = self.chosen_for(name, address);
        let rules = Rules { contexts, extended: self.extended, ..Rules::new(export, self.structured) };
        Step::Done(Agreement { address, rules, leftover: std::mem::take(&mut self.input) })
    }

    fn info(&mut self, number: u32, data: &[u8]) -> Step {
        let request = match parse_info(data) {
            Ok(request) => request,
            Err(kind) => {
                self.refuse(number, kind, "malformed or oversized export name");
                return Step::Again;
            }
        };
        if self.directory.stopping() {
            self.refuse(number, reply::ERR_SHUTDOWN, "the server is stopping");
            return Step::Again;
        }
        let found = match number {
            option::GO => self.directory.enter(&self.client, request.name),
            _ => self.directory.find(&self.client, request.name),
        };
        let Some((address, export)) = found else {
            self.refuse(number, reply::ERR_UNKNOWN, "no such export");
            return Step::Again;
        };
        self.describe(number, address, &export, &request);
        self.answer(number, reply::ACK, &[]);
        if number == option::GO { self.done(request.name, address, export) } else { Step::Again }
    }

    fn describe(
        &mut self,
        number: u32,
        address: ExportAddress,
        export: &ExportInfo,
        request: &InfoRequest<'_>,
    ) {
        let filter = self.extended && self.has_chosen_for(request.name, address);
        let filter = if filter { transmission_flag::BLOCK_STATUS_PAYLOAD } else { 0 };
        let mut item = |kind: u16, data: &[u8]| {
            let bytes: Vec<u8> = kind.to_be_bytes().iter().chain(data).copied().collect();
            option_reply(&mut self.output, number, reply::INFO, &bytes);
        };
        let flags = (export.transmission_flags(self.structured) | filter).to_be_bytes();
        item(info::EXPORT, &[&export.size.to_be_bytes()[..], &flags].concat());
        if request.wants_name {
            item(info::NAME, export.name.as_bytes());
        }
        if request.wants_description && !export.description.is_empty() {
            item(info::DESCRIPTION, export.description.as_bytes());
        }
        if request.wants_block_size {
            let sizes = [export.block_minimum, export.block_preferred, MAX_PAYLOAD_BYTES];
            item(info::BLOCK_SIZE, &sizes.map(u32::to_be_bytes).concat());
        }
    }
}

/// Parses the data of `INFO` and `GO`: name length, name, count, that many numbers, and nothing else.
fn parse_info(data: &[u8]) -> Result<InfoRequest<'_>, u32> {
    let (length, rest) = data.split_first_chunk::<4>().ok_or(reply::ERR_INVALID)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (name, rest) = rest.split_at_checked(length).ok_or(reply::ERR_INVALID)?;
    if length > MAX_STRING_BYTES {
        return Err(reply::ERR_TOO_BIG);
    }
    let (count, kinds) = rest.split_first_chunk::<2>().ok_or(reply::ERR_INVALID)?;
    if kinds.len() != usize::from(u16::from_be_bytes(*count)) * 2 {
        return Err(reply::ERR_INVALID);
    }
    let wants = |kind: u16| kinds.chunks_exact(2).any(|bytes| bytes == kind.to_be_bytes());
    Ok(InfoRequest {
        name,
        wants_name: wants(info::NAME),
        wants_description: wants(info::DESCRIPTION),
        wants_block_size: wants(info::BLOCK_SIZE),
    })
}
