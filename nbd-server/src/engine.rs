//! Connections and backend of one reactor, tied together. No I/O: events in, actions out.
//!
//! ```text
//!  received ─► Connection::next_request ─► Backend::start ──► Disk::submit
//!  disk_done ─► Backend::disk_done ─► replies ─► Connection::reply ─► next_action ─► socket
//! ```
//!
//! With TLS a `Relay` stands between a connection and its socket; without, there is nothing in between.
//!
//! The reactor drives an engine with a ring, the simulator with a simulated disk and sockets. All state
//! is owned here, by one thread; there is no lock. A connection keeps its place until its last request
//! was answered and its last socket operation has come back, so a reply never meets a stranger.

use std::collections::VecDeque;

use slab::Slab;

use crate::client::Client;
use crate::connection::{Connection, Limits, Nanos, ReceiveOp, SendBatch, SocketAction};
use crate::disk::{Disk, DiskDone, ExportIndex};
use crate::export::{Backend, Io, Reply, Request};
use crate::reactor::buffer::Pool;
use crate::registry::Entry;
use crate::tls::{Next, Relay, Session};
use crate::transmission::{CloseReason, Rules};

/// Payload bytes that one connection may start per turn; what it has beyond waits for the next. Keeps a
/// deep queue of large requests from holding up the others, and from being read long before it is sent.
pub const TURN_BYTES: usize = 2 << 20;

/// See the module.
pub struct Engine {
    backend: Box<dyn Backend>,
    connections: Slab<Place>,
    /// Connections whose next action must be asked for.
    ready: VecDeque<usize>,
    turn: u64,
    /// Connections that have used up their turn and may have more requests.
    deferred: Vec<usize>,
    replies: Vec<Reply>,
    /// The backend has given replies, and was not told yet that they are about to be sent.
    unrecorded: bool,
    pool: Pool,
    limits: Limits,
    now: Nanos,
    stopping: bool,
    requests: u64,
    /// The backend was told of something since its last tick.
    unticked: bool,
    next_tick: Option<Nanos>,
}

struct Place {
    connection: Connection,
    /// Stands between the connection and its socket, if they speak TLS.
    relay: Option<Box<Relay>>,
    client: Client,
    /// Its line in the book of connections.
    entry: Option<Entry>,
    ready: bool,
    /// The last turn in which it started something, and the bytes that it started then.
    turn: u64,
    turn_bytes: usize,
}

impl Place {
    fn next(&mut self, pool: &Pool, now: Nanos) -> Next {
        match &mut self.relay {
            None => self.connection.next_action(pool, now).map_or(Next::Nothing, Next::Socket),
            Some(relay) => relay.next_action(&mut self.connection, pool, now),
        }
    }
}

/// A client that has left the handshake.
#[derive(Debug)]
pub struct Negotiated {
    /// The export it chose.
    pub export: ExportIndex,
    /// What was agreed on.
    pub rules: Rules,
    /// Bytes received behind the last option.
    pub leftover: Vec<u8>,
    /// The TLS session that it goes on in.
    pub session: Option<Box<Session>>,
    /// Who it is.
    pub client: Client,
    /// Its line in the book of connections, if there is one.
    pub entry: Option<Entry>,
}

impl Negotiated {
    /// A client over a Unix socket that has sent nothing yet.
    pub fn new(export: ExportIndex, rules: Rules) -> Self {
        Self { export, rules, leftover: Vec::new(), session: None, client: Client::unix(), entry: None }
    }
}

impl Engine {
    /// An engine that serves `backend`.
    pub fn new(backend: Box<dyn Backend>, pool: Pool, limits: Limits) -> Self {
        Self {
            backend,
            connections: Slab::new(),
            ready: VecDeque::new(),
            turn: 1,
            deferred: Vec::new(),
            replies: Vec::new(),
            unrecorded: false,
            pool,
            limits,
            now: Nanos::default(),
            stopping: false,
            requests: 0,
            unticked: true,
            next_tick: None,
        }
    }

    /// Where all buffers of this engine come from.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Connections that exist.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// Requests that have reached the backend.
    pub fn requests_started(&self) -> u64 {
        self.requests
    }

    /// Takes a client over; its place is returned.
    pub fn connect(&mut self, client: Negotiated, disk: &mut dyn Disk) -> usize {
        let entry = self.connections.vacant_entry();
        let place = entry.key();
        // Connections are bounded by the server's limit, far below 2^32.
        let index = u32::try_from(place).expect("a small table");
        let Negotiated { export, rules, leftover, session, client, entry: listed } = client;
        let mut connection =
            Connection::new(index, export, rules, self.limits.clone(), &leftover, &self.pool);
        connection.begin(self.now, listed.as_ref().map(Entry::meter));
        if self.stopping {
            connection.begin_stop();
        }
        let relay = session.map(|session| Box::new(Relay::new(*session, &self.pool, self.now)));
        entry.insert(Place {
            connection,
            relay,
            client,
            entry: listed,
            ready: false,
            turn: 0,
            turn_bytes: 0,
        });
        self.tell(export, disk, |backend, io| backend.connected(export, io));
        self.pump(place, disk);
        place
    }

    /// A receive has ended.
    pub fn received(
        &mut self,
        place: usize,
        op: ReceiveOp,
        result: Result<usize, crate::wire::Errno>,
        disk: &mut dyn Disk,
    ) {
        let entry = &mut self.connections[place];
        match &mut entry.relay {
            None => entry.connection.received(op, result, self.now),
            Some(relay) => relay.received(op, result, self.now),
        }
        self.pump(place, disk);
    }

    /// A send has ended. What is left of it, if it was short, must be sent before anything else.
    pub fn sent(
        &mut self,
        place: usize,
        batch: SendBatch,
        result: Result<usize, crate::wire::Errno>,
    ) -> Option<SendBatch> {
        let entry = &mut self.connections[place];
        let rest = match &mut entry.relay {
            None => entry.connection.sent(batch, result, self.now),
            Some(relay) => relay.sent(batch, result, &mut entry.connection, (&self.pool, self.now)),
        };
        self.mark_ready(place);
        rest
    }

    /// A disk operation of `owner` has ended.
    pub fn disk_done(&mut self, owner: ExportIndex, done: DiskDone, disk: &mut dyn Disk) {
        self.tell(owner, disk, |backend, io| backend.disk_done(owner, done, io));
    }

    /// Another thread has something for the backend.
    pub fn woken(&mut self, disk: &mut dyn Disk) {
        self.tell(ExportIndex::NONE, disk, |backend, io| backend.woken(io));
    }

    /// Ends a turn: the backend has seen all its events, and looks at the time. Its replies make new actions.
    pub fn tick(&mut self, disk: &mut dyn Disk) {
        let (now, mut next) = (self.now, None);
        self.tell(ExportIndex::NONE, disk, |backend, io| next = backend.tick(now, io));
        self.next_tick = next;
        self.unticked = false;
    }

    /// When the backend wants its next tick, whether something happens or not.
    pub fn next_tick(&self) -> Option<Nanos> {
        self.next_tick
    }

    /// The one way to the backend.
    fn tell(
        &mut self,
        owner: ExportIndex,
        disk: &mut dyn Disk,
        event: impl FnOnce(&mut dyn Backend, &mut Io<'_>),
    ) {
        self.unticked = true;
        let mut io = Io::new(disk, &self.pool, owner, &mut self.replies);
        event(&mut *self.backend, &mut io);
        self.deliver_replies();
    }

    /// The next thing a socket should do. Requests that the limits held back are started on the way.
    pub fn next_action(&mut self, disk: &mut dyn Disk) -> Option<(usize, SocketAction)> {
        while let Some(&place) = self.ready.front() {
            self.pump(place, disk);
            if std::mem::take(&mut self.unrecorded) {
                self.backend.before_replies();
            }
            let next = self.connections[place].next(&self.pool, self.now);
            match next {
                Next::Parse => {}
                Next::Socket(action) => {
                    if let SocketAction::Close(reason) = action {
                        self.ready.pop_front();
                        self.disconnect(place, reason, disk);
                    }
                    return Some((place, action));
                }
                Next::Nothing => {
                    self.connections[place].ready = false;
                    self.ready.pop_front();
                }
            }
        }
        None
    }

    /// Starts every request of the connection that the limits and its turn allow.
    fn pump(&mut self, place: usize, disk: &mut dyn Disk) {
        loop {
            let entry = &mut self.connections[place];
            if entry.turn != self.turn {
                (entry.turn, entry.turn_bytes) = (self.turn, 0);
            }
            if entry.turn_bytes >= TURN_BYTES {
                break;
            }
            let Some(request) = entry.connection.next_request(&self.pool) else { break };
            entry.turn_bytes += request.length as usize;
            if entry.turn_bytes >= TURN_BYTES {
                self.deferred.push(place);
            }
            self.start(place, request, disk);
        }
        self.mark_ready(place);
    }

    fn disconnect(&mut self, place: usize, reason: CloseReason, disk: &mut dyn Disk) {
        let Place { connection, mut entry, .. } = self.connections.remove(place);
        if let Some(entry) = &mut entry {
            entry.ended(reason);
        }
        let export = connection.export();
        self.tell(export, disk, |backend, io| backend.disconnected(export, io));
    }

    /// Time goes on within a turn: what is sent from now on is sent now.
    pub fn advance(&mut self, now: Nanos) {
        self.now = now;
    }

    /// Begins a turn: connections that had used up their last one go on.
    pub fn begin_turn(&mut self, now: Nanos) {
        self.now = now;
        self.turn += 1;
        while let Some(place) = self.deferred.pop() {
            // It may have been closed meanwhile, and its place given to another, whom a look does not hurt.
            if self.connections.contains(place) {
                self.mark_ready(place);
            }
        }
    }

    /// Some connection waits for the next turn only, or the backend for its tick: do not wait for anything
    /// else.
    pub fn wants_turn(&self) -> bool {
        self.unticked || !self.deferred.is_empty()
    }

    fn start(&mut self, place: usize, request: Request, disk: &mut dyn Disk) {
        self.requests += 1;
        let export = self.connections[place].connection.export();
        self.tell(export, disk, |backend, io| backend.start(export, request, io));
    }

    fn deliver_replies(&mut self) {
        while let Some(reply) = self.replies.pop() {
            self.unrecorded = true;
            let place = reply.id.connection as usize;
            self.connections[place].connection.reply(reply, &self.pool);
            self.mark_ready(place);
        }
    }

    fn mark_ready(&mut self, place: usize) {
        let entry = &mut self.connections[place];
        if !entry.ready {
            entry.ready = true;
            self.ready.push_back(place);
        }
    }

    /// Closes clients that have stalled. Call it now and then.
    pub fn check_stalls(&mut self) {
        self.for_each_place(|place, now| {
            place.connection.check_stall(now);
            if let Some(relay) = &place.relay {
                relay.check_stall(&mut place.connection, now);
            }
        });
    }

    /// Gives up clients that are not admitted any more.
    pub fn expel(&mut self, mut admits: impl FnMut(&Client, &str) -> bool) {
        self.for_each_place(|place, _| {
            if !admits(&place.client, place.connection.export_name()) {
                tracing::info!(
                    peer = place.client.place(),
                    "a client is disconnected: it is not let in any more"
                );
                place.connection.fail(CloseReason::Revoked);
            }
        });
    }

    /// The server stops: what is in flight is finished, what arrives from now on is answered ESHUTDOWN.
    pub fn begin_stop(&mut self, disk: &mut dyn Disk) {
        self.stopping = true;
        self.for_each_place(|place, _| place.connection.begin_stop());
        self.tell(ExportIndex::NONE, disk, |backend, io| backend.begin_stop(io));
    }

    /// The backend has nothing left to finish.
    pub fn quiescent(&self) -> bool {
        self.backend.quiescent()
    }

    /// Ends connections with nothing in flight; with `force` all of them.
    pub fn end_stop(&mut self, force: bool) {
        self.for_each_place(|place, _| place.connection.end_stop(force));
    }

    fn for_each_place(&mut self, mut act: impl FnMut(&mut Place, Nanos)) {
        let now = self.now;
        let places: Vec<usize> = self.connections.iter().map(|(place, _)| place).collect();
        for place in places {
            act(&mut self.connections[place], now);
            self.mark_ready(place);
        }
    }
}
