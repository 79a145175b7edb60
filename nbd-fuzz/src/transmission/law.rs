//! What a request may be answered with before anybody looks at the disk.

use fixtures::nbd::codec::{self, Expected, command, errno, flag};

use super::setting::Setting;
use super::stream::Asked;
use crate::bytes::{long, word};

/// The most that a request may carry, in either direction.
pub const PAYLOAD_MAX: u64 = 32 << 20;

/// What is to be thought of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Law {
    /// It must be refused with this.
    pub refusal: Option<u32>,
    /// What is wrong with it stands in its payload: a server that stops need not have looked at that.
    pub in_payload: bool,
    /// Bytes that it is about: a question's may stand in its payload.
    pub length: u64,
    /// Contexts that are asked for, by their numbers.
    pub contexts: Vec<u32>,
}

impl Law {
    /// Of one request with its payload.
    pub fn of(asked: &Asked, payload: &[u8], setting: &Setting) -> Self {
        let question = asked.number == command::BLOCK_STATUS;
        if question && setting.is_extended() && asked.flags & flag::PAYLOAD_LEN != 0 {
            return Self::of_filter(asked, payload, setting);
        }
        let contexts = if question { setting.contexts.clone() } else { Vec::new() };
        Self {
            refusal: refusal(asked, asked.length, setting),
            in_payload: false,
            length: asked.length,
            contexts,
        }
    }

    /// A question whose payload says what is asked: a length, and at least one context, each once.
    fn of_filter(asked: &Asked, payload: &[u8], setting: &Setting) -> Self {
        let wrong = |in_payload| {
            let refusal = Some(errno::EINVAL);
            Self { refusal, in_payload, length: asked.length, contexts: Vec::new() }
        };
        let flags = allowed_flags(asked, asked.length, setting);
        let flags_fit = flags.is_some_and(|allowed| asked.flags & !(allowed | flag::FUA) == 0);
        let most = 8 + 4 * setting.contexts.len();
        if !flags_fit || !(12..=most).contains(&payload.len()) || !payload.len().is_multiple_of(4) {
            return wrong(false);
        }
        let contexts: Vec<u32> = payload[8..].chunks(4).map(|number| word(number, 0)).collect();
        let twice = |(at, number): (usize, &u32)| contexts[..at].contains(number);
        let known = contexts.iter().all(|number| setting.contexts.contains(number));
        if !known || contexts.iter().enumerate().any(twice) {
            return wrong(true);
        }
        let length = long(payload, 0);
        Self { refusal: refusal(asked, length, setting), in_payload: true, length, contexts }
    }

    /// It succeeds without reaching the export.
    pub fn is_nothing(&self, asked: &Asked) -> bool {
        self.refusal.is_none() && self.length == 0 && asked.number != command::FLUSH
    }

    /// What the decoder of replies has to know.
    pub fn expected(&self, asked: &Asked) -> Expected {
        // Whoever is refused gets no data; the decoder need not make room for 32 MiB of them.
        let bytes = if self.refusal.is_some() { 0 } else { self.length.min(PAYLOAD_MAX) };
        let read = (asked.number == command::READ).then_some((asked.offset, bytes as u32));
        let one = asked.flags & flag::REQ_ONE != 0;
        let status = codec::Asked { length: self.length, one, contexts: self.contexts.len() };
        let status = (asked.number == command::BLOCK_STATUS).then_some(status);
        Expected { read, status, offset: asked.offset }
    }
}

/// It changes the disk.
pub fn changes(number: u16) -> bool {
    matches!(number, command::WRITE | command::TRIM | command::WRITE_ZEROES)
}

/// Flags that a command may have, FUA apart; `None`: there is no such command here.
fn allowed_flags(asked: &Asked, length: u64, setting: &Setting) -> Option<u16> {
    let with_payload = if setting.is_extended() { flag::PAYLOAD_LEN } else { 0 };
    let structured = setting.form != nbd_server::wire::ReplyForm::Simple;
    match asked.number {
        command::READ if structured => Some(flag::DF),
        command::WRITE => Some(with_payload),
        command::READ | command::FLUSH | command::TRIM | command::CACHE => Some(0),
        command::WRITE_ZEROES if setting.fast_zero => Some(flag::NO_HOLE | flag::FAST_ZERO),
        command::WRITE_ZEROES => Some(flag::NO_HOLE),
        command::BLOCK_STATUS if !setting.contexts.is_empty() && length > 0 => {
            Some(flag::REQ_ONE | with_payload)
        }
        _ => None,
    }
}

fn refusal(asked: &Asked, length: u64, setting: &Setting) -> Option<u32> {
    let Some(allowed) = allowed_flags(asked, length, setting) else { return Some(errno::EINVAL) };
    let block = u64::from(setting.block);
    let carries = matches!(asked.number, command::READ | command::WRITE);
    let aligned = asked.offset.is_multiple_of(block) && length.is_multiple_of(block);
    if asked.flags & !(allowed | flag::FUA) != 0 {
        Some(errno::EINVAL)
    } else if changes(asked.number) && setting.read_only {
        Some(errno::EPERM)
    } else if asked.number == command::FLUSH {
        None
    } else if carries && length > PAYLOAD_MAX || !aligned {
        Some(errno::EINVAL)
    } else if u128::from(asked.offset) + u128::from(length) > u128::from(setting.size) {
        let writes = matches!(asked.number, command::WRITE | command::WRITE_ZEROES);
        Some(if writes { errno::ENOSPC } else { errno::EINVAL })
    } else {
        None
    }
}
