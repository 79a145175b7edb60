//! Commands that wait for their answers, and why the connection ended.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::QmpError;
use super::text::shown;

/// What becomes of a command.
pub(super) type Outcome = Result<Value, QmpError>;

/// A command that QEMU has been sent.
struct Waiting {
    command: &'static str,
    answer: oneshot::Sender<Outcome>,
    /// Its place in QEMU's queue, also when nobody waits any more: QEMU still has it.
    _place: OwnedSemaphorePermit,
}

/// Shared by the clients and the reader; the lock is held for a few instructions.
#[derive(Default)]
pub(super) struct Pending {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<u64, Waiting>,
    last_id: u64,
    closed: Option<String>,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic elsewhere leaves the table whole: every change of it is one insert or remove.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a command; its id, and where its outcome arrives.
    pub(super) fn add(
        &self,
        command: &'static str,
        place: OwnedSemaphorePermit,
    ) -> Result<(u64, oneshot::Receiver<Outcome>), QmpError> {
        let mut table = self.lock();
        if let Some(reason) = &table.closed {
            return Err(QmpError::Closed(reason.clone()));
        }
        table.last_id += 1;
        let id = table.last_id;
        let (answer, outcome) = oneshot::channel();
        table.waiting.insert(id, Waiting { command, answer, _place: place });
        Ok((id, outcome))
    }

    /// Hands an answer to whoever waits for it.
    ///
    /// # Errors
    /// Nobody asked: the text says what came.
    pub(super) fn answer(&self, mut object: Map<String, Value>) -> Result<(), String> {
        let Some(id) = object.get("id").and_then(Value::as_u64) else {
            return Err(format!("an answer to nothing: {}", shown(&Value::Object(object).to_string())));
        };
        let Some(waiting) = self.lock().waiting.remove(&id) else {
            return Err(format!("an answer to command {id}, which was not asked or is answered"));
        };
        let command = waiting.command;
        let outcome = match (object.remove("return"), object.remove("error")) {
            (Some(value), None) => Ok(value),
            (None, Some(error)) => Err(refusal(command, &error)),
            _ => Err(QmpError::Answer { command, reason: "neither a result nor an error".to_owned() }),
        };
        if waiting.answer.send(outcome).is_err() {
            tracing::debug!(command, "QEMU answered when nobody waited any more");
        }
        Ok(())
    }

    /// Ends everything that waits; later commands fail at once. The first reason stays.
    pub(super) fn close(&self, reason: &str) {
        let mut table = self.lock();
        let reason = table.closed.get_or_insert_with(|| reason.to_owned()).clone();
        for (_, waiting) in table.waiting.drain() {
            // Who does not wait any more needs no answer.
            drop(waiting.answer.send(Err(QmpError::Closed(reason.clone()))));
        }
    }

    /// Why the connection ended.
    pub(super) fn closed(&self) -> Option<String> {
        self.lock().closed.clone()
    }
}

fn refusal(command: &'static str, error: &Value) -> QmpError {
    let text = |key: &str| shown(error.get(key).and_then(Value::as_str).unwrap_or("(without a word)"));
    QmpError::Refused { command, class: text("class"), reason: text("desc") }
}
