//! The reactor's place, taken: the real engine, its clients' sockets, and a disk, moved one step at a time by whoever asks.
//!
//! Each step is one event of the ring: a receive, a send or a disk operation ends, the clock moves on, or the server stops. In
//! between the engine does what it wants, as in the reactor's loop. After each step holds: no more memory than the limits allow,
//! no more requests under way than they allow, and no byte of the disk has changed that nobody asked for.

mod peer;

use std::time::Duration;

use nbd_server::connection::{Limits, Nanos, SocketAction};
use nbd_server::disk::ExportIndex;
use nbd_server::engine::{Engine, Negotiated};
use nbd_server::export::{Backend, Export, Separate};
use nbd_server::file_export::{FileExport, FileGeometry};
use nbd_server::memory_export::MemoryExport;
use nbd_server::reactor::buffer::{Pool, SLAB_BYTES};
use nbd_server::transmission::CloseReason;

pub use peer::Peer;

use crate::disk::{FuzzDisk, How};
use crate::transmission::ledger::{Judge, Ledger, Past};
use crate::transmission::memory::Memory;
use crate::transmission::setting::{Setting, buffers_max};
use crate::transmission::stream::End;
use crate::{Verdict, ensure};

/// Steps after which a world must have come to rest. Far more than any script needs.
const STEPS_MAX: usize = 100_000;
/// What freed buffers are full of: whoever sends what it has not filled sends this.
const DIRT: u8 = 0xd1;

/// A pool whose buffers up to a slab are not zero. Made once, for it takes long.
pub fn dirty_pool() -> Pool {
    let pool = Pool::new();
    let mut bytes = 4096;
    while bytes <= SLAB_BYTES {
        let mut blocks: Vec<_> = (0..SLAB_BYTES / bytes).map(|_| pool.take(bytes)).collect();
        blocks.iter_mut().for_each(|block| block.fill(DIRT));
        bytes *= 2;
    }
    pool
}

/// What is served.
#[derive(Clone, Debug)]
pub enum Medium {
    /// Memory of each client's own.
    Memory,
    /// Files of these sizes, on a disk with blocks like that.
    Files(Vec<u64>, FileGeometry),
}

/// See the module.
pub struct World {
    engine: Engine,
    disk: FuzzDisk,
    memory: bool,
    limits: Limits,
    peers: Vec<Peer>,
    /// Counts steps.
    time: u64,
    clock: Nanos,
    past: Past,
    forced: bool,
}

impl World {
    /// A world without clients. With memory there may be so many as `sizes` has exports.
    ///
    /// # Panics
    /// When memory cannot be had.
    pub fn new(medium: &Medium, sizes: &[u64], limits: Limits, pool: Pool) -> Self {
        let (backend, disk) = match medium {
            Medium::Memory => (memories(sizes), FuzzDisk::new(&[], 1)),
            Medium::Files(sizes, geometry) => {
                (files(sizes, *geometry), FuzzDisk::new(sizes, geometry.transfer_align))
            }
        };
        let past = Past { stopping_since: None, refuses: limits.refuse_at_stop };
        let mut world = Self {
            engine: Engine::new(backend, pool, limits.clone()),
            disk,
            memory: matches!(medium, Medium::Memory),
            limits,
            peers: Vec::new(),
            time: 0,
            clock: Nanos(1),
            past,
            forced: false,
        };
        world.begin();
        world
    }

    /// A client enters transmission on an export; the first bytes of what it sends are there already.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn connect(&mut self, setting: Setting, export: u32, leftover: &[u8]) -> Verdict {
        self.begin();
        let judge =
            if self.memory { Judge::Memory(Memory::new(setting.size)) } else { Judge::File(export as usize) };
        let rules = setting.rules();
        let mut ledger = Ledger::new(setting, judge);
        ledger.send(leftover);
        // Cookies may have been replaced.
        let leftover = ledger.waiting().to_vec();
        ledger.arrive(leftover.len(), self.time);
        let client = Negotiated { leftover: leftover.clone(), ..Negotiated::new(ExportIndex(export), rules) };
        let place = self.engine.connect(client, &mut self.disk);
        self.peers.push(Peer::new(ledger, place, leftover.len()));
        self.act()
    }

    /// The clients, in the order in which they came.
    pub fn peers(&self) -> &[Peer] {
        &self.peers
    }

    /// A client sends; it is under way until it is delivered.
    pub fn send(&mut self, who: usize, bytes: &[u8]) {
        let peer = &mut self.peers[who];
        if !peer.leaving {
            peer.ledger.send(bytes);
        }
    }

    /// A client sends no more. What it hears from then on it still reads.
    pub fn hang_up(&mut self, who: usize) {
        let peer = &mut self.peers[who];
        peer.leaving = true;
        peer.ledger.finish();
    }

    /// A client is gone, with whatever was under way to it.
    pub fn reset(&mut self, who: usize) {
        self.hang_up(who);
        self.peers[who].lost = true;
    }

    /// A receive ends, with at most so many bytes. Tells whether there was one that could.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn deliver(&mut self, who: usize, bytes: usize) -> Result<bool, String> {
        let now = self.begin();
        let peer = &mut self.peers[who];
        let Some((op, result)) = peer.arrive(bytes, now)? else { return Ok(false) };
        self.engine.received(peer.place, op, result, &mut self.disk);
        self.act().map(|()| true)
    }

    /// A send ends, with at most so many bytes. Tells whether there was one.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn drain(&mut self, who: usize, bytes: usize) -> Result<bool, String> {
        self.begin();
        let peer = &mut self.peers[who];
        let Some((batch, result)) = peer.leave(bytes, self.past, &self.disk)? else { return Ok(false) };
        peer.send = self.engine.sent(peer.place, batch, result);
        self.act().map(|()| true)
    }

    /// A disk operation ends. Tells whether there was one.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn complete(&mut self, which: usize, how: How) -> Result<bool, String> {
        self.begin();
        let Some((export, done, changed)) = self.disk.complete(which, how) else { return Ok(false) };
        if changed {
            self.check_last_change()?;
        }
        self.engine.disk_done(export, done, &mut self.disk);
        self.act().map(|()| true)
    }

    /// Time passes, and the engine looks at the clock.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn wait(&mut self, time: Duration) -> Verdict {
        self.clock = self.clock.after(time);
        self.begin();
        self.peers.iter_mut().for_each(|peer| peer.waited += time);
        self.engine.check_stalls();
        self.act()
    }

    /// The server begins to stop, or its patience with idle clients is at an end; with `force`, that with all.
    ///
    /// # Errors
    /// A rule is broken.
    pub fn stop(&mut self, force: bool) -> Verdict {
        self.begin();
        if self.past.stopping_since.is_none() {
            self.past.stopping_since = Some(self.time);
            self.engine.begin_stop(&mut self.disk);
        } else {
            self.forced |= force;
            self.engine.end_stop(force);
        }
        self.act()
    }

    /// The rest of all clients' bytes is delivered, everything is read, and everybody leaves; then all must be as it was.
    ///
    /// # Errors
    /// A rule is broken, or somebody waits for ever.
    pub fn finish(&mut self, mut amount: impl FnMut() -> usize) -> Verdict {
        (0..self.peers.len()).for_each(|who| self.hang_up(who));
        let mut ended = false;
        for _ in 0..STEPS_MAX {
            let mut moved = false;
            for who in 0..self.peers.len() {
                // Whoever reads nothing at all any more would be waited for.
                moved |= self.drain(who, amount())? || self.deliver(who, amount())?;
            }
            moved |= self.complete(0, How::Well)?;
            if self.engine.connection_count() == 0 {
                return self.check_rest();
            }
            if !moved && self.past.stopping_since.is_some() && !ended {
                // Whoever is not read any more is let go by the server.
                (moved, ended) = (true, true);
                self.stop(false)?;
            }
            ensure(moved, || "nobody waits for anything, and nobody is done".to_owned())?;
        }
        Err("no end".to_owned())
    }

    /// A new turn.
    fn begin(&mut self) -> u64 {
        self.time += 1;
        self.disk.at(self.time);
        self.engine.begin_turn(self.clock);
        self.time
    }

    /// Does what the engine wants, for as many turns as it takes.
    fn act(&mut self) -> Verdict {
        loop {
            self.act_once()?;
            self.engine.tick(&mut self.disk);
            self.act_once()?;
            if !self.engine.wants_turn() {
                return self.check_limits();
            }
            self.engine.begin_turn(self.clock);
        }
    }

    fn act_once(&mut self) -> Verdict {
        while let Some((place, action)) = self.engine.next_action(&mut self.disk) {
            let peer = self.peers.iter_mut().find(|peer| peer.place == place && peer.closed.is_none());
            peer.ok_or("something is wanted of a socket that is closed")?.act(action)?;
        }
        Ok(())
    }

    fn check_limits(&self) -> Verdict {
        let alive = || self.peers.iter().filter(|peer| peer.closed.is_none());
        let max = |peer: &Peer| buffers_max(&self.limits, peer.leftover, peer.ledger.setting().size);
        let (used, most) =
            (self.engine.pool().bytes_in_use(), alive().map(max).sum::<usize>() + self.disk.buffers());
        ensure(used <= most, || format!("{used} bytes of buffers, {most} at most"))?;
        if self.peers.iter().any(Peer::owes_nothing) || self.forced {
            return Ok(());
        }
        let served: u64 = self.peers.iter().map(|peer| peer.ledger.served()).sum();
        let (under_way, most) =
            (self.engine.requests_started() - served, alive().count() * self.limits.requests_max);
        ensure(under_way <= most as u64, || format!("{under_way} requests under way, {most} at most"))
    }

    /// Somebody has asked for what the disk has become.
    fn check_last_change(&self) -> Verdict {
        let Some(change) = self.disk.last_change() else { return Ok(()) };
        let now = self.disk.content(change.file, change.start..change.start + change.old.len());
        let mut asked_for = vec![0; now.len()];
        self.peers.iter().for_each(|peer| peer.ledger.may_change(change, &mut asked_for, now));
        if !asked_for.contains(&0) {
            return Ok(());
        }
        let stranger = (0..now.len()).find(|&at| asked_for[at] == 0 && now[at] != change.old[at]);
        ensure(stranger.is_none(), || format!("byte {stranger:x?} of {change:x?} was changed unasked"))
    }

    fn check_rest(&self) -> Verdict {
        let left = self.engine.pool().bytes_in_use();
        ensure(left == 0, || format!("{left} bytes of buffers were not given back"))?;
        ensure(self.disk.pending() == 0, || "the disk works for nobody".to_owned())?;
        self.peers.iter().try_for_each(|peer| self.check_end(peer))
    }

    fn check_end(&self, peer: &Peer) -> Verdict {
        let closed = peer.closed.ok_or("a connection was never closed")?;
        match closed {
            CloseReason::Shutdown if self.forced || peer.lost => Ok(()),
            CloseReason::Shutdown => {
                ensure(self.past.stopping_since.is_some(), || "a stop that nobody asked for".to_owned())?;
                if self.past.refuses {
                    peer.ledger.check_all_answered()
                } else {
                    peer.ledger.check_nothing_unread()
                }
            }
            CloseReason::Stalled => {
                ensure(peer.waited >= self.limits.stall, || "stalled, in no time".to_owned())
            }
            CloseReason::PeerGone if peer.lost => Ok(()),
            // What came after the stop need not have been read.
            CloseReason::PeerGone if self.past.stopping_since.is_some() && !self.past.refuses => {
                peer.ledger.check_nothing_unread()
            }
            reason if peer.lost => {
                ensure(reason_of(peer.ledger.end()) == reason, || format!("closed with {reason:?}"))
            }
            reason => peer.ledger.check_end(reason),
        }
    }
}

fn reason_of(end: End) -> CloseReason {
    match end {
        End::Goodbye => CloseReason::Left,
        End::PeerLeft => CloseReason::PeerGone,
        End::Broken(reason) => reason,
    }
}

fn memories(sizes: &[u64]) -> Box<dyn Backend> {
    let memory =
        |&bytes: &u64| Box::new(MemoryExport::new(bytes).expect("a small export")) as Box<dyn Export>;
    Box::new(Separate::new(sizes.iter().map(memory).collect()))
}

fn files(sizes: &[u64], geometry: FileGeometry) -> Box<dyn Backend> {
    let export = |(number, &size): (u32, &u64)| {
        let file = nbd_server::disk::FileId(number);
        Box::new(FileExport::new(file, FileGeometry { size, ..geometry })) as Box<dyn Export>
    };
    Box::new(Separate::new((0..).zip(sizes).map(export).collect()))
}

impl Peer {
    fn act(&mut self, action: SocketAction) -> Verdict {
        match action {
            SocketAction::Receive(op) => {
                ensure(self.receive.replace(op).is_none(), || "two receives".to_owned())
            }
            SocketAction::Send(batch) => {
                ensure(self.send.replace(batch).is_none(), || "two sends".to_owned())
            }
            SocketAction::Shutdown => {
                self.shut = true;
                Ok(())
            }
            SocketAction::Close(reason) => {
                let idle = self.receive.is_none() && self.send.is_none();
                self.closed = Some(reason);
                ensure(idle, || "closed under an operation".to_owned())
            }
        }
    }
}
