//! The one error type: what failed, why, and what to type next.

use std::fmt;

/// An operating error in the three lines a person needs.
///
/// Programmer errors are assertions and never come as a `Trouble`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What could not be done.
    pub what: String,
    /// The cause as the system or the program reported it.
    pub why: String,
    /// A command or a change that gets on.
    pub next: String,
}

impl Trouble {
    /// Builds the three lines.
    pub fn new(what: impl Into<String>, why: impl fmt::Display, next: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), next: next.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed:  {}\nwhy:     {}\nnext:    {}", self.what, self.why, self.next)
    }
}

impl std::error::Error for Trouble {}

/// Turns a library's error into a [`Trouble`] where the context is known.
pub trait OrTrouble<T> {
    /// Keeps the value, or says `what` failed and what to do `next`.
    ///
    /// # Errors
    /// The original error as the `why` of a [`Trouble`].
    fn or_trouble(self, what: impl FnOnce() -> String, next: &str) -> Result<T, Trouble>;
}

impl<T, E: fmt::Display> OrTrouble<T> for Result<T, E> {
    fn or_trouble(self, what: impl FnOnce() -> String, next: &str) -> Result<T, Trouble> {
        self.map_err(|error| Trouble::new(what(), error, next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_three_lines() {
        let trouble = Trouble::new("start nbdkit", "not found", "apt install nbdkit");
        assert_eq!(
            trouble.to_string(),
            "failed:  start nbdkit\nwhy:     not found\nnext:    apt install nbdkit"
        );
    }
}
