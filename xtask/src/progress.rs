//! Progress for people: one calm line per step, with the time since the start.

use std::time::Instant;

/// The clock of one run.
#[derive(Debug)]
pub(crate) struct Progress {
    started: Instant,
}

impl Progress {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now() }
    }

    /// Says what begins now. On standard error: standard output is for results.
    pub(crate) fn say(&self, line: &str) {
        eprintln!("{:>6.1} s  {line}", self.started.elapsed().as_secs_f32());
    }

    /// Shows a line of what a program has said.
    pub(crate) fn show(&self, line: &str) {
        eprintln!("          {line}");
    }
}
