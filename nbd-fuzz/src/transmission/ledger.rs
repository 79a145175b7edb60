//! One client's book: what it has sent, what of it has arrived, and what it was answered. Every reply is judged as it is heard.

use fixtures::nbd::codec::{Decoder, Reply, command, errno, flag};
use nbd_server::transmission::CloseReason;
use nbd_server::wire::ReplyForm;

use super::file;
use super::law::Law;
use super::memory::Memory;
use super::setting::Setting;
use super::stream::{Asked, End, Stream};
use crate::disk::{Change, FuzzDisk};
use crate::{Verdict, ensure};

/// Who knows the right answers.
#[derive(Debug)]
pub enum Judge {
    /// Memory of its own: answers come in the order of requests.
    Memory(Memory),
    /// A file that others may use as well, by its number: answers come in any order.
    File(usize),
}

/// What has happened to a server that a client cannot know.
#[derive(Clone, Copy, Debug, Default)]
pub struct Past {
    /// When it began to stop.
    pub stopping_since: Option<u64>,
    /// It then answers what still comes.
    pub refuses: bool,
}

/// Where a request stands.
#[derive(Clone, Debug)]
struct Entry {
    law: Law,
    /// When the server had its header: what is judged then stays judged, whatever follows.
    seen: Option<u64>,
    /// When the server had all of it.
    came: Option<u64>,
    answered: bool,
}

/// See the module.
pub struct Ledger {
    setting: Setting,
    judge: Judge,
    stream: Stream,
    entries: Vec<Entry>,
    /// The first request without an answer.
    first_open: usize,
    arrived: usize,
    decoder: Decoder,
    /// Requests that the export has answered.
    served: u64,
}

impl Ledger {
    /// Of a client that has just entered transmission.
    pub fn new(setting: Setting, judge: Judge) -> Self {
        let decoder = match setting.form {
            ReplyForm::Simple => Decoder::new(false),
            ReplyForm::Structured => Decoder::new(true),
            ReplyForm::Extended => Decoder::extended(),
        };
        let stream = Stream::new(setting.clone(), matches!(judge, Judge::File(_)));
        Self { setting, judge, stream, entries: Vec::new(), first_open: 0, arrived: 0, decoder, served: 0 }
    }

    /// What was agreed on.
    pub fn setting(&self) -> &Setting {
        &self.setting
    }

    /// Requests that were answered by the export, and not by the server on its behalf.
    pub fn served(&self) -> u64 {
        self.served
    }

    /// The client sends.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.push(bytes);
        for asked in &self.stream.asked()[self.entries.len()..] {
            // The payload may not be there yet; the law is read again when it is.
            let law = Law { refusal: None, in_payload: false, length: asked.length, contexts: Vec::new() };
            self.entries.push(Entry { law, seen: None, came: None, answered: false });
        }
    }

    /// The client will send no more.
    pub fn finish(&mut self) {
        self.stream.finish();
    }

    /// What may be delivered now.
    pub fn waiting(&self) -> &[u8] {
        &self.stream.bytes()[self.arrived..self.stream.ready().max(self.arrived)]
    }

    /// So much more of it has arrived.
    pub fn arrive(&mut self, bytes: usize, time: u64) {
        self.arrived += bytes;
        for (asked, entry) in self.stream.asked().iter().zip(&mut self.entries) {
            if entry.seen.is_none() && asked.payload.start <= self.arrived {
                entry.seen = Some(time);
            }
            if entry.came.is_none() && asked.payload.end <= self.arrived {
                entry.came = Some(time);
                entry.law = Law::of(asked, self.stream.payload(asked), &self.setting);
            }
        }
    }

    /// The client hears.
    ///
    /// # Errors
    /// What it hears is not what it has to hear.
    pub fn hear(&mut self, bytes: &[u8], past: Past, disk: &FuzzDisk) -> Verdict {
        self.decoder.feed(bytes);
        while let Some((place, reply)) = self.next_reply()? {
            self.judge_reply(place, &reply, past, disk)?;
            self.entries[place].answered = true;
            while self.entries.get(self.first_open).is_some_and(|entry| entry.answered) {
                self.first_open += 1;
            }
        }
        Ok(())
    }

    /// The next whole reply, and whose it is.
    fn next_reply(&mut self) -> Result<Option<(usize, Reply)>, String> {
        let (asked, entries) = (self.stream.asked(), &self.entries);
        let ordered = matches!(self.judge, Judge::Memory(_));
        let last = if ordered { (self.first_open + 1).min(entries.len()) } else { entries.len() };
        let open = |cookie: u64| {
            let is_it = |&place: &usize| {
                asked[place].cookie == cookie && entries[place].came.is_some() && !entries[place].answered
            };
            (self.first_open..last).find(is_it)
        };
        let expect = |cookie| open(cookie).map(|place| entries[place].law.expected(&asked[place]));
        let Some(reply) = self.decoder.next(expect)? else { return Ok(None) };
        Ok(open(reply.cookie).map(|place| (place, reply)))
    }

    fn judge_reply(&mut self, place: usize, reply: &Reply, past: Past, disk: &FuzzDisk) -> Verdict {
        let (asked, Entry { law, seen, came, .. }) = (&self.stream.asked()[place], &self.entries[place]);
        let (seen, came) = (seen.unwrap_or_default(), came.unwrap_or_default());
        let error = reply.result.as_ref().err().copied();
        let stopping = past.refuses && past.stopping_since.is_some();
        if let Some(refusal) = law.refusal
            && !(law.in_payload && stopping && error == Some(errno::ESHUTDOWN))
        {
            return ensure(error == Some(refusal), || format!("{asked:x?} got {error:?}, not {refusal}"));
        }
        if error == Some(errno::ESHUTDOWN) {
            return ensure(stopping, || format!("{asked:x?} got ESHUTDOWN"));
        }
        let late = past.stopping_since.is_some_and(|since| since < seen);
        ensure(!late, || format!("{asked:x?} came after the stop, and got {error:?}"))?;
        self.served += u64::from(!law.is_nothing(asked));
        let payload = self.stream.payload(asked);
        match &mut self.judge {
            Judge::Memory(memory) => memory.judge(asked, payload, law, reply),
            Judge::File(number) => {
                ensure(in_one_piece(asked, law, reply), || format!("{asked:x?} in pieces"))?;
                file::Life { disk, file: *number, since: came }.judge(asked, payload, law, reply)
            }
        }
    }

    /// Marks the bytes of a change of the disk that a request of this client asks for.
    pub fn may_change(&self, change: &Change, asked_for: &mut [u8], now: &[u8]) {
        if !matches!(self.judge, Judge::File(number) if number == change.file) {
            return;
        }
        let asked = &self.stream.asked()[self.first_open..];
        for (asked, entry) in asked.iter().zip(&self.entries[self.first_open..]) {
            if entry.came.is_some() && !entry.answered {
                file::may_change(asked, self.stream.payload(asked), &entry.law, change, asked_for, now);
            }
        }
    }

    /// How the stream ends, as far as it has arrived.
    pub fn end(&self) -> End {
        self.stream.end(self.arrived).unwrap_or(End::PeerLeft)
    }

    /// Compares the end of a connection on which nothing but the client's own bytes had a say.
    ///
    /// # Errors
    /// It ended otherwise, or owes something.
    pub fn check_end(&self, closed: CloseReason) -> Verdict {
        let expected = match self.end() {
            End::Goodbye => CloseReason::Left,
            End::PeerLeft => CloseReason::PeerGone,
            End::Broken(reason) => reason,
        };
        ensure(closed == expected, || format!("closed with {closed:?}, not {expected:?}"))?;
        if matches!(self.end(), End::Broken(_)) { Ok(()) } else { self.check_all_answered() }
    }

    /// Everything that has arrived is answered, and nothing but that was said.
    ///
    /// # Errors
    /// Something is missing.
    pub fn check_all_answered(&self) -> Verdict {
        let open = self
            .stream
            .asked()
            .iter()
            .zip(&self.entries)
            .find(|(_, entry)| entry.came.is_some() && !entry.answered);
        ensure(open.is_none(), || format!("no answer to {open:x?}"))?;
        self.check_nothing_unread()
    }

    /// No half of a reply.
    ///
    /// # Errors
    /// There is one.
    pub fn check_nothing_unread(&self) -> Verdict {
        ensure(self.decoder.unread() == 0, || format!("{} bytes of half a reply", self.decoder.unread()))
    }
}

fn in_one_piece(asked: &Asked, law: &Law, reply: &Reply) -> bool {
    let one = asked.number == command::READ
        && asked.flags & flag::DF != 0
        && law.length > 0
        && reply.result.is_ok();
    !one || (reply.content_chunks, reply.holes) == (1, 0)
}
