//! What the simulation needs of the two blockds.

use std::ops::Range;

use fixtures::sim::seeds::Seen;
use vmctl::cutover::event::{Answer, BlockdOp};
use vmctl::cutover::ids::{Epoch, MoveId};
use vmctl::cutover::record::{Record, Stage};

use crate::chance::Micros;

/// The only volume, as numbered writes that were answered, one after the other: its content is how many.
pub type Content = u32;

/// What has come of a guest's write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was answered.
    Done,
    /// It was not answered yet. QEMU asks again, through a new connection if the old one is gone.
    Waits,
    /// An error was answered.
    Refused,
}

/// Two blockds, of the hosts 0 and 1, with one volume: host 0 has it first.
pub trait Blockds {
    /// Moves of a case, at most.
    const MOVES_MAX: u8;
    /// Between two writes of the guest.
    const WRITE_EVERY: Range<Micros>;

    /// Virtual time has come so far.
    fn advance(&mut self, now: Micros);

    /// Starts of a host's blockd: what was asked of an earlier process nobody answers.
    fn starts(&self, host: usize) -> u64;

    /// In which the volume is at a host.
    fn epoch(&self, host: usize) -> Epoch;

    /// Whether a host takes writes of a guest.
    fn accepts(&self, host: usize) -> bool;

    /// What a host's record says of a move.
    fn record(&self, host: usize, id: MoveId) -> Record;

    /// How far a move is at a host.
    fn stage(&self, host: usize, id: MoveId) -> Stage {
        self.record(host, id).stage
    }

    /// Does everything but `Ship`. The process may end meanwhile.
    fn apply(&mut self, host: usize, id: MoveId, op: &BlockdOp) -> Answer;

    /// Does `Ship`, from `host` to the other one. `link`: there is one.
    fn ship(&mut self, host: usize, id: MoveId, link: bool) -> Answer;

    /// A round of replication, from `host` to the other one, while the guest runs.
    fn round(&mut self, host: usize);

    /// From now on nothing goes wrong.
    fn calm(&mut self);

    /// The process ends and is started again; `power`: with its host.
    fn crash(&mut self, host: usize, power: bool);

    /// The host whose power went while its blockd did something, once.
    fn take_power_cut(&mut self) -> Option<usize>;

    /// A QEMU is started at a host, for that epoch.
    fn open(&mut self, host: usize, epoch: Epoch);

    /// A QEMU has ended.
    fn close(&mut self, host: usize, epoch: Epoch);

    /// The guest's write of that number, asked for until it is answered.
    fn write(&mut self, host: usize, epoch: Epoch, number: Content) -> Written;

    /// Whether a guest of a host can be stopped: no write of it is under way.
    fn is_drained(&mut self, host: usize) -> bool;

    /// A guest of a host is about to run.
    ///
    /// # Panics
    /// When it would not find everything that was answered.
    fn verify(&mut self, host: usize, acked: Content);

    /// After every event.
    ///
    /// # Panics
    /// When both hosts take writes, or one does that should not.
    fn check(&mut self);

    /// When all is over.
    ///
    /// # Panics
    /// When the owner has not everything that was answered, or something of a move is left.
    fn check_end(&mut self, owner: usize, acked: Content);

    /// How often what happened, once.
    fn take_seen(&mut self) -> Seen;
}
