//! What goes into the two state machines and what comes out of them.
//!
//! Three rules for who drives them:
//! - Actions are done in the order of the list. A `Journal` entry must be durable before the next action is begun; if that
//!   fails, the machine is dropped as in a crash, and made again by its `recover`.
//! - Every `Blockd` action gets exactly one answer, `Unavailable` at the latest when the caller has had enough of waiting.
//!   Answers may come in any order.
//! - What QEMU says is passed on in the order in which QEMU said it, answers and events alike.

use serde::{Deserialize, Serialize};

use super::ids::{Epoch, MoveId, Text};
use super::message::Message;
use super::record::{Commit, FinalSnapshot, Plan, Record, Setup};

/// What a machine asks of its own blockd. All can be asked again and change nothing then.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum BlockdOp {
    /// What the record says. Answer: `Record`.
    Query,
    /// Source: hold writes. Answer: `Done`.
    Freeze,
    /// Source: cut the final snapshots, bring them to the destination and publish them there, roots compared. May take long.
    /// Answer: `Shipped`.
    Ship,
    /// Source: THE COMMIT RECORD. Answer: `Done`.
    Release(Vec<FinalSnapshot>),
    /// Either: undo; also where the move is not known yet, so that whatever is still on its way comes too late. Answer: `Done`.
    Abort,
    /// Destination: be ready to take the plan's volumes. Answer: `Done`.
    Expect,
    /// Destination: take them, if exactly these snapshots are what is published. Answer: `Done`.
    Own {
        /// The new epoch.
        epoch: Epoch,
        /// As the source released them.
        snapshots: Vec<FinalSnapshot>,
    },
}

/// A [`BlockdOp`] without what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlockdKind {
    /// Query.
    Query,
    /// Freeze.
    Freeze,
    /// Ship.
    Ship,
    /// Release.
    Release,
    /// Abort.
    Abort,
    /// Expect.
    Expect,
    /// Own.
    Own,
}

impl BlockdOp {
    /// Which one it is: its answer is given with it.
    pub fn kind(&self) -> BlockdKind {
        match self {
            Self::Query => BlockdKind::Query,
            Self::Freeze => BlockdKind::Freeze,
            Self::Ship => BlockdKind::Ship,
            Self::Release(_) => BlockdKind::Release,
            Self::Abort => BlockdKind::Abort,
            Self::Expect => BlockdKind::Expect,
            Self::Own { .. } => BlockdKind::Own,
        }
    }
}

/// What came of a [`BlockdOp`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is so, durably; now, or since before.
    Done,
    /// Of `Ship`.
    Shipped(Vec<FinalSnapshot>),
    /// Of `Query`.
    Record(Record),
    /// Not done, and it will not be: the record says that instead.
    Refused(Record, Text),
    /// Nobody knows: blockd is not there, restarts, or did not answer in time; what was asked may be done, now or later.
    Unavailable,
}

/// What the source's QEMU is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceQemuOp {
    /// Say how it is (`query-status`, `query-migrate`).
    Query,
    /// `migrate-continue state=pre-switchover`.
    Continue,
    /// `migrate_cancel`. Never asked after `Continue` unless QEMU says that it still waits, and blockd has aborted.
    Cancel,
    /// `yank`, the migration only: it fails, and QEMU resumes the guest by itself.
    Yank,
    /// `cont`. Only asked after blockd has aborted.
    Resume,
    /// `quit`, or SIGKILL. Only asked after the guest runs at the destination.
    Quit,
}

/// How the source's QEMU says it is. Advice: nothing is released or thawed because of it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceQemu {
    /// The guest runs and no migration is under way: none was begun, it failed, it was cancelled.
    Running,
    /// The guest runs, memory is copied (`setup`, `active`).
    Precopy,
    /// The guest is stopped, QEMU waits for `Continue`.
    PreSwitchover,
    /// The guest is stopped, the rest is on its way (`device`, also `cancelling`).
    Device,
    /// The destination has everything (`completed`, run state `postmigrate`).
    Completed,
    /// The guest is stopped and no migration is under way (`paused`, `io-error`).
    Paused,
    /// The guest has shut down.
    Shutdown,
    /// The guest has panicked.
    Panicked,
    /// There is no QEMU.
    Gone,
}

impl SourceQemu {
    /// There is no guest any more that could run.
    pub fn is_dead(self) -> bool {
        matches!(self, Self::Shutdown | Self::Panicked | Self::Gone)
    }
}

/// What the destination's QEMU is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationQemuOp {
    /// Say how it is.
    Query,
    /// Start it with `-S -incoming defer`, set it up, `migrate-incoming`.
    Start,
    /// `cont`. Only asked after blockd said that the volumes are owned.
    Cont,
    /// Start it from the volumes, without memory. Only asked after blockd said that they are owned.
    StartCold,
    /// SIGKILL.
    Kill,
}

/// How the destination's QEMU says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationQemu {
    /// It waits for memory, or gets it (`inmigrate`).
    Incoming,
    /// It has everything and has never run (`completed`, run state `paused`).
    Loaded,
    /// The guest runs.
    Running,
    /// The guest has run and is stopped (`io-error`).
    Paused,
    /// The guest has shut down.
    Shutdown,
    /// The guest has panicked.
    Panicked,
    /// There is no QEMU.
    Gone,
}

/// An instant that is worth measuring; the driver has the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    /// Source: QEMU has stopped the guest. The silence begins.
    GuestStopped,
    /// Source: the volumes are frozen.
    Frozen,
    /// Source: the final snapshots are published at the destination.
    Published,
    /// Source: QEMU has completed.
    Completed,
    /// Source: the destination has said `Loaded`. Destination: its QEMU has.
    Loaded,
    /// Source: the commit record is durable.
    Released,
    /// Source: the abort record is durable.
    Aborted,
    /// Source: the guest runs here again (or has ended).
    GuestBack,
    /// Source: the destination has said `Running`.
    PeerRunning,
    /// Destination: it learned of the commit record.
    Committed,
    /// Destination: the volumes are owned.
    Owned,
    /// Destination: QEMU says that the guest runs. The silence ends.
    Resumed,
}

/// Why a source goes back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Somebody asked for it: a person, or a bound of the driver's that was passed.
    Asked(Text),
    /// The destination does not want it.
    Refused(Text),
    /// The destination cannot.
    Failed(Text),
    /// The link broke while the guest was stopped.
    Link,
    /// QEMU did what it should not: it says so.
    Qemu(SourceQemu),
    /// blockd refuses what the move needs.
    Blockd(Text),
    /// Blockd's record is aborted, not by us.
    Elsewhere,
    /// The agent was restarted before the commit record.
    Restarted,
}

/// What the source is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The other agent says it.
    Message(MoveId, Message),
    /// What came of an operation.
    Blockd(BlockdKind, Answer),
    /// QEMU says it.
    Qemu(SourceQemu),
    /// The disks are nearly the same, the forecast is within the bound: the guest may be stopped. Said before `migrate`;
    /// legal after [`SourceAction::Ready`].
    Begin,
    /// Go back, if that is still possible. The driver's bounds on time are such a wish, too.
    Abort(Text),
    /// There is a link to the other agent (again).
    LinkUp,
    /// There is none.
    LinkDown,
    /// Time has passed: say again, or ask again, what was not answered.
    Poke,
}

/// What the source wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Say it to the other agent; it may be lost.
    Send(Message),
    /// Ask blockd.
    Blockd(BlockdOp),
    /// Ask QEMU.
    Qemu(SourceQemuOp),
    /// Make it durable, before the next action.
    Journal(SourceEntry),
    /// The destination is prepared: bulk, rounds and memory may begin, then `Begin`.
    Ready,
    /// An instant.
    Mark(Mark),
    /// Somebody should know.
    Note(Note),
    /// The move has ended here. The machine goes on answering; it may be dropped, then `known` answers.
    Finished(SourceOutcome),
}

/// An entry of the source's journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceEntry {
    /// The first one, before anything is said or done.
    Started(Setup),
    /// The last one.
    Ended(SourceOutcome),
}

/// How a move ended at the source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceOutcome {
    /// The guest is at the destination.
    Moved(Commit),
    /// The guest is here.
    Aborted {
        /// Why.
        reason: Reason,
        /// How the guest is: `Running`, or dead; then it may be started cold, here.
        guest: SourceQemu,
    },
}

/// What the destination is told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// The other agent says it.
    Message(MoveId, Message),
    /// What came of an operation.
    Blockd(BlockdKind, Answer),
    /// QEMU says it.
    Qemu(DestinationQemu),
    /// There is a link to the other agent (again).
    LinkUp,
    /// There is none.
    LinkDown,
    /// Time has passed: say again, or ask again, what was not answered.
    Poke,
}

/// What the destination wants done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Say it to the other agent; it may be lost.
    Send(Message),
    /// Ask blockd.
    Blockd(BlockdOp),
    /// Ask QEMU.
    Qemu(DestinationQemuOp),
    /// Make it durable, before the next action.
    Journal(DestinationEntry),
    /// An instant.
    Mark(Mark),
    /// Somebody should know.
    Note(Note),
    /// The move has ended here. The machine goes on answering; it may be dropped, then `known` answers.
    Finished(DestinationOutcome),
}

/// An entry of the destination's journal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DestinationEntry {
    /// The first one, before anything is said or done.
    Preparing(Setup),
    /// The last one.
    Ended(DestinationOutcome),
}

/// How a move ended at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DestinationOutcome {
    /// The guest is here.
    Here {
        /// In which the volumes are owned.
        epoch: Epoch,
        /// The memory was lost with a QEMU: the guest was started from its volumes.
        cold: bool,
        /// The guest, which ran, has shut down or panicked.
        ended: bool,
    },
    /// Nothing of the move is left here.
    Discarded,
}

/// What a person should know; the machine goes on by itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Note {
    /// Too late to go back: the commit record is there.
    Committed,
    /// blockd refuses what has to be done; it is asked again.
    BlockdRefuses(BlockdKind, Text),
    /// The other side says that it cannot, after the commit record; it is told again.
    PeerFails(Text),
    /// The records of the two hosts contradict each other: only a person can have done that.
    Contradiction(Text),
    /// The destination's QEMU ran without owning the volumes; nothing of that was written, and it was ended.
    RanUnowned,
}

/// The plan, where only that is needed.
impl Setup {
    /// A move of `plan`.
    pub fn new(id: MoveId, plan: Plan) -> Self {
        Self { id, plan }
    }
}
