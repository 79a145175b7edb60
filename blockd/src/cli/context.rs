//! What every command gets: the daemon, the form of the output, and whether somebody is there to be asked.

use std::io::IsTerminal;
use std::io::{BufRead, Write};

use crate::api::client::{Client, ClientError};
use crate::exit_code;
use crate::failure::{self, Failure};

use super::args::{Cli, Format, Sure};
use super::output;

/// See the module.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) format: Format,
}

impl Context {
    pub(super) fn new(cli: &Cli) -> Self {
        Self { client: Client::new(&cli.socket), format: cli.output }
    }

    /// Whether results are for people.
    pub(super) fn for_people(&self) -> bool {
        self.format == Format::Table
    }

    /// Whether to go on with something that cannot be undone: `--yes`, or the name typed at a terminal.
    ///
    /// # Errors
    /// Nobody can be asked, or what was typed is not the name.
    pub(super) fn confirm(&self, sure: Sure, command: &str, loss: &str, name: &str) -> Result<(), Failure> {
        if sure.yes {
            return Ok(());
        }
        let what = format!("{command} {name}: not done");
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            let why = format!("{loss}; there is no terminal to ask at");
            let next = format!("blockctl {command} {name} --yes    (or --plan to look first)");
            return Err(Failure::new(exit_code::REFUSED, what, why, next));
        }
        let typed =
            ask(&format!("{loss}.\nType {name} to go on: ")).map_err(|error| output::failure(&error))?;
        if typed.trim() == name {
            return Ok(());
        }
        let next = format!("blockctl {command} {name}    (and type the whole name)");
        Err(Failure::new(exit_code::REFUSED, what, "what was typed is not the name", next))
    }
}

fn ask(question: &str) -> std::io::Result<String> {
    let mut stderr = std::io::stderr();
    stderr.write_all(question.as_bytes())?;
    stderr.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

/// Tells what was tried when the daemon says no.
pub(super) trait Trying<T> {
    /// The failure's first line.
    fn trying(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Trying<T> for Result<T, ClientError> {
    fn trying(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| failure::of_client(what(), &error))
    }
}
