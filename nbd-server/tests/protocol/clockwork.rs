//! Moments that a real socket hits by chance only: the same engine, driven step by step, at chosen times.

use fixtures::nbd::codec::{command, errno, request};
use nbd_server::connection::{Limits, Nanos, ReceiveOp, SendBatch, SocketAction};
use nbd_server::disk::{Disk, DiskOp, ExportIndex};
use nbd_server::engine::{Engine, Negotiated, TURN_BYTES};
use nbd_server::export::{ExportInfo, Separate};
use nbd_server::memory_export::MemoryExport;
use nbd_server::reactor::buffer::Pool;
use nbd_server::transmission::{CloseReason, Rules};
use nbd_server::wire::Errno;

const MIB: u64 = 1 << 20;
const MILLISECOND: u64 = 1_000_000;

struct NoDisk;

impl Disk for NoDisk {
    fn submit(&mut self, _export: ExportIndex, op: DiskOp) {
        panic!("memory asked for {op:?}");
    }
}

/// An engine with one client on 8 MiB of memory, simple replies.
fn engine(limits: Limits, leftover: Vec<u8>, now: Nanos) -> (Engine, usize) {
    let memory = MemoryExport::new(8 * MIB).expect("a small export");
    let mut engine = Engine::new(Box::new(Separate::new(vec![Box::new(memory)])), Pool::new(), limits);
    engine.begin_turn(now);
    let rules = Rules::new(ExportInfo::new("memory", 8 * MIB), false);
    let client = Negotiated { leftover, ..Negotiated::new(ExportIndex(0), rules) };
    let place = engine.connect(client, &mut NoDisk);
    (engine, place)
}

/// What the engine wants of the socket now.
#[derive(Default)]
struct Wants {
    receive: Option<ReceiveOp>,
    send: Option<SendBatch>,
    ends: bool,
    closed: Option<CloseReason>,
}

fn wants(engine: &mut Engine) -> Wants {
    let mut wants = Wants::default();
    while let Some((_, action)) = engine.next_action(&mut NoDisk) {
        match action {
            SocketAction::Receive(op) => wants.receive = Some(op),
            SocketAction::Send(batch) => wants.send = Some(batch),
            SocketAction::Shutdown => wants.ends = true,
            SocketAction::Close(reason) => {
                wants.ends = true;
                wants.closed = Some(reason);
            }
        }
    }
    wants
}

fn bytes(batch: &SendBatch) -> Vec<u8> {
    batch.slices().flatten().copied().collect()
}

/// While the server did not read, it was not the client who was slow.
#[test]
fn a_client_that_had_to_wait_is_not_stalled() {
    let limits = Limits { requests_max: 1, stall: std::time::Duration::from_secs(1), ..Limits::default() };
    let at = |milliseconds: u64| Nanos((10_000 + milliseconds) * MILLISECOND);
    let (mut engine, place) = engine(limits, Vec::new(), at(0));
    let mut op = wants(&mut engine).receive.unwrap();
    let read = request(0, command::READ, 1, 0, 4096);
    let arrived = [&read[..], &read[..10]].concat();
    op.targets().1[..arrived.len()].copy_from_slice(&arrived);
    engine.received(place, op, Ok(arrived.len()), &mut NoDisk);
    let send = wants(&mut engine).send.unwrap();
    // The answer takes its time, below the limit; only then is the rest of the second request asked for.
    engine.begin_turn(at(900));
    let sent = bytes(&send).len();
    assert!(engine.sent(place, send, Ok(sent)).is_none());
    assert!(wants(&mut engine).receive.is_some());
    engine.begin_turn(at(1100));
    engine.check_stalls();
    assert!(!wants(&mut engine).ends, "stalled 0.2 s after it was asked");
}

/// A client that never reads is closed by us, and the log should say so.
#[test]
fn a_close_keeps_its_reason() {
    let read = request(0, command::READ, 1, 0, 4096);
    let (mut engine, place) = engine(Limits::default(), read, Nanos(0));
    let mut next = wants(&mut engine);
    let (receive, send) = (next.receive.take().unwrap(), next.send.take().unwrap());
    engine.begin_turn(Nanos(60_000 * MILLISECOND));
    engine.check_stalls();
    assert!(wants(&mut engine).ends, "stalled");
    engine.received(place, receive, Ok(0), &mut NoDisk);
    assert!(engine.sent(place, send, Err(Errno::Io)).is_none());
    assert_eq!(wants(&mut engine).closed, Some(CloseReason::Stalled));
}

/// Requests that were received before a stop are answered: carried out, or refused with ESHUTDOWN. Large
/// ones wait for their turns, and must not be forgotten over it.
#[test]
fn requests_that_wait_for_their_turn_are_answered_at_a_stop() {
    let pipeline: Vec<u8> = (1..=3)
        .flat_map(|cookie| request(0, command::READ, cookie, 0, u32::try_from(TURN_BYTES).unwrap()))
        .collect();
    let (mut engine, place) = engine(Limits::default(), pipeline, Nanos(0));
    let mut said = Vec::new();
    engine.begin_stop(&mut NoDisk);
    let mut next = wants(&mut engine);
    while !next.ends {
        // The reactor's order: what has ended, the look at the clock, then what to do next.
        engine.begin_turn(Nanos(0));
        if let Some(batch) = next.send.take() {
            let piece = bytes(&batch);
            said.extend_from_slice(&piece);
            assert!(engine.sent(place, batch, Ok(piece.len())).is_none());
        }
        next = wants(&mut engine);
        if next.send.is_none() {
            engine.end_stop(false);
            next = wants(&mut engine);
        }
    }
    let shutdown = u8::try_from(errno::ESHUTDOWN).unwrap();
    let head = |cookie: u8, error: u8| [0x67, 0x44, 0x66, 0x98, 0, 0, 0, error, 0, 0, 0, 0, 0, 0, 0, cookie];
    assert!(said.starts_with(&head(1, 0)), "the first was started before the stop");
    for cookie in [2, 3] {
        assert!(said.windows(16).any(|window| window == head(cookie, shutdown)), "request {cookie}");
    }
}
