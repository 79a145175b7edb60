//! How far something is: one calm line on a terminal, one line a phase elsewhere, objects with `-o jsonl`.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

use super::args::Format;
use super::output;

/// Redrawn at most so often a second.
const DRAWS_PER_SECOND: u8 = 4;

/// Progress of one command; what is drawn disappears with it.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    format: Format,
    phase: String,
    total: u64,
}

#[derive(Serialize)]
struct Step<'a> {
    event: &'static str,
    phase: &'a str,
    done: u64,
    total: u64,
}

impl Progress {
    pub(super) fn new(format: Format) -> Self {
        let wanted = format == Format::Table && std::io::stderr().is_terminal();
        Self { bar: wanted.then(new_bar), format, phase: String::new(), total: 0 }
    }

    /// A new phase begins; `total` bytes are ahead.
    pub(super) fn phase(&mut self, phase: impl Into<String>, total: u64) -> Result<(), Failure> {
        self.phase = phase.into();
        self.total = total;
        match &self.bar {
            Some(bar) => {
                bar.reset();
                bar.set_length(total);
                bar.set_message(self.phase.clone());
                bar.enable_steady_tick(Duration::from_millis(500));
                Ok(())
            }
            None if self.format == Format::Jsonl => self.step(0),
            None => note(&self.phase),
        }
    }

    /// So many bytes of the phase are done.
    pub(super) fn done(&mut self, done: u64) -> Result<(), Failure> {
        match &self.bar {
            Some(bar) => bar.set_position(done),
            None if self.format == Format::Jsonl => self.step(done)?,
            None => {}
        }
        Ok(())
    }

    fn step(&self, done: u64) -> Result<(), Failure> {
        output::object(&Step { event: "progress", phase: &self.phase, done, total: self.total })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND));
    let template =
        "{msg}  {binary_bytes} of {binary_total_bytes}  [{bar:20}]  {binary_bytes_per_sec}  {eta} left";
    // A template that is wrong shows the usual bar: the work itself goes on.
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// A line for people, beside the result.
pub(super) fn note(text: &str) -> Result<(), Failure> {
    writeln!(std::io::stderr(), "{text}").map_err(|error| output::failure(&error))
}
