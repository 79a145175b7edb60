//! What a client has sent in transmission, cut into requests.

use std::collections::BTreeSet;
use std::ops::Range;

use fixtures::nbd::codec::{command, flag};
use nbd_server::transmission::CloseReason;

use super::setting::Setting;
use crate::bytes::{half, long, word};

/// The most that is read and thrown away behind a refused header.
const SKIPPED_MAX: u64 = 64 << 20;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its mark.
    pub cookie: u64,
    /// Its flags.
    pub flags: u16,
    /// Its command.
    pub number: u16,
    /// Where it begins.
    pub offset: u64,
    /// As its header has it.
    pub length: u64,
    /// Where in the stream its payload stands. Its end is the request's.
    pub payload: Range<usize>,
}

/// How a stream of requests ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client says so.
    Goodbye,
    /// It sends no more, perhaps in the middle of a request.
    PeerLeft,
    /// Answers that were not sent yet need not be sent any more.
    Broken(CloseReason),
}

/// See the module.
#[derive(Debug)]
pub struct Stream {
    setting: Setting,
    bytes: Vec<u8>,
    /// Behind the last header that was read, with what follows it.
    at: usize,
    asked: Vec<Asked>,
    end: Option<(End, usize)>,
    /// Cookies so far, where none may come twice.
    cookies: Option<BTreeSet<u64>>,
}

impl Stream {
    /// Nothing yet. `unique`: a cookie that has been there is replaced by one that has not, so that answers in any order
    /// tell whose they are.
    pub fn new(setting: Setting, unique: bool) -> Self {
        let cookies = unique.then(BTreeSet::new);
        Self { setting, bytes: Vec::new(), at: 0, asked: Vec::new(), end: None, cookies }
    }

    /// All that was sent.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How much of it may be delivered already: a header as a whole or not at all, as long as its cookie may change.
    pub fn ready(&self) -> usize {
        if self.cookies.is_some() && self.end.is_none() {
            self.at.min(self.bytes.len())
        } else {
            self.bytes.len()
        }
    }

    /// The requests whose headers were read.
    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// The end, if so many bytes of it make one.
    pub fn end(&self, arrived: usize) -> Option<End> {
        self.end.filter(|(_, at)| *at <= arrived).map(|(end, _)| end)
    }

    /// A request's payload.
    pub fn payload(&self, asked: &Asked) -> &[u8] {
        &self.bytes[asked.payload.clone()]
    }

    /// Adds bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        while self.end.is_none() && self.bytes.len() >= self.at + self.setting.header_bytes() {
            self.read_header();
        }
    }

    /// No header is waited for any more.
    pub fn finish(&mut self) {
        self.cookies = None;
    }

    fn read_header(&mut self) {
        let behind = self.at + self.setting.header_bytes();
        let extended = self.setting.is_extended();
        let header = &self.bytes[self.at..behind];
        if word(header, 0) != if extended { 0x21e4_1c71 } else { 0x2560_9513 } {
            return self.end = Some((End::Broken(CloseReason::BadRequestMagic), behind));
        }
        let (flags, number) = (half(header, 4), half(header, 6));
        if number == command::DISC {
            return self.end = Some((End::Goodbye, behind));
        }
        let (cookie, offset) = (long(header, 8), long(header, 16));
        let length = if extended { long(header, 24) } else { u64::from(word(header, 24)) };
        let carries = number == command::WRITE || extended && flags & flag::PAYLOAD_LEN != 0;
        let payload = if carries { length } else { 0 };
        if payload > SKIPPED_MAX {
            return self.end = Some((End::Broken(CloseReason::PayloadTooLarge), behind));
        }
        let cookie = self.settle_cookie(cookie);
        let payload = behind..behind + payload as usize;
        self.at = payload.end;
        self.asked.push(Asked { cookie, flags, number, offset, length, payload });
    }

    fn settle_cookie(&mut self, mut cookie: u64) -> u64 {
        let Some(cookies) = &mut self.cookies else { return cookie };
        while !cookies.insert(cookie) {
            cookie = cookie.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        }
        self.bytes[self.at + 8..self.at + 16].copy_from_slice(&cookie.to_be_bytes());
        cookie
    }
}
