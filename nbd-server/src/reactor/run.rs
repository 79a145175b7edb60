//! The loop: completions in, engine events, engine actions out, wait.
//!
//! One turn takes everything that has ended, lets the engine react, submits the disk operations that
//! came of it (those that the page cache can serve end at once and are answered in the same turn), then
//! starts one send and one receive per connection and waits. At depth 64 that is one receive, one submit
//! and one send for 64 requests. With few requests in flight the wait begins with polling (`idle`).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{Shutdown, shutdown};

use super::buffer::Pool;
use super::idle::IdlePoll;
use super::ring::{Completed, OpenFile, Ring, RingOptions};
use crate::client::Client;
use crate::connection::{Limits, Nanos, SocketAction};
use crate::disk::FileId;
use crate::engine::{Engine, Negotiated};
use crate::export::{Backend, Export, Separate};
use crate::server::Seat;

/// How often stalled clients are looked for.
const STALL_CHECK: Duration = Duration::from_secs(1);
/// Idle clients are given that long to send a last request, and to be told ESHUTDOWN, when we stop.
const STOP_LINGER: Duration = Duration::from_millis(200);
/// Whatever is still in flight that long after a stop is abandoned.
const STOP_DEADLINE: Duration = Duration::from_secs(4);

/// Builds an export on the reactor's own thread, from the ids of its files.
pub type BuildExport = Box<dyn FnOnce(&[FileId]) -> Box<dyn Export> + Send>;

/// An export that is to be served by a reactor, knowing nothing of the others.
pub struct ExportSpec {
    /// Its files, open.
    pub files: Vec<OpenFile>,
    /// Makes the state machine. Called once.
    pub build: BuildExport,
}

/// Builds a backend on the reactor's own thread, from the ids of its files, the pool that all its buffers must
/// come from, and what its own threads wake it with.
pub type BuildBackend = Box<dyn FnOnce(&[FileId], &Pool, Waker) -> Box<dyn Backend> + Send>;

/// What a reactor is to serve.
pub struct ReactorSpec {
    /// Its files, open.
    pub files: Vec<OpenFile>,
    /// Makes the state machine. Called once; its first tick follows at once.
    pub build: BuildBackend,
}

impl ReactorSpec {
    /// Exports that share nothing but the reactor, in the order of their [`crate::disk::ExportIndex`]es.
    pub fn separate(exports: Vec<ExportSpec>) -> Self {
        let (mut files, mut builds) = (Vec::new(), Vec::new());
        for spec in exports {
            builds.push((spec.files.len(), spec.build));
            files.extend(spec.files);
        }
        let build = move |ids: &[FileId], _: &Pool, _: Waker| -> Box<dyn Backend> {
            let mut rest = ids;
            let build = |(count, build): (usize, BuildExport)| {
                let (own, others) = rest.split_at(count);
                rest = others;
                build(own)
            };
            Box::new(Separate::new(builds.into_iter().map(build).collect()))
        };
        Self { files, build: Box::new(build) }
    }
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
    /// Requests that reached the backend.
    pub requests: u64,
    /// Operations abandoned because they did not end before the deadline of a stop.
    pub abandoned: usize,
}

/// Whether a client may stay on the export of that name.
pub type Admits = Box<dyn Fn(&Client, &str) -> bool + Send>;

/// A client's socket, with the right to exist that its accept has taken: returned when it is closed.
struct Socket {
    fd: OwnedFd,
    _seat: Seat,
}

enum Message {
    Client { socket: Socket, client: Box<Negotiated> },
    Stop,
}

/// Sends messages to a reactor from other threads.
#[derive(Clone)]
pub struct Mailbox {
    shared: Arc<MailboxShared>,
}

struct MailboxShared {
    inbox: Mutex<Inbox>,
    /// Somebody wants the backend to be told, and the event was or will be raised for it.
    wake: AtomicBool,
    event: OwnedFd,
}

/// Makes a reactor call [`Backend::woken`], from any thread.
///
/// What is to be found there must be left before the call, in a place that the backend and the caller share.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<MailboxShared>,
}

impl Waker {
    /// Has the backend told, once for all calls since it was told last. Never waits; does nothing once the
    /// reactor has ended.
    pub fn wake(&self) {
        if self.shared.wake.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = self.shared.raise() {
            // Only a counter that is full can refuse, and then the reactor is about to look anyway.
            tracing::debug!(%error, "reactor not woken");
        }
    }
}

/// What a reactor finds when it looks into its mailbox.
struct Mail {
    woken: bool,
    messages: VecDeque<Message>,
    review: Option<Admits>,
}

#[derive(Default)]
struct Inbox {
    /// Bounded by the server's connection limit: a message is a client or the one stop.
    messages: VecDeque<Message>,
    /// After all messages, clients whom this does not admit are given up.
    review: Option<Admits>,
    /// The reactor has ended: nobody would ever take a message.
    closed: bool,
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = MailboxShared { inbox: Mutex::default(), wake: AtomicBool::new(false), event };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// How threads that work for the backend reach it.
    pub fn waker(&self) -> Waker {
        Waker { shared: Arc::clone(&self.shared) }
    }

    /// Hands a client over to the reactor. The socket must be in blocking mode.
    ///
    /// # Errors
    /// The reactor cannot be woken.
    pub fn send_client(&self, fd: OwnedFd, client: Negotiated, seat: Seat) -> io::Result<()> {
        self.send(Message::Client { socket: Socket { fd, _seat: seat }, client: Box::new(client) })
    }

    /// Gives up the clients whom `admits` does not admit, those included that were sent before.
    ///
    /// # Errors
    /// The reactor cannot be woken.
    pub fn send_review(&self, admits: Admits) -> io::Result<()> {
        let mut inbox = self.shared.open_inbox()?;
        // It is about clients as they are when it comes: the last is enough.
        inbox.review = Some(admits);
        drop(inbox);
        self.shared.raise()
    }

    /// Asks the reactor to finish what is in flight and end.
    ///
    /// # Errors
    /// The reactor cannot be woken.
    pub fn send_stop(&self) -> io::Result<()> {
        self.send(Message::Stop)
    }

    fn send(&self, message: Message) -> io::Result<()> {
        let mut inbox = self.shared.open_inbox()?;
        inbox.messages.push_back(message);
        drop(inbox);
        self.shared.raise()
    }

    fn take(&self) -> io::Result<Mail> {
        let mut count = [0; 8];
        match rustix::io::read(&self.shared.event, &mut count) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        // In this order: who wakes us and then hands a client over is not seen the other way round.
        let mut inbox = self.shared.inbox();
        let (messages, review) = (std::mem::take(&mut inbox.messages), inbox.review.take());
        drop(inbox);
        let woken = self.shared.wake.swap(false, Ordering::AcqRel);
        Ok(Mail { woken, messages, review })
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
    fn raise(&self) -> io::Result<()> {
        rustix::io::write(&self.event, &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// As long as the reactor takes messages.
    fn open_inbox(&self) -> io::Result<MutexGuard<'_, Inbox>> {
        let inbox = self.inbox();
        if inbox.closed { Err(io::Error::other("the reactor has ended")) } else { Ok(inbox) }
    }

    /// A thread that panicked with the lock held has left nothing half done: messages are whole.
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reactor that is not running yet.
pub struct Reactor {
    mailbox: Mailbox,
    spec: ReactorSpec,
    config: ReactorConfig,
}

impl Reactor {
    /// A reactor for what `spec` describes.
    ///
    /// # Errors
    /// No event descriptor can be had.
    pub fn new(spec: ReactorSpec, config: ReactorConfig) -> io::Result<Self> {
        Ok(Self { mailbox: Mailbox::new()?, spec, config })
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
        let ReactorSpec { files, build } = self.spec;
        let ids: Vec<FileId> = (0..).map(FileId).take(files.len()).collect();
        let options = RingOptions { sockets_max: self.config.connections_max };
        let ring = Ring::new(files, pool.clone(), options)?;
        let backend = build(&ids, &pool, self.mailbox.waker());
        let engine = Engine::new(backend, pool, self.config.limits);
        started();
        Loop {
            ring,
            engine,
            mailbox: self.mailbox,
            sockets: Vec::new(),
            started: clock(),
            next_check: Nanos::default(),
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
    next_check: Nanos,
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
        if !self.engine.quiescent() {
            tracing::warn!("the backend has not finished in time");
        }
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
        self.look_at_clock(now);
        self.engine.advance(self.now());
        self.act();
        self.engine.tick(&mut self.ring);
        self.engine.advance(self.now());
        self.act();
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
        let mail = self.mailbox.take()?;
        if mail.woken {
            self.engine.woken(&mut self.ring);
        }
        for message in mail.messages {
            match message {
                Message::Client { socket, client } => self.add_client(socket, *client),
                Message::Stop => {
                    self.engine.begin_stop(&mut self.ring);
                    self.stopping_since = Some(self.now());
                }
            }
        }
        if let Some(admits) = mail.review {
            self.engine.expel(admits);
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

    /// Does everything that the engine wants of the sockets.
    fn act(&mut self) {
        while let Some((place, action)) = self.engine.next_action(&mut self.ring) {
            self.act_on(place, action);
        }
    }

    fn act_on(&mut self, place: usize, action: SocketAction) {
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
                tracing::debug!(reason = reason.code(), "connection closed");
            }
        }
    }

    fn look_at_clock(&mut self, now: Nanos) {
        if now >= self.next_check {
            self.engine.check_stalls();
            self.next_check = now.after(STALL_CHECK);
        }
        if let Some(since) = self.stopping_since
            && now >= since.after(STOP_LINGER)
        {
            self.engine.end_stop(now >= since.after(STOP_DEADLINE));
        }
    }

    /// Stops when every client is gone and the backend has finished, or, with a disk that does not answer, a
    /// little after the deadline.
    fn stopped(&self) -> bool {
        self.stopping_since.is_some_and(|since| {
            let done = self.engine.connection_count() == 0 && self.engine.quiescent();
            done || self.now() >= since.after(STOP_DEADLINE + STOP_LINGER)
        })
    }

    /// With clients there is always a next look at the clock; without, nothing wakes us but mail and the
    /// backend's own time.
    fn timeout(&self) -> Option<Duration> {
        if self.engine.wants_turn() {
            return Some(Duration::ZERO);
        }
        let check = if self.stopping_since.is_some() {
            Some(STOP_LINGER / 4)
        } else {
            (self.engine.connection_count() > 0).then_some(STALL_CHECK)
        };
        let tick = self.engine.next_tick().map(|at| self.now().until(at));
        [check, tick].into_iter().flatten().min()
    }
}
