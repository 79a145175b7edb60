//! What the two agents say to each other. docs/migration.md, "Messages", has them byte by byte.

use serde::{Deserialize, Serialize};

use super::ids::{MoveId, Text};
use super::record::{Commit, Plan};

/// A message, with the move that it is about: one link may carry several moves.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// The move.
    pub id: MoveId,
    /// What is said of it.
    pub message: Message,
}

/// What is said. Who gets one that its side is never sent ignores it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Message {
    /// To the destination: get ready. Answer: `Prepared`, `Refused`.
    Prepare {
        /// What comes.
        plan: Plan,
    },
    /// To the destination: the source has released; take the volumes and run. Said again until `Running`.
    Commit {
        /// What was released.
        commit: Commit,
    },
    /// To the destination: the source has aborted. Answer: `Discarded`.
    Abort {},
    /// To the destination, answer to `Query`.
    Outcome {
        /// How the move stands.
        outcome: Outcome,
    },
    /// To the source: the disk is expected, QEMU waits for memory.
    Prepared {},
    /// To the source: no, and nothing was left behind.
    Refused {
        /// Why.
        reason: Text,
    },
    /// To the source: QEMU has loaded everything and is paused.
    Loaded {},
    /// To the source: it cannot be done; before the commit record the source aborts.
    Failed {
        /// Why.
        reason: Text,
    },
    /// To the source: the guest is here (or has ended here).
    Running {},
    /// To the source: how does the move stand? Answer: `Outcome`.
    Query {},
    /// To the source: nothing is left of the move here.
    Discarded {},
}

/// How a move stands, as the source says it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// Not decided.
    Moving {},
    /// As `Commit`.
    Released {
        /// What was released.
        commit: Commit,
    },
    /// As `Abort`.
    Aborted {},
    /// The source never began it, and never will: as `Abort`.
    Unknown {},
}
