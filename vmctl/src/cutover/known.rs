//! What is answered about moves that no machine runs any more: ended ones, and such that were never known.
//!
//! What comes back is for the asking side's machine; nothing is ever done here because of such a message.

use super::event::{DestinationOutcome, SourceOutcome};
use super::message::{Message, Outcome};
use super::record::{Commit, Record, Stage};

/// The source's answer. `ended`: what the journal says at the end of this move, if it has it; `record`: what blockd says of it
/// now; to be asked for if the journal knows nothing.
///
/// A move that is in the journal without an end has a machine; this is not for it.
pub fn source_answer(
    message: &Message,
    ended: Option<&SourceOutcome>,
    record: Option<&Record>,
) -> Option<Message> {
    if !matches!(message, Message::Query {}) {
        return None;
    }
    let outcome = match (ended, record) {
        (Some(SourceOutcome::Moved(commit)), _) => Outcome::Released { commit: commit.clone() },
        (Some(SourceOutcome::Aborted { .. }), _) => Outcome::Aborted {},
        (None, Some(record)) => match record.stage {
            Stage::Released => {
                let commit = Commit { epoch: record.epoch, snapshots: record.snapshots.clone() };
                Outcome::Released { commit }
            }
            Stage::Aborted => Outcome::Aborted {},
            // Frozen without a journal: somebody has to look.
            Stage::Frozen => Outcome::Moving {},
            Stage::Absent | Stage::Expected | Stage::Owned => Outcome::Unknown {},
        },
        // Nobody knows; the other side asks again.
        (None, None) => Outcome::Moving {},
    };
    Some(Message::Outcome { outcome })
}

/// The destination's answer. `ended`: what the journal says at the end of this move, if it has it.
///
/// A `Prepare` of a move that is not known here begins one; all else about it is not answered, except an `Abort`, so that the
/// source may stop saying it.
pub fn destination_answer(message: &Message, ended: Option<&DestinationOutcome>) -> Option<Message> {
    match (message, ended) {
        (
            Message::Prepare { .. } | Message::Commit { .. } | Message::Abort {} | Message::Outcome { .. },
            Some(DestinationOutcome::Here { .. }),
        ) => Some(Message::Running {}),
        (
            Message::Prepare { .. } | Message::Commit { .. } | Message::Abort {} | Message::Outcome { .. },
            Some(DestinationOutcome::Discarded),
        )
        | (Message::Abort {}, None) => Some(Message::Discarded {}),
        _ => None,
    }
}
