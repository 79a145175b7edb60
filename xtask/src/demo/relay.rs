//! The link between the two hosts: a TCP relay in this process, so that it can be cut and healed while both daemons
//! run. It also counts what it carries: nobody has to be believed about that.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};

/// Connections at a time; a run of a job has one.
const CONNECTIONS_MAX: usize = 16;
/// What one connection holds in each direction.
const BUFFER_BYTES: usize = 256 << 10;

/// A relay that runs; dropped, it breaks its connections off and ends.
#[derive(Debug)]
pub(super) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    /// Bytes towards the target.
    carried: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    is_cut: bool,
    is_ending: bool,
    /// Both ends of each connection, by number.
    connections: Vec<(u64, TcpStream, TcpStream)>,
    last: u64,
}

impl Relay {
    /// Listens on a free port of loopback; who connects there talks to `target`.
    pub(super) fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
        let address = listener.local_addr()?;
        let shared = Shared { target, carried: AtomicU64::new(0), state: Mutex::default() };
        let shared = Arc::new(shared);
        let accepting = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.accept(&listener)
        });
        Ok(Self { address, shared, accepting: Some(accepting) })
    }

    /// Where to connect to.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes that it has carried towards the target, of all connections.
    pub(super) fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::Relaxed)
    }

    /// Breaks all connections off; new ones are dropped at once.
    pub(super) fn cut(&self) {
        self.shared.lock().cut();
    }

    /// Carries again; what was broken off stays so.
    pub(super) fn heal(&self) {
        self.shared.lock().is_cut = false;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        {
            let mut state = self.shared.lock();
            state.is_ending = true;
            state.cut();
        }
        // Wakes the thread that accepts. Where that fails, it has ended: nobody else closes the listener.
        let woken = TcpStream::connect(self.address);
        match self.accepting.take().map(JoinHandle::join) {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => eprintln!("the relay had ended: {error} ({woken:?})"),
            Some(Err(_)) => eprintln!("the relay had panicked"),
        }
    }
}

impl State {
    fn cut(&mut self) {
        self.is_cut = true;
        for (_, near, far) in self.connections.drain(..) {
            break_off(&near);
            break_off(&far);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // It is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until the relay ends; then waits for its connections.
    fn accept(self: &Arc<Self>, listener: &TcpListener) -> io::Result<()> {
        let mut carrying: Vec<JoinHandle<()>> = Vec::new();
        loop {
            let (near, _) = listener.accept()?;
            if self.lock().is_ending {
                break;
            }
            carrying.retain(|thread| !thread.is_finished());
            let shared = Arc::clone(self);
            // Beyond the limit it is dropped, as by a link that is cut.
            if carrying.len() < CONNECTIONS_MAX {
                carrying.push(thread::spawn(move || shared.serve(near)));
            }
        }
        for thread in carrying {
            if thread.join().is_err() {
                eprintln!("a connection of the relay has panicked");
            }
        }
        Ok(())
    }

    /// One connection, until both directions have ended.
    fn serve(&self, near: TcpStream) {
        // An error is the end of the connection, which is what its client then sees.
        let Ok((number, far)) = self.connect(&near) else { return };
        let unseen = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| carry(&far, &near, &unseen));
            carry(&near, &far, &self.carried);
        });
        self.lock().connections.retain(|(other, ..)| *other != number);
    }

    /// The other half of a connection; an error while the link is cut.
    fn connect(&self, near: &TcpStream) -> io::Result<(u64, TcpStream)> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionAborted);
        if self.lock().is_cut {
            return Err(refused());
        }
        let far = TcpStream::connect(self.target)?;
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let ends = (near.try_clone()?, far.try_clone()?);
        let mut state = self.lock();
        // Cut meanwhile: whoever cut it has not seen this connection.
        if state.is_cut {
            return Err(refused());
        }
        state.last += 1;
        let number = state.last;
        state.connections.push((number, ends.0, ends.1));
        Ok((number, far))
    }
}

/// Carries one direction to its end; an end is handed on, an error ends both directions.
fn carry(from: &TcpStream, to: &TcpStream, carried: &AtomicU64) {
    if pump(from, to, carried).is_err() {
        break_off(from);
        break_off(to);
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, carried: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.shutdown(Shutdown::Write),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                carried.fetch_add(read as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn break_off(stream: &TcpStream) {
    match stream.shutdown(Shutdown::Both) {
        // The other side was faster.
        Err(error) if error.kind() != io::ErrorKind::NotConnected => {
            eprintln!("the relay cannot break a connection off: {error}");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Long enough for any machine: it only passes where a test fails.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn connect(address: SocketAddr) -> TcpStream {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Whether the other side has gone: an end, or an error that is no timeout.
    fn is_broken(mut stream: &TcpStream) -> bool {
        match stream.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// A connection through the relay, both its ends.
    fn link(relay: &Relay, target: &TcpListener) -> (TcpStream, TcpStream) {
        let near = connect(relay.address());
        let (far, _) = target.accept().unwrap();
        far.set_read_timeout(Some(PATIENCE)).unwrap();
        (near, far)
    }

    fn say(mut from: &TcpStream, mut to: &TcpStream, words: &[u8]) {
        from.write_all(words).unwrap();
        let mut heard = vec![0; words.len()];
        to.read_exact(&mut heard).unwrap();
        assert_eq!(heard, words);
    }

    #[test]
    fn both_directions_are_carried_one_is_counted_and_ends_are_handed_on() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start(target.local_addr().unwrap()).unwrap();
        let (near, far) = link(&relay, &target);
        say(&near, &far, b"there");
        say(&far, &near, b"and back");
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!((&far).read(&mut [0]).unwrap(), 0);
        say(&far, &near, b"still");
        drop((near, far));
        assert_eq!(relay.carried(), 5);
    }

    #[test]
    fn a_cut_link_carries_nothing_until_it_is_healed() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start(target.local_addr().unwrap()).unwrap();
        let (near, far) = link(&relay, &target);
        say(&near, &far, b"before");
        relay.cut();
        assert!(is_broken(&near) && is_broken(&far));
        assert!(is_broken(&connect(relay.address())));
        relay.heal();
        let (near, far) = link(&relay, &target);
        say(&near, &far, b"after");
    }

    #[test]
    fn its_end_breaks_off_what_it_carries() {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::start(target.local_addr().unwrap()).unwrap();
        let (near, far) = link(&relay, &target);
        say(&near, &far, b"carried");
        drop(relay);
        assert!(is_broken(&near) && is_broken(&far));
    }
}
