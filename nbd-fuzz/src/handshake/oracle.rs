//! What the bytes of a negotiation mean, read by another hand: every reply, and the end.

use fixtures::nbd::client::{info, option, reply_type as reply};
use nbd_server::export::ExportInfo;
use nbd_server::handshake::Refusal;
use nbd_server::wire::ReplyForm;

use super::{CONTEXTS, Terms};
use crate::bytes::{long, word};

const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Options before a client is too much, and the exports' share of them.
const OPTIONS_MAX: usize = 32 + 4 * 2;
const STRING_MAX: usize = 4096;
const QUERIES_MAX: usize = 64;

/// One reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    option: u32,
    kind: u32,
    /// An error's text is the server's to choose.
    data: Vec<u8>,
}

/// How a negotiation ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Meaning {
    /// More has to come.
    Waits,
    /// The server closes.
    Closes(Refusal),
    /// The client is in transmission.
    Enters {
        /// Bytes before transmission.
        at: usize,
        /// How replies are written.
        form: ReplyForm,
        /// The export's place.
        export: u32,
        /// Numbers and keys of the contexts that count.
        contexts: Vec<(u32, u64)>,
        /// What is said besides replies to options: `EXPORT_NAME` has an answer of its own.
        said: Vec<u8>,
    },
}

/// What a name was chosen with: its contexts, number and key each.
type Choice<'a> = Option<(&'a [u8], Vec<(u32, u64)>)>;

struct Reader<'a> {
    terms: &'a Terms,
    at: usize,
    /// TLS has to come first.
    clear: bool,
    zeroes: bool,
    structured: bool,
    extended: bool,
    choice: Choice<'a>,
    told: Vec<Told>,
}

/// All replies, and the end. `arrivals`: how much of the input was there each time when the server went on; what comes
/// together with STARTTLS is not believed.
pub fn understand(input: &[u8], terms: &Terms, arrivals: &[usize]) -> (Vec<Told>, Meaning) {
    if input.len() < 4 {
        return (Vec::new(), Meaning::Waits);
    }
    let flags = word(input, 0);
    if flags > 3 {
        return (Vec::new(), Meaning::Closes(Refusal::UnknownClientFlags));
    }
    let mut reader = Reader {
        terms,
        at: 4,
        clear: terms.tls,
        zeroes: flags & 2 == 0,
        structured: false,
        extended: false,
        choice: None,
        told: Vec::new(),
    };
    for count in 0.. {
        if let Some(meaning) = reader.option(input, count, arrivals) {
            return (reader.told, meaning);
        }
    }
    unreachable!("an input ends")
}

impl<'a> Reader<'a> {
    /// Reads one option; the end, if it is that.
    fn option(&mut self, input: &'a [u8], count: usize, arrivals: &[usize]) -> Option<Meaning> {
        let rest = &input[self.at..];
        if rest.len() < 16 {
            return Some(Meaning::Waits);
        }
        let (number, length) = (word(rest, 8), word(rest, 12) as usize);
        if &rest[..8] != b"IHAVEOPT" {
            return Some(Meaning::Closes(Refusal::BadOptionMagic));
        }
        if length > 64 << 10 {
            if number != option::EXPORT_NAME {
                self.tell(number, reply::ERR_TOO_BIG, &[]);
            }
            return Some(Meaning::Closes(Refusal::OptionTooLarge));
        }
        if rest.len() < 16 + length {
            return Some(Meaning::Waits);
        }
        if count == OPTIONS_MAX {
            return Some(Meaning::Closes(Refusal::TooManyOptions));
        }
        self.at += 16 + length;
        let data = &rest[16..16 + length];
        if self.clear && number != option::ABORT {
            return self.in_clear(number, data, arrivals);
        }
        self.dispatch(number, data)
    }

    fn in_clear(&mut self, number: u32, data: &[u8], arrivals: &[usize]) -> Option<Meaning> {
        let arrived = arrivals.iter().find(|&&there| there >= self.at);
        match number {
            option::EXPORT_NAME => return Some(Meaning::Closes(Refusal::TlsRequired)),
            option::STARTTLS if !data.is_empty() => self.tell(number, reply::ERR_INVALID, &[]),
            option::STARTTLS if arrived.is_some_and(|&there| there > self.at) => {
                return Some(Meaning::Closes(Refusal::PlaintextAfterStarttls));
            }
            option::STARTTLS => {
                self.tell(number, reply::ACK, &[]);
                self.clear = false;
            }
            _ => self.tell(number, reply::ERR_TLS_REQD, &[]),
        }
        None
    }

    fn tell(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.told.push(Told { option, kind, data: data.to_vec() });
    }

    fn dispatch(&mut self, number: u32, data: &'a [u8]) -> Option<Meaning> {
        let offer = self.terms.offer;
        match number {
            option::EXPORT_NAME => return Some(self.export_name(data)),
            option::ABORT => {
                self.tell(number, reply::ACK, &[]);
                return Some(Meaning::Closes(Refusal::Aborted));
            }
            option::LIST => self.list(data),
            option::STARTTLS if self.terms.tls => self.tell(number, reply::ERR_INVALID, &[]),
            option::INFO | option::GO => return self.info(number, data),
            option::STRUCTURED_REPLY if offer.structured_replies => self.structured(data),
            option::EXTENDED_HEADERS if offer.extended_headers => self.extended(data),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT if offer.meta_contexts => {
                self.contexts(number, data);
            }
            _ => self.tell(number, reply::ERR_UNSUP, &[]),
        }
        None
    }

    fn list(&mut self, data: &[u8]) {
        if !data.is_empty() {
            return self.tell(option::LIST, reply::ERR_INVALID, &[]);
        }
        for export in &self.terms.shelf.exports {
            let length = (export.name.len() as u32).to_be_bytes();
            let entry = [&length, export.name.as_bytes(), export.description.as_bytes()].concat();
            self.tell(option::LIST, reply::SERVER, &entry);
        }
        self.tell(option::LIST, reply::ACK, &[]);
    }

    fn structured(&mut self, data: &[u8]) {
        let kind = match (data.is_empty(), self.extended) {
            (false, _) => reply::ERR_INVALID,
            (true, true) => reply::ERR_EXT_HEADER_REQD,
            (true, false) => reply::ACK,
        };
        self.structured |= kind == reply::ACK;
        self.tell(option::STRUCTURED_REPLY, kind, &[]);
    }

    fn extended(&mut self, data: &[u8]) {
        if data.is_empty() {
            (self.structured, self.extended) = (true, true);
        }
        let kind = if data.is_empty() { reply::ACK } else { reply::ERR_INVALID };
        self.tell(option::EXTENDED_HEADERS, kind, &[]);
    }

    fn export_name(&mut self, name: &[u8]) -> Meaning {
        let shelf = &self.terms.shelf;
        let refusal = match shelf.place(name) {
            _ if shelf.stopping => Refusal::Stopping,
            _ if self.extended => Refusal::ExportNameAfterExtendedHeaders,
            None => Refusal::UnknownExport,
            Some(place) => {
                let export = &shelf.exports[place];
                let mut said = [&export.size.to_be_bytes()[..], &self.flags(export, false)].concat();
                said.resize(if self.zeroes { 134 } else { 10 }, 0);
                return self.enter(name, place, said);
            }
        };
        Meaning::Closes(refusal)
    }

    fn enter(&mut self, name: &[u8], place: usize, said: Vec<u8>) -> Meaning {
        let form = match (self.structured, self.extended) {
            (_, true) => ReplyForm::Extended,
            (true, false) => ReplyForm::Structured,
            (false, false) => ReplyForm::Simple,
        };
        Meaning::Enters { at: self.at, form, export: place as u32, contexts: self.chosen(name), said }
    }

    /// A choice counts for the name that it was made with.
    fn chosen(&self, name: &[u8]) -> Vec<(u32, u64)> {
        self.choice.as_ref().filter(|(of, _)| *of == name).map_or_else(Vec::new, |(_, keys)| keys.clone())
    }

    /// Transmission flags. Bits: known, read-only, FLUSH, FUA, rotational, TRIM, WRITE_ZEROES, DF, several connections,
    /// CACHE, fast zeroes, contexts as payload.
    fn flags(&self, export: &ExportInfo, filter: bool) -> [u8; 2] {
        let bit = |on: bool, bit: u16| u16::from(on) << bit;
        let writable = !export.read_only;
        let always = 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10;
        let access = bit(export.read_only, 1) | bit(writable, 5) | bit(writable, 6);
        let medium = bit(export.rotational, 4) | bit(writable && export.fast_zero, 11);
        (always | access | medium | bit(self.structured, 7) | bit(filter, 12)).to_be_bytes()
    }

    fn info(&mut self, number: u32, data: &'a [u8]) -> Option<Meaning> {
        let (name, kinds) = match parse_info(data) {
            Ok(parsed) => parsed,
            Err(kind) => {
                self.tell(number, kind, &[]);
                return None;
            }
        };
        if self.terms.shelf.stopping {
            self.tell(number, reply::ERR_SHUTDOWN, &[]);
            return None;
        }
        let Some(place) = self.terms.shelf.place(name) else {
            self.tell(number, reply::ERR_UNKNOWN, &[]);
            return None;
        };
        self.describe(number, name, place, &kinds);
        self.tell(number, reply::ACK, &[]);
        (number == option::GO).then(|| self.enter(name, place, Vec::new()))
    }

    fn describe(&mut self, number: u32, name: &[u8], place: usize, kinds: &[u16]) {
        let terms = self.terms;
        let export = &terms.shelf.exports[place];
        let flags = self.flags(export, self.extended && !self.chosen(name).is_empty());
        let size = export.size.to_be_bytes();
        self.tell(number, reply::INFO, &[&info::EXPORT.to_be_bytes()[..], &size, &flags].concat());
        let sizes = [export.block_minimum, export.block_preferred, 32 << 20].map(u32::to_be_bytes).concat();
        let texts =
            [(info::NAME, export.name.as_bytes()), (info::DESCRIPTION, export.description.as_bytes())];
        for (kind, text) in texts.into_iter().chain([(info::BLOCK_SIZE, &sizes[..])]) {
            if kinds.contains(&kind) && !text.is_empty() {
                self.tell(number, reply::INFO, &[&kind.to_be_bytes()[..], text].concat());
            }
        }
    }

    fn contexts(&mut self, number: u32, data: &'a [u8]) {
        let setting = number == option::SET_META_CONTEXT;
        if setting {
            self.choice = None;
        }
        let (name, queries) = match self.parse_contexts(data) {
            Ok(parsed) => parsed,
            Err(kind) => return self.tell(number, kind, &[]),
        };
        let known = if self.terms.shelf.place(name) == Some(0) { &CONTEXTS[..] } else { &[] };
        let mut chosen = Vec::new();
        for (key, context) in (0..).zip(known) {
            let exact = queries.contains(&context.as_bytes());
            let begun = |query: &&[u8]| query.ends_with(b":") && context.as_bytes().starts_with(query);
            let listed = queries.is_empty() || queries.iter().any(begun);
            if exact || !setting && listed {
                let id = if setting { chosen.len() as u32 + 1 } else { 0 };
                self.tell(number, reply::META_CONTEXT, &[&id.to_be_bytes(), context.as_bytes()].concat());
                chosen.push((id, key));
            }
        }
        self.tell(number, reply::ACK, &[]);
        if setting {
            self.choice = Some((name, chosen));
        }
    }

    fn parse_contexts(&self, data: &'a [u8]) -> Result<(&'a [u8], Vec<&'a [u8]>), u32> {
        let (name, rest) = string(data)?;
        if rest.len() < 4 {
            return Err(reply::ERR_INVALID);
        }
        let (count, mut rest) = (word(rest, 0) as usize, &rest[4..]);
        if count * 4 > rest.len() {
            return Err(reply::ERR_INVALID);
        }
        if count > QUERIES_MAX {
            return Err(reply::ERR_TOO_BIG);
        }
        let mut queries = Vec::new();
        for _ in 0..count {
            let (query, behind) = string(rest)?;
            queries.push(query);
            rest = behind;
        }
        if !rest.is_empty() || !self.structured {
            return Err(reply::ERR_INVALID);
        }
        let shelf = &self.terms.shelf;
        if shelf.stopping {
            return Err(reply::ERR_SHUTDOWN);
        }
        shelf.place(name).map(|_| (name, queries)).ok_or(reply::ERR_UNKNOWN)
    }
}

/// A string behind its length, and what follows it.
fn string(data: &[u8]) -> Result<(&[u8], &[u8]), u32> {
    if data.len() < 4 || (word(data, 0) as usize) > data.len() - 4 {
        return Err(reply::ERR_INVALID);
    }
    let (string, rest) = data[4..].split_at(word(data, 0) as usize);
    if string.len() > STRING_MAX { Err(reply::ERR_TOO_BIG) } else { Ok((string, rest)) }
}

/// Name, and kinds of information that are asked for.
fn parse_info(data: &[u8]) -> Result<(&[u8], Vec<u16>), u32> {
    let (name, rest) = string(data)?;
    let numbers: Vec<u16> =
        rest.chunks(2).filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?))).collect();
    match numbers.split_first() {
        Some((&count, kinds)) if rest.len() % 2 == 0 && kinds.len() == usize::from(count) => {
            Ok((name, kinds.to_vec()))
        }
        _ => Err(reply::ERR_INVALID),
    }
}

/// Takes the server's words apart and compares them with what had to be told; what follows the replies is returned.
///
/// # Errors
/// The first difference.
pub(super) fn take_apart(mut said: &[u8], expected: &[Told]) -> Result<Vec<u8>, String> {
    for (number, expected) in expected.iter().enumerate() {
        if said.len() < 20 || long(said, 0) != OPTION_REPLY_MAGIC {
            return Err(format!("reply {number} is missing: {expected:?}"));
        }
        let (option, kind, length) = (word(said, 8), word(said, 12), word(said, 16) as usize);
        if said.len() < 20 + length {
            return Err(format!("reply {number} is cut"));
        }
        let data = &said[20..20 + length];
        let right = if kind & 1 << 31 == 0 { data == expected.data } else { is_text(data) };
        if (option, kind) != (expected.option, expected.kind) || !right {
            return Err(format!("reply {number} is {kind:#x} to {option} with {data:x?}, not {expected:x?}"));
        }
        said = &said[20 + length..];
    }
    Ok(said.to_vec())
}

/// Errors may carry a text.
fn is_text(data: &[u8]) -> bool {
    data.len() <= STRING_MAX && std::str::from_utf8(data).is_ok_and(|text| !text.contains('\0'))
}
