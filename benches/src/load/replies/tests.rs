use nbd_server::wire::{Errno, ReplyForm, ReplyTo};

use super::*;

const OFFSET: u64 = 8192;
const LENGTH: u32 = 4096;

/// Replies to a read, a write and a flush in flight.
struct Stream {
    slots: Slots,
    read: u64,
    write: u64,
    flush: u64,
}

impl Stream {
    fn new() -> Self {
        let mut slots = Slots::new(4);
        let mut put = |asked| slots.put(asked, 0).unwrap();
        let read = put(Asked::Read { offset: OFFSET, length: LENGTH });
        let (write, flush) = (put(Asked::Write { offset: 0 }), put(Asked::Flush));
        Self { slots, read, write, flush }
    }

    /// Feeds `bytes` in pieces of `step`, as a socket may bring them, and tells which cookies ended.
    fn feed(&mut self, structured: bool, bytes: &[u8], step: usize) -> Result<Vec<u64>, Fault> {
        let (mut replies, mut ended, mut held) = (Replies::new(structured), Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            held.extend_from_slice(piece);
            let used = replies.take(&held, &mut self.slots, |slots, cookie| {
                assert!(slots.take(cookie).is_some());
                ended.push(cookie);
            })?;
            held.drain(..used);
            assert!(held.len() < CHUNK_BYTES + HOLE_BYTES, "{} bytes are held back", held.len());
        }
        assert!(held.is_empty(), "{} bytes are left", held.len());
        Ok(ended)
    }
}

fn to(form: ReplyForm, cookie: u64) -> ReplyTo {
    ReplyTo { form, cookie, offset: OFFSET }
}

fn structured_to(cookie: u64) -> ReplyTo {
    to(ReplyForm::Structured, cookie)
}

/// A chunk with data.
fn chunk_of(cookie: u64, done: bool, offset: u64, length: u32) -> Vec<u8> {
    [&structured_to(cookie).data(done, offset, length)[..], &vec![7; length as usize]].concat()
}

const STEPS: [usize; 6] = [1, 7, 16, 20, 4095, 1 << 20];

#[test]
fn simple_replies_end_their_requests_however_they_come() {
    for step in STEPS {
        let mut stream = Stream::new();
        let (read, write, flush) = (stream.read, stream.write, stream.flush);
        let data = to(ReplyForm::Simple, read).data(true, OFFSET, LENGTH);
        let bytes = [
            &to(ReplyForm::Simple, write).nothing(true)[..],
            &data[..],
            // Payload that looks like a reply is payload.
            &to(ReplyForm::Simple, flush).nothing(true)[..],
            &[0; LENGTH as usize - 16],
            &to(ReplyForm::Simple, flush).nothing(true)[..],
        ];
        assert_eq!(stream.feed(false, &bytes.concat(), step), Ok(vec![write, read, flush]), "by {step}");
    }
}

#[test]
fn a_structured_reply_may_come_in_parts_between_others() {
    for step in STEPS {
        let mut stream = Stream::new();
        let (read, write, flush) = (stream.read, stream.write, stream.flush);
        let bytes = [
            &chunk_of(read, false, OFFSET + 3072, 1024)[..],
            // Writes and flushes may be answered either way.
            &structured_to(write).nothing(true)[..],
            &structured_to(read).hole(false, OFFSET, 2048)[..],
            &chunk_of(read, false, OFFSET + 2048, 1024)[..],
            &to(ReplyForm::Simple, flush).nothing(false)[..],
            &structured_to(read).nothing(true)[..],
        ];
        assert_eq!(stream.feed(true, &bytes.concat(), step), Ok(vec![write, flush, read]), "by {step}");
    }
}

#[test]
fn one_chunk_or_one_hole_may_be_the_whole_reply() {
    let whole = |bytes: fn(u64) -> Vec<u8>| {
        let mut stream = Stream::new();
        let read = stream.read;
        assert_eq!(stream.feed(true, &bytes(read), 1 << 20), Ok(vec![read]));
    };
    whole(|read| chunk_of(read, true, OFFSET, LENGTH));
    whole(|read| structured_to(read).hole(true, OFFSET, LENGTH).to_vec());
}

/// What a lie is told as.
fn lie(structured: bool, bytes: impl FnOnce(&Stream) -> Vec<u8>) -> String {
    let mut stream = Stream::new();
    let bytes = bytes(&stream);
    match stream.feed(structured, &bytes, 1 << 20) {
        Err(Fault::Broken(how)) => how,
        other => panic!("{other:?} of {bytes:x?}"),
    }
}

#[test]
fn a_cookie_of_no_request_is_a_lie() {
    for structured in [false, true] {
        let form = if structured { ReplyForm::Structured } else { ReplyForm::Simple };
        let wrong = |stream: &Stream| to(form, stream.write ^ 1 << 40).nothing(true).to_vec();
        assert!(lie(structured, wrong).contains("which no request in flight has"));
        let twice = |stream: &Stream| [&to(form, stream.write).nothing(true)[..]; 2].concat();
        assert!(lie(structured, twice).contains("which no request in flight has"));
    }
}

#[test]
fn a_reply_of_the_wrong_form_is_a_lie() {
    assert!(lie(false, |s| structured_to(s.write).nothing(true).to_vec()).contains("not agreed on"));
    assert!(
        lie(true, |s| to(ReplyForm::Simple, s.read).nothing(true).to_vec())
            .contains("a simple reply to a read")
    );
    assert!(lie(true, |s| to(ReplyForm::Extended, s.read).nothing(true).to_vec()).contains("0x6e8a278c"));
    assert!(lie(false, |_| vec![0; 16]).contains("0x00000000"));
}

#[test]
fn bytes_beside_the_request_are_a_lie() {
    for (offset, length) in [
        (OFFSET - 1, 10),
        (OFFSET + u64::from(LENGTH) - 1, 2),
        (OFFSET, LENGTH + 1),
        (u64::MAX, 2),
        (OFFSET, 0),
    ] {
        let told = lie(true, |s| chunk_of(s.read, true, offset, length));
        assert!(told.contains(&format!("{length} bytes at {offset}")), "{told}");
        let told = lie(true, |s| structured_to(s.read).hole(true, offset, length).to_vec());
        assert!(told.contains(&format!("{length} bytes at {offset}")), "{told}");
    }
}

#[test]
fn a_reply_that_tells_too_little_or_twice_is_a_lie() {
    let short = lie(true, |s| chunk_of(s.read, true, OFFSET, LENGTH - 1));
    assert!(short.contains("ends after 4095 bytes"), "{short}");
    let none = lie(true, |s| structured_to(s.read).nothing(true).to_vec());
    assert!(none.contains("ends after 0 bytes"), "{none}");
    let twice = lie(true, |s| {
        [chunk_of(s.read, false, OFFSET, 1024), chunk_of(s.read, true, OFFSET + 1023, 1024)].concat()
    });
    assert!(twice.contains("sent before"), "{twice}");
}

#[test]
fn data_for_a_write_are_a_lie() {
    let told = lie(true, |s| chunk_of(s.write, true, 0, 512));
    assert!(told.contains("nothing to read"), "{told}");
}

#[test]
fn a_chunk_of_a_wrong_length_kind_or_flag_is_a_lie() {
    let raw = |kind: u16, flags: u16, payload: &[u8]| {
        lie(true, |s| {
            let length = u32::try_from(payload.len()).unwrap();
            let head = structured_to(s.read).chunk(kind, false, length.into());
            let mut bytes = [&head[..], payload].concat();
            bytes[4..6].copy_from_slice(&flags.to_be_bytes());
            bytes
        })
    };
    assert!(raw(chunk::OFFSET_DATA, 1, &[0; 7]).contains("too short"));
    assert!(raw(chunk::OFFSET_HOLE, 1, &[0; 16]).contains("not as long as a hole"));
    assert!(raw(chunk::NONE, 1, &[0; 4]).contains("empty and the last"));
    assert!(raw(chunk::NONE, 0, &[]).contains("empty and the last"));
    assert!(raw(chunk::BLOCK_STATUS, 1, &[0; 12]).contains("not of a kind"));
    assert!(raw(77, 1, &[]).contains("a chunk of kind 77"));
    assert!(raw(chunk::OFFSET_DATA, 2, &[0; 16]).contains("flags 0x2"));
    assert!(raw(chunk::ERROR, 1, &[0; 5]).contains("too short for an error"));
    assert!(raw(chunk::ERROR, 1, &[0; 6]).contains("without a number"));
}

#[test]
fn an_error_is_told_with_what_was_asked_for() {
    let refused = |structured: bool, bytes: fn(&Stream) -> Vec<u8>| {
        let mut stream = Stream::new();
        let bytes = bytes(&stream);
        stream.feed(structured, &bytes, 1 << 20).unwrap_err().to_string()
    };
    let told = refused(false, |s| to(ReplyForm::Simple, s.read).error(Errno::Io, true).to_vec());
    assert_eq!(told, "the server answered a read of 4096 bytes at 8192 with EIO");
    let told = refused(true, |s| structured_to(s.write).error(Errno::NoSpace, true).to_vec());
    assert_eq!(told, "the server answered a write at 0 with ENOSPC");
    // Simple replies to writes are right also where structured ones were agreed on; 75 is no error that we know.
    let told = refused(true, |s| {
        let mut reply = to(ReplyForm::Simple, s.flush).error(Errno::Io, false).to_vec();
        reply[7] = 75;
        reply
    });
    assert_eq!(told, "the server answered a flush with error 75");
}
