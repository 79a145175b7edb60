//! Meta contexts: what may be asked with `BLOCK_STATUS`, listed and chosen.
//!
//! A choice is bound to the name of an export, and to what that name stood for: it counts only if the client enters
//! transmission on the very same. Each `SET_META_CONTEXT` replaces the one before, also when it fails.
//!
//! A query is a context's whole name; in `LIST_META_CONTEXT` one that ends in a colon stands for all names that begin
//! with it. What matches nothing (other namespaces, and names that nobody knows) is passed over, as the protocol wants.

use std::sync::Arc;

use super::{ExportAddress, Handshake, Step};
use crate::status::{CONTEXTS_MAX, Chosen, Contexts, MetaContext};
use crate::wire::{MAX_STRING_BYTES, option, option_reply_type as reply};

/// Queries that one option may carry.
pub const QUERIES_MAX: usize = 64;

/// What a client has chosen, and for what.
pub(super) struct Choice {
    name: Vec<u8>,
    address: ExportAddress,
    contexts: Contexts,
}

impl Choice {
    fn is_for(&self, name: &[u8], address: ExportAddress) -> bool {
        self.name == name && self.address == address
    }
}

/// The data of both options.
struct Question<'a> {
    name: &'a [u8],
    queries: Vec<&'a [u8]>,
}

impl Handshake {
    pub(super) fn list_meta_contexts(&mut self, data: &[u8]) -> Step {
        if let Some((question, known, _)) = self.look_up(option::LIST_META_CONTEXT, data) {
            for context in known.iter().filter(|context| question.lists(context)) {
                // Numbers mean nothing here.
                self.tell_context(option::LIST_META_CONTEXT, 0, context);
            }
            self.answer(option::LIST_META_CONTEXT, reply::ACK, &[]);
        }
        Step::Again
    }

    pub(super) fn set_meta_contexts(&mut self, data: &[u8]) -> Step {
        const NUMBER: u32 = option::SET_META_CONTEXT;
        self.choice = None;
        let Some((question, known, address)) = self.look_up(NUMBER, data) else { return Step::Again };
        let chosen: Vec<_> = known.iter().filter(|context| question.chooses(context)).collect();
        if chosen.len() > CONTEXTS_MAX {
            self.refuse(NUMBER, reply::ERR_TOO_BIG, "too many contexts at once");
            return Step::Again;
        }
        for (id, context) in (1..).zip(&chosen) {
            self.tell_context(NUMBER, id, context);
        }
        self.answer(NUMBER, reply::ACK, &[]);
        let contexts = (1..).zip(&chosen).map(|(id, context)| Chosen { id, key: context.key }).collect();
        self.choice = Some(Choice { name: question.name.to_vec(), address, contexts });
        Step::Again
    }

    /// The contexts that count in transmission on this export.
    pub(super) fn chosen_for(&mut self, name: &[u8], address: ExportAddress) -> Contexts {
        let choice = self.choice.take().filter(|choice| choice.is_for(name, address));
        choice.map_or_else(|| Arc::new([]) as Contexts, |choice| choice.contexts)
    }

    /// Some would count.
    pub(super) fn has_chosen_for(&self, name: &[u8], address: ExportAddress) -> bool {
        let choice = self.choice.as_ref().filter(|choice| choice.is_for(name, address));
        choice.is_some_and(|choice| !choice.contexts.is_empty())
    }

    /// What is asked, and what there is to ask of that export. `None`: it was refused.
    fn look_up<'a>(
        &mut self,
        number: u32,
        data: &'a [u8],
    ) -> Option<(Question<'a>, Vec<MetaContext>, ExportAddress)> {
        let refusal = match Question::parse(data) {
            Err(kind) => (kind, "malformed or oversized queries"),
            Ok(_) if !self.structured => (reply::ERR_INVALID, "structured replies come first"),
            Ok(_) if self.directory.stopping() => (reply::ERR_SHUTDOWN, "the server is stopping"),
            Ok(question) => match self.directory.find(&self.client, question.name) {
                Some((address, _)) => {
                    let known = self.directory.contexts(&self.client, question.name);
                    return Some((question, known, address));
                }
                None => (reply::ERR_UNKNOWN, "no such export"),
            },
        };
        self.refuse(number, refusal.0, refusal.1);
        None
    }

    fn tell_context(&mut self, number: u32, id: u32, context: &MetaContext) {
        let data = [&id.to_be_bytes()[..], context.name.as_bytes()].concat();
        self.answer(number, reply::META_CONTEXT, &data);
    }
}

impl<'a> Question<'a> {
    /// Name length, name, count, and that many queries, each with its length; nothing else.
    fn parse(data: &'a [u8]) -> Result<Self, u32> {
        let (name, rest) = take_string(data)?;
        let (count, mut rest) = rest.split_first_chunk::<4>().ok_or(reply::ERR_INVALID)?;
        let count = u32::from_be_bytes(*count) as usize;
        // What is told of the count must be true before it is found to be too much.
        if count > rest.len() / 4 {
            return Err(reply::ERR_INVALID);
        }
        if count > QUERIES_MAX {
            return Err(reply::ERR_TOO_BIG);
        }
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            let (query, behind) = take_string(rest)?;
            queries.push(query);
            rest = behind;
        }
        if rest.is_empty() { Ok(Self { name, queries }) } else { Err(reply::ERR_INVALID) }
    }

    fn lists(&self, context: &MetaContext) -> bool {
        let wildcard = |query: &[u8]| query.ends_with(b":") && context.name.as_bytes().starts_with(query);
        self.queries.is_empty() || self.chooses(context) || self.queries.iter().any(|query| wildcard(query))
    }

    fn chooses(&self, context: &MetaContext) -> bool {
        self.queries.contains(&context.name.as_bytes())
    }
}

/// A string with its length before it, and what follows.
fn take_string(data: &[u8]) -> Result<(&[u8], &[u8]), u32> {
    let (length, rest) = data.split_first_chunk::<4>().ok_or(reply::ERR_INVALID)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (string, rest) = rest.split_at_checked(length).ok_or(reply::ERR_INVALID)?;
    if length > MAX_STRING_BYTES { Err(reply::ERR_TOO_BIG) } else { Ok((string, rest)) }
}
