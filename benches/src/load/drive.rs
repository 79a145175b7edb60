//! The loop: bytes from the sockets to the connections and back, the time, and the end.
//!
//! One turn takes what has come on any connection, and sends what may be asked for now in one piece; at depth 64
//! that is one receive and one send for 64 requests. All requests of a turn begin at the same moment and all
//! replies of a turn end at the same moment: a clock read for each would cost more than it tells.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nbd_server::reactor::{Outgoing, Room, SocketDone, SocketRing};
use nbd_server::wire::{RequestHeader, command};

use super::Workload;
use super::connection::Connection;
use super::negotiate::{Export, Target};
use super::report::Report;
use super::tally::Tally;
use crate::cpu;
use crate::interrupt::Interrupt;
use crate::trouble::{OrTrouble, Trouble};

/// Bytes that one receive may bring: more than a Unix socket holds, and little enough to stay in a cache.
const RECEIVE_BYTES: usize = 256 << 10;
/// A server that sends nothing for so long, though it was asked, has stalled.
const STALL: Duration = Duration::from_secs(20);
/// How long a server may take to close a connection that was said goodbye to.
const GOODBYE: Duration = Duration::from_secs(5);
/// The longest wait: how soon an interrupt or a stall is noticed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long it goes.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The warm-up, which nothing is counted of.
    pub ramp: Duration,
    /// What is measured.
    pub runtime: Duration,
}

/// Connects, puts the load on the export, and says goodbye.
///
/// # Errors
/// The server cannot be reached, refuses a request, breaks the protocol, hangs up or stalls; or somebody asked to
/// stop.
pub fn run(
    target: &Target,
    workload: Workload,
    times: Times,
    interrupt: &Interrupt,
) -> Result<Report, Trouble> {
    let (sockets, exports): (Vec<OwnedFd>, Vec<Export>) = (0..workload.connections)
        .map(|_| target.connect())
        .collect::<Result<Vec<_>, Trouble>>()?
        .into_iter()
        .unzip();
    exports.iter().try_for_each(|export| export.check(&workload))?;
    let mut drive = Drive::new(sockets, &exports, workload)?;
    drive.load_for(times.ramp, interrupt)?;
    let begun = drive.begin_measuring()?;
    drive.load_for(times.runtime, interrupt)?;
    drive.drain(interrupt)?;
    let report = drive.report(&begun, exports.iter().all(|export| export.structured))?;
    drive.leave(interrupt)?;
    Ok(report)
}

/// A connection's end of things.
struct Line {
    connection: Connection,
    /// With us while nothing is being sent.
    outgoing: Option<Outgoing>,
}

/// When the measurement began, and what this process had spent by then.
struct Begun {
    at: Instant,
    cpu: Duration,
}

struct Drive {
    ring: SocketRing,
    lines: Vec<Line>,
    workload: Workload,
    tally: Tally,
    epoch: Instant,
    /// When something was received last.
    heard: Instant,
    done: Vec<SocketDone>,
    /// Connections that are closed, after the goodbye.
    closed: usize,
    leaving: bool,
}

impl Drive {
    fn new(sockets: Vec<OwnedFd>, exports: &[Export], workload: Workload) -> Result<Self, Trouble> {
        let payload = payload(workload);
        let to_line = |(number, export): (u32, &Export)| Line {
            connection: Connection::new(number, *export, workload),
            outgoing: Some(Outgoing::new(Rc::clone(&payload))),
        };
        let lines: Vec<Line> = (0..).zip(exports).map(to_line).collect();
        let ring = SocketRing::new(sockets);
        let mut ring =
            ring.or_trouble(|| "set up io_uring".into(), "use Linux 6.1 or later with io_uring")?;
        (0..lines.len()).for_each(|place| ring.receive(place, Room::new(RECEIVE_BYTES)));
        let (tally, now, done) = (Tally::default(), Instant::now(), Vec::new());
        Ok(Self { ring, lines, workload, tally, epoch: now, heard: now, done, closed: 0, leaving: false })
    }

    fn load_for(&mut self, time: Duration, interrupt: &Interrupt) -> Result<(), Trouble> {
        let end = Instant::now() + time;
        // Once at least, however late we come to it: what was asked for is tried.
        while !time.is_zero() {
            let now = Instant::now();
            self.turn(now, end.saturating_duration_since(now), interrupt)?;
            if now >= end {
                break;
            }
        }
        Ok(())
    }

    /// Forgets what was done before.
    fn begin_measuring(&mut self) -> Result<Begun, Trouble> {
        self.tally = Tally::default();
        Ok(Begun { at: Instant::now(), cpu: cpu::spent_by_tree(std::process::id())? })
    }

    /// Asks for nothing more, and waits for what is in flight.
    fn drain(&mut self, interrupt: &Interrupt) -> Result<(), Trouble> {
        self.lines.iter_mut().for_each(|line| line.connection.stop());
        // A reply may be seen before the end of the send that its request was in.
        while self.unanswered() > 0 || self.lines.iter().any(|line| line.outgoing.is_none()) {
            self.turn(Instant::now(), LOOK_EVERY, interrupt)?;
        }
        Ok(())
    }

    fn unanswered(&self) -> usize {
        self.lines.iter().map(|line| line.connection.in_flight()).sum()
    }

    fn report(&self, begun: &Begun, structured: bool) -> Result<Report, Trouble> {
        let spent = cpu::spent_by_tree(std::process::id())?.saturating_sub(begun.cpu);
        // Until the last reply: what is counted was done in that time.
        let elapsed = self.heard.saturating_duration_since(begun.at);
        Report::new(&self.workload, structured, &self.tally, elapsed, spent)
    }

    /// Sends what may be sent, waits no longer than `patience`, and takes what has come.
    fn turn(&mut self, now: Instant, patience: Duration, interrupt: &Interrupt) -> Result<(), Trouble> {
        interrupt.check()?;
        let now_ns = self.ns(now);
        for (place, line) in self.lines.iter_mut().enumerate() {
            let Some(mut outgoing) = line.outgoing.take() else { continue };
            line.connection.fill(now_ns, &mut outgoing);
            if outgoing.is_empty() {
                line.outgoing = Some(outgoing);
            } else {
                self.ring.send(place, outgoing);
            }
        }
        self.ring.wait(patience.min(LOOK_EVERY)).or_trouble(|| "wait for replies".into(), REPORT)?;
        self.take_done()
    }

    fn ns(&self, at: Instant) -> u64 {
        u64::try_from((at - self.epoch).as_nanos()).unwrap_or(u64::MAX)
    }

    fn take_done(&mut self) -> Result<(), Trouble> {
        let now = Instant::now();
        let mut done = std::mem::take(&mut self.done);
        self.ring.take_done(&mut done);
        for done in done.drain(..) {
            match done {
                SocketDone::Sent { place, outgoing, result } => {
                    result.or_trouble(|| "send requests".into(), LOOK_AT_LOG)?;
                    self.lines[place].outgoing = Some(outgoing);
                }
                SocketDone::Received { place, room, result } => {
                    let bytes = match result {
                        Err(error) if self.leaving && error.kind() == ErrorKind::ConnectionReset => 0,
                        other => other.or_trouble(|| "receive replies".into(), LOOK_AT_LOG)?,
                    };
                    self.received(place, room, bytes, now)?;
                }
            }
        }
        self.done = done;
        let stalled = now.saturating_duration_since(self.heard) > STALL && self.unanswered() > 0;
        if stalled { Err(failed(&format!("no reply within {STALL:?}"))) } else { Ok(()) }
    }

    fn received(&mut self, place: usize, mut room: Room, bytes: usize, now: Instant) -> Result<(), Trouble> {
        let now_ns = self.ns(now);
        let connection = &mut self.lines[place].connection;
        if bytes == 0 && self.leaving {
            self.closed += 1;
            return Ok(());
        }
        if bytes == 0 {
            let waiting = connection.in_flight();
            return Err(failed(&format!("the server hung up, with {waiting} requests unanswered")));
        }
        let used = connection.received(room.filled(), now_ns, &mut self.tally);
        room.consume(used.map_err(|fault| failed(&fault.to_string()))?);
        self.heard = now;
        self.ring.receive(place, room);
        Ok(())
    }

    /// Says goodbye on every connection and waits until the server has closed them, so that nothing of ours is in the
    /// kernel any more.
    fn leave(&mut self, interrupt: &Interrupt) -> Result<(), Trouble> {
        self.leaving = true;
        let goodbye = RequestHeader { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
        for line in &mut self.lines {
            // All is sent: `drain` has waited for it.
            let outgoing = line.outgoing.as_mut().ok_or_else(|| failed("a request is still being sent"))?;
            outgoing.push_bytes(&goodbye.to_bytes());
        }
        let deadline = Instant::now() + GOODBYE;
        while self.closed < self.lines.len() {
            let now = Instant::now();
            if now > deadline {
                return Err(failed(&format!("a connection is still open {GOODBYE:?} after the goodbye")));
            }
            self.turn(now, LOOK_EVERY, interrupt)?;
        }
        Ok(())
    }
}

const REPORT: &str = "report it, with this text";
const LOOK_AT_LOG: &str = "look at the server's log";

fn failed(why: &str) -> Trouble {
    Trouble::new("put load on the server", why, LOOK_AT_LOG)
}

/// What every write carries: bytes that no server takes for zeroes or for each other.
fn payload(workload: Workload) -> Rc<[u8]> {
    let bytes = if workload.pattern.writes() { workload.block_bytes as usize } else { 0 };
    let mut random = fastrand::Rng::with_seed(workload.seed);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}
