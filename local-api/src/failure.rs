//! Errors as a person sees them: what, why, and the next command to type.

use std::fmt;

use crate::error::Kind;
use crate::exit_code;

/// Three lines and an exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was not done.
    pub what: String,
    /// Why not.
    pub why: String,
    /// What to type next.
    pub next: String,
    /// One of [`exit_code`].
    pub code: u8,
}

impl Failure {
    /// A failure with that exit code.
    pub fn new(code: u8, what: impl Into<String>, why: impl fmt::Display, next: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.to_string(), next: next.into(), code }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\nwhy:   {}\nnext:  {}", self.what, self.why, self.next)
    }
}

/// The exit code that goes with a kind of error.
pub fn code_of(kind: Kind) -> u8 {
    match kind {
        Kind::BadName | Kind::BadValue | Kind::BadRequest | Kind::TooLarge => exit_code::USAGE,
        Kind::NotFound => exit_code::NOT_FOUND,
        Kind::Busy | Kind::Overloaded => exit_code::BUSY,
        Kind::Refused | Kind::Stale | Kind::Forbidden => exit_code::REFUSED,
        Kind::Damaged => exit_code::VERIFICATION_FAILED,
        Kind::Stopping | Kind::Timeout | Kind::Unreachable => exit_code::UNREACHABLE,
        Kind::Exists | Kind::NoSpace | Kind::Io | Kind::Unknown => exit_code::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_three_lines() {
        let failure = Failure::new(exit_code::BUSY, "cannot do it", "because", "try this");
        assert_eq!(failure.to_string(), "error: cannot do it\nwhy:   because\nnext:  try this");
    }

    #[test]
    fn codes_are_those_of_the_contract() {
        let kinds =
            [Kind::BadName, Kind::NotFound, Kind::Busy, Kind::Refused, Kind::Unreachable, Kind::Damaged];
        assert_eq!(kinds.map(code_of), [2, 3, 4, 5, 7, 8]);
        assert_eq!(code_of(Kind::Stopping), 7);
        assert!(Kind::ALL.iter().all(|kind| code_of(*kind) != exit_code::OK));
    }
}
