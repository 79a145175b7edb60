//! Servers that hang up or lie: the run ends, and says why.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use benches::interrupt::Interrupt;
use benches::load::{Pattern, Target, Times, Workload, run};
use nbd_server::handshake::Handshake;
use nbd_server::wire::{
    Errno, ReplyForm, ReplyTo, RequestHeader, command, info, option, option_reply, option_reply_type,
    transmission_flag,
};

const SIZE: u64 = 1 << 20;
const BLOCK: u32 = 4096;

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// Negotiates well, structured replies included.
fn negotiate(stream: &mut UnixStream) -> io::Result<()> {
    stream.write_all(&Handshake::greeting())?;
    stream.read_exact(&mut [0; 4])?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header)?;
        let number = word(&header[8..12]);
        let length = word(&header[12..]);
        stream.read_exact(&mut vec![0; length as usize])?;
        let mut replies = Vec::new();
        if number == option::GO {
            let flags = transmission_flag::HAS_FLAGS | transmission_flag::SEND_FLUSH;
            let told = [&info::EXPORT.to_be_bytes()[..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
            option_reply(&mut replies, number, option_reply_type::INFO, &told);
        }
        option_reply(&mut replies, number, option_reply_type::ACK, &[]);
        stream.write_all(&replies)?;
        if number == option::GO {
            return Ok(());
        }
    }
}

fn request(stream: &mut UnixStream) -> io::Result<RequestHeader> {
    let mut header = [0; 28];
    stream.read_exact(&mut header)?;
    RequestHeader::parse(&header).ok_or_else(|| io::Error::other("no request"))
}

/// Answers a read well.
fn serve(stream: &mut UnixStream, asked: RequestHeader) -> io::Result<()> {
    let to = ReplyTo { form: ReplyForm::Structured, cookie: asked.cookie, offset: asked.offset };
    stream.write_all(&to.data(true, asked.offset, BLOCK))?;
    stream.write_all(&[1; BLOCK as usize])
}

/// What the client says of a server that serves ten requests well and the eleventh by `last`.
fn told_of(last: fn(&mut UnixStream, RequestHeader)) -> String {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        negotiate(&mut stream).expect("a negotiation");
        for _ in 0..10 {
            let asked = request(&mut stream).expect("a request");
            serve(&mut stream, asked).expect("a client that reads");
        }
        let asked = request(&mut stream).expect("a request");
        last(&mut stream, asked);
        // Until the client has gone; a client that is cut off with requests unread may leave by a reset.
        while let Ok(1..) = stream.read(&mut [0; 4096]) {}
    });
    let target = Target { socket, export: String::new(), simple: false };
    let workload = Workload {
        pattern: Pattern::RandRead,
        block_bytes: BLOCK,
        depth: 4,
        connections: 1,
        flush_every: None,
        seed: 0,
    };
    // Far more time than it takes: only the fault can end it.
    let times = Times { ramp: Duration::ZERO, runtime: Duration::from_secs(600) };
    let trouble = run(&target, workload, times, &Interrupt::default()).expect_err("a bad server");
    server.join().expect("a server that does not panic");
    trouble.why
}

fn to(asked: RequestHeader) -> ReplyTo {
    ReplyTo { form: ReplyForm::Structured, cookie: asked.cookie, offset: asked.offset }
}

#[test]
fn a_server_that_hangs_up_is_told() {
    let told = told_of(|stream, _| stream.shutdown(std::net::Shutdown::Write).unwrap());
    assert!(told.contains("hung up, with 4 requests unanswered"), "{told}");
}

#[test]
fn a_server_that_hangs_up_within_a_reply_is_told() {
    let told = told_of(|stream, asked| {
        stream.write_all(&to(asked).data(true, asked.offset, BLOCK)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    });
    assert!(told.contains("hung up, with 4 requests unanswered"), "{told}");
}

#[test]
fn a_wrong_cookie_ends_the_run() {
    let told = told_of(|stream, asked| {
        let other = to(RequestHeader { cookie: asked.cookie + 4, ..asked });
        stream.write_all(&other.data(true, asked.offset, BLOCK)).unwrap();
    });
    assert!(told.contains("which no request in flight has"), "{told}");
}

#[test]
fn a_wrong_length_ends_the_run() {
    let told = told_of(|stream, asked| {
        stream.write_all(&to(asked).data(true, asked.offset, BLOCK + 1)).unwrap();
    });
    assert!(told.contains("4097 bytes at"), "{told}");
}

#[test]
fn an_unknown_chunk_ends_the_run() {
    let told = told_of(|stream, asked| stream.write_all(&to(asked).chunk(99, true, 0)).unwrap());
    assert!(told.contains("a chunk of kind 99"), "{told}");
}

#[test]
fn an_error_ends_the_run() {
    let told = told_of(|stream, asked| stream.write_all(&to(asked).error(Errno::Io, true)).unwrap());
    assert!(
        told.contains("the server answered a read of 4096 bytes at") && told.contains("with EIO"),
        "{told}"
    );
}

/// The goodbye of a well-served client is the last that a server hears.
#[test]
fn a_run_that_is_over_says_goodbye() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        negotiate(&mut stream).unwrap();
        let mut served = 0_u64;
        loop {
            let asked = request(&mut stream).unwrap();
            if asked.command == command::DISC {
                return served;
            }
            serve(&mut stream, asked).unwrap();
            served += 1;
        }
    });
    let target = Target { socket, export: String::new(), simple: false };
    let workload = Workload {
        pattern: Pattern::Read,
        block_bytes: BLOCK,
        depth: 4,
        connections: 1,
        flush_every: None,
        seed: 0,
    };
    let times = Times { ramp: Duration::ZERO, runtime: Duration::from_millis(30) };
    let report = run(&target, workload, times, &Interrupt::default()).unwrap();
    assert_eq!(report.measurement.ios, server.join().unwrap());
}
