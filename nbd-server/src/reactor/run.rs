//! The loop: completions in, engine events, engine actions out, wait.
//!
//! One turn takes everything that has ended, lets the engine react, submits the disk operations that
//! came of it (those that the page cache can serve end at once and are answered in the same turn), then
//! starts one send and one receive per connection and waits. At depth 64 that is one receive, one submit
//! and one send for 64 requests. With few requests in flight the wait begins with polling (`idle`).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{Shutdown, shutdown};
use tokio::sync::OwnedSemaphorePermit;

use super::buffer::Pool;
use super::idle::IdlePoll;
use super::ring::{Completed, OpenFile, Ring, RingOptions};
use crate::connection::{Limits, Nanos, SocketAction};
use crate::disk::FileId;
use crate::engine::{Engine, Negotiated, describe};
use crate::export::Export;

/// How often stalled clients are looked for.
const TICK: Duration = Duration::from_secs(1);
/// Idle clients are given that long to send a last request, and to be told ESHUTDOWN, when we stop.
const STOP_LINGER: Duration = Duration::from_millis(200);
/// Whatever is still in flight that long after a stop is abandoned.
const STOP_DEADLINE: Duration = Duration::from_secs(4);

/// Builds an export on the reactor's own thread, from the ids of its files.
pub type BuildExport = Box<dyn FnOnce(&[FileId]) -> Box<dyn Export> + Send>;

/// An export to be served by a reactor.
pub struct ExportSpec {
    /// Its files, open.
    pub files: Vec<OpenFile>,
    /// Makes the state machine. Called once.
    pub build: BuildExport,
}

/// How a reactor is set up.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Bounds of each connection.
    pub limits: Limits,
    /// Connections at once.
    pub connections_max: u32,
    /// How long to look for the next request before sleeping, with a client that sends one at a time;
    /// zero: never.
    pub poll_window: Duration,
}

/// What a reactor has done, told when it ends.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReactorStats {
    /// Connections that reached transmission.
    pub connections: u64,
    /// Requests that reached an export.
    pub requests: u64,
    /// Operations abandoned because they did not end before the deadline of a stop.
    pub abandoned: usize,
}

/// A client's socket, with the right to exist that its accept has taken: returned when it is closed.
struct Socket {
    fd: OwnedFd,
    _permit: OwnedSemaphorePermit,
}

enum Message {
    Client { socket: Socket, client: Negotiated },
    Stop,
}

/// Sends messages to a reactor from other threads.
#[derive(Clone)]
pub struct Mailbox {
    shared: Arc<MailboxShared>,
}

struct MailboxShared {
    inbox: Mutex<Inbox>,
    event: OwnedFd,
}

#[derive(Default)]
struct Inbox {
    /// Bounded by the server's connection limit: a message is a client or the one stop.
    messages: VecDeque<Message>,
    /// The reactor has ended: nobody would ever take a message.
    closed: bool,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(MailboxShared { inbox: Mutex::default(), event }) })
    }

    /// Hands a client over to the reactor. The socket must be in blocking mode.
    ///
    /// # Errors
    /// The reactor cannot be woken.
    pub fn send_client(
        &self,
        fd: OwnedFd,
        client: Negotiated,
        permit: OwnedSemaphorePermit,
    ) -> io::Result<()> {
        self.send(Message::Client { socket: Socket { fd, _permit: permit }, client })
    }

    /// Asks the reactor to finish what is in flight and end.
    ///
    /// # Errors
    /// The reactor cannot be woken.
    pub fn send_stop(&self) -> io::Result<()> {
        self.send(Message::Stop)
    }

    fn send(&self, message: Message) -> io::Result<()> {
        let mut inbox = self.shared.inbox();
        if inbox.closed {
            return Err(io::Error::other("the reactor has ended"));
        }
        inbox.messages.push_back(message);
        drop(inbox);
        rustix::io::write(&self.shared.event, &1u64.to_ne_bytes())?;
        Ok(())
    }

    fn take(&self) -> io::Result<VecDeque<Message>> {
        let mut count = [0; 8];
        match rustix::io::read(&self.shared.event, &mut count) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(std::mem::take(&mut self.shared.inbox().messages))
    }

    /// Refuses messages from now on, and drops those that nobody took: a client among them is closed.
    fn close(&self) {
        let mut inbox = self.shared.inbox();
        inbox.closed = true;
        let left = std::mem::take(&mut inbox.messages);
        drop(inbox);
        drop(left);
    }
}

impl MailboxShared {
    /// A thread that panicked with the lock held has left nothing half done: messages are whole.
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reactor that is not running yet.
pub struct Reactor {
    mailbox: Mailbox,
    exports: Vec<ExportSpec>,
    config: ReactorConfig,
}

impl Reactor {
    /// A reactor for `exports`, in the order of their [`crate::disk::ExportIndex`]es.
    ///
    /// # Errors
    /// No event descriptor can be had.
    pub fn new(exports: Vec<ExportSpec>, config: ReactorConfig) -> io::Result<Self> {
        Ok(Self { mailbox: Mailbox::new()?, exports, config })
    }

    /// How other threads reach it.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// Runs on the calling thread until it is asked to stop. `started` is called when the ring stands, so
    /// that a caller can tell a ring that the kernel refuses from one that failed later.
    ///
    /// # Errors
    /// The kernel refuses the ring, or to be entered.
    pub fn run(self, started: impl FnOnce()) -> io::Result<ReactorStats> {
        let pool = Pool::new();
        let mut files = Vec::new();
        let mut exports = Vec::new();
        for spec in self.exports {
            let first = u32::try_from(files.len()).map_err(io::Error::other)?;
            let ids: Vec<FileId> = (first..).map(FileId).take(spec.files.len()).collect();
            files.extend(spec.files);
            exports.push((spec.build)(&ids));
        }
        let options = RingOptions { sockets_max: self.config.connections_max };
        let ring = Ring::new(files, pool.clone(), options)?;
        let engine = Engine::new(exports, pool, self.config.limits);
        started();
        Loop {
            ring,
            engine,
            mailbox: self.mailbox,
            sockets: Vec::new(),
            started: clock(),
            next_tick: Nanos::default(),
            stopping_since: None,
            stats: ReactorStats::default(),
            idle: IdlePoll::new(self.config.poll_window),
        }
        .run()
    }
}

/// The one clock; the engine is told the time.
#[expect(clippy::disallowed_methods, reason = "this is where time comes from")]
fn clock() -> Instant {
    Instant::now()
}

struct Loop {
    ring: Ring,
    engine: Engine,
    mailbox: Mailbox,
    /// By place in the engine.
    sockets: Vec<Option<Socket>>,
    started: Instant,
    next_tick: Nanos,
    stopping_since: Option<Nanos>,
    stats: ReactorStats,
    idle: IdlePoll,
}

/// However the loop ends, nobody waits for it any more.
impl Drop for Loop {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl Loop {
    fn run(mut self) -> io::Result<ReactorStats> {
        let mut completed = Vec::new();
        self.ring.wake_on(self.mailbox.shared.event.as_fd());
        while !self.stopped() {
            let before = self.engine.requests_started();
            self.turn(&mut completed)?;
            self.idle.turn_ended(self.engine.requests_started() - before);
            self.wait()?;
        }
        self.stats.requests = self.engine.requests_started();
        // The poll on the mailbox is always in flight and owns no buffer.
        self.stats.abandoned = self.ring.in_flight().saturating_sub(1);
        if self.stats.abandoned == 0 {
            // Older kernels wait here for operations on the files: never with one that does not end.
            self.ring.release_files()?;
        }
        Ok(self.stats)
    }

    fn wait(&mut self) -> io::Result<()> {
        let started = clock();
        let window = self.idle.poll_for();
        if let Some(window) = window {
            self.ring.submit()?;
            while !self.ring.has_work() && clock() - started < window {
                // Whoever else wants this processor may have it, our client above all.
                std::thread::yield_now();
            }
        }
        let timeout = if self.ring.has_work() { Some(Duration::ZERO) } else { self.timeout() };
        self.ring.wait(timeout)?;
        self.idle.wait_ended(clock() - started, window.is_some());
        Ok(())
    }

    fn now(&self) -> Nanos {
        Nanos::default().after(clock() - self.started)
    }

    fn turn(&mut self, completed: &mut Vec<Completed>) -> io::Result<()> {
        let now = self.now();
        self.engine.begin_turn(now);
        loop {
            self.ring.take_completed(completed);
            if completed.is_empty() {
                break;
            }
            for event in completed.drain(..) {
                self.handle(event)?;
            }
            self.ring.submit()?;
        }
        self.tick(now);
        while let Some((place, action)) = self.engine.next_action(&mut self.ring) {
            self.act(place, action);
        }
        Ok(())
    }

    fn handle(&mut self, event: Completed) -> io::Result<()> {
        match event {
            Completed::Received { place, op, result } => {
                self.engine.received(place, op, result, &mut self.ring);
            }
            Completed::Sent { place, batch, result } => {
                if let Some(rest) = self.engine.sent(place, batch, result) {
                    self.ring.send(place, rest);
                }
            }
            Completed::Disk { export, done } => self.engine.disk_done(export, done, &mut self.ring),
            Completed::Woken => self.read_mail()?,
        }
        Ok(())
    }

    fn read_mail(&mut self) -> io::Result<()> {
        for message in self.mailbox.take()? {
            match message {
                Message::Client { socket, client } => self.add_client(socket, client),
                Message::Stop => {
                    self.engine.begin_stop();
                    self.stopping_since = Some(self.now());
                }
            }
        }
        self.ring.wake_on(self.mailbox.shared.event.as_fd());
        Ok(())
    }

    fn add_client(&mut self, socket: Socket, client: Negotiated) {
        let place = self.engine.connect(client, &mut self.ring);
        if let Err(error) = self.ring.add_socket(place, socket.fd.as_fd()) {
            // Its first receive will fail on the empty place, and close it.
            tracing::error!(%error, "socket not registered");
        }
        if self.sockets.len() <= place {
            self.sockets.resize_with(place + 1, || None);
        }
        self.sockets[place] = Some(socket);
        self.stats.connections += 1;
    }

    fn act(&mut self, place: usize, action: SocketAction) {
        match action {
            SocketAction::Receive(op) => self.ring.receive(place, op),
            SocketAction::Send(batch) => self.ring.send(place, batch),
            SocketAction::Shutdown => {
                if let Some(Err(error)) =
                    self.sockets[place].as_ref().map(|s| shutdown(&s.fd, Shutdown::Both))
                {
                    tracing::debug!(%error, "the peer was gone first");
                }
            }
            SocketAction::Close(reason) => {
                if let Err(error) = self.ring.remove_socket(place) {
                    tracing::error!(%error, "socket not unregistered");
                }
                self.sockets[place] = None;
                tracing::debug!(reason = describe(reason), "connection closed");
            }
        }
    }

    fn tick(&mut self, now: Nanos) {
        if now >= self.next_tick {
            self.engine.check_stalls();
            self.next_tick = now.after(TICK);
        }
        if let Some(since) = self.stopping_since
            && now >= since.after(STOP_LINGER)
        {
            self.engine.end_stop(now >= since.after(STOP_DEADLINE));
        }
    }

    /// Stops when every client is gone, or, with a disk that does not answer, a little after the deadline.
    fn stopped(&self) -> bool {
        self.stopping_since.is_some_and(|since| {
            self.engine.connection_count() == 0 || self.now() >= since.after(STOP_DEADLINE + STOP_LINGER)
        })
    }

    /// With clients there is always a next look at the clock; without, nothing wakes us but mail.
    fn timeout(&self) -> Option<Duration> {
        if self.engine.wants_turn() {
            Some(Duration::ZERO)
        } else if self.stopping_since.is_some() {
            Some(STOP_LINGER / 4)
        } else {
            (self.engine.connection_count() > 0).then_some(TICK)
        }
    }
}
