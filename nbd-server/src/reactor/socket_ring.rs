//! Connected sockets on a ring, for who is the client: sends and receives, and nothing else.
//!
//! The server's own ring is another one (`ring`), which also drives files and takes its buffers from a pool.
//! Both keep what they lend to the kernel in the same kind of table (`in_flight`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use io_uring::opcode;
use io_uring::types::Fixed;

use super::in_flight::{InFlight, Lent};
use super::message::Message;
pub use super::outgoing::Outgoing;

/// Submission entries: a send and a receive for each of some hundred sockets.
const SUBMISSION_ENTRIES: u32 = 256;
/// Completion entries; more completions than this wait in the kernel, none is lost (NODROP).
const COMPLETION_ENTRIES: u32 = 1024;

/// Memory to receive into: what was not used of earlier bytes stays in front.
pub struct Room {
    memory: Vec<u8>,
    filled: usize,
}

impl Room {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { memory: vec![0; bytes], filled: 0 }
    }

    /// What has come.
    pub fn filled(&self) -> &[u8] {
        &self.memory[..self.filled]
    }

    /// Forgets the first `bytes` bytes of what has come.
    ///
    /// # Panics
    /// When not so many have come.
    pub fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.filled, "{bytes} of {} bytes", self.filled);
        self.memory.copy_within(bytes..self.filled, 0);
        self.filled -= bytes;
    }

    fn rest(&mut self) -> &mut [u8] {
        &mut self.memory[self.filled..]
    }
}

enum Op {
    Receive { place: usize, room: Room },
    Send { place: usize, outgoing: Outgoing, message: Box<Message> },
}

impl Lent for Op {
    fn lends_memory(&self) -> bool {
        true
    }
}

/// An operation that has ended, with what was lent to it.
pub enum SocketDone {
    /// Something was received: so many bytes, now in the room; none at the end of the stream.
    Received {
        /// The socket's number.
        place: usize,
        /// As lent.
        room: Room,
        /// How it ended.
        result: io::Result<usize>,
    },
    /// All was sent, or it failed.
    Sent {
        /// The socket's number.
        place: usize,
        /// As lent, without what was sent.
        outgoing: Outgoing,
        /// How it ended.
        result: io::Result<()>,
    },
}

/// See the module.
///
/// What is lent stays with the ring until the operation is over. One that is dropped before keeps it for ever:
/// end the conversation first, so that nothing is in flight.
pub struct SocketRing {
    flying: InFlight<Op>,
    /// In the order of their numbers. They are registered, too; open until the ring is dropped.
    _sockets: Vec<OwnedFd>,
    #[expect(clippy::vec_box, reason = "the boxes themselves are reused: their addresses go to the kernel")]
    messages: Vec<Box<Message>>,
    ended: Vec<(Op, i32)>,
}

impl SocketRing {
    /// A ring for these sockets; they are called by their places in the list. For the calling thread only.
    ///
    /// # Errors
    /// The kernel refuses the ring (too old, disabled, or out of memory) or a descriptor.
    pub fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let flying = InFlight::new(SUBMISSION_ENTRIES, COMPLETION_ENTRIES)?;
        let descriptors: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        flying.submitter().register_files(&descriptors)?;
        Ok(Self { flying, _sockets: sockets, messages: Vec::new(), ended: Vec::new() })
    }

    /// Receives what comes next, as far as there is room.
    ///
    /// # Panics
    /// When there is no room: an end of the stream could not be told from it.
    pub fn receive(&mut self, place: usize, mut room: Room) {
        assert!(!room.rest().is_empty(), "room to receive into");
        let prepare = |op: &mut Op| {
            let Op::Receive { room, .. } = op else { unreachable!("as pushed") };
            let rest = room.rest();
            let bytes = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            opcode::Recv::new(fixed(place), rest.as_mut_ptr(), bytes).build()
        };
        // SAFETY: the address is that of the room's memory, which is on the heap and does not move with it; nobody else
        // has the room until the operation is over.
        unsafe { self.flying.push(Op::Receive { place, room }, prepare) };
    }

    /// Sends all that is left of `outgoing`.
    pub fn send(&mut self, place: usize, outgoing: Outgoing) {
        let message = self.messages.pop().unwrap_or_else(Message::new);
        self.push_send(place, outgoing, message);
    }

    fn push_send(&mut self, place: usize, outgoing: Outgoing, message: Box<Message>) {
        let prepare = |op: &mut Op| {
            let Op::Send { outgoing, message, .. } = op else { unreachable!("as pushed") };
            let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
            opcode::SendMsg::new(fixed(place), message.sending(outgoing.slices())).flags(flags).build()
        };
        // SAFETY: the addresses are those of the boxed message and of what `outgoing` owns: bytes on the heap that do
        // not move with it, and a payload that it shares and that nobody can change.
        unsafe { self.flying.push(Op::Send { place, outgoing, message }, prepare) };
    }

    /// Hands queued operations to the kernel and waits until one has ended, or until `timeout`.
    ///
    /// # Errors
    /// The kernel refuses to be entered.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.flying.wait(Some(timeout))
    }

    /// Moves everything that has ended to `out`. Sends that the socket took a part of go on by themselves.
    pub fn take_done(&mut self, out: &mut Vec<SocketDone>) {
        let mut ended = std::mem::take(&mut self.ended);
        self.flying.take_ended(|op, result| ended.push((op, result)));
        for (op, result) in ended.drain(..) {
            let result = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
            match op {
                Op::Receive { place, room } => out.push(received(place, room, result)),
                Op::Send { place, outgoing, message } => {
                    out.extend(self.sent(place, outgoing, message, result));
                }
            }
        }
        self.ended = ended;
    }

    fn sent(
        &mut self,
        place: usize,
        mut outgoing: Outgoing,
        message: Box<Message>,
        result: io::Result<usize>,
    ) -> Option<SocketDone> {
        let result = match result {
            // Nothing taken and nothing wrong: to try again might go on for ever.
            Ok(0) if !outgoing.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            Ok(bytes) => {
                outgoing.advance(bytes);
                if !outgoing.is_empty() {
                    self.push_send(place, outgoing, message);
                    return None;
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        self.messages.push(message);
        Some(SocketDone::Sent { place, outgoing, result })
    }

    /// Operations that the kernel has not given back.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }
}

fn received(place: usize, mut room: Room, result: io::Result<usize>) -> SocketDone {
    if let Ok(bytes) = result {
        room.filled += bytes;
    }
    SocketDone::Received { place, room, result }
}

fn fixed(place: usize) -> Fixed {
    // Bounded by the descriptors that a process may have.
    Fixed(u32::try_from(place).expect("a small table"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::rc::Rc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn pair() -> (SocketRing, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (SocketRing::new(vec![ours.into()]).unwrap(), theirs)
    }

    fn next(ring: &mut SocketRing) -> SocketDone {
        let mut done = Vec::new();
        while done.is_empty() {
            ring.wait(PATIENCE).unwrap();
            ring.take_done(&mut done);
        }
        assert_eq!(done.len(), 1, "one at a time here");
        done.remove(0)
    }

    fn received(ring: &mut SocketRing) -> (Room, io::Result<usize>) {
        match next(ring) {
            SocketDone::Received { room, result, .. } => (room, result),
            SocketDone::Sent { .. } => panic!("a send ended"),
        }
    }

    fn sent(ring: &mut SocketRing) -> (Outgoing, io::Result<()>) {
        match next(ring) {
            SocketDone::Sent { outgoing, result, .. } => (outgoing, result),
            SocketDone::Received { .. } => panic!("a receive ended"),
        }
    }

    #[test]
    fn what_was_not_used_stays_in_front_of_what_comes() {
        let (mut ring, mut peer) = pair();
        peer.write_all(b"abcdef").unwrap();
        ring.receive(0, Room::new(8));
        let (mut room, result) = received(&mut ring);
        assert_eq!((result.unwrap(), room.filled()), (6, &b"abcdef"[..]));
        room.consume(4);
        peer.write_all(b"gh").unwrap();
        ring.receive(0, room);
        let (room, result) = received(&mut ring);
        assert_eq!((result.unwrap(), room.filled()), (2, &b"efgh"[..]));
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn a_send_larger_than_the_socket_takes_ends_when_all_was_taken() {
        let (mut ring, mut peer) = pair();
        // More pieces and more bytes than one operation of the kernel has.
        let payload: Rc<[u8]> = (0..=255).cycle().take(4099).collect();
        let mut outgoing = Outgoing::new(Rc::clone(&payload));
        let mut expected = Vec::new();
        for number in 0..1500_u32 {
            outgoing.push_bytes(&number.to_be_bytes());
            outgoing.push_payload();
            expected.extend_from_slice(&number.to_be_bytes());
            expected.extend_from_slice(&payload);
        }
        let bytes = expected.len();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; bytes];
            peer.read_exact(&mut got).unwrap();
            got
        });
        ring.send(0, outgoing);
        let (outgoing, result) = sent(&mut ring);
        result.unwrap();
        assert!(outgoing.is_empty());
        assert!(reader.join().unwrap() == expected, "the bytes in their order");
    }

    #[test]
    fn the_end_of_the_stream_is_no_bytes_and_a_gone_peer_an_error() {
        let (mut ring, peer) = pair();
        peer.shutdown(Shutdown::Write).unwrap();
        ring.receive(0, Room::new(8));
        assert_eq!(received(&mut ring).1.unwrap(), 0);
        drop(peer);
        let mut outgoing = Outgoing::new(Rc::from(&b""[..]));
        outgoing.push_bytes(b"x");
        ring.send(0, outgoing);
        assert_eq!(sent(&mut ring).1.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn sockets_are_told_apart_by_their_places() {
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let (ours, mut theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let mut ring = SocketRing::new(ours.into_iter().map(OwnedFd::from).collect()).unwrap();
        (0..3).for_each(|place| ring.receive(place, Room::new(8)));
        theirs[1].write_all(b"to one").unwrap();
        match next(&mut ring) {
            SocketDone::Received { place, room, .. } => {
                assert_eq!((place, room.filled()), (1, &b"to one"[..]));
            }
            SocketDone::Sent { .. } => panic!("a send ended"),
        }
        drop(theirs);
        let mut done = Vec::new();
        while ring.in_flight() > 0 {
            ring.wait(PATIENCE).unwrap();
            ring.take_done(&mut done);
        }
        assert_eq!(done.len(), 2);
    }

    /// What is in flight when the ring goes must stay the kernel's: neither freed, nor waited for.
    #[test]
    fn a_ring_dropped_with_operations_in_flight_leaks_on_purpose() {
        let (mut ring, mut peer) = pair();
        let payload: Rc<[u8]> = vec![7; 4 << 20].into();
        let mut outgoing = Outgoing::new(Rc::clone(&payload));
        outgoing.push_payload();
        ring.receive(0, Room::new(4096));
        // Nobody reads, and no socket holds that much: it stays in flight.
        ring.send(0, outgoing);
        let mut done = Vec::new();
        for _ in 0..3 {
            ring.wait(Duration::from_millis(10)).unwrap();
            ring.take_done(&mut done);
        }
        assert_eq!((done.len(), ring.in_flight()), (0, 2));
        assert_eq!(Rc::strong_count(&payload), 2);
        drop(ring);
        assert_eq!(Rc::strong_count(&payload), 2, "leaked with the operation");
        // The kernel takes the ring down on its own time. Whatever it does with what we send now, it does to the leaked
        // room, or gives the connection up.
        match peer.write_all(&[9; 4096]) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
        }
        assert!(payload.iter().all(|&byte| byte == 7));
    }
}
