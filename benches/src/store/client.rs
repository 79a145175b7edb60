//! A client that works in the background until it is stopped.

use std::path::PathBuf;

use super::room::Room;
use crate::fio::Load;
use crate::process::{Guarded, last_words, spawn};
use crate::trouble::{OrTrouble, Trouble};

const NEXT: &str = "look at the server's log";

/// fio with a load that is meant to last longer than it is needed. Dropping it stops it.
#[derive(Debug)]
pub struct Client {
    process: Guarded,
    log: PathBuf,
}

impl Client {
    /// Starts it; it takes a moment until it has connected.
    ///
    /// # Errors
    /// fio cannot be started.
    pub fn start(room: &Room<'_>, load: &Load<'_>, uri: &str) -> Result<Self, Trouble> {
        let log = room.new_short("client");
        let process = Guarded::child(spawn(&load.command(uri), &log, None)?);
        Ok(Self { process, log })
    }

    /// Stops it. One that has already ended did not work all the time: what was measured beside it is worth nothing.
    ///
    /// # Errors
    /// It has ended by itself, or does not end.
    pub fn stop(mut self) -> Result<(), Trouble> {
        let what = || "keep a client at work".to_owned();
        match self.process.ended().or_trouble(what, NEXT)? {
            Some(how) => {
                Err(Trouble::new(what(), format!("it ended ({how}): {}", last_words(&self.log)), NEXT))
            }
            None => self.process.stop(),
        }
    }
}
