//! Arbitrary and mutated bytes, in arbitrary pieces, against the parts of the protocol that do no I/O.
//!
//! Two machines are fuzzed: the option phase ([`Handshake`]) and transmission ([`Engine`] with memory
//! behind it). Each is compared with an oracle of its own, which reads the same bytes without sharing code
//! with the server: what is answered, with which error, with which data, and how the connection ends.
//!
//! `FUZZ_CASES` sets the number of cases per property (default 500).

use std::sync::Arc;

use fixtures::nbd::client::{context_data, info_data, option, option_message};
use fixtures::nbd::codec::{self, Decoder, Expected, command, errno, extended_request, flag, request};
use nbd_server::client::Client;
use nbd_server::connection::{Limits, Nanos, ReceiveOp, SendBatch, SocketAction};
use nbd_server::disk::{Disk, DiskOp, ExportIndex};
use nbd_server::engine::{Engine, Negotiated};
use nbd_server::export::{Export, ExportInfo, Separate};
use nbd_server::handshake::{Agreement, Directory, ExportAddress, Handshake, Offer, Refusal, Step};
use nbd_server::memory_export::MemoryExport;
use nbd_server::reactor::buffer::Pool;
use nbd_server::status::{Chosen, ContextKey, MetaContext};
use nbd_server::transmission::{CloseReason, Rules};
use nbd_server::wire::{Errno, ReplyForm};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

fn config() -> ProptestConfig {
    let cases = std::env::var("FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// One thing that goes wrong on the way.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Insert(Index, Vec<u8>),
    Repeat(Index, usize),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let at = any::<Index>;
    let one = prop_oneof![
        3 => (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, bit)),
        3 => (at(), prop_oneof![Just(0), Just(0xff), Just(0x80), any::<u8>()]).prop_map(|(at, to)| Mutation::Set(at, to)),
        1 => at().prop_map(Mutation::Cut),
        1 => (at(), 1..40_usize).prop_map(|(at, bytes)| Mutation::Remove(at, bytes)),
        1 => (at(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        1 => (at(), 1..80_usize).prop_map(|(at, bytes)| Mutation::Repeat(at, bytes)),
    ];
    // Half of the streams stay as they are: the oracle must hold for good ones first.
    prop_oneof![Just(Vec::new()), vec(one, 1..4)]
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        if bytes.is_empty() {
            break;
        }
        let len = bytes.len();
        match mutation {
            Mutation::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Mutation::Set(at, to) => bytes[at.index(len)] = *to,
            Mutation::Cut(at) => bytes.truncate(at.index(len)),
            Mutation::Remove(at, count) => drop(bytes.drain(at.index(len)..len.min(at.index(len) + count))),
            Mutation::Insert(at, more) => {
                drop(bytes.splice(at.index(len)..at.index(len), more.iter().copied()));
            }
            Mutation::Repeat(at, count) => {
                let piece = bytes[at.index(len)..len.min(at.index(len) + count)].to_vec();
                drop(bytes.splice(at.index(len)..at.index(len), piece));
            }
        }
    }
    bytes
}

/// Sizes of the pieces in which a stream arrives or leaves, used again and again.
#[derive(Clone, Debug)]
struct Pieces {
    sizes: Vec<usize>,
    next: usize,
}

impl Pieces {
    fn next(&mut self) -> usize {
        self.next += 1;
        self.sizes[(self.next - 1) % self.sizes.len()]
    }
}

fn pieces() -> impl Strategy<Value = Pieces> {
    let size = prop_oneof![2 => 1..40_usize, 2 => 1..5000_usize, 1 => Just(1 << 20)];
    vec(size, 1..8).prop_map(|sizes| Pieces { sizes, next: 0 })
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

// The option phase.

struct Shelf;

const SHELF: [&str; 2] = ["disk", "other"];
/// Of the first export.
const CONTEXTS: [&str; 3] = ["base:allocation", "x-fuzz:a", "x-fuzz:b"];

impl Directory for Shelf {
    fn count(&self, _client: &Client) -> usize {
        SHELF.len()
    }

    fn list(&self, _client: &Client) -> Vec<ExportInfo> {
        SHELF.map(|name| ExportInfo::new(name, 1 << 20)).to_vec()
    }

    fn find(&self, _client: &Client, name: &[u8]) -> Option<(ExportAddress, ExportInfo)> {
        let found = SHELF.iter().position(|known| name.is_empty() || known.as_bytes() == name)?;
        let index = ExportIndex(u32::try_from(found).expect("a short shelf"));
        Some((ExportAddress { reactor: 0, index }, ExportInfo::new(SHELF[found], 1 << 20)))
    }

    fn contexts(&self, _client: &Client, name: &[u8]) -> Vec<MetaContext> {
        let context = |(key, name): (u64, &str)| MetaContext { name: name.into(), key: ContextKey(key) };
        if name == b"other" { Vec::new() } else { (0..).zip(CONTEXTS).map(context).collect() }
    }
}

/// The largest answer to one option: a list of our two exports, or four pieces of information.
const ANSWER_MAX: usize = 512;
/// An option with its header: what may be waited for at most.
const OPTION_MAX: usize = 16 + (64 << 10);

fn options() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![Just("disk"), Just("other"), Just(""), Just("none")];
    let kinds = vec(0..5_u16, 0..4);
    let ask = (name, kinds).prop_map(|(name, kinds)| info_data(name.as_bytes(), &kinds));
    // Those that end the negotiation are rare, so that the limit on options is met as well.
    let message = prop_oneof![
        20 => Just(option_message(option::LIST, &[])),
        20 => Just(option_message(option::STRUCTURED_REPLY, &[])),
        10 => Just(option_message(option::EXTENDED_HEADERS, &[])),
        20 => ask.clone().prop_map(|data| option_message(option::INFO, &data)),
        2 => ask.prop_map(|data| option_message(option::GO, &data)),
        1 => (0..3_usize).prop_map(|at| option_message(option::EXPORT_NAME, ["disk", "", "none"][at].as_bytes())),
        1 => vec(any::<u8>(), 0..50).prop_map(|data| option_message(option::ABORT, &data)),
        20 => (8..14_u32, vec(any::<u8>(), 0..300)).prop_map(|(number, data)| option_message(number, &data)),
        10 => vec(any::<u8>(), 0..9000).prop_map(|data| option_message(option::LIST_META_CONTEXT, &data)),
        30 => contexts(),
    ];
    let flags = prop_oneof![8 => 0..4_u32, 1 => any::<u32>()];
    (flags, prop_oneof![3 => vec(message.clone(), 0..12), 1 => vec(message, 30..60)])
        .prop_map(|(flags, messages)| [flags.to_be_bytes().to_vec(), messages.concat()].concat())
}

fn contexts() -> impl Strategy<Value = Vec<u8>> {
    let queries =
        ["base:", "base:allocation", "base:other", "x-fuzz:", "x-fuzz:a", "x-fuzz:b", "x-", "", "none:a"];
    let queries = prop_oneof![8 => vec((0..queries.len()).prop_map(move |at| queries[at]), 0..5), 1 => Just(vec!["base:"; 65])];
    let number = prop_oneof![1 => Just(option::LIST_META_CONTEXT), 2 => Just(option::SET_META_CONTEXT)];
    let name = prop_oneof![8 => Just("disk"), 2 => Just(""), 1 => Just("other"), 1 => Just("none")];
    (number, name, queries)
        .prop_map(|(number, name, queries)| option_message(number, &context_data(name.as_bytes(), &queries)))
}

fn handshake_bytes() -> impl Strategy<Value = Vec<u8>> {
    let mutated = (options(), mutations()).prop_map(|(bytes, mutations)| mutate(bytes, &mutations));
    prop_oneof![1 => vec(any::<u8>(), 0..2000), 9 => mutated]
}

/// How the server left the handshake, and all it had said.
struct Haggled {
    /// `None`: it wants more than there is.
    end: Option<Result<Agreement, Refusal>>,
    said: Vec<u8>,
    /// Bytes handed over.
    fed: usize,
}

/// Drives a handshake as the server's driver does: input only when it is asked for.
fn haggle(input: &[u8], pieces: &mut Pieces) -> Haggled {
    let mut handshake = Handshake::new(Arc::new(Shelf), Offer::default());
    let (mut said, mut fed, mut fed_since_progress) = (Vec::new(), 0, 0);
    loop {
        let step = handshake.advance();
        let output = handshake.take_output();
        assert!(output.len() <= ANSWER_MAX, "{} bytes for one option", output.len());
        said.extend_from_slice(&output);
        match step {
            Step::Again => fed_since_progress = 0,
            Step::StartTls => panic!("TLS is begun where none is spoken"),
            Step::Done(agreement) => return Haggled { end: Some(Ok(agreement)), said, fed },
            Step::Close(refusal) => return Haggled { end: Some(Err(refusal)), said, fed },
            Step::NeedInput if fed == input.len() => return Haggled { end: None, said, fed },
            Step::NeedInput => {
                let bytes = pieces.next().min(4096).min(input.len() - fed);
                assert!(fed_since_progress <= OPTION_MAX + 4096, "hoards input");
                handshake.receive(&input[fed..fed + bytes]);
                fed += bytes;
                fed_since_progress += bytes;
            }
        }
    }
}

/// What the bytes mean, read by another hand.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Waits,
    Closes(Refusal),
    /// The bytes of handshake before transmission, how replies are written, and what contexts were chosen.
    Enters(usize, ReplyForm, Vec<u64>),
}

const ERR_UNSUP: u32 = 0x8000_0001;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_UNKNOWN: u32 = 0x8000_0006;
const ERR_TOO_BIG: u32 = 0x8000_0009;
const ERR_EXT_HEADER_REQD: u32 = 0x8000_000a;

/// The last answer (1 is ACK) to each option, and the end.
fn understand(input: &[u8]) -> (Vec<(u32, u32)>, Meaning) {
    let mut answers = Vec::new();
    if input.len() < 4 {
        return (answers, Meaning::Waits);
    }
    if word(input, 0) > 3 {
        return (answers, Meaning::Closes(Refusal::UnknownClientFlags));
    }
    let (mut at, mut structured, mut extended, mut choice) = (4, false, false, None);
    let chosen = |choice: Choice<'_>, name: &[u8]| match choice {
        Some((of, keys)) if of == name => keys,
        _ => Vec::new(),
    };
    for count in 0.. {
        let rest = &input[at..];
        if rest.len() < 16 {
            return (answers, Meaning::Waits);
        }
        let (number, length) = (word(rest, 8), word(rest, 12) as usize);
        if &rest[..8] != b"IHAVEOPT" {
            return (answers, Meaning::Closes(Refusal::BadOptionMagic));
        }
        if length > 64 << 10 {
            // EXPORT_NAME has no answer but the export itself.
            if number != option::EXPORT_NAME {
                answers.push((number, ERR_TOO_BIG));
            }
            return (answers, Meaning::Closes(Refusal::OptionTooLarge));
        }
        if rest.len() < 16 + length {
            return (answers, Meaning::Waits);
        }
        if count == 32 + 4 * SHELF.len() {
            return (answers, Meaning::Closes(Refusal::TooManyOptions));
        }
        let data = &rest[16..16 + length];
        at += 16 + length;
        match number {
            option::EXPORT_NAME if extended => {
                return (answers, Meaning::Closes(Refusal::ExportNameAfterExtendedHeaders));
            }
            option::STRUCTURED_REPLY if extended && data.is_empty() => {
                answers.push((number, ERR_EXT_HEADER_REQD));
            }
            option::EXPORT_NAME if Shelf.find(&Client::unix(), data).is_some() => {
                return (answers, Meaning::Enters(at, form(structured, extended), chosen(choice, data)));
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let (answer, keys) = answer_to_contexts(data, structured);
                answers.push((number, answer));
                if number == option::SET_META_CONTEXT {
                    choice = keys;
                }
            }
            option::EXPORT_NAME => return (answers, Meaning::Closes(Refusal::UnknownExport)),
            _ => answers.push((number, answer(number, data))),
        }
        match answers.last() {
            Some((option::ABORT, _)) => return (answers, Meaning::Closes(Refusal::Aborted)),
            Some((option::GO, 1)) => {
                let name = &data[4..4 + word(data, 0) as usize];
                return (answers, Meaning::Enters(at, form(structured, extended), chosen(choice, name)));
            }
            Some((option::STRUCTURED_REPLY, 1)) => structured = true,
            Some((option::EXTENDED_HEADERS, 1)) => (structured, extended) = (true, true),
            _ => {}
        }
    }
    (answers, Meaning::Waits)
}

fn form(structured: bool, extended: bool) -> ReplyForm {
    match (structured, extended) {
        (_, true) => ReplyForm::Extended,
        (true, false) => ReplyForm::Structured,
        (false, false) => ReplyForm::Simple,
    }
}

fn answer(number: u32, data: &[u8]) -> u32 {
    match number {
        option::ABORT => 1,
        option::LIST | option::STRUCTURED_REPLY => {
            if data.is_empty() {
                1
            } else {
                ERR_INVALID
            }
        }
        option::EXTENDED_HEADERS if data.is_empty() => 1,
        option::EXTENDED_HEADERS => ERR_INVALID,
        option::INFO | option::GO => answer_to_info(data),
        _ => ERR_UNSUP,
    }
}

/// For which export which contexts are chosen.
type Choice<'a> = Option<(&'a [u8], Vec<u64>)>;

/// The answer, and what would be chosen.
fn answer_to_contexts(data: &[u8], structured: bool) -> (u32, Choice<'_>) {
    let mut strings = Vec::new();
    let (mut at, mut left) = (0, 1);
    while left > 0 {
        let Some(end) = (data.len() >= at + 4).then(|| at + 4 + word(data, at) as usize) else {
            return (ERR_INVALID, None);
        };
        if end > data.len() {
            return (ERR_INVALID, None);
        }
        if end - at - 4 > 4096 {
            return (ERR_TOO_BIG, None);
        }
        strings.push(&data[at + 4..end]);
        (at, left) = (end, left - 1);
        if strings.len() == 1 {
            if data.len() < at + 4 {
                return (ERR_INVALID, None);
            }
            left = word(data, at) as usize;
            at += 4;
            if left * 4 > data.len() - at {
                return (ERR_INVALID, None);
            }
            if left > 64 {
                return (ERR_TOO_BIG, None);
            }
        }
    }
    if at != data.len() || !structured {
        return (ERR_INVALID, None);
    }
    let Some(_) = Shelf.find(&Client::unix(), strings[0]) else { return (ERR_UNKNOWN, None) };
    let wanted = |name: &str| strings[0] != b"other" && strings[1..].contains(&name.as_bytes());
    let keys = (0..).zip(CONTEXTS).filter(|(_, name)| wanted(name)).map(|(key, _)| key).collect();
    (1, Some((strings[0], keys)))
}

fn answer_to_info(data: &[u8]) -> u32 {
    if data.len() < 4 {
        return ERR_INVALID;
    }
    let name = word(data, 0) as usize;
    if name > data.len() - 4 {
        return ERR_INVALID;
    }
    if name > 4096 {
        return ERR_TOO_BIG;
    }
    match &data[4 + name..] {
        [a, b, kinds @ ..] if kinds.len() == 2 * usize::from(u16::from_be_bytes([*a, *b])) => {
            if Shelf.find(&Client::unix(), &data[4..4 + name]).is_some() { 1 } else { ERR_UNKNOWN }
        }
        _ => ERR_INVALID,
    }
}

/// Takes the server's words apart: the last answer to each option. What follows them is returned.
fn last_answers(mut said: &[u8]) -> (Vec<(u32, u32)>, &[u8]) {
    let mut answers = Vec::new();
    while said.len() >= 20 && long(said, 0) == 0x0003_e889_0455_65a9 {
        let (number, kind, length) = (word(said, 8), word(said, 12), word(said, 16) as usize);
        if kind == 1 || kind & 0x8000_0000 != 0 {
            answers.push((number, kind));
        }
        said = &said[20 + length..];
    }
    (answers, said)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_handshake_does_what_the_bytes_mean(input in handshake_bytes(), mut pieces in pieces()) {
        let haggled = haggle(&input, &mut pieces);
        let (expected, meaning) = understand(&input);
        let (answers, rest) = last_answers(&haggled.said);
        prop_assert_eq!(answers, expected);
        match haggled.end {
            None => prop_assert_eq!(meaning, Meaning::Waits),
            Some(Err(refusal)) => prop_assert_eq!(meaning, Meaning::Closes(refusal)),
            Some(Ok(agreement)) => {
                let entered = haggled.fed - agreement.leftover.len();
                let keys = agreement.rules.contexts.iter().map(|chosen| chosen.key.0).collect();
                prop_assert_eq!(meaning, Meaning::Enters(entered, agreement.rules.form(), keys));
                prop_assert_eq!(&agreement.leftover[..], &input[entered..haggled.fed]);
                // Only EXPORT_NAME says anything that is not an option reply.
                prop_assert!(matches!(rest.len(), 0 | 10 | 134));
            }
        }
    }
}

// Transmission.

const EXPORT_BYTES: usize = 1 << 20;
/// The unit of memory's allocation.
const CHUNK_BYTES: usize = 64 << 10;
/// The number of the only context, where it was chosen.
const CONTEXT: u32 = 7;
const PAYLOAD_MAX: u32 = 32 << 20;

struct NoDisk;

impl Disk for NoDisk {
    fn submit(&mut self, _export: ExportIndex, op: DiskOp) {
        panic!("memory asked for {op:?}");
    }
}

/// What a connection is like.
#[derive(Clone, Debug)]
struct Setting {
    structured: bool,
    /// Extended headers; structured then, too.
    extended: bool,
    /// The allocation was chosen; only where structured.
    contexts: bool,
    read_only: bool,
    fast_zero: bool,
    block: u32,
    requests_max: usize,
    receive_bytes: usize,
    leftover: usize,
}

fn setting() -> impl Strategy<Value = Setting> {
    let leftover = prop_oneof![3 => Just(0), 1 => 0..200_usize, 1 => Just(1 << 20)];
    let forms = prop_oneof![2 => Just((false, false)), 3 => Just((true, false)), 3 => Just((true, true))];
    let choices = (forms, prop::bool::weighted(0.8), prop::bool::weighted(0.1), any::<bool>(), leftover);
    let sizes =
        (prop_oneof![4 => Just(1), 1 => Just(512)], 1..12_usize, prop_oneof![32..200_usize, Just(128 << 10)]);
    (choices, sizes).prop_map(|(choices, (block, requests_max, receive_bytes))| {
        let ((structured, extended), contexts, read_only, fast_zero, leftover) = choices;
        Setting {
            structured,
            extended,
            contexts: contexts && structured,
            read_only,
            fast_zero,
            block,
            requests_max,
            receive_bytes,
            leftover,
        }
    })
}

impl Setting {
    fn limits(&self) -> Limits {
        Limits {
            requests_max: self.requests_max,
            // Little more than one maximum payload, so that it is met.
            payload_bytes_max: PAYLOAD_MAX as usize + 1,
            receive_bytes: self.receive_bytes,
            ..Limits::default()
        }
    }

    /// Payload in blocks of powers of two, small reads in whole blocks, the read-ahead, two batches' heads with
    /// a chunk's header per 64 KiB of every read.
    fn buffers_max(&self) -> usize {
        let payloads = 2 * (PAYLOAD_MAX as usize + 1) + self.requests_max * 4096;
        let heads = 2 * (8192 + self.requests_max * 64 * (2 + EXPORT_BYTES / 65_536)).next_power_of_two();
        payloads + heads + (self.receive_bytes.max(self.leftover)).next_power_of_two().max(4096)
    }

    fn info(&self) -> ExportInfo {
        let mut info = ExportInfo::new("memory", EXPORT_BYTES as u64);
        (info.read_only, info.fast_zero, info.block_minimum) = (self.read_only, self.fast_zero, self.block);
        info
    }

    fn rules(&self) -> Rules {
        let chosen: &[Chosen] = &[Chosen { id: CONTEXT, key: ContextKey::ALLOCATION }];
        let contexts = chosen[..usize::from(self.contexts)].into();
        Rules { extended: self.extended, contexts, ..Rules::new(self.info(), self.structured) }
    }

    fn header_bytes(&self) -> usize {
        if self.extended { 32 } else { 28 }
    }
}

fn requests(extended: bool) -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![
        6 => 0..EXPORT_BYTES as u64,
        3 => (0..16_u64).prop_map(|chunk| chunk << 16),
        2 => (0..2048_u64).prop_map(|block| block << 9),
        1 => Just(EXPORT_BYTES as u64),
        1 => any::<u64>(),
    ];
    let length = prop_oneof![
        6 => 0..9000_u32,
        3 => (0..5_u32).prop_map(|chunks| chunks << 16),
        2 => (0..9_u32).prop_map(|blocks| blocks << 9),
        1 => Just(PAYLOAD_MAX + 1),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![6 => Just(0_u16), 3 => (0..6).prop_map(|bit| 1_u16 << bit), 1 => any::<u16>()];
    let command = prop_oneof![30 => 0..2_u16, 16 => 3..8_u16, 1 => Just(2), 1 => any::<u16>()];
    let one = (flags, command, any::<u64>(), offset, length, any::<u8>())
        .prop_map(move |request| if extended { encode_extended(request) } else { encode(request) });
    vec(one, 0..30).prop_map(|requests| requests.concat())
}

type Asked = (u16, u16, u64, u64, u32, u8);

/// Writes have the flag of a payload, mostly, and others have not; a payload of a question may be a good one.
fn encode_extended((flags, number, cookie, offset, length, fill): Asked) -> Vec<u8> {
    let usual = if number == command::WRITE { flag::PAYLOAD_LEN } else { 0 };
    let flags = flags ^ usual;
    if flags & flag::PAYLOAD_LEN == 0 {
        // Effects may be longer than 32 bits can tell.
        let length = if fill == 0 { u64::from(length) << 30 } else { u64::from(length) };
        return extended_request(flags, number, cookie, offset, length);
    }
    if number == command::BLOCK_STATUS && fill < 0xe0 {
        let payload =
            [&u64::from(length).to_be_bytes()[..], &(CONTEXT - u32::from(fill < 0x20)).to_be_bytes()];
        return [extended_request(flags, number, cookie, offset, 12), payload.concat()].concat();
    }
    let length = length as usize % (300 << 10);
    let mut bytes = extended_request(flags, number, cookie, offset, length as u64);
    bytes.resize(32 + length, fill);
    bytes
}

fn encode((flags, number, cookie, offset, length, fill): Asked) -> Vec<u8> {
    // A write with a payload beyond all measure would only make the test slow.
    let length = if number == command::WRITE { length % (300 << 10) } else { length };
    let mut bytes = request(flags, number, cookie, offset, length);
    if number == command::WRITE {
        bytes.resize(28 + length as usize, fill);
    }
    bytes
}

fn request_bytes(extended: bool) -> impl Strategy<Value = Vec<u8>> {
    let mutated = (requests(extended), mutations()).prop_map(|(bytes, mutations)| mutate(bytes, &mutations));
    prop_oneof![1 => vec(any::<u8>(), 0..2000), 9 => mutated]
}

/// What a request must be answered with.
#[derive(Debug)]
struct Answer {
    cookie: u64,
    expected: Expected,
    result: Result<Vec<u8>, u32>,
    one_piece: bool,
    /// What is told of the allocation.
    status: Vec<(u64, u64)>,
}

/// How a stream of requests ends.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Goodbye,
    PeerLeft,
    /// Answers that were not sent yet need not be sent any more.
    Broken(CloseReason),
}

/// A memory disk and the protocol's rules, by another hand: requests of one connection, one after another.
struct Oracle {
    setting: Setting,
    content: Vec<u8>,
    allocated: Vec<bool>,
}

impl Oracle {
    fn new(setting: &Setting) -> Self {
        let allocated = vec![false; EXPORT_BYTES / CHUNK_BYTES];
        Self { setting: setting.clone(), content: vec![0; EXPORT_BYTES], allocated }
    }

    /// Bytes of all answers at most: their data, and a chunk's header for every 64 KiB of them.
    fn said_max(mut self, input: &[u8]) -> usize {
        let bytes = |answer: &Answer| answer.result.as_ref().map_or(0, Vec::len);
        let most =
            |answer: &Answer| bytes(answer) + 64 * (2 + bytes(answer) / 65_536) + 16 * answer.status.len();
        self.replay(input).0.iter().map(most).sum()
    }

    fn replay(&mut self, mut input: &[u8]) -> (Vec<Answer>, End) {
        let mut answers = Vec::new();
        let (bytes, magic) = (self.setting.header_bytes(), self.magic());
        loop {
            if input.len() < bytes {
                return (answers, End::PeerLeft);
            }
            if word(input, 0) != magic {
                return (answers, End::Broken(CloseReason::BadRequestMagic));
            }
            let (header, rest) = input.split_at(bytes);
            if word(header, 4) as u16 == command::DISC {
                return (answers, End::Goodbye);
            }
            let payload = if self.has_payload(header) { self.length(header) } else { 0 };
            if payload > 64 << 20 {
                return (answers, End::Broken(CloseReason::PayloadTooLarge));
            }
            let Some((payload, rest)) = rest.split_at_checked(payload as usize) else {
                return (answers, End::PeerLeft);
            };
            answers.push(self.answer(header, payload));
            input = rest;
        }
    }

    fn magic(&self) -> u32 {
        if self.setting.extended { 0x21e4_1c71 } else { 0x2560_9513 }
    }

    fn length(&self, header: &[u8]) -> u64 {
        if self.setting.extended { long(header, 24) } else { u64::from(word(header, 24)) }
    }

    fn has_payload(&self, header: &[u8]) -> bool {
        let (flags, number) = ((word(header, 4) >> 16) as u16, word(header, 4) as u16);
        number == command::WRITE || self.setting.extended && flags & flag::PAYLOAD_LEN != 0
    }

    fn answer(&mut self, header: &[u8], payload: &[u8]) -> Answer {
        let (flags, number) = ((word(header, 4) >> 16) as u16, word(header, 4) as u16);
        let (cookie, offset, length) = (long(header, 8), long(header, 16), self.length(header));
        let (read, question) = (number == command::READ, number == command::BLOCK_STATUS);
        // Of a question with a payload, that says how much is asked about.
        let filter = question && self.setting.extended && self.has_payload(header);
        let good = !filter || payload.len() == 12 && word(payload, 8) == CONTEXT;
        let length = if filter && good { long(payload, 0) } else { length };
        let refusal = self.refusal(flags, number, offset, length);
        let result = match refusal.or((!good).then_some(errno::EINVAL)) {
            Some(error) => Err(error),
            None => Ok(self.apply(flags, number, offset as usize, length as usize, payload)),
        };
        let one = flags & flag::REQ_ONE != 0;
        let status = if question && result.is_ok() { self.status(offset, length, one) } else { Vec::new() };
        let expected = Expected {
            read: read.then_some((offset, length.min(u64::from(PAYLOAD_MAX)) as u32)),
            status: question.then_some(codec::Asked { length, one, contexts: 1 }),
            offset,
        };
        let one_piece = read && flags & flag::DF != 0 && length > 0 && result.is_ok();
        Answer { cookie, expected, result, one_piece, status }
    }

    fn status(&self, offset: u64, length: u64, one: bool) -> Vec<(u64, u64)> {
        let flags = |at: u64| if self.allocated[at as usize / CHUNK_BYTES] { 0 } else { 3 };
        let mut told: Vec<(u64, u64)> = Vec::new();
        for at in offset..offset + length {
            match told.last_mut() {
                Some((bytes, same)) if *same == flags(at) => *bytes += 1,
                Some(_) if one => break,
                _ => told.push((1, flags(at))),
            }
        }
        told
    }

    fn refusal(&self, flags: u16, number: u16, offset: u64, length: u64) -> Option<u32> {
        let with_payload = if self.setting.extended { flag::PAYLOAD_LEN } else { 0 };
        let offered = match number {
            command::READ if self.setting.structured => flag::DF,
            command::WRITE => with_payload,
            command::READ | command::FLUSH | command::TRIM | command::CACHE => 0,
            command::WRITE_ZEROES if self.setting.fast_zero => flag::NO_HOLE | flag::FAST_ZERO,
            command::WRITE_ZEROES => flag::NO_HOLE,
            command::BLOCK_STATUS if self.setting.contexts && length > 0 => flag::REQ_ONE | with_payload,
            _ => return Some(errno::EINVAL),
        };
        let changes = matches!(number, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        let block = u64::from(self.setting.block);
        let carries = matches!(number, command::READ | command::WRITE);
        if flags & !(offered | flag::FUA) != 0 {
            Some(errno::EINVAL)
        } else if changes && self.setting.read_only {
            Some(errno::EPERM)
        } else if number == command::FLUSH {
            None
        } else if carries && length > u64::from(PAYLOAD_MAX)
            || !offset.is_multiple_of(block)
            || !length.is_multiple_of(block)
        {
            Some(errno::EINVAL)
        } else if u128::from(offset) + u128::from(length) > EXPORT_BYTES as u128 {
            let writes = matches!(number, command::WRITE | command::WRITE_ZEROES);
            Some(if writes { errno::ENOSPC } else { errno::EINVAL })
        } else {
            None
        }
    }

    fn apply(&mut self, flags: u16, number: u16, offset: usize, length: usize, payload: &[u8]) -> Vec<u8> {
        if number == command::FLUSH {
            return Vec::new();
        }
        let keeps = number == command::WRITE || flags & flag::NO_HOLE != 0;
        if matches!(number, command::WRITE | command::TRIM | command::WRITE_ZEROES) && length > 0 {
            for (chunk, allocated) in self.allocated.iter_mut().enumerate() {
                let (start, end) = (chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
                if keeps && offset < end && start < offset + length {
                    *allocated = true;
                } else if !keeps && offset <= start && end <= offset + length {
                    *allocated = false;
                }
            }
        }
        let range = &mut self.content[offset..offset + length];
        match number {
            command::READ => return range.to_vec(),
            command::WRITE => range.copy_from_slice(payload),
            command::TRIM | command::WRITE_ZEROES => range.fill(0),
            _ => {}
        }
        Vec::new()
    }
}

/// The other side of one connection: what the kernel and a client do.
struct Peer {
    input: Vec<u8>,
    fed: usize,
    incoming: Pieces,
    outgoing: Pieces,
    receive: Option<ReceiveOp>,
    send: Option<SendBatch>,
    shut: bool,
    said: Vec<u8>,
    /// More than this would be a server that repeats itself for ever.
    said_max: usize,
    closed: Option<CloseReason>,
}

impl Peer {
    fn act(&mut self, action: SocketAction) {
        match action {
            SocketAction::Receive(op) => assert!(self.receive.replace(op).is_none(), "two receives"),
            SocketAction::Send(batch) => assert!(self.send.replace(batch).is_none(), "two sends"),
            SocketAction::Shutdown => self.shut = true,
            SocketAction::Close(reason) => {
                assert!(self.receive.is_none() && self.send.is_none(), "closed under an operation");
                self.closed = Some(reason);
            }
        }
    }

    /// Copies what has "arrived" into the operation's memory.
    fn arrive(&mut self, op: &mut ReceiveOp) -> usize {
        let bytes = if self.shut { 0 } else { self.incoming.next().min(self.input.len() - self.fed) };
        let arrived = &self.input[self.fed..self.fed + bytes];
        let (payload, chunk) = op.targets();
        let payload = payload.unwrap_or_default();
        let first = payload.len().min(bytes);
        payload[..first].copy_from_slice(&arrived[..first]);
        let second = chunk.len().min(bytes - first);
        chunk[..second].copy_from_slice(&arrived[first..first + second]);
        assert!(!payload.is_empty() || !chunk.is_empty(), "a receive without room");
        self.fed += first + second;
        first + second
    }

    fn leave(&mut self, batch: &SendBatch) -> Result<usize, Errno> {
        if self.shut {
            return Err(Errno::Io);
        }
        let before = self.said.len();
        let bytes = self.outgoing.next();
        for slice in batch.slices() {
            let left = before + bytes - self.said.len();
            self.said.extend_from_slice(&slice[..slice.len().min(left)]);
        }
        assert!(self.said.len() <= self.said_max, "{} bytes and no end", self.said.len());
        Ok(self.said.len() - before)
    }
}

/// An engine with peers, driven until all of them are gone.
struct World {
    engine: Engine,
    peers: Vec<Peer>,
    /// Whose place in the engine is whose.
    places: Vec<usize>,
    buffers_max: usize,
}

impl World {
    fn new(clients: Vec<(Setting, Vec<u8>, Pieces, Pieces)>) -> Self {
        let exports = clients.iter().map(|_| memory()).collect();
        // One set of limits per engine: the first client's.
        let mut engine = Engine::new(Box::new(Separate::new(exports)), Pool::new(), clients[0].0.limits());
        let buffers_max =
            clients.iter().map(|(setting, ..)| setting.buffers_max()).max().unwrap_or(0) * clients.len();
        let (mut peers, mut places) = (Vec::new(), Vec::new());
        for (number, (setting, input, incoming, outgoing)) in (0..).zip(clients) {
            let fed = setting.leftover.min(input.len());
            let said_max = Oracle::new(&setting).said_max(&input);
            let rules = setting.rules();
            let leftover = input[..fed].to_vec();
            let client = Negotiated { leftover, ..Negotiated::new(ExportIndex(number), rules) };
            places.push(engine.connect(client, &mut NoDisk));
            peers.push(Peer {
                input,
                fed,
                incoming,
                outgoing,
                receive: None,
                send: None,
                shut: false,
                said: Vec::new(),
                said_max,
                closed: None,
            });
        }
        Self { engine, peers, places, buffers_max }
    }

    fn run(&mut self) {
        let mut turn = 0;
        while self.engine.connection_count() > 0 {
            turn += 1;
            self.engine.begin_turn(Nanos(turn));
            while let Some((place, action)) = self.engine.next_action(&mut NoDisk) {
                let who = self.places.iter().position(|&p| p == place).expect("a place of ours");
                self.peers[who].act(action);
            }
            self.engine.tick(&mut NoDisk);
            assert!(
                self.engine.pool().bytes_in_use() <= self.buffers_max,
                "{}",
                self.engine.pool().bytes_in_use()
            );
            let moved = (0..self.peers.len()).map(|who| self.step(who)).filter(|moved| *moved).count() > 0;
            assert!(
                moved || self.engine.wants_turn() || self.engine.connection_count() == 0,
                "nobody waits for anything, and nobody is done"
            );
        }
        assert_eq!(self.engine.pool().bytes_in_use(), 0, "every buffer came back");
    }

    fn step(&mut self, who: usize) -> bool {
        let (peer, place) = (&mut self.peers[who], self.places[who]);
        if let Some(batch) = peer.send.take() {
            let result = peer.leave(&batch);
            peer.send = self.engine.sent(place, batch, result);
            return true;
        }
        if let Some(mut op) = peer.receive.take() {
            let bytes = peer.arrive(&mut op);
            self.engine.received(place, op, Ok(bytes), &mut NoDisk);
            return true;
        }
        false
    }
}

fn memory() -> Box<dyn Export> {
    Box::new(MemoryExport::new(EXPORT_BYTES as u64).expect("a small export"))
}

/// Compares what a server said with what it must say.
fn check(said: &[u8], setting: &Setting, answers: &[Answer], end: &End) -> Result<(), TestCaseError> {
    let mut decoder = if setting.extended { Decoder::extended() } else { Decoder::new(setting.structured) };
    decoder.feed(said);
    let mut answered = 0;
    for answer in answers {
        let expect = |cookie| (cookie == answer.cookie).then_some(answer.expected);
        let Some(reply) = decoder.next(expect).map_err(TestCaseError::fail)? else { break };
        prop_assert_eq!(reply.cookie, answer.cookie);
        prop_assert!(reply.result == answer.result, "another result for {:x}", answer.cookie);
        let told: Vec<_> = reply.status.iter().flat_map(|told| &told.extents).copied().collect();
        prop_assert_eq!(&told, &answer.status);
        if answer.one_piece {
            prop_assert_eq!((reply.content_chunks, reply.holes), (1, 0));
        }
        answered += 1;
    }
    if !matches!(end, End::Broken(_)) {
        prop_assert_eq!(answered, answers.len());
        prop_assert_eq!(decoder.unread(), 0);
    }
    Ok(())
}

fn reason(end: &End) -> CloseReason {
    match end {
        End::Goodbye => CloseReason::Left,
        End::PeerLeft => CloseReason::PeerGone,
        End::Broken(reason) => *reason,
    }
}

fn client() -> impl Strategy<Value = (Setting, Vec<u8>, Pieces, Pieces)> {
    setting().prop_flat_map(|setting| {
        let extended = setting.extended;
        (Just(setting), request_bytes(extended), pieces(), pieces())
    })
}

proptest! {
    #![proptest_config(config())]

    /// Two clients of one engine, each on a disk of its own: what they say must not mix.
    #[test]
    fn transmission_does_what_the_bytes_mean(clients in vec(client(), 1..3)) {
        let mut world = World::new(clients.clone());
        world.run();
        for (peer, (setting, input, ..)) in world.peers.iter().zip(&clients) {
            let (answers, end) = Oracle::new(setting).replay(input);
            prop_assert!(peer.closed == Some(reason(&end)), "{:?}, not {end:?}", peer.closed);
            check(&peer.said, setting, &answers, &end)?;
        }
    }
}
